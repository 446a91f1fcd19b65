"""Do two columns show exactly these intervals? How many (row, key) pairs they show too many."""

from typing import Any

import numpy as np

from maskq_cupy import arrays, checks, launch, pack, plan
from maskq_cupy.arrays import GpuArray, Streams, cupy


def excess_pairs(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    attn_mask_kv: Any,
    *,
    scratch: Any = None,
    stream: Any = None,
    out: Any = None,
) -> Any:
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
    inputs, target, memory, given, device, other, streams = pack.call_of(
        named, out, scratch, stream
    )
    if other is not None:
        with cupy.cuda.Device(other):
            return excess_pairs(
                cu_seqlens_q, cu_seqlens_k, attn_mask_kv, scratch=scratch, stream=stream, out=out
            )
    if target is not None:
        _check_out(target, inputs)
    if inputs:
        pack.check_cuts(inputs[0], inputs[1])
        row_num = pack.check_intervals(inputs[2])
    else:
        host = checks.host_batch(cu_seqlens_q, cu_seqlens_k, attn_mask_kv, None)
        inputs, row_num = pack.upload_batch(host, streams), host.row_num
    # The pool's memory may be handed out again at once: on this stream, behind the launches.
    scratch_pointer, _ = pack.scratch_memory(
        memory, plan.excess_scratch_nbytes(row_num), [*inputs, target], streams
    )
    if target is None:
        out = launch.new_result((), np.int64, streams)
        pairs = out.data.ptr
    else:
        pairs = target.pointer
    launches: tuple[plan.Launch, ...] = ()
    if row_num:
        launches = plan.excess_launches(
            pack.plan_batch(inputs[0], inputs[1]), pack.plan_rows(inputs[2], row_num),
            pairs, 0, scratch_pointer,
        )  # fmt: skip
    launch.run(launches, given, device, streams, zeroed=(pairs, 8))
    return out


def _check_out(target: GpuArray, inputs: list[GpuArray]) -> None:
    shape = tuple(target.shape)
    if target.dtype != "int64" or target.nbytes != 8:
        raise checks.form_error("out", "int64 of one element", target.dtype, shape)
    if not target.writable:
        raise ValueError(f"out must be writable, got a read-only {type(target.value).__name__}")
    launch.forbid_overlap("out", target, inputs)


def check_excess(
    inputs: list[GpuArray],
    row_num: int,
    given: list[GpuArray],
    device: int,
    streams: Streams,
) -> None:
    """Count on the GPU, wait for the count, and raise if it is not 0; row_num is at least 1."""
    q, k, intervals = inputs
    scratch, _ = pack.scratch_memory(None, plan.excess_scratch_nbytes(row_num), [], streams)
    found = arrays.empty((2,), np.int64, streams)
    pairs, rows_from_first = found.data.ptr, found.data.ptr + 8
    launches = plan.excess_launches(
        pack.plan_batch(q, k), pack.plan_rows(intervals, row_num), pairs, rows_from_first, scratch
    )
    launch.run(launches, given, device, streams, zeroed=(pairs, 16))
    count, rows = (int(value) for value in arrays.download(pairs, np.int64, 2, streams.launch))
    checks.check_excess(count, row_num - rows)
