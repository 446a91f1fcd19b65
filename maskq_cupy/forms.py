"""Columns in, other forms of the same mask out: four columns, a dense matrix.

Also what all of these functions ask of their `columns`, `out` and `scratch`.
"""

from typing import Any

import numpy as np

from maskq_cupy import arrays, checks, gpu, launch, plan
from maskq_cupy.arrays import GpuArray, Streams, cupy
from maskq_cupy.reference import DENSE_LIMIT


def to_four_columns(columns: Any, q_token_num: int, *, out: Any = None, stream: Any = None) -> Any:
    """Return the columns in the older form of FlashMask's operators.

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE], on a GPU.
        q_token_num: number of query rows Q.
        out: int32, shape (N, 4) or (1, 1, N, 4), C-contiguous, on the GPU; is what is returned.
        stream: the launch stream, as in ``get_attn_mask_q``.

    Returns:
        int32 cupy.ndarray, shape (N, 4), columns [LTS, Q, 0, UTE]: hidden from the rows from LTS
        up to Q, and from 0 up to UTE; or ``out``.

    One launch; allocates the result where ``out`` is not given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    device = gpu.current_device()
    streams = arrays.streams_of(stream, device)
    source = columns_on_gpu(columns, streams)
    column_num = source.shape[-2]
    target = None if out is None else launch.on_gpu(out, "out", streams)
    given = [array for array in (source, target) if array is not None]
    other = launch.other_device(given, device)
    if other is not None:
        with cupy.cuda.Device(other):
            return to_four_columns(columns, q_token_num, out=out, stream=stream)
    if stream is not None:
        arrays.check_stream(streams.launch)
    if target is None:
        out = launch.new_result((column_num, 4), np.int32, streams)
    else:
        shapes = (column_num, 4), (1, 1, column_num, 4)
        check_result("out", target, "int32", shapes, alignment=16)
        launch.forbid_overlap("out", target, [source])
    if column_num:
        pointer = out.data.ptr if target is None else target.pointer
        four = plan.four_columns_launch(source.pointer, column_num, row_num, pointer)
        launch.run([four], given, device, streams)
    return out


def to_dense(
    columns: Any, q_token_num: int, *, limit: int = DENSE_LIMIT, out: Any = None, stream: Any = None
) -> Any:
    """Return the mask as a matrix: does the row see the column?

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE], on a GPU.
        q_token_num: number of query rows Q.
        limit: the most pairs of row and column to allow, a byte each.
        out: bool, shape (Q, N) or (1, 1, Q, N), C-contiguous, on the GPU; is what is returned.
        stream: the launch stream, as in ``get_attn_mask_q``.

    Returns:
        bool cupy.ndarray, shape (Q, N); or ``out``.

    One launch; allocates the result where ``out`` is not given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    device = gpu.current_device()
    streams = arrays.streams_of(stream, device)
    source = columns_on_gpu(columns, streams)
    column_num = source.shape[-2]
    checks.check_dense_size(row_num, column_num, limit)
    target = None if out is None else launch.on_gpu(out, "out", streams)
    given = [array for array in (source, target) if array is not None]
    other = launch.other_device(given, device)
    if other is not None:
        with cupy.cuda.Device(other):
            return to_dense(columns, q_token_num, limit=limit, out=out, stream=stream)
    if stream is not None:
        arrays.check_stream(streams.launch)
    if target is None:
        out = launch.new_result((row_num, column_num), np.bool_, streams)
    else:
        shapes = (row_num, column_num), (1, 1, row_num, column_num)
        check_result("out", target, "bool", shapes, alignment=1)
        launch.forbid_overlap("out", target, [source])
    if row_num and column_num:
        pointer = out.data.ptr if target is None else target.pointer
        dense = plan.dense_launch(source.pointer, column_num, row_num, pointer)
        launch.run([dense], given, device, streams)
    return out


def columns_on_gpu(columns: Any, streams: Streams) -> GpuArray:
    """Return the facts of the argument `columns`, of a form that a kernel can read."""
    array = arrays.gpu_array(columns, "columns", streams)
    if array is None:
        raise TypeError(
            f"columns must be an array on a GPU, got {type(columns).__name__} on the host: "
            "maskq_cupy.reference has this function for those"
        )
    checks.check_columns_form(array.dtype, array.shape)
    if not array.contiguous:
        raise ValueError(
            f"columns must be C-contiguous, got a strided view of shape {tuple(array.shape)}"
        )
    if array.pointer % 8:
        raise ValueError(f"columns must be 8-byte aligned, got address {array.pointer:#x}")
    return array


def check_result(
    name: str, target: GpuArray, dtype: str, shapes: tuple[tuple[int, ...], ...], alignment: int
) -> None:
    """Require that a result of one of these shapes can be written to an array of the caller's."""
    found = tuple(target.shape)
    if target.dtype != dtype or found not in shapes:
        kind = TypeError if target.dtype != dtype else ValueError
        either = " or ".join(map(str, shapes))
        raise kind(f"{name} must be {dtype} of shape {either}, got {target.dtype} of shape {found}")
    launch.check_writable(name, target, alignment)
