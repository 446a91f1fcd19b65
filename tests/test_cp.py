"""Row chunks on the host: the schemes, the layouts of others, how even they are, bad input."""

import doctest
import itertools
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
import simulate_shards as simulate
from strategies import cuts, random_lengths, random_rule

from maskq_cupy import cp, reference
from maskq_cupy.rule import resolve_rule


def tolist(chunks):
    return [some.tolist() for some in chunks]


def test_examples_of_docstrings():
    found = doctest.testmod(cp)
    assert found.attempted
    assert not found.failed


# The schemes


WORKED = [
    ([0, 8, 12], 2, "contiguous", {}, [[[0, 6]], [[6, 12]]]),
    ([0, 8, 12], 2, "zigzag", {}, [[[0, 3], [9, 12]], [[3, 9]]]),
    ([0, 8, 12], 2, "per_sequence", {}, [[[0, 2], [6, 9], [11, 12]], [[2, 6], [9, 11]]]),
    ([0, 4], 2, "per_sequence", {"q_token_num": 8}, [[[0, 1], [3, 5], [7, 8]], [[1, 3], [5, 7]]]),
    ([0, 3], 4, "contiguous", {}, [[], [[0, 1]], [[1, 2]], [[2, 3]]]),
    ([0], 2, "zigzag", {}, [[], []]),
    ([0], 2, "balanced", {}, [[], []]),
    ([0, 5], 1, "balanced", {}, [[[0, 5]]]),
    # Tiles of work 1, 2, 3, 4: the heaviest to rank 0, the next to rank 1, and so on.
    ([0, 512], 2, "balanced", {}, [[[0, 128], [384, 512]], [[128, 384]]]),
    ([0, 512], 2, "balanced", {"work": [1, 1, 1, 9]}, [[[256, 512]], [[0, 256]]]),
    ([0, 512], 2, "balanced", {"causal": False}, [[[0, 256]], [[256, 512]]]),
    ([0, 512], 2, "balanced", {"tolerance": 1}, [[[256, 512]], [[0, 256]]]),
]  # fmt: skip


@pytest.mark.parametrize(("cu", "world", "scheme", "options", "expected"), WORKED)
def test_worked_values(cu, world, scheme, options, expected):
    chunks = cp.cp_chunks(cu, cu, world, scheme, **options)
    assert all(some.dtype == np.int32 and some.shape[1:] == (2,) for some in chunks)
    assert tolist(chunks) == expected


def rule_without_spans(rng, k):
    """Return a rule that `cp_chunks` knows: of spans, `work=` says what they cost."""
    rule = random_rule(rng, k, int(k[-1]))
    rule.pop("spans", None)
    return rule


def random_cuts(rng, tokens):
    q_lens, k_lens = random_lengths(rng, tokens)
    return cuts(q_lens), cuts(k_lens)


