"""Columns of some of the rows: the reference against brute force, the kernels on the CPU against
it, the GPU functions."""

import math

import numpy as np
import oracle
import pytest
from on_cpu import emulator
from strategies import random_pack, random_parents
from test_cp import head_tail, multiples, pairs_of_each_sequence, random_chunks
from test_hostile import extremes, random_bits, run_many

from maskq_cupy import checks, cp, host, plan, reference

# The contract's worked values: columns, row chunks, key chunks, LTS, UTE.
PACK = reference.get_attn_mask_q([0, 3, 5], [0, 3, 7])
TWO = reference.get_attn_mask_q([0, 8, 12], [0, 8, 12])
WINDOW = reference.get_attn_mask_q([0, 8], [0, 8], window=(2, 0))
TREE = reference.tree_attn_mask_q([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5])
INEXACT = reference.get_attn_mask_q([0, 2], [0, 4], [[0, 3], [0, 1]])
SLOTS = reference.get_attn_mask_q([0, 3, 3, 4, 6, 6, 8], [0, 3, 4, 4, 6, 8, 8])
RANKS = [[0, 2], [6, 9], [11, 12]], [[2, 6], [9, 11]]
WORKED = [
    (PACK, [[0, 2], [4, 5]], None, [2, 2, 2, 3, 3, 3, 3], [0, 1, 2, 2, 2, 2, 2]),
    (PACK, [[2, 4]], None, [1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2]),
    (PACK, [[0, 2], [4, 5]], [[3, 7], [0, 2], [7, 8]], [3, 3, 3, 3, 2, 2, 3],
     [2, 2, 2, 2, 0, 1, 3]),
    (TWO, RANKS[0], None, [4] * 8 + [6] * 4, [0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 5, 5]),
    (TWO, RANKS[1], None, [4] * 8 + [6] * 4, [0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 5, 6]),
    (TWO, RANKS[1], [*RANKS[0], *RANKS[1]], [4, 4, 4, 4, 6, 6, 4, 4, 4, 4, 6, 6],
     [0, 0, 4, 4, 4, 6, 0, 1, 2, 3, 4, 5]),
    (WINDOW, [[0, 2], [6, 8]], None, [2, 2, 2, 2, 3, 4, 4, 4], [0, 1, 2, 2, 2, 2, 2, 3]),
    (TREE, [[0, 1], [3, 5]], None, [3, 3, 2, 2, 3], [0, 1, 1, 1, 2]),
    (INEXACT, [[1, 2]], None, [1, 1, 1, 1], [0, 0, 0, 1]),
    (SLOTS, [[0, 1], [3, 5], [7, 8]], None, [1, 1, 1, 1, 3, 3, 3, 3], [0, 1, 1, 1, 2, 3, 3, 3]),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "rows", "keys", "lts", "ute"), WORKED)
def test_worked_values(columns, rows, keys, lts, ute):
    local = reference.shard_columns(columns, rows, keys)
    assert local.dtype == np.int32
    assert local.flags.c_contiguous
    np.testing.assert_array_equal(local.T, [lts, ute])


def test_intervals_of_the_rows_alone_are_tighter():
    """The worked value beside the last but one: the same rank from its own rows."""
    intervals, chunks = np.array([[0, 3], [0, 1]]), [[1, 2]]
    own = reference.get_attn_mask_q(
        cp.rows_below(chunks, [0, 2]), [0, 4], intervals[cp.chunk_rows(chunks)]
    )
    np.testing.assert_array_equal(own.T, [[1, 1, 1, 1], [0, 1, 1, 1]])


# Random maps


