"""Columns in, lists of full and partial tiles out: what FlexAttention's BlockMask is made of."""

import math
from itertools import pairwise
from typing import Any

from maskq_cupy import checks, gpu, plan
from maskq_cupy.call import Call, check_columns, columns_of
from maskq_cupy.facts import Facts
from maskq_cupy.reference import Blocks


def to_blocks(
    columns: Any,
    q_token_num: int,
    block_size: int | tuple[int, int] = (128, 128),
    *,
    out: Blocks | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Blocks:
    """Return which tiles of the mask are full and which are partial, by row and by column tile.

    A tile is full where all of its pairs are shown, partial where some are; one that hangs over
    the last row or column is never full. Counts, and the entries that they count, equal those of
    torch's ``create_block_mask`` for the same mask.

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE], on a GPU.
        q_token_num: number of query rows Q, those of padding included.
        block_size: (rows, columns) of a tile, or one int for both.
        out: Blocks of int32 arrays of the result's shapes, C-contiguous, on the GPU; is what is
            returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least
            ``blocks_scratch_nbytes(Q, N, block_size)`` bytes; allocated if None. Needed in a graph
            capture only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: require of each column that 0 <= UTE <= LTS <= Q, at the cost of a wait. Otherwise
            bounds are clipped to the Q rows.

    Returns:
        Blocks of int32 cupy.ndarray, shapes (1, 1, Qt) and (1, 1, Qt, Nt) for the ``kv_*`` and
        (1, 1, Nt) and (1, 1, Nt, Qt) for the ``q_*``, for Qt x Nt tiles; of the indices the first
        ``num_blocks`` count, ascending, and the rest are 0; or ``out``.

    Two launches; O(N + Qt * Nt) work; one allocation for the eight arrays and one for the scratch
    memory, none where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    block_size = checks.check_block_size(block_size)
    named = None if out is None else _named_lists(out)
    with Call({"columns": columns}, named, scratch, stream) as call:
        source = columns_of(call)
        column_num = source.shape[-2]
        if validate:
            check_columns(call, source, row_num)
        shapes = plan.block_shapes(*plan.tile_grid(row_num, column_num, block_size))
        if out is None:
            out, lists = _new_lists(call, shapes)
        else:
            lists = _given_lists(call, shapes)
        memory = call.scratch(plan.blocks_scratch_nbytes(row_num, column_num, block_size))
        call.run(
            *plan.block_launches(source.pointer, column_num, row_num, block_size, lists, memory)
        )
        return out


def write_lists(
    columns: Any,
    row_num: int,
    block_size: tuple[int, int],
    lists: Blocks,
    scratch: int,
    stream: int,
) -> None:
    """Check the columns and write their lists, as `to_blocks` does, to memory that is not checked.

    lists and scratch point to memory of the plan's sizes, and stream is of the columns' device: a
    caller that has just made them need not pay for questions about them.
    """
    with Call({"columns": columns}, stream=stream) as call:
        source = columns_of(call)
        call.run(
            *plan.block_launches(
                source.pointer, source.shape[-2], row_num, block_size, lists, scratch
            )
        )


def _named_lists(out: Blocks) -> dict[str, Any]:
    """Return the arrays to write, by the names that errors give them."""
    if not isinstance(out, Blocks):
        raise TypeError(f"out must be a maskq_cupy.Blocks of GPU arrays, got {type(out).__name__}")
    return {f"out.{name}": array for name, array in out._asdict().items()}


def _given_lists(call: Call, shapes: Blocks) -> Blocks:
    """Return the addresses of the caller's arrays, which are checked."""
    named = list(zip(_named_lists(shapes), shapes, strict=True))
    for name, shape in named:
        checks.check_target_form(name, call.targets[name], "int32", [shape])
    lists = Blocks(*(call.target(name, 4) for name, _ in named))
    _forbid_overlaps({name: call.targets[name] for name, _ in named})
    return lists


def list_starts(shapes: Blocks) -> list[int]:
    """Return where each list starts in one piece of memory, and where it ends, in 32-bit words.

    Each from a 16-byte boundary on.
    """
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + -(-math.prod(shape) // 4) * 4)
    return starts


def _new_lists(call: Call, shapes: Blocks) -> tuple[Blocks, Blocks]:
    """Allocate all eight arrays at once; return them, and their addresses."""
    *starts, end = list_starts(shapes)
    first = call.result("int32", 16, (end,))
    pointers = Blocks(*(first + 4 * start for start in starts))
    memory, ndarray = call.out.data, gpu.ndarray
    lists = (
        ndarray(shape, "int32", memory + 4 * start)
        for shape, start in zip(shapes, starts, strict=True)
    )
    return Blocks(*lists), pointers


def _forbid_overlaps(named: dict[str, Facts]) -> None:
    """Require that no two of the arrays share a byte."""
    filled = [(array.pointer, name, array) for name, array in named.items() if array.nbytes]
    in_memory = sorted(filled, key=lambda entry: entry[0])
    for (_, _, before), (_, name, array) in pairwise(in_memory):
        checks.forbid_overlap(name, array, [before])
