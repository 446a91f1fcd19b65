"""The contract in NumPy: every kernel is tested against these functions.

Terms, shapes and rules are those of the GPU functions of the same names. All arithmetic is in
64-bit integers, nothing loops over rows or columns in Python, and NumPy is all that it needs.
"""

from typing import Any, NamedTuple

import numpy as np

from maskq_cupy import checks, cp, forest, host
from maskq_cupy.reference_cu_seqlens import (
    CuSeqlens,
    cu_seqlens_from_ids,
    cu_seqlens_from_padding,
    cu_seqlens_from_positions,
    cu_seqlens_from_slots,
    spans_from_ids,
    split_columns,
)
from maskq_cupy.rule import CAUSAL, INT32_MAX, Rule, resolve_rule

__all__ = [
    "Blocks",
    "CuSeqlens",
    "TreeOrder",
    "blocks_width",
    "cu_seqlens_from_ids",
    "cu_seqlens_from_padding",
    "cu_seqlens_from_positions",
    "cu_seqlens_from_slots",
    "excess_pairs",
    "get_attn_mask_q",
    "needed_keys",
    "shard_columns",
    "spans_from_ids",
    "split_columns",
    "to_blocks",
    "to_dense",
    "to_four_columns",
    "tree_attn_mask_q",
    "tree_order",
]

DENSE_LIMIT = 2**30  # pairs, a byte each, of a dense mask unless the caller allows more


def get_attn_mask_q(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    attn_mask_kv: Any = None,
    kv_token_num: int | None = None,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    num_sink_tokens: int = 0,
    align: str = "bottom_right",
    causal_block: int | None = None,
    chunk_size: int | None = None,
    spans: Any = None,
    validate: bool = False,
) -> np.ndarray:
    """Return, for each key column of a packed batch, the rows that see it.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0, on the host.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host.
        attn_mask_kv: int32 or int64, shape (Q, 2) or (2 * Q,): the keys [start, end) that each
            row sees, counted from its sequence's first key. Excludes the other rules. Keys can
            leak: where a start or an end decreases from one row of a sequence to the next, the
            columns show a superset.
        kv_token_num: number of columns N; ``cu_seqlens_k[B]`` if None. Columns past the last
            sequence are seen by nobody.
        causal: row i sees keys up to its diagonal, i + kv_len - q_len.
        window: (left, right) keys around the diagonal, -1 for unbounded.
        num_sink_tokens: this many first keys of a sequence stay visible left of the window or of
            the chunk.
        align: ``"top_left"`` puts the diagonal of row i at key i.
        causal_block: a row sees keys up to the end of its diagonal's block of so many keys.
        chunk_size: a row sees no key outside of its diagonal's chunk of so many keys.
        spans: int32 or int64, shape (S, 2), on the host: [start, end) in keys of the pack, in
            order and apart; a row whose diagonal is in a span sees all of the span's keys in its
            sequence too. Empty ones, and none at all, are normal.
        validate: require that the columns show exactly the intervals; other values are always
            checked.

    Returns:
        int32, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c is shown to
        exactly the rows ``[UTE, LTS)``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> get_attn_mask_q([0, 3, 5], [0, 3, 7]).T
    array([[3, 3, 3, 5, 5, 5, 5],
           [0, 1, 2, 3, 3, 3, 4]], dtype=int32)
    """
    rule = resolve_rule(
        causal, window, num_sink_tokens, align, causal_block, chunk_size,
        spans is not None, attn_mask_kv is not None,
    )  # fmt: skip
    q, k, intervals, column_num = host.host_batch(
        cu_seqlens_q, cu_seqlens_k, attn_mask_kv, kv_token_num
    )
    column = np.arange(column_num)
    if intervals is None:
        array = None if spans is None else host.host_spans(spans, column_num)
        lts, ute = _rule_columns(q, k, column, rule, array)
    else:
        if validate:
            row, first, end = _excess_runs(q, k, intervals)
            checks.check_excess(int((end - first).sum()), int(row[0]) if len(row) else 0)
        lts, ute = _interval_columns(q, k, column, intervals)
    return np.stack([lts, ute], axis=1).astype(np.int32)


