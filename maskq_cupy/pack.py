"""The packed batch of a call: its arrays checked, its number of columns known."""

import math
from typing import Any

import numpy as np

from maskq_cupy import checks, host, plan
from maskq_cupy.call import Call
from maskq_cupy.facts import Facts


def asked_column_num(call: Call, kv_token_num: Any) -> int | None:
    """Return the number of columns that `kv_token_num` or `out` say, or None."""
    column_num = kv_token_num
    if column_num is not None:
        column_num = checks.check_int(column_num, "kv_token_num", 0, "an int or None")
    if call.out is None:
        return column_num
    target = call.targets["out"]
    room = checks.check_columns_form(target.dtype, target.shape, "out")
    if column_num is not None and room != column_num:
        raise ValueError(
            f"out must have N = kv_token_num = {column_num} columns, "
            f"got shape {tuple(target.shape)}"
        )
    return room


def pack_of(
    call: Call, column_num: int | None, validate: bool = False, has_columns: bool = True
) -> tuple[plan.Cuts, plan.Intervals | None, int]:
    """Check a call's arrays; return its cu_seqlens, any intervals, and the number of columns.

    Host arrays are uploaded. The number of columns, if the call has any, is read back from the GPU
    where nothing else says.
    """
    inputs = call.inputs
    is_on_host = not inputs
    if is_on_host:
        column_num = _upload(call, column_num)
    q, k = inputs["cu_seqlens_q"], inputs["cu_seqlens_k"]
    if not is_on_host:
        _check_cuts(q, k)
    intervals = None
    if len(inputs) > 2:
        if "attn_mask_kv" in inputs:
            intervals = _intervals(inputs["attn_mask_kv"])
        if "parent" in inputs:
            _check_parents(inputs["parent"], k)
        if "full" in inputs:
            _check_full(inputs["full"], k)
        if "spans" in inputs and not is_on_host:
            _check_spans(inputs["spans"])
    if column_num is None:
        column_num = _read_column_num(call) if has_columns else 0
    if validate and not is_on_host:
        _check_values(call, column_num, intervals)
    cuts = (q.pointer, k.pointer, _STRIDES[q.dtype], _STRIDES[k.dtype], k.shape[0] - 1)
    return _new(plan.Cuts, cuts), intervals, column_num


_new = tuple.__new__  # of a NamedTuple, in half the time of its own: 0.1 us of a call of 10


def _check_cuts(q: Facts, k: Facts) -> None:
    checks.check_cu_seqlens_form("cu_seqlens_q", q.dtype, q.shape)
    if k is not q:
        checks.check_cu_seqlens_form("cu_seqlens_k", k.dtype, k.shape)
        checks.check_same_batch(q.shape[0], k.shape[0])
    if not (q.contiguous and k.contiguous):
        checks.check_contiguous("cu_seqlens_q", q)
        checks.check_contiguous("cu_seqlens_k", k)


def _intervals(array: Facts) -> plan.Intervals:
    row_num = checks.check_intervals_form(array.dtype, array.shape)
    if not array.contiguous:
        checks.check_contiguous("attn_mask_kv", array)
    return _new(plan.Intervals, (array.pointer, array.dtype == "int64", row_num))


def _check_parents(parents: Facts, k: Facts) -> None:
    checks.check_parent_form(parents.dtype, parents.shape, k.shape[0] - 1)
    checks.check_contiguous("parent", parents)


def _check_full(full: Facts, k: Facts) -> None:
    checks.check_full_form(full.dtype, full.shape, k.shape[0] - 1)
    checks.check_contiguous("full", full)


def _check_spans(spans: Facts) -> None:
    checks.check_spans_form(spans.dtype, spans.shape)
    checks.check_contiguous("spans", spans)


def _read_column_num(call: Call) -> int:
    why = "kv_token_num is read back: give it, or out="
    last = call.read_back(call.inputs["cu_seqlens_k"], slice(-1, None), why)
    return checks.check_token_num(int(last[0]))


def _upload(call: Call, column_num: int | None) -> int:
    """Check host arrays and upload them; return the number of columns."""
    named = call.named
    batch = host.host_batch(
        named["cu_seqlens_q"], named["cu_seqlens_k"], named.get("attn_mask_kv"), column_num
    )
    parts = {"cu_seqlens_q": batch.cu_seqlens_q, "cu_seqlens_k": batch.cu_seqlens_k}
    if batch.attn_mask_kv is not None:
        parts["attn_mask_kv"] = batch.attn_mask_kv
    if "parent" in named:
        segment_num = len(batch.cu_seqlens_k) - 1
        parts["parent"] = host.host_parents(named["parent"], segment_num)
        if "full" in named:
            parts["full"] = host.host_flags(named["full"], segment_num).astype(np.int64)
    if "spans" in named:
        parts["spans"] = host.host_spans(named["spans"], batch.column_num)
    call.upload(parts)
    return batch.column_num


_STRIDES = {"int32": 1, "int64": 2}  # in 32-bit words


def stride(array: Facts) -> int:
    """Return an index array's stride in 32-bit words."""
    return _STRIDES[array.dtype]


def spans_of(call: Call) -> plan.Spans:
    spans = call.inputs["spans"]
    return plan.Spans(spans.pointer, stride(spans), math.prod(spans.shape) // 2)


def flags_of(call: Call) -> tuple[int, int]:
    """Return where the flags of segments are and the bytes of one: 0 and 1 where there are none."""
    full = call.inputs.get("full")
    return (0, 1) if full is None else (full.pointer, full.nbytes // max(full.shape[0], 1))


def _check_values(call: Call, column_num: int, intervals: plan.Intervals | None) -> None:
    """Read cu_seqlens, any parents and spans back, and check them as the host's are; waits."""
    why, inputs = "validate=True waits for the GPU", call.inputs
    counted = slice(0, inputs["cu_seqlens_k"].shape[0])
    totals = []
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        cu_seqlens = call.read_back(inputs[name], counted, why)
        checks.check_cu_seqlens_values(name, cu_seqlens)
        totals.append(int(cu_seqlens[-1]))
    row_num = None if intervals is None else intervals.row_num
    checks.check_totals(column_num, totals[1], row_num, totals[0])
    if "parent" in inputs:
        parents = call.read_back(inputs["parent"], slice(0, None), why)
        checks.check_parent_values(parents.astype(np.int64))
    if "spans" in inputs and inputs["spans"].nbytes:
        spans = call.read_back(inputs["spans"], slice(0, None), why)
        checks.check_spans_values(spans.astype(np.int64).reshape(-1, 2), column_num)
