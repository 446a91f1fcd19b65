"""Which kernels a call launches, on how many blocks, with which arguments.

From host-known numbers alone, and for pointers of any kind that can be added to, so that the tests
run the same launches on the CPU.
"""

from typing import Any, NamedTuple

from maskq_cupy import checks
from maskq_cupy.compile import BLOCK_THREADS, FEW_SEGMENTS, FEW_TILES_SHIFT
from maskq_cupy.reference import Blocks
from maskq_cupy.rule import Rule

EDGES_NBYTES = 4 * 1024  # int2 for each of at most 512 groups of row tiles


class Launch(NamedTuple):
    """A kernel's name, its number of blocks, its arguments.

    ``overlap``: it may begin while the launch before it still runs, and waits for it by itself.
    """

    kernel: str
    grid: int
    arguments: tuple
    overlap: bool = False


# A pack's cu_seqlens: pointers, their strides in 32-bit words (1 for int32, 2 for int64), and B.
Batch = tuple[Any, Any, int, int, int]


def rule_launch(
    batch: Batch, rule: Rule, columns: Any, column_num: int, block_threads: int = BLOCK_THREADS
) -> Launch:
    """Return the launch that writes the columns of a rule; column_num is at least 1."""
    steps, grid = _column_tiles(column_num, block_threads)
    return Launch("columns_rule", grid, batch + rule + (columns, column_num, steps))


def _column_tiles(column_num: int, block_threads: int, most_steps: int = 8) -> tuple[int, int]:
    """Return the pairs of columns that a thread writes, and the blocks that write them all."""
    # More columns a thread save searches; fewer fill the GPU where there are few.
    steps = min(most_steps, 1 if column_num < 1 << 19 else 4 if column_num < 1 << 20 else 8)
    return steps, column_num // (2 * block_threads * steps) + 1  # may start with half a pair


def scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that a call with attn_mask_kv of so many rows needs.

    8 a row for its two staircases, and 4 KiB; none where the rows are few.

    >>> scratch_nbytes(10_000), scratch_nbytes(1000)
    (84096, 0)
    """
    return interval_scratch_nbytes(q_token_num, BLOCK_THREADS)


def interval_scratch_nbytes(row_num: int, block_threads: int) -> int:
    if _row_tiles(row_num, block_threads) <= 1 << FEW_TILES_SHIFT:
        return 0
    return excess_scratch_nbytes(row_num)


def excess_scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that `excess_pairs` of so many rows needs.

    >>> excess_scratch_nbytes(1000)
    12096
    """
    return EDGES_NBYTES + 2 * _staircase_nbytes(q_token_num)


