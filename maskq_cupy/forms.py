"""Columns in, other forms of the same mask out: four columns, a dense matrix."""

import math
from typing import Any

from maskq_cupy import checks, plan, tokens
from maskq_cupy.call import Call, check_columns, columns_of
from maskq_cupy.reference import DENSE_LIMIT
from maskq_cupy.typed import Out


def to_four_columns(
    columns: Any,
    q_token_num: int,
    *,
    out: Out | None = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return the columns in the older form of FlashMask's operators.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on a GPU.
        q_token_num: number of query rows Q.
        out: int32, of the result's shape, C-contiguous, on the GPU; is what is returned. Of one
            slice it may have the leading (1, 1) or not.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: require of each column that 0 <= UTE <= LTS <= Q, at the cost of a wait. Otherwise
            bounds are clipped to the Q rows.

    Returns:
        int32 cupy.ndarray, shape (N, 4) or (b, h, N, 4), columns [LTS, Q, 0, UTE]: hidden from the
        rows from LTS up to Q, and from 0 up to UTE; or ``out``.

    One launch; allocates the result where ``out`` is not given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    call = Call({"columns": columns}, out, stream=stream)
    source = columns_of(call, checks.check_slices_form)
    if validate:
        check_columns(call, source, row_num)
    four = call.result("int32", 16, (source.shape[-2], 4), source.shape[:-2])
    column_num = source.nbytes // 8  # of all slices
    if column_num:
        call.run(plan.four_columns_launch(source.pointer, column_num, row_num, four))
    return call.out


def split_columns(
    columns: Any, b: int, q_token_num: int, *, out: Out | None = None, stream: Any = None
) -> Out:
    """Return the columns of a pack of b equal parts as those of a batch, rows counted in each part.

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE], on a GPU.
        b: number of parts, of N / b columns and Q / b rows each.
        q_token_num: number of query rows Q.
        out: int32, shape (b, 1, N / b, 2), C-contiguous, on the GPU; is what is returned.
        stream: the launch stream, as in ``get_attn_mask_q``.

    Returns:
        int32 cupy.ndarray, shape (b, 1, N / b, 2): of part i
        ``clip(columns - i * Q / b, 0, Q / b)``; or ``out``.

    One launch; allocates the result where ``out`` is not given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    call = Call({"columns": columns}, out, stream=stream)
    source = columns_of(call)
    n = source.shape[-2]
    b, part_rows = tokens.check_split(n, b, q_token_num)
    parts = call.result("int32", 8, (b, 1, n // b, 2))
    if n:
        call.run(plan.split_launch(source.pointer, n, n // b, part_rows, parts))
    return call.out


def to_dense(
    columns: Any,
    q_token_num: int,
    *,
    limit: int = DENSE_LIMIT,
    out: Out | None = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return the mask as a matrix: does the row see the column?

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on a GPU.
        q_token_num: number of query rows Q.
        limit: the most pairs of row and column to allow, a byte each.
        out: bool, of the result's shape, C-contiguous, on the GPU; is what is returned. Of one
            slice it may have the leading (1, 1) or not.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: require of each column that 0 <= UTE <= LTS <= Q, at the cost of a wait. Otherwise
            bounds are clipped to the Q rows.

    Returns:
        bool cupy.ndarray, shape (Q, N) or (b, h, Q, N); or ``out``.

    One launch; allocates the result where ``out`` is not given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    call = Call({"columns": columns}, out, stream=stream)
    source = columns_of(call, checks.check_slices_form)
    if validate:
        check_columns(call, source, row_num)
    lead, n = source.shape[:-2], source.shape[-2]
    slices = math.prod(lead) if lead else 1
    checks.check_dense_size(row_num, n, limit, slices)
    shown = call.result("bool", 1, (row_num, n), lead)
    if row_num and n and slices:
        call.run(plan.dense_launch(source.pointer, n, row_num, shown, slices))
    return call.out
