"""Columns in, lists of full and partial tiles out: what FlexAttention's BlockMask is made of."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from maskq_cupy import checks, gpu, plan
from maskq_cupy.call import Call, check_columns, columns_of
from maskq_cupy.facts import Facts
from maskq_cupy.plan import Tiles
from maskq_cupy.reference import Blocks


def to_blocks(
    columns: Any,
    q_token_num: int,
    block_size: int | tuple[int, int] = (128, 128),
    *,
    width: int | tuple[int, int] | None = None,
    needed: Any = None,
    all_partial: bool = False,
    out: Blocks | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Blocks:
    """Return which tiles of the mask are full and which are partial, by row and by column tile.

    A tile is full where all of its pairs are shown, partial where some are; one that hangs over
    the last row or column is never full. Counts, and the entries that they count, equal those of
    torch's ``create_block_mask`` for the same mask.

    With a ``width`` below what a tile needs, **its list is cut, and so pairs are hidden**: a count
    is at most the width. `blocks_width` gives a width that is enough for a pack. ``needed`` and
    ``validate=True`` tell whether a width was enough.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on a GPU.
        q_token_num: number of query rows Q, those of padding included.
        block_size: (rows, columns) of a tile, or one int for both.
        width: (w_kv, w_q), or one int for both: the entries that there is room for in a row tile's
            list and in a column tile's, at most as many as there are tiles; None: as many.
        needed: int32, shape (2,), C-contiguous, on the GPU: receives the widths that cut nothing,
            without a wait.
        all_partial: list every tile that shows a pair as partial, and none as full.
        out: Blocks of int32 arrays of the result's shapes, C-contiguous, on the GPU; is what is
            returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least
            ``blocks_scratch_nbytes(Q, N, block_size, slices=b * h, width=width)`` bytes; allocated
            if None. Needed in a graph capture only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: require a width that cuts nothing, and of each column that
            0 <= UTE <= LTS <= Q, at the cost of waits. Otherwise bounds are clipped to the Q rows.

    Returns:
        Blocks of int32 cupy.ndarray, shapes (b, h, Qt) and (b, h, Qt, w_kv) for the ``kv_*`` and
        (b, h, Nt) and (b, h, Nt, w_q) for the ``q_*``, for Qt x Nt tiles; of the indices the first
        ``num_blocks`` count, ascending, and the rest are 0; or ``out``. (N, 2) is one slice,
        (1, 1, N, 2).

    Two launches, whatever b and h. O(N + Qt * Nt) work a slice; with a width below the tiles, and
    columns of a pack, O(N) and the entries of the lists. One allocation for the eight arrays and
    one for the scratch memory, none where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    block_size = checks.check_block_size(block_size)
    targets = {} if out is None else _named_lists(out)
    if needed is not None:
        targets["needed"] = needed
    with Call({"columns": columns}, targets or None, scratch, stream) as call:
        source = columns_of(call, checks.check_slices_form)
        if validate:
            check_columns(call, source, row_num)
        lead = slices_of(source.shape)
        tiles = plan.tiles(math.prod(lead), row_num, source.shape[-2], block_size, width)
        shapes = plan.block_shapes(tiles, lead)
        counted = _needed(call, validate)
        if out is None:
            out, lists = _new_lists(call, shapes)
        else:
            lists = _given_lists(call, shapes)
        memory = call.scratch(plan.lists_scratch_nbytes(tiles))
        _run(call, source, tiles, lists, memory, all_partial, counted)
        if validate:
            host = np.empty(2, np.int32)
            call.download(counted, host)
            if (host > tiles.width).any():
                _refuse_width(columns, tiles, host, all_partial, stream)
        return out


def slices_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return the (b, h) of columns."""
    return (1, 1) if len(shape) == 2 else (shape[0], shape[1])


def _needed(call: Call, validate: bool) -> int:
    """Return the address of the two counts that the launches are to write, 0 for none."""
    if "needed" in call.targets:
        target = call.targets["needed"]
        checks.check_needed_form(target.dtype, target.shape)
        return call.target("needed", 4)
    return call.allocate(8) if validate else 0


def _run(
    call: Call,
    columns: Facts,
    tiles: Tiles,
    lists: Blocks,
    scratch: int,
    all_partial: bool,
    needed: int = 0,
) -> None:
    zeroed = [(scratch, plan.zeroed_nbytes(tiles)), (needed, 8 if needed else 0)]
    launches = plan.block_launches(columns.pointer, tiles, lists, scratch, all_partial, needed)
    call.run(*launches, zeroed=[piece for piece in zeroed if piece[1]])


def _refuse_width(
    columns: Any, tiles: Tiles, needed: np.ndarray, all_partial: bool, stream: Any
) -> None:
    """Raise the error that names a tile that has more than there is room for; waits."""
    lists = to_blocks(
        columns, tiles.row_num, tiles.block_size, width=tuple(needed.clip(1)),
        all_partial=all_partial, stream=stream,
    )  # fmt: skip
    with lists.kv_num_blocks.device:
        gpu.runtime.deviceSynchronize()
        row, full_row, column, full_column = (gpu.cupy.asnumpy(counts) for counts in lists[::2])
    by_row, by_column = np.stack([row, full_row]), np.stack([column, full_column])
    checks.check_width_values(tiles.width, by_row, by_column)


def write_lists(
    columns: Any, tiles: Tiles, lists: Blocks, scratch: int, stream: int, all_partial: bool = False
) -> None:
    """Check the columns and write their lists, as `to_blocks` does, to memory that is not checked.

    lists and scratch point to memory of the plan's sizes, and stream is of the columns' device: a
    caller that has just made them need not pay for questions about them.
    """
    with Call({"columns": columns}, stream=stream) as call:
        source = columns_of(call, checks.check_slices_form)
        _run(call, source, tiles, lists, scratch, all_partial)


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
    written = {name: array for name, array in call.targets.items() if name != "scratch"}
    _forbid_overlaps(written)
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
    call.out = None  # at most `needed` is given
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
