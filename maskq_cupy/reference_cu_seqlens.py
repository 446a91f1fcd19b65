"""cu_seqlens and spans from what people have, in NumPy: the part of `reference` for them.

The GPU functions of the same names check values by these, under ``validate=True``.
"""

from typing import Any, NamedTuple

import numpy as np

from maskq_cupy import checks, tokens


class CuSeqlens(NamedTuple):
    """How a pack is cut: rows, and keys. ``get_attn_mask_q(*cuts)`` takes both."""

    cu_seqlens_q: Any
    cu_seqlens_k: Any


def cu_seqlens_from_ids(
    ids: Any, max_sequence_num: int, padding_id: int | None = None
) -> np.ndarray:
    """Return where documents begin in a row of document ids, one id a token.

    Equal neighbours are one document; an id that comes again later is another one.

    Args:
        ids: int32 or int64, shape (N,) or (b, L), on the host. Of (b, L) the rows are read one
            behind the other, and each begins a document.
        max_sequence_num: the most documents to expect; the result has this many and one entries,
            and documents that are missing are empty ones at the end.
        padding_id: the id of padding. Its run at the end is in no document; needs ids of (N,).

    Returns:
        int32, shape (max_sequence_num + 1,), in tokens: both cu_seqlens_q and cu_seqlens_k of the
        pack. Its last entry is N, less any padding.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of more
            documents than max_sequence_num, how many; of padding before other ids, the first.

    >>> cu_seqlens_from_ids([7, 7, 9, 9, 9, 0], 4, padding_id=0)
    array([0, 2, 5, 5, 5], dtype=int32)
    """
    found, form = tokens.host_tokens("ids", ids)
    most = tokens.check_max_num(max_sequence_num, "max_sequence_num")
    padding = tokens.check_padding_id(padding_id, found.shape)
    end = found.size if padding is None else _padding_start(found, padding)
    starts = _run_starts(found.reshape(form), np.equal)
    return _cuts("ids", starts[starts < end], end, most)


def _padding_start(ids: np.ndarray, padding_id: int) -> int:
    """Return where the padding at the end of ids (N,) begins; require that there is no other."""
    others = np.flatnonzero(ids != padding_id)
    end = int(others[-1]) + 1 if others.size else 0
    early = np.flatnonzero(ids[:end] == padding_id)
    if early.size:
        i = int(early[0])
        raise ValueError(
            f"ids must hold padding_id = {padding_id} at the end only, "
            f"got ids[{i}] = {padding_id} before ids[{end - 1}] = {ids[end - 1]}"
        )
    return end


def _run_starts(found: np.ndarray, goes_on: Any) -> np.ndarray:
    """Return the tokens of a (b, L) batch that begin a row, or with which a run does not go on."""
    begins = np.ones(found.shape, bool)
    begins[:, 1:] = ~goes_on(found[:, :-1], found[:, 1:])
    return np.flatnonzero(begins)


def _cuts(name: str, starts: np.ndarray, end: int, most: int) -> np.ndarray:
    if len(starts) > most:
        raise ValueError(
            f"max_sequence_num must be at least {len(starts)}, the documents of {name}, got {most}"
        )
    cuts = np.full(most + 1, end, np.int32)
    cuts[: len(starts)] = starts
    return cuts


def cu_seqlens_from_positions(position_ids: Any, max_sequence_num: int) -> np.ndarray:
    """Return where documents begin in position ids that start anew at each document.

    A document begins where a position is not the one before plus 1. So padding is not known, and
    documents whose positions go on from one to the next are one.

    Args:
        position_ids: int32 or int64, shape (N,) or (b, L), on the host. Of (b, L) the rows are
            read one behind the other, and each begins a document.
        max_sequence_num: the most documents to expect; the result has this many and one entries,
            and documents that are missing are empty ones at the end.

    Returns:
        int32, shape (max_sequence_num + 1,), in tokens: both cu_seqlens_q and cu_seqlens_k of the
        pack. Its last entry is N.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of more
            documents than max_sequence_num, how many.

    >>> cu_seqlens_from_positions([0, 1, 2, 0, 1, 0], 4)
    array([0, 3, 5, 6, 6], dtype=int32)
    """
    found, form = tokens.host_tokens("position_ids", position_ids)
    most = tokens.check_max_num(max_sequence_num, "max_sequence_num")
    starts = _run_starts(found.reshape(form), _is_next)
    return _cuts("position_ids", starts, found.size, most)


