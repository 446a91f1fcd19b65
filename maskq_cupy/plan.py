"""Which kernels a call launches, on how many blocks, with which arguments.

From host-known numbers alone, and for pointers of any kind that can be added to, so that the tests
run the same launches on the CPU.
"""

from typing import Any, NamedTuple

from maskq_cupy.compile import BLOCK_THREADS, FEW_TILES_SHIFT
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
    # More columns a thread save searches; fewer fill the GPU where there are few.
    steps = 1 if column_num < 1 << 19 else 4 if column_num < 1 << 21 else 8
    tile = 2 * block_threads * steps
    grid = column_num // tile + 1  # an unaligned array starts with half a pair
    arguments = (*batch, *rule, columns, column_num, steps)
    return Launch("columns_rule", grid, arguments)


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
    return EDGES_NBYTES + 2 * _staircase_nbytes(row_num)


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
    group_shift = max(0, (tile_num - 1).bit_length() - (tile // 2 - 1).bit_length())
    group_num = ((tile_num - 1) >> group_shift) + 1
    ends = scratch + EDGES_NBYTES
    starts = ends + _staircase_nbytes(row_num)
    tiles_per_block = 1 if column_num < 1 << 20 else 2 if column_num < 1 << 22 else 8
    return (
        Launch(
            "row_staircases",
            group_num,
            (*batch, intervals, is_int64, row_num, group_shift, ends, starts, scratch),
        ),
        Launch(
            "columns_of_staircases",
            column_num // (tile * tiles_per_block) + 1,
            (
                *(ends, starts, scratch, row_num, group_shift, group_num),
                *(columns, column_num, tiles_per_block),
            ),
            # Where they are many, blocks that wait would take the place of those that work.
            overlap=column_num < 1 << 19,
        ),
    )
