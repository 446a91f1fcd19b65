"""Columns in, lists of full and partial tiles out: what FlexAttention's BlockMask is made of."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from maskq_cupy import checks, gpu, plan
from maskq_cupy.call import Call, check_columns, columns_of
from maskq_cupy.facts import Facts
from maskq_cupy.plan import Tiles
from maskq_cupy.reference import Blocks
from maskq_cupy.rule import INT32_MAX


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
    call = Call({"columns": columns}, targets or None, scratch, stream)
    source = columns_of(call, checks.check_slices_form)
    if validate:
        check_columns(call, source, row_num)
    layout = layout_of(source.shape, row_num, block_size, width)
    tiles = layout.tiles
    counted = _needed(call, validate)
    if out is None:
        out, lists = _new_lists(call, layout)
    else:
        lists = _given_lists(call, layout)
    memory = call.scratch(layout.scratch_nbytes)
    run_lists(call, source, tiles, lists, memory, all_partial, counted)
    if validate:
        host = np.empty(2, np.int32)
        call.download(counted, host)
        if (host > tiles.width).any():
            _refuse_width(columns, tiles, host, all_partial, stream)
    return out


def slices_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return the (b, h) of columns."""
    return (1, 1) if len(shape) == 2 else (shape[0], shape[1])


class Part(NamedTuple):
    """A list's shape, its strides and its start in a piece of memory, in 32-bit words."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int


class Layout(NamedTuple):
    """The tiles of columns, and where in one piece of memory of `words` 32-bit words each list is.

    Each from a 16-byte boundary on.
    """

    tiles: Tiles
    parts: list[Part]
    words: int
    scratch_nbytes: int


def layout_of(
    shape: Sequence[int], row_num: int, block_size: tuple[int, int], width: Any
) -> Layout:
    """Check the width; return the layout of the lists of columns of that shape."""
    if width is not None:
        width = checks.check_width(width, INT32_MAX, INT32_MAX)
    return _layout(slices_of(shape), row_num, shape[-2], block_size, width)


@lru_cache
def _layout(
    lead: tuple[int, int],
    row_num: int,
    column_num: int,
    block_size: tuple[int, int],
    width: tuple[int, int] | None,
) -> Layout:
    """Known by its numbers alone, which most calls repeat: a fifth of the time of `to_blocks`."""
    tiles = plan.tiles(math.prod(lead), row_num, column_num, block_size, width)
    parts, end = [], 0
    for shape in plan.block_shapes(tiles, lead):
        parts.append(Part(shape, _strides(shape), end))
        end += -(-math.prod(shape) // 4) * 4
    return Layout(tiles, parts, end, plan.lists_scratch_nbytes(tiles))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides that torch.empty gives a tensor of that shape."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * (length or 1))
    return tuple(strides[::-1])


def _needed(call: Call, validate: bool) -> int:
    """Return the address of the two counts that the launches are to write, 0 for none."""
    if "needed" in call.targets:
        target = call.targets["needed"]
        checks.check_needed_form(target.dtype, target.shape)
        return call.target("needed", 4)
    return call.allocate(8) if validate else 0


def run_lists(
    call: Call,
    columns: Facts,
    tiles: Tiles,
    lists: Blocks,
    scratch: int,
    all_partial: bool,
    needed: int = 0,
) -> None:
    """Write the lists of a call's columns to addresses of the plan's sizes, as scratch is one."""
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


def _named_lists(out: Blocks) -> dict[str, Any]:
    """Return the arrays to write, by the names that errors give them."""
    if not isinstance(out, Blocks):
        raise TypeError(f"out must be a maskq_cupy.Blocks of GPU arrays, got {type(out).__name__}")
    return {f"out.{name}": array for name, array in out._asdict().items()}


def _given_lists(call: Call, layout: Layout) -> Blocks:
    """Return the addresses of the caller's arrays, which are checked."""
    names = [f"out.{name}" for name in Blocks._fields]
    for name, part in zip(names, layout.parts, strict=True):
        checks.check_target_form(name, call.targets[name], "int32", [part.shape])
    lists = Blocks(*(call.target(name, 4) for name in names))
    written = {name: array for name, array in call.targets.items() if name != "scratch"}
    _forbid_overlaps(written)
    return lists


def _new_lists(call: Call, layout: Layout) -> tuple[Blocks, Blocks]:
    """Allocate all eight arrays at once; return them, and their addresses."""
    call.out = None  # at most `needed` is given
    first = call.result("int32", 16, (layout.words,))
    memory, ndarray = call.out.data, gpu.ndarray
    lists = [ndarray(shape, "int32", memory + 4 * start) for shape, _, start in layout.parts]
    return Blocks(*lists), pointers_of(first, layout)


def pointers_of(first: int, layout: Layout) -> Blocks:
    """Return the addresses of the lists in memory from `first` on."""
    return Blocks(*[first + 4 * start for _, _, start in layout.parts])


def _forbid_overlaps(named: dict[str, Facts]) -> None:
    """Require that no two of the arrays share a byte."""
    filled = [(array.pointer, name, array) for name, array in named.items() if array.nbytes]
    in_memory = sorted(filled, key=lambda entry: entry[0])
    for (_, _, before), (_, name, array) in pairwise(in_memory):
        checks.forbid_overlap(name, array, [before])
