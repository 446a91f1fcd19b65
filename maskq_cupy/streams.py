"""The stream of a call's launches, and its order with the streams that its arrays are used on."""

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

from maskq_cupy import gpu

LEGACY_STREAM = 0  # also spelled 1: a pointer is given as 0 from where it is found on
_DEFAULT_STREAMS = 2  # legacy and per-thread have no address, and belong to any device


def launch_stream(stream: Any) -> int:
    """Return the pointer of the stream that the argument `stream` means.

    A CuPy stream, a raw pointer, or what has `__cuda_stream__` or `.cuda_stream`.
    """
    return normal(_pointer(stream))


def _pointer(stream: Any) -> int:
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


def normal(stream: int) -> int:
    return LEGACY_STREAM if stream == 1 else stream


def check_stream(stream: int) -> None:
    """Require that a stream which the caller named belongs to the current device."""
    if stream > _DEFAULT_STREAMS and gpu.driver.streamGetCtx(stream) != _context():
        raise ValueError("stream must belong to the arrays' device, got a stream of another device")


def _context() -> int:
    gpu.runtime.setDevice(gpu.runtime.getDevice())  # a new thread has no context yet
    return gpu.driver.ctxGetCurrent()


def is_capturing(stream: int) -> bool:
    """Is the stream recording a CUDA graph? The legacy default stream cannot."""
    return stream != LEGACY_STREAM and gpu.runtime.streamIsCapturing(stream)


class _RawStream(NamedTuple):
    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def as_current(stream: int) -> Any:
    """Return a context in which the stream is CuPy's current one."""
    return gpu.cupy.cuda.Stream.from_external(_RawStream(stream))


def _order(first: int, then: int) -> None:
    """Make what comes on stream `then` wait for what is on stream `first`."""
    event = gpu.runtime.eventCreateWithFlags(gpu.runtime.eventDisableTiming)
    gpu.runtime.eventRecord(event, first)
    gpu.runtime.streamWaitEvent(then, event)
    gpu.runtime.eventDestroy(event)  # once it is no longer waited for


def wait_for_producers(launch: int, producers: set[int]) -> None:
    """Order the launch stream behind the streams on which the arrays' frameworks work."""
    others = producers - {launch}
    if others and not is_capturing(launch):
        for other in others:
            _order(other, launch)


def release_to_producers(launch: int, producers: set[int], held: list[Any]) -> None:
    """Order those streams behind the launch, so that the arrays may be freed, reused or read at
    once; keep alive what is held until then."""
    others = producers - {launch}
    if (others or held) and not is_capturing(launch):
        for other in others:
            _order(launch, other)
        if held:
            _hold_until_done(held, launch)


# Arrays of frameworks whose stream is unknown, kept until the launch that read them is done.
_in_flight: collections.deque[tuple[Any, Any]] = collections.deque()


def _hold_until_done(values: Iterable[Any], launch_stream: int) -> None:
    """Keep the values alive until the work that is now on the stream is done; drop what is done."""
    event = gpu.cupy.cuda.Event(disable_timing=True)
    gpu.runtime.eventRecord(event.ptr, launch_stream)
    _in_flight.append((event, tuple(values)))
    while _in_flight and _in_flight[0][0].done:
        _in_flight.popleft()
