"""Pictures of a mask, drawn from its columns alone: a table, a drawing in text, a PNG.

Text is plain ASCII, so that it survives a pipe, a log and a terminal without colour. A pack larger
than the picture is scaled down to a grid of cells, and the picture says how large they are. Nothing
here builds a matrix of rows x keys, nor one of tiles: a million tokens take seconds.
NumPy is all that is needed; matplotlib (the ``plot`` extra) is imported when a PNG is saved.
"""

import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskq_cupy import checks, cp, installing, reference

LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
# Of Okabe and Ito, who chose them for the colour-blind; the last is of several sequences.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#4d4d4d")
INK = "#111827"  # of letters and arrows
NO_KEYS = "#d1d5db"  # of rows: a colour is that of keys
SEVERAL_SEQUENCES, NO_SEQUENCE = -1, -2  # of a cell
EMPTY, PARTIAL, FULL = 0, 1, 2  # of a tile
Runs = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, first key, key behind the last
RANKS = np.array(list("0123456789abcdefghijklmnopqrstuvwxyz"))
MOST_RANKS_DRAWN = 8
PNG_CELLS = 500  # along each side: about as many as the picture has pixels for
PNG_LETTER = 13  # points, of a sequence's name
MOST_SEQUENCES_NAMED = 100


def coverage(columns: np.ndarray, row_edges: np.ndarray, column_edges: np.ndarray) -> np.ndarray:
    """Return which fraction of each cell of a grid is shown, counted exactly.

    Cell (r, c) holds the rows ``row_edges[r]`` up to ``row_edges[r + 1]`` and the columns
    ``column_edges[c]`` up to ``column_edges[c + 1]``: 1 is a full cell, 0 an empty one, or one
    without rows or columns. Costs O(N log R + R * C) for R x C cells.

    Args:
        columns: int32, shape (N, 2), columns [LTS, UTE].
        row_edges: ints, shape (R + 1,), non-decreasing.
        column_edges: ints, shape (C + 1,), non-decreasing, in [0, N].

    Returns:
        float64, shape (R, C).

    >>> coverage(np.array([[3, 0], [3, 1], [3, 2]]), np.array([0, 2, 3]), np.array([0, 1, 3]))
    array([[1.  , 0.25],
           [1.  , 1.  ]])
    """
    row_edges, column_edges = np.asarray(row_edges, np.int64), np.asarray(column_edges, np.int64)
    lts, ute = columns[column_edges[0] : column_edges[-1]].T
    shown = _pairs(ute, np.maximum(lts, ute), row_edges, np.diff(column_edges))
    return shown / np.maximum(np.outer(np.diff(row_edges), np.diff(column_edges)), 1)


