"""Laws of `shard_columns`, over maps that Hypothesis makes: of the reference, of the kernels."""

import numpy as np
import oracle
import pytest
from test_laws import hold
from test_shards import run

from maskq_cupy import cp, reference

pytest.importorskip("hypothesis")
from hypothesis import strategies as st

# A law takes `shard`, a function of columns, row chunks and key chunks, and `draw`.


def shows_what_the_pack_shows(shard, draw):
    """Local row i sees column i' as the row and the key that are stored there did."""
    columns, row_num = draw(maps())
    rows, keys = draw(row_chunks(row_num)), draw(key_chunks(len(columns)))
    dense = reference.to_dense(columns, row_num)
    row_ids, key_ids = cp.chunk_rows(rows), oracle.tokens_of(keys)
    is_row, is_key = row_ids < row_num, (key_ids >= 0) & (key_ids < len(columns))
    expected = np.zeros((len(row_ids), len(key_ids)), bool)
    expected[np.ix_(is_row, is_key)] = dense[np.ix_(row_ids[is_row], key_ids[is_key])]
    found = reference.to_dense(shard(columns, rows, keys), len(row_ids))
    np.testing.assert_array_equal(found, expected)


def ranks_of_a_partition_add_up(shard, draw):
    columns, row_num = draw(maps())
    owner = draw(st.lists(st.integers(0, 3), min_size=row_num, max_size=row_num))
    ranks = [cp.chunks_of(np.flatnonzero(np.array(owner, int) == rank)) for rank in range(4)]
    total = sum(shard(columns, rows, None).astype(int) for rows in ranks)
    np.testing.assert_array_equal(total, columns)


def shards_of_shards_are_shards(shard, draw):
    columns, row_num = draw(maps())
    rows, keys = draw(row_chunks(row_num)), draw(key_chunks(len(columns)))
    row_ids, key_ids = cp.chunk_rows(rows), oracle.tokens_of(keys)
    inner_rows, inner_keys = draw(row_chunks(len(row_ids))), draw(key_chunks(len(key_ids)))
    inner_rows = np.minimum(inner_rows, len(row_ids))
    twice = shard(shard(columns, rows, keys), inner_rows, inner_keys)
    chosen_rows = row_ids[cp.chunk_rows(inner_rows)]
    places = oracle.tokens_of(inner_keys)
    inside = (places >= 0) & (places < len(key_ids))
    chosen_keys = np.where(inside, np.append(key_ids, -1)[np.where(inside, places, -1)], -1)
    one_by_one = np.stack([chosen_keys, chosen_keys + 1], axis=1).reshape(-1, 2)
    once = shard(columns, cp.chunks_of(chosen_rows), one_by_one)
    np.testing.assert_array_equal(twice, once)


def gathers_are_index_selects(shard, draw):
    """Keys in any order and repeated: the columns of all keys at those places."""
    columns, row_num = draw(maps())
    rows, keys = draw(row_chunks(row_num)), draw(key_chunks(len(columns), padding=False))
    expected = shard(columns, rows, None)[oracle.tokens_of(keys)]
    np.testing.assert_array_equal(shard(columns, rows, keys), expected)


def padding_is_seen_by_nobody(shard, draw):
    columns, row_num = draw(maps())
    rows = draw(row_chunks(row_num))
    q, n = len(cp.chunk_rows(rows)), len(columns)
    found = shard(
        columns, rows, [[n, n + 3], [-2, 0], [2**31 - 1, 2**31 + 1], [-(2**40), 1 - 2**40]]
    )
    np.testing.assert_array_equal(found, np.full((8, 2), q))


def empty_chunks_change_nothing(shard, draw):
    columns, row_num = draw(maps())
    rows, keys = draw(row_chunks(row_num)).tolist(), draw(key_chunks(len(columns))).tolist()
    expected = shard(columns, rows, keys)
    for at in draw(st.lists(st.integers(0, len(rows)), max_size=20)):
        x = rows[at - 1][1] if at else 0
        rows.insert(at, [x, x])
    for at in draw(st.lists(st.integers(0, len(keys)), max_size=20)):
        keys.insert(at, [5, 5])
    np.testing.assert_array_equal(shard(columns, rows, keys), expected)


def invariants(shard, draw):
    """f(q_start) <= UTE <= LTS <= f(q_end), for the bounds of any sequence."""
    columns, row_num = draw(maps())
    rows = draw(row_chunks(row_num))
    found = shard(columns, rows, None)
    assert found.dtype == np.int32
    low, high = columns.min(initial=row_num), columns.max(initial=0)
    below = cp.rows_below(rows, [low, high])
    ordered = columns[:, 1] <= columns[:, 0]
    assert (found >= below[0]).all()
    assert (found <= max(below[1], below[0])).all()
    assert (found[ordered, 1] <= found[ordered, 0]).all()


LAWS = [
    shows_what_the_pack_shows,
    ranks_of_a_partition_add_up,
    shards_of_shards_are_shards,
    gathers_are_index_selects,
    padding_is_seen_by_nobody,
    empty_chunks_change_nothing,
    invariants,
]


@st.composite
def maps(draw):
    """Columns of any bounds within the rows, and the number of rows."""
    row_num = draw(st.integers(0, 20))
    bound = st.integers(0, row_num)
    pairs = draw(st.lists(st.tuples(bound, bound), max_size=20))
    return np.array(pairs, np.int32).reshape(-1, 2), row_num


@st.composite
def row_chunks(draw, row_num):
    """Ascending chunks, some empty, some behind the rows."""
    edges = sorted(draw(st.lists(st.integers(0, row_num + 3), max_size=12)))
    return np.array(edges[: len(edges) // 2 * 2], np.int64).reshape(-1, 2)


@st.composite
def key_chunks(draw, column_num, padding=True):
    """Chunks of keys in any order, with repeats, and padding if asked for."""
    low, high = (-3, column_num + 3) if padding else (0, column_num)
    pairs = draw(st.lists(st.tuples(st.integers(low, high), st.integers(low, high)), max_size=6))
    return np.sort(np.array(pairs, np.int64).reshape(-1, 2), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_of_the_reference(law):
    hold(law, reference.shard_columns, examples=300)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_of_the_kernels(builds, law):
    executable = builds("plain")
    hold(law, lambda *call: run(executable, [call])[0], examples=25)
