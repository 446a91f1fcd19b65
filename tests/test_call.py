"""One call, on stand-ins for CuPy and two devices: what needs no GPU of the road of every call."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

import maskq_cupy
from maskq_cupy import compiler, gpu
from maskq_cupy.call import Call


class Array:
    """Stands in for cupy.ndarray: memory of `address` on a device."""

    def __init__(self, shape, dtype, address=None, device=None):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self.device_id = Array.runtime.getDevice() if device is None else device
        self.data = SimpleNamespace(ptr=address or 1 << 40, device_id=self.device_id)
        self._c_contiguous = True


class Runtime:
    """The current device, and the calls that were made on each."""

    CUDARuntimeError = RuntimeError

    def __init__(self):
        self.device, self.launched, self.zeroed = 0, [], []

    def getDevice(self):
        return self.device

    def setDevice(self, device):
        self.device = device

    def memsetAsync(self, pointer, value, nbytes, stream):
        self.zeroed.append((self.device, pointer, nbytes))


@pytest.fixture
def runtime(monkeypatch):
    """Stand in for CuPy, with every kernel loaded for devices 0 and 1."""
    found = Runtime()

    def kernel(name):
        return SimpleNamespace(launch=lambda *given: found.launched.append((found.device, name)))

    kernels = {name: kernel(name) for name in compiler.kernels()}
    Array.runtime = found
    monkeypatch.setattr(gpu, "cupy", SimpleNamespace())
    monkeypatch.setattr(gpu, "ndarray", Array)
    monkeypatch.setattr(gpu, "runtime", found)
    monkeypatch.setattr(gpu, "current_device", found.getDevice)
    monkeypatch.setattr(gpu, "get_current_stream", lambda device: SimpleNamespace(ptr=0))
    monkeypatch.setattr(compiler, "loaded", defaultdict(dict, {0: kernels, 1: kernels}))
    return found


@pytest.mark.parametrize("device", [0, 1])
def test_launches_are_on_the_arrays_device(runtime, device):
    columns = Array((4, 2), "int32", device=device)
    four = maskq_cupy.to_four_columns(columns, 4, out=Array((4, 4), "int32", 2 << 40, device))
    assert (four.device_id, four.shape) == (device, (4, 4))
    assert runtime.launched == [(device, "four_columns")]
    assert runtime.device == 0


@pytest.mark.parametrize("device", [0, 1])
def test_a_new_result_is_on_the_arrays_device(runtime, device):
    columns = maskq_cupy.get_attn_mask_q(*[Array((3,), "int64", device=device)] * 2, None, 5)
    assert (columns.device_id, columns.shape) == (device, (5, 2))
    assert runtime.launched == [(device, "columns_rule")]
    assert runtime.device == 0


def test_columns_without_rows_are_zeroed_on_their_device(runtime):
    cu, none = Array((2,), "int32", device=1), Array((0, 2), "int32", 3 << 40, device=1)
    out = Array((7, 2), "int32", 2 << 40, device=1)
    assert maskq_cupy.get_attn_mask_q(cu, cu, none, out=out) is out
    assert (runtime.zeroed, runtime.device) == ([(1, 2 << 40, 56)], 0)


def test_an_error_leaves_the_current_device(runtime):
    columns, out = Array((4, 2), "int32", device=1), Array((4, 3), "int32", 2 << 40, device=1)
    with pytest.raises(ValueError, match=r"out must be int32 of shape \(4, 4\)"):
        maskq_cupy.to_four_columns(columns, 4, out=out)
    with pytest.raises(ValueError, match=r"all arrays must be on one GPU, got devices \[0, 1\]"):
        maskq_cupy.to_four_columns(columns, 4, out=Array((4, 4), "int32", 2 << 40, device=0))
    assert (runtime.device, runtime.launched) == (0, [])


def test_an_array_to_write_on_the_host_is_refused(runtime):
    expected = r"out must be an array on a GPU, got ndarray on the host"
    with pytest.raises(TypeError, match=expected):
        maskq_cupy.to_four_columns(Array((4, 2), "int32"), 4, out=np.zeros((4, 4), np.int32))
    assert runtime.launched == []


def test_an_array_to_write_that_is_given_twice_overlaps_itself(runtime):
    cu, cuts = Array((3,), "int32"), Array((7,), "int32", 3 << 40)
    with pytest.raises(ValueError, match=r"out\[1\] must not overlap the other arrays"):
        maskq_cupy.cu_seqlens_from_slots(cu, cu, cu, cu, out=(cuts, cuts))
    counts, *more = (
        Array(shape, "int32", (4 + i) << 40)
        for i, shape in enumerate([(1, 1, 1), (1, 1, 1, 1)] * 4)
    )
    lists = maskq_cupy.Blocks(counts, *more)._replace(q_num_blocks=counts)
    scratch = Array((64,), "uint8", 99 << 40)
    with pytest.raises(ValueError, match=r"out\.\w+_num_blocks must not overlap"):
        maskq_cupy.to_blocks(Array((4, 2), "int32"), 4, out=lists, scratch=scratch)
    assert runtime.launched == []


def test_an_input_given_twice_is_read_once(runtime):
    cu = Array((3,), "int32")
    call = Call({"cu_seqlens_q": cu, "cu_seqlens_k": cu})
    assert call.inputs["cu_seqlens_q"] is call.inputs["cu_seqlens_k"]
