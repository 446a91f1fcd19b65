"""The gallery: its blocks run, their columns are the masks' definitions, its pictures are there."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracle
import pytest

import maskq_cupy
from maskq_cupy import reference
from maskq_cupy.call import Call

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))
draw_masks = pytest.importorskip("draw_masks")  # it needs pillow, which matplotlib brings

BLOCKS = {
    draw_masks.pictures(text)[0]: block
    for text, block in draw_masks.BLOCKS
    if draw_masks.pictures(text)
}
REFINE = [block for _, block in draw_masks.BLOCKS if "from maskq_cupy import flex" in block]

# Each mask in words of its own: by lengths and rule, or row by row.
RULES = {
    "causal": {},
    "full": {"causal": False},
    "prefix": {},
    "decode": {},
    "top_left": {"align": "top_left"},
    "cross": {"causal": False},
    "window": {"window": (3, 0)},
    "sinks": {"window": (3, 0), "num_sink_tokens": 2},
    "chunks": {"chunk_size": 4},
    "block_causal": {"causal_block": 3},
    "images": {"spans": [(2, 5), (9, 12)]},
    "prefix_lm": {"spans": [(0, 4), (7, 9)]},
    "image_whole": {"window": (2, 0), "spans": [(3, 9)]},
    "ids": {"n": 12},
    "positions": {"window": (1, 0)},
    "cache_slots": {},
    "gaps": {},
}
TREES = {
    "answers": [-1, 0, 0, 0],
    "drafts": [-1, 0, 1, 1, 3, 0, 5],  # depth first
}


def pairs(q_token_num, kv_token_num, sees):
    """Return the matrix of sees(row, key)."""
    return np.array([[sees(r, k) for k in range(kv_token_num)] for r in range(q_token_num)])


def is_image(token):
    return 3 <= token < 9


def sees_ahead(row, key):
    """The window cuts to the left only; ahead, the image is seen to its end."""
    return row - 2 <= key and (key <= row or (is_image(row) and is_image(key)))


def sees_cut(row, key):
    return abs(row - key) <= 2 and (key <= row or (is_image(row) and is_image(key)))


def sees_by_own_rule(row, key):
    if row // 4 != key // 4:
        return False
    return [True, key <= row, row - 1 <= key <= row][row // 4]


def sees_clean_or_itself(is_noised, block, key_is_noised, key_block):
    """Block diffusion, as its paper has it: block diagonal, offset block-causal, block-causal."""
    if key_is_noised:
        return is_noised and block == key_block
    return key_block < block or (key_block == block and not is_noised)


def interleaved(token):
    """Return of a token of n0 c0 n1 c1 ...: is it noised, and in which block?"""
    return token // 2 % 2 == 0, token // 4


def one_behind_the_other(key):
    return key < 6, key % 6 // 2


def sees_anchored(row, key):
    block = row // 2
    return key < [2, 4, 7][block] if key < 8 else (key - 8) // 2 == block


def sees_left_padded(row, key):
    return 2 <= key <= row


DEFINITIONS = {
    "image_ahead": lambda: pairs(12, 12, sees_ahead),
    "image_cut": lambda: pairs(12, 12, sees_cut),
    "own_rules": lambda: pairs(12, 12, sees_by_own_rule),
    "noised_clean": lambda: pairs(
        12, 12, lambda r, k: sees_clean_or_itself(*interleaved(r), *one_behind_the_other(k))
    ),
    "noised_tree": lambda: pairs(
        12, 12, lambda r, k: sees_clean_or_itself(*interleaved(r), *interleaved(k))
    ),
    "anchored": lambda: pairs(6, 14, sees_anchored),
}
SLICES = {
    "left_padding-0": lambda: [pairs(5, 5, sees_left_padded), oracle.visible([5], [5])],
    "heads-0": lambda: [
        oracle.visible([6, 4], [6, 4], window=window) for window in (None, *[(1, 0)] * 3)
    ],
}
SUPERSETS = ("hole", "global_row", "tree_window")


def definition(name):
    """Return the boolean matrices that the block's columns must show, a slice each."""
    if name in SLICES:
        return SLICES[name]()
    if name in DEFINITIONS:
        return [DEFINITIONS[name]()]
    pack = draw_masks.PACKS[name]
    if name in TREES:
        return [oracle.tree_visible(TREES[name], *pack[:2])]
    return [oracle.visible(*pack[:2], **RULES[name])]


def on_host(array):
    return array.get() if hasattr(array, "get") else np.asarray(array)


def check(name, mq):
    columns = on_host(draw_masks.run(BLOCKS[name], mq)["columns"])
    slices = columns.reshape(-1, *columns.shape[-2:])
    expected = definition(name)
    assert len(slices) == len(expected)
    for some, seen in zip(slices, expected, strict=True):
        assert np.array_equal(oracle.shown(some, len(seen)), seen)


