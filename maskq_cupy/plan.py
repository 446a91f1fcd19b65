"""Which kernels a call launches, on how many blocks, with which arguments.

From host-known numbers alone, and for pointers of any kind that can be added to, so that the tests
run the same launches on the CPU.
"""

from typing import Any, NamedTuple

from maskq_cupy import checks, compiler
from maskq_cupy.reference import Blocks
from maskq_cupy.rule import Rule

Arguments = dict[str, Any]  # of a kernel, by its parameters' names; a pointer is an address


class Launch(NamedTuple):
    """A kernel's name, its number of blocks, its arguments.

    ``overlap``: it may begin while the launch before it still runs, and waits for it by itself.
    """

    kernel: str
    grid: int
    arguments: Arguments
    overlap: bool = False


def pack_arguments(q: Any, k: Any, q_stride: int, k_stride: int, batch: int) -> Arguments:
    """Return a pack's cu_seqlens: pointers, strides in 32-bit words (2 for int64), and B."""
    return {
        "cu_seqlens_q": q,
        "cu_seqlens_k": k,
        "q_stride": q_stride,
        "k_stride": k_stride,
        "batch": batch,
    }


def interval_arguments(intervals: Any, is_int64: bool, row_num: int) -> Arguments:
    return {"attn_mask_kv": intervals, "is_int64": is_int64, "row_num": row_num}


def rule_launch(pack: Arguments, rule: Rule, columns: Any, column_num: int) -> Launch:
    """Return the launch that writes the columns of a rule; column_num is at least 1."""
    steps, grid = _column_tiles(column_num)
    left, right, sinks = rule
    arguments = {
        **pack, "left": left, "right": right, "sinks": sinks,
        "columns": columns, "column_num": column_num, "steps": steps,
    }  # fmt: skip
    return Launch("columns_rule", grid, arguments)


def _column_tiles(column_num: int, most_steps: int = 8) -> tuple[int, int]:
    """Return the pairs of columns that a thread writes, and the blocks that write them all."""
    # More columns a thread save searches; fewer fill the GPU where there are few.
    steps = min(most_steps, 1 if column_num < 1 << 19 else 4 if column_num < 1 << 20 else 8)
    grid = (
        column_num // (2 * compiler.SIZES.block_threads * steps) + 1
    )  # may start with half a pair
    return steps, grid


def scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that a call with attn_mask_kv of so many rows needs.

    8 a row for its two staircases, and 4 KiB; none where the rows are few.

    >>> scratch_nbytes(10_000), scratch_nbytes(1000)
    (84096, 0)
    """
    return 0 if _are_few_rows(q_token_num) else excess_scratch_nbytes(q_token_num)


def _are_few_rows(row_num: int) -> bool:
    return _row_tiles(row_num) <= 1 << compiler.SIZES.few_tiles_shift


def excess_scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that `excess_pairs` of so many rows needs.

    >>> excess_scratch_nbytes(1000)
    12096
    """
    return _edges_nbytes() + 2 * _staircase_nbytes(q_token_num)


def _most_groups() -> int:
    """Return the most groups of row tiles, GROUPS in staircase.cuh."""
    return 2 * compiler.SIZES.block_threads


def _edges_nbytes() -> int:
    return 8 * _most_groups()


