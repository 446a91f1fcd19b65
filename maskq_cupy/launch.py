"""What every GPU call does around its launches: one device, no capture traps, stream order."""

from collections.abc import Iterable
from typing import Any

from maskq_cupy import arrays, gpu
from maskq_cupy.arrays import GpuArray, Streams, cupy
from maskq_cupy.compiler import kernel, kernels
from maskq_cupy.plan import Launch


def on_gpu(value: Any, name: str, streams: Streams) -> GpuArray:
    """Return the facts of an array that must be on a GPU."""
    array = arrays.gpu_array(value, name, streams)
    if array is None:
        raise TypeError(f"{name} must be an array on a GPU, got {type(value).__name__} on the host")
    return array


def other_device(given: list[GpuArray], device: int) -> int | None:
    """Return the device that the arrays are on where it is not `device`, the current one."""
    for array in given:
        if array.device != device:
            break
    else:
        return None
    found = {array.device for array in given}
    if len(found) > 1:
        raise ValueError(f"all arrays must be on one GPU, got devices {sorted(found)}")
    return found.pop()


def forbid_overlap(name: str, array: GpuArray, others: Iterable[GpuArray | None]) -> None:
    """Require that a written array shares no byte with the others."""
    end = array.pointer + array.nbytes
    for other in others:
        if (
            other is not None
            and array.pointer < other.pointer + other.nbytes
            and other.pointer < end
        ):
            raise ValueError(
                f"{name} must not overlap the other arrays, got {array.pointer:#x} to {end:#x} "
                f"over {other.pointer:#x} to {other.pointer + other.nbytes:#x}"
            )


def check_writable(name: str, target: GpuArray, alignment: int) -> None:
    """Require that a kernel can write to an array of the caller's; its form is checked already."""
    if not target.contiguous:
        raise ValueError(
            f"{name} must be C-contiguous, got a strided view of shape {tuple(target.shape)}"
        )
    if not target.writable:
        raise ValueError(f"{name} must be writable, got a read-only {type(target.value).__name__}")
    if target.pointer % alignment:
        raise ValueError(
            f"{name} must be {alignment}-byte aligned, got address {target.pointer:#x}"
        )


def new_result(shape: tuple[int, ...], dtype: Any, streams: Streams) -> Any:
    """Allocate a result, which a graph capture may not."""
    forbid_in_capture(streams, "the result is allocated: give out=")
    return arrays.empty(shape, dtype, streams)


def forbid_in_capture(streams: Streams, reason: str) -> None:
    """Raise, with the reason, if the launch stream is recording a graph."""
    if arrays.is_capturing(streams.launch):
        raise RuntimeError(f"not possible while the stream is captured: {reason}")


def run(
    launches: Iterable[Launch],
    given: list[GpuArray],
    device: int,
    streams: Streams,
    zeroed: tuple[int, int] | None = None,
) -> None:
    """Launch on the current device, `device`, in order with the streams of the given arrays.

    ``zeroed`` is the pointer and the bytes of memory that is set to 0 before the launches.
    """
    for launch in launches:
        if device not in kernel(launch.kernel).pointers:
            forbid_in_capture(
                streams, "a kernel is compiled at its first use: call maskq_cupy.warm_up() before"
            )
            _load(launch.kernel, device)
    stream = streams.launch
    in_order = stream == streams.current
    for array in given:
        if array.stream != stream:
            in_order = False
    if not in_order:
        arrays.wait_for_producers(given, streams)
    if zeroed is not None:
        arrays.zero(*zeroed, stream)
    for launch in launches:
        name, grid, arguments, overlap = launch
        kernel(name).launch(device, stream, grid, arguments, overlap)
    if not in_order:
        arrays.release_to_producers(given, streams)


def warm_up(device: int | None = None) -> None:
    """Compile and load every kernel for a device, the current one if None.

    Seconds the first time on a machine, milliseconds from CuPy's disk cache, microseconds from then
    on. Calls do it by themselves at a kernel's first use, but not in a graph capture.

    Raises:
        RuntimeError: without a GPU or NVRTC.
    """
    current = gpu.current_device()
    device = current if device is None else device
    with cupy.cuda.Device(device):
        for name in kernels():
            _load(name, device)


def _load(name: str, device: int) -> None:
    gpu.refuse_after_fork()
    kernel(name).load(device)
