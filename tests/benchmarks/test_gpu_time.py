"""Device time: the columns of rules and of intervals, against what must be written and read."""

import baselines
import numpy as np
import packs
import pytest
import timing
from timing import cupy

import maskq_cupy

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="gpu", timer=timing.clock)]

SIZES = (2**10, 2**13, 2**17, 2**20, 2**24, 2**26)
DOUBLES = (2**21, 2**22, 2**23, 2**25)  # with SIZES, each size and its double from 2**20 on
FEW = SIZES[:3]
MANY = timing.MOST_LAUNCHES  # of what takes no longer than the host does to replay a graph of few


def batches(n):
    return sorted({1, 64, n // 1024, n // 128})


RULE_PACKS = [(n, b, case) for n in SIZES for b in batches(n) for case in packs.RULES]
RULE_PACKS += [(n, b, "causal") for n in DOUBLES for b in (1, n // 128)]
MODIFIED_PACKS = [
    (n, b, case)
    for n in (2**13, 2**17, 2**24)
    for b in (1, n // 1024)
    for case in (*packs.MODIFIED, *packs.SPANS)
]
INTERVAL_PACKS = [
    (n, b, case) for n in SIZES for b in (1, n // 128) for case in ("sorted", "random")
]
INTERVAL_PACKS += [(n, b, "sorted") for n in DOUBLES for b in (1, n // 128)]
# Some sequences a block, whose borders are what costs most, about as long as each other and not.
INTERVAL_PACKS += [
    (n, b, case + cut)
    for n, b in ((2**13, 8), (2**17, 64), (2**20, 64), (2**24, 1000))
    for case in ("sorted", "random")
    for cut in ("", packs.ANYWHERE)
]
# One sequence takes the published algorithm the longest: a fifth of a second at 2**20.
PUBLISHED_PACKS = [
    (n, b, case)
    for n, b in sorted({*((n, 1) for n in FEW), *((n, n // 1024) for n in (*FEW, 2**20))})
    for case in ("causal", "sorted")
]
TREE_PACKS = [(n, b, "answers") for n in SIZES[:-1] for b in sorted({1, 64, n // 64})]
TREE_PACKS += [(n, n // 64, case) for n in SIZES[1:4] for case in ("star", "chain")]


def new_outs(n):
    """Return arrays to write in turn, (number, n, 2), which hold -1."""
    outs = cupy.empty((timing.buffer_num(8 * n), n, 2), np.int32)
    outs.data.memset(255, outs.nbytes)
    return outs


def copies(array, num):
    """Return the array on the GPU, so many times."""
    result = cupy.empty((num, *array.shape), array.dtype)
    for copy in result:
        copy.set(array)
    return result


# What cannot be done in less


@pytest.mark.parametrize("n", sorted(SIZES + DOUBLES))
def test_fill(measure, n):
    outs = new_outs(n)
    sample = timing.rotating_sample(lambda i: baselines.fill(outs[i]), len(outs))
    measure("fill", sample, n=n, bytes=8 * n)
    assert (outs[-1, ::2, 0].get() == np.arange(n // 2)).all()


@pytest.mark.parametrize("n", sorted(SIZES + DOUBLES))
def test_read_and_fill(measure, n):
    outs = new_outs(n)
    sources = copies(np.arange(2 * n, dtype=np.int32).reshape(n, 2), len(outs))
    sample = timing.rotating_sample(
        lambda i: baselines.read_and_fill(sources[i], outs[i]), len(outs)
    )
    measure("read and fill", sample, n=n, bytes=16 * n)
    assert (outs[-1, 1::2].get() == sources[-1, 1::2].get()).all()


@pytest.mark.parametrize("loads", [1, 2])
@pytest.mark.parametrize("n", FEW)
def test_fill_after_loads(measure, n, loads):
    outs = new_outs(n)
    # Each load of a warp is of 32 words that no load before has touched.
    words = cupy.asarray(np.arange(64) + 32, np.int32)
    sample = timing.rotating_sample(
        lambda i: baselines.fill_after_loads(words, loads, outs[i]), len(outs)
    )
    what = f"fill after {loads} dependent load{'s' if loads > 1 else ''}"
    measure(what, sample, n=n, bytes=8 * n, against="fill")
    assert set(outs[-1, ::2, 0].get()) == set(range(32 * loads, 32 * loads + 32))


@pytest.mark.parametrize("n", FEW)
def test_empty(measure, n):
    sample = timing.graph_sample(lambda i: baselines.launch("empty", n // 2), MANY)
    measure("an empty kernel", sample, n=n)


@pytest.mark.parametrize("n", FEW)
def test_two_empty(measure, n):
    def launch(i):
        baselines.launch("first_of_two", n // 2)
        baselines.launch("second_of_two", n // 2)

    measure("two empty kernels", timing.graph_sample(launch, MANY), n=n, against="an empty kernel")


@pytest.mark.parametrize("n", FEW)
def test_two_empty_with_overlap(measure, n):
    launch_second = baselines.overlapping_launch()

    def launch(i):
        baselines.launch("first_of_two", n // 2)
        launch_second(-(-n // 2 // baselines.BLOCK_THREADS))

    sample = timing.graph_sample(launch, MANY)
    measure("two empty kernels, overlapping", sample, n=n, against="two empty kernels")


# The package


@pytest.mark.parametrize(("n", "b", "case"), RULE_PACKS)
def test_rule(measure, n, b, case):
    pack = packs.rule_pack(n, b, case)
    outs, cu = new_outs(n), cupy.asarray(pack.cu)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.get_attn_mask_q(cu, cu, out=outs[i], **pack.rule), len(outs)
    )
    # A call that allocated scratch memory would not have been captured.
    facts = {"n": n, "b": b, "case": case, "scratch_bytes": 0}
    measure("rule", sample, **facts, bytes=8 * n, against="fill")
    packs.check(pack, outs)


@pytest.mark.parametrize(("n", "b", "case"), MODIFIED_PACKS)
def test_modified_rule(measure, n, b, case):
    """Beside the plain rule of the same pack."""
    pack = packs.modified_pack(n, b, case)
    outs, cu = new_outs(n), cupy.asarray(pack.cu)
    rule = {name: cupy.asarray(v) if name == "spans" else v for name, v in pack.rule.items()}
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.get_attn_mask_q(cu, cu, out=outs[i], **rule), len(outs)
    )
    measure("modified rule", sample, n=n, b=b, case=case, bytes=8 * n, against="rule")
    packs.check(pack, outs)


@pytest.mark.parametrize(("n", "b", "case"), INTERVAL_PACKS)
def test_intervals(measure, n, b, case):
    pack = packs.interval_pack(n, b, case)
    outs, cu = new_outs(n), cupy.asarray(pack.cu)
    intervals = copies(pack.intervals, len(outs))
    scratch = cupy.empty(maskq_cupy.scratch_nbytes(n), np.uint8)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.get_attn_mask_q(cu, cu, intervals[i], out=outs[i], scratch=scratch),
        len(outs),
    )
    facts = {"n": n, "b": b, "case": case, "scratch_bytes": scratch.nbytes}
    measure("intervals", sample, **facts, bytes=16 * n, against="read and fill")
    packs.check(pack, outs)


# The published algorithm


@pytest.mark.parametrize(("n", "b", "case"), PUBLISHED_PACKS)
def test_published(measure, n, b, case):
    pack = packs.rule_pack(n, b, case) if case == "causal" else packs.interval_pack(n, b, case)
    cu = cupy.asarray(pack.cu)
    intervals = None if pack.intervals is None else cupy.asarray(pack.intervals)
    outs = cupy.empty((1, n, 2), np.int32)
    sample = timing.graph_sample(lambda i: baselines.published(cu, intervals, outs[0]), 4)
    against = "rule" if case == "causal" else "intervals"
    measure("published", sample, n=n, b=b, case=case, against=against)
    packs.check(pack, outs)


# Prefix trees


@pytest.mark.parametrize(("n", "b", "case"), TREE_PACKS)
def test_tree(measure, n, b, case):
    lens = packs.documents(n, b)
    parent = PARENTS[case](b)
    outs, cu, parents = new_outs(n), cupy.asarray(lens), cupy.asarray(parent)
    scratch = cupy.empty(maskq_cupy.tree_scratch_nbytes(b), np.uint8)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.tree_attn_mask_q(parents, cu, cu, out=outs[i], scratch=scratch),
        len(outs),
    )
    measure("tree", sample, n=n, b=b, case=case, bytes=8 * n, against="fill")
    right = maskq_cupy.reference.tree_attn_mask_q(parent, lens, lens)
    np.testing.assert_array_equal(outs[0].get(), right)
    np.testing.assert_array_equal(outs[-1].get(), right)


def depth_first_parents(num):
    """Return the parents of so many segments: a prompt each 64, answers to it, answers to these."""
    parents = np.full(num, -1, np.int32)
    path = []  # from the root to the segment before
    rng = np.random.default_rng(3)
    for segment in range(num):
        depth = int(rng.integers(1, 9)) if segment % 64 else 0
        path = path[:depth]
        parents[segment] = path[-1] if path else -1
        path.append(segment)
    return parents


PARENTS = {
    "answers": depth_first_parents,
    "star": lambda num: np.minimum(np.arange(num, dtype=np.int32), 1) - 1,  # all are the first's
    "chain": lambda num: np.arange(num, dtype=np.int32) - 1,
}