def _row_tiles(row_num: int) -> int:
    return -(-row_num // (4 * compiler.SIZES.block_threads))


def _staircase_nbytes(row_num: int) -> int:
    return (4 * row_num + 15) // 16 * 16


def interval_launches(
    pack: Arguments, intervals: Arguments, columns: Any, column_num: int, scratch: Any
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of intervals; both numbers are at least 1.

    One where the rows are few; it needs no scratch.
    """
    tile = 4 * compiler.SIZES.block_threads
    target = {"columns": columns, "column_num": column_num}
    if _are_few_rows(intervals["row_num"]):
        few = {**pack, **intervals, **target}
        return (Launch("columns_of_few_rows", column_num // tile + 1, few),)
    stairs, group_num = _staircases(intervals["row_num"], scratch)
    tiles_per_block = 1 if column_num < 1 << 20 else 2 if column_num < 1 << 22 else 8
    of_stairs = {
        **stairs, "row_num": intervals["row_num"], "group_num": group_num,
        **target, "tiles_per_block": tiles_per_block,
    }  # fmt: skip
    return (
        Launch("row_staircases", group_num, {**pack, **intervals, **stairs}),
        Launch(
            "columns_of_staircases",
            column_num // (tile * tiles_per_block) + 1,
            of_stairs,
            # Where blocks of both do not have a multiprocessor each, those that wait would crowd on
            # the few that are free.
            overlap=column_num < 1 << 16,
        ),
    )


def _staircases(row_num: int, scratch: Any) -> tuple[Arguments, int]:
    """Return the staircases in scratch memory, behind their groups' edges; and how many groups."""
    tile_num = _row_tiles(row_num)
    group_shift = ((tile_num - 1) // _most_groups()).bit_length()
    ends = scratch + _edges_nbytes()
    starts = ends + _staircase_nbytes(row_num)
    stairs = {"group_shift": group_shift, "ends": ends, "starts": starts, "group_edges": scratch}
    return stairs, ((tile_num - 1) >> group_shift) + 1


def excess_launches(
    pack: Arguments, intervals: Arguments, pairs: Any, rows: Any, scratch: Any
) -> tuple[Launch, Launch]:
    """Return the launches that count the pairs shown too many; there is at least one row.

    pairs, and rows if it is not 0, point to 64 bits that are 0 before. The second receives how many
    rows there are from the first with excess on.
    """
    stairs, group_num = _staircases(intervals["row_num"], scratch)
    scanned = {**pack, **intervals, **stairs}
    return (
        Launch("row_staircases", group_num, scanned),
        Launch("excess_of_rows", group_num, {**scanned, "pairs": pairs, "rows": rows}),
    )


def tree_scratch_nbytes(segment_num: int) -> int:
    """Return the bytes of scratch memory that a tree of so many segments needs.

    An eighth of a byte a segment or so; none up to 16,384 segments.

    >>> tree_scratch_nbytes(16_384), tree_scratch_nbytes(100_000)
    (0, 12892)
    """
    if segment_num <= compiler.SIZES.few_segments:
        return 0
    return 4 * (-(-segment_num // 32) + _minima_blocks(segment_num))


def _minima_blocks(segment_num: int) -> int:
    """Return the blocks that write minima: one for 32 runs of 32 segments (tree.cuh)."""
    return -(-segment_num // 1024)


def tree_launches(
    pack: Arguments, parent: Any, parent_stride: int, columns: Any, column_num: int, scratch: Any
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of a tree; column_num is at least 1.

    One where the segments are few; it needs no scratch.
    """
    segment_num = pack["batch"]
    # Where segments are short, those of a block's columns would be more than its window holds.
    is_dense = 32 * segment_num > column_num
    steps, grid = _column_tiles(column_num, most_steps=1 if is_dense else 8)
    is_few = segment_num <= compiler.SIZES.few_segments
    parents = {"parent": parent, "parent_stride": parent_stride}
    arguments = {
        **pack, **parents, "minima": 0 if is_few else scratch,
        "columns": columns, "column_num": column_num, "steps": steps,
        "segments_a_block": min((segment_num << 16) // grid, 2**32 - 1),
    }  # fmt: skip
    tree = Launch("columns_tree", grid, arguments, overlap=not is_few)
    if is_few:
        return (tree,)
    minima = {**parents, "batch": segment_num, "minima": scratch}
    return Launch("segment_minima", _minima_blocks(segment_num), minima), tree


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
) -> list[Launch]:
    """Return the launches that write the lists; blocks are pointers, and numbers may be 0."""
    row_tiles, column_tiles = tile_grid(row_num, column_num, block_size)
    lists = blocks._asdict()
    by_column = {
        "columns": columns, "column_num": column_num, "row_num": row_num,
        "block_q": block_size[0], "block_k": block_size[1],
        "row_tiles": row_tiles, "words": scratch, **lists,
    }  # fmt: skip
    by_row = {"words": scratch, "row_tiles": row_tiles, "column_tiles": column_tiles, **lists}
    row_blocks = -(-row_tiles // (compiler.SIZES.block_threads // 32))
    launches = (
        Launch("column_tile_lists", column_tiles, by_column),
        Launch("row_tile_lists", row_blocks, by_row),
    )
    return [launch for launch in launches if launch.grid]


def four_columns_launch(columns: Any, column_num: int, total: int, four: Any) -> Launch:
    """Return the launch that writes the four columns; column_num is at least 1."""
    arguments = {"columns": columns, "column_num": column_num, "total": total, "four": four}
    return Launch("four_columns", -(-column_num // compiler.SIZES.block_threads), arguments)


def dense_launch(columns: Any, column_num: int, row_num: int, shown: Any) -> Launch:
    """Return the launch that writes the dense mask; both numbers are at least 1."""
    blocks_a_row = -(-column_num // (4 * compiler.SIZES.block_threads))
    rows_per_block = 32  # enough that reading the bounds does not count
    grid = blocks_a_row * -(-row_num // rows_per_block)
    arguments = {
        "columns": columns, "column_num": column_num, "row_num": row_num,
        "rows_per_block": rows_per_block, "blocks_a_row": blocks_a_row, "shown": shown,
    }  # fmt: skip
    return Launch("dense_mask", grid, arguments)
