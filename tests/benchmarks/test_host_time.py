"""Host time of a call, without waiting for the GPU: against bare launches, and against torch."""

import baselines
import numpy as np
import packs
import pytest
import timing
from timing import cupy

from maskq_cupy import get_attn_mask_q

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.benchmark(group="host", timer=timing.clock, disable_gc=True),
]

N, B = 8192, 8
FEW_ROWS, MANY_ROWS = 1024, 16384  # intervals in one launch, and in two


@pytest.fixture
def pack():
    return packs.rule_pack(N, B, "causal")


@pytest.fixture
def flex(torch):
    return pytest.importorskip("maskq_cupy.flex")


def new_columns(n=N):
    return cupy.empty((n, 2), np.int32)


def new_tensor(torch):
    return torch.empty((N, 2), dtype=torch.int32, device="cuda")


def on_torch(torch, *arrays):
    return [torch.as_tensor(array, device="cuda") for array in arrays]


def check(pack, columns):
    packs.check(pack, cupy.asarray(columns)[None])


def check_lists(torch, pack, mask):
    """Compare the lists of a BlockMask with the reference's."""
    right = packs.reference.to_blocks(packs.expected(pack, np.arange(pack.n)), pack.n)
    for name, array in right._asdict().items():
        np.testing.assert_array_equal(getattr(mask, name).cpu(), array, err_msg=name)


def made_of(launches, allocations=0, by="cupy.empty"):
    """Return what a call is made of at least, which its time is compared with."""
    return {"launches": launches, "allocations": allocations, "by": by}


# What a call is made of


def test_bare_launch(measure, pack):
    launch = baselines.bare_launch(cupy.asarray(pack.cu), new_columns())
    measure("bare launch", timing.host_sample(launch))


def test_cupy_empty(measure):
    measure("cupy.empty", timing.host_sample(new_columns))


def test_torch_empty(measure, torch):
    measure("torch.empty", timing.host_sample(lambda: new_tensor(torch)))


# Columns


def test_out_given(measure, pack):
    cu, out = cupy.asarray(pack.cu), new_columns()
    sample = timing.host_sample(lambda: get_attn_mask_q(cu, cu, kv_token_num=N, out=out))
    measure("out= given", sample, n=N, b=B, **made_of(1))
    check(pack, out)


def test_new_array(measure, pack):
    cu = cupy.asarray(pack.cu)
    sample = timing.host_sample(lambda: get_attn_mask_q(cu, cu, kv_token_num=N))
    measure("new array", sample, n=N, b=B, **made_of(1, 1))
    check(pack, get_attn_mask_q(cu, cu, kv_token_num=N))


@pytest.mark.parametrize("n", [FEW_ROWS, MANY_ROWS])
def test_three_tensors(measure, torch, n):
    """Of many rows two launches, and scratch memory between them."""
    pack = packs.interval_pack(n, B, "sorted")
    q, k, intervals = on_torch(torch, pack.cu, pack.cu, pack.intervals)
    sample = timing.host_sample(lambda: get_attn_mask_q(q, k, intervals, n))
    count = 1 if n == FEW_ROWS else 2
    measure("three tensors of torch in", sample, n=n, b=B, **made_of(count, count))
    check(pack, get_attn_mask_q(q, k, intervals, n))


def test_three_tensors_on_another_stream(measure, torch):
    """torch works on a stream of its own, CuPy on the default one: events order them."""
    pack = packs.interval_pack(FEW_ROWS, B, "sorted")
    q, k, intervals = on_torch(torch, pack.cu, pack.cu, pack.intervals)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        sample = timing.host_sample(lambda: get_attn_mask_q(q, k, intervals, FEW_ROWS))
        measure("the same, ordered by events", sample, n=FEW_ROWS, b=B, **made_of(1, 1))
        check(pack, get_attn_mask_q(q, k, intervals, FEW_ROWS))


# Masks


@pytest.mark.parametrize("whose", ["torch", "CuPy"])
def test_block_mask(measure, torch, flex, pack, whose):
    columns = get_attn_mask_q(pack.cu, pack.cu, kv_token_num=N)
    given = torch.from_dlpack(columns) if whose == "torch" else columns
    sample = timing.host_sample(lambda: flex.block_mask(given, N))
    facts = made_of(2, 1, "torch.empty")
    measure(f"block_mask of {whose} columns", sample, n=N, b=B, **facts)
    check_lists(torch, pack, flex.block_mask(given, N))


def test_packed_block_mask(measure, torch, flex, pack):
    (cu,) = on_torch(torch, pack.cu)
    sample = timing.host_sample(lambda: flex.packed_block_mask(cu, cu, N, N))
    measure("packed_block_mask", sample, n=N, b=B, **made_of(3, 2, "torch.empty"))
    check_lists(torch, pack, flex.packed_block_mask(cu, cu, N, N))


def test_arguments_of_flash_attention(measure, torch, pack):
    """Lists for the forward and the backward pass, from cu_seqlens."""
    pytest.importorskip("flash_attn.cute")
    fa4 = pytest.importorskip("maskq_cupy.fa4")
    (cu,) = on_torch(torch, pack.cu)
    sample = timing.host_sample(lambda: fa4.packed_arguments(cu, cu, N, N, 128))
    measure("FA4's packed_arguments", sample, n=N, b=B, **made_of(3, 2, "torch.empty"))


# Torch in, torch out


def test_torch_in_and_out(measure, torch, pack):
    q, k = on_torch(torch, pack.cu, pack.cu)

    def call():
        return get_attn_mask_q(q, k, out=new_tensor(torch))

    measure("torch in and out", timing.host_sample(call), n=N, b=B, **made_of(1, 1, "torch.empty"))
    check(pack, call())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_torch_operators(measure, torch, pack, compiled):
    q, k = on_torch(torch, pack.cu, pack.cu)
    function = baselines.causal_by(torch)
    if compiled:
        function = torch.compile(function, dynamic=False)
    check(pack, function(q, k, N))
    what = "torch's operators, compiled" if compiled else "torch's operators"
    measure(what, timing.host_sample(lambda: function(q, k, N)), n=N, b=B)