@pytest.mark.parametrize("scheme", cp.SCHEMES)
def test_ranks_partition_the_rows(scheme):
    rng = np.random.default_rng(0)
    for _ in range(150):
        q, k = random_cuts(rng, int(rng.choice([0, 3, 100, 1000, 9000])))
        world = int(rng.choice([1, 2, 3, 8, 40]))
        row_num = int(q[-1]) + int(rng.choice([0, 5, 300]))
        if rng.random() < 0.5:
            row_num = -(-row_num // (128 * world)) * 128 * world
        rule = rule_without_spans(rng, k)
        chunks = cp.cp_chunks(q, k, world, scheme, q_token_num=row_num, **rule)
        assert len(chunks) == world
        for some in chunks:
            assert (some[:, 0] < some[:, 1]).all()
            assert (some[1:, 0] > some[:-1, 1]).all()  # neighbours are merged
        rows = cp.chunk_rows(chunks)
        np.testing.assert_array_equal(np.sort(rows), np.arange(row_num))
        lengths = [len(cp.chunk_rows(some)) for some in chunks]
        most_apart = {"contiguous": 1, "zigzag": 2, "balanced": 128}.get(scheme, row_num)
        if scheme == "balanced" and row_num % (128 * world) == 0:
            most_apart = 0
        assert max(lengths) - min(lengths) <= most_apart, lengths


def test_work_is_the_live_tiles():
    """Of each 128 rows, as `to_blocks` lists them for 128 keys."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        q, k = random_cuts(rng, int(rng.choice([0, 300, 3000])))
        rule, row_num = rule_without_spans(rng, k), int(q[-1]) + int(rng.choice([0, 300]))
        columns = reference.get_attn_mask_q(q, k, **rule)
        blocks = reference.to_blocks(columns, row_num)
        live = (blocks.kv_num_blocks + blocks.full_kv_num_blocks)[0, 0]
        work = cp._work_of_rule(q.astype(int), k.astype(int), row_num, resolve_rule(**rule))
        np.testing.assert_array_equal(work, live, err_msg=f"{q} {k} {rule}")


@pytest.mark.parametrize("align", ["bottom_right", "top_left"])
@pytest.mark.parametrize(
    "modifiers",
    [
        {},
        {"causal_block": 3},
        {"chunk_size": 4},
        {"chunk_size": 4, "num_sink_tokens": 2},
        {"chunk_size": 5, "window": (2, 0), "num_sink_tokens": 1},
        {"chunk_size": 3, "causal": False},
        {"causal": False, "window": (1, 2)},
    ],
)
def test_rows_see_what_the_modifiers_say(align, modifiers):
    """Each row of each sequence, alone and with the rows behind it, against the rule in words."""
    rule = resolve_rule(align=align, **modifiers)
    for q_len, kv_len in [(7, 7), (3, 6), (6, 3), (9, 1), (1, 9), (4, 0)]:
        q, k = np.array([0, q_len]), np.array([0, kv_len])
        seen = oracle.visible([q_len], [kv_len], align=align, **modifiers)
        for first in range(q_len):
            for last in range(first, q_len):
                starts, ends = cp.runs_of_keys(rule, q, k, np.array([first]), np.array([last]))
                runs = zip(starts[0], ends[0], strict=True)
                keys = {key for start, end in runs for key in range(start, end)}
                assert keys == set(np.flatnonzero(seen[first : last + 1].any(axis=0)))


# Layouts of others: the rows that they give rank r of W, of sequences in multiples of 2 W


def multiples(rng, world, most=5):
    return 2 * world * rng.integers(0, most, int(rng.integers(1, 6)))


def pairs_of_each_sequence(cu, rank, world):
    """TransformerEngine's THD partition, and ring-flash-attention's zigzag of variable lengths."""
    rows = []
    for start, end in itertools.pairwise(cu):
        parts = np.array_split(np.arange(start, end), 2 * world)
        rows += [parts[rank], parts[2 * world - 1 - rank]]
    return np.concatenate(rows)


def head_tail(row_num, rank, world):
    """torch's _HeadTailLoadBalancer; Paddle's dual chunks."""
    size = row_num // (2 * world)
    other = 2 * world - 1 - rank
    return np.r_[rank * size : (rank + 1) * size, other * size : (other + 1) * size]


def test_per_sequence_is_the_thd_partition():
    rng = np.random.default_rng(2)
    for world in (1, 2, 4):
        for _ in range(20):
            cu = cuts(multiples(rng, world))
            chunks = cp.cp_chunks(cu, cu, world, "per_sequence")
            for rank in range(world):
                rows = pairs_of_each_sequence(cu, rank, world)
                np.testing.assert_array_equal(cp.chunk_rows(chunks[rank]), rows)


def test_zigzag_is_head_tail():
    for world in (1, 2, 4):
        row_num = 2 * world * 7
        chunks = cp.cp_chunks([0, row_num], [0, row_num], world, "zigzag")
        for rank in range(world):
            rows = head_tail(row_num, rank, world)
            np.testing.assert_array_equal(cp.chunk_rows(chunks[rank]), rows)


def test_ptrr_is_a_deal_of_row_tiles():
    """torch's _PTRRLoadBalancer: tiles of rows sorted by work, dealt to and fro, then ascending."""
    rng = np.random.default_rng(3)
    world, size, per_rank = 4, 128, 6
    order = np.argsort(-rng.random(world * per_rank), kind="stable").reshape(per_rank, world)
    order[1::2] = order[1::2, ::-1]
    for tiles in order.T:
        rows = (np.sort(tiles)[:, None] * size + np.arange(size)).reshape(-1)
        np.testing.assert_array_equal(cp.chunk_rows(cp.chunks_of(rows)), rows)


# Rows and chunks


def random_chunks(rng, row_num, most=8, empties=True):
    """Return row chunks in [0, row_num], some empty."""
    edges = np.sort(rng.integers(0, row_num + 1, 2 * int(rng.integers(0, most + 1))))
    chunks = edges.reshape(-1, 2)
    return chunks if empties else chunks[chunks[:, 0] < chunks[:, 1]]


def test_rows_and_chunks_there_and_back():
    rng = np.random.default_rng(4)
    for _ in range(100):
        chunks = random_chunks(rng, 40)
        rows = cp.chunk_rows(chunks)
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, oracle.tokens_of(chunks))
        again = cp.chunks_of(rows)
        assert again.dtype == np.int32
        np.testing.assert_array_equal(cp.chunk_rows(again), rows)
        positions = rng.integers(-5, 50, (3, 4))
        expected = [[sum(row < x for row in rows) for x in line] for line in positions]
        below = cp.rows_below(chunks, positions)
        assert below.dtype == np.int32
        np.testing.assert_array_equal(below, expected)


