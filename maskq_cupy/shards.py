"""Context parallelism: the columns of the rows that one rank holds, made by each rank alone."""

import math
from typing import Any

import numpy as np

from maskq_cupy import checks, host, plan
from maskq_cupy.call import Call, columns_of
from maskq_cupy.facts import Facts
from maskq_cupy.pack import stride
from maskq_cupy.typed import Out


def shard_columns(
    columns: Any,
    row_chunks: Any,
    key_chunks: Any = None,
    *,
    key_num: int | None = None,
    out: Out | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return the columns of some of the pack's rows, as one rank of several holds them.

    Local row i sees column i' exactly as the pack's row that is stored at i saw the key that is
    stored at i': exact columns stay exact, a superset stays that superset, and no visible pair is
    hidden. What takes columns takes these, with the rank's number of rows for Q and M for N.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on a GPU.
        row_chunks: int32 or int64, shape (C, 2), [start, end) in rows of the pack, ascending: the
            rows that the rank holds, stored in that order. Empty ones are normal. On the host, or
            on the columns' GPU. ``maskq_cupy.cp`` makes them.
        key_chunks: int32 or int64, shape (K, 2), [start, end) in keys of the pack, in the order in
            which the rank's keys are stored, repeats allowed; all N keys if None. Keys outside of
            [0, N) are padding. On the host, or on the columns' GPU.
        key_num: number of keys M that are stored. Only key chunks on the GPU need it, or ``out``:
            places behind their sum are padding then, and keys behind M are dropped.
        out: int32, shape (M, 2) or (b, h, M, 2), C-contiguous, on the GPU, apart from ``columns``;
            is what is returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least
            ``shard_scratch_nbytes(C, K)`` bytes, which is 0 up to 4,096 chunks a side; allocated if
            None. Needed in a graph capture only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: check the values of chunks on the GPU too, at the cost of a wait.

    Returns:
        int32 cupy.ndarray, shape (M, 2) or (b, h, M, 2), columns [LTS, UTE] in rows of the rank,
        half-open; or ``out``. A key with UTE == LTS is shown to none of them: the rank does not
        need it. Padding keys have (q, q), for the rank's q rows.

    One launch, two where chunks are more than 4,096; no synchronisation; allocates the result, the
    scratch memory and room for chunks from the host, and nothing where they are given and the
    chunks are on the GPU.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate, copy, compile or
            wait.

    >>> columns = get_attn_mask_q([0, 3, 5], [0, 3, 7])  # doctest: +SKIP
    >>> shard_columns(columns, [[0, 2], [4, 5]]).T  # doctest: +SKIP
    array([[2, 2, 2, 3, 3, 3, 3],
           [0, 1, 2, 2, 2, 2, 2]], dtype=int32)
    """
    on_gpu = {"columns": columns}
    on_host = {}
    for name, chunks in (("row_chunks", row_chunks), ("key_chunks", key_chunks)):
        if chunks is None and name == "key_chunks":
            continue
        if host.is_on_gpu(chunks):
            on_gpu[name] = chunks
        else:
            on_host[name] = host.host_chunks(name, chunks)
    call = Call(on_gpu, out, scratch, stream)
    source = columns_of(call, checks.check_slices_form)
    known = source.shape[-2] if key_chunks is None else None
    if "key_chunks" in on_host:
        known = checks.chunk_total(on_host["key_chunks"])
    key_num = _key_num(call, key_num, known)
    numbers = {name: len(chunks) for name, chunks in on_host.items()}
    for name in call.inputs:
        if name != "columns":
            numbers[name] = _check_chunks_on_gpu(call, name, key_num, validate)
    if on_host:
        call.upload(on_host)
    slices = tuple(source.shape[:-2])
    shard = call.result("int32", 8, (key_num, 2), slices)
    slice_num = math.prod(slices)
    if slice_num and key_num:
        rows, keys = (
            _plan_chunks(call.inputs.get(name), numbers.get(name, 0))
            for name in ("row_chunks", "key_chunks")
        )
        memory = call.scratch(plan.shard_scratch_nbytes(rows.num, keys.num))
        column_num = source.shape[-2]
        call.run(
            *plan.shard_launches(
                source.pointer, slice_num, column_num, rows, keys, shard, key_num, memory
            )
        )
    return call.out


def needed_keys(
    columns: Any, block_size: int = 128, *, out: Out | None = None, stream: Any = None
) -> Out:
    """Return how many keys of each block are shown to any row.

    Of columns of ``shard_columns`` with another rank's rows and this rank's keys: how many of its
    keys, block by block, that rank needs.

    Args:
        columns: int32, shape (M, 2) or (b, h, M, 2), columns [LTS, UTE], on a GPU.
        block_size: keys of a block.
        out: int32, shape (ceil(M / block_size),) or (b, h, ceil(M / block_size)), C-contiguous, on
            the GPU; is what is returned.
        stream: the launch stream, as in ``get_attn_mask_q``.

    Returns:
        int32 cupy.ndarray of that shape; or ``out``.

    One launch; allocates the result where ``out`` is not given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: without a GPU, or in a graph capture that would allocate or compile.
    """
    size = checks.check_int(block_size, "block_size", lowest=1)
    call = Call({"columns": columns}, out, stream=stream)
    source = columns_of(call, checks.check_slices_form)
    column_num, slices = source.shape[-2], tuple(source.shape[:-2])
    needed = call.result("int32", 4, (-(-column_num // size),), slices)
    slice_num = math.prod(slices)
    if slice_num and column_num:
        call.run(plan.needed_keys_launch(source.pointer, slice_num, column_num, size, needed))
    return call.out


def _key_num(call: Call, key_num: Any, known: int | None) -> int:
    """Return M, which the chunks say, `key_num` or `out`; require that they agree."""
    if key_num is not None:
        checks.check_key_num(key_num, known)
        known = int(key_num)
    if call.out is None:
        if known is None:
            raise ValueError("key_num or out= must be given where key_chunks are on a GPU")
        return known
    target = call.targets["out"]
    room = checks.check_slices_form(target.dtype, target.shape, "out")
    if known is not None and room != known:
        raise ValueError(f"out must have M = {known} columns, got shape {tuple(target.shape)}")
    return room


def _check_chunks_on_gpu(call: Call, name: str, key_num: int, validate: bool) -> int:
    """Check chunks on the GPU, their values too if asked to; return how many."""
    facts = call.inputs[name]
    chunk_num = checks.check_chunks_form(name, facts.dtype, facts.shape)
    checks.check_contiguous(name, facts)
    if validate:
        values = call.read_back(facts, slice(0, None), "validate=True waits for the GPU")
        chunks = values.reshape(-1, 2).astype(np.int64)
        checks.check_chunk_values(name, chunks)
        if name == "key_chunks" and checks.chunk_total(chunks) != key_num:
            raise ValueError(
                f"key_chunks must hold M = {key_num} keys, got {checks.chunk_total(chunks)}"
            )
    return chunk_num


def _plan_chunks(chunks: Facts | None, num: int) -> plan.Chunks:
    if chunks is None:
        return plan.ALL_KEYS
    return plan.Chunks(chunks.pointer, stride(chunks), num)