def _pairs(
    first: np.ndarray, end: np.ndarray, row_edges: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """Return how many pairs each cell has, of columns that are seen by the rows first .. end - 1.

    The first ``widths[0]`` columns are those of the grid's first column of cells, and so on.
    """
    return _rows_before(end, row_edges, widths) - _rows_before(first, row_edges, widths)


def _rows_before(bound: np.ndarray, row_edges: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return for each cell how many of its rows come before the bound, summed over its columns."""
    grid = (len(row_edges), len(widths))
    bound = np.clip(bound, row_edges[0], row_edges[-1])
    row_cell = np.searchsorted(row_edges, bound, side="right") - 1
    cell = row_cell * grid[1] + np.repeat(np.arange(grid[1]), widths)
    # A bound counts the first rows of the cell that it ends in, and all rows of the cells above.
    first_rows = np.zeros(grid, np.int64)
    np.add.at(first_rows.reshape(-1), cell, bound - row_edges[row_cell])
    ends_here = np.bincount(cell, minlength=first_rows.size).reshape(grid)
    ends_below = ends_here[:0:-1].cumsum(axis=0)[::-1]
    return first_rows[:-1] + np.diff(row_edges)[:, None] * ends_below


def _first_slice(columns: np.ndarray) -> np.ndarray:
    """Return the columns (N, 2) that are drawn of columns (b, h, N, 2)."""
    return columns[0, 0] if columns.ndim == 4 else columns


def column_table(columns: np.ndarray, cu_seqlens_k: np.ndarray, most: int = 24) -> str:
    """Return the columns as a table in text, its middle left out beyond ``most`` columns.

    Args:
        columns: int32, shape (N, 2), or (b, h, N, 2), of which the first slice is drawn.
        cu_seqlens_k: int32 or int64, shape (B + 1,). Padding columns have no sequence: ``-``.
        most: how many columns to print, 2 or more.
    """
    columns = _first_slice(columns)
    total = len(columns)
    head, tail = (total, total) if total <= most else (most // 2, total - most // 2)
    lines = [f"{'column':>8}  {'sequence':>10}  {'LTS':>10}  {'UTE':>10}"]
    for c in [*range(head), *range(tail, total)]:
        if c == tail:
            lines.append(f"{'...':>8}  ({tail - head:,} columns left out)")
        b = int(np.searchsorted(cu_seqlens_k[1:], c, side="right"))
        sequence = f"{b} {LETTERS[b % 26]}" if b < len(cu_seqlens_k) - 1 else "-"
        lines.append(f"{c:>8}  {sequence:>10}  {columns[c, 0]:>10}  {columns[c, 1]:>10}")
    return "\n".join(lines)


def drawing(
    columns: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    width: int = 80,
    height: int = 40,
    beyond: Runs | None = None,
) -> str:
    """Return the mask drawn in text: query rows downwards, key columns to the right.

    A cell has its sequence's letter, upper case where all of it is shown and lower case where a
    part is; ``*`` where parts of several sequences are; ``.`` where nothing is shown; blank where
    rows and keys are of different sequences; ``!`` where a pair is shown beyond the intervals.

    Args:
        columns: int32, shape (N, 2), or (b, h, N, 2), of which the first slice is drawn.
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer.
        cu_seqlens_k: int32 or int64, shape (B + 1,).
        width: most characters in a line, 40 or more.
        height: most lines of cells and of the rules between sequences, 4 or more.
        beyond: what ``reference.excess_runs`` returns, to be marked.
    """
    columns = _first_slice(columns)
    q, k = cu_seqlens_q[: len(cu_seqlens_k)], cu_seqlens_k
    row_num, column_num = int(q[-1]), len(columns)
    if not row_num or not column_num:
        return f"Nothing to draw: {row_num} query rows, {column_num} key columns."
    margin = max(len(str(row_num)), 3)
    room = width - margin - 2
    (rows, row_cuts), (keys, key_cuts) = _cells(q, row_num, height), _cells(k, column_num, room)
    pitch = 2 if 2 * (len(keys) - 1 + len(key_cuts)) <= room else 1
    scaled = _is_scaled(rows, keys)

    rule = " " * margin + "  " + _line("-" * (len(keys) - 1), key_cuts, pitch, "+", "-")
    lines = ["row".rjust(margin) + "  " + _labels(keys, key_cuts, pitch, 6 if scaled else 1)]
    shown, sequence = coverage(columns, rows, keys), _cell_sequences(q, k, rows, keys)
    glyphs = _glyphs(shown, sequence)
    if beyond is not None:
        glyphs[_cells_of_runs(beyond, rows, keys)] = "!"
    for r, cells in enumerate(glyphs):
        if r in row_cuts:
            lines.append(rule)
        lines.append(f"{rows[r]:>{margin}}  " + _line(cells, key_cuts, pitch, "|", " "))
    if scaled:
        high, wide = _cell_size(rows, keys)
        lines.append(f"One character: about {high} rows x {wide} keys, of sequence A, B, ...")
        lines.append("A: all shown, a: a part, .: nothing, *: parts of several sequences")
    else:
        lines.append("A letter: the row (down) sees the key (across) of sequence A, B, ...")
    if beyond is not None and len(beyond[0]):
        lines.append("!: the row is shown the key, or one of them, beyond its interval")
    return "\n".join(line.rstrip() for line in lines)


def _cells_of_runs(runs: Runs, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return which cells have a pair of the runs, as a boolean matrix."""
    row, first, end = runs
    change = np.zeros((len(rows) - 1, len(keys)), np.int64)  # a run adds one, as a difference
    cell = np.searchsorted(rows, row, side="right") - 1
    np.add.at(change, (cell, np.searchsorted(keys, first, side="right") - 1), 1)
    np.add.at(change, (cell, np.searchsorted(keys, end - 1, side="right")), -1)
    return change.cumsum(axis=1)[:, :-1] > 0


def tile_drawing(
    columns: np.ndarray,
    q_token_num: int,
    block_size: int | tuple[int, int],
    width: int = 80,
    height: int = 40,
) -> str:
    """Return the tiles of the mask drawn in text: ``#`` full, ``+`` partial, ``.`` empty.

    Where there are more tiles than fit, a character is several: ``+`` unless all are alike.

    Args:
        columns: int32, shape (N, 2), or (b, h, N, 2), of which the first slice is drawn.
        q_token_num: number of query rows Q.
        block_size: (rows, columns) of a tile, or one int for both.
        width: most characters in a line of tiles, 40 or more.
        height: most lines of tiles.
    """
    columns = _first_slice(columns)
    block_q, block_k = checks.check_block_size(block_size)
    if not q_token_num or not len(columns):
        return f"No tiles: {q_token_num} query rows, {len(columns)} key columns."
    margin = max(len(str(q_token_num)), 3)
    room = width - margin - 2
    tiles = _tile_cells(columns, q_token_num, (block_q, block_k), height, room)
    pitch = 2 if 2 * (len(tiles.keys) - 1) <= room else 1
    total = int(tiles.rows[-1] * tiles.keys[-1])
    no_cuts = np.empty(0, int)
    counts = (
        f"Tiles of {block_q} rows x {block_k} keys: {tiles.full:,} full, "
        f"{tiles.live - tiles.full:,} partial, {total - tiles.live:,} empty"
    )
    lines = textwrap.wrap(counts, max(width, 80))
    lines.append("row".rjust(margin) + "  " + _labels(tiles.keys * block_k, no_cuts, pitch, 1))
    glyphs = np.array(list(".+#"))[tiles.cells]
    for row, line in zip(tiles.rows * block_q, glyphs, strict=False):
        lines.append(f"{row:>{margin}}  " + _line(line, no_cuts, pitch, "", " "))
    several = ""
    if glyphs.size < total:
        high, wide = _cell_size(tiles.rows, tiles.keys)
        lines.append(f"One character: about {high} x {wide} tiles")
        several = " or different ones"
    lines.append(f"#: full, +: partial{several}, .: empty")
    return "\n".join(line.rstrip() for line in lines)


def shard_drawing(
    columns: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    chunks: Sequence[np.ndarray],
    block_size: int | tuple[int, int] = 128,
    width: int = 80,
    height: int = 40,
) -> str:
    """Return who holds which rows, in text, and what each rank sees of all keys.

    Args:
        columns: int32, shape (N, 2), columns [LTS, UTE].
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer.
        cu_seqlens_k: int32 or int64, shape (B + 1,).
        chunks: each rank's row chunks, a partition of the rows.
        block_size: (rows, columns) of the tiles that are counted, or one int for both.
        width: most characters in a line, 40 or more.
        height: most lines of the drawings of the first eight ranks, together; 4 or more each.
    """
    block_size = checks.check_block_size(block_size)
    row_num, ranks = int(cu_seqlens_q[len(cu_seqlens_k) - 1]), len(chunks)
    lines = [f"{ranks} ranks; rows 0 to {row_num} from left to right, by the rank that holds them:"]
    lines.append("  " + _holders(chunks, row_num, width - 2))
    lines += [
        "",
        f"{'rank':>6}  {'rows':>10}  {'chunks':>8}  {'live tiles':>10}  {'needed keys':>11}",
    ]
    pictures = []
    for rank, some in enumerate(chunks):
        local, rows = reference.shard_columns(columns, some), len(cp.chunk_rows(some))
        tiles = int(live_tiles(local, rows, block_size).sum())
        needed = int(np.count_nonzero(local[:, 1] < local[:, 0]))
        lines.append(f"{rank:>6}  {rows:>10}  {len(some):>8}  {tiles:>10}  {needed:>11}")
        if rank < MOST_RANKS_DRAWN:
            own_height = max(height // min(ranks, MOST_RANKS_DRAWN), 4)
            own_cuts = cp.rows_below(some, cu_seqlens_q)
            own = drawing(local, own_cuts, cu_seqlens_k, width, own_height)
            holds = f"Rank {rank} holds the rows {_ranges(some)}, as its own:"
            pictures += ["", textwrap.fill(holds, width), own]
    high, wide = block_size
    lines.append(f"Tiles of {high} rows x {wide} keys; a needed key is seen by a row of the rank.")
    return "\n".join([*lines, *pictures])


def _holders(chunks: Sequence[np.ndarray], row_num: int, most: int) -> str:
    """Return a character a cell of rows: the rank that holds all of them, or *."""
    edges = np.unique(np.rint(np.linspace(0, row_num, min(row_num, most) + 1)).astype(np.int64))
    held = np.array([np.diff(cp.rows_below(some, edges)) for some in chunks])
    cells = np.where((held > 0).sum(axis=0) == 1, RANKS[held.argmax(axis=0) % len(RANKS)], "*")
    return "".join(cells)


def _ranges(chunks: np.ndarray, most: int = 6) -> str:
    pairs = [(start, end - 1) for start, end in chunks[:most].tolist()]
    ranges = [f"{a} to {b}" if a < b else f"{a}" for a, b in pairs]
    more = f" and {len(chunks) - most:,} ranges more" if len(chunks) > most else ""
    return (", ".join(ranges) or "none") + more


def live_tiles(columns: np.ndarray, q_token_num: int, block_size: tuple[int, int]) -> np.ndarray:
    """Return how many tiles of each row tile show a pair; O(N log N), whatever the tiles.

    Args:
        columns: int32, shape (N, 2), columns [LTS, UTE].
        q_token_num: number of query rows Q.
        block_size: (rows, columns) of a tile.
    """
    _, first, end = _live_runs(columns, q_token_num, block_size)
    most = -(-q_token_num // block_size[0]) + 1
    change = np.bincount(first, minlength=most) - np.bincount(end, minlength=most)
    return change.cumsum()[:-1]


def _live_runs(columns: np.ndarray, row_num: int, block_size: tuple[int, int]) -> Runs:
    """Return the tiles that show a pair: column tile, first row tile, row tile behind the last.

    The runs of a column tile ascend and lie apart.
    """
    block_q, block_k = block_size
    row, row_end = np.maximum(columns[:, 1], 0), np.minimum(columns[:, 0], row_num)
    shown = np.flatnonzero(row < row_end)
    tile, first, end = shown // block_k, row[shown] // block_q, -(-row_end[shown] // block_q)
    order = np.lexsort((first, tile))
    tile, first, end = tile[order], first[order], end[order]
    # All column tiles on one axis, so far apart that none touches the next.
    base = tile * (-(-row_num // block_q) + 1)
    reach = np.maximum.accumulate(base + end)
    begins = np.ones(len(tile), bool)
    begins[1:] = (base + first)[1:] > reach[:-1]
    at = np.flatnonzero(begins)
    return tile[at], first[at], (reach - base)[np.append(at[1:], len(tile))[: len(at)] - 1]


def _full_runs(columns: np.ndarray, row_num: int, block_size: tuple[int, int]) -> Runs:
    """Return the tiles that show all of their pairs, as ``_live_runs`` does."""
    block_q, block_k = block_size
    whole = columns[: len(columns) // block_k * block_k].reshape(-1, block_k, 2)
    first = -(-np.maximum(whole[..., 1].max(axis=1), 0) // block_q)
    end = np.minimum(whole[..., 0].min(axis=1), row_num) // block_q
    tile = np.flatnonzero(first < end)
    return tile, first[tile], end[tile]


class _TileCells(NamedTuple):
    cells: np.ndarray  # (R, C), of EMPTY, PARTIAL or FULL
    rows: np.ndarray  # (R + 1,), edges in row tiles
    keys: np.ndarray  # (C + 1,), edges in column tiles
    live: int  # tiles that show a pair
    full: int


def _tile_cells(
    columns: np.ndarray, row_num: int, block_size: tuple[int, int], most_rows: int, most_keys: int
) -> _TileCells:
    """Scale the tiles down to cells: full or empty where all tiles of the cell are."""
    no_cuts = np.zeros(1, np.int64)
    rows = _cells(no_cuts, -(-row_num // block_size[0]), most_rows)[0]
    keys = _cells(no_cuts, -(-len(columns) // block_size[1]), most_keys)[0]
    live, full = (
        _pairs(first, end, rows, np.diff(np.searchsorted(tile, keys)))
        for tile, first, end in (
            runs(columns, row_num, block_size) for runs in (_live_runs, _full_runs)
        )
    )
    size = np.outer(np.diff(rows), np.diff(keys))
    cells = np.select([full == size, live == 0], [FULL, EMPTY], PARTIAL)
    return _TileCells(cells, rows, keys, int(live.sum()), int(full.sum()))


def _is_scaled(rows: np.ndarray, keys: np.ndarray) -> bool:
    return len(rows) - 1 < rows[-1] or len(keys) - 1 < keys[-1]


def _cell_size(rows: np.ndarray, keys: np.ndarray) -> list[str]:
    """Return how many rows and keys a cell has, about."""
    scales = (edges[-1] / (len(edges) - 1) for edges in (rows, keys))
    return [f"{scale:,.{int(scale < 10)}f}" for scale in scales]


def _glyphs(shown: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    letter = np.where(sequence < 0, "*", LETTERS[sequence % 26])
    letter = np.where(shown < 1, np.char.lower(letter), letter)
    hidden = np.where(sequence == NO_SEQUENCE, " ", ".")
    return np.where(shown > 0, letter, hidden)


def _cells(cu_seqlens: np.ndarray, total: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut ``total`` tokens into cells; return their edges, and the cells that a rule precedes.

    Cells and rules together are at most ``most``. Every sequence has cells of its own and a rule
    before it, unless there are too many; then the edges nearest to their ends are moved there.
    """
    ends = np.unique(cu_seqlens)
    ends = ends[(ends > 0) & (ends < total)]
    ruled = 2 * len(ends) <= total and 3 * len(ends) < most
    rule_num = len(ends) if ruled else 0
    cell_num = total if total + rule_num <= most else most - 2 * rule_num
    edges = np.rint(np.linspace(0, total, cell_num + 1)).astype(np.int64)
    edges[np.rint(ends * (cell_num / total)).astype(np.int64)] = ends
    edges[0], edges[-1] = 0, total
    edges = np.union1d(edges, ends[:rule_num])
    return edges, np.searchsorted(edges, ends[:rule_num])


def _cell_sequences(q: np.ndarray, k: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return for each cell the one sequence that has both rows and keys in it, or a code."""
    live = np.flatnonzero((np.diff(q) > 0) & (np.diff(k) > 0))
    sides = ((q, rows), (k, keys))
    firsts = [np.searchsorted(cu[live + 1], edges[:-1], side="right") for cu, edges in sides]
    lasts = [np.searchsorted(cu[live], edges[1:], side="left") - 1 for cu, edges in sides]
    first, last = np.maximum.outer(*firsts), np.minimum.outer(*lasts)
    one = np.append(live, NO_SEQUENCE)[first]
    return np.select([first == last, first < last], [one, SEVERAL_SEQUENCES], NO_SEQUENCE)


def _line(cells: Iterable[str], cuts: np.ndarray, pitch: int, rule: str, gap: str) -> str:
    gap *= pitch - 1
    return "".join((rule + gap) * (c in cuts) + cell + gap for c, cell in enumerate(cells))


def _labels(edges: np.ndarray, cuts: np.ndarray, pitch: int, gap: int) -> str:
    """Return the line of first columns above the cells: those of sequences, then what fits."""
    cells = np.arange(len(edges) - 1)
    places = pitch * (cells + np.searchsorted(cuts, cells, side="right"))
    line = " " * (pitch * (len(cells) + len(cuts)))
    for c in [0, *cuts, *cells]:
        label, at = str(edges[c]), int(places[c])
        end = at + len(label)
        if end <= len(line) and not line[max(at - gap, 0) : end + gap].strip():
            line = line[:at] + label + line[end:]
    return line


# What a path's ending asks for, and what keeps the day out of it.
VECTORS: dict[str, tuple[str, dict]] = {
    ".svg": ("svg", {"Date": None}),
    ".pdf": ("pdf", {"CreationDate": None}),
}


def save_png(
    columns: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    path: str | os.PathLike,
    block_size: int | tuple[int, int] | None = None,
    beyond: Runs | None = None,
    *,
    names: Sequence[str] = (),
    arrows: int | None = None,
) -> None:
    """Save the mask as a PNG: each sequence in its colour, what it does not show in a tint.

    As SVG or PDF where the path ends so.

    Takes what ``drawing`` takes; pairs beyond the intervals are black. With a ``block_size``, full
    tiles are shaded over it, partial ones less, and empty ones not. ``names`` are those of the
    sequences, their letters where it says nothing; ``arrows`` is a column whose UTE and LTS arrows
    point out. Raises ImportError without matplotlib, saying how to install it, and ValueError for a
    pack without rows or keys.
    """
    columns = _first_slice(columns)
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter
    except ImportError:
        raise ImportError(f"a PNG needs matplotlib: {installing.PLOT}") from None
    q, k = cu_seqlens_q[: len(cu_seqlens_k)], cu_seqlens_k
    row_num, column_num = int(q[-1]), len(columns)
    if not row_num or not column_num:
        raise ValueError(f"nothing to draw: {row_num} query rows, {column_num} key columns")
    if arrows is not None and not 0 <= arrows < column_num:
        raise ValueError(f"arrows must be a column in [0, {column_num}), got {arrows}")
    ratio = min(max(row_num / column_num, 0.3), 1.4)  # height to width, true between these
    rows = _cells(q, row_num, int(PNG_CELLS * min(ratio, 1)))[0]  # no cell is thinner than a pixel
    keys = _cells(k, column_num, PNG_CELLS)[0]
    figure = Figure(figsize=(4.2, 0.9 + 3.4 * ratio), dpi=160)
    axes = figure.add_subplot()
    lines = "white" if max(row_num, column_num) <= 64 else "none"
    picture = _painted(columns, q, k, rows, keys)
    if beyond is not None:
        picture[_cells_of_runs(beyond, rows, keys)] = 0
    # Cells of many pairs are pixels in an SVG or PDF too, which else has megabytes of them.
    scaled = _is_scaled(rows, keys)
    axes.pcolormesh(keys - 0.5, rows - 0.5, picture, edgecolors=lines, rasterized=scaled)
    if block_size is not None:
        _shade_tiles(axes, columns, row_num, checks.check_block_size(block_size))
    axes.invert_yaxis()
    axes.set_box_aspect(ratio)
    _name_sequences(axes, q, k, column_num, ratio, names)
    if arrows is not None:
        _point_out(axes, columns, row_num, arrows)
    for axis, most in ((axes.xaxis, 8 if column_num < 100_000 else 4), (axes.yaxis, 8)):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=most, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(labelsize=11)
    axes.set_xlabel("key column", fontsize=13)
    if scaled:
        high, wide = _cell_size(rows, keys)
        note = f"a point: about {high} rows x {wide} keys, darker where more is shown"
        axes.annotate(
            note, (0.5, 0), (0, -46), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="top", fontsize=9,
        )  # fmt: skip
    axes.set_ylabel("query row", fontsize=13)
    axes.spines[:].set_color("#c8ccd2")
    kind, undated = VECTORS.get(os.path.splitext(path)[1].lower(), ("png", {}))
    figure.savefig(path, format=kind, bbox_inches="tight", pad_inches=0.1, metadata=undated)


def _painted(
    columns: np.ndarray, q: np.ndarray, k: np.ndarray, rows: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Return the colours of the cells, (rows, keys, 3): of the sequence that the keys are of."""
    from matplotlib.colors import to_rgb

    shown, sequence = coverage(columns, rows, keys)[..., None], _cell_sequences(q, k, rows, keys)
    first = np.searchsorted(k[1:], keys[:-1], side="right")  # sequence of the cell's first key
    last = np.searchsorted(k[1:], keys[1:] - 1, side="right")
    of_keys = np.where(first == last, first, SEVERAL_SEQUENCES)
    of_cell = np.where(sequence >= 0, sequence, of_keys)  # a tree's keys are seen by other segments
    colour = np.array([to_rgb(c) for c in COLOURS])
    colour = colour[np.where(of_cell < 0, -1, of_cell % (len(COLOURS) - 1))]
    # A tint for the hidden part of a sequence's own block; a thin line stays visible when scaled.
    ink = np.where(shown > 0, 0.45 + 0.55 * shown, 0.13 * (sequence >= 0)[..., None])
    return 1 - ink * (1 - colour)


def _name_sequences(
    axes: Any, q: np.ndarray, k: np.ndarray, column_num: int, ratio: float, names: Sequence[str]
) -> None:
    """Draw a band in each sequence's colour over its keys and beside its rows, with its name."""
    from matplotlib.patches import Rectangle

    if np.count_nonzero(np.diff(q) + np.diff(k)) > MOST_SEQUENCES_NAMED:
        return
    letters = 3.3 * 72 / PNG_LETTER / 0.62  # that fit along the axes, about
    sides = ((k, column_num, letters, False), (q, int(q[-1]), letters * ratio, True))
    for cuts, total, room, is_rows in sides:
        transform = axes.get_yaxis_transform() if is_rows else axes.get_xaxis_transform()
        thick = 0.075 / (1 if is_rows else ratio)
        for b, (start, end) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
            colour = COLOURS[b % (len(COLOURS) - 1)] if k[b] < k[b + 1] else NO_KEYS
            name = names[b] if b < len(names) else str(LETTERS[b % 26])
            corner, size = (start - 0.5, 1.015), (end - start, thick)
            middle = ((start + end - 1) / 2, 1.015 + thick / 2)
            if is_rows:
                corner, size, middle = corner[::-1], size[::-1], middle[::-1]
            band = Rectangle(corner, *size, facecolor=colour, edgecolor="white", clip_on=False)
            band.set_transform(transform)
            if start < end and name:
                axes.add_patch(band)
            if (end - start) / total * room >= len(name) + 0.3:
                is_upright = not is_rows or len(name) == 1
                axes.text(
                    *middle, name, transform=transform, ha="center",
                    va="center_baseline" if is_upright else "center",
                    fontsize=PNG_LETTER, color="white" if colour == COLOURS[0] else INK,
                    rotation=0 if is_upright else -90,
                )  # fmt: skip


def _point_out(axes: Any, columns: np.ndarray, row_num: int, column: int) -> None:
    """Frame the rows that see a column, with arrows to their first and behind their last."""
    from matplotlib.patches import Rectangle

    lts, ute = columns[column].tolist()
    corner, height = (column - 0.5, ute - 0.5), max(lts - ute, 0)
    axes.add_patch(Rectangle(corner, 1, height, fill=False, edgecolor=INK, linewidth=2, zorder=3))
    middle, apart = 1 - (ute + lts) / 2 / row_num, max((lts - ute) / 2 / row_num, 0.06)
    for name, row, level in (("UTE", ute, middle + apart), ("LTS", lts, middle - apart)):
        axes.annotate(
            f"{name} {row:,}", (column + 0.5, row - 0.5), (1.13, level),
            textcoords="axes fraction", va="center", annotation_clip=False,
            fontsize=PNG_LETTER, color=INK,
            arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.5},
        )  # fmt: skip


def _shade_tiles(axes: Any, columns: np.ndarray, row_num: int, block_size: tuple[int, int]) -> None:
    tiles = _tile_cells(columns, row_num, block_size, PNG_CELLS, PNG_CELLS)
    rows = np.minimum(tiles.rows * block_size[0], row_num) - 0.5
    keys = np.minimum(tiles.keys * block_size[1], len(columns)) - 0.5
    shade = np.zeros((*tiles.cells.shape, 4))  # black, by its opacity
    shade[..., 3] = np.array([0, 0.12, 0.4])[tiles.cells]
    lines = "#6b7280" if max(tiles.rows[-1], tiles.keys[-1]) <= 64 else "none"
    scaled = _is_scaled(tiles.rows, tiles.keys)
    axes.pcolormesh(keys, rows, shade, edgecolors=lines, linewidth=0.25, rasterized=scaled)
    tile = f"{block_size[0]} rows x {block_size[1]} keys"
    axes.set_title(f"tiles of {tile}: dark full, shaded partial, clear empty", fontsize=9, pad=26)
