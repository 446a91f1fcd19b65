"""Bad input on a GPU: the exact message, and a process that is as it was before the call."""

import gc
import math
import re

import numpy as np
import pytest

import maskq_cupy

pytestmark = pytest.mark.gpu


class ReadOnly:
    """An array by the CUDA array interface alone, not to be written to."""

    def __init__(self, array):
        self._array = array
        interface = array.__cuda_array_interface__
        self.__cuda_array_interface__ = interface | {"data": (array.data.ptr, True)}


class Refusing:
    """An array on a GPU whose export fails in an unforeseen way."""

    def __init__(self, array):
        self.__dlpack_device__ = array.__dlpack_device__

    def __dlpack__(self, **asked):
        raise ZeroDivisionError("not today")


class ConstantByCapsule:
    """An array on a GPU of which only the flag in a versioned capsule says that it is read-only."""

    def __init__(self, array):
        self._array = array
        self.__dlpack_device__ = array.__dlpack_device__

    def __dlpack__(self, *, max_version=None, **asked):
        if max_version is None or "stream" in asked:
            return self._array.__dlpack__(**asked)
        constant = np.zeros(3)
        constant.flags.writeable = False
        return constant.__dlpack__(max_version=max_version)


class Good:
    """A good call's arguments, and what makes bad ones of them."""

    def __init__(self, cupy):
        self._memory = cupy.zeros(1 << 18, np.uint8)
        self._cu = cupy.asarray([0, 3], np.int32)
        self._mask = cupy.zeros((ROWS, 2), np.int32)
        self._mask[:3, 1] = cupy.arange(1, 4)
        self._asarray = cupy.asarray

    def arguments(self):
        return {"cu_seqlens_q": self._cu, "cu_seqlens_k": self._cu, "kv_token_num": 3}

    def intervals(self, **more):
        return {"attn_mask_kv": self._mask, **more}

    def validated(self, q, k, **more):
        changed = {"cu_seqlens_q": self.words(q), "cu_seqlens_k": self.words(k)}
        return {"attn_mask_kv": self._mask[:3], **changed, "validate": True, **more}

    def words(self, values):
        return self._asarray(values, np.int64)

    def array(self, shape, dtype=np.int32, at=0):
        """Return a part of one piece of memory, `at` bytes behind its start."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        return self._memory[at : at + nbytes].view(dtype).reshape(shape)

    def strided(self, shape, dtype=np.int32):
        return self.array((2 * shape[0], *shape[1:]), dtype)[::2]


FORM = "must be int32 or int64 of shape"
OUT_FORM = "out must be int32 of shape (N, 2) or (1, 1, N, 2), got"
ONE_PLACE = "the input must be all on one GPU or all on the host, got"
OVERLAP = "must not overlap the other arrays, got 0x.. to 0x.. over 0x.. to 0x.."
ROWS = 9000  # so many that a call needs scratch memory
NBYTES = maskq_cupy.scratch_nbytes(ROWS)
SCRATCH = (
    f"scratch must be writable, contiguous, 16-byte aligned and of at least {NBYTES} bytes, got"
)

# The change that makes a good call's arguments bad, the error; 0x.. stands for any address.
# fmt: off
CASES = [
    (lambda g: {"cu_seqlens_q": [0, 3]}, TypeError,
     f"{ONE_PLACE} cu_seqlens_q on the host, cu_seqlens_k on a GPU"),
    (lambda g: {"attn_mask_kv": np.zeros((3, 2), int)}, TypeError,
     f"{ONE_PLACE} cu_seqlens_q on a GPU, cu_seqlens_k on a GPU, attn_mask_kv on the host"),
    (lambda g: {"cu_seqlens_k": g.array((4, 1), "f4")}, TypeError,
     f"cu_seqlens_k {FORM} (B + 1,), got float32 of shape (4, 1)"),
    (lambda g: {"cu_seqlens_q": g.array((2, 1))}, ValueError,
     f"cu_seqlens_q {FORM} (B + 1,), got int32 of shape (2, 1)"),
    (lambda g: {"cu_seqlens_q": g.array((0,))}, ValueError,
     f"cu_seqlens_q {FORM} (B + 1,), got int32 of shape (0,)"),
    (lambda g: {"cu_seqlens_k": g.array((3,))}, ValueError,
     "cu_seqlens_q must be at least as long as cu_seqlens_k, got 2 and 3 entries"),
    (lambda g: {"cu_seqlens_q": g.strided((2,))}, ValueError,
     "cu_seqlens_q must be C-contiguous, got a strided view of shape (2,)"),
    (lambda g: {"attn_mask_kv": g.strided((3, 2))}, ValueError,
     "attn_mask_kv must be C-contiguous, got a strided view of shape (3, 2)"),
    (lambda g: {"attn_mask_kv": g.array((5,), "i8")}, ValueError,
     f"attn_mask_kv {FORM} (Q, 2) or (2 * Q,), got int64 of shape (5,)"),
    (lambda g: {"attn_mask_kv": g.array((3, 3))}, ValueError,
     f"attn_mask_kv {FORM} (Q, 2) or (2 * Q,), got int32 of shape (3, 3)"),
    (lambda g: {"attn_mask_kv": g.array((3, 2), "f8")}, TypeError,
     f"attn_mask_kv {FORM} (Q, 2) or (2 * Q,), got float64 of shape (3, 2)"),

    (lambda g: {"kv_token_num": -1}, ValueError,
     "kv_token_num must be in [0, 2**31 - 1], got -1"),
    (lambda g: {"kv_token_num": 2**31}, ValueError,
     "kv_token_num must be in [0, 2**31 - 1], got 2147483648"),
    (lambda g: {"kv_token_num": 3.0}, TypeError,
     "kv_token_num must be an int or None, got float"),
    (lambda g: {"kv_token_num": None, "cu_seqlens_k": g.words([0, -5])}, ValueError,
     "kv_token_num must be in [0, 2**31 - 1], got -5"),
    (lambda g: {"kv_token_num": None, "cu_seqlens_k": g.words([0, 2**31])}, ValueError,
     "kv_token_num must be in [0, 2**31 - 1], got 2147483648"),

    (lambda g: {"out": g.array((3, 2), "f4")}, TypeError, f"{OUT_FORM} float32 of shape (3, 2)"),
    (lambda g: {"out": g.array((3, 2), "i8")}, TypeError, f"{OUT_FORM} int64 of shape (3, 2)"),
    (lambda g: {"out": g.array((3, 3))}, ValueError, f"{OUT_FORM} int32 of shape (3, 3)"),
    (lambda g: {"out": g.array((2,))}, ValueError, f"{OUT_FORM} int32 of shape (2,)"),
    (lambda g: {"out": g.array((1, 3, 2))}, ValueError, f"{OUT_FORM} int32 of shape (1, 3, 2)"),
    (lambda g: {"out": g.array((4, 2))}, ValueError,
     "out must have N = kv_token_num = 3 columns, got shape (4, 2)"),
    (lambda g: {"out": g.strided((3, 2))}, ValueError,
     "out must be C-contiguous, got a strided view of shape (3, 2)"),
    (lambda g: {"out": ReadOnly(g.array((3, 2)))}, ValueError,
     "out must be writable, got a read-only ReadOnly"),
    (lambda g: {"out": g.array((3, 2), at=4)}, ValueError,
     "out must be 8-byte aligned, got address 0x.."),
    (lambda g: {"out": np.zeros((3, 2), np.int32)}, TypeError,
     "out must be an array on a GPU, got ndarray on the host"),
    (lambda g: {"out": g.array((3, 2)), "cu_seqlens_q": g.array((2,), at=16)}, ValueError,
     f"out {OVERLAP}"),

    (lambda g: g.intervals(scratch=g.array((NBYTES - 16,), "u1")), ValueError,
     f"{SCRATCH} {NBYTES - 16} bytes at 0x.., contiguous=True, writable=True"),
    (lambda g: g.intervals(scratch=g.array((NBYTES,), "u1", at=8)), ValueError,
     f"{SCRATCH} {NBYTES} bytes at 0x.., contiguous=True, writable=True"),
    (lambda g: g.intervals(scratch=g.strided((NBYTES,), "u1")), ValueError,
     f"{SCRATCH} {NBYTES} bytes at 0x.., contiguous=False, writable=True"),
    (lambda g: g.intervals(scratch=ReadOnly(g.array((NBYTES,), "u1"))), ValueError,
     f"{SCRATCH} {NBYTES} bytes at 0x.., contiguous=True, writable=False"),
    (lambda g: g.intervals(scratch=g.array((NBYTES,), "u1"), out=g.array((3, 2))), ValueError,
     f"scratch {OVERLAP}"),
    (lambda g: {"attn_mask_kv": g.array((ROWS, 2)), "scratch": g.array((NBYTES,), "u1")},
     ValueError, f"scratch {OVERLAP}"),
    (lambda g: g.intervals(scratch=np.zeros(NBYTES, "u1")), TypeError,
     "scratch must be an array on a GPU, got ndarray on the host"),

    (lambda g: g.intervals(window=(1, 0)), ValueError,
     "attn_mask_kv excludes window: the intervals say it all, got window=(1, 0)"),
    (lambda g: g.intervals(causal=False), ValueError,
     "attn_mask_kv excludes causal=False: the intervals say it all, leave causal alone"),
    (lambda g: {"num_sink_tokens": 4}, ValueError,
     "num_sink_tokens needs window= or chunk_size=, whose left bound it lifts, "
     "got 4 sinks and neither"),
    (lambda g: g.intervals(num_sink_tokens=4), ValueError,
     "num_sink_tokens does not go with attn_mask_kv: use window= or chunk_size=, or set LTS of "
     "those columns to 1 + the last row that sees anything"),
    (lambda g: g.intervals(align="top_left"), ValueError,
     "attn_mask_kv excludes align: the intervals say it all, got align='top_left'"),
    (lambda g: g.intervals(causal_block=4), ValueError,
     "attn_mask_kv excludes causal_block: the intervals say it all, got causal_block=4"),
    (lambda g: g.intervals(chunk_size=4), ValueError,
     "attn_mask_kv excludes chunk_size: the intervals say it all, got chunk_size=4"),
    (lambda g: g.intervals(spans=g.array((1, 2))), ValueError,
     "attn_mask_kv excludes spans: the intervals say it all, leave spans alone"),
    (lambda g: {"align": "left"}, ValueError,
     "align must be 'bottom_right' or 'top_left', got 'left'"),
    (lambda g: {"causal_block": 4, "causal": False}, ValueError,
     "causal_block needs causal=True, got causal_block=4"),
    (lambda g: {"chunk_size": 0}, ValueError, "chunk_size must be an int >= 1, got 0"),
    (lambda g: {"spans": [[0, 2]]}, TypeError,
     f"{ONE_PLACE} cu_seqlens_q on a GPU, cu_seqlens_k on a GPU, spans on the host"),
    (lambda g: {"spans": g.array((4,))}, ValueError,
     "spans must be int32 or int64 of shape (S, 2), got int32 of shape (4,)"),
    (lambda g: {"spans": g.array((2, 2), "f4")}, TypeError,
     "spans must be int32 or int64 of shape (S, 2), got float32 of shape (2, 2)"),
    (lambda g: {"spans": g.strided((2, 2))}, ValueError,
     "spans must be C-contiguous, got a strided view of shape (2, 2)"),
    (lambda g: {"spans": g.array((2, 2)), "out": g.array((3, 2), at=8)}, ValueError,
     f"out {OVERLAP}"),
    (lambda g: {"window": (-2, 0)}, ValueError, "window[0] must be an int >= -1, got -2"),
    (lambda g: {"stream": "main"}, TypeError,
     "stream must be a CuPy stream, a pointer, or an object with __cuda_stream__ or .cuda_stream, "
     "got str"),

    (lambda g: g.validated([1, 3], [0, 3]), ValueError,
     "cu_seqlens_q must start at 0, got cu_seqlens_q[0] = 1"),
    (lambda g: g.validated([0, 3], [-1, 3]), ValueError,
     "cu_seqlens_k must start at 0, got cu_seqlens_k[0] = -1"),
    (lambda g: g.validated([0, 3, 1], [0, 3, 3]), ValueError,
     "cu_seqlens_q must not decrease, got cu_seqlens_q[2] = 1 after cu_seqlens_q[1] = 3"),
    (lambda g: g.validated([0, 3, 3], [0, 3, 2]), ValueError,
     "cu_seqlens_k must not decrease, got cu_seqlens_k[2] = 2 after cu_seqlens_k[1] = 3"),
    (lambda g: g.validated([0, 3], [0, 2**31]), ValueError,
     "cu_seqlens_k must end within int32, got cu_seqlens_k[-1] = 2147483648"),
    (lambda g: g.validated([0, 3], [0, 3], kv_token_num=2), ValueError,
     "kv_token_num must be at least cu_seqlens_k[B], got 2 below 3"),
    (lambda g: g.validated([0, 4], [0, 3]), ValueError,
     "attn_mask_kv must have at least cu_seqlens_q[B] rows, got 3 below 4: an array of ends alone "
     "must be stacked with its starts"),
    (lambda g: {"attn_mask_kv": g.array((0, 2)), "validate": True}, ValueError,
     "attn_mask_kv must have at least cu_seqlens_q[B] rows, got 0 below 3: an array of ends alone "
     "must be stacked with its starts"),
    (lambda g: {"cu_seqlens_q": None}, TypeError, f"cu_seqlens_q {FORM} (B + 1,), got None"),
    (lambda g: {"cu_seqlens_k": None}, TypeError, f"cu_seqlens_k {FORM} (B + 1,), got None"),
    (lambda g: {"kv_token_num": g.words([3])[0]}, TypeError,
     "kv_token_num must be an int or None, got ndarray: give an int: int(x) of a GPU array waits"),
    (lambda g: {"kv_token_num": True}, TypeError, "kv_token_num must be an int or None, got bool"),
    (lambda g: {"cu_seqlens_q": Refusing(g.words([0, 3]))}, TypeError,
     "cu_seqlens_q must export by DLPack, got ZeroDivisionError: not today"),
    (lambda g: {"out": ConstantByCapsule(g.array((3, 2)))}, ValueError,
     "out must be writable, got a read-only ConstantByCapsule"),
    (lambda g: {"spans": g.words([[0, 1], [0, 2]]), "validate": True}, ValueError,
     "spans must hold [start, end) with 0 <= start <= end <= next start, "
     "got spans[1] = [0, 2] after spans[0] = [0, 1]"),
    (lambda g: {"spans": g.words([[0, 2**31]]), "validate": True}, ValueError,
     "spans must end within the N = 3 columns, got spans[0] = [0, 2147483648]"),
]
# fmt: on


def error_of(arguments):
    """Return type and text of the error; what its frames held is freed on return."""
    try:
        maskq_cupy.get_attn_mask_q(**arguments)
    except Exception as error:
        return type(error), str(error)
    return None, "no error"


@pytest.fixture(autouse=True)
def no_collection():
    """Keep the garbage of the tests before, whose arrays would be missed in the pool's bytes."""
    gc.disable()
    yield
    gc.enable()


