"""The packed batch of a call: its arrays checked, its number of columns known."""

from typing import Any

import numpy as np

from maskq_cupy import checks, host, plan
from maskq_cupy.call import Call
from maskq_cupy.facts import Facts


def asked_column_num(call: Call, kv_token_num: Any) -> int | None:
    """Return the number of columns that `kv_token_num` or `out` say, or None."""
    column_num = None if kv_token_num is None else checks.check_token_num(kv_token_num)
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
) -> tuple[plan.Cuts, int, int]:
    """Check a call's arrays; return its cu_seqlens, and how many columns and rows there are.

    Host arrays are uploaded. The number of columns, if the call has any, is read back from the GPU
    where nothing else says. Rows are those of attn_mask_kv, 0 without.
    """
    inputs = call.inputs
    if inputs:
        row_num = _check_forms(inputs)
    else:
        row_num, column_num = _upload(call, column_num)
        validate = False  # done, on the host
    q, k = inputs["cu_seqlens_q"], inputs["cu_seqlens_k"]
    if column_num is None:
        column_num = _read_column_num(call) if has_columns else 0
    if validate:
        _check_values(call, column_num, row_num)
    cuts = (q.pointer, k.pointer, _STRIDES[q.dtype], _STRIDES[k.dtype], k.shape[0] - 1)
    return new(plan.Cuts, cuts), column_num, row_num


new = tuple.__new__  # of a NamedTuple: half the time of its own


def _check_forms(inputs: dict[str, Facts]) -> int:
    """Check what is known of arrays on the GPU; return the number of rows of attn_mask_kv."""
    row_num = 0
    for name, array in inputs.items():
        if name == "attn_mask_kv":
            row_num = checks.check_intervals_form(array.dtype, array.shape)
        elif name == "parent":
            checks.check_parent_form(array.dtype, array.shape, inputs["cu_seqlens_k"].shape[0] - 1)
        else:
            checks.check_cu_seqlens_form(name, array.dtype, array.shape)
        if not array.contiguous:
            checks.check_contiguous(name, array)
    checks.check_same_batch(inputs["cu_seqlens_q"].shape[0], inputs["cu_seqlens_k"].shape[0])
    return row_num


def _read_column_num(call: Call) -> int:
    why = "kv_token_num is read back: give it, or out="
    last = call.read_back(call.inputs["cu_seqlens_k"], slice(-1, None), why)
    return checks.check_token_num(int(last[0]))


def _upload(call: Call, column_num: int | None) -> tuple[int, int]:
    """Check host arrays and upload them; return how many rows and columns there are."""
    named = call.named
    batch = host.host_batch(
        named["cu_seqlens_q"], named["cu_seqlens_k"], named.get("attn_mask_kv"), column_num
    )
    parts = {"cu_seqlens_q": batch.cu_seqlens_q, "cu_seqlens_k": batch.cu_seqlens_k}
    if batch.attn_mask_kv is not None:
        parts["attn_mask_kv"] = batch.attn_mask_kv
    if "parent" in named:
        parts["parent"] = host.host_parents(named["parent"], len(batch.cu_seqlens_k) - 1)
    call.upload(parts)
    return batch.row_num, batch.column_num


_STRIDES = {"int32": 1, "int64": 2}  # in 32-bit words


def stride(array: Facts) -> int:
    """Return an index array's stride in 32-bit words."""
    return _STRIDES[array.dtype]


def intervals_of(call: Call, row_num: int) -> plan.Intervals:
    intervals = call.inputs["attn_mask_kv"]
    return plan.Intervals(intervals.pointer, intervals.dtype == "int64", row_num)


def _check_values(call: Call, column_num: int, row_num: int) -> None:
    """Read cu_seqlens and any parents back, and check them as the host's are; waits."""
    why, inputs = "validate=True waits for the GPU", call.inputs
    counted = slice(0, inputs["cu_seqlens_k"].shape[0])
    totals = []
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        cu_seqlens = call.read_back(inputs[name], counted, why)
        checks.check_cu_seqlens_values(name, cu_seqlens)
        totals.append(int(cu_seqlens[-1]))
    has_rows = "attn_mask_kv" in inputs
    checks.check_totals(column_num, totals[1], row_num if has_rows else None, totals[0])
    if "parent" in inputs:
        parents = call.read_back(inputs["parent"], slice(0, None), why)
        checks.check_parent_values(parents.astype(np.int64))
