"""The kernels' own text, run on the CPU against the reference, plainly and under sanitizers."""

import numpy as np
import pytest
from on_cpu import emulator
from on_cpu.calls import check
from strategies import Pack, cuts, random_pack

SANITIZERS = [
    pytest.param(name, packs, id=name)
    for name, packs in [("plain", 300), ("address", 80), ("thread", 30)]
]


@pytest.mark.parametrize(("sanitizer", "count"), SANITIZERS)
def test_random_packs(builds, sanitizer, count):
    rng = np.random.default_rng(0)
    check(builds(sanitizer), [random_pack(rng) for _ in range(count)])


@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_launches_of_large_packs(builds, sanitizer):
    check(builds(sanitizer), list(large_packs()), large=True)


def large_packs():
    """Packs of several steps a thread, tiles a block and groups; intervals sorted but for a few."""
    rng = np.random.default_rng(2)
    for _ in range(12):
        yield random_pack(rng, tokens=1500, intervals=False)
    # An end that reaches on, and a start that reaches back, over the next tiles that a warp links
    # at once, to the tile that a search asks first.
    rows, keys = 36_000, 900
    ends = np.sort(rng.integers(0, keys, rows))
    starts = ends - 50
    ends[28 * emulator.TILE] += 300
    starts[100 * emulator.TILE] -= 300
    yield Pack(cuts([rows]), cuts([keys]), np.stack([starts, ends], axis=1), keys, {})


@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_rows_far_from_columns(builds, sanitizer):
    check(builds(sanitizer), list(rows_far_from_columns()))


def rows_far_from_columns():
    """Packs of so many rows to a column that a block searches them, not all of them sorted."""
    rng = np.random.default_rng(3)
    for rows, keys in [(1500, 40), (3000, 300), (2048, 7)]:
        mask = np.sort(rng.integers(0, keys + 1, (rows, 2)), axis=0)
        mask.sort(axis=1)
        dips = rng.random(rows) < 0.01
        mask[dips] = rng.integers(0, keys + 1, (int(dips.sum()), 2))
        yield Pack(cuts([rows]), cuts([keys]), mask, keys, {})


def tile_edges():
    """Packs whose rows, columns and sequences end around tiles, windows, warps and groups."""
    tile, window = emulator.TILE, emulator.CONSTANTS["WINDOW_SEQUENCES"]
    for tokens in (1, 2, 31, 32, 33, 127, 128, 129, tile - 1, tile, tile + 1, 3 * tile + 1):
        lens = cuts([tokens])
        mask = np.stack([np.arange(tokens) // 2, np.arange(tokens) + 1], axis=1)
        yield Pack(lens, lens, None, tokens, {})
        yield Pack(lens, lens, mask, tokens, {})
        yield Pack(cuts([3]), lens, None, tokens + 1, {"window": (5, 0)})
        yield Pack(lens, cuts([3]), np.zeros((tokens, 2), np.int64), 3, {})
    for batch in (31, 32, 33, window - 1, window, window + 1, window + 2, 9 * window):
        ones = cuts(np.ones(batch, int))
        yield Pack(ones, ones, None, batch, {})
        yield Pack(ones, ones, np.tile([0, 1], (batch, 1)), batch, {})
        empties = cuts(np.append(np.zeros(batch, int), [5, 0, 7]))
        yield Pack(empties, empties, None, 20, {})


@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_tile_edges(builds, sanitizer):
    check(builds(sanitizer), list(tile_edges()))


def test_many_tiles_a_group(builds):
    check(builds("plain"), [many_tiles_a_group()])


def many_tiles_a_group():
    """A pack with more tiles than groups, whose ends and starts reach over each tile's edge."""
    rng = np.random.default_rng(1)
    rows = emulator.TILE * emulator.TILE * 3 + 17
    keys = rows + rows // 2
    ends = np.sort(rng.integers(0, keys, rows))
    ends[rng.random(rows) < 0.001] = 5
    ends[emulator.TILE - 3 :: emulator.TILE] += 100
    mask = np.stack([np.maximum(ends - 100, 0), ends], axis=1).astype(np.int32)
    mask[emulator.TILE - 1 :: emulator.TILE, 0] -= 500
    return Pack(cuts([rows]), cuts([keys]), mask, keys, {})
