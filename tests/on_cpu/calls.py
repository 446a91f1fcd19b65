"""Calls of the operator on the CPU: the launches that plan.py makes of a pack, in its buffers."""

import numpy as np
from on_cpu import emulator

from maskq_cupy import plan, reference
from maskq_cupy.rule import resolve_rule


def add_call(script, pack, misaligned=False, steps=None):
    """Add a call, in buffers of exactly the contract's size; return False if none is due.

    With steps, a launch of a rule has so many a thread, as it has by itself from half a million
    columns on.
    """
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
        launch = plan.rule_launch(batch, rule, columns, pack.kv_token_num, block)
        if steps:
            grid = pack.kv_token_num // (2 * block * steps) + 1
            launch = launch._replace(grid=grid, arguments=(*launch.arguments[:-1], steps))
        launches = (launch,)
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


def run(executable, packs, timeout=240, steps=None):
    """Return the columns of each pack, all of them computed in one process."""
    script = emulator.Script()
    due = [add_call(script, pack, i % 3 == 2, steps) for i, pack in enumerate(packs)]
    results = iter(script.run(executable, timeout))
    return [next(results) if is_due else np.empty((0, 2), np.int32) for is_due in due]


def check(executable, packs, timeout=240, steps=None):
    """Require of each pack the reference's columns."""
    for pack, result in zip(packs, run(executable, packs, timeout, steps), strict=True):
        expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        np.testing.assert_array_equal(result, expected, err_msg=repr(pack))
