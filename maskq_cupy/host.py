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
    q = host_array("cu_seqlens_q", cu_seqlens_q, checks.CU_SEQLENS)
    k = host_array("cu_seqlens_k", cu_seqlens_k, checks.CU_SEQLENS)
    checks.check_cu_seqlens_form("cu_seqlens_q", str(q.dtype), q.shape)
    checks.check_cu_seqlens_form("cu_seqlens_k", str(k.dtype), k.shape)
    checks.check_same_batch(len(q), len(k))
    q, k = q[: len(k)].astype(np.int64), k.astype(np.int64)
    checks.check_cu_seqlens_values("cu_seqlens_q", q)
    checks.check_cu_seqlens_values("cu_seqlens_k", k)
    intervals = None
    if attn_mask_kv is not None:
        intervals = host_array("attn_mask_kv", attn_mask_kv, checks.INTERVALS)
        checks.check_intervals_form(str(intervals.dtype), intervals.shape)
        intervals = intervals.reshape(-1, 2).astype(np.int64)
    column_num = int(k[-1]) if kv_token_num is None else checks.check_token_num(kv_token_num)
    row_num = None if intervals is None else len(intervals)
    checks.check_totals(column_num, int(k[-1]), row_num, int(q[-1]))
    return HostBatch(q, k, intervals, column_num)


def host_array(name: str, value: Any, expected: str) -> np.ndarray:
    """Return a list or host array as NumPy's; an empty list holds no floats.

    expected: what it must be, for the error that says what it is not.
    """
    if value is None or isinstance(value, (str, bytes, set, frozenset, dict)):
        got = "None" if value is None else type(value).__name__
        raise TypeError(f"{name} must be {expected}, got {got}")
    if isinstance(value, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(
            f"{name} must be {expected}, got {type(value).__name__}: give a plain array"
        )
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged, or of a framework that does not give its values away
        reason = str(error).partition("\n")[0]
        got = f"{type(value).__name__} that NumPy cannot read: {reason}"
        raise TypeError(f"{name} must be {expected}, got {got}") from error
    if array.dtype == object and _holds_ints(value):
        raise TypeError(f"{name} must hold ints below 2**63, got {value!r:.80}")
    if array.dtype == object:
        raise TypeError(f"{name} must be {expected}, got {value!r:.80}")
    return array.astype(np.int64) if array.size == 0 and isinstance(value, (list, tuple)) else array


def _holds_ints(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_holds_ints(entry) for entry in value)
    return isinstance(value, int)


def host_parents(parent: Any, segment_num: int) -> np.ndarray:
    """Check the form and the values of a list or host array of parents; return it as int64."""
    parents = host_array("parent", parent, checks.parent_form(segment_num))
    checks.check_parent_form(str(parents.dtype), parents.shape, segment_num)
    parents = parents.astype(np.int64)
    checks.check_parent_values(parents)
    return parents


def host_tree(parent: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check a list or host array of parents in any order; return it, and the depth-first order."""
    expected = "int32 or int64 of shape (B,)"
    array = host_array("parent", parent, expected)
    if str(array.dtype) not in checks.INDEX_DTYPES or array.ndim != 1:
        raise checks.form_error("parent", expected, str(array.dtype), array.shape)
    parents = array.astype(np.int64)
    return parents, checks.check_tree(parents)


def host_flags(full: Any, segment_num: int) -> np.ndarray:
    """Check the form of a list or host array of flags; return which are set."""
    array = host_array("full", full, checks.full_form(segment_num))
    checks.check_full_form(str(array.dtype), array.shape, segment_num)
    return array != 0


def host_spans(spans: Any, column_num: int) -> np.ndarray:
    """Check the form and the values of a list or host array of spans; return it as (S, 2) int64."""
    array = host_array("spans", spans, checks.SPANS)
    checks.check_spans_form(str(array.dtype), array.shape)
    array = array.reshape(-1, 2).astype(np.int64)
    checks.check_spans_values(array, column_num)
    return array


def host_chunks(name: str, value: Any) -> np.ndarray:
    """Check the form and the values of "row_chunks" or "key_chunks" on the host; return int64."""
    array = host_array(name, value, checks.CHUNKS[name])
    if array.shape == (0,):
        array = array.reshape(0, 2)
    checks.check_chunks_form(name, str(array.dtype), array.shape)
    chunks = array.astype(np.int64)
    checks.check_chunk_values(name, chunks)
    return chunks


def is_on_gpu(value: Any) -> bool:
    """Is the value an array on a GPU? Asked of its type first: nothing is built."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return False
    if hasattr(value, "is_cuda"):  # a torch tensor
        return bool(value.is_cuda)
    if hasattr(type(value), "__cuda_array_interface__"):
        return True
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) not in (1, 3)  # kDLCPU, kDLCUDAHost
