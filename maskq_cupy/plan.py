"""Which kernels a call launches, on how many blocks, with which arguments.

From host-known numbers alone, and for pointers of any kind that can be added to, so that the tests
run the same launches on the CPU.
"""

from typing import Any, NamedTuple

from maskq_cupy.compile import BLOCK_THREADS, OWN_SEGMENTS
from maskq_cupy.rule import Rule

EDGES_NBYTES = 8 * 1024  # int2 for each of at most 1,024 groups of row tiles


class Launch(NamedTuple):
    kernel: str
    grid: int
    arguments: tuple


class Batch(NamedTuple):
    """A pack's cu_seqlens: pointers, and strides in 32-bit words (1 for int32, 2 for int64)."""

    q: Any
    k: Any
    q_stride: int
    k_stride: int
    size: int


def rule_launch(
    batch: Batch, rule: Rule, columns: Any, column_num: int, block_threads: int = BLOCK_THREADS
) -> Launch:
    """Return the launch that writes the columns of a rule; column_num is at least 1."""
    steps, grid = _column_tiles(column_num, block_threads)
    return Launch("columns_rule", grid, (*batch, *rule, columns, column_num, steps))


def _column_tiles(column_num: int, block_threads: int) -> tuple[int, int]:
    """Return the pairs of columns that a thread writes, and the blocks that write them all."""
    # More columns a thread save searches; fewer fill the GPU where there are few.
    steps = 1 if column_num < 1 << 19 else 4 if column_num < 1 << 24 else 16
    return steps, column_num // (2 * block_threads * steps) + 1  # may start with half a pair


def scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that a call with attn_mask_kv of so many rows needs.

    8 a row for its two staircases, and 8 KiB. As much is enough for a tree of so many segments.

    >>> scratch_nbytes(1000)
    16192
    """
    return EDGES_NBYTES + 2 * _staircase_nbytes(q_token_num)


def _staircase_nbytes(row_num: int) -> int:
    return (4 * row_num + 15) // 16 * 16


def interval_launches(
    batch: Batch,
    intervals: Any,
    is_int64: bool,
    row_num: int,
    columns: Any,
    column_num: int,
    scratch: Any,
    block_threads: int = BLOCK_THREADS,
) -> tuple[Launch, Launch]:
    """Return the launches that write the columns of intervals; both numbers are at least 1."""
    rows = _rows_launch(batch, intervals, is_int64, row_num, scratch, block_threads)
    tiles_per_group, ends, starts, edges = rows.arguments[-4:]
    inverse = Launch(
        "columns_of_staircases",
        column_num // (4 * block_threads) + 1,
        (ends, starts, edges, row_num, tiles_per_group, rows.grid, columns, column_num),
    )
    return rows, inverse


def _rows_launch(
    batch: Batch, intervals: Any, is_int64: bool, row_num: int, scratch: Any, block_threads: int
) -> Launch:
    """Return the launch that scans the rows; scratch holds the edges, the ends and the starts."""
    tile = 4 * block_threads
    tile_num = -(-row_num // tile)
    tiles_per_group = -(-tile_num // tile)
    group_num = -(-tile_num // tiles_per_group)
    ends = scratch + EDGES_NBYTES
    starts = ends + _staircase_nbytes(row_num)
    arguments = (*batch, intervals, is_int64, row_num, tiles_per_group, ends, starts, scratch)
    return Launch("row_staircases", group_num, arguments)


def excess_launches(
    batch: Batch,
    intervals: Any,
    is_int64: bool,
    row_num: int,
    pairs: Any,
    rows_from_first: Any,
    scratch: Any,
    block_threads: int = BLOCK_THREADS,
) -> tuple[Launch, Launch]:
    """Return the launches that count the pairs shown too many; row_num is at least 1.

    pairs, and rows_from_first if it is not 0, point to 64 bits that are 0 before.
    """
    rows = _rows_launch(batch, intervals, is_int64, row_num, scratch, block_threads)
    arguments = (*rows.arguments, pairs, rows_from_first)
    return rows, Launch("excess_of_rows", rows.grid, arguments)


def minima_nbytes(segment_num: int, own_segments: int = OWN_SEGMENTS) -> int:
    """Return the bytes of scratch memory that a forest of so many segments needs, often none.

    Never more than ``scratch_nbytes(segment_num)``.
    """
    return 4 * sum(_levels(segment_num)) if segment_num > own_segments else 0


def _levels(segment_num: int) -> list[int]:
    """Return the entries of each level of minima, up to the first of at most 32."""
    levels = []
    size = segment_num
    while size > 32:
        size = -(-size // 32)
        levels.append(size)
    return levels


def tree_launches(
    batch: Batch,
    parent: Any,
    parent_stride: int,
    columns: Any,
    column_num: int,
    scratch: Any,
    block_threads: int = BLOCK_THREADS,
    own_segments: int = OWN_SEGMENTS,
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of a forest; column_num is at least 1.

    scratch holds ``minima_nbytes(batch.size)`` bytes, and is not used where these are none.
    """
    steps, grid = _column_tiles(column_num, block_threads)
    tree = (*batch, parent, parent_stride)
    if batch.size <= own_segments:
        return (Launch("columns_tree", grid, (*tree, 0, columns, column_num, steps)),)
    top = _levels(batch.size)[-1]
    return (
        Launch("segment_minima", top, (parent, parent_stride, batch.size, scratch)),
        Launch("columns_tree", grid, (*tree, scratch, columns, column_num, steps)),
    )
