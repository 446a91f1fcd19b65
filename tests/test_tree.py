"""The columns of prefix trees: reference, kernels on the CPU, GPU, torch's attention."""

import runpy
from pathlib import Path

import numpy as np
import oracle
import pytest
from on_cpu import emulator
from on_cpu.calls import add_launches
from strategies import cuts, random_lengths, random_parents

import maskq_cupy
from maskq_cupy import checks, compiler, forest, plan, reference

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")
EXAMPLES = Path(__file__).parent.parent / "examples"


FLAGS = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


def random_flags(rng, num):
    """Return flags of any dtype, half of them set: any one bit of each."""
    dtype = np.dtype(rng.choice(FLAGS))
    bit = rng.integers(0, 8 * dtype.itemsize, num).astype(np.uint64)
    flags = np.where(rng.random(num) < 0.5, np.uint64(1) << bit, np.uint64(0))
    return flags != 0 if dtype.kind == "b" else flags.astype(f"u{dtype.itemsize}").view(dtype)


def random_full_tree(rng, tokens):
    """Return a random forest, half of them with segments that see all of themselves."""
    tree = random_tree(rng, tokens)
    return *tree, random_flags(rng, len(tree[0])) if rng.random() < 0.5 else None


def random_tree(rng, tokens, dtype=None):
    """Return parent, cu_seqlens_q, cu_seqlens_k and kv_token_num of a random forest."""
    q_lens, k_lens = random_lengths(rng, int(rng.integers(0, tokens + 1)))
    dtypes = [dtype or rng.choice([np.int32, np.int64]) for _ in range(3)]
    parent = random_parents(rng, len(k_lens)).astype(dtypes[0])
    q, k = cuts(q_lens, dtypes[1]), cuts(k_lens, dtypes[2])
    padding = int(rng.choice([0, 0, 1, 17, 300]))
    if rng.random() < 0.3:  # a scheduler pads cu_seqlens_q to its largest batch
        q = np.concatenate([q, rng.integers(-9, 9, 3).astype(q.dtype)])
    return parent, q, k, int(k[-1]) + padding


# Reference


def test_worked_values():
    columns = reference.tree_attn_mask_q([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5])
    assert (columns.dtype, columns.shape) == (np.int32, (5, 2))
    np.testing.assert_array_equal(columns.T, [[5, 5, 4, 4, 5], [0, 1, 2, 3, 4]])
    # A cached prompt: keys and no rows; behind it padding.
    columns = reference.tree_attn_mask_q([-1, 0, 0], [0, 0, 1, 2], [0, 2, 3, 4], 5)
    np.testing.assert_array_equal(columns.T, [[2, 2, 1, 2, 2], [0, 0, 0, 1, 2]])
    assert reference.tree_attn_mask_q([], [0], [0], full=[]).shape == (0, 2)
    # The prompt and the first answer see all of themselves.
    cu = [0, 2, 4, 6]
    columns = reference.tree_attn_mask_q([-1, 0, 0], cu, cu, full=[True, True, False])
    np.testing.assert_array_equal(columns.T, [[6, 6, 4, 4, 6, 6], [0, 0, 2, 2, 4, 5]])


@pytest.mark.parametrize("seed", range(4))
def test_shows_each_row_its_segment_and_its_ancestors(seed):
    rng = np.random.default_rng(seed)
    for _ in range(150):
        q_lens, k_lens = (a.tolist() for a in random_lengths(rng, int(rng.integers(0, 40))))
        parent = random_parents(rng, len(k_lens)).tolist()
        full = random_flags(rng, len(k_lens)) if rng.random() < 0.5 else None
        columns = reference.tree_attn_mask_q(parent, cuts(q_lens), cuts(k_lens), full=full)
        seen = oracle.tree_visible(parent, q_lens, k_lens, full)
        shown = oracle.shown(columns, sum(q_lens))
        np.testing.assert_array_equal(shown, seen, err_msg=f"{parent} {q_lens} {k_lens}")
        assert (columns[:, 1] <= columns[:, 0]).all()


def test_roots_alone_are_a_packed_batch():
    rng = np.random.default_rng(5)
    for _ in range(50):
        _, q, k, n = random_tree(rng, 600)
        roots = np.full(len(k) - 1, -1)
        expected = reference.get_attn_mask_q(q, k, None, n)
        np.testing.assert_array_equal(reference.tree_attn_mask_q(roots, q, k, n), expected)


