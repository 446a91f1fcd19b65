"""FlexAttention's masks: made from columns and by torch's create_block_mask, and run on."""

import time

import baselines
import numpy as np
import packs
import pytest
import timing
from timing import cupy

import maskq_cupy

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="gpu", timer=timing.clock)]

ON_HOST = pytest.mark.benchmark(group="host", timer=timing.clock)

SIZES = (2**15, 2**17)
MEAN_DOCUMENT = 1024


@pytest.fixture
def flex(torch):
    return pytest.importorskip("maskq_cupy.flex")


def pack_of(n):
    return packs.rule_pack(n, n // MEAN_DOCUMENT, "causal")


def columns_of(pack):
    cu = cupy.asarray(pack.cu)
    columns = maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=pack.n)
    packs.check(pack, columns[None])
    return columns


def documents_mask_mod(torch, pack):
    """Return the mask_mod of causal documents that torch's own guide writes."""
    lens = torch.as_tensor(np.diff(pack.cu), device="cuda")
    document = torch.repeat_interleave(torch.arange(pack.b, device="cuda"), lens)
    return lambda b, h, q, kv: (document[q] == document[kv]) & (q >= kv)


def bounds_mask_mod(torch, pack):
    """Return one over two contiguous tensors of bounds, the quickest that we know for torch."""
    lts, ute = torch.from_dlpack(columns_of(pack)).T.contiguous()
    return lambda b, h, q, kv: (q >= ute[kv]) & (q < lts[kv])


MASK_MODS = {"documents": documents_mask_mod, "bounds": bounds_mask_mod}


def compiled_create_block_mask(torch, pack, mask_mod):
    """Return a call of torch's compiled create_block_mask, and the seconds that compiling took."""
    from torch.nn.attention.flex_attention import create_block_mask

    torch._dynamo.reset()
    create = torch.compile(create_block_mask, dynamic=False)

    def call():
        return create(mask_mod, None, None, pack.n, pack.n, device="cuda")

    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return call, time.perf_counter() - start


def assert_same_lists(torch, ours, theirs):
    """Compare the counts, and the entries that they count."""
    for side in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(ours, f"{side}_num_blocks")
        assert torch.equal(counts, getattr(theirs, f"{side}_num_blocks")), side
        mine, other = (getattr(mask, f"{side}_indices") for mask in (ours, theirs))
        counted = torch.arange(mine.shape[-1], device=mine.device) < counts[..., None]
        assert torch.equal(mine[counted], other[counted]), side


def peak_bytes(torch, call):
    """Return what a call allocates from torch at most, its result included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


# The tiles


@pytest.mark.parametrize("n", SIZES)
def test_to_blocks(measure, n):
    columns = columns_of(pack_of(n))
    nbytes = sum(array.nbytes for array in maskq_cupy.to_blocks(columns, n))
    outs = [maskq_cupy.to_blocks(columns, n) for _ in range(timing.buffer_num(nbytes))]
    for array in outs[-1]:
        array.data.memset(255, array.nbytes)
    scratch = cupy.empty(maskq_cupy.blocks_scratch_nbytes(n, n), np.uint8)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.to_blocks(columns, n, out=outs[i], scratch=scratch), len(outs)
    )
    measure("to_blocks", sample, n=n, bytes=nbytes, against="fill of its lists")
    right = maskq_cupy.reference.to_blocks(columns.get(), n)
    for got, array in zip(outs[-1], right, strict=True):
        np.testing.assert_array_equal(got.get(), array)


@pytest.mark.parametrize("n", SIZES)
def test_fill_of_lists(measure, n):
    blocks = maskq_cupy.to_blocks(columns_of(pack_of(n)), n)
    nbytes = sum(array.nbytes for array in blocks)
    outs = cupy.empty((timing.buffer_num(nbytes), -(-nbytes // 16), 4), np.int32)
    sample = timing.rotating_sample(lambda i: baselines.fill(outs[i]), len(outs))
    measure("fill of its lists", sample, n=n, bytes=nbytes)
    assert (outs[-1, :, 0].get() == np.arange(outs.shape[1])).all()


# The BlockMask


@ON_HOST
@pytest.mark.parametrize("whose", ["torch", "CuPy"])
@pytest.mark.parametrize("n", SIZES)
def test_block_mask(measure, torch, flex, n, whose):
    columns = columns_of(pack_of(n))
    if whose == "torch":
        columns = torch.from_dlpack(columns)
    flex.block_mask(columns, n)
    peak = peak_bytes(torch, lambda: flex.block_mask(columns, n))
    sample = timing.wall_sample(lambda: flex.block_mask(columns, n), timing.CALLS)
    measure("block_mask, wall", sample, n=n, case=whose, peak_bytes=peak)
    right = maskq_cupy.reference.to_blocks(cupy.asnumpy(cupy.asarray(columns)), n)
    mask = flex.block_mask(columns, n)
    for name, array in right._asdict().items():
        np.testing.assert_array_equal(getattr(mask, name).cpu(), array, err_msg=name)


@ON_HOST
@pytest.mark.parametrize("n", SIZES)
def test_packed_block_mask(measure, torch, flex, n):
    """The same from cu_seqlens: what a user of torch calls."""
    pack = pack_of(n)
    cu = torch.as_tensor(pack.cu, device="cuda")
    flex.packed_block_mask(cu, cu, n, n)
    sample = timing.wall_sample(lambda: flex.packed_block_mask(cu, cu, n, n), timing.CALLS)
    measure("packed_block_mask, wall", sample, n=n)
    ours = flex.block_mask(columns_of(pack), n)
    assert_same_lists(torch, flex.packed_block_mask(cu, cu, n, n), ours)


@pytest.mark.parametrize("form", MASK_MODS)
@pytest.mark.parametrize("n", SIZES)
def test_create_block_mask(measure, torch, flex, n, form):
    """On the GPU by events; in wall time a call, in compiling and in memory besides."""
    pack = pack_of(n)
    mask_mod = MASK_MODS[form](torch, pack)
    call, compile_seconds = compiled_create_block_mask(torch, pack, mask_mod)
    peak = peak_bytes(torch, call)
    wall = timing.wall_sample(call, calls=3)
    facts = {
        "wall_microseconds": sorted(wall() for _ in range(3))[1] * 1e6,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak,
    }
    sample = timing.torch_sample(torch, call, calls=3)
    measure("create_block_mask, compiled", sample, rounds=5, n=n, case=form, **facts)
    assert_same_lists(torch, flex.block_mask(columns_of(pack), n), call())


# What runs on them


@pytest.fixture(scope="module")
def attend(torch):
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@pytest.mark.parametrize("lists", ["ours", "torch's"])
def test_flex_attention(measure, torch, flex, attend, lists):
    """The same attention on our lists and on torch's, which are made here without compiling."""
    from torch.nn.attention.flex_attention import create_block_mask

    n = SIZES[0]
    ours = flex.block_mask(columns_of(pack_of(n)), n)
    theirs = create_block_mask(ours.mask_mod, None, None, n, n, device="cuda")
    assert_same_lists(torch, ours, theirs)
    qkv = [torch.randn(1, 8, n, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    masks = {"ours": ours, "torch's": theirs}
    results = [attend(*qkv, block_mask=mask) for mask in masks.values()]
    torch.testing.assert_close(*results)
    mask = masks[lists]
    sample = timing.torch_sample(torch, lambda: attend(*qkv, block_mask=mask), calls=20)
    measure("flex_attention", sample, n=n, lists=lists)
