"""Lists of tiles: the reference against brute force and torch, the kernels against it."""

import math

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


def listed(tiles):
    """Return counts and indices of the set tiles of each row, zeros past the count."""
    counts = np.array([row.sum() for row in tiles], np.int32)
    indices = np.zeros(tiles.shape, np.int32)
    for i, row in enumerate(tiles):
        indices[i, : counts[i]] = np.flatnonzero(row)
    return counts.reshape(1, 1, -1), indices.reshape(1, 1, *tiles.shape)


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
        partial, full = classified(columns, row_num, block_size)
        expected = Blocks(*listed(partial), *listed(full), *listed(partial.T), *listed(full.T))
        blocks = reference.to_blocks(columns, row_num, block_size)
        assert_equal(blocks, expected, f"{columns.tolist()} {row_num} {block_size}")


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
     "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got float64 of shape (3, 2)"),
    ({"columns": np.zeros((2, 3), np.int32)}, ValueError,
     "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got int32 of shape (2, 3)"),
    ({"columns": np.zeros((2, 1, 3, 2), np.int32)}, ValueError,
     "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got int32 of shape (2, 1, 3, 2)"),
    ({"q_token_num": None}, TypeError, "q_token_num must be an int, got NoneType"),
    ({"q_token_num": -1}, ValueError, "q_token_num must be in [0, 2**31 - 1], got -1"),
    ({"block_size": 0}, ValueError, "block_size must be in [1, 2**31 - 1], got 0"),
    ({"block_size": (64, 1.5)}, TypeError, "block_size must be an int, got float"),
    ({"block_size": (1, 2, 3)}, ValueError,
     "block_size must be an int or (rows, columns), got (1, 2, 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_arguments(change, kind, message):
    with pytest.raises(kind) as raised:
        reference.to_blocks(**{"columns": COLUMNS, "q_token_num": 3} | change)
    assert str(raised.value) == message


# The kernels on the CPU

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")


@emulator.planning()
def add_call(script, columns, row_num, block_size, misaligned):
    """Add a call whose buffers are exactly as large as the contract says, full of poison."""
    shapes = plan.block_shapes(*plan.tile_grid(row_num, len(columns), block_size))
    out = Blocks(
        *(
            script.buffer(np.full(shape, -77, np.int32), offset=4 * (i % 4) if misaligned else 0)
            for i, shape in enumerate(shapes)
        )
    )
    nbytes = plan.blocks_scratch_nbytes(row_num, len(columns), block_size)
    scratch = script.buffer(np.full(nbytes, 0x5A, np.uint8))
    launches = plan.block_launches(
        script.buffer(columns), len(columns), row_num, block_size, out, scratch
    )
    for launch in launches:
        script.launch(launch)
    for handle in out:
        script.read(handle)


def check(executable, calls):
    script = emulator.Script()
    for i, call in enumerate(calls):
        add_call(script, *call, misaligned=i % 2 == 1)
    results = script.run(executable)
    for i, call in enumerate(calls):
        blocks = Blocks(*results[8 * i : 8 * i + 8])
        assert_equal(blocks, reference.to_blocks(*call), repr(call))


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 100), ("address", 40), ("thread", 15)])
def test_kernels_on_random_columns(builds, sanitizer, count):
    check(builds(sanitizer), random_calls(np.random.default_rng(7), count))


def random_calls(rng, count):
    return [(*random_columns(rng, 300), random_block_size(rng)) for _ in range(count)]


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
        calls.append((bounds, rows, (1, 2)))
    for column_num in (0, 1, 31, 32, 33, 127, 128, 129, 200):
        bounds = rng.integers(-1, 12, (column_num, 2)).astype(np.int32)
        calls.append((bounds, 10, (3, 1)))
    huge = 2**31 - 1
    calls += [(bounds, 9, (huge, 7)), (bounds, 9, (1, huge)), (bounds, huge, (huge // 3, 7))]
    return calls


def test_scratch_is_two_bits_a_tile():
    assert plan.blocks_scratch_nbytes(131072, 131072) == 2 * 1024 * 1024 // 8
    assert plan.blocks_scratch_nbytes(0, 5) == plan.blocks_scratch_nbytes(5, 0) == 0
    assert checks.check_block_size(64) == (64, 64)


def test_memory_of_a_large_pack():
    """131,072 tokens: all that a call allocates, scratch and paddings too."""
    shapes = plan.block_shapes(*plan.tile_grid(131072, 131072, (128, 128)))
    lists = sum(4 * math.prod(shape) + 16 for shape in shapes)
    assert lists + plan.blocks_scratch_nbytes(131072, 131072) < 40e6


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
    shapes = plan.block_shapes(*plan.tile_grid(row_num, len(columns), (16, 16)))
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
    arguments["columns"] = cupy.asarray(arguments["columns"])
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
