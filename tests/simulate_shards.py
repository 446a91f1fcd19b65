# ruff: noqa: E402
"""How even the shards of a pack are, and how many keys they need: counted, no mask is made.

    python3 tests/simulate_shards.py            print the tables of docs/context_parallel.md
    python3 tests/simulate_shards.py --write    put them there, and draw docs/context_parallel.png

The tests count the same on small packs. A rank's live tiles are those of 128 of its rows, as it
stores them, and 128 keys of which any pair is seen.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

import numpy as np

from maskq_cupy import cp
from maskq_cupy.rule import resolve_rule

KINDS = ("short", "long tail", "half")
RULES = {"causal": {}, "window": {"window": (1023, 0)}, "full": {"causal": False}}
TOKENS = 2**17


def pack(kind, tokens, seed=0):
    """Return cu_seqlens of random documents, or of one.

    short: exponential of mean 1,024. long tail: log-normal, of median 1,024, the longest tens of
    thousands. half: one of half the pack, the rest as short.
    """
    rng = np.random.default_rng(seed)
    if kind == "one document":
        return np.array([0, tokens])
    lengths = np.zeros(0, int)
    while lengths.sum() < tokens:
        more = (
            1024 * rng.lognormal(0, 1.6, 256) if kind == "long tail" else rng.exponential(1024, 256)
        )
        lengths = np.append(lengths, np.maximum(more.astype(int), 1))
    if kind == "half":
        lengths[int(rng.integers(0, 40)) % len(lengths)] = tokens // 2
    cuts = np.minimum(np.append(0, np.cumsum(lengths)), tokens)
    return np.unique(cuts)


def pieces(chunks, cu_seqlens):
    """Return first and last rows of pieces within one sequence and one tile, and each one's tile.

    They come rank by rank as stored; also where each rank's tiles begin, (W + 1,).
    """
    starts, ends = np.concatenate(chunks).astype(np.int64).T
    counts = [len(some) for some in chunks]
    stored_ends = np.cumsum(ends - starts)
    stored = stored_ends - (ends - starts)  # where a chunk's rows are stored, all ranks in a row
    rank_ends = np.append(0, stored_ends)[np.cumsum([0, *counts])]
    tile_nums = -(-np.diff(rank_ends) // cp.TILE)
    first_tiles = np.append(0, np.cumsum(tile_nums))
    of_tile = np.arange(first_tiles[-1])
    rank = np.repeat(np.arange(len(chunks)), tile_nums)
    tile_cuts = rank_ends[rank] + (of_tile - first_tiles[rank]) * cp.TILE
    ascending = np.argsort(starts)
    at = ascending[np.searchsorted(starts[ascending], cu_seqlens[:-1], side="right") - 1]
    cuts = np.unique(np.concatenate([stored, tile_cuts, stored[at] + cu_seqlens[:-1] - starts[at]]))
    chunk = np.searchsorted(stored_ends, cuts, side="right")
    first = starts[chunk] + cuts - stored[chunk]
    last = first + np.diff(np.append(cuts, rank_ends[-1])) - 1
    tile = np.searchsorted(tile_cuts, cuts, side="right") - 1
    return first, last, tile, first_tiles


def count(chunks, cu_seqlens, **rule):
    """Return each rank's live tiles, and how many keys it needs; of a pack with Q = N."""
    first, last, tile, first_tiles = pieces(chunks, cu_seqlens)
    runs = cp.runs_of_keys(resolve_rule(**rule), cu_seqlens, cu_seqlens, first, last)
    starts, ends = (side.reshape(-1) for side in runs)
    filled = starts < ends
    starts, ends, tile = starts[filled], ends[filled], np.repeat(tile, 2)[filled]
    of_tile = union(starts // cp.TILE, (ends - 1) // cp.TILE + 1, tile, first_tiles[-1])
    live = np.add.reduceat(np.append(of_tile, 0), first_tiles[:-1]) * (np.diff(first_tiles) > 0)
    rank = np.searchsorted(first_tiles, tile, side="right") - 1
    return live, union(starts, ends, rank, len(chunks))


def union(starts, ends, group, group_num):
    """Return how many different numbers are in each group's ranges."""
    apart = group * (int(ends.max(initial=0)) + 1)  # each group's behind those of the one before
    starts, ends = starts + apart, ends + apart
    order = np.argsort(starts, kind="stable")
    starts, ends, group = starts[order], ends[order], group[order]
    before = np.append(-1, np.maximum.accumulate(ends))[: len(ends)]
    new = np.maximum(ends - np.maximum(starts, before), 0)
    return np.bincount(group, new, group_num).astype(int)


def imbalance(cu_seqlens, world, scheme, **rule):
    """Return the most live tiles of a rank over the mean."""
    given = rule if scheme == "balanced" else {}
    live, _ = count(
        cp.cp_chunks(cu_seqlens, cu_seqlens, world, scheme, **given), cu_seqlens, **rule
    )
    return live.max() / live.mean()


def worlds_of(tokens):
    """Return the numbers of ranks that leave at least 16 tiles of rows to each."""
    return [2**i for i in range(1, 11) if 2**i <= tokens // (16 * cp.TILE)]


def packs(kind, tokens=TOKENS, number=10):
    return [pack(kind, tokens, seed) for seed in range(1 if kind == "one document" else number)]


# What the documentation shows


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def imbalance_table():
    """Most over mean live tiles, on average of the packs, causal."""
    worlds, rows = (2, 8, 64), []
    for kind in (*KINDS, "one document"):
        for scheme in cp.SCHEMES:
            found = [
                np.mean([imbalance(cu, world, scheme) for cu in packs(kind)]) for world in worlds
            ]
            rows.append([kind, f"`{scheme}`", *(f"{x:.2f}" for x in found)])
    return table(["pack", "scheme", *(f"W = {world}" for world in worlds)], rows)


def keys_table():
    """Keys that a rank needs of others over those that an all-gather brings it, the mean rank."""
    rows = []
    for kind in (*KINDS, "one document"):
        for name, rule in RULES.items():
            cells = [kind, name]
            for world in (8, 64):
                for scheme in ("contiguous", "zigzag", "balanced"):
                    found = [needed_of_others(cu, world, scheme, rule) for cu in packs(kind)]
                    cells.append(f"{100 * np.mean(found):.0f} %")
            rows.append(cells)
    head = [
        f"W = {world}, `{scheme}`"
        for world in (8, 64)
        for scheme in cp.SCHEMES
        if scheme != "per_sequence"
    ]
    return table(["pack", "rule", *head], rows)


def needed_of_others(cu_seqlens, world, scheme, rule):
    """Return the share of other ranks' keys that a rank needs; each row sees its own key."""
    given = rule if scheme == "balanced" else {}
    chunks = cp.cp_chunks(cu_seqlens, cu_seqlens, world, scheme, **given)
    _, needed = count(chunks, cu_seqlens, **rule)
    own = cu_seqlens[-1] / world
    return (needed.mean() - own) / (cu_seqlens[-1] - own)


KEY_BYTES = 4096  # K and V of a token: 8 key heads of 128 in 16 bits


def scale_table():
    """`balanced`, causal: how even, how many chunks, what is moved, and the host's time."""
    rows = []
    for tokens in (2**17, 2**20, 2**24):
        for kind in (*KINDS, "one document"):
            for world in worlds_of(tokens)[::3]:
                cu = pack(kind, tokens)
                seconds = []
                for _ in range(3):
                    start = time.perf_counter()
                    chunks = cp.cp_chunks(cu, cu, world)
                    seconds.append(time.perf_counter() - start)
                live, needed = count(chunks, cu)
                own = tokens / world
                moved = (KEY_BYTES * 1e-6 * (keys - own) for keys in (tokens, needed.mean()))
                rows.append([
                    f"{tokens:,}", kind, f"{world:,}", f"{live.mean():,.0f}",
                    f"{live.max() / live.mean():.3f}", f"{max(map(len, chunks)):,}",
                    *(f"{megabytes:,.0f}" for megabytes in moved), f"{1e3 * min(seconds):.1f}",
                ])  # fmt: skip
    head = [
        "tokens", "pack", "W", "live tiles a rank", "most / mean", "most chunks",
        "MB gathered a rank", "MB needed", "`cp_chunks`, ms",
    ]  # fmt: skip
    return table(head, rows)


PARTS = {"imbalance": imbalance_table, "keys": keys_table, "scale": scale_table}
PLOTTED = 2**21  # tokens, of which 1,024 ranks have 16 tiles of rows each


def plot(path):
    """Draw most over mean live tiles against the number of ranks, a kind of packs each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    worlds = worlds_of(PLOTTED)
    for kind, axes in zip(KINDS, all_axes, strict=True):
        some = packs(kind, PLOTTED, number=2)
        for scheme in cp.SCHEMES:
            found = [np.mean([imbalance(cu, w, scheme) for cu in some]) for w in worlds]
            axes.plot(worlds, found, label=scheme, marker="o", markersize=3, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", title=kind, xlabel="ranks W")
        axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("most / mean live tiles")
    all_axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def between_markers(text, name, part):
    """Return the text with the part between `<!-- name -->` and `<!-- /name -->`."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"\n<!-- /{name} -->")
    if not end:
        raise ValueError(f"the text must have <!-- {name} --> and <!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{part}{end}{after}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="How even shards are, and what they need.")
    parser.add_argument("--write", action="store_true", help="write docs/context_parallel.*")
    options = parser.parse_args(arguments)
    made = {name: make() for name, make in PARTS.items()}
    if not options.write:
        print("\n\n".join(made.values()))
        return
    document = Path(__file__).parent.parent / "docs" / "context_parallel.md"
    text = document.read_text()
    for name, part in made.items():
        text = between_markers(text, name, part)
    document.write_text(text)
    plot(document.with_suffix(".png"))


if __name__ == "__main__":
    main()
