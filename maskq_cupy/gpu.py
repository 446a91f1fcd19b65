"""CuPy and the GPU: found when a call first asks for its device, not before.

`cupy`, `runtime` and `driver` are None until then; afterwards a call looks them up here at no cost.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

from maskq_cupy import installing

cupy: Any = None
runtime: Any = None  # cupy.cuda.runtime
driver: Any = None  # cupy.cuda.driver
ndarray: Any = None  # cupy.ndarray
get_current_stream: Any = None  # cupy.cuda.get_current_stream

_MISSING_CUPY = (
    "maskq_cupy computes on the GPU with CuPy, which is not installed: "
    f"{installing.EITHER_CUPY}; "
    "maskq_cupy.reference needs NumPy alone"
)
UNUSABLE_CACHE = (
    "CuPy keeps compiled kernels in a folder that it cannot use: "
    "set CUPY_CACHE_DIR to one that it can write to, got"
)


def require_cupy() -> Any:
    """Return the cupy module, or raise ImportError with one line that says what to do."""
    global cupy, runtime, driver, ndarray, get_current_stream
    if cupy is None:
        try:
            import cupy as found
        except ImportError:
            raise ImportError(_MISSING_CUPY) from None
        except OSError as error:  # it makes the folder when it is imported
            raise ImportError(f"{UNUSABLE_CACHE} {error}") from None
        runtime, driver = found.cuda.runtime, found.cuda.driver
        get_current_stream = found.cuda.get_current_stream
        ndarray, cupy = found.ndarray, found
    return cupy


def gpu_problem() -> str | None:
    """Return None where CuPy and a CUDA device can be used, else what is missing in one line."""
    try:
        require_cupy()
        devices = runtime.getDeviceCount()
    except ImportError as error:
        return str(error)
    except Exception as error:  # CUDARuntimeError, or whatever a half-installed driver raises
        return f"no CUDA device: {error}"
    return None if devices else "no CUDA device: the driver reports none"


def _first_device() -> int:
    """Return the current CUDA device, or raise with what is missing and where to go without one.

    Then let CUDA's own function answer: every call asks it, in half the time.
    """
    global current_device
    if cupy is None:
        require_cupy()
    try:
        device = runtime.getDevice()
    except runtime.CUDARuntimeError as error:
        if error.status == _INITIALIZATION_ERROR:  # another library used CUDA before the fork
            raise RuntimeError(_FORKED) from None
        raise RuntimeError(
            f"{gpu_problem() or error}; maskq_cupy.reference computes the same on the CPU"
        ) from None
    current_device = runtime.getDevice
    return device


current_device: Callable[[], int] = _first_device
_INITIALIZATION_ERROR = 3  # cudaErrorInitializationError
_FORKED = (
    "CUDA cannot be used after a fork of a process that has used it: start processes with "
    "multiprocessing's 'spawn' method"
)


@cache
def refuse_after_fork() -> None:
    """Have every call in a child that is forked from now on raise, where CUDA might hang.

    Every call asks for the current device first, so that this costs nothing a call.
    """

    def refuse() -> int:
        raise RuntimeError(_FORKED)

    def in_child() -> None:
        global current_device
        current_device = refuse

    os.register_at_fork(after_in_child=in_child)
