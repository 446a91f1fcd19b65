"""cu_seqlens and spans from ids, positions, masks and slots, against a copy of what they read."""

import baselines
import numpy as np
import packs
import pytest
import timing
from timing import cupy

import maskq_cupy
from maskq_cupy import reference

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="gpu", timer=timing.clock)]

ON_HOST = pytest.mark.benchmark(group="host", timer=timing.clock)

SIZES = (2**13, 2**17, 2**20, 2**24)
DTYPES = ("int32", "int64")
WALL_CALLS = 20
DOCUMENT = {"documents": 1024, "short documents": 2}  # tokens, on average


def ids_of(n, dtype, case):
    lens = np.diff(packs.documents(n, n // DOCUMENT[case]))
    return np.repeat(np.arange(len(lens)), lens).astype(dtype)


def positions_of(n, dtype, case):
    lens = np.diff(packs.documents(n, n // DOCUMENT[case]))
    return (np.arange(n) - np.repeat(np.cumsum(lens) - lens, lens)).astype(dtype)


def copies(array):
    """Return the array on the GPU, as often as it takes to pass the L2 cache."""
    num = timing.buffer_num(array.nbytes)
    return [cupy.asarray(array) for _ in range(num)]


def timed(measure, what, function, host, entries, expected, **facts):
    """Measure a call that reads other tokens each time and writes `entries` of int32."""
    given, out = copies(host), cupy.full(entries, -1, np.int32)
    scratch = cupy.empty(maskq_cupy.cu_seqlens_scratch_nbytes(host.size), np.uint8)
    sample = timing.rotating_sample(
        lambda i: function(given[i], out=out, scratch=scratch), len(given)
    )
    facts = {"n": host.size, "dtype": str(host.dtype), **facts}
    measure(what, sample, **facts, bytes=host.nbytes, against="copy")
    np.testing.assert_array_equal(out.get(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_copy(measure, n, dtype):
    """By a kernel, 16 bytes a thread: what reading the tokens and writing as much costs."""
    given = copies(np.arange(n, dtype=dtype))
    outs = [cupy.empty_like(array) for array in given]
    sample = timing.rotating_sample(
        lambda i: baselines.read_and_fill(given[i], outs[i]), len(given)
    )
    measure("copy", sample, n=n, dtype=dtype, bytes=2 * given[0].nbytes)
    assert (outs[-1][1:2].get() == given[-1][1:2].get()).all()


@pytest.mark.parametrize("case", DOCUMENT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_ids(measure, n, dtype, case):
    host = ids_of(n, dtype, case)
    most = n // DOCUMENT[case]
    expected = reference.cu_seqlens_from_ids(host, most)

    def call(ids, **memory):
        maskq_cupy.cu_seqlens_from_ids(ids, most, **memory)

    timed(measure, "cu_seqlens_from_ids", call, host, most + 1, expected, case=case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_positions(measure, dtype):
    host = positions_of(2**17, dtype, "documents")
    expected = reference.cu_seqlens_from_positions(host, 128)

    def call(positions, **memory):
        maskq_cupy.cu_seqlens_from_positions(positions, 128, **memory)

    timed(measure, "cu_seqlens_from_positions", call, host, 129, expected, case="documents")


@pytest.mark.parametrize("dtype", DTYPES)
def test_spans(measure, dtype):
    host = ids_of(2**17, dtype, "documents") % 2
    expected = reference.spans_from_ids(host, 128, 0)

    def call(ids, **memory):
        maskq_cupy.spans_from_ids(ids, 128, 0, **memory)

    timed(measure, "spans_from_ids", call, host, (128, 2), expected, case="documents")


@pytest.mark.parametrize("dtype", ["bool", "int64"])
@pytest.mark.parametrize("b", [1, 8, 256])
def test_padding(measure, b, dtype):
    n = 2**17
    first, end = np.sort(np.random.default_rng(0).integers(0, n // b, (2, b, 1)), axis=0)
    column = np.arange(n // b)
    host = ((column >= first) & (column < end)).astype(dtype)
    given = copies(host)
    out = cupy.full((2, 5 * b + 1), -1, np.int32)
    scratch = cupy.empty(maskq_cupy.cu_seqlens_scratch_nbytes(n), np.uint8)
    pair = tuple(out)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.cu_seqlens_from_padding(given[i], out=pair, scratch=scratch),
        len(given),
    )
    facts = {"n": n, "b": b, "dtype": dtype, "bytes": host.nbytes}
    measure("cu_seqlens_from_padding", sample, **facts, against="copy")
    np.testing.assert_array_equal(out.get(), reference.cu_seqlens_from_padding(host))


def test_slots(measure):
    b = 1024
    rng = np.random.default_rng(0)
    slots = rng.integers(1, 200, (2, b))
    four = [rng.integers(0, slots[0] + 1), slots[0], rng.integers(0, slots[1] + 1), slots[1]]
    host = [np.append(0, np.cumsum(lens)).astype(np.int32) for lens in four]
    given = [cupy.asarray(cuts) for cuts in host]
    out = cupy.full((2, 3 * b + 1), -1, np.int32)
    pair = tuple(out)
    sample = timing.graph_sample(
        lambda i: maskq_cupy.cu_seqlens_from_slots(*given, out=pair), timing.MOST_LAUNCHES
    )
    measure("cu_seqlens_from_slots", sample, n=b, b=b)
    np.testing.assert_array_equal(out.get(), reference.cu_seqlens_from_slots(*host))


@pytest.mark.parametrize("n", [2**17, 2**24])
def test_split(measure, n):
    b = 8
    host = packs.rule_pack(n, 64, "causal")
    cu = cupy.asarray(host.cu)
    columns = copies(maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=n).get())
    outs = [cupy.empty((b, 1, n // b, 2), np.int32) for _ in columns]
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.split_columns(columns[i], b, n, out=outs[i]), len(columns)
    )
    measure("split_columns", sample, n=n, b=b, bytes=16 * n, against="read and fill")
    right = reference.split_columns(columns[-1].get(), b, n)
    np.testing.assert_array_equal(outs[-1].get(), right)


# As a user waits for it


def torch_from_ids(torch, ids, most):
    """The usual way: it waits for the number of documents, and then pads to a length."""
    _, lens = torch.unique_consecutive(ids, return_counts=True)
    ends = torch.nn.functional.pad(lens.cumsum(0), (1, 0))
    return torch.nn.functional.pad(ends, (0, most + 1 - len(ends)), value=len(ids)).int()


def torch_from_positions(torch, positions, most):
    starts = torch.nonzero(positions == 0).flatten()
    return torch.nn.functional.pad(starts, (0, most + 1 - len(starts)), value=len(positions)).int()


WAYS = {
    "ids": (ids_of, maskq_cupy.cu_seqlens_from_ids, torch_from_ids),
    "positions": (positions_of, maskq_cupy.cu_seqlens_from_positions, torch_from_positions),
}


@ON_HOST
@pytest.mark.parametrize("case", WAYS)
@pytest.mark.parametrize("whose", ["torch's", "ours"])
def test_wall(measure, torch, whose, case):
    """Calls one behind the other, and their work on the GPU, of tensors of torch."""
    n, most = 2**17, 160
    make, ours, theirs = WAYS[case]
    host = make(n, "int64", "documents")
    given = torch.as_tensor(host, device="cuda")
    out = torch.empty(most + 1, dtype=torch.int32, device="cuda")
    scratch = torch.empty(maskq_cupy.cu_seqlens_scratch_nbytes(n), dtype=torch.uint8, device="cuda")
    call = {
        "ours": lambda: ours(given, most, out=out, scratch=scratch),
        "torch's": lambda: theirs(torch, given, most),
    }[whose]
    right = getattr(reference, ours.__name__)(host, most)
    np.testing.assert_array_equal(call().cpu(), right)
    sample = timing.wall_sample(call, WALL_CALLS)
    measure(f"cu_seqlens from {case}, {whose}, wall", sample, n=n)
