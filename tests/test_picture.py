"""Pictures: what a reader sees in them is the mask, at any scale."""

import re
import sys
import tracemalloc
from itertools import accumulate, pairwise

import numpy as np
import oracle
import pytest

from maskq_cupy import picture, reference

SPEC_DRAWING = """\
row  0 1 2   3 4 5 6
  0  A . . |
  1  A A . |
  2  A A A |
     ------+---------
  3        | B B B .
  4        | B B B B"""


def pack(q_lens, k_lens, **rule):
    """Return columns, cu_seqlens_q and cu_seqlens_k."""
    q, k = (np.array([*accumulate(lengths, initial=0)]) for lengths in (q_lens, k_lens))
    return reference.get_attn_mask_q(q, k, **rule), q, k


def random_pack(rng, longest):
    q_lens, k_lens = rng.integers(0, longest, (2, rng.integers(1, 6))) * rng.integers(0, 2, (2, 1))
    q_lens[0] += 1
    k_lens[-1] += 1
    rule = [{}, {"causal": False}, {"window": (3, 0), "num_sink_tokens": 2}][rng.integers(3)]
    return q_lens.tolist(), k_lens.tolist(), rule


def drawn_cells(drawing, cell_width):
    """Return the characters of the cells and the rows' labels, without the rules and the legend."""
    lines = [line for line in drawing.split("\n")[1:] if line[:5].strip().isdigit()]
    rule = "|" + " " * (cell_width - 1)
    cells = [(line[5:] + " ").replace(rule, "")[::cell_width].rstrip() for line in lines]
    width = max(map(len, cells))
    return np.array([list(row.ljust(width)) for row in cells]), [int(line[:5]) for line in lines]


def fractions(seen, row_edges, column_edges):
    """Return the brute-force coverage of a boolean (Q, N) matrix."""
    return [
        [
            seen[top:bottom, left:right].mean() if top < bottom and left < right else 0
            for left, right in pairwise(column_edges)
        ]
        for top, bottom in pairwise(row_edges)
    ]


def test_coverage_is_the_fraction_of_the_cells_pairs():
    rng = np.random.default_rng(0)
    for _ in range(200):
        q_lens, k_lens, rule = random_pack(rng, 12)
        columns, _, _ = pack(q_lens, k_lens, **rule)
        seen = oracle.visible(q_lens, k_lens, **rule)
        rows, keys = (np.sort(rng.integers(0, n + 1, rng.integers(2, 8))) for n in seen.shape)
        assert np.array_equal(picture.coverage(columns, rows, keys), fractions(seen, rows, keys))


def test_coverage_of_a_million_rows_and_keys():
    columns, _, _ = pack([1_000_000], [1_000_000])
    edges = np.arange(0, 1_000_001, 1000)
    shown = picture.coverage(columns, edges, edges)
    expected = np.tril(np.ones((1000, 1000)), -1)
    np.fill_diagonal(expected, 500_500 / 1_000_000)
    assert np.array_equal(shown, expected)


def test_drawing_of_the_worked_example():
    drawing = picture.drawing(*pack([3, 2], [3, 4]))
    assert drawing.startswith(SPEC_DRAWING + "\n")
    assert drawing.isascii()


@pytest.mark.parametrize("seed", range(20))
def test_small_drawing_is_the_mask_cell_by_cell(seed):
    q_lens, k_lens, rule = random_pack(np.random.default_rng(seed), 6)
    seen = oracle.visible(q_lens, k_lens, **rule)
    cells, _ = drawn_cells(picture.drawing(*pack(q_lens, k_lens, **rule), width=120), 2)
    block = np.full(seen.shape, " ")
    for b, (row, column) in enumerate(zip(accumulate(q_lens), accumulate(k_lens), strict=True)):
        own = np.s_[row - q_lens[b] : row, column - k_lens[b] : column]
        block[own] = np.where(seen[own], "ABCDEF"[b], ".")
    assert np.array_equal(cells, block[:, : cells.shape[1]])
    assert (block[:, cells.shape[1] :] == " ").all()


