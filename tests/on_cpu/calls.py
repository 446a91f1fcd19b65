"""Calls of the operator on the CPU: the launches that plan.py makes of a pack, in its buffers."""

import numpy as np
from on_cpu import emulator

from maskq_cupy import plan, reference
from maskq_cupy.rule import resolve_rule


def add_call(script, pack, misaligned=False, large=False):
    """Add a call, in buffers of exactly the contract's size; return False if none is due.

    If large, its launches are what the plan makes of packs too large for the CPU.
    """
    if pack.kv_token_num == 0:
        return False
    q, k, mask = pack.cu_seqlens_q, pack.cu_seqlens_k, pack.attn_mask_kv
    strides = [a.dtype.itemsize // 4 for a in (q, k)]
    given = plan.Cuts(script.buffer(q), script.buffer(k), *strides, len(k) - 1)
    poison = np.full((pack.kv_token_num, 2), -77, np.int32)
    columns = script.buffer(poison, offset=8 if misaligned else 0)
    row_num = 0 if mask is None else mask.size // 2
    if row_num == 0:
        arguments = dict(pack.rule)
        spans = add_spans(script, arguments.pop("spans", None), misaligned)
        rule = resolve_rule(**arguments)
        launches = (plan.rule_launch(given, rule, columns, pack.kv_token_num, spans),)
    else:
        intervals = script.buffer(mask, offset=mask.dtype.itemsize if misaligned else 0)
        scratch = script.buffer(np.full(plan.scratch_nbytes(row_num), 0x5A, np.uint8))
        rows = plan.Intervals(intervals, mask.dtype == np.int64, row_num)
        launches = plan.interval_launches(given, rows, columns, pack.kv_token_num, scratch)
    add_launches(script, launches, row_num, pack.kv_token_num, large)
    script.read(columns)
    return True


def add_spans(script, spans, misaligned):
    if spans is None:
        return plan.NO_SPANS
    buffer = script.buffer(spans, offset=spans.dtype.itemsize if misaligned else 0)
    return plan.Spans(buffer, spans.dtype.itemsize // 4, len(spans))


def add_launches(script, launches, row_num, column_num, large):
    """Add launches, if large as the plan makes them of packs too large for the CPU."""
    for launch in launches:
        if large:
            launch = as_if_large(launch, row_num, column_num)
        script.launch(launch)


def as_if_large(launch, row_num, column_num):
    """Return the launch with more pairs a thread, tiles a block and tiles a group of row tiles."""
    pairs, tiles, shift = 4, 3, 7  # a warp links 32 tiles at a time, and a search halves a group
    kernel, grid, *_ = launch
    changed = {}
    group_num = (-(-row_num // emulator.TILE) - 1 >> shift) + 1
    strip_shift = 6  # a group has 2**this strips for each warp
    strip_group_num = (-(-row_num // emulator.TILE) - 1 >> strip_shift) + 1
    if kernel in ("columns_rule", "columns_modified_rule", "columns_tree"):
        changed = {"steps": pairs}
        grid = column_num // (2 * emulator.SIZES.block_threads * pairs) + 1
    elif kernel in ("row_staircases", "excess_of_rows"):
        changed = {"group_shift": shift}
        grid = group_num
    elif kernel == "columns_of_staircases":
        changed = {"group_shift": shift, "group_num": group_num, "tiles_per_block": tiles}
        grid = column_num // (emulator.TILE * tiles) + 1
    elif kernel == "edges_of_strips":
        changed = {"group_shift": strip_shift}
        grid = strip_group_num
    elif kernel == "columns_of_many_rows":
        changed = {"group_shift": strip_shift, "group_num": strip_group_num}
        changed["tiles_per_warp"] = tiles
        grid = column_num // (emulator.TILE * tiles) + 1
    return emulator.changed(launch, grid, **changed)


def run(executable, packs, timeout=240, large=False, sizes=emulator.SIZES):
    """Return the columns of each pack, all of them computed in one process."""
    script = emulator.Script()
    with emulator.planning(sizes):
        due = [add_call(script, pack, i % 3 == 2, large) for i, pack in enumerate(packs)]
    results = iter(script.run(executable, timeout))
    return [next(results) if is_due else np.empty((0, 2), np.int32) for is_due in due]


def check(executable, packs, timeout=240, large=False, sizes=emulator.SIZES):
    """Require of each pack the reference's columns."""
    results = run(executable, packs, timeout, large, sizes)
    for pack, result in zip(packs, results, strict=True):
        expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        np.testing.assert_array_equal(result, expected, err_msg=repr(pack))
