"""Any framework's array in, as a pointer and host-side facts, in stream order.

A `GpuArray` is read without building an array where the framework allows it (CuPy, torch, the CUDA
array interface); DLPack serves the rest. Needs CuPy; touches no device at import.
"""

import collections
import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from maskq_cupy import gpu

cupy = gpu.require_cupy()
runtime = cupy.cuda.runtime
_get_current_stream = cupy.cuda.get_current_stream
_cupy_array = cupy.ndarray

LEGACY_STREAM = 0  # also spelled 1
_DEFAULT_STREAMS = 2  # legacy and per-thread have no address, and belong to any device
_DLPACK_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged


class Streams:
    """Pointers of the stream to launch on and of CuPy's current one, which may be the same."""

    launch: int
    current: int


class GpuArray:
    """What a launch needs to know of an array on a GPU.

    ``stream`` is the pointer of the stream that its framework works on, or None where only the
    framework knows; it then has ordered that stream's work before the launch itself, and ``value``
    must live until the launch is done.

    Filled in field by field: a call makes several, and a constructor of nine arguments costs half
    as much as reading the array.
    """

    pointer: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    device: int
    contiguous: bool
    writable: bool = True
    stream: int | None
    value: Any


# By table: str() of a NumPy dtype costs more than reading the rest of the array's facts.
_NAMES = {np.dtype(t): np.dtype(t).name for t in "?bhilqBHILQefd"}
_TORCH_NAMES: dict[Any, str] = {}


def gpu_array(value: Any, name: str, streams: Streams) -> GpuArray | None:
    """Return the facts of an array on a GPU, or None if the value is a list or on the host."""
    if isinstance(value, _cupy_array):
        return _from_cupy(value, streams.current)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, value) if value.is_cuda else None
    if isinstance(value, (list, tuple, np.ndarray)):
        return None
    if hasattr(value, "__dlpack_device__"):
        if int(value.__dlpack_device__()[0]) in _DLPACK_CUDA_DEVICES:
            return _from_dlpack(value, name, streams)
        return None
    if hasattr(value, "__cuda_array_interface__"):
        return _from_cuda_array_interface(value)
    return None


def _from_cupy(value: Any, stream: int | None) -> GpuArray:
    array, data, dtype = GpuArray(), value.data, value.dtype
    array.pointer = data.ptr
    array.dtype = _NAMES.get(dtype) or str(dtype)
    array.shape = value.shape
    array.nbytes = value.nbytes
    array.device = data.device_id
    array.contiguous = value._c_contiguous
    array.stream = stream
    array.value = value
    return array


def _from_torch(torch: Any, value: Any) -> GpuArray:
    array, dtype, device = GpuArray(), value.dtype, value.get_device()
    array.pointer = value.data_ptr()
    array.dtype = _TORCH_NAMES.get(dtype) or _torch_name(dtype)
    array.shape = value.shape
    array.nbytes = value.nbytes
    array.device = device
    array.contiguous = value.is_contiguous()
    array.stream = torch._C._cuda_getCurrentRawStream(device)  # 40 times faster than current_stream
    array.value = value
    return array


def _torch_name(dtype: Any) -> str:
    name = _TORCH_NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


def _from_dlpack(value: Any, name: str, streams: Streams) -> GpuArray:
    with _as_current(streams.launch):
        try:
            array = cupy.from_dlpack(value)
        except BufferError as error:
            raise ValueError(f"{name} must export by DLPack, got {error}") from error
    interface = getattr(value, "__cuda_array_interface__", None)
    facts = _from_cupy(array, None)
    facts.writable = interface is None or not interface["data"][1]
    facts.value = (value, array)
    return facts


def _from_cuda_array_interface(value: Any) -> GpuArray:
    interface = value.__cuda_array_interface__
    pointer, read_only = interface["data"]
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")
    array = GpuArray()
    array.pointer = pointer
    array.dtype = str(dtype)
    array.shape = shape
    array.nbytes = math.prod(shape) * dtype.itemsize
    array.device = runtime.pointerGetAttributes(pointer).device if pointer else gpu.current_device()
    array.contiguous = strides is None or _is_contiguous(shape, strides, dtype.itemsize)
    array.writable = not read_only
    # None in version 2, and from Numba for its default stream, which is the legacy one.
    array.stream = _normal(interface.get("stream") or LEGACY_STREAM)
    array.value = value
    return array


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def streams_of(stream: Any, device: int) -> Streams:
    """Return the launch stream that the argument `stream` means, and CuPy's current one.

    A CuPy stream, a raw pointer, what has `__cuda_stream__` or `.cuda_stream`, or None. `device` is
    the current device, so that CuPy need not ask the driver for it again.
    """
    streams = Streams()
    streams.launch = streams.current = _normal(_get_current_stream(device).ptr)
    if stream is not None:
        streams.launch = _normal(_stream_pointer(stream))
    return streams


