"""Host time of a call, without waiting for the GPU: against bare launches, and against torch."""

import baselines
import numpy as np
import packs
import pytest
import timing
from timing import cupy

from maskq_cupy import get_attn_mask_q, plan, scratch_nbytes
from maskq_cupy.rule import CAUSAL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.benchmark(group="host", timer=timing.clock, disable_gc=True),
]

N, B = 8192, 8
FEW_ROWS, MANY_ROWS = 1024, 8192  # intervals in one launch, and in two


@pytest.fixture
def pack():
    return packs.rule_pack(N, B, "causal")


def new_columns(n):
    return cupy.empty((n, 2), np.int32)


def on_torch(torch, *arrays):
    return [torch.as_tensor(array, device="cuda") for array in arrays]


def check(pack, columns):
    packs.check(pack, cupy.asarray(columns)[None])


def batch(cu):
    return plan.Cuts(cu.data.ptr, cu.data.ptr, 1, 1, len(cu) - 1)


def bare_rule_launch(pack, out):
    """Return the bare launch of what a call with the causal rule launches."""
    cu = cupy.asarray(pack.cu)
    return baselines.bare([plan.rule_launch(batch(cu), CAUSAL, out.data.ptr, pack.n)], [cu, out])


def bare_interval_launches(pack, out):
    """Return the bare launches of what a call with intervals launches."""
    cu, intervals = cupy.asarray(pack.cu), cupy.asarray(pack.intervals)
    n, nbytes = pack.n, scratch_nbytes(pack.n)
    scratch = cupy.empty(nbytes, np.uint8)
    launches = plan.interval_launches(
        batch(cu),
        plan.Intervals(intervals.data.ptr, False, n),
        out.data.ptr,
        n,
        scratch.data.ptr,
    )
    arrays = [cu, intervals, out]
    if nbytes:  # as the plan lays it out
        stairs = launches[0].named
        parts = [stairs["group_edges"], stairs["ends"], stairs["starts"]]
        arrays += [scratch[part - scratch.data.ptr :] for part in parts]
    return baselines.bare(launches, arrays)


# A rule, CuPy's arrays


def test_bare_launch(measure, pack):
    out = new_columns(N)
    launch = bare_rule_launch(pack, out)
    measure("bare launch", timing.host_sample(launch), n=N, b=B)
    check(pack, out)


def test_bare_launch_and_empty(measure, pack):
    out = new_columns(N)
    launch = bare_rule_launch(pack, out)
    sample = timing.host_sample(lambda: (new_columns(N), launch()))
    measure("bare launch + cupy.empty", sample, n=N, b=B)
    check(pack, out)


def test_out_given(measure, pack):
    cu, out = cupy.asarray(pack.cu), new_columns(N)
    sample = timing.host_sample(lambda: get_attn_mask_q(cu, cu, kv_token_num=N, out=out))
    measure("out= given", sample, n=N, b=B, against="bare launch")
    check(pack, out)


def test_new_array(measure, pack):
    cu = cupy.asarray(pack.cu)
    sample = timing.host_sample(lambda: get_attn_mask_q(cu, cu, kv_token_num=N))
    measure("new array", sample, n=N, b=B, against="bare launch + cupy.empty")
    check(pack, get_attn_mask_q(cu, cu, kv_token_num=N))


# Intervals, torch's tensors


@pytest.mark.parametrize("n", [FEW_ROWS, MANY_ROWS])
def test_bare_interval_launches_and_empties(measure, n):
    """As many bare launches, and as many cupy.empty, as the call makes."""
    pack = packs.interval_pack(n, B, "sorted")
    out, nbytes = new_columns(n), scratch_nbytes(n)
    launch = bare_interval_launches(pack, out)

    def call():
        new_columns(n)
        if nbytes:
            cupy.empty(nbytes, np.uint8)
        launch()

    measure("bare interval launches + cupy.empty", timing.host_sample(call), n=n, b=B)
    check(pack, out)


@pytest.mark.parametrize("n", [FEW_ROWS, MANY_ROWS])
def test_torch_in(measure, torch, n):
    pack = packs.interval_pack(n, B, "sorted")
    q, k, intervals = on_torch(torch, pack.cu, pack.cu, pack.intervals)
    sample = timing.host_sample(lambda: get_attn_mask_q(q, k, intervals, n))
    against = "bare interval launches + cupy.empty"
    measure("torch in, new array", sample, n=n, b=B, against=against)
    check(pack, get_attn_mask_q(q, k, intervals, n))


def test_torch_in_on_another_stream(measure, torch):
    """torch works on a stream of its own, CuPy on the default one: events order them."""
    pack = packs.interval_pack(FEW_ROWS, B, "sorted")
    q, k, intervals = on_torch(torch, pack.cu, pack.cu, pack.intervals)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        sample = timing.host_sample(lambda: get_attn_mask_q(q, k, intervals, FEW_ROWS))
        against = "bare interval launches + cupy.empty"
        measure("torch in, ordered by events", sample, n=FEW_ROWS, b=B, against=against)
        check(pack, get_attn_mask_q(q, k, intervals, FEW_ROWS))


# Torch in, torch out


def test_torch_in_and_out(measure, torch, pack):
    q, k = on_torch(torch, pack.cu, pack.cu)

    def call():
        out = torch.empty((N, 2), dtype=torch.int32, device=q.device)
        return get_attn_mask_q(q, k, out=out)

    measure("torch in and out", timing.host_sample(call), n=N, b=B, against="torch's operators")
    check(pack, call())


def test_bare_launch_and_torch_empty(measure, torch, pack):
    """The least that a launch on torch's memory costs."""
    out = new_columns(N)
    launch = bare_rule_launch(pack, out)
    call = lambda: (torch.empty((N, 2), dtype=torch.int32, device="cuda"), launch())  # noqa: E731
    measure("bare launch + torch.empty", timing.host_sample(call), n=N, b=B)
    check(pack, out)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_torch_operators(measure, torch, pack, compiled):
    q, k = on_torch(torch, pack.cu, pack.cu)
    function = baselines.causal_by(torch)
    if compiled:
        function = torch.compile(function, dynamic=False)
    check(pack, function(q, k, N))
    what = "torch's operators, compiled" if compiled else "torch's operators"
    measure(what, timing.host_sample(lambda: function(q, k, N)), n=N, b=B)
