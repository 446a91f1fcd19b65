"""Lists of tiles: the reference against brute force and torch, the kernels against it."""

import math
from typing import NamedTuple

import numpy as np
import oracle
import pytest
from on_cpu import emulator
from strategies import cuts, random_pack

import maskq_cupy
from maskq_cupy import checks, plan, reference
from maskq_cupy.reference import Blocks

SIZES = [(64, 64), (128, 128), (256, 128), (128, 64)]
EDGES = [-(2**31), -1, 0, 1, 2**31 - 2, 2**31 - 1]


def random_columns(rng, tokens=600):
    """Return columns and a number of rows: of a pack, rows padded at times, or of any bits."""
    pack = random_pack(rng, tokens)
    columns = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
    row_num = int(pack.cu_seqlens_q[len(pack.cu_seqlens_k) - 1]) + int(rng.choice([0, 0, 1, 150]))
    if rng.random() < 0.3:
        columns = rng.integers(-5, row_num + 5, columns.shape).astype(np.int32)
        if rng.random() < 0.5:
            hostile = rng.random(columns.shape) < 0.1
            columns[hostile] = rng.choice(EDGES, hostile.sum())
    return columns, row_num


def random_block_size(rng):
    return int(rng.choice([1, 2, 7, 16, 64, 128])), int(rng.choice([5, 16, 64, 100, 128, 1000]))


# The reference


