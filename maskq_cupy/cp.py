"""Context parallelism on the host: which rank holds which rows of a pack too long for one GPU.

A rank's rows are *chunks*: half-open ranges of the pack's rows, ascending, stored in that order.
What is here is pure, so that every rank computes the same alone, and needs NumPy alone. With a
rank's chunks ``shard_columns`` makes its columns.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskq_cupy import checks, host
from maskq_cupy.rule import INT32_MAX, Rule, resolve_rule

__all__ = [
    "SCHEMES",
    "TILE",
    "chunk_rows",
    "chunks_of",
    "cp_chunks",
    "gathered_keys",
    "rows_below",
]

TILE = 128  # rows, and keys, of the tiles in which work is counted
SCHEMES = ("contiguous", "zigzag", "per_sequence", "balanced")


def cp_chunks(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    world_size: int,
    scheme: str = "balanced",
    *,
    q_token_num: int | None = None,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    num_sink_tokens: int = 0,
    align: str = "bottom_right",
    chunk_size: int | None = None,
    causal_block: int | None = None,
    work: Any = None,
    tolerance: float = 0.02,
) -> list[np.ndarray]:
    """Return the row chunks of each rank: a partition of the pack's rows.

    ``contiguous`` gives equal parts. ``zigzag`` gives rank r of W the parts r and 2 W - 1 - r of
    2 W equal ones. ``per_sequence`` does the same with each sequence, and with the padding rows.
    ``balanced`` deals tiles of rows, the heaviest first, each to the least loaded rank with room.
    Its tiles have the largest of 2,048, 1,024 ... 128 rows with which all ranks get as many rows,
    and work within the tolerance.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0, on the host.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0, on the host.
        world_size: number of ranks W.
        scheme: one of the four above.
        q_token_num: number of rows, those of padding included; ``cu_seqlens_q[B]`` if None.
        causal, window, num_sink_tokens, align, chunk_size, causal_block: the rule, from which
            ``balanced`` counts the work.
        work: numbers >= 0, one for each 128 rows: the work of masks that the rule does not say,
            such as spans, intervals and trees. ``kv_num_blocks + full_kv_num_blocks`` of
            ``to_blocks`` is one such count.
        tolerance: how far above the mean a rank's work may be before tiles are made smaller.

    Returns:
        world_size arrays, int32, shape (C, 2): [start, end) in rows of the pack, ascending, none
        empty. With ``balanced`` all ranks have as many rows if 128 W divides Q. Otherwise they
        differ by a tile of 128 at most.

    O(Q / 128 + B) work, and O(B W) of ``per_sequence``; on the host, no GPU is asked.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> [chunks.tolist() for chunks in cp_chunks([0, 8, 12], [0, 8, 12], 2, "per_sequence")]
    [[[0, 2], [6, 9], [11, 12]], [[2, 6], [9, 11]]]
    """
    for name, value in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        _require_host(name, value)
    q, k, _, _ = host.host_batch(cu_seqlens_q, cu_seqlens_k, None, None)
    world = checks.check_int(world_size, "world_size", lowest=1)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    row_num = int(q[-1]) if q_token_num is None else checks.check_int(q_token_num, "q_token_num")
    if row_num < q[-1]:
        raise ValueError(
            f"q_token_num must be at least cu_seqlens_q[B], got {row_num} below {q[-1]}"
        )
    if scheme != "balanced":
        sides = {"contiguous": 1, "zigzag": 2, "per_sequence": 2}[scheme]
        cuts = q if scheme == "per_sequence" else q[:1]
        return _equal_parts(np.append(cuts, row_num), world, sides)
    if work is None:
        rule = resolve_rule(
            causal, window, num_sink_tokens, align, causal_block=causal_block, chunk_size=chunk_size
        )
        tile_work = _work_of_rule(q, k, row_num, rule)
    else:
        tile_work = _given_work(work, -(-row_num // TILE))
    return _balanced(tile_work, row_num, world, _check_tolerance(tolerance))


def _require_host(name: str, value: Any) -> None:
    if host.is_on_gpu(value):
        raise TypeError(f"cp_chunks needs {name} on the host: reading it back would wait")


def _check_tolerance(tolerance: float) -> float:
    if not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number >= 0, got {tolerance!r}")
    return tolerance


def _given_work(work: Any, tile_num: int) -> np.ndarray:
    _require_host("work", work)
    array = np.asarray(work)
    if array.size != tile_num or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"work must be a number for each 128 rows, {tile_num} in all, got {array.dtype} of "
            f"shape {array.shape}"
        )
    numbers = array.reshape(-1).astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"work must hold numbers >= 0, got work[{i}] = {numbers[i]}")
    return numbers


def _equal_parts(cuts: np.ndarray, world: int, sides: int) -> list[np.ndarray]:
    """Cut each [cuts[i], cuts[i + 1]) into sides * world equal parts; deal them to and fro."""
    parts = sides * world
    edges = cuts[:-1, None] + np.diff(cuts)[:, None] * np.arange(parts + 1) // parts
    by_part = edges.astype(np.int32).T  # (part, cut)
    starts, ends = by_part[:-1], by_part[1:]
    if sides == 2:  # (rank, cut, side): ascending in each rank
        starts, ends = (np.stack([x[:world], x[: world - 1 : -1]], axis=2) for x in (starts, ends))
    ranks = np.repeat(np.arange(world, dtype=np.int32), sides * (len(cuts) - 1))
    return _merged(starts.reshape(-1), ends.reshape(-1), ranks, world)


def _merged(
    starts: np.ndarray, ends: np.ndarray, ranks: np.ndarray, world: int
) -> list[np.ndarray]:
    """Return each rank's ranges, those that touch as one, none empty; they come rank by rank."""
    filled = starts < ends
    if not filled.all():
        starts, ends, ranks = starts[filled], ends[filled], ranks[filled]
    if not len(starts):
        return [np.zeros((0, 2), np.int32) for _ in range(world)]
    parts = (starts[1:] != ends[:-1]) | (ranks[1:] != ranks[:-1])  # no two that touch
    is_first, is_last = np.append(True, parts), np.append(parts, True)
    chunks = np.stack([starts[is_first], ends[is_last]], axis=1).astype(np.int32)
    return np.split(chunks, np.searchsorted(ranks[is_first], np.arange(1, world)))