def test_subtree_ends_of_any_parents():
    rng = np.random.default_rng(6)
    for _ in range(300):
        num = int(rng.integers(0, 70))
        parent = rng.integers(-3, num + 3, num)
        first = [next((c for c in range(b + 1, num) if parent[c] < b), num) for b in range(num)]
        assert forest.subtree_ends(parent).tolist() == first


def is_depth_first(parent):
    """Straight from the words: a parent is the segment before its child or one of its ancestors."""
    for b, above in enumerate(parent):
        line, segment = [-1], b - 1
        while segment >= 0:
            line.append(segment)
            segment = parent[segment]
        if above not in line:
            return b
    return None


def test_order_is_checked_as_defined():
    rng = np.random.default_rng(7)
    for _ in range(500):
        num = int(rng.integers(1, 12))
        parent = np.array([rng.integers(-1, b) if b else -1 for b in range(num)])
        first = is_depth_first(parent.tolist())
        if first is None:
            checks.check_parent_values(parent)
        else:
            with pytest.raises(ValueError, match=rf"depth-first order: .*, got parent\[{first}\]"):
                checks.check_parent_values(parent)


BAD = [
    ([-1, 1], ValueError, "parent must hold -1 or a segment before its child, got parent[1] = 1"),
    ([-2, 0], ValueError, "parent must hold -1 or a segment before its child, got parent[0] = -2"),
    ([-1], ValueError, "parent must be int32 or int64 of shape (B,) = (2,), got int64 of shape (1"),
    ([-1.0, 0.0], TypeError, "parent must be int32 or int64 of shape (B,) = (2,), got float64 of"),
    (None, TypeError, "parent must be int32 or int64 of shape (B,) = (2,), got None"),
]
BAD_ORDER = "got parent[3] = 0, whose subtree ended before segment 2 with parent[2] = -1"


FULL_FORM = "full must be bool or any int dtype of shape (B,) = (2,)"
BAD_FULL = [
    (
        [1],
        ValueError,
        f"{FULL_FORM}, got int64 of shape (1,)",
    ),
    (
        [1.0, 0],
        TypeError,
        f"{FULL_FORM}, got float64 of shape (2,)",
    ),
    ("no", TypeError, f"{FULL_FORM}, got str"),
]


@pytest.mark.parametrize(("full", "kind", "message"), BAD_FULL)
def test_bad_flags(full, kind, message):
    with pytest.raises(kind) as raised:
        reference.tree_attn_mask_q([-1, 0], [0, 1, 2], [0, 1, 2], full=full)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("parent", "kind", "message"), BAD)
def test_bad_parents(parent, kind, message):
    with pytest.raises(kind) as raised:
        reference.tree_attn_mask_q(parent, [0, 1, 2], [0, 1, 2])
    assert str(raised.value).startswith(message)