def check_refused(cupy, good, change, kind, message):
    """Require the error, and that nothing is left of the call."""
    arguments = good.arguments() | change
    pool = cupy.get_default_memory_pool()
    used = pool.used_bytes()
    found, text = error_of(arguments)
    assert found is kind, text
    assert re.fullmatch(re.escape(message).replace(r"0x\.\.", "0x[0-9a-f]+"), text), text
    assert pool.used_bytes() == used
    cupy.cuda.runtime.deviceSynchronize()  # a sticky error would be raised here
    result = maskq_cupy.get_attn_mask_q(**good.arguments())
    np.testing.assert_array_equal(cupy.asnumpy(result).T, [[3, 3, 3], [0, 1, 2]])
    by_intervals = maskq_cupy.get_attn_mask_q(**good.arguments(), **good.intervals())
    np.testing.assert_array_equal(cupy.asnumpy(by_intervals), cupy.asnumpy(result))
    del result, by_intervals
    assert pool.used_bytes() == used


@pytest.mark.parametrize(("change", "kind", "message"), CASES)
def test_refused(cupy, change, kind, message):
    good = Good(cupy)
    check_refused(cupy, good, change(good), kind, message)


@pytest.mark.parametrize("dim", [(3, 2), (1, 1, 3, 2)])
def test_strided_torch_out_is_refused(cupy, dim):
    torch = pytest.importorskip("torch")
    out = torch.zeros((*dim[:-1], 4), dtype=torch.int32, device="cuda")[..., ::2]
    message = f"out must be C-contiguous, got a strided view of shape {dim}"
    check_refused(cupy, Good(cupy), {"out": out}, ValueError, message)