def classified(columns, row_num, block_size):
    """Return the boolean (Qt, Nt) matrices of partial and of full tiles, from the dense mask."""
    block_q, block_k = block_size
    seen = oracle.shown(columns, row_num)
    row_tiles, column_tiles = -(-row_num // block_q), -(-len(columns) // block_k)
    partial, full = np.zeros((2, row_tiles, column_tiles), bool)
    for i in range(row_tiles):
        for j in range(column_tiles):
            tile = seen[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
            full[i, j] = tile.shape == (block_q, block_k) and tile.all()
            partial[i, j] = tile.any() and not full[i, j]
    return partial, full


def listed(tiles, width):
    """Return counts and indices of the set tiles of each row, cut to the width, zeros past it."""
    counts = np.array([min(row.sum(), width) for row in tiles], np.int32)
    indices = np.zeros((len(tiles), width), np.int32)
    for row, count, to in zip(tiles, counts, indices, strict=True):
        to[:count] = np.flatnonzero(row)[:count]
    return counts, indices


def brute_force(columns, row_num, block_size, width=None, all_partial=False):
    """Return the lists of columns (b, h, N, 2), and the widths that cut nothing."""
    lead, parts, needed = columns.shape[:2], [], [0, 0]
    for at in np.ndindex(lead):
        partial, full = classified(columns[at], row_num, block_size)
        if all_partial:
            partial, full = partial | full, full & False
        rooms = np.minimum(partial.T.shape if width is None else width, partial.T.shape)
        sides = [(partial, rooms[0]), (full, rooms[0]), (partial.T, rooms[1]), (full.T, rooms[1])]
        parts.append([array for side in sides for array in listed(*side)])
        most = [max(side.sum(1).max(initial=0) for side, _ in sides[i : i + 2]) for i in (0, 2)]
        needed = np.maximum(needed, most)
    stacked = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    return Blocks(*(array.reshape(*lead, *array.shape[1:]) for array in stacked)), needed


def assert_equal(blocks, expected, note=""):
    for name, array in expected._asdict().items():
        got = getattr(blocks, name)
        assert got.dtype == np.int32, name
        np.testing.assert_array_equal(got, array, err_msg=f"{name} {note}", strict=True)


@pytest.mark.parametrize("seed", range(3))
def test_reference_is_the_brute_force_classification(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        columns, row_num = random_columns(rng, tokens=200)
        block_size = tuple(int(rng.choice([1, 3, 16, 50, 128])) for _ in range(2))
        expected, _ = brute_force(columns[None, None], row_num, block_size)
        blocks = reference.to_blocks(columns, row_num, block_size)
        assert_equal(blocks, expected, f"{columns.tolist()} {row_num} {block_size}")


def random_slices(rng, tokens):
    """Return columns (b, h, N, 2), each slice of its own kind, and a number of rows."""
    b, h = (int(rng.choice([1, 1, 2, 3])) for _ in range(2))
    found = [random_columns(rng, tokens) for _ in range(b * h)]
    column_num = max(len(columns) for columns, _ in found)
    padded = [np.pad(columns, ((0, column_num - len(columns)), (0, 0))) for columns, _ in found]
    return np.stack(padded).reshape(b, h, column_num, 2), max(rows for _, rows in found)


def random_width(rng):
    """Return None or widths, mostly too small."""
    if rng.random() < 0.3:
        return None
    w_kv, w_q = (int(rng.choice([1, 2, 3, 5, 8, 1000])) for _ in range(2))
    return w_kv if rng.random() < 0.2 else (w_kv, w_q)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_reference_of_slices_and_widths_is_the_brute_force(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        columns, row_num = random_slices(rng, tokens=100)
        block_size = tuple(int(rng.choice([1, 3, 16, 50, 128])) for _ in range(2))
        width, all_partial = random_width(rng), bool(rng.random() < 0.3)
        needed = np.full(2, -7, np.int32)
        blocks = reference.to_blocks(
            columns, row_num, block_size, width=width, needed=needed, all_partial=all_partial
        )
        expected, most = brute_force(columns, row_num, block_size, width, all_partial)
        assert_equal(blocks, expected, f"{columns.tolist()} {row_num} {block_size} {width}")
        np.testing.assert_array_equal(needed, most)


def test_width_is_validated():
    """Row tile 4 of a causal document has 4 full tiles, column tile 0 too."""
    columns = reference.get_attn_mask_q([0, 640], [0, 640])
    message = r"^width must be at least \(4, 4\), got \({}\): {} tile {} has 4 full tiles$"
    for width, place in (((3, 4), ("3, 4", "row", 4)), ((4, 3), ("4, 3", "column", 0))):
        reference.to_blocks(columns, 640, width=width)
        with pytest.raises(ValueError, match=message.format(*place)):
            reference.to_blocks(columns, 640, width=width, validate=True)
    slices = np.stack([0 * columns, columns]).reshape(2, 1, 640, 2)
    with pytest.raises(ValueError, match=r"row tile 4 of slice \(1, 0\) has 5 partial tiles$"):
        reference.to_blocks(slices, 640, width=4, all_partial=True, validate=True)
    reference.to_blocks(columns, 640, width=4, validate=True)
    reference.to_blocks(columns, 640, validate=True)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_width_is_enough_for_any_pack(seed):
    rng = np.random.default_rng(seed)
    equal = 0
    for _ in range(150):
        lengths = rng.integers(0, int(rng.choice([2, 40, 200])) + 1, int(rng.integers(1, 12)))
        causal = bool(rng.random() < 0.5)
        rule = {} if rng.random() < 0.5 else {"window": (int(rng.integers(0, 99)), -1)}
        block_size = tuple(int(rng.choice([1, 8, 13, 32])) for _ in range(2))
        if rng.random() < 0.4:
            block_size = block_size[0]
        cu, total = cuts(lengths), int(lengths.sum())
        columns = reference.get_attn_mask_q(cu, cu, causal=causal, **rule)
        width = reference.blocks_width(int(lengths.max()), block_size, causal)
        needed = np.zeros(2, np.int32)
        reference.to_blocks(
            columns, total, block_size, width=width, needed=needed, all_partial=True, validate=True
        )
        equal += tuple(needed) == width
    assert equal > 10  # and not much too wide


def test_bad_arguments_of_blocks_width():
    with pytest.raises(TypeError, match="max_seqlen must be an int, got float"):
        reference.blocks_width(1.0)
    with pytest.raises(ValueError, match="block_size must be in"):
        reference.blocks_width(1, 0)


def test_reference_takes_four_dimensions_and_one_block_size():
    columns = reference.get_attn_mask_q([0, 300], [0, 300])
    expected = reference.to_blocks(columns, 300, (64, 64))
    assert_equal(reference.to_blocks(columns.reshape(1, 1, 300, 2), 300, 64), expected)


# Masks at which lists have gone wrong: ragged, Q != N, blind rows, padding, windows, inexact.
PACKS = {
    "documents": ([100, 0, 300, 57], [100, 0, 300, 57], {}),
    "one token": ([1], [1], {}),
    "whole tiles": ([256], [256], {}),
    "one more": ([257], [257], {}),
    "full": ([200, 100], [200, 100], {"causal": False}),
    "window": ([500], [500], {"window": (70, 0)}),
    "two-sided": ([500], [500], {"causal": False, "window": (70, 130)}),
    "sinks": ([500], [500], {"window": (70, 0), "num_sink_tokens": 4}),
    "cached prefix": ([130, 1, 5], [400, 200, 5], {}),
    "more rows than keys": ([300, 100], [120, 130], {}),
    "padding": ([200], [200], {"kv_token_num": 700}),
    "no keys": ([200], [0], {"kv_token_num": 130}),
}


def mask_of(name):
    """Return the columns of a named pack, and its rows."""
    q_lens, k_lens, rule = PACKS[name]
    return reference.get_attn_mask_q(cuts(q_lens), cuts(k_lens), **rule), sum(q_lens)


def inexact_mask(rng):
    """Return the columns of unsorted intervals, some of rows that see nothing."""
    ends = rng.integers(-50, 500, 450)
    intervals = np.stack([ends - rng.integers(0, 200, 450), ends], axis=1)
    return reference.get_attn_mask_q([0, 200, 450], [0, 300, 600], intervals), 450


def assert_as_torch(torch, blocks, columns, row_num, block_size, device="cpu"):
    """Compare counts and the entries that count with those of torch's create_block_mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    lts, ute = torch.as_tensor(columns, device=device).T.long()
    expected = create_block_mask(
        lambda b, h, q, kv: (q >= ute[kv]) & (q < lts[kv]),
        1, 1, row_num, len(columns), device=device, BLOCK_SIZE=block_size,
    )  # fmt: skip
    for name in ("kv", "full_kv", "q", "full_q"):
        count = getattr(expected, f"{name}_num_blocks").cpu().numpy()
        indices = getattr(expected, f"{name}_indices").cpu().numpy()
        counts = np.arange(indices.shape[-1]) < count[..., None]
        np.testing.assert_array_equal(getattr(blocks, f"{name}_num_blocks"), count)
        np.testing.assert_array_equal(
            getattr(blocks, f"{name}_indices"), np.where(counts, indices, 0)
        )


@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("name", PACKS)
def test_reference_is_what_torch_makes(name, block_size):
    torch = pytest.importorskip("torch")
    columns, row_num = mask_of(name)
    blocks = reference.to_blocks(columns, row_num, block_size)
    assert_as_torch(torch, blocks, columns, row_num, block_size)


@pytest.mark.parametrize("block_size", SIZES)
def test_reference_is_what_torch_makes_of_inexact_intervals(block_size):
    torch = pytest.importorskip("torch")
    columns, row_num = inexact_mask(np.random.default_rng(0))
    blocks = reference.to_blocks(columns, row_num, block_size)
    assert_as_torch(torch, blocks, columns, row_num, block_size)


# Arguments

COLUMNS = np.zeros((3, 2), np.int32)
BAD = [
    ({"columns": np.zeros((3, 2))}, TypeError,
     "columns must be int32 of shape (N, 2) or (b, h, N, 2), got float64 of shape (3, 2)"),
    ({"columns": np.zeros((2, 3), np.int32)}, ValueError,
     "columns must be int32 of shape (N, 2) or (b, h, N, 2), got int32 of shape (2, 3)"),
    ({"columns": np.zeros((2, 3, 2), np.int32)}, ValueError,
     "columns must be int32 of shape (N, 2) or (b, h, N, 2), got int32 of shape (2, 3, 2)"),
    ({"q_token_num": None}, TypeError, "q_token_num must be an int, got NoneType"),
    ({"q_token_num": -1}, ValueError, "q_token_num must be in [0, 2**31 - 1], got -1"),
    ({"block_size": 0}, ValueError, "block_size must be in [1, 2**31 - 1], got 0"),
    ({"block_size": (64, 1.5)}, TypeError, "block_size must be an int, got float"),
    ({"block_size": (1, 2, 3)}, ValueError,
     "block_size must be an int or (rows, columns), got (1, 2, 3)"),
    ({"width": 0}, ValueError, "width must be in [1, 2**31 - 1], got 0"),
    ({"width": (1, 2.0)}, TypeError, "width must be an int, got float"),
    ({"width": (1, 2, 3)}, ValueError, "width must be an int or (w_kv, w_q), got (1, 2, 3)"),
    ({"needed": np.zeros(2, np.int64)}, TypeError,
     "needed must be int32 of shape (2,), got int64 of shape (2,)"),
    ({"needed": np.zeros(3, np.int32)}, ValueError,
     "needed must be int32 of shape (2,), got int32 of shape (3,)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_arguments(change, kind, message):
    with pytest.raises(kind) as raised:
        reference.to_blocks(**{"columns": COLUMNS, "q_token_num": 3} | change)
    assert str(raised.value) == message


# The kernels on the CPU

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")


class Call(NamedTuple):
    columns: np.ndarray
    row_num: int
    block_size: tuple[int, int]
    width: object = None
    all_partial: bool = False

    def expected(self):
        """Return the reference's lists and the widths that cut nothing."""
        needed = np.zeros(2, np.int32)
        named = self._asdict()
        row_num = named.pop("row_num")
        return reference.to_blocks(q_token_num=row_num, needed=needed, **named), needed


@emulator.planning()
def add_call(script, call, misaligned, rows_a_warp=None):
    """Add a call whose buffers are exactly as large as the contract says, full of poison.

    Its results are the lists and what width they needed. rows_a_warp: as if there were many rows.
    """
    lead = call.columns.shape[:-2] or (1, 1)
    tiles = plan.tiles(
        math.prod(lead), call.row_num, call.columns.shape[-2], call.block_size, call.width
    )
    out = Blocks(
        *(
            script.buffer(np.full(shape, -77, np.int32), offset=4 * (i % 4) if misaligned else 0)
            for i, shape in enumerate(plan.block_shapes(tiles, lead))
        )
    )
    memory = np.full(plan.lists_scratch_nbytes(tiles), 0x5A, np.uint8)
    memory[: plan.zeroed_nbytes(tiles)] = 0
    needed = script.buffer(np.zeros(2, np.int32))
    launches = plan.block_launches(
        script.buffer(call.columns), tiles, out, script.buffer(memory), call.all_partial, needed
    )
    for launch in launches:
        script.launch(launch if rows_a_warp is None else with_rows(launch, rows_a_warp))
    for handle in (*out, needed):
        script.read(handle)


def with_rows(launch, rows_a_warp):
    """Return the launch with so many row tiles a warp, where it is of row tiles' narrow lists."""
    kernel, grid, *_ = launch
    if kernel != "narrow_row_tile_lists":
        return launch
    named = emulator.named_arguments(launch)
    blocks = -(-named["row_tiles"] // (rows_a_warp * emulator.SIZES.block_threads // 32))
    grid = grid // named["blocks_a_slice"] * blocks
    return emulator.changed(launch, grid, rows_a_warp=rows_a_warp, blocks_a_slice=blocks)


def check(executable, calls):
    script = emulator.Script()
    for i, call in enumerate(calls):
        add_call(script, call, misaligned=i % 2 == 1, rows_a_warp=(None, 4, 3)[i % 3])
    results = script.run(executable)
    for i, call in enumerate(calls):
        *blocks, needed = results[9 * i : 9 * i + 9]
        expected, most = call.expected()
        assert_equal(Blocks(*blocks), expected, repr(call))
        np.testing.assert_array_equal(needed, most)


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 100), ("address", 40), ("thread", 15)])
def test_kernels_on_random_columns(builds, sanitizer, count):
    check(builds(sanitizer), random_calls(np.random.default_rng(7), count))


def random_calls(rng, count):
    """Half of one slice at full width; of the rest most are narrow."""
    for i in range(count):
        if i % 2:
            yield Call(*random_columns(rng, 300), random_block_size(rng))
            continue
        columns, row_num = random_slices(rng, 200)
        yield Call(
            columns, row_num, random_block_size(rng), random_width(rng), bool(rng.random() < 0.3)
        )


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_kernels_around_words_and_chunks(builds, sanitizer):
    check(builds(sanitizer), calls_around_words_and_chunks())


def calls_around_words_and_chunks():
    """Row tiles around a word's 32, a chunk's words, and column tiles around a warp's loads."""
    rng = np.random.default_rng(8)
    chunk = 32 * emulator.SIZES.block_threads
    calls = []
    for rows in (0, 1, 31, 32, 33, 64, chunk, chunk + 1, 2 * chunk + 33):
        bounds = rng.integers(-1, rows + 2, (5, 2)).astype(np.int32)
        bounds[2] = rows, 0
        calls.append(Call(bounds, rows, (1, 2)))
    for column_num in (0, 1, 31, 32, 33, 127, 128, 129, 200):
        bounds = rng.integers(-1, 12, (column_num, 2)).astype(np.int32)
        calls.append(Call(bounds, 10, (3, 1)))
    huge = 2**31 - 1
    sizes = [(9, (huge, 7)), (9, (1, huge)), (huge, (huge // 3, 7))]
    calls += [Call(bounds, *size) for size in sizes]
    return [*calls, *(call._replace(width=w) for call in calls for w in (2, (100, 9)))]


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_narrow_kernels_with_holes_and_far_tiles(builds, sanitizer):
    check(builds(sanitizer), calls_with_holes_and_far_tiles())


def calls_with_holes_and_far_tiles():
    """Column tiles by hundreds, some far from a row tile's; live tiles in pieces."""
    rng = np.random.default_rng(9)
    lengths = rng.integers(0, 30, 30)
    cu, total = cuts(lengths), int(lengths.sum())
    packs = [
        reference.get_attn_mask_q(cu, cu),
        reference.get_attn_mask_q(cu, cu, causal=False),
        reference.get_attn_mask_q(cu, cu, window=(9, 0), num_sink_tokens=3),
        reference.get_attn_mask_q(cu, cuts(lengths // 3), kv_token_num=total),  # rows see nothing
    ]
    packs += [rng.permutation(packs[0]), rng.permutation(packs[2])]
    # A tile whose columns jump back and forth, whole words between them.
    jumps = np.tile(np.array([[5, 3], [total, total - 1], [400, 200], [0, 0]], np.int32), (20, 1))
    packs.append(np.concatenate([packs[0][:200], jumps]))
    for columns in packs:
        yield Call(columns, total, (4, 1), (9, 35))
        yield Call(columns, total, (2, 64), (1, 3))
        yield Call(columns, total, (4, 1), (9, 1), all_partial=True)
    # One tile more than there is room for, with holes between them.
    yield Call(np.array([[1, 0], [5, 4], [9, 8]], np.int32), 9, (1, 3), (1, 2))
    # The last columns of a tile, those of a block's second warp, say which tiles are full.
    falling = np.arange(200, 0, -1, dtype=np.int32)
    yield Call(np.stack([falling, 0 * falling], axis=1), 200, (2, 100))
    yield Call(np.stack([0 * falling + 200, 200 - falling], axis=1), 200, (2, 100))
    # More column tiles than a group has.
    steps = np.arange(1100, dtype=np.int32) // 100
    yield Call(np.stack([steps + 3, steps], axis=1), 14, (1, 1), (300, 3))


def test_scratch_is_two_bits_a_tile():
    assert plan.blocks_scratch_nbytes(131072, 131072) == 2 * 1024 * 1024 // 8
    assert plan.blocks_scratch_nbytes(0, 5) == plan.blocks_scratch_nbytes(5, 0) == 0
    assert plan.blocks_scratch_nbytes(4096, 4096, slices=6) == 6 * 2 * 32 * 32 // 8
    full = plan.blocks_scratch_nbytes(4096, 4096, width=32)
    assert full == plan.blocks_scratch_nbytes(4096, 4096)
    assert checks.check_block_size(64) == (64, 64)


def test_memory_of_a_large_pack():
    """131,072 tokens: all that a call allocates, scratch and paddings too."""
    assert allocated(131072, None) < 40e6


def allocated(tokens, width):
    """Return the bytes of lists and scratch of a pack with as many rows as keys."""
    tiles = plan.tiles(1, tokens, tokens, (128, 128), width)
    lists = sum(4 * math.prod(shape) + 16 for shape in plan.block_shapes(tiles))
    return lists + plan.lists_scratch_nbytes(tiles)


@pytest.mark.parametrize("causal", [True, False])
def test_memory_of_narrow_lists(causal):
    """16 M tokens in documents up to 32 K, the columns too."""
    width = reference.blocks_width(32768, causal=causal)
    assert 8 * 2**24 + allocated(2**24, width) < 1.5e9
    assert plan.blocks_scratch_nbytes(2**24, 2**24, width=width) < 17 * 2**24 / 128


def test_more_blocks_than_a_launch_has_are_refused():
    with pytest.raises(ValueError, match=r"at most 2\*\*31 - 1 blocks, got 2147483648 tiles"):
        plan.tiles(2, 1, 2**30, (1, 1))


# On a GPU


def to_host(cupy, blocks):
    return Blocks(*(cupy.asnumpy(cupy.asarray(array)) for array in blocks))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_gpu_on_random_columns(cupy, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        columns, row_num = random_columns(rng, tokens=int(rng.choice([50, 600, 5000])))
        block_size = random_block_size(rng)
        blocks = maskq_cupy.to_blocks(cupy.asarray(columns), row_num, block_size)
        assert all(type(array) is cupy.ndarray for array in blocks)
        expected = reference.to_blocks(columns, row_num, block_size)
        assert_equal(to_host(cupy, blocks), expected, f"{row_num} {block_size}")


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_gpu_on_random_slices_and_widths(cupy, seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        columns, row_num = random_slices(rng, tokens=int(rng.choice([50, 600, 3000])))
        call = Call(
            columns, row_num, random_block_size(rng), random_width(rng), bool(rng.random() < 0.3)
        )
        needed = cupy.full(2, -7, np.int32)
        blocks = maskq_cupy.to_blocks(
            cupy.asarray(columns), row_num, call.block_size, width=call.width, needed=needed,
            all_partial=call.all_partial,
        )  # fmt: skip
        expected, most = call.expected()
        assert_equal(to_host(cupy, blocks), expected, repr(call))
        np.testing.assert_array_equal(cupy.asnumpy(needed), most)


@pytest.mark.gpu
def test_gpu_narrow_kernels_with_holes_and_far_tiles(cupy):
    for call in calls_with_holes_and_far_tiles():
        blocks = maskq_cupy.to_blocks(
            cupy.asarray(call.columns), call.row_num, call.block_size, width=call.width,
            all_partial=call.all_partial,
        )  # fmt: skip
        assert_equal(to_host(cupy, blocks), call.expected()[0], repr(call))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "rule", [{}, {"window": (4000, 0), "num_sink_tokens": 4}, {"causal": False}]
)
def test_gpu_narrow_lists_are_those_of_full_width(cupy, rule):
    """A million tokens, documents up to 32 K; of any columns too."""
    tokens = 2**20
    rng = np.random.default_rng(0)
    cu = cupy.asarray(np.append(cuts(rng.integers(1, 32769, 30))[:30], tokens).clip(max=tokens))
    columns = maskq_cupy.get_attn_mask_q(cu.astype(np.int32), cu.astype(np.int32), **rule)
    longest = int(cupy.diff(cu).max())
    width = maskq_cupy.blocks_width(longest, causal=rule.get("causal", True))
    mixed = columns.reshape(-1, 64, 2)[rng.permutation(tokens // 64)].reshape(-1, 2)
    for given, room in ((columns, width), (cupy.ascontiguousarray(mixed), None)):
        whole = maskq_cupy.to_blocks(given, tokens)
        if room is None:  # as much as these columns need
            room = tuple(max(int(whole[i].max()), int(whole[i + 2].max())) for i in (0, 4))
        narrow = maskq_cupy.to_blocks(given, tokens, width=room, validate=True)
        for field, array in whole._asdict().items():
            cut = getattr(narrow, field)
            assert (array[..., : cut.shape[-1]] == cut).all(), field


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
def test_gpu_sixteen_million_tokens(cupy, causal):
    """Documents of 32 K, whose tiles are known by arithmetic."""
    tokens, document = 2**24, 2**15
    cu = cupy.arange(0, tokens + 1, document, dtype=np.int32)
    columns = maskq_cupy.get_attn_mask_q(cu, cu, causal=causal)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    width = maskq_cupy.blocks_width(document, causal=causal)
    needed = cupy.empty(2, np.int32)
    lists = maskq_cupy.to_blocks(columns, tokens, width=width, needed=needed)
    assert pool.used_bytes() - before + columns.nbytes < 1.5e9
    tile = cupy.arange(tokens // 128)
    in_document, first = tile % 256, tile // 256 * 256
    fulls = in_document if causal else cupy.full_like(tile, 256)
    place = cupy.arange(width[0])
    listed = cupy.where(place < fulls[:, None], first[:, None] + place, 0)
    assert (lists.full_kv_num_blocks[0, 0] == fulls).all()
    assert (lists.full_kv_indices[0, 0] == listed).all()
    assert (lists.kv_num_blocks[0, 0] == causal).all()
    assert (lists.kv_indices[0, 0, :, 0] == (tile if causal else 0)).all()
    after = 255 - in_document if causal else fulls
    start = tile + 1 if causal else first
    listed = cupy.where(place < after[:, None], start[:, None] + place, 0)
    assert (lists.full_q_num_blocks[0, 0] == after).all()
    assert (lists.full_q_indices[0, 0] == listed).all()
    assert needed.tolist() == ([255, 255] if causal else [256, 256])


@pytest.mark.gpu
def test_gpu_width_is_validated(cupy):
    columns = cupy.asarray(reference.get_attn_mask_q([0, 640], [0, 640]))
    message = r"^width must be at least \(4, 4\), got \(3, 4\): row tile 4 has 4 full tiles$"
    with pytest.raises(ValueError, match=message):
        maskq_cupy.to_blocks(columns, 640, width=(3, 4), validate=True)
    slices = cupy.stack([0 * columns, columns]).reshape(2, 1, 640, 2)
    with pytest.raises(ValueError, match=r"column tile 0 of slice \(1, 0\) has 5 partial tiles$"):
        maskq_cupy.to_blocks(slices, 640, width=(5, 4), all_partial=True, validate=True)
    needed = cupy.empty(2, np.int32)
    maskq_cupy.to_blocks(columns, 640, width=4, needed=needed, validate=True)
    assert needed.tolist() == [4, 4]
    maskq_cupy.to_blocks(columns, 640, validate=True)
    with pytest.raises(ValueError, match="needed must not overlap"):
        maskq_cupy.to_blocks(columns, 640, needed=columns[0])
    with pytest.raises(TypeError, match="needed must be an array on a GPU, got ndarray"):
        maskq_cupy.to_blocks(columns, 640, needed=np.zeros(2, np.int32))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [None, (2, 3)])
def test_gpu_slices_replay_in_a_graph(cupy, width):
    """A captured call with all arrays given replays, and counts anew each time."""
    rng = np.random.default_rng(3)
    rows, block_size = 900, (64, 128)
    columns, needed = cupy.zeros((2, 3, 1000, 2), np.int32), cupy.zeros(2, np.int32)
    nbytes = maskq_cupy.blocks_scratch_nbytes(rows, 1000, block_size, slices=6, width=width)
    given = {
        "width": width, "needed": needed, "scratch": cupy.empty(nbytes, np.uint8),
        "out": maskq_cupy.to_blocks(columns, rows, block_size, width=width),  # compiles
    }  # fmt: skip
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        maskq_cupy.to_blocks(columns, rows, block_size, **given)
        graph = stream.end_capture()
        for _ in range(20):
            host = rng.integers(-5, rows + 5, columns.shape).astype(np.int32)
            host[..., 0] = np.minimum(host[..., 0], host[..., 1] + int(rng.choice([1, 50, 900])))
            columns.set(host)
            graph.launch()
            expected, most = Call(host, rows, block_size, width).expected()
            assert_equal(to_host(cupy, given["out"]), expected)
            np.testing.assert_array_equal(cupy.asnumpy(needed), most)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "block_k"), [(2**17, 128), (2**20 + 77, 1024)])
def test_gpu_on_large_packs(cupy, tokens, block_k):
    """The second has more row tiles than a chunk has."""
    rng = np.random.default_rng(tokens)
    cu = cuts(rng.multinomial(tokens, np.ones(40) / 40))
    for rule in ({}, {"window": (4000, 0), "num_sink_tokens": 4}, {"causal": False}):
        columns = reference.get_attn_mask_q(cu, cu, **rule)
        blocks = maskq_cupy.to_blocks(cupy.asarray(columns), tokens, (128, block_k))
        expected = reference.to_blocks(columns, tokens, (128, block_k))
        assert_equal(to_host(cupy, blocks), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("name", [*PACKS, "inexact"])
def test_gpu_is_what_torch_makes(cupy, name, block_size):
    torch = pytest.importorskip("torch")
    columns, row_num = mask_of(name) if name in PACKS else inexact_mask(np.random.default_rng(1))
    blocks = to_host(cupy, maskq_cupy.to_blocks(cupy.asarray(columns), row_num, block_size))
    assert_as_torch(torch, blocks, columns, row_num, block_size, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("misaligned", [False, True])
def test_gpu_out_of_torch(cupy, misaligned):
    """Results go to any framework's arrays; columns come in either rank."""
    torch = pytest.importorskip("torch")
    columns, row_num = mask_of("documents")
    shapes = plan.block_shapes(plan.tiles(1, row_num, len(columns), (16, 16)))
    out = []
    for shape in shapes:
        memory = torch.full((math.prod(shape) + 1,), -7, dtype=torch.int32, device="cuda")
        out.append((memory[1:] if misaligned else memory[:-1]).view(shape))
    out = Blocks(*out)
    nbytes = maskq_cupy.blocks_scratch_nbytes(row_num, len(columns), 16)
    scratch = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    given = torch.as_tensor(columns, device="cuda").view(1, 1, -1, 2)
    result = maskq_cupy.to_blocks(given, row_num, 16, out=out, scratch=scratch)
    assert result is out
    assert_equal(Blocks(*(a.cpu().numpy() for a in out)), reference.to_blocks(columns, row_num, 16))


@pytest.mark.gpu
def test_gpu_replays_in_a_graph(cupy):
    """A captured call replays with columns changed in place."""
    rng = np.random.default_rng(3)
    n, rows = 3000, 2500
    columns = cupy.zeros((n, 2), np.int32)
    scratch = cupy.empty(maskq_cupy.blocks_scratch_nbytes(rows, n, (64, 128)), np.uint8)
    out = maskq_cupy.to_blocks(columns, rows, (64, 128))  # compiles
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        maskq_cupy.to_blocks(columns, rows, (64, 128), out=out, scratch=scratch)
        graph = stream.end_capture()
        for _ in range(50):
            host = rng.integers(-5, rows + 5, (n, 2)).astype(np.int32)
            columns.set(host)
            for array in out:
                array.fill(-1)
            graph.launch()
            assert_equal(to_host(cupy, out), reference.to_blocks(host, rows, (64, 128)))


@pytest.mark.gpu
@pytest.mark.parametrize("missing", ["out", "scratch"])
def test_gpu_capture_refuses_to_allocate(cupy, missing):
    columns = cupy.zeros((9, 2), np.int32)
    given = {
        "out": maskq_cupy.to_blocks(columns, 9),
        "scratch": cupy.empty(maskq_cupy.blocks_scratch_nbytes(9, 9), np.uint8),
    }
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=f"allocated: give {missing}="):
            maskq_cupy.to_blocks(columns, 9, **given | {missing: None})
        stream.end_capture()


@pytest.mark.gpu
def test_gpu_capture_without_rows_needs_no_scratch(cupy):
    columns = cupy.zeros((9, 2), np.int32)
    out = maskq_cupy.to_blocks(columns, 0)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        assert maskq_cupy.to_blocks(columns, 0, out=out) is out
        stream.end_capture()


@pytest.mark.gpu
@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_gpu_bad_arguments(cupy, change, kind, message):
    arguments = {"columns": COLUMNS, "q_token_num": 3} | change
    for name in {"columns", "needed"} & arguments.keys():
        arguments[name] = cupy.asarray(arguments[name])
    with pytest.raises(kind) as raised:
        maskq_cupy.to_blocks(**arguments)
    assert str(raised.value) == message


@pytest.mark.gpu
def test_gpu_bad_arrays(cupy):
    columns = cupy.zeros((300, 2), np.int32)
    with pytest.raises(TypeError, match=r"got ndarray on the host: maskq_cupy\.reference"):
        maskq_cupy.to_blocks(COLUMNS, 3)
    with pytest.raises(ValueError, match="columns must be C-contiguous"):
        maskq_cupy.to_blocks(columns[:, ::-1], 3)
    out = maskq_cupy.to_blocks(columns, 300)
    with pytest.raises(
        TypeError, match=r"out must be a maskq_cupy\.Blocks of GPU arrays, got list"
    ):
        maskq_cupy.to_blocks(columns, 300, out=[*out])
    with pytest.raises(ValueError, match=r"out\.q_indices must be int32 of shape \(1, 1, 3, 3\)"):
        maskq_cupy.to_blocks(columns, 300, out=out._replace(q_indices=out.kv_num_blocks))
    with pytest.raises(ValueError, match=r"out\.q_indices must not overlap"):
        maskq_cupy.to_blocks(columns, 300, out=out._replace(q_indices=out.kv_indices))
    with pytest.raises(ValueError, match=r"scratch must be .* at least 24 bytes, got 16 bytes"):
        maskq_cupy.to_blocks(columns, 300, scratch=cupy.empty(16, np.uint8))
    with pytest.raises(ValueError, match=r"scratch must be .* 16-byte aligned"):
        maskq_cupy.to_blocks(columns, 300, scratch=cupy.empty(64, np.uint8)[8:])
    with pytest.raises(ValueError, match="scratch must not overlap"):
        maskq_cupy.to_blocks(columns, 300, scratch=columns)
    with pytest.raises(ValueError, match="scratch must not overlap"):
        maskq_cupy.to_blocks(columns, 300, out=out, scratch=out.q_indices)