def test_bad_order():
    with pytest.raises(ValueError, match="parent must be in depth-first order") as raised:
        reference.tree_attn_mask_q([-1, 0, -1, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert str(raised.value).endswith(BAD_ORDER)


def order_by_definition(parent):
    """Depth first, from the words: each root, and after a segment its children, one by one."""

    def below(segment):
        for child in [c for c in range(len(parent)) if parent[c] == segment]:
            yield child
            yield from below(child)

    return [*below(-1)]


def test_tree_order():
    rng = np.random.default_rng(14)
    for _ in range(300):
        parent = random_parents(rng, int(rng.integers(0, 30)))
        name = rng.permutation(len(parent))  # segment b gets the number name[b]
        given = np.empty_like(parent)
        given[name] = np.where(parent == -1, -1, name[parent])
        tree = reference.tree_order(given.astype(rng.choice([np.int32, np.int64])))
        assert [array.dtype for array in tree] == [np.int64] * 3
        assert tree.order.tolist() == order_by_definition(given)
        assert is_depth_first(tree.parent.tolist()) is None
        above = np.where(given == -1, -1, tree.inverse[given])
        np.testing.assert_array_equal(tree.parent, above[tree.order])
        np.testing.assert_array_equal(tree.order[tree.inverse], np.arange(len(parent)))
        again = reference.tree_order(tree.parent)  # is in order
        np.testing.assert_array_equal(again.order, np.arange(len(parent)))


def test_tree_order_is_not_limited_by_depth():
    num = 100_000
    order = reference.tree_order(np.append(np.arange(1, num), -1)).order  # behind their children
    np.testing.assert_array_equal(order, np.arange(num)[::-1])


CYCLE = "parent must have no cycle, got one through segment"
BAD_TREES = [
    ([1, 2, 0], ValueError, f"{CYCLE} 0, parent[0] = 1"),
    ([-1, 1], ValueError, f"{CYCLE} 1, parent[1] = 1"),
    ([3, 2, 3, 2, -1], ValueError, f"{CYCLE} 3, parent[3] = 2"),
    ([-1, 2], ValueError, "parent must hold -1 or a segment in [0, 2), got parent[1] = 2"),
    ([-2], ValueError, "parent must hold -1 or a segment in [0, 1), got parent[0] = -2"),
    ([[-1]], ValueError, "parent must be int32 or int64 of shape (B,), got int64 of shape (1, 1)"),
    ([-1.0], TypeError, "parent must be int32 or int64 of shape (B,), got float64 of shape (1,)"),
    (None, TypeError, "parent must be int32 or int64 of shape (B,), got None"),
]


@pytest.mark.parametrize(("parent", "kind", "message"), BAD_TREES)
def test_bad_trees_of_any_order(parent, kind, message):
    with pytest.raises(kind) as raised:
        reference.tree_order(parent)
    assert str(raised.value).startswith(message)


# Kernels on the CPU

FEW_SEGMENTS = emulator.SIZES.few_segments


@emulator.planning()
def add_call(script, parent, q, k, n, full=None, *, misaligned=False, large=False):
    """Add a call in buffers of exactly the contract's size, if it is due.

    If large, its launches are what the plan makes of packs too large for the CPU.
    """
    if n == 0:
        return False
    stride_of_parent, *strides = [a.dtype.itemsize // 4 for a in (parent, q, k)]
    pack = plan.Cuts(script.buffer(q), script.buffer(k), *strides, len(k) - 1)
    nbytes = plan.tree_scratch_nbytes(len(parent))
    columns = script.buffer(np.full((n, 2), -77, np.int32), offset=8 if misaligned else 0)
    launches = plan.tree_launches(
        pack,
        script.buffer(parent),
        stride_of_parent,
        columns,
        n,
        script.buffer(np.full(nbytes, 0x5A, np.uint8)),
        *((0, 1) if full is None else (script.buffer(full), full.itemsize)),
    )
    add_launches(script, launches, 0, n, large)
    script.read(columns)
    return True


def run(executable, trees, timeout=240):
    """Return the columns of each tree, all of them computed in one process."""
    script = emulator.Script()
    due = [
        add_call(script, *tree, misaligned=i % 3 == 2, large=i % 2 == 1)
        for i, tree in enumerate(trees)
    ]
    results = iter(script.run(executable, timeout))
    return [next(results) if is_due else np.empty((0, 2), np.int32) for is_due in due]


def check(executable, trees, timeout=240):
    """Require of each tree the reference's columns."""
    for tree, result in zip(trees, run(executable, trees, timeout), strict=True):
        expected = reference.tree_attn_mask_q(*tree[:4], full=tree[4] if tree[4:] else None)
        np.testing.assert_array_equal(result, expected, err_msg=repr(tree))


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 300), ("address", 80), ("thread", 30)])
def test_kernel_on_random_trees(builds, sanitizer, count):
    rng = np.random.default_rng(8)
    check(builds(sanitizer), [random_full_tree(rng, 600) for _ in range(count)])


