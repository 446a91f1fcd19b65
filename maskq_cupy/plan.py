"""Which kernels a call launches, on how many blocks, with which arguments.

From host-known numbers alone, and for pointers of any kind that can be added to, so that the tests
run the same launches on the CPU.
"""

from typing import Any, NamedTuple

from maskq_cupy import checks, compiler
from maskq_cupy.compiler import Launch, launch_of
from maskq_cupy.reference import Blocks
from maskq_cupy.rule import INT32_MAX, Rule


class Cuts(NamedTuple):
    """A pack's cu_seqlens, the first parameters of many kernels."""

    cu_seqlens_q: Any
    cu_seqlens_k: Any
    q_stride: int  # in 32-bit words: 1 for int32, 2 for int64
    k_stride: int
    batch: int  # B


class Intervals(NamedTuple):
    """What the rows see: attn_mask_kv, the next parameters of the kernels that take it."""

    attn_mask_kv: Any
    is_int64: bool
    row_num: int


class Spans(NamedTuple):
    """Spans of keys, parameters of the kernel of modified rules."""

    spans: Any
    span_stride: int  # in 32-bit words: 1 for int32, 2 for int64
    span_num: int


NO_SPANS = Spans(0, 1, 0)


def rule_launch(
    cuts: Cuts, rule: Rule, columns: Any, column_num: int, spans: Spans = NO_SPANS
) -> Launch:
    """Return the launch that writes the columns of a rule; column_num is at least 1."""
    steps, grid = _column_tiles(column_num)
    q, k, q_stride, k_stride, batch = cuts
    left, right, sinks, causal_block, chunk_size, is_top_left = rule
    if causal_block or chunk_size or is_top_left or spans[2]:
        block_reciprocal, block_shift = _reciprocal(causal_block)
        chunk_reciprocal, chunk_shift = _reciprocal(chunk_size)
        return launch_of("columns_modified_rule")(
            grid, *cuts, *rule, *spans, block_reciprocal=block_reciprocal, block_shift=block_shift,
            chunk_reciprocal=chunk_reciprocal, chunk_shift=chunk_shift, columns=columns,
            column_num=column_num, steps=steps,
        )  # fmt: skip
    # Name by name, as * would make a list of them: 0.3 us of a call of 10.
    return launch_of("columns_rule")(
        grid, cu_seqlens_q=q, cu_seqlens_k=k, q_stride=q_stride, k_stride=k_stride, batch=batch,
        left=left, right=right, sinks=sinks, columns=columns, column_num=column_num, steps=steps,
    )  # fmt: skip


def _reciprocal(size: int) -> tuple[int, int]:
    """Return what divides by a size of at least 1, Parts of columns_modified_rule.cu."""
    if not size:
        return 0, 0
    shift = (size - 1).bit_length()
    return (1 << 31 + shift) // size + 1, shift


def _column_tiles(column_num: int, most_steps: int = 8) -> tuple[int, int]:
    """Return the pairs of columns that a thread writes, and the blocks that write them all."""
    # More columns a thread save searches; fewer fill the GPU where there are few.
    steps = 1 if column_num < 1 << 19 else min(4 if column_num < 1 << 20 else 8, most_steps)
    # One more: the first thread may start with half a pair.
    return steps, column_num // (2 * compiler.SIZES.block_threads * steps) + 1


def scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that a call with attn_mask_kv of so many rows needs.

    8 a row for its two staircases, and 4 KiB; none up to 4,096 rows, and 8 for 128 rows from
    8,388,481 on. So more rows may need less: one piece of memory for several numbers of rows is of
    the largest of their results. Up to 8,192 rows of several sequences need none for less than
    1,048,576 columns, and leave the memory as it is.

    >>> scratch_nbytes(10_000), scratch_nbytes(1000)
    (84096, 0)
    """
    strip_num = _strips(q_token_num)
    if strip_num <= compiler.SIZES.few_strips:
        return 0
    if strip_num >= compiler.SIZES.many_strips:
        return _EDGES_NBYTES * _most_groups() + 2 * 4 * strip_num
    return excess_scratch_nbytes(q_token_num)


def interval_scratch_nbytes(cuts: Cuts, intervals: Intervals, column_num: int) -> int:
    """Return the bytes of scratch memory that `interval_launches` uses."""
    if _are_few(cuts, intervals, column_num):
        return 0
    return scratch_nbytes(intervals.row_num)


def _are_few(cuts: Cuts, intervals: Intervals, column_num: int) -> bool:
    """Are the rows so few that a block reads all of its columns' sequences, in one launch?

    Where one sequence has them all, or blocks are many, half as many rows are few.
    """
    strip_num, most = _strips(intervals.row_num), compiler.SIZES.few_strips
    if cuts.batch > 1 and column_num < 1 << 20:
        most *= 2
    return strip_num <= most


def _strips(row_num: int) -> int:
    """Return the strips of rows, of STRIP each (rows.cuh)."""
    return -(-row_num // 128)


def excess_scratch_nbytes(q_token_num: int) -> int:
    """Return the bytes of scratch memory that `excess_pairs` of so many rows needs.

    >>> excess_scratch_nbytes(1000)
    12096
    """
    return _EDGES_NBYTES * _most_groups() + 2 * _staircase_nbytes(q_token_num)


_EDGES_NBYTES = 8  # of a group, an int2


def _most_groups() -> int:
    """Return the most groups of row tiles or strips, GROUPS in scans.cuh."""
    return 2 * compiler.SIZES.block_threads


def _staircase_nbytes(row_num: int) -> int:
    return (4 * row_num + 15) // 16 * 16


def interval_launches(
    cuts: Cuts, intervals: Intervals, columns: Any, column_num: int, scratch: Any
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of intervals; both numbers are at least 1.

    One where the rows are few; it needs no scratch. overlap is for neither few nor many.
    """
    tile, row_num = 4 * compiler.SIZES.block_threads, intervals.row_num
    strip_num = _strips(row_num)
    if _are_few(cuts, intervals, column_num):
        make = launch_of("columns_of_few_rows")
        few = cuts + intervals + (columns, column_num)
        return (make(column_num // tile + 1, *few),)
    tiles_per_block = 1 if column_num < 1 << 20 else 2 if column_num < 1 << 22 else 8
    if strip_num >= compiler.SIZES.many_strips:
        group_num, edges = _edges(strip_num, scratch)
        scanned = cuts + intervals + edges
        of_many = launch_of("columns_of_many_rows")(
            column_num // (tile * tiles_per_block) + 1, *scanned, group_num=group_num,
            columns=columns, column_num=column_num, tiles_per_warp=tiles_per_block,
        )  # fmt: skip
        return launch_of("edges_of_strips")(group_num, *scanned), of_many
    group_num, stairs = _staircases(row_num, scratch)
    group_shift, ends, starts, group_edges = stairs
    of_columns = launch_of("columns_of_staircases")(
        column_num // (tile * tiles_per_block) + 1,
        ends=ends, starts=starts, group_edges=group_edges, row_num=row_num,
        group_shift=group_shift, group_num=group_num, columns=columns, column_num=column_num,
        tiles_per_block=tiles_per_block,
        # Where blocks of both do not have a multiprocessor each, those that wait would crowd on the
        # few that are free.
        overlap=column_num < 1 << 16,
    )  # fmt: skip
    return launch_of("row_staircases")(group_num, *(cuts + intervals + stairs)), of_columns


# Where the rows' staircases are, the parameters after the intervals of the kernels that scan rows.
STAIRCASES = ("group_shift", "ends", "starts", "group_edges")


def _staircases(row_num: int, scratch: Any) -> tuple[int, tuple[int, Any, Any, Any]]:
    """Return the number of groups of row tiles, and the staircases, laid out in scratch memory."""
    most_groups = _most_groups()
    last_tile = (row_num - 1) // (4 * compiler.SIZES.block_threads)
    group_shift = (last_tile // most_groups).bit_length()
    ends = scratch + _EDGES_NBYTES * most_groups
    starts = ends + _staircase_nbytes(row_num)
    return (last_tile >> group_shift) + 1, (group_shift, ends, starts, scratch)


def _edges(strip_num: int, scratch: Any) -> tuple[int, tuple[int, Any, Any, Any]]:
    """Return the number of groups of strips, and the strips' edges, laid out in scratch memory."""
    warps = compiler.SIZES.block_threads // 32
    most_groups = _most_groups()
    group_shift = ((strip_num - 1) // (warps * most_groups)).bit_length()
    ends = scratch + _EDGES_NBYTES * most_groups
    group_num = -(-strip_num // (warps << group_shift))
    return group_num, (group_shift, ends, ends + 4 * strip_num, scratch)


def excess_launches(
    cuts: Cuts, intervals: Intervals, pairs: Any, rows: Any, scratch: Any
) -> tuple[Launch, ...]:
    """Return the launches that count the pairs shown too many; none without rows.

    pairs, and rows if it is not 0, point to 64 bits that are 0 before. The second receives how many
    rows there are from the first with excess on.
    """
    if not intervals.row_num:
        return ()
    group_num, stairs = _staircases(intervals.row_num, scratch)
    scanned = cuts + intervals + stairs
    of_excess = launch_of("excess_of_rows")(group_num, *scanned, pairs=pairs, rows=rows)
    return launch_of("row_staircases")(group_num, *scanned), of_excess


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
    cuts: Cuts,
    parent: Any,
    parent_stride: int,
    columns: Any,
    column_num: int,
    scratch: Any,
    full: Any = 0,
    full_nbytes: int = 1,
) -> tuple[Launch, ...]:
    """Return the launches that write the columns of a tree; column_num is at least 1.

    One where the segments are few; it needs no scratch. full: flags of full_nbytes each, or 0.
    """
    q, k, q_stride, k_stride, segment_num = cuts
    # Where segments are short, those of a block's columns would be more than its window holds.
    is_dense = 32 * segment_num > column_num
    steps, grid = _column_tiles(column_num, most_steps=1 if is_dense else 8)
    is_few = segment_num <= compiler.SIZES.few_segments
    tree = launch_of("columns_tree")(
        grid, cu_seqlens_q=q, cu_seqlens_k=k, q_stride=q_stride, k_stride=k_stride,
        batch=segment_num, parent=parent, parent_stride=parent_stride,
        minima=0 if is_few else scratch, full=full, full_nbytes=full_nbytes,
        columns=columns, column_num=column_num, steps=steps,
        segments_a_block=min((segment_num << 16) // grid, 2**32 - 1), overlap=not is_few,
    )  # fmt: skip
    if is_few:
        return (tree,)
    minima = launch_of("segment_minima")(
        _minima_blocks(segment_num), parent, parent_stride, batch=segment_num, minima=scratch,
    )  # fmt: skip
    return minima, tree


def tile_grid(q_token_num: int, kv_token_num: int, block_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles of (rows, columns) cover the rows, and how many the columns."""
    return -(-q_token_num // block_size[0]), -(-kv_token_num // block_size[1])


class Tiles(NamedTuple):
    """The tiles of columns (slices, column_num, 2) and the lists of them, counted."""

    slices: int
    row_num: int
    column_num: int
    block_size: tuple[int, int]
    row_tiles: int  # of a slice
    column_tiles: int
    width: tuple[int, int]  # entries of a row tile's list and of a column tile's

    @property
    def is_narrow(self) -> bool:
        """Is there less room than tiles, so that work and scratch grow with the room?"""
        return self.width != (self.column_tiles, self.row_tiles)


def tiles(
    slices: int, row_num: int, column_num: int, block_size: tuple[int, int], width: object = None
) -> Tiles:
    """Return the counts of tiles; a width is checked, and cut to the tiles that there are.

    Raises ValueError for more tiles than a launch has blocks.
    """
    row_tiles, column_tiles = tile_grid(row_num, column_num, block_size)
    room = checks.check_width(width, row_tiles, column_tiles)
    for side_tiles in (row_tiles, column_tiles):  # not their maximum: torch traces this
        if slices * side_tiles > INT32_MAX:
            raise _too_many_blocks(slices * side_tiles, "tiles of all slices, on one side,")
    return Tiles(slices, row_num, column_num, block_size, row_tiles, column_tiles, room)


def _too_many_blocks(num: int, what: str) -> ValueError:
    return ValueError(f"a launch has at most 2**31 - 1 blocks, got {num} {what} at once")


def block_shapes(tiles: Tiles, lead: tuple[int, ...] = (1, 1)) -> Blocks:
    """Return the shape of each array of a Blocks; the product of lead is the slices."""
    row, column = (*lead, tiles.row_tiles), (*lead, tiles.column_tiles)
    of_row, of_column = (*row, tiles.width[0]), (*column, tiles.width[1])
    return Blocks(row, of_row, row, of_row, column, of_column, column, of_column)


def blocks_scratch_nbytes(
    q_token_num: int,
    kv_token_num: int,
    block_size: int | tuple[int, int] = (128, 128),
    *,
    slices: int = 1,
    width: int | tuple[int, int] | None = None,
) -> int:
    """Return the bytes of scratch memory that `to_blocks` of columns (b, h, N, 2) needs.

    Two bits a tile; with a width below the tiles 16 bytes a column tile and some more.

    Args:
        q_token_num: number of query rows Q.
        kv_token_num: number of key columns N.
        block_size: (rows, columns) of a tile, or one int for both.
        slices: b * h.
        width: as in `to_blocks`.

    >>> blocks_scratch_nbytes(131072, 131072), blocks_scratch_nbytes(131072, 131072, width=65)
    (262144, 16656)
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    column_num = checks.check_int(kv_token_num, "kv_token_num")
    slices = checks.check_int(slices, "slices")
    sizes = checks.check_block_size(block_size)
    return lists_scratch_nbytes(tiles(slices, row_num, column_num, sizes, width))


def lists_scratch_nbytes(tiles: Tiles) -> int:
    if not tiles.is_narrow:
        return 8 * -(-tiles.row_tiles // 32) * tiles.slices * tiles.column_tiles
    return zeroed_nbytes(tiles) + 16 * tiles.slices * tiles.column_tiles


def zeroed_nbytes(tiles: Tiles) -> int:
    """Return the bytes at the start of the scratch memory that are 0 before the launches."""
    return sum(_reaches_nbytes(tiles)) if tiles.is_narrow else 0


def _reaches_nbytes(tiles: Tiles) -> tuple[int, int]:
    """Return the bytes of the groups' and of the chunks' reaches (narrow_lists.cu)."""
    chunks = -(-tiles.column_tiles // 32)
    groups = -(-chunks // 32)
    return _whole_16(8 * tiles.slices * groups), _whole_16(8 * tiles.slices * chunks)


def _whole_16(nbytes: int) -> int:
    return (nbytes + 15) // 16 * 16


def block_launches(
    columns: Any, tiles: Tiles, blocks: Blocks, scratch: Any, all_partial: bool, needed: Any = 0
) -> list[Launch]:
    """Return the launches that write the lists; blocks are pointers, and numbers may be 0.

    needed points to two ints that are 0 before, or is 0.
    """
    make = _narrow_launches if tiles.is_narrow else _full_width_launches
    by_column, by_row = make(columns, tiles, blocks, scratch, all_partial, needed)
    return [launch for launch in (by_column, by_row) if launch[1]]  # has blocks


def _full_width_launches(
    columns: Any, tiles: Tiles, blocks: Blocks, scratch: Any, all_partial: bool, needed: Any
) -> tuple[Launch, Launch]:
    slices, row_num, column_num, (block_q, block_k), row_tiles, column_tiles, _ = tiles
    by_column = launch_of("column_tile_lists")(
        slices * column_tiles, columns=columns, column_num=column_num, row_num=row_num,
        block_q=block_q, block_k=block_k, row_tiles=row_tiles, column_tiles=column_tiles,
        all_partial=all_partial, words=scratch, q_num_blocks=blocks.q_num_blocks,
        q_indices=blocks.q_indices, full_q_num_blocks=blocks.full_q_num_blocks,
        full_q_indices=blocks.full_q_indices, needed=needed,
    )  # fmt: skip
    by_row = launch_of("row_tile_lists")(
        -(-slices * row_tiles // _warps()), words=scratch, slices=slices, row_tiles=row_tiles,
        column_tiles=column_tiles, kv_num_blocks=blocks.kv_num_blocks,
        kv_indices=blocks.kv_indices, full_kv_num_blocks=blocks.full_kv_num_blocks,
        full_kv_indices=blocks.full_kv_indices, needed=needed,
    )  # fmt: skip
    return by_column, by_row


def _narrow_launches(
    columns: Any, tiles: Tiles, blocks: Blocks, scratch: Any, all_partial: bool, needed: Any
) -> tuple[Launch, Launch]:
    slices, row_num, column_num, (block_q, block_k), row_tiles, column_tiles, room = tiles
    chunks = scratch + _reaches_nbytes(tiles)[0]
    runs = scratch + zeroed_nbytes(tiles)
    column_blocks = -(-column_tiles // _warps())
    by_column = launch_of("narrow_column_tile_lists")(
        slices * column_blocks, columns=columns, column_num=column_num, row_num=row_num,
        block_q=block_q, block_k=block_k, column_tiles=column_tiles, blocks_a_slice=column_blocks,
        all_partial=all_partial, width=room[1], groups=scratch, chunks=chunks, runs=runs,
        q_num_blocks=blocks.q_num_blocks, q_indices=blocks.q_indices,
        full_q_num_blocks=blocks.full_q_num_blocks, full_q_indices=blocks.full_q_indices,
        needed=needed,
    )  # fmt: skip
    # More row tiles a warp share the search for their column tiles; fewer fill the GPU.
    rows_a_warp = 4 if slices * row_tiles >= 1 << 13 else 1
    row_blocks = -(-row_tiles // (rows_a_warp * _warps()))
    by_row = launch_of("narrow_row_tile_lists")(
        slices * row_blocks, columns=columns, column_num=column_num, row_num=row_num,
        block_q=block_q, block_k=block_k, row_tiles=row_tiles, column_tiles=column_tiles,
        blocks_a_slice=row_blocks, rows_a_warp=rows_a_warp, width=room[0], groups=scratch,
        chunks=chunks, runs=runs, q_num_blocks=blocks.q_num_blocks, q_indices=blocks.q_indices,
        q_width=room[1], kv_num_blocks=blocks.kv_num_blocks, kv_indices=blocks.kv_indices,
        full_kv_num_blocks=blocks.full_kv_num_blocks, full_kv_indices=blocks.full_kv_indices,
        needed=needed,
    )  # fmt: skip
    return by_column, by_row


def _warps() -> int:
    return compiler.SIZES.block_threads // 32


def four_columns_launch(columns: Any, column_num: int, total: int, four: Any) -> Launch:
    """Return the launch that writes the four columns; column_num, of all slices, is at least 1."""
    grid = -(-column_num // compiler.SIZES.block_threads)
    if grid > INT32_MAX:
        raise _too_many_blocks(grid, "of four columns")
    make = launch_of("four_columns")
    return make(grid, columns=columns, column_num=column_num, total=total, four=four)


def split_launch(
    columns: Any, column_num: int, part_columns: int, part_rows: int, parts: Any
) -> Launch:
    """Return the launch that splits columns; column_num is at least 1."""
    return launch_of("split_columns")(
        column_num // (2 * compiler.SIZES.block_threads) + 1,  # may start with half a pair
        columns=columns,
        column_num=column_num,
        part_columns=part_columns,
        part_rows=part_rows,
        parts=parts,
    )


def dense_launch(
    columns: Any, column_num: int, row_num: int, shown: Any, slices: int = 1
) -> Launch:
    """Return the launch that writes the dense mask; all numbers are at least 1."""
    blocks_a_row = -(-column_num // (4 * compiler.SIZES.block_threads))
    rows_per_block = 32  # enough that reading the bounds does not count
    blocks_a_slice = blocks_a_row * -(-row_num // rows_per_block)
    grid = slices * blocks_a_slice
    if grid > INT32_MAX:
        raise _too_many_blocks(grid, "of a dense mask")
    return launch_of("dense_mask")(
        grid, columns=columns,
        column_num=column_num, row_num=row_num, rows_per_block=rows_per_block,
        blocks_a_row=blocks_a_row, blocks_a_slice=blocks_a_slice, shown=shown,
    )  # fmt: skip


class Chunks(NamedTuple):
    """Chunks of rows or of keys."""

    values: Any
    stride: int  # in 32-bit words: 1 for int32, 2 for int64; 0 of ALL_KEYS
    num: int


ALL_KEYS = Chunks(0, 0, 0)  # in their order


def shard_scratch_nbytes(row_chunk_num: int, key_chunk_num: int = 0) -> int:
    """Return the bytes of scratch memory that `shard_columns` of so many chunks needs.

    8 a chunk of the side that has more than 4,096; none up to there.

    >>> shard_scratch_nbytes(4096, 4096), shard_scratch_nbytes(8192)
    (0, 65552)
    """
    return _sums_nbytes(row_chunk_num) + _sums_nbytes(key_chunk_num)


def _sums_nbytes(chunk_num: int) -> int:
    """Return the bytes that chunk_sums writes of so many chunks; 0 where blocks count them."""
    if chunk_num <= 16 * compiler.SIZES.block_threads:
        return 0
    return (8 * (chunk_num + 1) + 15) // 16 * 16


def shard_launches(
    columns: Any,
    slice_num: int,
    column_num: int,
    rows: Chunks,
    keys: Chunks,
    shard: Any,
    key_num: int,
    scratch: Any,
) -> tuple[Launch, ...]:
    """Return the launches that write a shard; slice_num and key_num are at least 1.

    One, and one before it where chunks are many.
    """
    # More columns a thread save tables; fewer fill the GPU where there are few.
    column_total = slice_num * key_num
    steps = 1 if column_total < 1 << 19 else 4 if column_total < 1 << 24 else 8
    # One block more: the first thread of a slice may start with half a pair.
    blocks_a_slice = key_num // (2 * compiler.SIZES.block_threads * steps) + 1
    grid = slice_num * blocks_a_slice
    row_chunks, row_stride, row_chunk_num = rows
    if row_chunk_num <= 2 and not keys.stride:
        of_two = launch_of("shard_columns_of_two")(
            grid, columns=columns, column_num=column_num, row_chunks=row_chunks,
            row_stride=row_stride, row_chunk_num=row_chunk_num, shard=shard,
            blocks_a_slice=blocks_a_slice, steps=steps,
        )  # fmt: skip
        return (of_two,)
    key_chunks, key_stride, key_chunk_num = keys
    rows_nbytes, keys_nbytes = _sums_nbytes(row_chunk_num), _sums_nbytes(key_chunk_num)
    row_sums = scratch if rows_nbytes else 0
    key_sums = scratch + rows_nbytes if keys_nbytes else 0
    are_many = rows_nbytes + keys_nbytes > 0
    of_any = launch_of("shard_columns")(
        grid, columns=columns, column_num=column_num, row_chunks=row_chunks, row_stride=row_stride,
        row_chunk_num=row_chunk_num, row_sums=row_sums, key_chunks=key_chunks,
        key_stride=key_stride, key_chunk_num=key_chunk_num, key_sums=key_sums, shard=shard,
        key_num=key_num, blocks_a_slice=blocks_a_slice, steps=steps, overlap=are_many,
    )  # fmt: skip
    if not are_many:
        return (of_any,)
    row_blocks = _sums_blocks(row_chunk_num, rows_nbytes)
    sums = launch_of("chunk_sums")(
        row_blocks + _sums_blocks(key_chunk_num, keys_nbytes), row_chunks=row_chunks,
        row_stride=row_stride, row_chunk_num=row_chunk_num, row_sums=row_sums,
        row_blocks=row_blocks, key_chunks=key_chunks, key_stride=key_stride,
        key_chunk_num=key_chunk_num, key_sums=key_sums,
    )  # fmt: skip
    return sums, of_any


def _sums_blocks(chunk_num: int, nbytes: int) -> int:
    """Return the blocks that write the sums: one for ENTRIES chunks (chunks.cuh)."""
    return -(-chunk_num // (4 * compiler.SIZES.block_threads)) if nbytes else 0


def needed_keys_launch(
    columns: Any, slice_num: int, column_num: int, block_k: int, needed: Any
) -> Launch:
    """Return the launch that counts the needed keys of blocks; both numbers are at least 1."""
    warps = compiler.SIZES.block_threads // 32
    warps_a_block = 1 if block_k <= 1024 else warps
    blocks_a_slice = -(-column_num // block_k)
    needed_num = slice_num * blocks_a_slice
    return launch_of("needed_keys")(
        -(-needed_num * warps_a_block // warps), columns=columns, column_num=column_num,
        block_k=block_k, blocks_a_slice=blocks_a_slice, warps_a_block=warps_a_block,
        needed_num=needed_num, needed=needed,
    )  # fmt: skip