def _stream_pointer(stream: Any) -> int:
    if isinstance(stream, int):
        return int(stream)
    if hasattr(stream, "ptr"):
        return int(stream.ptr)
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    if hasattr(stream, "cuda_stream"):
        return int(stream.cuda_stream)
    raise TypeError(
        "stream must be a CuPy stream, a pointer, or an object with __cuda_stream__ or "
        f".cuda_stream, got {type(stream).__name__}"
    )


def _normal(stream: int) -> int:
    return LEGACY_STREAM if stream == 1 else stream


def check_stream(stream: int) -> None:
    """Require that a stream which the caller named belongs to the current device."""
    if stream > _DEFAULT_STREAMS and cupy.cuda.driver.streamGetCtx(stream) != _context():
        raise ValueError("stream must belong to the arrays' device, got a stream of another device")


def _context() -> int:
    runtime.setDevice(runtime.getDevice())  # a new thread has no context yet
    return cupy.cuda.driver.ctxGetCurrent()


def is_capturing(stream: int) -> bool:
    """Is the stream recording a CUDA graph? The legacy default stream cannot."""
    return stream != LEGACY_STREAM and runtime.streamIsCapturing(stream)


class _RawStream(NamedTuple):
    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _as_current(stream: int) -> Any:
    """Return a context in which the stream is CuPy's current one."""
    return cupy.cuda.Stream.from_external(_RawStream(stream))


def _order(first: int, then: int) -> None:
    """Make what comes on stream `then` wait for what is on stream `first`."""
    event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
    runtime.eventRecord(event, first)
    runtime.streamWaitEvent(then, event)
    runtime.eventDestroy(event)  # once it is no longer waited for


def wait_for_producers(given: Iterable[GpuArray], streams: Streams) -> None:
    """Order the launch stream behind the streams on which the arrays' frameworks work."""
    others = {a.stream for a in given if a.stream is not None and a.stream != streams.launch}
    if others and not is_capturing(streams.launch):
        for other in others:
            _order(other, streams.launch)


def release_to_producers(given: Iterable[GpuArray], streams: Streams) -> None:
    """Order those streams, and CuPy's current one, behind the launch, so that the arrays may be
    freed, reused or read at once."""
    others = {a.stream for a in given if a.stream is not None} | {streams.current}
    others.discard(streams.launch)
    held = [a.value for a in given if a.stream is None]
    if (others or held) and not is_capturing(streams.launch):
        for other in others:
            _order(streams.launch, other)
        if held:
            _hold_until_done(held, streams.launch)


# Arrays of frameworks whose stream is unknown, kept until the launch that read them is done.
_in_flight: collections.deque[tuple[Any, Any]] = collections.deque()


def _hold_until_done(values: Iterable[Any], launch_stream: int) -> None:
    """Keep the values alive until the work that is now on the stream is done; drop what is done."""
    event = cupy.cuda.Event(disable_timing=True)
    runtime.eventRecord(event.ptr, launch_stream)
    _in_flight.append((event, tuple(values)))
    while _in_flight and _in_flight[0][0].done:
        _in_flight.popleft()


def empty(shape: tuple[int, ...], dtype: Any, streams: Streams) -> Any:
    """Allocate an array from the stream's part of CuPy's pool."""
    if streams.launch == streams.current:
        return _cupy_array(shape, dtype)  # as cupy.empty does, which costs a third more
    with _as_current(streams.launch):
        return _cupy_array(shape, dtype)


def allocate(nbytes: int, streams: Streams) -> Any:
    """Allocate memory from the stream's part of CuPy's pool, without an array around it."""
    if streams.launch == streams.current:
        return cupy.cuda.alloc(nbytes)
    with _as_current(streams.launch):
        return cupy.cuda.alloc(nbytes)


def zero(pointer: int, nbytes: int, stream: int) -> None:
    """Set memory on the current device to 0, without a host wait."""
    runtime.memsetAsync(pointer, 0, nbytes, stream)


def upload(array: np.ndarray, stream: int) -> Any:
    """Copy a host array to the current device through pinned memory, without a host wait."""
    with _as_current(stream):
        return cupy.asarray(array)


def download(pointer: int, dtype: Any, length: int, stream: int) -> np.ndarray:
    """Copy from the device and wait for it."""
    array = np.empty(length, dtype)
    runtime.memcpyAsync(
        array.ctypes.data, pointer, array.nbytes, runtime.memcpyDeviceToHost, stream
    )
    runtime.streamSynchronize(stream)
    return array