def _is_next(before: np.ndarray, position: np.ndarray) -> np.ndarray:
    # The greatest int64 plus 1 wraps to the least: no next one.
    return (position == before + 1) & (position > before)


def spans_from_ids(ids: Any, max_span_num: int, text_id: int = -1) -> np.ndarray:
    """Return the spans of tokens that see each other, from ids that tell them from text.

    A span is a run of one id other than text_id.

    Args:
        ids: int32 or int64, shape (N,) or (b, L), on the host. Of (b, L) the rows are read one
            behind the other, and no span goes on from one to the next.
        max_span_num: the most spans to expect, and how many the result has: those that are missing
            are empty ones, at the end of the last.
        text_id: the id of tokens in no span.

    Returns:
        int32, shape (max_span_num, 2), [start, end) in tokens of the pack.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of more spans
            than max_span_num, how many.

    >>> spans_from_ids([-1, 4, 4, -1, 5, 6], 4)
    array([[1, 3],
           [4, 5],
           [5, 6],
           [6, 6]], dtype=int32)
    """
    found, form = tokens.host_tokens("ids", ids)
    most = tokens.check_max_num(max_span_num, "max_span_num")
    text = tokens.check_id(text_id, "text_id")
    starts = _run_starts(found.reshape(form), np.equal)
    ends = np.append(starts[1:], found.size)
    is_span = found.ravel()[starts] != text
    runs = np.stack([starts, ends[: len(starts)]], axis=1)[is_span]
    if len(runs) > most:
        raise ValueError(f"max_span_num must be at least {len(runs)}, the spans of ids, got {most}")
    spans = np.full((most, 2), runs[-1, 1] if len(runs) else 0, np.int32)
    spans[: len(runs)] = runs
    return spans


def cu_seqlens_from_padding(mask: Any) -> CuSeqlens:
    """Return the cuts of a padded batch, as a pack of b * L rows and keys, from its padding mask.

    Each batch row becomes five sequences: front rows, front keys, the one from its first to its
    last token, tail keys, tail rows. So rows of padding see nothing, and nobody sees its keys.

    Args:
        mask: bool or of an int dtype, shape (b, L), on the host: 0 at padding, which lies before
            or behind a batch row's tokens, or both.

    Returns:
        CuSeqlens, two of int32, shape (5 * b + 1,), in tokens of the pack: ``get_attn_mask_q``
        takes them as they are, and ``split_columns`` gives each batch row its own columns.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of a hole
            between a batch row's tokens, the first.

    >>> cu_seqlens_q, cu_seqlens_k = cu_seqlens_from_padding([[0, 1, 1, 0]])
    >>> cu_seqlens_q
    array([0, 1, 1, 3, 3, 4], dtype=int32)
    >>> cu_seqlens_k
    array([0, 0, 1, 3, 4, 4], dtype=int32)
    """
    is_token = tokens.host_mask(mask)
    batch, length = is_token.shape
    start = np.arange(batch) * length
    first, end = _token_bounds(is_token)
    _check_holes(is_token, first, end)
    stop = start + length
    q = [start + first, start + first, start + end, start + end, stop]
    k = [start, start + first, start + end, stop, stop]
    return CuSeqlens(_joined(q), _joined(k))