def random_columns(rng, tokens):
    """Return columns of a pack, of a tree, or of any bits around the rows; and a number of rows."""
    kind = rng.choice(["pack", "tree", "any"])
    if kind == "pack":
        pack = random_pack(rng, tokens)
        columns = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        return columns, int(pack.cu_seqlens_q[len(pack.cu_seqlens_k) - 1])
    if kind == "tree":
        lens = rng.integers(0, 9, int(rng.integers(1, max(tokens // 9, 2))))
        cu = np.append(0, np.cumsum(lens))
        return reference.tree_attn_mask_q(random_parents(rng, len(lens)), cu, cu), int(cu[-1])
    row_num = int(rng.integers(0, tokens + 1))
    columns = rng.integers(-3, row_num + 4, (int(rng.integers(0, tokens + 1)), 2)).astype(np.int32)
    far = rng.random(columns.shape) < 0.05
    columns[far] = rng.choice([-(2**31), 2**31 - 1], far.sum())
    return columns, row_num


def random_key_chunks(rng, column_num, most=8):
    """Return key chunks in any order, with repeats and padding, or None."""
    if rng.random() < 0.2:
        return None
    starts = rng.integers(-4, column_num + 5, int(rng.integers(0, most + 1)))
    lengths = rng.integers(0, rng.choice([1, 3, column_num + 2]) + 1, len(starts))
    chunks = np.stack([starts, starts + lengths], axis=1)
    if len(chunks) and rng.random() < 0.3:
        chunks[rng.integers(len(chunks))] += int(rng.choice([-(2**40), 2**31 - 9, 2**40]))
    return chunks.astype(np.int64)


def far_row_chunks(rng, chunks):
    """Return the chunks, at times with rows behind all int32."""
    if rng.random() < 0.2:
        far = 2**31 - 3 + np.array([[0, 2], [5, 6], [2**35, 2**35 + 7]])
        chunks = np.concatenate([chunks, far])
    return chunks


@pytest.mark.parametrize("seed", range(4))
def test_reference_is_the_map(seed):
    """Row by row and key by key, of any bits."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        columns, row_num = random_columns(rng, 40)
        rows = far_row_chunks(rng, random_chunks(rng, row_num + 5))
        keys = random_key_chunks(rng, len(columns))
        local = reference.shard_columns(columns, rows, keys)
        np.testing.assert_array_equal(local, oracle.shard(columns, rows, keys))
        size = int(rng.choice([1, 3, 16, 1000]))
        needed = reference.needed_keys(local, size)
        assert needed.dtype == np.int32
        np.testing.assert_array_equal(needed, oracle.needed(local, size))


def test_slices_are_sharded_alike():
    rng = np.random.default_rng(5)
    for shape in [(1, 1), (2, 3), (3, 0)]:
        slices = [
            [random_columns(rng, 30)[0][:7] for _ in range(shape[1])] for _ in range(shape[0])
        ]
        columns = np.zeros((*shape, 7, 2), np.int32)
        for i, j in np.ndindex(*shape):
            columns[i, j, : len(slices[i][j])] = slices[i][j]
        rows, keys = random_chunks(rng, 30), random_key_chunks(rng, 7)
        local = reference.shard_columns(columns, rows, keys)
        needed = reference.needed_keys(local, 3)
        assert local.shape[:2] == needed.shape[:2] == shape
        for i, j in np.ndindex(*shape):
            one = reference.shard_columns(columns[i, j], rows, keys)
            np.testing.assert_array_equal(local[i, j], one)
            np.testing.assert_array_equal(needed[i, j], reference.needed_keys(one, 3))


# Layouts of others


def local_by_rows(columns, rows, key_ids=None):
    """Return what the columns show of these rows and keys, from the dense mask."""
    row_num = int(max(columns.max(initial=0), rows.max(initial=0) + 1))
    seen = oracle.shown(columns, row_num)[rows]
    return seen if key_ids is None else seen[:, key_ids]


def test_te_thd_partition():
    """Per-sequence pairs; keys in pack order, or rank by rank as an all-gather leaves them."""
    rng = np.random.default_rng(6)
    world = 2
    for _ in range(20):
        cu = np.append(0, np.cumsum(multiples(rng, world)))
        columns = reference.get_attn_mask_q(cu, cu)
        ranks = [pairs_of_each_sequence(cu, rank, world) for rank in range(world)]
        chunks = [cp.chunks_of(rows) for rows in ranks]
        gathered = cp.gathered_keys(chunks)
        for rows, some in zip(ranks, chunks, strict=True):
            local = reference.shard_columns(columns, some)
            np.testing.assert_array_equal(
                oracle.shown(local, len(rows)), local_by_rows(columns, rows)
            )
            local = reference.shard_columns(columns, some, gathered)
            expected = local_by_rows(columns, rows, np.concatenate(ranks))
            np.testing.assert_array_equal(oracle.shown(local, len(rows)), expected)


def paddle_causal_offsets(columns, row_num, rank, world):
    """Paddle's map for contiguous shards: bounds less the rank's first row, cut to its rows."""
    size = row_num // world
    return np.clip(columns.astype(int) - rank * size, 0, size)


def paddle_dual_chunks(columns, row_num, rank, world):
    """Paddle's map for dual chunks: a bound that is in the second has passed all of the first."""
    size = row_num // (2 * world)
    bounds = columns.astype(int)
    first = np.clip(bounds - rank * size, 0, size)
    second = np.clip(bounds - (2 * world - 1 - rank) * size, 0, size)
    return np.maximum(first, np.where(second == 0, 0, size + second))


def test_paddle():
    rng = np.random.default_rng(7)
    for world in (2, 4):
        for _ in range(10):
            row_num = 2 * world * int(rng.integers(1, 9))
            columns = rng.integers(0, row_num + 1, (row_num, 2)).astype(np.int32)
            cu = [0, row_num]
            for scheme, formula in [
                ("contiguous", paddle_causal_offsets),
                ("zigzag", paddle_dual_chunks),
            ]:
                for rank, chunks in enumerate(cp.cp_chunks(cu, cu, world, scheme)):
                    local = reference.shard_columns(columns, chunks)
                    expected = formula(columns, row_num, rank, world)
                    np.testing.assert_array_equal(local, expected)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_lists_are_those_of_torchs_rewritten_mask(rank):
    """Head-tail: torch rewrites mask_mod so that a local row asks for its global one."""
    torch = pytest.importorskip("torch")
    from test_blocks import assert_as_torch
    from torch.nn.attention.flex_attention import create_block_mask

    world, cu = 4, np.array([0, 300, 301, 900, 1024])
    columns = reference.get_attn_mask_q(cu, cu)
    chunks = cp.cp_chunks(cu, cu, world, "zigzag")[rank]
    local, q = reference.shard_columns(columns, chunks), 1024 // world
    blocks = reference.to_blocks(local, q, 64)
    assert_as_torch(torch, blocks, local, q, 64)
    rows = torch.as_tensor(head_tail(1024, rank, world))
    lts, ute = torch.as_tensor(columns).T.long()

    def rewritten(b, h, i, kv):
        return (rows[i] >= ute[kv]) & (rows[i] < lts[kv])

    theirs = create_block_mask(rewritten, 1, 1, q, 1024, device="cpu", BLOCK_SIZE=64)
    np.testing.assert_array_equal(blocks.kv_num_blocks, theirs.kv_num_blocks)
    np.testing.assert_array_equal(blocks.full_kv_num_blocks, theirs.full_kv_num_blocks)


# Bad input

COLUMNS = np.zeros((3, 2), np.int32)
BAD = [
    ({"columns": np.zeros((3, 2))}, TypeError,
     "columns must be int32 of shape (N, 2) or (b, h, N, 2), got float64 of shape (3, 2)"),
    ({"columns": np.zeros((1, 3, 2), np.int32)}, ValueError,
     "columns must be int32 of shape (N, 2) or (b, h, N, 2), got int32 of shape (1, 3, 2)"),
    ({"row_chunks": np.zeros(4, np.float32)}, TypeError,
     "row_chunks must be int32 or int64 of shape (C, 2), got float32 of shape (4,)"),
    ({"row_chunks": None}, TypeError,
     "row_chunks must be int32 or int64 of shape (C, 2), got None"),
    ({"row_chunks": [[0, 1], [5, 3]]}, ValueError,
     "row_chunks must hold [start, end) with 0 <= start <= end, got row_chunks[1] = [5, 3]"),
    ({"row_chunks": [[0, 1], [3, 5], [4, 6]]}, ValueError,
     "row_chunks must ascend without overlap, got row_chunks[2] = [4, 6] after row_chunks[1] = "
     "[3, 5]: the order of a rank's rows is free, sort them"),
    ({"row_chunks": [[0, 2147483650]]}, ValueError,
     "row_chunks must hold at most 2**31 - 1 rows, got 2147483650"),
    ({"key_chunks": [1, 2]}, ValueError,
     "key_chunks must be int32 or int64 of shape (K, 2), got int64 of shape (2,)"),
    ({"key_chunks": [[3, 2]]}, ValueError,
     "key_chunks must hold [start, end) with start <= end, got key_chunks[0] = [3, 2]"),
    ({"key_chunks": [[-(2**63), 2**63 - 1]] * 2}, ValueError,
     f"key_chunks must hold at most 2**31 - 1 keys, got {2**65 - 2}"),
    ({"key_chunks": [[0, 2]], "key_num": 3}, ValueError, "key_num must be M = 2, got 3"),
    ({"key_num": 4}, ValueError, "key_num must be M = 3, got 4"),
    ({"key_num": 1.5}, TypeError, "key_num must be an int, got float"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_arguments(change, kind, message):
    with pytest.raises(kind) as raised:
        reference.shard_columns(**{"columns": COLUMNS, "row_chunks": [[0, 2]]} | change)
    assert str(raised.value) == message


def test_bad_block_size():
    with pytest.raises(ValueError, match=r"block_size must be in \[1, 2\*\*31 - 1\], got 0"):
        reference.needed_keys(COLUMNS, 0)


# The kernels on the CPU

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")
ENTRIES = 4 * emulator.SIZES.block_threads
FEW = 16 * emulator.SIZES.block_threads  # chunks that a block counts itself


def add_call(script, columns, rows, keys=None, key_num=None, odd=False, steps=None, dtype=np.int64):
    """Add a call, in buffers of exactly the contract's size; return the result's shape.

    If odd, arrays start behind a 16-byte boundary. steps: as the plan has it for larger shards.
    """
    columns, rows = np.asarray(columns, np.int32), np.asarray(rows, dtype).reshape(-1, 2)
    *slices, column_num, _ = columns.shape
    slice_num, words = math.prod(slices), rows.itemsize // 4
    offset = 8 if odd else 0
    row_chunks = plan.Chunks(script.buffer(rows, rows.itemsize * odd), words, len(rows))
    key_chunks = plan.ALL_KEYS
    if keys is not None:
        keys = np.asarray(keys, np.int64).reshape(-1, 2)
        # An array of none may have no address.
        key_chunks = plan.Chunks(script.buffer(keys, 8 * odd) if len(keys) else 0, 2, len(keys))
    if key_num is None:
        key_num = column_num if keys is None else len(oracle.tokens_of(keys))
    shape = (*slices, key_num, 2)
    if not math.prod(shape):
        return shape
    shard = script.buffer(np.full(shape, -77, np.int32), offset)
    with emulator.planning():
        nbytes = plan.shard_scratch_nbytes(len(rows), key_chunks.num)
        scratch = script.buffer(np.full(nbytes, 0x5A, np.uint8))
        launches = plan.shard_launches(
            script.buffer(columns, 8 * (odd and column_num % 2)), slice_num, column_num,
            row_chunks, key_chunks, shard, key_num, scratch,
        )  # fmt: skip
    for launch in launches:
        kernel, *_ = launch
        if steps is not None and kernel != "chunk_sums":
            blocks = key_num // (2 * emulator.SIZES.block_threads * steps) + 1
            more = {"steps": steps, "blocks_a_slice": blocks}
            launch = emulator.changed(launch, blocks * slice_num, **more)
        script.launch(launch)
    script.read(shard)
    return shape


def run(executable, calls, timeout=240):
    """Return the shard of each call, (columns, rows, keys) or a dict, all made in one process."""
    script = emulator.Script()
    calls = [
        call if isinstance(call, dict) else dict(zip(NAMES, call, strict=True)) for call in calls
    ]
    shapes = [add_call(script, **call) for call in calls]
    results = iter(script.run(executable, timeout))
    return [next(results) if math.prod(shape) else np.empty(shape, np.int32) for shape in shapes]


NAMES = ("columns", "rows", "keys")


def check(executable, calls, timeout=240):
    """Require of each call the reference's shard."""
    for call, found in zip(calls, run(executable, calls, timeout), strict=True):
        right = reference.shard_columns(*(call[name] for name in NAMES))
        key_num = call.get("key_num")
        if key_num is not None:  # as where chunks on a GPU say less than M, or more
            q = checks.chunk_total(host.host_chunks("row_chunks", call["rows"]))
            padded = np.full((*right.shape[:-2], key_num, 2), q, np.int32)
            both = min(key_num, right.shape[-2])
            padded[..., :both, :] = right[..., :both, :]
            right = padded
        np.testing.assert_array_equal(found, right, err_msg=repr(call)[:2000])


def random_calls(rng, count, tokens=600):
    for _ in range(count):
        columns, row_num = random_columns(rng, tokens)
        if rng.random() < 0.2:
            slices = [np.roll(columns, int(rng.integers(0, 9))) for _ in range(6)]
            columns = np.stack(slices).reshape(2, 3, *columns.shape)
        rows = random_chunks(rng, row_num + 5, most=int(rng.choice([1, 2, 8, 300])))
        keys = random_key_chunks(rng, columns.shape[-2], most=int(rng.choice([1, 8, 300])))
        if rng.random() < 0.5:
            rows = far_row_chunks(rng, rows)
        key_num = None
        if keys is not None and rng.random() < 0.3:
            key_num = max(len(oracle.tokens_of(keys)) + int(rng.integers(-5, 40)), 0)
        yield {
            "columns": columns, "rows": rows, "keys": keys, "key_num": key_num,
            "odd": bool(rng.integers(2)), "steps": rng.choice([None, 3]),
            "dtype": np.int32 if rows.max(initial=0) < 2**31 and rng.integers(2) else np.int64,
        }  # fmt: skip


def calls_around_sizes():
    """As many chunks as a warp, a table and a block have room for, and some more and fewer."""
    rng = np.random.default_rng(8)
    sizes = [0, 1, 2, 3, 31, 32, 33, ENTRIES - 1, ENTRIES, ENTRIES + 1, 2 * ENTRIES + 1]
    sizes += [FEW - 1, FEW, FEW + 1, 2 * FEW + 3]
    for num in sizes:
        # Of one row and two, a gap of one behind each; empties among them.
        lengths = rng.integers(0, 3, num)
        lengths[-1:] = 2
        starts = np.cumsum(lengths + 1) - lengths
        many = np.stack([starts, starts + lengths], axis=1)
        row_num, column_num = int(many.max(initial=0)) + 3, 700
        columns = rng.integers(-2, row_num + 2, (column_num, 2)).astype(np.int32)
        columns[200:500] = np.sort(columns[200:500], axis=0)
        in_order = np.append(rng.permutation(many)[1:], [[1, 3]], axis=0)  # as many, or one of none
        few = [[3, 9], [20, 400]]
        odd, steps = bool(num % 2), 3 if num % 3 else None
        for rows, keys in ((many, None), (few, in_order), (many, in_order)):
            yield {"columns": columns, "rows": rows, "keys": keys, "odd": odd, "steps": steps}


def misled_searches():
    """Chunks as many as two blocks sum, of equal starts: searches that come to the last one."""
    num = FEW + 5
    rows = np.repeat([[7, 7]], num, axis=0)
    rows[-1] = 7, 300
    columns = np.stack([np.arange(320), np.arange(320)[::-1]], axis=1).astype(np.int32)
    yield {"columns": columns, "rows": rows, "keys": np.tile([[5, 6], [9, 9]], (num // 2, 1))}


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 200), ("address", 80), ("thread", 20)])
def test_kernels(builds, sanitizer, count):
    check(builds(sanitizer), list(random_calls(np.random.default_rng(9), count)))


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_kernels_around_sizes(builds, sanitizer):
    calls = [*calls_around_sizes(), *misled_searches()]
    check(builds(sanitizer), calls[::4] if sanitizer == "thread" else calls)


def check_needed(executable, rng, count):
    script, expected = emulator.Script(), []
    for i in range(count):
        columns, _ = random_columns(rng, 600)
        columns = columns if i % 3 else np.stack([columns, columns[::-1]])[None]
        size = int(rng.choice([1, 3, 31, 32, 100, 128, 2000]))
        right = reference.needed_keys(columns, size)
        if not right.size:
            continue
        out = script.buffer(np.full(right.shape, -77, np.int32), offset=4 * (i % 4))
        *slices, column_num, _ = columns.shape
        given = script.buffer(columns, offset=8 * (i % 2))
        with emulator.planning():
            script.launch(plan.needed_keys_launch(given, math.prod(slices), column_num, size, out))
        script.read(out)
        expected.append(right)
    for found, right in zip(script.run(executable), expected, strict=True):
        np.testing.assert_array_equal(found, right)


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 80), ("address", 40), ("thread", 10)])
def test_kernel_of_needed_keys(builds, sanitizer, count):
    check_needed(builds(sanitizer), np.random.default_rng(10), count)


def hostile_chunks(rng, num):
    """Return num chunks of random bits, extremes, or good ones out of order with some bad bits."""
    dtype = rng.choice([np.int32, np.int64])
    kind = rng.choice(["bits", "extremes", "shuffled", "equal", "good"])
    if kind == "bits":
        return random_bits(rng, 2 * num, dtype).reshape(-1, 2)
    if kind == "extremes":
        return rng.choice(extremes(dtype), (num, 2))
    edges = np.sort(rng.integers(0, 3 * num + 1, 2 * num))
    if kind == "shuffled":
        rng.shuffle(edges)
    elif kind == "equal":
        edges[:] = rng.choice(extremes(np.int32))
    return edges.reshape(-1, 2).astype(dtype)


def hostile_call(rng, tokens):
    """Return a call with any bits whatever, of a number of keys that the chunks do not say."""
    sizes = [0, 1, 2, 3, 33, ENTRIES + 1, FEW, FEW + 1, 2 * FEW + 1, tokens]
    columns = random_bits(rng, 2 * tokens, np.int32).reshape(-1, 2)
    if rng.random() < 0.5:
        columns = rng.choice(extremes(np.int32), columns.shape)
    elif rng.random() < 0.5:
        columns = rng.integers(0, tokens, columns.shape).astype(np.int32)
    rows, keys = (hostile_chunks(rng, int(rng.choice(sizes))) for _ in range(2))
    is_gather = rng.random() < 0.7
    return {
        "columns": columns, "rows": rows, "keys": keys if is_gather else None,
        "key_num": int(rng.integers(0, 2 * tokens + 1)) if is_gather else None,
        "odd": bool(rng.integers(2)), "steps": rng.choice([None, 3]), "dtype": rows.dtype,
    }  # fmt: skip


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 150), ("address", 150), ("thread", 30)])
def test_hostile_on_the_cpu(builds, sanitizer, count):
    run_many(run, hostile_call, builds(sanitizer), count)