def level_edges():
    """Forests without minima and of one run of them or more, with subtrees of every reach."""
    rng = np.random.default_rng(9)
    few = [1, 31, 32, 33, FEW_SEGMENTS, FEW_SEGMENTS + 1]
    for num in [*few, 1023, 1024, 1025, 5000, 32 * 1024 + 33]:
        ones, segment = cuts(np.ones(num, int)), np.arange(num)
        chain, star = segment - 1, np.where(segment == 0, -1, 0)
        comb = np.where(segment % 2 == 1, segment - 1, segment - 2)  # a leaf at each of a chain
        comb[:1] = -1
        # A chain that goes on near its root, late: subtrees end far behind, and not at the end.
        fork = np.where(segment == 5 * num // 6, num // 12 - 1, chain)
        behind = np.append(chain[:-1], -1)  # a root behind them all
        forests = [chain, star, comb, fork, behind, random_parents(rng, num)]
        if num > 10_000:
            forests = [np.append(comb[:-1], -1)]  # the same, in a run of its own
        for parent in forests:
            tokens = np.zeros(num, int)
            tokens[rng.integers(0, num, 40)] = 3  # most are empty, and reached past all the same
            sparse = cuts(tokens)
            flags = random_flags(rng, num) if num % 2 else None
            yield parent.astype(np.int32), ones, sparse, int(sparse[-1]), flags
            if num < 2000:
                yield parent.astype(np.int64), sparse, ones, num + 3


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_kernel_at_level_edges(builds, sanitizer):
    check(builds(sanitizer), list(level_edges()))


def far_from_even():
    """Forests whose segments are not where they would be if all were of one length."""
    rng = np.random.default_rng(12)
    for num in (100, 900, 1500):
        parent, few = random_parents(rng, num).astype(np.int32), np.zeros(num, int)
        long = rng.integers(0, 9, num)
        long[num // 2] = 3000
        few[[num // 3, num // 3 + 1, num - 1]] = 700  # the others are empty
        for lens in (np.sort(long), -np.sort(-long), long, few, 3000 * (np.arange(num) == 0)):
            q, k = cuts(rng.permutation(lens)), cuts(lens)
            n = int(k[-1]) + int(rng.choice([0, 5, 2000]))
            yield parent, q, k, n, random_flags(rng, num)


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_kernel_on_segments_far_from_even(builds, sanitizer):
    check(builds(sanitizer), list(far_from_even()))


@pytest.mark.slow
@needs_gxx
def test_kernel_on_parents_in_any_order(builds):
    """A subtree ends by its definition whatever the parents are, if the cuts are right."""
    rng = np.random.default_rng(10)
    trees = []
    for num in [1, 30, 200, 1300] * 5:
        parent = rng.integers(-1, num, num, rng.choice([np.int32, np.int64]))
        ones = cuts(np.ones(num, int))
        trees.append((parent, ones, ones, num))
    for (parent, *_), result in zip(trees, run(builds("address"), trees), strict=True):
        np.testing.assert_array_equal(result[:, 0], forest.subtree_ends(parent))


# GPU


def check_gpu(cupy, parent, q, k, n, full=None):
    given = [cupy.asarray(a) for a in (parent, q, k)]
    flags = None if full is None else cupy.asarray(full)
    result = maskq_cupy.tree_attn_mask_q(*given, n, full=flags)
    assert type(result) is cupy.ndarray
    assert (result.dtype, result.flags.c_contiguous) == (np.int32, True)
    expected = reference.tree_attn_mask_q(parent, q, k, n, full=full)
    message = f"{parent} {q} {k} {n} {full}"
    np.testing.assert_array_equal(cupy.asnumpy(result), expected, err_msg=message)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_gpu_equals_reference(cupy, seed):
    rng = np.random.default_rng(seed + 30)
    for _ in range(100):
        check_gpu(cupy, *random_full_tree(rng, int(rng.choice([50, 600, 5000, 40000]))))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "num",
    [
        255,
        256,
        4096,
        4097,
        compiler.SIZES.few_segments,
        compiler.SIZES.few_segments + 1,
        32_769,
        2**20 + 1,
    ],
)
def test_gpu_many_segments(cupy, num):
    rng = np.random.default_rng(num)
    segment = np.arange(num)
    star = np.where(segment == 0, -1, 0)
    for parent in (segment - 1, star, random_parents(rng, num)):
        k_lens = rng.integers(0, 20, num)
        q_lens = np.minimum(k_lens, rng.integers(0, 20, num))
        k = cuts(k_lens)
        check_gpu(cupy, parent.astype(np.int32), cuts(q_lens), k, int(k[-1]) + 5)
        flags = random_flags(rng, num)
        check_gpu(cupy, parent.astype(np.int32), cuts(q_lens), k, int(k[-1]) + 5, flags)


@pytest.mark.gpu
def test_gpu_parents_in_any_order(cupy):
    rng = np.random.default_rng(31)
    for num in (1, 100, 5000, 40_000):
        ones = cupy.arange(num + 1, dtype=np.int32)
        near = rng.integers(-1, num, num)
        result = maskq_cupy.tree_attn_mask_q(cupy.asarray(near), ones, ones, num)
        np.testing.assert_array_equal(cupy.asnumpy(result[:, 0]), forest.subtree_ends(near))


@pytest.mark.gpu
@pytest.mark.parametrize("framework", ["torch", "jax", "numba.cuda", "host"])
def test_gpu_frameworks(cupy, framework):
    rng = np.random.default_rng(32)
    module = None if framework == "host" else pytest.importorskip(framework)
    to_framework = {
        "torch": lambda a: module.from_numpy(a).cuda(),
        "jax": lambda a: module.device_put(a, module.devices("gpu")[0]),
        "numba.cuda": lambda a: module.to_device(a),
        "host": lambda a: a,
    }[framework]
    for _ in range(20):
        parent, q, k, n = random_tree(rng, 3000, np.int32)
        result = maskq_cupy.tree_attn_mask_q(*(to_framework(a) for a in (parent, q, k)), n)
        expected = reference.tree_attn_mask_q(parent, q, k, n)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLAGS)
def test_gpu_flags(cupy, dtype):
    """Of CuPy and of torch, and from the host; a flag's upper bytes count too."""
    torch = pytest.importorskip("torch")
    given, n = ([-1, 0, 0, 2], [0, 2, 5, 9, 9], [0, 3, 5, 9, 12]), 15
    flags = np.array([1, 0, 1 << (8 * np.dtype(dtype).itemsize - 2), 1], np.uint64)
    flags = flags != 0 if dtype == "?" else flags.astype(dtype)
    expected = reference.tree_attn_mask_q(*given, n, full=flags)
    on_gpu = [cupy.asarray(a) for a in given]
    found = maskq_cupy.tree_attn_mask_q(*on_gpu, n, full=cupy.asarray(flags), validate=True)
    np.testing.assert_array_equal(cupy.asnumpy(found), expected)
    found = maskq_cupy.tree_attn_mask_q(*given, n, full=flags)
    np.testing.assert_array_equal(cupy.asnumpy(found), expected)
    tensors = [torch.tensor(a, device="cuda") for a in given]
    of_torch = torch.from_numpy(flags).cuda()
    found = maskq_cupy.tree_attn_mask_q(*tensors, n, full=of_torch)
    np.testing.assert_array_equal(cupy.asnumpy(found), expected)


@pytest.mark.gpu
def test_gpu_bad_flags(cupy):
    given = [cupy.asarray(a) for a in ([-1, 0], [0, 1, 2], [0, 1, 2])]
    for full, kind, message in (
        (cupy.zeros(2), TypeError, f"{FULL_FORM}, got float64 of shape (2,)"),
        (cupy.zeros(3, bool), ValueError, f"{FULL_FORM}, got bool of shape (3,)"),
        (cupy.zeros(4, bool)[::2], ValueError, "full must be C-contiguous, got a strided view of"),
        ([True, False], TypeError, "the input must be all on one GPU or all on the host, got"),
    ):
        with pytest.raises(kind) as raised:
            maskq_cupy.tree_attn_mask_q(*given, 2, full=full)
        assert str(raised.value).startswith(message)


@pytest.mark.gpu
def test_gpu_out_and_number_of_columns(cupy):
    given = [cupy.asarray(a) for a in ([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5])]
    expected = reference.tree_attn_mask_q([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5])
    np.testing.assert_array_equal(cupy.asnumpy(maskq_cupy.tree_attn_mask_q(*given)), expected)
    for shape in ((5, 2), (1, 1, 5, 2)):
        out = cupy.full(shape, -7, np.int32)
        assert maskq_cupy.tree_attn_mask_q(*given, out=out) is out
        np.testing.assert_array_equal(cupy.asnumpy(out).reshape(5, 2), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("num", [300, compiler.SIZES.few_segments + 1000])
def test_gpu_graph(cupy, num):
    """Segments whose minima do not fit in a block want scratch memory, fewer do not."""
    rng = np.random.default_rng(num)
    n = 40 * num
    parent = cupy.full(num, -1, np.int32)
    q, k = cupy.zeros(num + 1, np.int32), cupy.zeros(num + 1, np.int32)
    out = cupy.empty((n, 2), np.int32)
    nbytes = maskq_cupy.tree_scratch_nbytes(num)
    scratch = cupy.empty(nbytes, np.uint8) if nbytes else None
    maskq_cupy.tree_attn_mask_q(parent, q, k, out=out, scratch=scratch)  # compiles
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        if nbytes:
            with pytest.raises(RuntimeError, match="scratch memory is allocated"):
                maskq_cupy.tree_attn_mask_q(parent, q, k, out=out)
            maskq_cupy.tree_attn_mask_q(parent, q, k, out=out, scratch=scratch)
        else:
            maskq_cupy.tree_attn_mask_q(parent, q, k, out=out)
        graph = stream.end_capture()
    for _ in range(20):
        lens = rng.multinomial(n - 10, np.ones(num) / num)
        tree = random_parents(rng, num).astype(np.int32), cuts(lens), cuts(rng.permutation(lens))
        with stream:
            for device, host in zip((parent, q, k), tree, strict=True):
                device.set(host)
            out.fill(-1)
            graph.launch()
            got = cupy.asnumpy(out)
        np.testing.assert_array_equal(got, reference.tree_attn_mask_q(*tree, n))


@pytest.mark.gpu
@pytest.mark.parametrize("on_gpu", [True, False])
def test_gpu_validate(cupy, on_gpu):
    to = cupy.asarray if on_gpu else np.asarray
    cu = to(np.array([0, 1, 2]))
    for parent, kind, message in BAD[:4]:
        with pytest.raises(kind) as raised:
            maskq_cupy.tree_attn_mask_q(to(np.array(parent)), cu, cu, 2, validate=True)
        assert str(raised.value).startswith(message)
    cu = to(np.array([0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="parent must be in depth-first order") as raised:
        maskq_cupy.tree_attn_mask_q(to(np.array([-1, 0, -1, 0])), cu, cu, 4, validate=True)
    assert str(raised.value).endswith(BAD_ORDER)
    with pytest.raises(ValueError, match="kv_token_num must be at least"):
        maskq_cupy.tree_attn_mask_q(to(np.array([-1, 0, 1, 0])), cu, cu, 3, validate=True)


# Through attention


def paths(parent):
    """Yield each leaf's line of segments, from its root down."""
    for leaf in sorted(set(range(len(parent))) - {int(p) for p in parent}):
        line = [leaf]
        while parent[line[0]] != -1:
            line.insert(0, int(parent[line[0]]))
        yield line


def tokens_of(line, cu):
    return np.concatenate([np.arange(cu[b], cu[b + 1]) for b in line])


def paths_alone(torch, q, k, v, parent, cu_q, cu_k):
    """Run each root-to-leaf path alone, causal; return its rows in the pack, and what they get."""
    rows, results = [], []
    for line in paths(parent):
        row, key = (torch.from_numpy(tokens_of(line, cu)).to(q.device) for cu in (cu_q, cu_k))
        # Where a prompt is cached there are more keys than rows: the last row sees the last key.
        seen = torch.ones(len(row), len(key), dtype=torch.bool, device=q.device)
        results.append(
            torch.nn.functional.scaled_dot_product_attention(
                *(q[..., row, :], k[..., key, :], v[..., key, :]),
                attn_mask=seen.tril(len(key) - len(row)),
            )
        )
        rows.append(row)
    return torch.cat(rows), torch.cat(results, dim=-2)


def check_attention(torch, columns, parent, cu, dtype, tolerance):
    """Attention under the columns' mask against each root-to-leaf path run alone."""
    device, total = columns.device, cu[-1]
    row = torch.arange(total, device=device)[:, None]
    mask = (row >= columns[:, 1]) & (row < columns[:, 0])
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = torch.randn(3, 2, total, 16, dtype=dtype, device=device, generator=generator)
    packed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    rows, alone = paths_alone(torch, q, k, v, parent, cu, cu)
    torch.testing.assert_close(packed[:, rows], alone, rtol=tolerance, atol=tolerance)


def attention_trees():
    rng = np.random.default_rng(40)
    for num in (1, 4, 9, 20):
        yield random_parents(rng, num), cuts(rng.integers(1, 30, num))


def test_attention_of_the_reference_is_that_of_each_path():
    torch = pytest.importorskip("torch")
    for parent, cu in attention_trees():
        columns = torch.from_numpy(reference.tree_attn_mask_q(parent, cu, cu))
        check_attention(torch, columns, parent, cu, torch.float64, 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
def test_gpu_attention_is_that_of_each_path(dtype, tolerance):
    torch = pytest.importorskip("torch")
    for parent, cu in attention_trees():
        given = [torch.from_numpy(a).cuda() for a in (parent, cu, cu)]
        columns = torch.from_dlpack(maskq_cupy.tree_attn_mask_q(*given))
        check_attention(torch, columns, parent, cu, getattr(torch, dtype), tolerance)


@pytest.mark.parametrize(
    ("example", "line"),
    [
        ("rl_prefix_tree.py", "645 tokens instead of 1605: as each conversation"),
        ("draft_tree.py", "6 drafts in one call: as each path alone"),
    ],
)
def test_example_without_a_gpu(monkeypatch, capsys, example, line):
    torch = pytest.importorskip("torch")
    pytest.importorskip("cupy")  # which the GPU function's import wants
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    assert capsys.readouterr().out.startswith(line)
