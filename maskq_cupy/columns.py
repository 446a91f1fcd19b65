"""The operator: check, allocate, launch. A packed batch in, [LTS, UTE] columns out."""

from typing import Any

from maskq_cupy import plan
from maskq_cupy.call import Call
from maskq_cupy.excess import check_excess
from maskq_cupy.pack import asked_column_num, pack_of, spans_of
from maskq_cupy.rule import resolve_rule
from maskq_cupy.typed import Out


def get_attn_mask_q(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    attn_mask_kv: Any = None,
    kv_token_num: int | None = None,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    num_sink_tokens: int = 0,
    align: str = "bottom_right",
    causal_block: int | None = None,
    chunk_size: int | None = None,
    spans: Any = None,
    out: Out | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return, for each key column of a packed batch, the rows that see it.

    Arrays may be CuPy's, torch's, JAX's, Numba's, Paddle's or anything with ``__dlpack__`` or
    ``__cuda_array_interface__``, all on one GPU, or all lists and host arrays.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0.
        attn_mask_kv: int32 or int64, shape (Q, 2) or (2 * Q,): the keys [start, end) that each
            row sees, counted from its sequence's first key. Excludes all other rules;
            causality is then not applied, the intervals say it all. Keys can leak: where a start or
            an end decreases from one row of a sequence to the next, the columns show a superset.
            ``validate=True`` raises there, ``excess_pairs`` counts.
        kv_token_num: number of columns N, at least ``cu_seqlens_k[B]``; columns past that are seen
            by nobody. If None it is taken from out, or from host input, or else read back from the
            GPU, which waits for it.
        causal: row i sees keys up to its diagonal, i + kv_len - q_len.
        window: (left, right) keys around that diagonal, -1 for unbounded.
        num_sink_tokens: this many first keys of a sequence stay visible left of the window or of
            the chunk.
        align: ``"top_left"`` puts the diagonal of row i at key i.
        causal_block: a row sees keys up to the end of its diagonal's block of so many keys, as in
            block diffusion.
        chunk_size: a row sees no key outside of its diagonal's chunk of so many keys, as in
            Llama 4.
        spans: int32 or int64, shape (S, 2): [start, end) in keys of the pack, in order and apart;
            a row whose diagonal is in a span sees all of the span's keys in its sequence too, as
            images inside text and prefixes are seen. Any number, which a graph fixes: empty ones
            are normal, and ``(0, 2)`` is none.
        out: int32, shape (N, 2) or (1, 1, N, 2), C-contiguous, on the GPU; is what is returned.
        scratch: memory for calls with attn_mask_kv, any contiguous, 16-byte aligned GPU array of
            at least ``scratch_nbytes(Q)`` bytes; allocated if None. Needed in a graph capture only.
        stream: the launch stream: a CuPy stream, a pointer, or an object with ``__cuda_stream__``
            or ``.cuda_stream``; CuPy's current one if None. Other frameworks' streams wait for
            it and it for them; the host does not.
        validate: check the values on the GPU too, and that the columns show exactly the intervals
            (``excess_pairs`` is 0), at the cost of a wait.

    Returns:
        int32 cupy.ndarray, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c
        is shown to exactly the rows ``[UTE, LTS)``; or ``out``.

    One launch, two with attn_mask_kv of more than 4,096 rows (8,192 of several sequences and less
    than 1,048,576 columns); O(N + Q) work; allocates the result and the scratch memory from CuPy's
    pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> torch.from_dlpack(get_attn_mask_q([0, 3, 5], [0, 3, 7])).T  # doctest: +SKIP
    tensor([[3, 3, 3, 5, 5, 5, 5],
            [0, 1, 2, 3, 3, 3, 4]], device='cuda:0', dtype=torch.int32)
    """
    rule = resolve_rule(
        causal, window, num_sink_tokens, align, causal_block, chunk_size,
        spans is not None, attn_mask_kv is not None,
    )  # fmt: skip
    named = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    if attn_mask_kv is not None:
        named["attn_mask_kv"] = attn_mask_kv
    if spans is not None:
        named["spans"] = spans
    call = Call(named, out, scratch, stream)
    column_num = asked_column_num(call, kv_token_num)
    cuts, intervals, n = pack_of(call, column_num, validate)
    if validate and intervals is not None:
        check_excess(call, cuts, intervals)
    columns = call.columns(n)
    if n == 0:
        return call.out
    if intervals is None:
        of_spans = plan.NO_SPANS if spans is None else spans_of(call)
        call.run(plan.rule_launch(cuts, rule, columns, n, of_spans))
    elif intervals.row_num:
        memory = call.scratch(plan.interval_scratch_nbytes(cuts, intervals, n))
        call.run(*plan.interval_launches(cuts, intervals, columns, n, memory))
    else:
        call.run(zeroed=[(columns, 8 * n)])  # without rows every column is (0, 0)
    return call.out