def test_two_devices_are_refused(cupy, second):
    with second:
        elsewhere = cupy.asarray([0, 3], np.int32)
        out = cupy.zeros((3, 2), np.int32)
    message = "all arrays must be on one GPU, got devices [0, 1]"
    for change in ({"cu_seqlens_q": elsewhere}, {"cu_seqlens_k": elsewhere}, {"out": out}):
        check_refused(cupy, Good(cupy), change, ValueError, message)


def test_stream_of_another_device_is_refused(cupy, second):
    with second:
        stream = cupy.cuda.Stream(non_blocking=True)
    message = "stream must belong to the arrays' device, got a stream of another device"
    for same in (stream, stream.ptr):
        check_refused(cupy, Good(cupy), {"stream": same}, ValueError, message)


def tensors(torch):
    """Tensors on the GPU that are no plain array of ints, and what is said of them."""
    cu = torch.tensor([0, 3], dtype=torch.int32, device="cuda")
    floats = torch.tensor([0.0, 3.0], device="cuda", requires_grad=True)
    yield floats, f"cu_seqlens_k {FORM} (B + 1,), got float32 of shape (2,)"
    yield cu.to(torch.bfloat16), f"cu_seqlens_k {FORM} (B + 1,), got bfloat16 of shape (2,)"
    yield cu.to_sparse(), "cu_seqlens_k must be a dense tensor, got Tensor of layout torch.sparse"
    yield torch.nested.nested_tensor([cu]), "cu_seqlens_k must be a dense tensor, got Tensor of"


def test_tensors_that_are_no_plain_arrays(cupy):
    torch = pytest.importorskip("torch")
    for tensor, message in tensors(torch):
        found, text = error_of(Good(cupy).arguments() | {"cu_seqlens_k": tensor})
        assert found is TypeError
        assert text.startswith(message), text