# The work of a rule


def _visible(
    rule: Rule, row: np.ndarray, q_len: np.ndarray, kv_len: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return s and e of rows counted in their sequences: the keys [s, e) that they see."""
    p = row + (0 if rule.is_top_left else kv_len - q_len)
    s, e = p - rule.left, p + rule.right + 1
    if rule.causal_block:
        e = (p // rule.causal_block + 1) * rule.causal_block
    if rule.chunk_size:
        first = p // rule.chunk_size * rule.chunk_size
        s, e = np.maximum(s, first), np.minimum(e, first + rule.chunk_size)
    return np.maximum(s, 0), np.clip(e, 0, kv_len)


def runs_of_keys(
    rule: Rule, q: np.ndarray, k: np.ndarray, first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys that rows first .. last see, each pair of rows in one sequence.

    (pairs, 2) starts and ends: of the sinks, and of what the rows see behind them, which is one run
    since starts and ends never decrease along a sequence. They ascend, but for empty ones.
    """
    b = np.searchsorted(q[1:], first, side="right")
    q_len, kv_len = np.diff(q)[b], np.diff(k)[b]
    s, _ = _visible(rule, first - q[b], q_len, kv_len)
    _, e = _visible(rule, last - q[b], q_len, kv_len)
    sinks_end = np.minimum(np.minimum(rule.sinks, s), e)
    starts, ends = np.stack([np.zeros_like(s), s], axis=1), np.stack([sinks_end, e], axis=1)
    return starts + k[b][:, None], ends + k[b][:, None]


def _work_of_rule(q: np.ndarray, k: np.ndarray, row_num: int, rule: Rule) -> np.ndarray:
    """Return the work of each tile of rows: how many tiles of keys it sees anything of."""
    edges = np.union1d(np.arange(0, q[-1], TILE), q)  # a tile is cut where sequences begin
    first, last = edges[:-1], edges[1:] - 1
    starts, ends = (x.reshape(-1) for x in runs_of_keys(rule, q, k, first, last))
    filled = starts < ends
    tile = np.repeat(first // TILE, 2)[filled]
    first_key_tile, last_key_tile = starts[filled] // TILE, (ends[filled] - 1) // TILE
    touched = last_key_tile - first_key_tile + 1
    # The first tile of a run may be the last one of the run before.
    touched[1:] -= (first_key_tile[1:] == last_key_tile[:-1]) & (tile[1:] == tile[:-1])
    return np.bincount(tile, touched, minlength=-(-row_num // TILE))


# Dealing tiles


def _balanced(
    tile_work: np.ndarray, row_num: int, world: int, tolerance: float
) -> list[np.ndarray]:
    limit = (1 + tolerance) * tile_work.sum() / world
    for size in (2048, 1024, 512, 256):
        if row_num % (size * world) == 0:
            work = tile_work.reshape(-1, size // TILE).sum(axis=1)
            if work.max(initial=0) <= limit:
                owner, most = _deal(work, world)
                if most <= limit:
                    break
    else:
        size = TILE
        owner, _ = _deal(tile_work, world, has_ragged_tile=row_num % TILE != 0)
    tile = np.argsort(owner, kind="stable")
    starts = tile * size
    return _merged(starts, np.minimum(starts + size, row_num), owner[tile], world)


def _deal(work: np.ndarray, world: int, has_ragged_tile: bool = False) -> tuple[np.ndarray, float]:
    """Deal tiles, heaviest first, to the least loaded rank with room; return owners, most work.

    Ranks get as many tiles, or some of them one more. A last tile of fewer rows goes to one of
    those, so that no rank is more than a tile of rows behind another; it is dealt first.
    """
    owner = np.zeros(len(work), np.int64)
    room, spare = divmod(len(work), world)
    rooms, has_spare, loads = [room] * world, [False] * world, [0.0] * world
    heap = [(0.0, rank) for rank in range(world)]
    order = np.argsort(-work, kind="stable")
    if has_ragged_tile and spare:
        order = order[order != len(work) - 1]
        heap[0], has_spare[0], spare = (float(work[-1]), 0), True, spare - 1
        loads[0] = float(work[-1])
        heapq.heapify(heap)
    for tile, more in zip(order.tolist(), work[order].tolist(), strict=True):
        load, rank = heap[0]
        while not rooms[rank]:
            if spare and not has_spare[rank]:
                rooms[rank], has_spare[rank], spare = 1, True, spare - 1
            else:
                heapq.heappop(heap)
                load, rank = heap[0]
        rooms[rank] -= 1
        owner[tile] = rank
        loads[rank] = load + more
        heapq.heapreplace(heap, (load + more, rank))
    return owner, max(loads)


# Rows of chunks, and back


def chunk_rows(chunks: Any) -> np.ndarray:
    """Return the rows of one rank's chunks, or of all ranks' rank by rank.

    They are what ``index_select`` wants, and positions and labels. The argsort of the rows of all
    ranks restores the pack's order.

    Args:
        chunks: int32 or int64, shape (C, 2), ascending; or a list of such.

    Returns:
        int64, shape (q,).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> chunk_rows([[0, 2], [6, 9]]).tolist()
    [0, 1, 6, 7, 8]
    """
    return np.concatenate([tokens_of(c) for c in _of_ranks(chunks)] or [np.zeros(0, np.int64)])


def _of_ranks(chunks: Any) -> list[np.ndarray]:
    """Check the chunks of one rank or of several; return them as a list."""
    is_one = isinstance(chunks, np.ndarray) and chunks.ndim < 3
    if is_one or not any(np.ndim(some) == 2 for some in chunks):
        chunks = [chunks]
    return [host.host_chunks("row_chunks", some) for some in chunks]


def tokens_of(chunks: np.ndarray) -> np.ndarray:
    """Return the tokens of checked int64 chunks, in the order of the chunks."""
    lengths = chunks[:, 1] - chunks[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(chunks[:, 0] - before, lengths)


def chunks_of(rows: Any) -> np.ndarray:
    """Return the chunks of an ascending array of rows, as a partition made elsewhere gives them.

    Args:
        rows: int32 or int64, shape (q,), ascending, on the host.

    Returns:
        int32, shape (C, 2); int64 where rows do not fit.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> chunks_of([0, 1, 6, 7, 8]).tolist()
    [[0, 2], [6, 9]]
    """
    array = np.asarray(rows)
    if array.size == 0 and array.ndim == 1:
        return np.zeros((0, 2), np.int32)
    if str(array.dtype) not in checks.INDEX_DTYPES or array.ndim != 1:
        expected = "int32 or int64 of shape (q,)"
        raise checks.form_error("rows", expected, str(array.dtype), array.shape)
    rows = array.astype(np.int64)
    if rows[0] < 0:
        raise ValueError(f"rows must be at least 0, got rows[0] = {rows[0]}")
    late = np.flatnonzero(rows[1:] <= rows[:-1])
    if late.size:
        i = int(late[0]) + 1
        raise ValueError(
            f"rows must ascend, got rows[{i}] = {rows[i]} after rows[{i - 1}] = {rows[i - 1]}: "
            "sort them"
        )
    cut = np.flatnonzero(np.diff(rows) != 1)
    chunks = np.stack([rows[np.append(0, cut + 1)], rows[np.append(cut, -1)] + 1], axis=1)
    return chunks.astype(np.int32) if chunks[-1, 1] <= INT32_MAX else chunks


def rows_below(row_chunks: Any, positions: Any) -> np.ndarray:
    """Return how many of a rank's rows lie below each position of the pack.

    For the positions ``cu_seqlens_q`` the result is the rank's own cu_seqlens. Use them with
    intervals only, as a rule would have another diagonal there.

    Args:
        row_chunks: int32 or int64, shape (C, 2), ascending, on the host.
        positions: ints, any shape.

    Returns:
        int32, the shape of ``positions``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> rows_below([[0, 2], [4, 5]], [0, 3, 5]).tolist()
    [0, 2, 3]
    """
    chunks = host.host_chunks("row_chunks", row_chunks)
    array = np.asarray(positions)
    if array.size and str(array.dtype) not in checks.INDEX_DTYPES:
        raise TypeError(f"positions must be int32 or int64, got {array.dtype}")
    # A first chunk that lies below nothing takes the positions before all others.
    starts, ends = np.concatenate([[[0, 0]], chunks]).T
    below = np.concatenate([[0], np.cumsum(ends - starts)])
    chunk = np.maximum(np.searchsorted(starts, array, side="right") - 1, 0)
    inside = np.clip(array, starts[chunk], ends[chunk]) - starts[chunk]
    return (below[chunk] + inside).astype(np.int32)


def gathered_keys(chunks: Sequence[Any], kv_token_num: int | None = None) -> np.ndarray:
    """Return the key chunks of an all-gather of keys that were dealt like the rows.

    The chunks come rank by rank. Padding keys fill each rank to the length of the longest, since
    NCCL gathers equal shapes.

    Args:
        chunks: each rank's, int32 or int64, shape (C, 2), ascending.
        kv_token_num: number of columns N; the padding keys lie behind them. As many as the rows
            if None.

    Returns:
        int64, shape (K, 2): for ``shard_columns(columns, chunks[rank], key_chunks)``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> gathered_keys([[[0, 2]], [[2, 3]]]).tolist()
    [[0, 2], [2, 3], [3, 4]]
    """
    ranks = _of_ranks(chunks)
    lengths = [checks.chunk_total(some) for some in ranks]
    longest = max(lengths, default=0)
    key_num = 0 if kv_token_num is None else checks.check_token_num(kv_token_num)
    padding = max([key_num, *(int(some[-1, 1]) for some in ranks if len(some))])
    parts = []
    for some, length in zip(ranks, lengths, strict=True):
        parts.append(some)
        if length < longest:
            parts.append(np.array([[padding, padding + longest - length]]))
    return np.concatenate(parts or [np.zeros((0, 2), np.int64)])