def check_superset(name, mq):
    made = draw_masks.run(BLOCKS[name], mq)
    lens, columns = draw_masks.PACKS[name].q_lens, on_host(made["columns"])
    if name == "tree_window":
        expected = oracle.tree_visible([-1, 0, 1, 0, 3], lens, lens)
    else:
        expected = oracle.superset(lens, lens, made["intervals"])
        excess = expected.sum() - oracle.visible(lens, lens, made["intervals"]).sum()
        assert int(made["excess"]) == excess == {"hole": 6, "global_row": 13}[name]
    assert np.array_equal(oracle.shown(columns, sum(lens)), expected)


PACKAGES = [
    pytest.param(reference, id="reference"),
    pytest.param(maskq_cupy, id="gpu", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("mq", PACKAGES)
@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in SUPERSETS])
def test_block_makes_the_mask_of_its_definition(name, mq):
    check(name, mq)


@pytest.mark.parametrize("mq", PACKAGES)
@pytest.mark.parametrize("name", SUPERSETS)
def test_block_makes_the_superset_and_counts_what_is_too_much(name, mq):
    check_superset(name, mq)


def test_black_pairs_of_the_window_in_a_tree_are_those_too_far_up_the_path():
    lens = draw_masks.PACKS["tree_window"].q_lens
    columns = draw_masks.run(BLOCKS["tree_window"], reference)["columns"]
    row, key, _ = draw_masks.beyond("tree_window", {"columns": columns}, np.cumsum([0, *lens]))
    paths = {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 3], 4: [0, 3, 4]}  # of segments
    tokens = np.split(np.arange(sum(lens)), np.cumsum(lens)[:-1])
    expected = set()
    for segment, above in paths.items():
        path = np.concatenate([tokens[s] for s in above]).tolist()
        for token in tokens[segment].tolist():
            expected |= {(token, far) for far in path[: max(path.index(token) - 3, 0)]}
    assert {*zip(row.tolist(), key.tolist(), strict=True)} == expected


def check_refined(mq, device):
    (block,) = REFINE
    mask = draw_masks.run(block, mq)["mask"]
    torch = pytest.importorskip("torch")
    row, key = torch.arange(8, device=device)[:, None], torch.arange(8, device=device)
    hole = draw_masks.run(BLOCKS["hole"], reference)["intervals"]
    shown = mask.mask_mod(0, 0, row, key).cpu().numpy()
    assert np.array_equal(shown, oracle.visible([8], [8], hole))


def test_refined_block_hides_the_hole(monkeypatch):
    torch = pytest.importorskip("torch")
    from maskq_cupy import flex

    def block_mask(columns, q_token_num, *, refine):  # its lists are made on a GPU
        columns = torch.from_numpy(columns)[None, None]
        return SimpleNamespace(mask_mod=flex.RefinedMaskMod(columns, refine))

    monkeypatch.setattr(flex, "block_mask", block_mask)
    check_refined(reference, "cpu")


@pytest.mark.gpu
def test_refined_block_hides_the_hole_on_a_gpu():
    pytest.importorskip("torch")
    check_refined(maskq_cupy, "cuda")


def said_launches(text):
    """Return how many launches a text says first."""
    (word, *_) = re.findall(r"\b(one|two|three|five)\s+launch", text, re.IGNORECASE)
    return {"one": 1, "two": 2, "three": 3, "five": 5}[word.lower()]


COSTS = {
    draw_masks.pictures(text)[0]: said_launches(text)
    for text, _ in draw_masks.BLOCKS
    if not {*draw_masks.pictures(text)} & {*SUPERSETS} and draw_masks.pictures(text)
}


def test_costs_are_found():
    assert {*COSTS} == {*BLOCKS} - {*SUPERSETS}
    assert (COSTS["window"], COSTS["ids"], COSTS["images"]) == (1, 3, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", COSTS)
def test_block_takes_the_launches_that_are_said(name, monkeypatch):
    made, launch = [], Call.run

    def counted(call, *launches, **options):
        made.extend(launches)
        launch(call, *launches, **options)

    monkeypatch.setattr(Call, "run", counted)
    draw_masks.run(BLOCKS[name], maskq_cupy)
    assert len(made) == COSTS[name]


def test_every_block_is_short_and_tested():
    assert len(BLOCKS) + len(REFINE) == len(draw_masks.BLOCKS)
    assert all(block.count("\n") <= 10 for _, block in draw_masks.BLOCKS)


def test_every_picture_is_drawn_and_shown():
    drawn = sorted(path.stem for path in (DOCS / "masks").iterdir())
    assert drawn == sorted(draw_masks.pictures(draw_masks.PAGE)) == sorted(draw_masks.PACKS)
    sizes = {path.name: path.stat().st_size for path in (DOCS / "masks").iterdir()}
    assert max(sizes.values()) < 25_000
