"""Do two columns show exactly these intervals? How many (row, key) pairs they show too many."""

from typing import Any

import numpy as np

from maskq_cupy import checks, plan
from maskq_cupy.call import Call
from maskq_cupy.pack import pack_of
from maskq_cupy.typed import Out


def excess_pairs(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    attn_mask_kv: Any,
    *,
    scratch: Any = None,
    stream: Any = None,
    out: Out | None = None,
) -> Out:
    """Return how many (row, key) pairs the columns of intervals show beyond them.

    0 means that ``get_attn_mask_q(cu_seqlens_q, cu_seqlens_k, attn_mask_kv)`` shows exactly these
    intervals; it never shows fewer. The count is ``sum(LTS - UTE)`` of its columns less the pairs
    of the intervals. ``get_attn_mask_q(..., validate=True)`` raises where it is not 0.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0.
        attn_mask_kv: int32 or int64, shape (Q, 2) or (2 * Q,): the keys [start, end) that each
            row sees, counted from its sequence's first key. The three are all on one GPU, or all
            lists and host arrays.
        scratch: any contiguous, 16-byte aligned GPU array of at least ``excess_scratch_nbytes(Q)``
            bytes; allocated if None. Needed in a graph capture only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        out: int64, of one element, on the GPU; is what is returned.

    Returns:
        int64 cupy.ndarray, shape (), on the GPU; ``int()`` of it waits. Or ``out``.

    One memset and two launches; O(Q) work; does not wait; allocates the result and the scratch
    memory from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    Two rows of one sequence, of which the second sees less than the first:

    >>> excess_pairs([0, 2], [0, 4], [[0, 3], [0, 1]])  # doctest: +SKIP
    array(2)
    """
    checks.check_intervals_given(attn_mask_kv)
    named = {
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "attn_mask_kv": attn_mask_kv,
    }
    call = Call(named, out, scratch, stream)
    cuts, intervals, _ = pack_of(call, None, has_columns=False)
    assert intervals is not None  # as its check above says
    pairs = call.result("int64", 8, _shape_of_out(call))
    memory = call.scratch(plan.excess_scratch_nbytes(intervals.row_num))
    launches = plan.excess_launches(cuts, intervals, pairs, 0, memory)
    call.run(*launches, zeroed=[(pairs, 8)])
    return call.out


def _shape_of_out(call: Call) -> tuple[int, ...]:
    """Return the shape of one element that `out` has; () where a new array is made."""
    if call.out is None:
        return ()
    target = call.targets["out"]
    if target.dtype != "int64" or target.nbytes != 8:
        raise checks.form_error(
            "out", "int64 of one element", target.dtype, target.shape, ["int64"]
        )
    return tuple(target.shape)


def check_excess(call: Call, cuts: plan.Cuts, intervals: plan.Intervals) -> None:
    """Count on the GPU, wait for the count, and raise if it is not 0."""
    nbytes = plan.excess_scratch_nbytes(intervals.row_num)
    memory = call.allocate(nbytes + 16)
    pairs, rows = memory + nbytes, memory + nbytes + 8
    call.run(*plan.excess_launches(cuts, intervals, pairs, rows, memory), zeroed=[(pairs, 16)])
    found = np.empty(2, np.int64)
    call.download(pairs, found)
    count, rows_from_first = found.tolist()
    checks.check_excess(count, intervals.row_num - rows_from_first)
