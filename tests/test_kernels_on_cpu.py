"""The kernels' own text, run on the CPU against the reference, plainly and under sanitizers."""

import numpy as np
import pytest
from on_cpu import emulator
from strategies import Pack, cuts, random_pack

from maskq_cupy import plan, reference
from maskq_cupy.rule import resolve_rule

pytestmark = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")

SANITIZERS = [
    pytest.param(name, packs, id=name)
    for name, packs in [("plain", 300), ("address", 80), ("thread", 30)]
]


def add_call(script, pack, misaligned=False):
    """Add a call, in buffers of exactly the contract's size; return False if none is due."""
    if pack.kv_token_num == 0:
        return False
    q, k, mask = pack.cu_seqlens_q, pack.cu_seqlens_k, pack.attn_mask_kv
    strides = [a.dtype.itemsize // 4 for a in (q, k)]
    batch = (script.buffer(q), script.buffer(k), *strides, len(k) - 1)
    poison = np.full((pack.kv_token_num, 2), -77, np.int32)
    columns = script.buffer(poison, offset=8 if misaligned else 0)
    block = emulator.CONSTANTS["BLOCK_THREADS"]
    row_num = 0 if mask is None else mask.size // 2
    if row_num == 0:
        arguments = {"causal": True, "window": None, "num_sink_tokens": 0} | pack.rule
        rule = resolve_rule(**arguments, intervals_given=False)
        launches = (plan.rule_launch(batch, rule, columns, pack.kv_token_num, block),)
    else:
        intervals = script.buffer(mask, offset=mask.dtype.itemsize if misaligned else 0)
        scratch_nbytes = plan.interval_scratch_nbytes(row_num, block)
        scratch = script.buffer(np.full(scratch_nbytes, 0x5A, np.uint8))
        launches = plan.interval_launches(
            batch, intervals, mask.dtype == np.int64, row_num, columns, pack.kv_token_num, scratch,
            block,
        )  # fmt: skip
    for launch in launches:
        script.launch(launch.kernel, launch.grid, *launch.arguments)
    script.read(columns)
    return True


def check(executable, packs):
    script = emulator.Script()
    due = [pack for i, pack in enumerate(packs) if add_call(script, pack, misaligned=i % 3 == 2)]
    for pack, result in zip(due, script.run(executable), strict=True):
        expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        np.testing.assert_array_equal(result, expected, err_msg=repr(pack))


@pytest.mark.parametrize(("sanitizer", "count"), SANITIZERS)
def test_random_packs(builds, sanitizer, count):
    rng = np.random.default_rng(0)
    check(builds(sanitizer), [random_pack(rng) for _ in range(count)])


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
    rng = np.random.default_rng(1)
    rows = emulator.TILE * emulator.TILE * 3 + 17  # more tiles than groups: three or four a group
    ends = np.sort(rng.integers(0, 2000, rows))
    ends[rng.random(rows) < 0.001] = 5  # not sorted everywhere
    mask = np.stack([np.maximum(ends - 100, 0), ends], axis=1).astype(np.int32)
    check(builds("plain"), [Pack(cuts([rows]), cuts([2000]), mask, 2000, {})])
