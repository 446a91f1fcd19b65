"""The contract in NumPy: every kernel is tested against these functions.

Terms, shapes and rules are those of the GPU functions of the same names. All arithmetic is in
64-bit integers, nothing loops over rows or columns in Python, and NumPy is all that it needs.
"""

from typing import Any

import numpy as np

from maskq_cupy import checks
from maskq_cupy.rule import CAUSAL, Rule, resolve_rule


def get_attn_mask_q(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    attn_mask_kv: Any = None,
    kv_token_num: int | None = None,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    num_sink_tokens: int = 0,
) -> np.ndarray:
    """Return, for each key column of a packed batch, the rows that see it.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0, on the host.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host.
        attn_mask_kv: int32 or int64, shape (Q, 2) or (2 * Q,): the keys [start, end) that each
            row sees, counted from its sequence's first key. Excludes the other rules.
        kv_token_num: number of columns N; ``cu_seqlens_k[B]`` if None. Columns past the last
            sequence are seen by nobody.
        causal: row i sees keys up to i + kv_len - q_len (bottom-right aligned).
        window: (left, right) keys around the diagonal, -1 for unbounded.
        num_sink_tokens: this many first keys of a sequence stay visible left of the window.

    Returns:
        int32, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c is shown to
        exactly the rows ``[UTE, LTS)``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> get_attn_mask_q([0, 3, 5], [0, 3, 7]).T
    array([[3, 3, 3, 5, 5, 5, 5],
           [0, 1, 2, 3, 3, 3, 4]], dtype=int32)
    """
    rule = resolve_rule(causal, window, num_sink_tokens, attn_mask_kv is not None)
    q, k, intervals, column_num = checks.host_batch(
        cu_seqlens_q, cu_seqlens_k, attn_mask_kv, kv_token_num
    )
    column = np.arange(column_num)
    if intervals is None:
        lts, ute = _rule_columns(q, k, column, rule)
    else:
        lts, ute = _interval_columns(q, k, column, intervals)
    return np.stack([lts, ute], axis=1).astype(np.int32)


def _rule_columns(
    q: np.ndarray, k: np.ndarray, column: np.ndarray, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """Invert the rule's two straight lines: a row for each column, clipped to its sequence."""
    # A last, empty sequence takes the padding columns: its rows are [total, total).
    q_start, q_end = q, np.append(q[1:], q[-1])
    kv_start, kv_end = k, np.append(k[1:], k[-1])
    b = np.searchsorted(k[1:], column, side="right")  # sequences that end at or before the column
    q_len = (q_end - q_start)[b]
    offset = (kv_end - kv_start)[b] - q_len
    j = column - kv_start[b]
    ute = q_start[b] + np.clip(j - offset - rule.right, 0, q_len)
    lts = q_start[b] + np.clip(j - offset + rule.left + 1, 0, q_len)
    return np.where(j < rule.sinks, q_end[b], lts), ute


def _interval_columns(
    q: np.ndarray, k: np.ndarray, column: np.ndarray, intervals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Invert the rows' two staircases: count the steps at or below each column."""
    ends, starts = _staircases(*_visible_keys(q, k, intervals))
    ute = np.searchsorted(ends, column, side="right")
    lts = np.searchsorted(starts, column, side="right")
    return np.maximum(lts, ute), ute


def _staircases(start_key: np.ndarray, end_key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running maximum of E, and the running minimum from the right of S."""
    return np.maximum.accumulate(end_key), np.minimum.accumulate(start_key[::-1])[::-1]


def tree_attn_mask_q(
    parent: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, kv_token_num: int | None = None
) -> np.ndarray:
    """Return, for each key column of a packed forest of segments, the rows that see it.

    A row sees its own segment's keys up to the diagonal (bottom-right aligned), and all keys of the
    segment's ancestors. A segment may have keys and no rows, as a cached prompt has.

    Args:
        parent: int32 or int64, shape (B,), on the host: each segment's parent, -1 for a root.
            Segments are packed in depth-first order: a parent is the segment before its child, or
            one of that segment's ancestors.
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0, on the host.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host.
        kv_token_num: number of columns N; ``cu_seqlens_k[B]`` if None. Columns past the last
            segment are seen by nobody.

    Returns:
        int32, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c is shown to
        exactly the rows ``[UTE, LTS)``. It is what the rows see, exactly.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    A prompt of two tokens and two answers, of two tokens and of one:

    >>> tree_attn_mask_q([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5]).T
    array([[5, 5, 4, 4, 5],
           [0, 1, 2, 3, 4]], dtype=int32)
    """
    q, k, _, column_num = checks.host_batch(cu_seqlens_q, cu_seqlens_k, None, kv_token_num)
    parents = checks.host_parents(parent, len(k) - 1)
    column = np.arange(column_num)
    _, ute = _rule_columns(q, k, column, CAUSAL)
    # A last segment takes the padding columns: it ends where the rows end.
    row_ends = q[np.append(checks.subtree_ends(parents), len(parents))]
    lts = row_ends[np.searchsorted(k[1:], column, side="right")]
    return np.stack([lts, ute], axis=1).astype(np.int32)


def excess_pairs(cu_seqlens_q: Any, cu_seqlens_k: Any, attn_mask_kv: Any) -> int:
    """Return how many (row, key) pairs the columns of intervals show beyond them.

    0 means that ``get_attn_mask_q(cu_seqlens_q, cu_seqlens_k, attn_mask_kv)`` shows exactly these
    intervals; it never shows fewer. The count is ``sum(LTS - UTE)`` of its columns less the pairs
    of the intervals.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0, on the host.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host.
        attn_mask_kv: int32 or int64, shape (Q, 2) or (2 * Q,): the keys [start, end) that each
            row sees, counted from its sequence's first key.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Two rows of one sequence, of which the second sees less than the first:

    >>> excess_pairs([0, 2], [0, 4], [[0, 3], [0, 1]])
    2
    """
    checks.check_intervals_given(attn_mask_kv)
    q, k, intervals, _ = checks.host_batch(cu_seqlens_q, cu_seqlens_k, attn_mask_kv, None)
    return int(_excess(q, k, intervals).sum())


def _excess(q: np.ndarray, k: np.ndarray, intervals: Any) -> np.ndarray:
    """Return how many keys each row is shown beyond its own."""
    start_key, end_key = _visible_keys(q, k, intervals)
    ends, starts = _staircases(start_key, end_key)
    return np.maximum(ends - starts, 0) - np.maximum(end_key - start_key, 0)


def _visible_keys(
    q: np.ndarray, k: np.ndarray, intervals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return S and E of each row: keys [S, E) in pack coordinates, [kv_end, kv_start) if none."""
    row = np.arange(q[-1])
    b = np.searchsorted(q[1:], row, side="right")
    kv_start, kv_end = k[b], k[b + 1]
    kv_len = kv_end - kv_start
    start, end = intervals[: len(row)].T
    start, end = np.clip(start, 0, kv_len), np.clip(end, 0, kv_len)
    blind = end <= start
    return np.where(blind, kv_end, kv_start + start), np.where(blind, kv_start, kv_start + end)