def _token_bounds(is_token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each batch row's tokens begin and end: both at L where it has none."""
    column = np.arange(is_token.shape[1])
    first = np.where(is_token, column, len(column)).min(axis=1, initial=len(column))
    end = np.where(is_token, column + 1, 0).max(axis=1, initial=0)
    return first, np.maximum(first, end)


def _check_holes(is_token: np.ndarray, first: np.ndarray, end: np.ndarray) -> None:
    column = np.arange(is_token.shape[1])
    is_hole = ~is_token & (column > first[:, None]) & (column < end[:, None])
    if is_hole.any():
        row, i = (int(index[0]) for index in np.nonzero(is_hole))
        raise ValueError(
            "mask must be 0 before and behind a batch row's tokens only, got "
            f"mask[{row}, {i}] = 0 between those at {first[row]} and {end[row] - 1}"
        )


def _joined(ends: list[np.ndarray]) -> np.ndarray:
    """Return cuts from 0, of the ends of each part's sequences."""
    return np.append(0, np.stack(ends, axis=1)).astype(np.int32)


def cu_seqlens_from_slots(
    cu_seqlens_q: Any, cu_seqlens_q_padded: Any, cu_seqlens_k: Any, cu_seqlens_k_padded: Any
) -> CuSeqlens:
    """Return the cuts of sequences that lie in wider slots, as TransformerEngine's THD has them.

    Each becomes three sequences: itself, its gap's keys with no rows, its gap's rows with no keys.
    So rows of gaps see nothing, and nobody sees the gaps' keys.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host: the rows'
            lengths, one behind the other.
        cu_seqlens_q_padded: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host:
            where each sequence's slot begins, and the last one's end.
        cu_seqlens_k, cu_seqlens_k_padded: the same of the keys.

    Returns:
        CuSeqlens, two of int32, shape (3 * B + 1,), in rows and keys of the slots.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of a sequence
            longer than its slot, the first.

    >>> cuts = cu_seqlens_from_slots([0, 2, 3], [0, 4, 6], [0, 2, 3], [0, 4, 6])
    >>> cuts.cu_seqlens_q
    array([0, 2, 2, 4, 5, 5, 6], dtype=int32)
    >>> cuts.cu_seqlens_k
    array([0, 2, 4, 4, 5, 6, 6], dtype=int32)
    """
    named = {
        "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_q_padded": cu_seqlens_q_padded,
        "cu_seqlens_k": cu_seqlens_k, "cu_seqlens_k_padded": cu_seqlens_k_padded,
    }  # fmt: skip
    q, q_slots, k, k_slots = tokens.host_slots(named)
    _check_slots("cu_seqlens_q", q, q_slots)
    _check_slots("cu_seqlens_k", k, k_slots)
    q_end, k_end = q_slots[:-1] + np.diff(q), k_slots[:-1] + np.diff(k)
    rows, keys = [q_end, q_end, q_slots[1:]], [k_end, k_slots[1:], k_slots[1:]]
    return CuSeqlens(_joined(rows), _joined(keys))


def _check_slots(name: str, cu_seqlens: np.ndarray, slots: np.ndarray) -> None:
    checks.check_cu_seqlens_values(name, cu_seqlens)
    checks.check_cu_seqlens_values(f"{name}_padded", slots)
    lengths, room = np.diff(cu_seqlens), np.diff(slots)
    over = np.flatnonzero(lengths > room)
    if over.size:
        b = int(over[0])
        raise ValueError(
            f"{name} must hold sequences no longer than their slots, "
            f"got {lengths[b]} in a slot of {room[b]} in sequence {b}"
        )


def split_columns(columns: Any, b: int, q_token_num: int) -> np.ndarray:
    """Return the columns of a pack of b equal parts as those of a batch, rows counted in each part.

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE], on the host.
        b: number of parts, of N / b columns and Q / b rows each.
        q_token_num: number of query rows Q.

    Returns:
        int32, shape (b, 1, N / b, 2): of part i ``clip(columns - i * Q / b, 0, Q / b)``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> split_columns([[2, 0], [2, 1], [4, 2], [4, 3]], 2, 4).tolist()
    [[[[2, 0], [2, 1]]], [[[2, 0], [2, 1]]]]
    """
    array = np.asarray(columns)
    if isinstance(columns, (list, tuple)):
        array = array.astype(np.int32)
    n = checks.check_columns_form(str(array.dtype), array.shape)
    b, part_rows = tokens.check_split(n, b, q_token_num)
    parts = array.reshape(b, 1, n // b, 2).astype(np.int64)
    first_row = np.arange(b)[:, None, None, None] * part_rows
    return np.clip(parts - first_row, 0, part_rows).astype(np.int32)
