"""How many pairs the columns show beyond the intervals: reference, kernels on the CPU, GPU."""

import numpy as np
import oracle
import pytest
from on_cpu import emulator
from on_cpu.calls import add_launches
from strategies import Pack, cuts, random_intervals, random_lengths, random_pack

import maskq_cupy
from maskq_cupy import checks, plan, reference

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")


def interval_pack(rng, tokens):
    pack = random_pack(rng, tokens, intervals=True)
    if rng.random() < 0.3:  # exact: ends never decrease, no starts
        pack.attn_mask_kv[:, 0] = 0
        pack.attn_mask_kv[:, 1] = 2**31 - 1
    return pack


def expected(pack):
    """Return the pairs beyond the intervals, and the first row that is shown any."""
    row, first, end = reference.excess_runs(*pack[:3])
    return int((end - first).sum()), int(row[0]) if row.size else None


# Reference


def test_worked_values():
    assert reference.excess_pairs([0, 2], [0, 4], [[0, 3], [0, 1]]) == 2  # ends decrease
    assert reference.excess_pairs([0, 2], [0, 4], [[2, 3], [1, 4]]) == 1  # starts decrease
    assert reference.excess_pairs([0, 3], [0, 4], [[0, 3], [9, 9], [2, 4]]) == 1  # sees nothing
    assert reference.excess_pairs([0, 2, 4], [0, 4, 8], [[1, 4], [2, 4]] * 2) == 0
    assert reference.excess_pairs([0], [0], np.zeros((0, 2), int)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_counts_what_the_columns_show_beyond_the_intervals(seed):
    rng = np.random.default_rng(seed + 300)
    for _ in range(150):
        q_lens, k_lens = (a.tolist() for a in random_lengths(rng, int(rng.integers(0, 40))))
        q, k = cuts(q_lens), cuts(k_lens)
        mask = random_intervals(rng, q, k)
        columns = reference.get_attn_mask_q(q, k, mask)
        beyond = oracle.shown(columns, q[-1]) & ~oracle.visible(q_lens, k_lens, mask)
        assert reference.excess_pairs(q, k, mask) == beyond.sum()
        found = np.zeros_like(beyond)
        for row, first, end in zip(*reference.excess_runs(q, k, mask), strict=True):
            assert first < end
            assert not found[row, first:end].any()
            found[row, first:end] = True
        np.testing.assert_array_equal(found, beyond)


def test_the_reference_validates_intervals():
    given = [0, 2], [0, 4], [[0, 3], [0, 1]]
    assert reference.get_attn_mask_q(*given).shape == (4, 2)
    message = "got 2 .* shown beyond them, the first in row 1"
    with pytest.raises(ValueError, match=message):
        reference.get_attn_mask_q(*given, validate=True)
    reference.get_attn_mask_q([0, 2], [0, 4], [[0, 1], [0, 3]], validate=True)
    reference.get_attn_mask_q([0, 2], [0, 4], validate=True)


def test_error_names_the_count_and_the_first_row():
    checks.check_excess(0, 7)
    with pytest.raises(ValueError, match=r"got 3 .* shown beyond them, the first in row 1"):
        checks.check_excess(3, 1)


def test_intervals_are_needed():
    with pytest.raises(TypeError, match=r"attn_mask_kv must be .*, got None"):
        reference.excess_pairs([0, 2], [0, 2], None)


# Kernels on the CPU


@emulator.planning()
def add_call(script, pack, misaligned=False, large=False, with_first=True):
    """Add a call in buffers of exactly the contract's size, if it is due.

    If large, its launches are what the plan makes of packs too large for the CPU.
    """
    q, k, mask = pack[:3]
    row_num = mask.size // 2
    if row_num == 0:
        return False
    strides = [a.dtype.itemsize // 4 for a in (q, k)]
    found = script.buffer(np.zeros(2, np.int64))
    intervals = script.buffer(mask, offset=mask.dtype.itemsize if misaligned else 0)
    launches = plan.excess_launches(
        plan.Cuts(script.buffer(q), script.buffer(k), *strides, len(k) - 1),
        plan.Intervals(intervals, mask.dtype == np.int64, row_num),
        found,
        found + 8 if with_first else 0,
        script.buffer(np.full(plan.excess_scratch_nbytes(row_num), 0x5A, np.uint8)),
    )
    add_launches(script, launches, row_num, pack.kv_token_num, large)
    script.read(found)
    return True


def asks_first(i):
    """Whether the i-th call of a run asks for the first row too, as validation does."""
    return i % 4 != 3


def run(executable, packs, timeout=240, large=False):
    """Return (pairs, rows from the first on) of each pack, all of them counted in one process."""
    script = emulator.Script()
    due = [add_call(script, pack, i % 3 == 2, large, asks_first(i)) for i, pack in enumerate(packs)]
    results = iter(script.run(executable, timeout))
    return [tuple(next(results)) if is_due else (0, 0) for is_due in due]


def check(executable, packs, timeout=240, large=False):
    """Require of each pack the reference's count and first row."""
    for i, (pack, result) in enumerate(
        zip(packs, run(executable, packs, timeout, large), strict=True)
    ):
        pairs, first = expected(pack)
        is_told = first is not None and asks_first(i)
        rows = pack.attn_mask_kv.size // 2 - first if is_told else 0
        assert result == (pairs, rows), repr(pack)


def edges():
    """Excess in the first, the last and every row around a tile's edges, or in none."""
    tile = emulator.TILE
    for rows in (1, 2, 31, 33, tile - 1, tile, tile + 1, 3 * tile + 1):
        lens = cuts([rows])
        mask = np.stack([np.zeros(rows), np.arange(rows) + 1], axis=1).astype(np.int32)
        yield Pack(lens, lens, mask, rows, {})
        for row in {0, rows // 2, rows - 1}:
            one = mask.copy()
            one[row] = rows - 1, rows
            yield Pack(lens, lens, one, rows, {})
            mirrored = np.ascontiguousarray(rows - one[::-1, ::-1])  # starts where ends were
            yield Pack(lens, lens, mirrored, rows, {})
        yield Pack(lens, lens, mask[::-1].copy(), rows, {})
    ones = cuts(np.ones(9 * emulator.WARP, int))
    yield Pack(ones, ones, np.tile([0, 1], (ones[-1], 1)), int(ones[-1]), {})
    empties = cuts(np.append(np.zeros(500, int), [5, 0, 7]))
    yield Pack(empties, empties, np.tile([[0, 3], [1, 2]], (6, 1)), 12, {})


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 300), ("address", 80), ("thread", 30)])
def test_kernel_on_random_packs(builds, sanitizer, count):
    rng = np.random.default_rng(2)
    check(builds(sanitizer), [interval_pack(rng, 600) for _ in range(count)])


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_kernel_at_edges(builds, sanitizer, large):
    check(builds(sanitizer), list(edges()), large=large)


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_kernels_as_launched_for_many_rows(builds, sanitizer):
    rng = np.random.default_rng(4)
    check(builds(sanitizer), [interval_pack(rng, 1500) for _ in range(20)], large=True)


