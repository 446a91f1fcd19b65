"""The arrays of a call on a packed batch: found or uploaded, their forms and values checked."""

from typing import Any

import numpy as np

from maskq_cupy import arrays, checks, gpu, launch, plan
from maskq_cupy.arrays import GpuArray, Streams

_STRIDES = {"int32": 1, "int64": 2}  # in 32-bit words


# What a call was given: its inputs on a GPU, none where they are on the host; out; scratch; all of
# these; the current device; the other one that they are on, if so; its streams.
Call = tuple[
    list[GpuArray], GpuArray | None, GpuArray | None, list[GpuArray], int, int | None, Streams
]


def call_of(named: dict[str, Any], out: Any, scratch: Any, stream: Any) -> Call:
    """Find the arrays of a call, the devices and the streams."""
    device = gpu.current_device()
    streams = arrays.streams_of(stream, device)
    inputs = inputs_on_gpu(named, streams)
    given = inputs[:]
    target = memory = None
    if out is not None:
        target = launch.on_gpu(out, "out", streams)
        given.append(target)
    if scratch is not None:
        memory = launch.on_gpu(scratch, "scratch", streams)
        given.append(memory)
    other = launch.other_device(given, device)
    if stream is not None and other is None:
        arrays.check_stream(streams.launch)
    return inputs, target, memory, given, device, other, streams


def inputs_on_gpu(named: dict[str, Any], streams: Streams) -> list[GpuArray]:
    """Return the facts of the input arrays on a GPU, or nothing where all are on the host."""
    found: list[Any] = []
    before = array = None
    for name, value in named.items():
        if value is not before:  # cu_seqlens_q is often cu_seqlens_k too, and read once then
            array = arrays.gpu_array(value, name, streams)
            before = value
        found.append(array)
    if None not in found:
        return found
    if any(found):
        places = ", ".join(
            f"{name} on {'the host' if array is None else 'a GPU'}"
            for name, array in zip(named, found, strict=True)
        )
        raise TypeError(f"the input must be all on one GPU or all on the host, got {places}")
    return []


def check_cuts(q: GpuArray, k: GpuArray) -> None:
    """Check the types, shapes and contiguity of cu_seqlens_q and cu_seqlens_k."""
    checks.check_cu_seqlens_form("cu_seqlens_q", q.dtype, q.shape)
    if k is not q:
        checks.check_cu_seqlens_form("cu_seqlens_k", k.dtype, k.shape)
        checks.check_same_batch(q.shape[0], k.shape[0])
    if not (q.contiguous and k.contiguous):
        check_contiguous("cu_seqlens_q", q)
        check_contiguous("cu_seqlens_k", k)


def check_intervals(intervals: GpuArray) -> int:
    """Check the type, shape and contiguity of attn_mask_kv; return its number of rows."""
    row_num = checks.check_intervals_form(intervals.dtype, intervals.shape)
    check_contiguous("attn_mask_kv", intervals)
    return row_num


def check_contiguous(name: str, array: GpuArray) -> None:
    if not array.contiguous:
        raise ValueError(
            f"{name} must be C-contiguous, got a strided view of shape {tuple(array.shape)}"
        )


def check_out(target: GpuArray, inputs: list[GpuArray], column_num: int | None) -> int:
    """Return the number of columns that `out` has room for."""
    shape = target.shape
    room = checks.check_columns_form(target.dtype, shape, "out")
    if column_num is not None and room != column_num:
        raise ValueError(
            f"out must have N = kv_token_num = {column_num} columns, got shape {tuple(shape)}"
        )
    launch.check_writable("out", target, alignment=8)
    launch.forbid_overlap("out", target, inputs)
    return room


def scratch_memory(
    memory: GpuArray | None, nbytes: int, others: list[GpuArray | None], streams: Streams
) -> tuple[int, Any]:
    """Return the pointer of scratch memory, given or from the pool, and what keeps it alive."""
    if memory is None:
        if nbytes == 0:
            return 0, None
        launch.forbid_in_capture(
            streams, f"scratch memory is allocated: give scratch= of {nbytes} bytes"
        )
        pool = arrays.allocate(nbytes, streams)
        return pool.ptr, pool
    if (
        memory.nbytes < nbytes
        or not memory.contiguous
        or not memory.writable
        or memory.pointer % 16
    ):
        raise ValueError(
            "scratch must be writable, contiguous, 16-byte aligned and of at least "
            f"{nbytes} bytes, got {memory.nbytes} bytes at {memory.pointer:#x}, "
            f"contiguous={memory.contiguous}, writable={memory.writable}"
        )
    launch.forbid_overlap("scratch", memory, others)
    return memory.pointer, memory.value


def upload(parts: list[np.ndarray], streams: Streams) -> list[GpuArray]:
    """Copy int64 arrays of shape (n,) to the current device in one transfer."""
    launch.forbid_in_capture(streams, "host input is copied: give arrays on the GPU")
    memory = arrays.upload(np.concatenate(parts), streams.launch)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    split = [memory[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
    return [launch.on_gpu(array, "the copy", streams) for array in split]


def upload_batch(host: checks.HostBatch, streams: Streams) -> list[GpuArray]:
    """Copy a host batch to the current device: cu_seqlens_q, cu_seqlens_k, and any intervals."""
    parts = [host.cu_seqlens_q, host.cu_seqlens_k]
    if host.attn_mask_kv is not None:
        parts.append(host.attn_mask_kv.reshape(-1))
    return upload(parts, streams)


def read_back(array: GpuArray, streams: Streams, entries: slice = slice(-1, None)) -> np.ndarray:
    """Copy entries of an array of shape (n,) to the host, behind the work on the launch stream."""
    start, stop, _ = entries.indices(array.shape[0])
    pointer = array.pointer + start * 4 * stride(array)
    return arrays.download(pointer, array.dtype, stop - start, streams.launch)


def read_column_num(k: GpuArray, given: list[GpuArray], streams: Streams) -> int:
    """Read kv_token_num back as the last entry of cu_seqlens_k."""
    launch.forbid_in_capture(streams, "kv_token_num is read back: give it, or out=")
    arrays.wait_for_producers(given, streams)
    return checks.check_token_num(int(read_back(k, streams)[-1]))


def check_cuts_values(q: GpuArray, k: GpuArray, streams: Streams) -> tuple[int, int]:
    """Read cu_seqlens back and check their values; return the sequences' rows and keys in all."""
    counted = slice(0, k.shape[0])
    host_q, host_k = (read_back(array, streams, counted) for array in (q, k))
    checks.check_cu_seqlens_values("cu_seqlens_q", host_q)
    checks.check_cu_seqlens_values("cu_seqlens_k", host_k)
    return int(host_q[-1]), int(host_k[-1])


def stride(array: GpuArray) -> int:
    """Return an index array's stride in 32-bit words."""
    return _STRIDES[array.dtype]


def plan_batch(q: GpuArray, k: GpuArray) -> plan.Arguments:
    strides = _STRIDES[q.dtype], _STRIDES[k.dtype]
    return plan.pack_arguments(q.pointer, k.pointer, *strides, k.shape[0] - 1)


def plan_rows(intervals: GpuArray, row_num: int) -> plan.Arguments:
    return plan.interval_arguments(intervals.pointer, intervals.dtype == "int64", row_num)
