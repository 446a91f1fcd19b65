"""What a launch needs to know of an array, from any framework.

Facts are read without building an array where the framework allows it (CuPy, torch, the CUDA array
interface); DLPack serves the rest.
"""

import ctypes
import math
import sys
from typing import Any

import numpy as np

from maskq_cupy import gpu, streams

_DLPACK_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged


class Facts:
    """What is known of an array on a GPU.

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
    kept: Any = None  # what else must live so long


# By table: str() of a NumPy dtype costs more than reading the rest of the array's facts.
_NAMES = {np.dtype(t): np.dtype(t).name for t in "?bhilqBHILQefd"}
_TORCH_NAMES: dict[Any, str] = {}


def facts_of(value: Any, name: str, launch: int, current: int) -> Facts | None:
    """Return the facts of an array on a GPU, or None if the value is a list or on the host.

    launch and current are the pointers of the launch stream and of CuPy's current one.
    """
    if isinstance(value, gpu.ndarray):
        facts, data, dtype = Facts(), value.data, value.dtype
        facts.pointer = data.ptr
        facts.dtype = _NAMES.get(dtype) or str(dtype)
        facts.shape = value.shape
        facts.nbytes = value.nbytes
        facts.device = data.device_id
        facts.contiguous = value._c_contiguous
        facts.stream = current
        facts.value = value
        return facts
    if type(value) is _Tensor and value.is_cuda:
        return _from_torch(value, name)
    return _of_framework(value, name, launch)


def _of_framework(value: Any, name: str, launch: int) -> Facts | None:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(value, name) if value.is_cuda else None
    if isinstance(value, (list, tuple, np.ndarray)):
        return None
    if hasattr(value, "__dlpack_device__"):
        if int(value.__dlpack_device__()[0]) in _DLPACK_CUDA_DEVICES:
            return _from_dlpack(value, name, launch)
        return None
    if hasattr(value, "__cuda_array_interface__"):
        return _from_cuda_array_interface(value)
    return None


_Tensor: Any = None  # torch.Tensor, once there was one on a GPU
_stream_of_torch: Any = None  # 40 times faster than torch.cuda.current_stream


def _find_torch() -> None:
    global _Tensor, _stream_of_torch
    torch = sys.modules["torch"]
    _stream_of_torch = torch._C._cuda_getCurrentRawStream
    _Tensor = torch.Tensor


def _from_torch(value: Any, name: str) -> Facts:
    if _Tensor is None:
        _find_torch()
    facts, dtype, device = Facts(), value.dtype, value.get_device()
    try:
        facts.pointer = value.data_ptr()
        facts.shape = value.shape
        facts.nbytes = value.nbytes
        facts.contiguous = value.is_contiguous()
    except Exception as error:  # sparse, nested, fake
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{name} must be a dense tensor, got {type(value).__name__} of layout {value.layout} "
            f"without plain memory: {reason}"
        ) from error
    facts.dtype = _TORCH_NAMES.get(dtype) or _torch_name(dtype)
    facts.device = device
    facts.stream = _stream_of_torch(device)
    facts.value = value
    return facts


def _torch_name(dtype: Any) -> str:
    name = _TORCH_NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


def _from_dlpack(value: Any, name: str, launch: int) -> Facts:
    with streams.as_current(launch):
        try:
            array = gpu.cupy.from_dlpack(value)
        except Exception as error:  # whatever a framework raises that does not give it away
            raise TypeError(
                f"{name} must export by DLPack, got {type(error).__name__}: {error}"
            ) from error
    facts = facts_of(array, name, launch, launch)
    assert facts is not None  # of a CuPy array
    facts.stream = None
    facts.writable = not _is_read_only(value)
    facts.value, facts.kept = value, array
    return facts


def _is_read_only(value: Any) -> bool:
    """Does an array that exports by DLPack say outside of it that it must not be written to?"""
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return True  # a constant, whatever its capsule says
    interface = getattr(value, "__cuda_array_interface__", None)
    return interface is not None and bool(interface["data"][1])


def is_read_only_by_capsule(value: Any) -> bool:
    """Does an array's versioned DLPack capsule have the flag that it must not be written to?"""
    try:
        capsule = value.__dlpack__(max_version=(1, 0))
    except Exception:  # an older protocol, which has no such flag
        return False
    api, name = ctypes.pythonapi, b"dltensor_versioned"
    api.PyCapsule_IsValid.argtypes = api.PyCapsule_GetPointer.argtypes = (
        *(ctypes.py_object, ctypes.c_char_p),
    )
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    if not api.PyCapsule_IsValid(capsule, name):
        return False
    managed = _ManagedTensor.from_address(api.PyCapsule_GetPointer(capsule, name))
    return bool(managed.flags & 1)


class _ManagedTensor(ctypes.Structure):
    """The head of DLManagedTensorVersioned."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    )


def _from_cuda_array_interface(value: Any) -> Facts:
    interface = value.__cuda_array_interface__
    pointer, read_only = interface["data"]
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")
    facts = Facts()
    facts.pointer = pointer
    facts.dtype = str(dtype)
    facts.shape = shape
    facts.nbytes = math.prod(shape) * dtype.itemsize
    facts.device = _device_of(pointer) if pointer else gpu.current_device()
    facts.contiguous = strides is None or _is_contiguous(shape, strides, dtype.itemsize)
    facts.writable = not read_only
    # None in version 2, and from Numba for its default stream, which is the legacy one.
    facts.stream = streams.normal(interface.get("stream") or streams.LEGACY_STREAM)
    facts.value = value
    return facts


def _device_of(pointer: int) -> int:
    return gpu.runtime.pointerGetAttributes(pointer).device


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