@pytest.mark.slow
@needs_gxx
def test_kernel_on_many_tiles_a_group(builds):
    rng = np.random.default_rng(3)
    rows = emulator.TILE * emulator.TILE * 3 + 17
    ends = np.sort(rng.integers(0, 2000, rows))
    mask = np.stack([np.maximum(ends - 100, 0), ends], axis=1).astype(np.int32)
    packs = [Pack(cuts([rows]), cuts([2000]), mask.copy(), 2000, {})]
    mask[rows // 2 + 5] = 3, 1900
    packs.append(Pack(cuts([rows]), cuts([2000]), mask, 2000, {}))
    check(builds("plain"), packs)


# GPU


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_gpu_equals_reference(cupy, seed):
    rng = np.random.default_rng(seed + 20)
    for _ in range(100):
        pack = interval_pack(rng, int(rng.choice([50, 600, 5000, 40000])))
        count = expected(pack)[0]
        given = [cupy.asarray(a) for a in pack[:3]]
        found = maskq_cupy.excess_pairs(*given)
        assert type(found) is cupy.ndarray
        assert (found.dtype, found.shape) == (np.int64, ())
        assert int(found) == count, repr(pack)
        assert int(maskq_cupy.excess_pairs(*pack[:3])) == count  # from the host


@pytest.mark.gpu
def test_gpu_giant(cupy):
    rows = 2**24 + 3
    mask = cupy.stack([cupy.zeros(rows, np.int32), cupy.arange(1, rows + 1, dtype=np.int32)], 1)
    cu = cupy.asarray([0, rows], np.int32)
    assert int(maskq_cupy.excess_pairs(cu, cu, mask)) == 0
    mask[:, 1] = 1
    mask[7, 1] = rows  # every row behind it is shown all keys, of which one is its own
    assert int(maskq_cupy.excess_pairs(cu, cu, mask)) == (rows - 8) * (rows - 1)


@pytest.mark.gpu
@pytest.mark.parametrize("on_gpu", [True, False])
def test_gpu_validate_raises(cupy, on_gpu):
    rng = np.random.default_rng(21)
    for _ in range(60):
        pack = interval_pack(rng, 3000)
        count, first = expected(pack)
        given = [cupy.asarray(a) if on_gpu else a for a in pack[:3]]
        columns = reference.get_attn_mask_q(*pack.arguments())
        if count and pack.kv_token_num:
            message = rf"got {count} \(row, key\) pairs .* the first in row {first}$"
            with pytest.raises(ValueError, match=message):
                maskq_cupy.get_attn_mask_q(*given, pack.kv_token_num, validate=True)
        else:
            result = maskq_cupy.get_attn_mask_q(*given, pack.kv_token_num, validate=True)
            np.testing.assert_array_equal(cupy.asnumpy(result), columns)


@pytest.mark.gpu
def test_gpu_out_scratch_and_frameworks(cupy):
    torch = pytest.importorskip("torch")
    pack = interval_pack(np.random.default_rng(22), 5000)
    given = [torch.from_numpy(a).cuda() for a in pack[:3]]
    scratch = torch.empty(
        maskq_cupy.excess_scratch_nbytes(pack.attn_mask_kv.size // 2), dtype=torch.uint8
    )
    scratch = scratch.cuda()
    for out in (torch.full((1,), -7, device="cuda"), torch.tensor(-7, device="cuda")):
        assert maskq_cupy.excess_pairs(*given, out=out, scratch=scratch) is out
        assert int(out) == expected(pack)[0]
    with pytest.raises(ValueError, match=r"out must be int64 of one element, got int64 of"):
        maskq_cupy.excess_pairs(*given, out=torch.zeros(2, dtype=torch.int64, device="cuda"))
    with pytest.raises(TypeError, match=r"out must be int64 of one element, got float64"):
        maskq_cupy.excess_pairs(*given, out=torch.zeros(1, dtype=torch.float64, device="cuda"))


@pytest.mark.gpu
def test_gpu_without_rows(cupy):
    cu = cupy.zeros(3, np.int32)
    out = cupy.full((1,), -7, np.int64)
    assert maskq_cupy.excess_pairs(cu, cu, cupy.zeros((0, 2), np.int32), out=out) is out
    assert int(out[0]) == 0


@pytest.mark.gpu
def test_gpu_graph(cupy):
    rng = np.random.default_rng(23)
    n, batch = 3000, 40
    q, k = cupy.zeros(batch + 1, np.int32), cupy.zeros(batch + 1, np.int32)
    mask = cupy.zeros((n, 2), np.int32)
    memory = {
        "out": cupy.full((), -7, np.int64),
        "scratch": cupy.empty(maskq_cupy.excess_scratch_nbytes(n), np.uint8),
    }
    maskq_cupy.excess_pairs(q, k, mask, **memory)  # compiles
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for name in memory:
            with pytest.raises(RuntimeError, match="not possible while the stream is captured"):
                maskq_cupy.excess_pairs(q, k, mask, **memory | {name: None})
        maskq_cupy.excess_pairs(q, k, mask, **memory)
        graph = stream.end_capture()
    for _ in range(50):
        lens = rng.multinomial(n - 10, np.ones(batch) / batch)
        pack = cuts(lens), cuts(rng.permutation(lens)), rng.integers(-1, 200, (n, 2), np.int32)
        with stream:
            for device, host in zip((q, k, mask), pack, strict=True):
                device.set(host)
            graph.launch()
            assert int(memory["out"]) == reference.excess_pairs(*pack)
