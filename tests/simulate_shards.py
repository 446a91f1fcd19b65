# ruff: noqa: E402
"""How even the shards of a pack are, and how many keys they need: counted, no mask is made.

    python3 tests/simulate_shards.py            print the tables of docs/context_parallel.md
    python3 tests/simulate_shards.py --write    put them there, and draw docs/context_parallel.png

The tests count the same on small packs. A rank's live tiles are those of 128 of its rows, as it
stores them, and 128 keys of which any pair is seen.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

import numpy as np

from maskq_cupy import cp

KINDS = ("short", "long tail", "half")
RULES = {"causal": {}, "window": {"window": (1023, 0)}, "full": {"causal": False}}
MARKERS = ("imbalance", "keys", "scale")


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
    shape = cp.shape_of_rule(**rule)
    runs = cp.runs_of_keys(shape, cu_seqlens, cu_seqlens, first, last)
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


def worlds_of(tokens, most=1024):
    """Return the numbers of ranks that leave at least 16 tiles of rows to each."""
    return [2**i for i in range(1, 11) if 2**i <= min(most, tokens // (16 * cp.TILE))]