def _row_tiles(row_num: int, block_threads: int) -> int:
    return -(-row_num // (4 * block_threads))


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
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of intervals; both numbers are at least 1.

    One where the rows are few; it needs no scratch.
    """
    tile = 4 * block_threads
    tile_num = _row_tiles(row_num, block_threads)
    if tile_num <= 1 << FEW_TILES_SHIFT:
        arguments = (*batch, intervals, is_int64, row_num, columns, column_num)
        return (Launch("columns_of_few_rows", column_num // tile + 1, arguments),)
    rows = _rows_launch(batch, intervals, is_int64, row_num, scratch, block_threads)
    group_shift, ends, starts, edges = rows.arguments[-4:]
    tiles_per_block = 1 if column_num < 1 << 20 else 2 if column_num < 1 << 22 else 8
    return (
        rows,
        Launch(
            "columns_of_staircases",
            column_num // (tile * tiles_per_block) + 1,
            (
                *(ends, starts, edges, row_num, group_shift, rows.grid),
                *(columns, column_num, tiles_per_block),
            ),
            # Where blocks of both do not have a multiprocessor each, those that wait would crowd on
            # the few that are free.
            overlap=column_num < 1 << 16,
        ),
    )


def _rows_launch(
    batch: Batch, intervals: Any, is_int64: bool, row_num: int, scratch: Any, block_threads: int
) -> Launch:
    """Return the launch that scans the rows; scratch holds the edges, the ends and the starts."""
    tile_num = _row_tiles(row_num, block_threads)
    most_groups = 2 * block_threads
    group_shift = ((tile_num - 1) // most_groups).bit_length()
    group_num = ((tile_num - 1) >> group_shift) + 1
    ends = scratch + EDGES_NBYTES
    starts = ends + _staircase_nbytes(row_num)
    arguments = (*batch, intervals, is_int64, row_num, group_shift, ends, starts, scratch)
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
    return rows, Launch("excess_of_rows", rows.grid, (*rows.arguments, pairs, rows_from_first))


def tree_scratch_nbytes(segment_num: int) -> int:
    """Return the bytes of scratch memory that a tree of so many segments needs.

    An eighth of a byte a segment or so; none up to 16,384 segments.

    >>> tree_scratch_nbytes(16_384), tree_scratch_nbytes(100_000)
    (0, 12892)
    """
    return minima_nbytes(segment_num, FEW_SEGMENTS)


def minima_nbytes(segment_num: int, few_segments: int) -> int:
    if segment_num <= few_segments:
        return 0
    return 4 * (-(-segment_num // 32) + _minima_blocks(segment_num))


def _minima_blocks(segment_num: int) -> int:
    """Return the blocks that write minima: one for 32 runs of 32 segments (tree.cuh)."""
    return -(-segment_num // 1024)


def tree_launches(
    batch: Batch,
    parent: Any,
    parent_stride: int,
    columns: Any,
    column_num: int,
    scratch: Any,
    block_threads: int = BLOCK_THREADS,
    few_segments: int = FEW_SEGMENTS,
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of a tree; column_num is at least 1.

    One where the segments are few; it needs no scratch.
    """
    segment_num = batch[-1]
    # Where segments are short, those of a block's columns would be more than its window holds.
    is_dense = 32 * segment_num > column_num
    steps, grid = _column_tiles(column_num, block_threads, most_steps=1 if is_dense else 8)
    tree = (*batch, parent, parent_stride)
    tiles = (columns, column_num, steps, min((segment_num << 16) // grid, 2**32 - 1))
    if segment_num <= few_segments:
        return (Launch("columns_tree", grid, (*tree, 0, *tiles)),)
    grid_of_minima = _minima_blocks(segment_num)
    return (
        Launch("segment_minima", grid_of_minima, (parent, parent_stride, segment_num, scratch)),
        Launch("columns_tree", grid, (*tree, scratch, *tiles), overlap=True),
    )


def tile_grid(q_token_num: int, kv_token_num: int, block_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles of (rows, columns) cover the rows, and how many the columns."""
    return -(-q_token_num // block_size[0]), -(-kv_token_num // block_size[1])


def block_shapes(row_tiles: int, column_tiles: int) -> Blocks:
    """Return the shape of each array of a Blocks."""
    row, column = (1, 1, row_tiles), (1, 1, column_tiles)
    of_row, of_column = (*row, column_tiles), (*column, row_tiles)
    return Blocks(row, of_row, row, of_row, column, of_column, column, of_column)


def blocks_scratch_nbytes(
    q_token_num: int, kv_token_num: int, block_size: int | tuple[int, int] = (128, 128)
) -> int:
    """Return the bytes of scratch memory that `to_blocks` needs: two bits a tile.

    >>> blocks_scratch_nbytes(131072, 131072)
    262144
    """
    rows, columns = tile_grid(q_token_num, kv_token_num, checks.check_block_size(block_size))
    return 8 * -(-rows // 32) * columns


def block_launches(
    columns: Any,
    column_num: int,
    row_num: int,
    block_size: tuple[int, int],
    blocks: Blocks,
    scratch: Any,
    block_threads: int = BLOCK_THREADS,
) -> list[Launch]:
    """Return the launches that write the lists; blocks are pointers, and numbers may be 0."""
    row_tiles, column_tiles = tile_grid(row_num, column_num, block_size)
    by_column = Launch(
        "column_tile_lists",
        column_tiles,
        (columns, column_num, row_num, *block_size, row_tiles, scratch, *blocks[4:]),
    )
    by_row = Launch(
        "row_tile_lists",
        -(-row_tiles // (block_threads // 32)),
        (scratch, row_tiles, column_tiles, *blocks[:4]),
    )
    return [launch for launch in (by_column, by_row) if launch.grid]


def four_columns_launch(
    columns: Any, column_num: int, total: int, out: Any, block_threads: int = BLOCK_THREADS
) -> Launch:
    """Return the launch that writes the four columns; column_num is at least 1."""
    grid = -(-column_num // block_threads)
    return Launch("four_columns", grid, (columns, column_num, total, out))


def dense_launch(
    columns: Any, column_num: int, row_num: int, out: Any, block_threads: int = BLOCK_THREADS
) -> Launch:
    """Return the launch that writes the dense mask; both numbers are at least 1."""
    blocks_a_row = -(-column_num // (4 * block_threads))
    rows_per_block = 32  # enough that reading the bounds does not count
    grid = blocks_a_row * -(-row_num // rows_per_block)
    arguments = (columns, column_num, row_num, rows_per_block, blocks_a_row, out)
    return Launch("dense_mask", grid, arguments)
