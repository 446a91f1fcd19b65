"""Lists and host arrays in, checked NumPy arrays of int64 out."""

from typing import Any, NamedTuple

import numpy as np

from maskq_cupy import checks


class HostBatch(NamedTuple):
    """A checked batch on the host, int64: cu_seqlens cut to B + 1 entries, intervals to (Q, 2)."""

    cu_seqlens_q: np.ndarray
    cu_seqlens_k: np.ndarray
    attn_mask_kv: np.ndarray | None
    column_num: int

    @property
    def row_num(self) -> int:
        return 0 if self.attn_mask_kv is None else len(self.attn_mask_kv)


def host_batch(
    cu_seqlens_q: Any, cu_seqlens_k: Any, attn_mask_kv: Any, kv_token_num: int | None
) -> HostBatch:
    """Check the forms and the values of a batch of lists and host arrays."""
    q = _host_indices("cu_seqlens_q", cu_seqlens_q)
    k = _host_indices("cu_seqlens_k", cu_seqlens_k)
    checks.check_cu_seqlens_form("cu_seqlens_q", str(q.dtype), q.shape)
    checks.check_cu_seqlens_form("cu_seqlens_k", str(k.dtype), k.shape)
    checks.check_same_batch(len(q), len(k))
    q, k = q[: len(k)].astype(np.int64), k.astype(np.int64)
    checks.check_cu_seqlens_values("cu_seqlens_q", q)
    checks.check_cu_seqlens_values("cu_seqlens_k", k)
    intervals = None
    if attn_mask_kv is not None:
        intervals = _host_indices("attn_mask_kv", attn_mask_kv)
        checks.check_intervals_form(str(intervals.dtype), intervals.shape)
        intervals = intervals.reshape(-1, 2).astype(np.int64)
    column_num = int(k[-1]) if kv_token_num is None else checks.check_token_num(kv_token_num)
    row_num = None if intervals is None else len(intervals)
    checks.check_totals(column_num, int(k[-1]), row_num, int(q[-1]))
    return HostBatch(q, k, intervals, column_num)


def _host_indices(name: str, value: Any) -> np.ndarray:
    """Return a list or host array as NumPy's; an empty list holds no floats."""
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{name} must hold ints below 2**63, got {value!r:.80}")
    return array.astype(np.int64) if array.size == 0 and isinstance(value, (list, tuple)) else array


def host_parents(parent: Any, segment_num: int) -> np.ndarray:
    """Check the form and the values of a list or host array of parents; return it as int64."""
    parents = _host_indices("parent", parent)
    checks.check_parent_form(str(parents.dtype), parents.shape, segment_num)
    parents = parents.astype(np.int64)
    checks.check_parent_values(parents)
    return parents
