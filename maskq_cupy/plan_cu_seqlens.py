"""Which kernels make cu_seqlens and spans, as `plan` says it of columns."""

from typing import Any, NamedTuple

from maskq_cupy import checks, compiler
from maskq_cupy.compiler import Launch, launch_of

MOST_GROUPS = 1024  # of tokens: each block of the second launch reads what the first says of all
_OVERLAP_BELOW = 1 << 20  # tokens: where blocks of both launches find room side by side


class Tokens(NamedTuple):
    """An id or a position a token, batch row behind batch row."""

    values: Any
    is_int64: bool
    token_num: int
    row_length: int


def cu_seqlens_scratch_nbytes(token_num: int) -> int:
    """Return the bytes of scratch memory that cu_seqlens or spans of so many tokens need.

    A quarter of a byte a token, and 8 KiB.

    >>> cu_seqlens_scratch_nbytes(131072)
    40960
    """
    return 8 * MOST_GROUPS + 2 * _bits_nbytes(checks.check_int(token_num, "token_num"))


def _bits_nbytes(token_num: int) -> int:
    return (token_num + 127) // 128 * 16


def run_launches(
    tokens: Tokens,
    entries: Any,
    entry_num: int,
    scratch: Any,
    *,
    by_positions: bool = False,
    padding_id: int | None = None,
    text_id: int | None = None,
) -> list[Launch]:
    """Return the launches that write cu_seqlens, or spans where there is a text_id."""
    values, is_int64, token_num, row_length = tokens
    threads = compiler.SIZES.block_threads  # a block lists as many words, or one group's
    tile_words = threads // 8
    tile_num = -(-token_num // (32 * tile_words))
    group_tiles = max(-(-tile_num // MOST_GROUPS), 1)
    group_num = -(-tile_num // group_tiles)
    block_groups = -(-threads // (group_tiles * tile_words))
    starts = scratch + 8 * MOST_GROUPS
    stops = 0 if text_id is None else starts + _bits_nbytes(token_num)
    mark = launch_of("mark_runs")(
        group_num,
        tokens=values,
        is_int64=is_int64,
        token_num=token_num,
        row_length=row_length,
        by_positions=by_positions,
        has_padding=padding_id is not None,
        other_id=(padding_id if text_id is None else text_id) or 0,
        group_tiles=group_tiles,
        groups=scratch,
        starts=starts,
        stops=stops,
    )
    put = launch_of("list_runs")(
        max(-(-group_num // block_groups), -(-entry_num // (16 * threads))),
        groups=scratch,
        starts=starts,
        stops=stops,
        group_num=group_num,
        token_num=token_num,
        block_groups=block_groups,
        block_words=block_groups * group_tiles * tile_words,
        list=entries,
        entry_num=entry_num,
        overlap=0 < token_num < _OVERLAP_BELOW,
    )
    return [launch for launch in (mark, put) if launch[1] and entry_num]  # has blocks


def mask_scratch_nbytes(item_nbytes: int, batch: int, row_length: int) -> int:
    """Return the bytes that a mask needs, of the `cu_seqlens_scratch_nbytes` of its tokens."""
    parts, _ = _mask_parts(item_nbytes, batch, row_length)
    return 8 * batch * parts if parts > 1 else 0


def _mask_parts(item_nbytes: int, batch: int, row_length: int) -> tuple[int, int]:
    """Return how many parts a batch row is read in, a block each, and the bytes of one."""
    row_nbytes = row_length * item_nbytes
    # A part is what a block has in flight at once, or more where parts would be too many.
    most_parts = max(MOST_GROUPS // max(batch, 1), 1)
    least_nbytes = 64 * compiler.SIZES.block_threads
    part_nbytes = max(least_nbytes, -(-row_nbytes // most_parts // 16) * 16)
    return (max(-(-row_nbytes // part_nbytes), 1) if batch else 1), part_nbytes


def mask_launches(
    mask: Any, item_nbytes: int, batch: int, row_length: int, cu_seqlens: tuple, scratch: Any
) -> list[Launch]:
    """Return the launches that write both cu_seqlens of a mask, one where rows are short."""
    parts, part_nbytes = _mask_parts(item_nbytes, batch, row_length)
    cu_seqlens_q, cu_seqlens_k = cu_seqlens
    find = launch_of("mask_bounds")(
        max(batch * parts, 1),
        mask=mask,
        item_shift=item_nbytes.bit_length() - 1,
        batch=batch,
        row_length=row_length,
        parts=parts,
        part_bytes=part_nbytes,
        part_bounds=scratch,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )
    if parts == 1:
        return [find]
    fold = launch_of("cuts_of_bounds")(
        -(-batch // (compiler.SIZES.block_threads // 32)),
        part_bounds=scratch,
        batch=batch,
        row_length=row_length,
        parts=parts,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        overlap=True,
    )
    return [find, fold]


def slots_launch(
    pointers: tuple[Any, ...], strides: tuple[int, ...], batch: int, cu_seqlens: tuple[Any, Any]
) -> Launch:
    """Return the launch that writes both cu_seqlens of slots, of four arrays."""
    rows, keys = cu_seqlens
    return launch_of("cuts_of_slots")(
        max(-(-batch // compiler.SIZES.block_threads), 1),
        *pointers,
        *strides,
        batch=batch,
        rows=rows,
        keys=keys,
    )
