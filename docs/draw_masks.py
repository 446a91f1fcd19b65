"""Draw the pictures of docs/masks.md from its own blocks, and docs/mask.png of the README.

    python docs/draw_masks.py

Run from a checkout with the `plot` extra; the reference makes the columns.
"""

import re
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from maskq_cupy import picture, reference

DOCS = Path(__file__).parent
PAGE = (DOCS / "masks.md").read_text()
# A block, and the pictures since the one before it.
BLOCKS = re.findall(r"((?:(?!```).)*?)```python\n(.*?)```", PAGE, re.DOTALL)
COLOURS_KEPT = 64  # of a file: a fifth of the bytes


class Pack(NamedTuple):
    """How a picture is cut into sequences: rows and keys of each, and their names."""

    q_lens: list[int]
    k_lens: list[int]
    names: str = ""  # letters if none; - is no name


def same(*lens: int, names: str = "") -> Pack:
    return Pack([*lens], [*lens], names)


THREE, ONE_DOCUMENT = same(5, 3, 4), same(12)
PACKS = {
    "causal": THREE,
    "full": THREE,
    "prefix": Pack([3, 2], [6, 4]),
    "decode": Pack([1, 1, 1], [5, 3, 4]),
    "top_left": Pack([4], [7]),
    "cross": Pack([4, 5], [3, 5]),
    "window": same(9, 5),
    "sinks": ONE_DOCUMENT,
    "chunks": same(10, 4),
    "block_causal": same(9, 5),
    "images": same(7, 7),
    "prefix_lm": same(7, 5),
    "image_whole": ONE_DOCUMENT,
    "image_ahead": ONE_DOCUMENT,
    "image_cut": ONE_DOCUMENT,
    "ids": Pack([5, 3, 2], [5, 3, 2]),
    "positions": THREE,
    "left_padding-0": Pack([2, 0, 3], [0, 2, 3], "- - A"),
    "left_padding-1": same(5, names="B"),
    "cache_slots": Pack([2, 0, 1, 0, 2, 0], [3, 2, 5, 0, 2, 3], "A - B - C -"),
    "gaps": Pack([3, 0, 1, 2, 0, 2], [3, 1, 0, 2, 2, 0], "A - - B - -"),
    "own_rules": same(4, 4, 4),
    "heads-0": same(6, 4),
    "heads-1": same(6, 4),
    "answers": same(4, 3, 2, 3, names="prompt 1 2 3"),
    "drafts": Pack([0, 1, 1, 1, 1, 1, 1], [4, 1, 1, 1, 1, 1, 1], "prompt 1 3 4 6 2 5"),
    "noised_clean": Pack(
        [0, 0, 2, 2, 2, 2, 2, 2], [6, 6, 0, 0, 0, 0, 0, 0], "noised clean n0 c0 n1 c1 n2 c2"
    ),
    "noised_tree": same(2, 2, 2, 2, 2, 2, names="n0 c0 n1 c1 n2 c2"),
    "anchored": Pack([0, 2, 2, 2], [8, 2, 2, 2], "context 1 2 3"),
    "hole": same(8),
    "global_row": same(10),
    "tree_window": same(3, 2, 2, 2, 2),
}
DEPTHS = np.array([0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6])  # of the tokens of "tree_window"


def pictures(text: str) -> list[str]:
    """Return the names of a text's pictures."""
    return re.findall(r'src="masks/(.*?)\.png"', text)


def run(block: str, mq: Any) -> dict[str, Any]:
    """Run a block of the page, and return what it has made."""
    names = {"mq": mq, "np": np}
    exec(compile(block, "masks.md", "exec"), names)
    return names


def beyond(name: str, made: dict[str, Any], cu: list[int]) -> picture.Runs | None:
    """Return the pairs that the columns show too many, as runs."""
    if name == "tree_window":
        shown = reference.to_dense(made["columns"], cu[-1])
        row, key = np.nonzero(shown & (DEPTHS[:, None] - DEPTHS > 3))
        return row, key, key + 1
    return reference.excess_runs(cu, cu, made["intervals"]) if "intervals" in made else None


def save(columns: np.ndarray, pack: Pack, path: Path, **options: Any) -> None:
    cuts = (np.array([*accumulate(lens, initial=0)]) for lens in pack[:2])
    names = [name.strip("-") for name in pack.names.split()]
    picture.save_png(columns, *cuts, path, names=names, **options)
    Image.open(path).convert("RGB").quantize(COLOURS_KEPT).save(path, optimize=True)


def main() -> None:
    for text, block in BLOCKS:
        for name in pictures(text):
            made, pack = run(block, reference), PACKS[name]
            columns = made["columns"]
            if columns.ndim == 4:
                columns = columns.reshape(-1, *columns.shape[2:])[int(name.split("-")[1])]
            cu = [*accumulate(pack.k_lens, initial=0)]
            save(columns, pack, DOCS / "masks" / f"{name}.png", beyond=beyond(name, made, cu))
    columns = reference.get_attn_mask_q([0, 3, 5], [0, 3, 7])
    save(columns, Pack([3, 2], [3, 4]), DOCS / "mask.png", arrows=1)


if __name__ == "__main__":
    main()
