"""The operator: check, allocate, launch. A packed batch in, [LTS, UTE] columns out."""

from typing import Any

import numpy as np

from maskq_cupy import arrays, checks, excess, launch, pack, plan
from maskq_cupy.arrays import cupy
from maskq_cupy.rule import resolve_rule


def get_attn_mask_q(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    attn_mask_kv: Any = None,
    kv_token_num: int | None = None,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    num_sink_tokens: int = 0,
    out: Any = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Any:
    """Return, for each key column of a packed batch, the rows that see it.

    Arrays may be CuPy's, torch's, JAX's, Numba's, Paddle's or anything with ``__dlpack__`` or
    ``__cuda_array_interface__``, all on one GPU, or all lists and host arrays.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, non-decreasing from 0.
        cu_seqlens_k: int32 or int64, shape (B + 1,), non-decreasing from 0.
        attn_mask_kv: int32 or int64, shape (Q, 2) or (2 * Q,): the keys [start, end) that each
            row sees, counted from its sequence's first key. Excludes window and causal=False;
            causality is then not applied, the intervals say it all.
        kv_token_num: number of columns N, at least ``cu_seqlens_k[B]``; columns past that are seen
            by nobody. If None it is taken from out, or from host input, or else read back from the
            GPU, which waits for it.
        causal: row i sees keys up to i + kv_len - q_len (bottom-right aligned).
        window: (left, right) keys around that diagonal, -1 for unbounded.
        num_sink_tokens: this many first keys of a sequence stay visible left of the window.
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

    One launch, two with attn_mask_kv of more than 2,048 rows; O(N + Q) work; allocates the result
    and the scratch memory from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> torch.from_dlpack(get_attn_mask_q([0, 3, 5], [0, 3, 7])).T  # doctest: +SKIP
    tensor([[3, 3, 3, 5, 5, 5, 5],
            [0, 1, 2, 3, 3, 3, 4]], device='cuda:0', dtype=torch.int32)
    """
    rule = resolve_rule(causal, window, num_sink_tokens, attn_mask_kv is not None)
    named = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    if attn_mask_kv is not None:
        named["attn_mask_kv"] = attn_mask_kv
    inputs, target, memory, given, device, other, streams = pack.call_of(
        named, out, scratch, stream
    )
    if other is not None:
        with cupy.cuda.Device(other):
            return get_attn_mask_q(
                cu_seqlens_q, cu_seqlens_k, attn_mask_kv, kv_token_num,
                causal=causal, window=window, num_sink_tokens=num_sink_tokens,
                out=out, scratch=scratch, stream=stream, validate=validate,
            )  # fmt: skip

    column_num = None if kv_token_num is None else checks.check_token_num(kv_token_num)
    if target is not None:
        column_num = pack.check_out(target, inputs, column_num)
    row_num = 0
    on_gpu = bool(inputs)
    if on_gpu:
        pack.check_cuts(inputs[0], inputs[1])
        if attn_mask_kv is not None:
            row_num = pack.check_intervals(inputs[2])
    else:
        host = checks.host_batch(cu_seqlens_q, cu_seqlens_k, attn_mask_kv, column_num)
        inputs = pack.upload_batch(host, streams)
        row_num, column_num = host.row_num, host.column_num
    q, k = inputs[0], inputs[1]
    if column_num is None:
        column_num = pack.read_column_num(k, given, streams)
    if validate and on_gpu:
        launch.forbid_in_capture(streams, "validate=True waits for the GPU")
        arrays.wait_for_producers(given, streams)
        row_total, key_total = pack.check_cuts_values(q, k, streams)
        checks.check_totals(column_num, key_total, row_num if inputs[2:] else None, row_total)
    if validate and row_num:
        excess.check_excess(inputs, row_num, given, device, streams)

    if target is None:
        out = launch.new_result((column_num, 2), np.int32, streams)
        columns = out.data.ptr
    else:
        columns = target.pointer
    if column_num == 0:
        return out
    batch = pack.plan_batch(q, k)
    launches: tuple[plan.Launch, ...]
    if not row_num:
        launches = (plan.rule_launch(batch, rule, columns, column_num),)
    else:
        # The pool's memory may be handed out again at once: on this stream, behind the launches.
        scratch_pointer, _ = pack.scratch_memory(
            memory, plan.scratch_nbytes(row_num), [*inputs, target], streams
        )
        launches = plan.interval_launches(
            batch, pack.plan_rows(inputs[2], row_num), columns, column_num, scratch_pointer
        )
    launch.run(launches, given, device, streams)
    return out