@pytest.mark.parametrize("seed", range(20))
def test_scaled_drawing_tells_full_partial_and_empty_cells(seed):
    q_lens, k_lens, rule = random_pack(np.random.default_rng(seed), 150)
    q_lens, k_lens = [n + 30 for n in q_lens], [n + 60 for n in k_lens]
    columns, q, k = pack(q_lens, k_lens, **rule)
    drawing = picture.drawing(columns, q, k, width=60, height=25)
    cells, labels = drawn_cells(drawing, 1)
    row_edges = [*labels, int(q[-1])]
    column_edges, _ = picture._cells(k, len(columns), 55)
    assert {*q} <= {*row_edges}
    assert {*k} <= {*column_edges}
    expected = np.array(fractions(oracle.visible(q_lens, k_lens, **rule), row_edges, column_edges))
    assert cells.shape == expected.shape
    assert np.array_equal(np.char.isalpha(cells), expected > 0)
    assert np.array_equal(np.char.isupper(cells), expected == 1)


@pytest.mark.parametrize(
    "lens",
    [[1_000_000], [400_000, 0, 600_000], [1] * 5000, [3] * 30, [700, 1, 1, 1, 1, 900], [31], [79]],
)
def test_drawing_stays_within_width_and_height(lens):
    for width, height in ((40, 10), (80, 40), (157, 33)):
        lines = picture.drawing(*pack(lens, lens), width=width, height=height).split("\n")
        assert max(map(len, lines[:-2])) <= width
        drawn = [line for line in lines[1:] if line.lstrip()[:1] in "-0123456789"]
        assert min(len(lens), 2) <= len(drawn) <= height


def test_one_row_between_long_sequences_has_its_own_line():
    drawing = picture.drawing(*pack([700, 1, 900], [700, 500, 900]), width=60, height=20)
    assert [line for line in drawing.split("\n") if "B" in line and line.lstrip().startswith("700")]


def test_many_sequences_in_a_cell_are_no_single_letter():
    cells, _ = drawn_cells(picture.drawing(*pack([1] * 900, [1] * 900)), 1)
    assert cells[0, 0] == "*"


TILE_DRAWING = """\
Tiles of 2 rows x 3 keys: 0 full, 5 partial, 4 empty
row  0 3 6
  0  + . .
  2  + + .
  4  . + +
#: full, +: partial, .: empty"""


def test_first_slice_is_drawn():
    """Of columns (b, h, N, 2)."""
    cu = np.array([0, 6, 15])
    columns = reference.get_attn_mask_q(cu, cu)
    slices = np.stack([columns, 0 * columns, 0 * columns, 0 * columns]).reshape(2, 2, 15, 2)
    for draw in (
        lambda c: picture.column_table(c, cu),
        lambda c: picture.drawing(c, cu, cu),
        lambda c: picture.tile_drawing(c, 15, (2, 3)),
    ):
        assert draw(slices) == draw(columns) != draw(slices[1:])


def test_tile_drawing_of_the_worked_example():
    columns, _, _ = pack([3, 2], [3, 4])
    drawing = picture.tile_drawing(columns, 5, (2, 3))
    assert drawing == TILE_DRAWING


