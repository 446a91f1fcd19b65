"""A rank's columns: device time against what must be read and written, and against torch's way."""

import time
from types import SimpleNamespace

import numpy as np
import packs
import pytest
import timing
from test_gpu_time import copies, new_outs
from timing import cupy

import maskq_cupy
from maskq_cupy import cp, reference

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="gpu", timer=timing.clock)]

ON_HOST = pytest.mark.benchmark(group="host", timer=timing.clock, disable_gc=True)

SIZES = (2**13, 2**17, 2**20, 2**24, 2**26)
N, WORLD = 2**17, 8


def sequences_of_equal_length(n, b):
    return np.arange(b + 1) * (n // b)


def zigzag(n):
    """Two chunks, all keys in their order."""
    return packs.documents(n, max(n // 1024, 1)), WORLD, "zigzag", None


def balanced(n):
    """Some chunks of one of 64 ranks, and the keys of all, rank by rank."""
    return packs.documents(n, n // 1024), 64, "balanced", cp.gathered_keys


def per_sequence(n):
    """8,192 chunks: two of each of 4,096 sequences."""
    return sequences_of_equal_length(n, 4096), WORLD, "per_sequence", None


CASES = {"zigzag": zigzag, "balanced": balanced, "per_sequence": per_sequence}
SHARDS = [("zigzag", n) for n in SIZES]
SHARDS += [(case, n) for case in ("balanced", "per_sequence") for n in (N, 2**20)]


def shard_of(case, n):
    """Return the pack's cuts, and the row chunks and key chunks of a rank in the middle."""
    cu, world, scheme, keys = CASES[case](n)
    chunks = cp.cp_chunks(cu, cu, world, scheme)
    return cu, chunks[world // 2 - 1], None if keys is None else keys(chunks)


def columns_of(cu):
    """Return the pack's columns on the GPU, of which test_gpu_time.py checks how they are made."""
    on_gpu = cupy.asarray(cu)
    return maskq_cupy.get_attn_mask_q(on_gpu, on_gpu, kv_token_num=int(cu[-1]))


def check(cu, rows, keys, outs):
    """Compare the first and the last of what was written with the reference; of many a part."""
    columns = columns_of(cu)
    if keys is None:
        some = packs.checked_columns(len(columns))
        right = reference.shard_columns(columns.get()[some], rows)
    else:
        some = slice(None)
        right = reference.shard_columns(columns.get(), rows, keys)
    for out in (outs[0], outs[-1]):
        np.testing.assert_array_equal(out.get()[some], right)


@pytest.mark.parametrize(("case", "n"), SHARDS)
def test_shard(measure, case, n):
    cu, rows, keys = shard_of(case, n)
    outs = new_outs(n)
    sources = cupy.stack([columns_of(cu)] * len(outs))
    row_chunks = cupy.asarray(rows)
    key_chunks = None if keys is None else cupy.asarray(keys)
    chunk_nums = {"c": len(rows), "k": 0 if keys is None else len(keys)}
    scratch = cupy.empty(maskq_cupy.shard_scratch_nbytes(*chunk_nums.values()), np.uint8)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.shard_columns(
            sources[i], row_chunks, key_chunks, out=outs[i], scratch=scratch
        ),
        len(outs),
    )
    facts = {"n": n, "case": case, **chunk_nums, "bytes": 16 * n}
    measure("shard", sample, **facts, against="read and fill")
    check(cu, rows, keys, outs)


@pytest.mark.parametrize("case", ["zigzag", "balanced"])
def test_columns_and_shard(measure, case):
    """The pack's columns and the rank's, of the pack that is timed as a rule alone."""
    cu, rows, keys = shard_of(case, N)
    outs, on_gpu = new_outs(N), cupy.asarray(cu)
    columns = cupy.empty((N, 2), np.int32)
    row_chunks = cupy.asarray(rows)
    key_chunks = None if keys is None else cupy.asarray(keys)

    def launch(i):
        maskq_cupy.get_attn_mask_q(on_gpu, on_gpu, out=columns)
        maskq_cupy.shard_columns(columns, row_chunks, key_chunks, out=outs[i])

    sample = timing.rotating_sample(launch, len(outs))
    measure("columns and shard", sample, n=N, case=case, against="rule")
    check(cu, rows, keys, outs)


@pytest.mark.parametrize("n", [N, 2**20])
def test_needed_keys(measure, n):
    cu, rows, keys = shard_of("balanced", n)
    local = reference.shard_columns(reference.get_attn_mask_q(cu, cu), rows, keys)
    sources = copies(local, timing.buffer_num(8 * n))
    out = cupy.empty(n // 128, np.int32)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.needed_keys(sources[i], out=out), len(sources)
    )
    measure("needed keys", sample, n=n, bytes=8 * n)
    np.testing.assert_array_equal(out.get(), reference.needed_keys(local))


# torch's way


def dual_chunks_by(torch, rank, world):
    """Return Paddle's map of bounds for the chunks r and 2 W - 1 - r, by torch's operators."""

    def shard(columns, size):
        first = (columns - rank * size).clamp(0, size)
        second = (columns - (2 * world - 1 - rank) * size).clamp(0, size)
        return torch.maximum(first, torch.where(second != 0, second + size, second))

    return shard


def test_dual_chunks_by_torch(measure, torch):
    cu, rows, _ = shard_of("zigzag", N)
    columns = torch.as_tensor(columns_of(cu))
    shard, size = dual_chunks_by(torch, WORLD // 2 - 1, WORLD), N // (2 * WORLD)
    sample = timing.torch_sample(torch, lambda: shard(columns, size), timing.CALLS)
    measure("dual chunks, torch's operators", sample, n=N, against="shard")
    check(cu, rows, None, [cupy.asarray(shard(columns, size))])


def head_tail(cu):
    """Return a rank's rows, and all keys rank by rank, as torch deals them by default."""
    chunks = cp.cp_chunks(cu, cu, WORLD, "zigzag")
    return chunks[WORLD // 2 - 1], cp.gathered_keys(chunks)


def test_cp_block_mask_of_torch(measure, torch):
    """torch's _create_cp_block_mask, which asks its mesh for three facts."""
    place = "torch.distributed.tensor.experimental._context_parallel._attention"
    create = getattr(pytest.importorskip(place), "_create_cp_block_mask", None)
    if create is None:
        pytest.skip(f"{place} has no _create_cp_block_mask")
    mesh = SimpleNamespace(
        size=lambda: WORLD, get_local_rank=lambda: WORLD // 2 - 1, device_type="cuda"
    )
    cu = packs.documents(N, N // 1024)
    lens = torch.as_tensor(np.diff(cu), device="cuda")
    document = torch.repeat_interleave(torch.arange(len(lens), device="cuda"), lens)

    def mask_mod(b, h, q, kv):
        return (document[q] == document[kv]) & (q >= kv)

    def call():
        return create(mask_mod, 1, 1, N, N, mesh)

    start = time.perf_counter()
    mask = call()
    torch.cuda.synchronize()
    compile_seconds = time.perf_counter() - start
    sample = timing.torch_sample(torch, call, calls=3)
    facts = {"n": N, "compile_seconds": compile_seconds}
    measure("_create_cp_block_mask", sample, rounds=5, **facts, against="columns, shard and tiles")
    rows, keys = head_tail(cu)
    right = reference.shard_columns(reference.get_attn_mask_q(cu, cu), rows, keys)
    lists = reference.to_blocks(right, N // WORLD)
    for side in ("kv", "full_kv"):
        counts = getattr(mask, f"{side}_num_blocks").cpu()
        np.testing.assert_array_equal(counts, getattr(lists, f"{side}_num_blocks"))


def test_columns_shard_and_tiles(measure):
    cu = packs.documents(N, N // 1024)
    rows, keys = head_tail(cu)
    on_gpu, row_chunks, key_chunks = map(cupy.asarray, (cu, rows, keys))
    columns, local = (cupy.empty((N, 2), np.int32) for _ in range(2))
    local.fill(0)
    lists = maskq_cupy.to_blocks(local, N // WORLD)
    scratch = cupy.empty(maskq_cupy.blocks_scratch_nbytes(N // WORLD, N), np.uint8)

    def launch(i):
        maskq_cupy.get_attn_mask_q(on_gpu, on_gpu, out=columns)
        maskq_cupy.shard_columns(columns, row_chunks, key_chunks, out=local)
        maskq_cupy.to_blocks(local, N // WORLD, out=lists, scratch=scratch)

    measure("columns, shard and tiles", timing.graph_sample(launch), n=N)
    right = reference.to_blocks(local.get(), N // WORLD)
    for got, array in zip(lists, right, strict=True):
        np.testing.assert_array_equal(got.get(), array)
    check(cu, rows, keys, [local])


# The host's time


def of_two_chunks(n):
    cu, rows, _ = shard_of("zigzag", n)
    columns = columns_of(cu)
    return cu, rows, columns, cupy.asarray(rows, np.int64), cupy.empty((n, 2), np.int32)


@ON_HOST
@pytest.mark.parametrize("where", ["GPU", "host"])
def test_shard_call(measure, torch, where):
    cu, rows, columns, chunks, _ = of_two_chunks(8192)
    given = torch.as_tensor(columns)
    out = torch.empty((8192, 2), dtype=torch.int32, device="cuda")
    row_chunks = torch.as_tensor(chunks) if where == "GPU" else rows
    sample = timing.host_sample(lambda: maskq_cupy.shard_columns(given, row_chunks, out=out))
    what = f"shard, torch in, out=, chunks on the {where}"
    measure(what, sample, n=8192, launches=1, allocations=0, by="")
    check(cu, rows, None, [cupy.asarray(out)])


@ON_HOST
@pytest.mark.parametrize("scheme", cp.SCHEMES)
def test_cp_chunks(measure, scheme):
    """Of 131,072 tokens in 1,000 sequences for 64 ranks; of no GPU, but timed with the rest."""
    cu = packs.documents(N, 1000)
    sample = timing.host_sample(lambda: cp.cp_chunks(cu, cu, 64, scheme), calls=10)
    measure("cp_chunks", sample, n=N, case=scheme)
    rows = cp.chunk_rows(cp.cp_chunks(cu, cu, 64, scheme))
    np.testing.assert_array_equal(np.sort(rows), np.arange(N))
