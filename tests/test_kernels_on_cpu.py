"""The kernels' own text, run on the CPU against the reference, plainly and under sanitizers."""

import numpy as np
import pytest
from on_cpu import emulator
from on_cpu.calls import check
from strategies import Pack, cuts, random_pack, random_rule

from maskq_cupy import plan

SANITIZERS = [
    pytest.param(name, packs, id=name)
    for name, packs in [("plain", 300), ("address", 80), ("thread", 30)]
]


@pytest.mark.parametrize(("sanitizer", "count"), SANITIZERS)
def test_random_packs(builds, sanitizer, count):
    rng = np.random.default_rng(0)
    check(builds(sanitizer), [random_pack(rng) for _ in range(count)])


# Rows of any number by the kernels for few, for neither few nor many, and for many.
BY_KERNELS = {
    "few": emulator.SIZES._replace(few_strips=10**9),
    "neither": emulator.SIZES._replace(few_strips=0),
    "many": emulator.SIZES._replace(few_strips=0, many_strips=0),
}
OF_MORE_ROWS = ("neither", "many")


@pytest.mark.parametrize(("sanitizer", "count"), SANITIZERS)
@pytest.mark.parametrize("kernels", BY_KERNELS)
def test_random_intervals(builds, sanitizer, count, kernels):
    rng = np.random.default_rng(6)
    packs = [random_pack(rng, intervals=True) for _ in range(count // 2)]
    check(builds(sanitizer), packs, sizes=BY_KERNELS[kernels])
    if kernels in OF_MORE_ROWS:
        check(builds(sanitizer), packs[::4], large=True, sizes=BY_KERNELS[kernels])


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
@pytest.mark.parametrize("kernels", OF_MORE_ROWS)
def test_launches_of_large_packs(builds, sanitizer, kernels):
    check(builds(sanitizer), list(large_packs()), large=True, sizes=BY_KERNELS[kernels])


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
    # Many sequences in one group of tiles: those of its last tile are far from those of its first.
    lens = rng.integers(0, 9, 900)
    ends = np.concatenate([np.arange(1, n + 1) for n in lens])
    yield Pack(cuts(lens), cuts(lens), np.stack([ends // 2, ends], axis=1), int(lens.sum()), {})


@pytest.mark.parametrize("sanitizer", ["plain", "address"])
@pytest.mark.parametrize("kernels", BY_KERNELS)
def test_rows_far_from_columns(builds, sanitizer, kernels):
    check(builds(sanitizer), list(rows_far_from_columns()), sizes=BY_KERNELS[kernels])


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
    tile, warp = emulator.TILE, emulator.WARP
    for tokens in (1, 2, 31, 32, 33, 127, 128, 129, tile - 1, tile, tile + 1, 3 * tile + 1):
        lens = cuts([tokens])
        mask = np.stack([np.arange(tokens) // 2, np.arange(tokens) + 1], axis=1)
        yield Pack(lens, lens, None, tokens, {})
        yield Pack(lens, lens, mask, tokens, {})
        yield Pack(cuts([3]), lens, None, tokens + 1, {"window": (5, 0)})
        yield Pack(lens, cuts([3]), np.zeros((tokens, 2), np.int64), 3, {})
    for batch in (warp - 1, warp, warp + 1, 2 * warp, warp**2 - 1, warp**2, warp**2 + 1):
        ones = cuts(np.ones(batch, int))
        yield Pack(ones, ones, None, batch, {})
        yield Pack(ones, ones, np.tile([0, 1], (batch, 1)), batch, {})
        empties = cuts(np.append(np.zeros(batch, int), [5, 0, 7]))
        yield Pack(empties, empties, None, 20, {})
    # Between one warp's positions and the next's more empties than a window and a search leave.
    holes = cuts(np.tile(np.append(np.ones(2 * warp, int), np.zeros(300, int)), 6))
    yield Pack(holes, holes, None, int(holes[-1]), {})
    yield Pack(holes, holes, np.tile([0, 1], (holes[-1], 1)), int(holes[-1]), {})
    yield low_rows_behind_an_edge()


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
@pytest.mark.parametrize("kernels", BY_KERNELS)
def test_tile_edges(builds, sanitizer, kernels):
    check(builds(sanitizer), list(tile_edges()), sizes=BY_KERNELS[kernels])


def span_edges():
    """Packs whose spans fill windows and searches or do not, and rows far from the keys."""
    rng = np.random.default_rng(4)
    warp = emulator.WARP
    rules = [{}, {"window": (5, 0)}, {"chunk_size": 9, "num_sink_tokens": 2}, {"causal": False}]
    for num in (1, warp - 1, warp, warp + 1, 2 * warp, warp**2 - 1, warp**2, warp**2 + 1):
        ones = np.stack([np.arange(num), np.arange(num) + 1], axis=1)
        wide = 3 * ones[:, :1] + [0, 1] + rng.integers(0, 2, (num, 2))
        behind = np.append(np.zeros((num, 2), int), [[3, 9]], axis=0)  # empty ones in front
        for spans in (ones, wide, behind):
            n = int(spans[-1, 1]) + int(rng.integers(0, 99))
            rule = {"spans": spans.astype(rng.choice([np.int32, np.int64]))}
            for lens in ([n], rng.multinomial(n, np.full(70, 1 / 70))):
                cut = cuts(lens)
                yield Pack(cut, cut, None, n + 3, rules[int(rng.integers(4))] | rule)
    # Between one warp's columns and the next's more empty spans than a window and a search leave.
    few = np.repeat(np.arange(6), 301)[:, None] * 2 * warp
    few = np.append(few, few, axis=1) + warp
    few[::301, 0] -= warp
    yield Pack(cuts([900]), cuts([900]), None, 900, {"spans": few})
    # As many as a block marks, one more, fewer: empty ones where others begin, a long one.
    most = 4 * emulator.SIZES.block_threads
    rooms = ((warp, 70), (200, 300), (200, 900), (most - 1, 600), (most, 200), (most + 1, 200))
    for num, n in rooms:
        spans = np.sort(rng.integers(0, n + 1, 2 * num)).reshape(-1, 2)
        spans[num // 2 :] += n
        spans[num // 2 - 1, 1] = spans[num // 2, 0]
        lens = rng.multinomial(2 * n, np.full(3, 1 / 3))
        yield Pack(cuts(lens), cuts(lens), None, 2 * n, {"spans": spans, "window": (9, 0)})
    # Spans over the borders of sequences whose rows go on behind their keys.
    for cut in (1, 3, 5):
        q, k = cuts([9, 1, 20, 30]), cuts([5, 0, 7, 3])
        spans = np.array([[0, cut], [cut, 9], [9, 15]])
        rule = {"spans": spans, "window": (cut, 0)}
        yield Pack(q, k, None, 20, rule | {"align": "top_left"})
        yield Pack(q, k, None, 20, rule)
    # The last column by itself in its step, or two of them; each alignment.
    for n in (63, 64, 65, 66, 128, 129):
        for _ in range(3):
            yield Pack(cuts([n]), cuts([n]), None, n, {"chunk_size": 5})
    # Positions from -(2**31) to 2**31, where nothing may leave 32 bits.
    for rows in (2**31 - 1, 2**30, 5):
        for _ in range(40):
            n = int(rng.integers(1, 300))
            q, k = cuts([rows]), cuts([n])
            yield Pack(q, k, None, n, random_rule(rng, k, n))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_span_edges(builds, sanitizer):
    packs = list(span_edges())
    check(builds(sanitizer), packs[:: 5 if sanitizer == "thread" else 1])
    check(builds(sanitizer), packs[:: 5 if sanitizer == "thread" else 1], large=True)


def test_reciprocals_divide_every_key():
    rng = np.random.default_rng(5)
    sizes = {1, 2, 3, 5, 7, 2**16 + 1, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1}
    for size in sizes | {int(2**power) for power in rng.uniform(0, 31, 300)}:
        reciprocal, shift = plan._reciprocal(size)
        assert reciprocal < 2**32
        assert shift < 32
        multiples = rng.integers(0, 2**31 // size + 1, 200) * size
        keys = (multiples[:, None] + [-1, 0, 1]).ravel()
        keys = np.append(keys[(keys >= 0) & (keys < 2**31)], [0, 1, 2**31 - 1]).astype(np.uint64)
        quotients = 2 * keys * np.uint64(reciprocal) >> np.uint64(32) >> np.uint64(shift)
        np.testing.assert_array_equal(quotients, keys // np.uint64(size), err_msg=str(size))


@pytest.mark.slow
@pytest.mark.parametrize("kernels", OF_MORE_ROWS)
def test_many_tiles_a_group(builds, kernels):
    check(builds("plain"), list(many_tiles_a_group()), sizes=BY_KERNELS[kernels])


def many_tiles_a_group():
    """Packs with more tiles than groups, not sorted everywhere."""
    # Ends and starts that reach over each tile's edge.
    rng = np.random.default_rng(1)
    tile = emulator.TILE
    rows = 3 * tile * tile + 17
    keys = rows + rows // 2
    ends = np.sort(rng.integers(0, keys, rows))
    ends[rng.random(rows) < 0.001] = 5
    ends[tile - 3 :: tile] += 100
    pack = of_ends(ends, keys)
    pack.attn_mask_kv[tile - 1 :: tile, 0] -= 500
    yield pack

    # A step in the middle of a group, and low rows behind it for longer than a warp links at once.
    tiles_per_group = 2 * emulator.WARP
    step = (13 * tiles_per_group + 5) * tile
    ends = np.full((tile // 2) * (emulator.WARP + 1) * tile, 200)
    ends[step : step + 8 * tile] = np.minimum(2 * np.arange(8 * tile) + 200, 520)  # in one tile
    ends[step + 8 * tile : step + 200 * tile] = 3
    ends[step + 200 * tile :] = 900
    yield of_ends(ends, 1000)


@pytest.mark.parametrize("sanitizer", ["plain", "address"])
@pytest.mark.parametrize("kernels", OF_MORE_ROWS)
def test_sequences_of_many_tiles(builds, sanitizer, kernels):
    packs = list(sequences_of_many_tiles())
    check(builds(sanitizer), packs, sizes=BY_KERNELS[kernels])
    check(builds(sanitizer), packs, large=True, sizes=BY_KERNELS[kernels])


def sequences_of_many_tiles():
    """Packs whose columns have steps in a few of many row tiles, and in more than are read."""
    rng = np.random.default_rng(3)
    tile = emulator.TILE
    for lens in ([9 * tile + 13, 40, 3 * tile], [20, 3, 6 * tile - 23, 5 * tile, 700], [12 * tile]):
        cu = cuts(lens)
        first = np.repeat(cu[:-1], lens)
        row = np.arange(cu[-1]) - first
        length = np.repeat(lens, lens)
        keys = np.sort(rng.integers(0, length + 1, (2, cu[-1])), axis=0)
        causal = np.stack([np.zeros_like(row), row + 1])
        # A tenth of the rows anywhere; and the last five rows apart, so that only their tile steps.
        some = np.where(rng.random(cu[-1]) < 0.1, keys, causal)
        late = np.where(row < length - 5, [[0], [1]], causal)
        for interval in (causal, keys, some, late):
            yield Pack(cu, cu, interval.T.astype(np.int32), cu[-1], {})
    # A step a tile: the columns have steps in more row tiles than are read.
    ends = np.repeat(np.arange(1, 31), tile)
    yield Pack(cuts([len(ends)]), cuts([40]), np.stack([ends - 1, ends], axis=1), 40, {})


def low_rows_behind_an_edge():
    """Tiles that begin with rows below the step that the tile before, or its group, ends on."""
    tile = emulator.TILE
    ends = np.full(5 * tile, 200)
    ends[2 * tile :] = 300
    ends[3 * tile : 3 * tile + 3] = 5
    ends[3 * tile + 3 :] = np.minimum(np.arange(2 * tile - 3) + 300, 520)
    return of_ends(ends, 1000)


def of_ends(ends, keys):
    mask = np.stack([np.maximum(ends - 100, 0), ends], axis=1).astype(np.int32)
    return Pack(cuts([len(ends)]), cuts([keys]), mask, keys, {})


@pytest.mark.parametrize("block_threads", [32, 64, 256, 512, 1024])
@pytest.mark.parametrize("row_num", [1, 5000, 10_200_000, 2**31 - 1])
def test_staircases_do_not_overlap(block_threads, row_num):
    """Edges, ends and starts in scratch memory: each behind the other, all of it within."""
    with emulator.planning(emulator.SIZES._replace(block_threads=block_threads)):
        cuts_of_one, intervals = plan.Cuts(0, 0, 1, 1, 1), plan.Intervals(0, False, row_num)
        launches = plan.excess_launches(cuts_of_one, intervals, 0, 0, 4096)
        end = 4096 + plan.excess_scratch_nbytes(row_num)
    (_, group_num, *_), (_, of_excess, *_) = launches
    assert group_num == of_excess <= 2 * block_threads
    at = emulator.named_arguments(launches[0])
    assert (at["group_edges"], at["ends"] % 16, at["starts"] % 16) == (4096, 0, 0)
    assert at["group_edges"] + 8 * group_num <= at["ends"]
    assert at["ends"] + 4 * row_num <= at["starts"]
    assert at["starts"] + 4 * row_num <= end


@pytest.mark.parametrize(
    ("row_num", "batch", "column_num", "launch_num"),
    [
        (4096, 1, 10, 1), (4097, 1, 10, 2), (4096, 1, 2**31 - 1, 1),
        (8192, 2, 2**20 - 1, 1), (8192, 2, 2**20, 2), (8193, 2, 10, 2), (8192, 0, 10, 2),
    ],
)  # fmt: skip
def test_few_rows_take_one_launch_and_no_scratch(row_num, batch, column_num, launch_num):
    pack = plan.Cuts(0, 0, 1, 1, batch), plan.Intervals(0, False, row_num)
    assert len(plan.interval_launches(*pack, 0, column_num, 0)) == launch_num
    nbytes = plan.interval_scratch_nbytes(*pack, column_num)
    assert nbytes == (0 if launch_num == 1 else plan.scratch_nbytes(row_num))
    assert launch_num == 1 or nbytes > 8 * row_num


@pytest.mark.slow
@pytest.mark.parametrize("block_threads", [32, 128])
def test_blocks_of_other_sizes(block_threads):
    """As many groups as there may be, of kernels that are built for other blocks."""
    if not emulator.available():
        pytest.skip("g++ is not installed")
    sizes = emulator.SIZES._replace(block_threads=block_threads)
    executable = emulator.build(sizes=sizes)
    rng = np.random.default_rng(5)
    rows = 4 * block_threads * 2 * block_threads - 7
    mask = np.stack([np.zeros(rows, int), np.sort(rng.integers(0, 700, rows))], axis=1)
    mask[rng.random(rows) < 0.001] = 0
    packs = [Pack(cuts([rows]), cuts([700]), mask, 700, {})]
    packs += [random_pack(rng, intervals=True) for _ in range(20)]
    check(executable, packs, sizes=sizes)