def test_tile_drawing_is_the_lists_of_tiles():
    columns, q, _ = pack([300, 500], [300, 700])
    lines = picture.tile_drawing(columns, int(q[-1]), (64, 100), width=60).split("\n")
    cells = np.array([[*line[5:].replace(" ", "")] for line in lines[2:-1]])
    blocks = reference.to_blocks(columns, int(q[-1]), (64, 100))
    for glyph, count, indices in (
        ("+", blocks.kv_num_blocks, blocks.kv_indices),
        ("#", blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        assert count.sum() > 0
        for row, n, listed in zip(cells, count[0, 0], indices[0, 0], strict=True):
            assert np.array_equal(np.flatnonzero(row == glyph), listed[:n])
    assert [int(line[:5]) for line in lines[2:-1]] == [*range(0, 800, 64)]


def test_scaled_tile_drawing_calls_full_only_what_is_all_full():
    columns, _, _ = pack([3000], [3000])
    drawing = picture.tile_drawing(columns, 3000, 10, width=45, height=20)
    lines = drawing.split("\n")
    assert lines[0] == "Tiles of 10 rows x 10 keys: 44,850 full, 300 partial, 44,850 empty"
    assert max(map(len, lines)) <= 80
    assert len(lines[2:-2]) == 20
    for r, line in enumerate(lines[2:-2]):
        cells = line[6:]
        assert cells.rstrip(".").rstrip("+").strip("#") == ""
        assert 0 < cells.count("+") <= 4, r
    assert lines[-2:] == [
        "One character: about 15 x 7.7 tiles",
        "#: full, +: partial or different ones, .: empty",
    ]


@pytest.mark.parametrize("seed", range(20))
def test_cells_of_tiles_are_the_lists_of_tiles(seed):
    """Of bounds whatever, also outside the rows, and as scaled down: alike, or a mixture."""
    rng = np.random.default_rng(seed)
    row_num, block = int(rng.integers(1, 60)), tuple(rng.integers(1, 9, 2).tolist())
    columns = rng.integers(-3, row_num + 5, (rng.integers(1, 60), 2)).astype(np.int32)
    blocks = reference.to_blocks(columns, row_num, block)
    states = np.full(blocks.kv_indices.shape[2:], picture.EMPTY)
    for state, count, indices in ((picture.PARTIAL, *blocks[:2]), (picture.FULL, *blocks[2:4])):
        for row, n, listed in zip(states, count[0, 0], indices[0, 0], strict=True):
            row[listed[:n]] = state
    live = np.count_nonzero(states, axis=1)
    assert np.array_equal(picture.live_tiles(columns, row_num, block), live)
    for most in (60, 5):
        tiles = picture._tile_cells(columns, row_num, block, most, most)
        assert (tiles.live, tiles.full) == (live.sum(), np.count_nonzero(states == picture.FULL))
        for r, (top, bottom) in enumerate(pairwise(tiles.rows)):
            for c, (left, right) in enumerate(pairwise(tiles.keys)):
                alike = np.unique(states[top:bottom, left:right])
                assert tiles.cells[r, c] == (alike[0] if len(alike) == 1 else picture.PARTIAL)


MILLION = [400_000, 1000, 599_000]


def test_a_million_tokens_in_bounded_memory():
    """A matrix of the tiles of 16 would take gigabytes; NumPy tells tracemalloc what it takes."""
    columns, q, k = pack(MILLION, MILLION)
    tracemalloc.start()
    halves = [np.array([[0, 500_000]]), np.array([[500_000, 1_000_000]])]
    text = picture.drawing(columns, q, k) + "\n" + picture.tile_drawing(columns, int(q[-1]), 16)
    text += "\n" + picture.shard_drawing(columns, q, k, halves)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 250e6
    assert re.search(r"^One character: about [\d,]+ rows x [\d,]+ keys", text, re.MULTILINE)
    assert re.search(r"^One character: about [\d,]+ x [\d,]+ tiles$", text, re.MULTILINE)
    assert max(map(len, text.split("\n"))) <= 80


def test_a_picture_of_a_million_tokens_says_how_large_a_point_is(monkeypatch):
    axes = saved_figure(monkeypatch, *pack(MILLION, MILLION), (128, 128))
    note = "a point: about 2,016 rows x 2,016 keys, darker where more is shown"
    assert note in texts(axes)
    assert axes.get_title().startswith("tiles of 128 rows")
    assert note[:7] not in "".join(texts(saved_figure(monkeypatch, *pack([3, 2], [3, 4]))))


def test_vectors_of_a_million_tokens_are_small(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "mask.svg"
    picture.save_png(*pack(MILLION, MILLION), path, (128, 128))
    assert path.stat().st_size < 200_000


def test_no_tiles_to_draw():
    columns, _, _ = pack([0], [3])
    assert picture.tile_drawing(columns, 0, 128) == "No tiles: 0 query rows, 3 key columns."


def test_png_with_tiles_shades_them(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    colors = pytest.importorskip("matplotlib.colors")
    path = tmp_path / "mask.png"
    picture.save_png(*pack([3000], [3000]), path, (100, 100))
    pixels = image.imread(path)[..., :3].reshape(-1, 3)
    blue = np.array(colors.to_rgb(picture.COLOURS[0]))
    for shade, least in ((0.6, 0.2), (0.88, 0.001)):  # full tiles, shown pairs of partial ones
        assert np.isclose(pixels, shade * blue, atol=0.02).all(axis=1).mean() > least


def test_nothing_to_draw():
    assert picture.drawing(*pack([0], [3])) == "Nothing to draw: 0 query rows, 3 key columns."
    assert picture.drawing(*pack([], [])).startswith("Nothing to draw")


def test_table_names_sequences_and_padding():
    columns, _, k = pack([3, 2], [3, 4], kv_token_num=8)
    rows = [line.split() for line in picture.column_table(columns, k).split("\n")]
    assert rows[0] == ["column", "sequence", "LTS", "UTE"]
    assert rows[3] == ["2", "0", "A", "3", "2"]
    assert rows[7] == ["6", "1", "B", "5", "4"]
    assert rows[8] == ["7", "-", "5", "5"]


def test_table_of_a_large_pack_leaves_out_its_middle():
    columns, _, k = pack([100_000], [100_000])
    lines = picture.column_table(columns, k, most=6).split("\n")
    first_words = " ".join(line.split()[0] for line in lines[1:])
    assert first_words == "0 1 2 ... 99997 99998 99999"
    assert "99,994 columns left out" in lines[4]


@pytest.mark.parametrize("lens", [[3, 2], [300_000, 200_000]])
def test_png_shows_each_sequence_in_its_colour(tmp_path, lens):
    image = pytest.importorskip("matplotlib.image")
    colors = pytest.importorskip("matplotlib.colors")
    path = tmp_path / "mask.png"
    picture.save_png(*pack(lens, lens), path)
    pixels = image.imread(path)[..., :3].reshape(-1, 3)

    def share(colour):
        return np.isclose(pixels, colors.to_rgb(colour), atol=0.01).all(axis=1).mean()

    assert share(picture.COLOURS[0]) > share(picture.COLOURS[1]) > 0.02
    assert share(picture.COLOURS[2]) == 0


def saved_figure(monkeypatch, columns, q, k, *args, **options):
    """Return the axes of the picture that save_png would write."""
    module = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(module.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    picture.save_png(columns, q, k, "mask.png", *args, **options)
    return figures[0].axes[0]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_png_names_axes_and_sequences(monkeypatch):
    axes = saved_figure(monkeypatch, *pack([3, 0, 2], [3, 2, 4]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key column", "query row")
    assert texts(axes) == ["A", "B", "C", "A", "C"]  # over the keys, beside the rows


def test_png_takes_names_and_leaves_out_what_does_not_fit(monkeypatch):
    axes = saved_figure(monkeypatch, *pack([90, 10], [90, 10]), names=["prompt", "answer"])
    assert texts(axes) == ["prompt", "prompt"]
    axes = saved_figure(monkeypatch, *pack([1] * 101, [1] * 101))
    assert texts(axes) == []


def test_png_points_out_the_bounds_of_a_column(monkeypatch):
    axes = saved_figure(monkeypatch, *pack([3, 2], [3, 4]), arrows=1)
    arrows = {text.get_text(): text.xy for text in axes.texts if hasattr(text, "xy")}
    assert arrows == {"UTE 1": (1.5, 0.5), "LTS 3": (1.5, 2.5)}  # the rows' upper edges


@pytest.mark.parametrize("column", [-1, 7])
def test_png_refuses_arrows_to_no_column(monkeypatch, column):
    with pytest.raises(ValueError, match=rf"arrows must be a column in \[0, 7\), got {column}"):
        saved_figure(monkeypatch, *pack([3, 2], [3, 4]), arrows=column)


def test_png_of_a_tree_has_the_colour_of_the_key(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    colors = pytest.importorskip("matplotlib.colors")
    cu = np.array([0, 2, 4, 6])
    path = tmp_path / "mask.png"
    picture.save_png(reference.tree_attn_mask_q([-1, 0, 0], cu, cu), cu, cu, path)
    pixels = image.imread(path)[..., :3].reshape(-1, 3)
    share = [
        np.isclose(pixels, colors.to_rgb(c), atol=0.01).all(axis=1).mean() for c in picture.COLOURS
    ]
    assert share[0] > 2 * share[1] > 0.02  # the prompt is seen by all
    assert share[-1] < 0.001  # but for the edges of letters


def test_png_of_nothing_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="0 query rows"):
        picture.save_png(*pack([0], [3]), tmp_path / "mask.png")


def test_png_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match='needs matplotlib: pip install "matplotlib'):
        picture.save_png(*pack([3], [3]), tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.png", b"\x89PNG"),
        ("a.svg", b"<?xml"),
        ("a.PDF", b"%PDF"),
        ("a.picture", b"\x89PNG"),
    ],
)
def test_the_ending_says_the_form(tmp_path, name, start):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    picture.save_png(*pack([3, 2], [3, 4]), path)
    assert path.read_bytes().startswith(start)
