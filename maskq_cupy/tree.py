"""The columns of prefix trees: segments that share a prompt, packed in depth-first order."""

from typing import Any

from maskq_cupy import plan
from maskq_cupy.call import Call
from maskq_cupy.pack import asked_column_num, flags_of, pack_of, stride
from maskq_cupy.typed import Out


def tree_attn_mask_q(
    parent: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    kv_token_num: int | None = None,
    *,
    full: Any = None,
    out: Out | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
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
        full: bool or any int dtype, shape (B,), on the GPU or the host with the rest: the rows of
            a segment whose flag is not 0 see all of its keys, not only those up to the diagonal.
        out: int32, shape (N, 2) or (1, 1, N, 2), C-contiguous, on the GPU; is what is returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least ``tree_scratch_nbytes(B)``
            bytes, which is 0 up to 16,384 segments; allocated if None. Needed in a graph
            capture only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: check the values on the GPU too, at the cost of a wait.

    Returns:
        int32 cupy.ndarray, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c
        is shown to exactly the rows ``[UTE, LTS)``; or ``out``. The columns of a tree are
        always exact.

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
    if full is not None:
        named["full"] = full
    call = Call(named, out, scratch, stream)
    cuts, _, n = pack_of(call, asked_column_num(call, kv_token_num), validate)
    columns = call.columns(n)
    if n:
        parents = call.inputs["parent"]
        minima = call.scratch(plan.tree_scratch_nbytes(parents.shape[0]))
        of_parents = parents.pointer, stride(parents)
        flags = flags_of(call)
        call.run(*plan.tree_launches(cuts, *of_parents, columns, n, minima, *flags))
    return call.out