def test_all_ranks_rows_restore():
    chunks = cp.cp_chunks([0, 1000], [0, 1000], 4)
    rows = cp.chunk_rows(chunks)
    np.testing.assert_array_equal(rows[np.argsort(rows)], np.arange(1000))
    assert cp.chunk_rows([]).shape == (0,)
    assert cp.chunk_rows([[], [[0, 2]]]).tolist() == [0, 1]
    assert cp.chunks_of(np.zeros(0, int)).shape == (0, 2)
    assert cp.chunks_of([2**40, 2**40 + 1]).tolist() == [[2**40, 2**40 + 2]]


def test_gathered_keys_fill_each_rank_to_the_longest():
    chunks = [[[0, 2], [5, 6]], [[2, 5]], [], [[6, 7]]]
    found = cp.gathered_keys(chunks, 10)
    assert tolist(found) == [[0, 2], [5, 6], [2, 5], [10, 13], [6, 7], [10, 12]]
    assert tolist(cp.gathered_keys(chunks, 3))[3] == [7, 10]
    assert cp.gathered_keys([]).shape == (0, 2)
    equal = cp.cp_chunks([0, 512], [0, 512], 2)
    np.testing.assert_array_equal(cp.chunk_rows(equal), oracle.tokens_of(cp.gathered_keys(equal)))


# How even the ranks are


def test_count_is_that_of_the_mask():
    """The simulation's live tiles and needed keys against each rank's columns."""
    rng = np.random.default_rng(5)
    for scheme in cp.SCHEMES:
        for kind in ("short", "one document"):
            cu = simulate.pack(kind, 3000, int(rng.integers(100)))
            for rule in ({}, {"causal": False}, {"window": (200, 0), "num_sink_tokens": 130}):
                chunks = cp.cp_chunks(cu, cu, 3, scheme)
                live, needed = simulate.count(chunks, cu, **rule)
                columns = reference.get_attn_mask_q(cu, cu, **rule)
                for rank, some in enumerate(chunks):
                    local = reference.shard_columns(columns, some)
                    blocks = reference.to_blocks(local, len(cp.chunk_rows(some)))
                    tiles = blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum()
                    assert live[rank] == tiles
                    assert needed[rank] == reference.needed_keys(local).sum()


TOKENS = 131_072


@pytest.mark.parametrize("rule", simulate.RULES)
@pytest.mark.parametrize("kind", [*simulate.KINDS, "one document"])
def test_balanced_is_even(kind, rule):
    """Most over mean live tiles: on average of ten packs within 2%, at worst 8%.

    But for a bidirectional document of half the pack and 64 ranks: its 512 tiles of rows are the
    heaviest, and 513 where its start is inside one, so that of 64 ranks one has nine and not eight.
    """
    for world in (2, 8, 64):
        seeds = range(10 if kind != "one document" else 1)
        packs = [simulate.pack(kind, TOKENS, seed) for seed in seeds]
        found = [simulate.imbalance(cu, world, "balanced", **simulate.RULES[rule]) for cu in packs]
        hardest = (kind, rule, world) == ("half", "full", 64)
        mean, worst = (1.08, 1.1) if hardest else (1.02, 1.08)
        assert np.mean(found) <= mean, (world, found)
        assert max(found) <= worst, (world, found)


