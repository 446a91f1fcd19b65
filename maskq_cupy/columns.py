"""The operator: check, allocate, launch. A packed batch in, [LTS, UTE] columns out."""

from typing import Any

import numpy as np

from maskq_cupy import arrays, checks, launch, plan
from maskq_cupy.arrays import GpuArray, Streams, cupy
from maskq_cupy.rule import resolve_rule

_INPUTS = ("cu_seqlens_q", "cu_seqlens_k", "attn_mask_kv")
_STRIDES = {"int32": 1, "int64": 2}  # in 32-bit words


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
        scratch: memory for calls with attn_mask_kv, any contiguous GPU array of at least
            ``scratch_nbytes(Q)`` bytes; allocated if None. Needed in a graph capture only.
        stream: the launch stream: a CuPy stream, a pointer, or an object with ``__cuda_stream__``
            or ``.cuda_stream``; CuPy's current one if None. Other frameworks' streams wait for
            it and it for them; the host does not.
        validate: check the values on the GPU too, at the cost of a wait.

    Returns:
        int32 cupy.ndarray, shape (N, 2), columns [LTS, UTE], query-row units, half-open: column c
        is shown to exactly the rows ``[UTE, LTS)``; or ``out``.

    One launch, two with attn_mask_kv; O(N + Q) work; allocates the result and the scratch memory
    from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> torch.from_dlpack(get_attn_mask_q([0, 3, 5], [0, 3, 7])).T  # doctest: +SKIP
    tensor([[3, 3, 3, 5, 5, 5, 5],
            [0, 1, 2, 3, 3, 3, 4]], device='cuda:0', dtype=torch.int32)
    """
    rule = resolve_rule(causal, window, num_sink_tokens, attn_mask_kv is not None)
    device = arrays.current_device()
    streams = arrays.streams_of(stream)
    inputs = _inputs(cu_seqlens_q, cu_seqlens_k, attn_mask_kv, streams)
    target = None if out is None else launch.on_gpu(out, "out", streams)
    memory = None if scratch is None else launch.on_gpu(scratch, "scratch", streams)
    given = inputs[:]
    if target is not None:
        given.append(target)
    if memory is not None:
        given.append(memory)
    other = launch.other_device(given, device)
    if other is not None:
        with cupy.cuda.Device(other):
            return get_attn_mask_q(
                cu_seqlens_q, cu_seqlens_k, attn_mask_kv, kv_token_num,
                causal=causal, window=window, num_sink_tokens=num_sink_tokens,
                out=out, scratch=scratch, stream=stream, validate=validate,
            )  # fmt: skip
    if stream is not None:
        arrays.check_stream(streams.launch)

    column_num = None if kv_token_num is None else checks.check_token_num(kv_token_num)
    if target is not None:
        column_num = _check_out(target, inputs, column_num)
    if inputs:
        row_num = _check_forms(inputs)
    else:
        host = checks.host_batch(cu_seqlens_q, cu_seqlens_k, attn_mask_kv, column_num)
        launch.forbid_in_capture(streams, "host input is copied: give arrays on the GPU")
        inputs, row_num, column_num = _upload(host, streams), host.row_num, host.column_num
        validate = False  # done, on the host
    if column_num is None:
        launch.forbid_in_capture(streams, "kv_token_num is read back: give it, or out=")
        arrays.wait_for_producers(given, streams)
        column_num = checks.check_token_num(int(_read_back(inputs[1], streams)[-1]))
    if validate:
        launch.forbid_in_capture(streams, "validate=True waits for the GPU")
        arrays.wait_for_producers(given, streams)
        _check_values(inputs, row_num, column_num, streams)

    if target is None:
        launch.forbid_in_capture(streams, "the result is allocated: give out=")
        out = arrays.empty((column_num, 2), np.int32, streams)
        columns = out.data.ptr
    else:
        columns = target.pointer
    if column_num == 0:
        return out
    q, k = inputs[:2]
    batch = (q.pointer, k.pointer, _STRIDES[q.dtype], _STRIDES[k.dtype], k.shape[0] - 1)
    launches: tuple[plan.Launch, ...]
    if not row_num:
        launches = (plan.rule_launch(batch, rule, columns, column_num),)
    else:
        # The pool's memory may be handed out again at once: on this stream, behind the launches.
        scratch_pointer, _ = _scratch(memory, row_num, [*inputs, target], streams)
        launches = plan.interval_launches(
            batch, inputs[2].pointer, inputs[2].dtype == "int64", row_num, columns, column_num,
            scratch_pointer,
        )  # fmt: skip
    launch.run(launches, given, device, streams)
    return out


def _inputs(
    cu_seqlens_q: Any, cu_seqlens_k: Any, attn_mask_kv: Any, streams: Streams
) -> list[GpuArray]:
    """Return the facts of the input arrays on a GPU, or nothing where all are on the host."""
    found = [
        arrays.gpu_array(cu_seqlens_q, "cu_seqlens_q", streams),
        arrays.gpu_array(cu_seqlens_k, "cu_seqlens_k", streams),
    ]
    if attn_mask_kv is not None:
        found.append(arrays.gpu_array(attn_mask_kv, "attn_mask_kv", streams))
    inputs = [array for array in found if array is not None]
    if inputs and len(inputs) < len(found):
        places = ", ".join(
            f"{name} on {'the host' if array is None else 'a GPU'}"
            for name, array in zip(_INPUTS, found, strict=False)
        )
        raise TypeError(f"the input must be all on one GPU or all on the host, got {places}")
    return inputs


def _check_forms(inputs: list[GpuArray]) -> int:
    """Check types, shapes and contiguity; return the number of rows of attn_mask_kv, 0 without."""
    q, k = inputs[:2]
    checks.check_cu_seqlens_form("cu_seqlens_q", q.dtype, q.shape)
    checks.check_cu_seqlens_form("cu_seqlens_k", k.dtype, k.shape)
    checks.check_same_batch(q.shape[0], k.shape[0])
    row_num = checks.check_intervals_form(inputs[2].dtype, inputs[2].shape) if inputs[2:] else 0
    for i, array in enumerate(inputs):
        if not array.contiguous:
            name = _INPUTS[i]
            raise ValueError(
                f"{name} must be C-contiguous, got a strided view of shape {array.shape}"
            )
    return row_num


def _check_out(target: GpuArray, inputs: list[GpuArray], column_num: int | None) -> int:
    """Return the number of columns that `out` has room for."""
    shape = target.shape
    room = checks.check_columns_form(target.dtype, shape, "out")
    if column_num is not None and room != column_num:
        raise ValueError(
            f"out must have N = kv_token_num = {column_num} columns, got shape {tuple(shape)}"
        )
    if not target.contiguous:
        raise ValueError(f"out must be C-contiguous, got a strided view of shape {tuple(shape)}")
    if not target.writable:
        raise ValueError(f"out must be writable, got a read-only {type(target.value).__name__}")
    if target.pointer % 8:
        raise ValueError(f"out must be 8-byte aligned, got address {target.pointer:#x}")
    launch.forbid_overlap("out", target, inputs)
    return room


def _scratch(
    memory: GpuArray | None, row_num: int, others: list[GpuArray | None], streams: Streams
) -> tuple[int, Any]:
    """Return the pointer of the scratch memory for so many rows, given or from the pool, and it."""
    nbytes = plan.scratch_nbytes(row_num)
    if memory is None:
        if nbytes == 0:
            return 0, None
        launch.forbid_in_capture(
            streams, f"scratch memory is allocated: give scratch= of {nbytes} bytes"
        )
        pool = arrays.empty((nbytes,), np.uint8, streams)
        return pool.data.ptr, pool
    if (
        memory.nbytes < nbytes
        or not memory.contiguous
        or not memory.writable
        or memory.pointer % 16
    ):
        raise ValueError(
            "scratch must be writable, contiguous, 16-byte aligned and of at least "
            f"{nbytes} bytes, got {memory.nbytes} bytes at {memory.pointer:#x}, "
            f"contiguous={memory.contiguous}, writable={memory.writable}"
        )
    launch.forbid_overlap("scratch", memory, others)
    return memory.pointer, memory.value


def _upload(host: checks.HostBatch, streams: Streams) -> list[GpuArray]:
    """Copy a batch to the GPU in one transfer, as int64."""
    parts = [host.cu_seqlens_q, host.cu_seqlens_k]
    if host.attn_mask_kv is not None:
        parts.append(host.attn_mask_kv.reshape(-1))
    memory = arrays.upload(np.concatenate(parts), streams.launch)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    split = [memory[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
    return [launch.on_gpu(array, "the copy", streams) for array in split]


def _read_back(
    cu_seqlens: GpuArray, streams: Streams, entries: slice = slice(-1, None)
) -> np.ndarray:
    """Copy entries of a cu_seqlens array to the host, behind the work on the launch stream."""
    start, stop, _ = entries.indices(cu_seqlens.shape[0])
    pointer = cu_seqlens.pointer + start * 4 * _STRIDES[cu_seqlens.dtype]
    return arrays.download(pointer, cu_seqlens.dtype, stop - start, streams.launch)


def _check_values(inputs: list[GpuArray], row_num: int, column_num: int, streams: Streams) -> None:
    counted = slice(0, inputs[1].shape[0])
    q, k = (_read_back(array, streams, counted) for array in inputs[:2])
    checks.check_cu_seqlens_values("cu_seqlens_q", q)
    checks.check_cu_seqlens_values("cu_seqlens_k", k)
    checks.check_totals(column_num, int(k[-1]), row_num if inputs[2:] else None, int(q[-1]))