def _rule_columns(
    q: np.ndarray, k: np.ndarray, column: np.ndarray, rule: Rule, spans: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Invert the rule's two lines: the first and the last position that sees a key, as rows."""
    # A last, empty sequence takes the padding columns: its rows are [total, total).
    q_start, q_end = q, np.append(q[1:], q[-1])
    kv_start, kv_end = k, np.append(k[1:], k[-1])
    b = np.searchsorted(k[1:], column, side="right")  # sequences that end at or before the column
    q_len, kv_len = (q_end - q_start)[b], (kv_end - kv_start)[b]
    offset = 0 if rule.is_top_left else kv_len - q_len
    j = column - kv_start[b]
    first, behind = j - rule.right, np.where(j < rule.sinks, INT32_MAX, j + rule.left + 1)
    if rule.causal_block:
        first = j // rule.causal_block * rule.causal_block
    if rule.chunk_size:
        chunk = j // rule.chunk_size * rule.chunk_size
        first = np.maximum(first, chunk)
        behind = np.where(j < rule.sinks, behind, np.minimum(behind, chunk + rule.chunk_size))
    if spans is not None and len(spans):
        s = np.searchsorted(spans[:, 1], column, side="right")  # the first that ends behind it
        start, end = np.append(spans, [[INT32_MAX, INT32_MAX]], axis=0)[s].T
        start, end = np.maximum(start - kv_start[b], 0), np.minimum(end - kv_start[b], kv_len)
        is_in = start <= j
        first = np.where(is_in, np.minimum(first, start), first)
        behind = np.where(is_in, np.maximum(behind, end), behind)
    ute = q_start[b] + np.clip(first - offset, 0, q_len)
    lts = q_start[b] + np.clip(behind - offset, 0, q_len)
    return lts, ute


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
    parent: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    kv_token_num: int | None = None,
    *,
    full: Any = None,
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
        full: bool or any int dtype, shape (B,), on the host: the rows of a segment whose flag is
            not 0 see all of its keys, not only those up to the diagonal.

    Returns:
        int32, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c is shown to
        exactly the rows ``[UTE, LTS)``. The columns of a tree are always exact.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    A prompt of two tokens and two answers, of two tokens and of one:

    >>> tree_attn_mask_q([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5]).T
    array([[5, 5, 4, 4, 5],
           [0, 1, 2, 3, 4]], dtype=int32)
    """
    q, k, _, column_num = host.host_batch(cu_seqlens_q, cu_seqlens_k, None, kv_token_num)
    parents = host.host_parents(parent, len(k) - 1)
    column = np.arange(column_num)
    _, ute = _rule_columns(q, k, column, CAUSAL)
    # A last segment takes the padding columns: it ends where the rows end.
    row_ends = q[np.append(forest.subtree_ends(parents), len(parents))]
    segment = np.searchsorted(k[1:], column, side="right")
    lts = row_ends[segment]
    if full is not None:
        flags = host.host_flags(full, len(parents))
        ute = np.where(np.append(flags, False)[segment], q[segment], ute)
    return np.stack([lts, ute], axis=1).astype(np.int32)


class TreeOrder(NamedTuple):
    """A forest's segments in depth-first order: what `tree_order` returns."""

    order: np.ndarray
    parent: np.ndarray
    inverse: np.ndarray


def tree_order(parent: Any) -> TreeOrder:
    """Return the depth-first order of segments in any order, as draft trees come level by level.

    ``tree_attn_mask_q`` wants the segments in depth-first order. If ``x`` has an entry for each
    segment, ``x[order]`` has them in that order. ``y[inverse]`` puts results back into the order
    given.

    Args:
        parent: int32 or int64, shape (B,), on the host: each segment's parent, -1 for a root.
            Parents may stand before or behind their children.

    Returns:
        TreeOrder of int64, shape (B,) each: ``order``, the segments' numbers in depth-first order,
        siblings in the order given; ``parent``, the parents of the segments in this order, by
        their numbers in it; ``inverse``, the place of each segment in it.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of a cycle, a
            member.

    Two answers to a prompt, and then what goes on from each of them:

    >>> order, parent, inverse = tree_order([-1, 0, 0, 1, 2])
    >>> order, parent
    (array([0, 1, 3, 2, 4]), array([-1,  0,  1,  0,  3]))
    >>> order[inverse]
    array([0, 1, 2, 3, 4])

    Of segments of several tokens each, the tokens are put in order so:

    >>> lengths = np.array([2, 1, 3, 2, 1])
    >>> starts = np.cumsum(lengths) - lengths
    >>> cu_seqlens = np.cumsum([0, *lengths[order]])
    >>> np.arange(cu_seqlens[-1]) + np.repeat(starts[order] - cu_seqlens[:-1], lengths[order])
    array([0, 1, 2, 6, 7, 3, 4, 5, 8])
    """
    parents, order = host.host_tree(parent)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    above = parents[order]
    return TreeOrder(order, np.where(above == -1, -1, inverse[above]), inverse)


def excess_pairs(cu_seqlens_q: Any, cu_seqlens_k: Any, attn_mask_kv: Any) -> int:
    """Return how many (row, key) pairs the columns of intervals show beyond them.

    0 means that ``get_attn_mask_q(cu_seqlens_q, cu_seqlens_k, attn_mask_kv)`` shows exactly these
    intervals. Its columns never show fewer pairs. The count is ``sum(LTS - UTE)`` of the columns
    less the pairs of the intervals.

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
    _, first, end = excess_runs(cu_seqlens_q, cu_seqlens_k, attn_mask_kv)
    return int((end - first).sum())


def excess_runs(
    cu_seqlens_q: Any, cu_seqlens_k: Any, attn_mask_kv: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the keys that rows are shown beyond their intervals, as runs.

    Takes what ``excess_pairs`` takes; returns of each run its row, its first key and the key behind
    its last, int64, in coordinates of the pack, by rows.
    """
    checks.check_intervals_given(attn_mask_kv)
    q, k, intervals, _ = host.host_batch(cu_seqlens_q, cu_seqlens_k, attn_mask_kv, None)
    assert intervals is not None  # as the check above says
    return _excess_runs(q, k, intervals)


def _excess_runs(
    q: np.ndarray, k: np.ndarray, intervals: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start_key, end_key = _visible_keys(q, k, intervals)
    ends, starts = _staircases(start_key, end_key)
    blind = end_key <= start_key  # such a row has one run, all that it is shown
    first = np.stack([starts, np.where(blind, ends, np.maximum(end_key, starts))], axis=1)
    end = np.stack([np.minimum(start_key, ends), ends], axis=1)
    row, side = np.nonzero(first < end)
    return row, first[row, side], end[row, side]


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


class Blocks(NamedTuple):
    """Which tiles are partial and which are full, as FlexAttention's BlockMask has it.

    ``kv_*`` list the column tiles of each row tile, ``q_*`` the row tiles of each column tile. Of
    the indices the first ``num_blocks`` count, ascending; the rest are 0.
    """

    kv_num_blocks: Any
    kv_indices: Any
    full_kv_num_blocks: Any
    full_kv_indices: Any
    q_num_blocks: Any
    q_indices: Any
    full_q_num_blocks: Any
    full_q_indices: Any


def to_blocks(
    columns: Any,
    q_token_num: int,
    block_size: int | tuple[int, int] = (128, 128),
    *,
    width: int | tuple[int, int] | None = None,
    needed: np.ndarray | None = None,
    all_partial: bool = False,
    validate: bool = False,
) -> Blocks:
    """Return which tiles of the mask are full and which are partial, by row and by column tile.

    A tile is full where all of its pairs are shown, partial where some are; one that hangs over
    the last row or column is never full. With a ``width`` below what a tile needs, **its list is
    cut, and so pairs are hidden**: a count is at most the width.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on the host.
        q_token_num: number of query rows Q, those of padding included.
        block_size: (rows, columns) of a tile, or one int for both.
        width: (w_kv, w_q), or one int for both: the entries that there is room for in a row tile's
            list and in a column tile's, at most as many as there are tiles; None: as many.
        needed: int32, shape (2,): receives the widths that cut nothing.
        all_partial: list every tile that shows a pair as partial, and none as full.
        validate: require a width that cuts nothing, and of each column that
            0 <= UTE <= LTS <= Q. Otherwise bounds are clipped to the Q rows.

    Returns:
        Blocks of int32, shapes (b, h, Qt) and (b, h, Qt, w_kv) for the ``kv_*`` and (b, h, Nt) and
        (b, h, Nt, w_q) for the ``q_*``, for Qt x Nt tiles; (N, 2) is one slice, (1, 1, N, 2).

    O(N + Qt * Nt) work and memory a slice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> blocks = to_blocks(get_attn_mask_q([0, 6], [0, 6]), 6, (2, 3))
    >>> blocks.kv_num_blocks.tolist(), blocks.kv_indices.tolist()
    ([[[1, 1, 1]]], [[[[0, 0], [1, 0], [1, 0]]]])
    >>> blocks.full_kv_num_blocks.tolist(), blocks.full_kv_indices.tolist()
    ([[[0, 1, 1]]], [[[[0, 0], [0, 0], [0, 0]]]])
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    slices = _host_columns(columns, row_num if validate else None)
    block_q, block_k = checks.check_block_size(block_size)
    column_tiles, row_tiles = -(-slices.shape[2] // block_k), -(-row_num // block_q)
    w_kv, w_q = checks.check_width(width, row_tiles, column_tiles)
    tiles = np.empty((2, *slices.shape[:2], column_tiles, row_tiles), bool)
    partial, full = tiles
    for at in np.ndindex(slices.shape[:2]):
        lts, ute = slices[at].T
        live = _live_row_tiles(lts, ute, row_num, block_q, block_k)
        full[at] = not all_partial and _full_row_tiles(lts, ute, row_num, block_q, block_k)
        partial[at] = live & ~full[at]
    by_row, by_column = tiles.sum(-2), tiles.sum(-1)
    if needed is not None:
        checks.check_needed_form(str(needed.dtype), needed.shape)
        needed[:] = by_row.max(initial=0), by_column.max(initial=0)
    if validate:
        checks.check_width_values((w_kv, w_q), by_row, by_column)
    partial_t, full_t = partial.swapaxes(-1, -2), full.swapaxes(-1, -2)
    return Blocks(
        *_listed(partial_t, w_kv),
        *_listed(full_t, w_kv),
        *_listed(partial, w_q),
        *_listed(full, w_q),
    )


def blocks_width(
    max_seqlen: int, block_size: int | tuple[int, int] = 128, causal: bool = True
) -> tuple[int, int]:
    """Return a width for ``to_blocks`` that cuts no list of a pack with as many rows as keys.

    Args:
        max_seqlen: the tokens of the longest sequence, rows and keys alike.
        block_size: (rows, columns) of a tile, or one int for both.
        causal: True if no row sees a key behind its own position. False if a row may: by a rule
            that is not causal, or by blocks or spans.

    Returns:
        (w_kv, w_q), ints. A row tile sees at most the keys from ``max_seqlen - 1`` in front of its
        first row on, and so many tiles hold them; a column tile alike.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> blocks_width(32768), blocks_width(1000, (256, 128), causal=False)
    ((257, 257), (19, 10))
    """
    reach = max(checks.check_int(max_seqlen, "max_seqlen") - 1, 0)
    block_q, block_k = checks.check_block_size(block_size)
    sides = 1 if causal else 2
    if block_q == block_k:
        width = 1 + sides * -(-reach // block_q)
        return width, width
    seen = sides * reach - 1
    return 1 + -(-(block_q + seen) // block_k), 1 + -(-(block_k + seen) // block_q)


def _host_columns(columns: Any, checked_rows: int | None = None) -> np.ndarray:
    """Return the slices of columns, int64, shape (b, h, N, 2).

    Checked to be bounds of so many rows, unless that is None.
    """
    array = host.host_array("columns", columns, checks.SLICES)
    checks.check_slices_form(str(array.dtype), array.shape)
    if checked_rows is not None:
        checks.check_columns_values(array, checked_rows)
    slices = array.astype(np.int64)
    return slices if slices.ndim == 4 else slices[None, None]


def _live_row_tiles(
    lts: np.ndarray, ute: np.ndarray, row_num: int, block_q: int, block_k: int
) -> np.ndarray:
    """Return the boolean (Nt, Qt): is a column of the tile shown to a row of it?"""
    tile = np.arange(len(lts)) // block_k
    row, row_end = np.maximum(ute, 0), np.minimum(lts, row_num)
    shown = row < row_end
    first, last = row[shown] // block_q, (row_end[shown] - 1) // block_q
    # A column adds one to the row tiles first .. last, as a difference.
    change = np.zeros((-(-len(lts) // block_k), -(-row_num // block_q) + 1), np.int64)
    np.add.at(change, (tile[shown], first), 1)
    np.add.at(change, (tile[shown], last + 1), -1)
    return change.cumsum(axis=1)[:, :-1] > 0


def _full_row_tiles(
    lts: np.ndarray, ute: np.ndarray, row_num: int, block_q: int, block_k: int
) -> np.ndarray:
    """Return the boolean (Nt, Qt): do all rows of it lie between the tile's max(UTE), min(LTS)?"""
    first_column = np.arange(0, len(lts), block_k)
    first_row = np.arange(0, row_num, block_q)
    if not len(lts):
        return np.zeros((0, len(first_row)), bool)
    max_ute = np.maximum.reduceat(ute, first_column)[:, None]
    min_lts = np.minimum.reduceat(lts, first_column)[:, None]
    whole = (first_column + block_k <= len(lts))[:, None]
    return whole & (first_row >= max_ute) & (first_row + block_q <= np.minimum(min_lts, row_num))


def _listed(tiles: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tiles of each row are listed, and which, the rest of the width zeros."""
    count = np.minimum(tiles.sum(-1), width).astype(np.int32)
    ascending = np.argsort(~tiles, axis=-1, kind="stable")[..., :width].astype(np.int32)
    ascending[np.arange(width) >= count[..., None]] = 0
    return count, ascending


def to_four_columns(columns: Any, q_token_num: int, *, validate: bool = False) -> np.ndarray:
    """Return the columns in the older form of FlashMask's operators.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on the host.
        q_token_num: number of query rows Q.
        validate: require of each column that 0 <= UTE <= LTS <= Q. Otherwise bounds are clipped
            to the Q rows.

    Returns:
        int32, shape (N, 4) or (b, h, N, 4), columns [LTS, Q, 0, UTE]: the column is hidden from the
        rows from LTS up to Q, and from 0 up to UTE.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> to_four_columns(get_attn_mask_q([0, 2], [0, 2]), 2)
    array([[2, 2, 0, 0],
           [2, 2, 0, 1]], dtype=int32)
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    lts, ute = np.moveaxis(_host_columns(columns, row_num if validate else None), -1, 0)
    four = np.stack([lts, np.full_like(lts, row_num), np.zeros_like(lts), ute], axis=-1)
    return _in_rank_of(columns, four.astype(np.int32))


def to_dense(
    columns: Any, q_token_num: int, *, limit: int = DENSE_LIMIT, validate: bool = False
) -> np.ndarray:
    """Return the mask as a matrix: does the row see the column?

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on the host.
        q_token_num: number of query rows Q.
        limit: the most pairs of row and column to allow, a byte each.
        validate: require of each column that 0 <= UTE <= LTS <= Q. Otherwise bounds are clipped
            to the Q rows.

    Returns:
        bool, shape (Q, N) or (b, h, Q, N).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> to_dense(get_attn_mask_q([0, 3], [0, 3], window=(1, 0)), 3).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]])
    """
    row_num = checks.check_int(q_token_num, "q_token_num")
    slices = _host_columns(columns, row_num if validate else None)
    b, h, column_num, _ = slices.shape
    checks.check_dense_size(row_num, column_num, limit, b * h)
    row = np.arange(row_num)[:, None]
    lts, ute = np.moveaxis(slices[..., None, :, :], -1, 0)
    return _in_rank_of(columns, (row >= ute) & (row < lts))


def _in_rank_of(columns: Any, result: np.ndarray) -> np.ndarray:
    """Return a result of (b, h, ...) without these two for columns of (N, 2)."""
    return result if np.ndim(columns) == 4 else result[0, 0]


def shard_columns(
    columns: Any, row_chunks: Any, key_chunks: Any = None, *, key_num: int | None = None
) -> np.ndarray:
    """Return the columns of some of the pack's rows, as one rank of several holds them.

    Local row i sees column i' exactly as the pack's row that is stored at i saw the key that is
    stored at i': exact columns stay exact, a superset stays that superset, and no visible pair is
    hidden.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on the host.
        row_chunks: int32 or int64, shape (C, 2), [start, end) in rows of the pack, ascending: the
            rows that the rank holds, stored in that order. Empty ones are normal.
        key_chunks: int32 or int64, shape (K, 2), [start, end) in keys of the pack, in the order in
            which the rank's keys are stored, repeats allowed; all N keys if None. Keys outside of
            [0, N) are padding.
        key_num: number of keys M; on the host the chunks say it already.

    Returns:
        int32, shape (M, 2) or (b, h, M, 2), columns [LTS, UTE] in rows of the rank, half-open.
        A key with UTE == LTS is shown to none of them: the rank does not need it. Padding keys have
        (q, q), for the rank's q rows.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> shard_columns(get_attn_mask_q([0, 3, 5], [0, 3, 7]), [[0, 2], [4, 5]]).T
    array([[2, 2, 2, 3, 3, 3, 3],
           [0, 1, 2, 2, 2, 2, 2]], dtype=int32)
    """
    array = np.asarray(columns)
    column_num = checks.check_slices_form(str(array.dtype), array.shape)
    chunks = host.host_chunks("row_chunks", row_chunks)
    keys = np.arange(column_num)
    if key_chunks is not None:
        keys = cp.tokens_of(host.host_chunks("key_chunks", key_chunks))
    if key_num is not None:
        checks.check_key_num(key_num, len(keys))
    local = np.full((*array.shape[:-2], len(keys), 2), checks.chunk_total(chunks), np.int32)
    is_key = (keys >= 0) & (keys < column_num)
    local[..., is_key, :] = cp.rows_below(chunks, array[..., keys[is_key], :])
    return local


def needed_keys(columns: Any, block_size: int = 128) -> np.ndarray:
    """Return how many keys of each block are shown to any row.

    For the columns of another rank's rows and this rank's keys, as ``shard_columns`` makes them,
    it says how many of this rank's keys the other rank needs, block by block.

    Args:
        columns: int32, shape (M, 2) or (b, h, M, 2), columns [LTS, UTE], on the host.
        block_size: keys of a block.

    Returns:
        int32, shape (ceil(M / block_size),) or (b, h, ceil(M / block_size)).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> needed_keys(shard_columns(get_attn_mask_q([0, 6], [0, 6]), [[2, 4]]), 3).tolist()
    [3, 1]
    """
    array = np.asarray(columns)
    column_num = checks.check_slices_form(str(array.dtype), array.shape)
    size = checks.check_int(block_size, "block_size", lowest=1)
    is_needed = array[..., 1] < array[..., 0]
    if column_num == 0:
        return np.zeros((*array.shape[:-2], 0), np.int32)
    starts = np.arange(0, column_num, size)
    return np.add.reduceat(is_needed, starts, axis=-1, dtype=np.int32)
