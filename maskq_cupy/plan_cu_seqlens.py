"""Which kernels make cu_seqlens and spans, as `plan` says it of columns."""

from typing import Any, NamedTuple

from maskq_cupy import checks, compiler
from maskq_cupy.plan import Launch

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
    tile, list_words = 4 * compiler.SIZES.block_threads, compiler.SIZES.block_threads
    tile_num = -(-tokens.token_num // tile)
    group_tiles = max(-(-tile_num // MOST_GROUPS), 1)
    group_num = -(-tile_num // group_tiles)
    group_words = group_tiles * tile // 32
    block_groups = -(-list_words // group_words)
    starts = scratch + 8 * MOST_GROUPS
    bits = {
        "groups": scratch,
        "starts": starts,
        "stops": 0 if text_id is None else starts + _bits_nbytes(tokens.token_num),
        "token_num": tokens.token_num,
    }
    ids = [some for some in (padding_id, text_id) if some is not None]
    marks = {
        "tokens": tokens.values, "is_int64": tokens.is_int64, "row_length": tokens.row_length,
        "by_positions": by_positions, "has_padding": padding_id is not None,
        "other_id": ids[0] if ids else 0, "group_tiles": group_tiles, **bits,
    }  # fmt: skip
    lists = {
        "group_num": group_num, "block_groups": block_groups,
        "block_words": block_groups * group_words, "list": entries, "entry_num": entry_num, **bits,
    }  # fmt: skip
    list_grid = max(-(-group_num // block_groups), -(-entry_num // (16 * list_words)))
    launches = (
        Launch("mark_runs", group_num, marks),
        Launch("list_runs", list_grid, lists, overlap=0 < tokens.token_num < _OVERLAP_BELOW),
    )
    return [launch for launch in launches if launch.grid and entry_num]


def mask_launches(
    mask: Any, item_nbytes: int, batch: int, row_length: int, cu_seqlens: tuple, scratch: Any
) -> list[Launch]:
    """Return the launches that write both cu_seqlens of a mask, one where rows are short."""
    threads = compiler.SIZES.block_threads
    row_nbytes = row_length * item_nbytes
    # A part is what a block has in flight at once, or more where parts would be too many.
    least_parts = max(MOST_GROUPS // max(batch, 1), 1)
    part_nbytes = max(64 * threads, -(-row_nbytes // least_parts // 16) * 16)
    parts = max(-(-row_nbytes // part_nbytes), 1)
    q, k = cu_seqlens
    form = {"batch": batch, "row_length": row_length, "parts": parts, "part_bounds": scratch}
    both = {"cu_seqlens_q": q, "cu_seqlens_k": k}
    shift = item_nbytes.bit_length() - 1
    bytes_ = {"mask": mask, "item_shift": shift, "part_bytes": part_nbytes, **form, **both}
    launches = [Launch("mask_bounds", max(batch * parts, 1), bytes_)]
    if batch and parts > 1:
        grid = -(-batch // (threads // 32))
        launches.append(Launch("cuts_of_bounds", grid, {**form, **both}, overlap=True))
    return launches


def slots_launch(
    slots: dict[str, tuple[Any, int]], batch: int, cu_seqlens: tuple[Any, Any]
) -> Launch:
    """Return the launch that writes both cu_seqlens of slots: pointers and strides by name."""
    strides = ("q_stride", "q_padded_stride", "k_stride", "k_padded_stride")
    rows, keys = cu_seqlens
    arguments = {
        **{name: pointer for name, (pointer, _) in slots.items()},
        **{name: stride for name, (_, stride) in zip(strides, slots.values(), strict=True)},
        "batch": batch, "rows": rows, "keys": keys,
    }  # fmt: skip
    return Launch("cuts_of_slots", max(-(-batch // compiler.SIZES.block_threads), 1), arguments)