@pytest.mark.parametrize("kind", simulate.KINDS)
def test_balanced_has_few_chunks_of_equal_rows(kind):
    for world in (2, 8, 64):
        for seed in range(3):
            cu = simulate.pack(kind, TOKENS, seed)
            chunks = cp.cp_chunks(cu, cu, world)
            assert max(map(len, chunks)) <= 32
            assert sum(map(len, chunks)) <= 1024
            assert {len(cp.chunk_rows(some)) for some in chunks} == {TOKENS // world}


@pytest.mark.parametrize("part", [simulate.imbalance_table, simulate.keys_table])
def test_documented_figures_are_those_of_the_simulation(part):
    document = Path(__file__).parent.parent / "docs" / "context_parallel.md"
    assert part() in document.read_text()


def test_host_time():
    """Of the processor, the best of some calls: others may be at work beside it."""
    cu = cuts(np.random.default_rng(6).multinomial(TOKENS, np.full(1000, 1 / 1000)))
    seconds = []
    for _ in range(15):
        start = time.process_time()
        cp.cp_chunks(cu, cu, 64)
        seconds.append(time.process_time() - start)
    assert min(seconds) <= 5e-3, seconds


# Bad input


class OnGpu:
    """What a GPU array says of itself."""

    __cuda_array_interface__ = {}  # noqa: RUF012


CU = [0, 3]
BAD = [
    (lambda: cp.cp_chunks(OnGpu(), CU, 2), TypeError,
     "cp_chunks needs cu_seqlens_q on the host: reading it back would wait"),
    (lambda: cp.cp_chunks(CU, CU, 2, work=OnGpu()), TypeError,
     "cp_chunks needs work on the host: reading it back would wait"),
    (lambda: cp.cp_chunks(CU, CU, 0), ValueError,
     "world_size must be in [1, 2**31 - 1], got 0"),
    (lambda: cp.cp_chunks(CU, CU, 2, "even"), ValueError,
     "scheme must be one of contiguous, zigzag, per_sequence, balanced, got 'even'"),
    (lambda: cp.cp_chunks(CU, CU, 2, q_token_num=2), ValueError,
     "q_token_num must be at least cu_seqlens_q[B], got 2 below 3"),
    (lambda: cp.cp_chunks(CU, CU, 2, work=[1, 2]), ValueError,
     "work must be a number for each 128 rows, 1 in all, got int64 of shape (2,)"),
    (lambda: cp.cp_chunks(CU, CU, 2, work=[-1]), ValueError,
     "work must hold numbers >= 0, got work[0] = -1.0"),
    (lambda: cp.cp_chunks(CU, CU, 2, tolerance=-1), ValueError,
     "tolerance must be a number >= 0, got -1"),
    (lambda: cp.cp_chunks(CU, CU, 2, causal_block=0), ValueError,
     "causal_block must be an int >= 1, got 0"),
    (lambda: cp.cp_chunks(CU, CU, 2, causal=False, causal_block=2), ValueError,
     "causal_block needs causal=True, got causal_block=2"),
    (lambda: cp.cp_chunks(CU, CU, 2, align="left"), ValueError,
     "align must be 'bottom_right' or 'top_left', got 'left'"),
    (lambda: cp.chunks_of([2, 5, 6, 1]), ValueError,
     "rows must ascend, got rows[3] = 1 after rows[2] = 6: sort them"),
    (lambda: cp.chunks_of([-1, 5]), ValueError, "rows must be at least 0, got rows[0] = -1"),
    (lambda: cp.chunks_of([0.5]), TypeError,
     "rows must be int32 or int64 of shape (q,), got float64 of shape (1,)"),
    (lambda: cp.chunks_of([[1]]), ValueError,
     "rows must be int32 or int64 of shape (q,), got int64 of shape (1, 1)"),
    (lambda: cp.rows_below([[0, 1]], [0.5]), TypeError,
     "positions must be int32 or int64, got float64"),
    (lambda: cp.chunk_rows(np.zeros(4, np.float32)), TypeError,
     "row_chunks must be int32 or int64 of shape (C, 2), got float32 of shape (4,)"),
    (lambda: cp.chunk_rows([[0, 3], [5, 3]]), ValueError,
     "row_chunks must hold [start, end) with 0 <= start <= end, got row_chunks[1] = [5, 3]"),
    (lambda: cp.chunk_rows([[-1, 3]]), ValueError,
     "row_chunks must hold [start, end) with 0 <= start <= end, got row_chunks[0] = [-1, 3]"),
    (lambda: cp.chunk_rows([[0, 1], [3, 5], [4, 6]]), ValueError,
     "row_chunks must ascend without overlap, got row_chunks[2] = [4, 6] after row_chunks[1] = "
     "[3, 5]: the order of a rank's rows is free, sort them"),
    (lambda: cp.rows_below([[0, 2], [5, 2147483653]], [1]), ValueError,
     "row_chunks must hold at most 2**31 - 1 rows, got 2147483650"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input(call, kind, message):
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == message
