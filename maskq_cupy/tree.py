"""The columns of prefix trees: segments that share a prompt, packed in depth-first order."""

from typing import Any

import numpy as np

from maskq_cupy import arrays, checks, launch, pack, plan
from maskq_cupy.arrays import GpuArray, Streams, cupy


def tree_attn_mask_q(
    parent: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    kv_token_num: int | None = None,
    *,
    out: Any = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Any:
    """Return, for each key column of a packed forest of segments, the rows that see it.

    A row sees its own segment's keys up to the diagonal (bottom-right aligned), and all keys of the
    segment's ancestors. A segment may have keys and no rows, as a cached prompt has.

    Args:
        parent: int32 or int64, shape (B,): each segment's parent, -1 for a root. Segments are
            packed in depth-first order: a parent is the segment before its child, or one of that
            segment's ancestors. Any number of trees.
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0. The three are all on
            one GPU, or all lists and host arrays.
        kv_token_num: number of columns N, at least ``cu_seqlens_k[B]``; columns past that are seen
            by nobody. If None it is taken from out, or from host input, or else read back from the
            GPU, which waits for it.
        out: int32, shape (N, 2) or (1, 1, N, 2), C-contiguous, on the GPU; is what is returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least ``tree_scratch_nbytes(B)``
            bytes, which is 0 up to 16,384 segments; allocated if None. Needed in a graph
            capture only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: check the values on the GPU too, at the cost of a wait.

    Returns:
        int32 cupy.ndarray, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c
        is shown to exactly the rows ``[UTE, LTS)``; or ``out``. It is what the rows see, exactly.

    One launch, two where segments are more than 16,384; O(N + B) work, and more for subtrees of
    more than 64 segments: a block of columns that has some of one reads the parents behind it, or,
    of the two launches, their minima; allocates the result and the scratch memory from CuPy's pool,
    and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; of a parent
            that is not before its child or not in depth-first order, the first.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    A prompt of two tokens and two answers, of two tokens and of one:

    >>> tree_attn_mask_q([-1, 0, 0], [0, 2, 4, 5], [0, 2, 4, 5]).T  # doctest: +SKIP
    array([[5, 5, 4, 4, 5],
           [0, 1, 2, 3, 4]], dtype=int32)
    """
    named = {"parent": parent, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    inputs, target, memory, given, device, other, streams = pack.call_of(
        named, out, scratch, stream
    )
    if other is not None:
        with cupy.cuda.Device(other):
            return tree_attn_mask_q(
                parent, cu_seqlens_q, cu_seqlens_k, kv_token_num,
                out=out, scratch=scratch, stream=stream, validate=validate,
            )  # fmt: skip
    column_num = None if kv_token_num is None else checks.check_token_num(kv_token_num)
    if target is not None:
        column_num = pack.check_out(target, inputs, column_num)
    if inputs:
        _check_forms(*inputs)
    else:
        host = checks.host_batch(cu_seqlens_q, cu_seqlens_k, None, column_num)
        host_parents = checks.host_parents(parent, len(host.cu_seqlens_k) - 1)
        inputs = pack.upload([host_parents, host.cu_seqlens_q, host.cu_seqlens_k], streams)
        column_num = host.column_num
        validate = False  # done, on the host
    parents, q, k = inputs
    if column_num is None:
        column_num = pack.read_column_num(k, given, streams)
    if validate:
        _check_values(parents, q, k, column_num, given, streams)

    if target is None:
        out = launch.new_result((column_num, 2), np.int32, streams)
        columns = out.data.ptr
    else:
        columns = target.pointer
    if column_num == 0:
        return out
    # The pool's memory may be handed out again at once: on this stream, behind the launches.
    minima, _ = pack.scratch_memory(
        memory, plan.tree_scratch_nbytes(parents.shape[0]), [*inputs, target], streams
    )
    launches = plan.tree_launches(
        pack.plan_batch(q, k), parents.pointer, pack.stride(parents), columns, column_num, minima
    )
    launch.run(launches, given, device, streams)
    return out


def _check_forms(parents: GpuArray, q: GpuArray, k: GpuArray) -> None:
    pack.check_cuts(q, k)
    checks.check_parent_form(parents.dtype, parents.shape, k.shape[0] - 1)
    pack.check_contiguous("parent", parents)


def _check_values(
    parents: GpuArray, q: GpuArray, k: GpuArray, column_num: int, given: list[GpuArray],
    streams: Streams,
) -> None:  # fmt: skip
    launch.forbid_in_capture(streams, "validate=True waits for the GPU")
    arrays.wait_for_producers(given, streams)
    _, key_total = pack.check_cuts_values(q, k, streams)
    checks.check_totals(column_num, key_total, None, 0)
    checks.check_parent_values(pack.read_back(parents, streams, slice(0, None)).astype(np.int64))
