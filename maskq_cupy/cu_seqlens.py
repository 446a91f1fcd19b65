"""cu_seqlens and spans from what people have: ids, positions, a padding mask, slots."""

from collections.abc import Callable
from typing import Any

import numpy as np

from maskq_cupy import checks, gpu, plan_cu_seqlens, reference, tokens
from maskq_cupy.call import Call
from maskq_cupy.pack import stride
from maskq_cupy.plan_cu_seqlens import Tokens
from maskq_cupy.reference import CuSeqlens
from maskq_cupy.typed import Out, Pair

_WAITS = "validate=True waits for the GPU"


def cu_seqlens_from_ids(
    ids: Any,
    max_sequence_num: int,
    padding_id: int | None = None,
    *,
    out: Out | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return where documents begin in a row of document ids, one id a token.

    Equal neighbours are one document; an id that comes again later is another one.

    Args:
        ids: int32 or int64, shape (N,) or (b, L), C-contiguous, on a GPU or the host. Of (b, L) the
            rows are read one behind the other, and each begins a document.
        max_sequence_num: the most documents to expect; the result has this many and one entries,
            and documents that are missing are empty ones at the end. Those that are more are in no
            document: nobody sees them.
        padding_id: the id of padding. Its run at the end is in no document; needs ids of (N,).
        out: int32, shape (max_sequence_num + 1,), C-contiguous, on the GPU; is what is returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least
            ``cu_seqlens_scratch_nbytes(N)`` bytes; allocated if None. Needed in a graph capture
            only.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: check the values on the GPU too: reads the ids back and waits for them.

    Returns:
        int32 cupy.ndarray, shape (max_sequence_num + 1,), in tokens; or ``out``. It is both
        cu_seqlens_q and cu_seqlens_k of the pack. Its last entry is N, less any padding.

    Two launches; O(N + max_sequence_num) work, the ids are read once; does not wait; allocates the
    result and the scratch memory from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; where values
            are checked, of more documents than max_sequence_num how many, of padding before other
            ids the first.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> cu_seqlens_from_ids([7, 7, 9, 9, 9, 0], 4, padding_id=0)  # doctest: +SKIP
    array([0, 2, 5, 5, 5], dtype=int32)
    """
    most = tokens.check_max_num(max_sequence_num, "max_sequence_num")

    def check(values: np.ndarray) -> Any:
        return reference.cu_seqlens_from_ids(values, most, padding_id)

    call = Call({"ids": ids}, out, scratch, stream)
    source, shape = _tokens(call, "ids", check, validate)
    padding = tokens.check_padding_id(padding_id, shape)
    return _listed(call, source, (most + 1,), padding_id=padding)


def cu_seqlens_from_positions(
    position_ids: Any,
    max_sequence_num: int,
    *,
    out: Out | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return where documents begin in position ids that start anew at each document.

    A document begins where a position is not the one before plus 1. So padding is not known, and
    documents whose positions go on from one to the next are one.

    Args:
        position_ids: int32 or int64, shape (N,) or (b, L), C-contiguous, on a GPU or the host. Of
            (b, L) the rows are read one behind the other, and each begins a document.
        max_sequence_num, out, scratch, stream, validate: as in ``cu_seqlens_from_ids``.

    Returns:
        int32 cupy.ndarray, shape (max_sequence_num + 1,), in tokens; or ``out``. It is both
        cu_seqlens_q and cu_seqlens_k of the pack. Its last entry is N.

    Two launches; O(N + max_sequence_num) work, the positions are read once; does not wait;
    allocates the result and the scratch memory from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; where values
            are checked, of more documents than max_sequence_num how many.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> cu_seqlens_from_positions([0, 1, 2, 0, 1, 0], 4)  # doctest: +SKIP
    array([0, 3, 5, 6, 6], dtype=int32)
    """
    most = tokens.check_max_num(max_sequence_num, "max_sequence_num")

    def check(values: np.ndarray) -> Any:
        return reference.cu_seqlens_from_positions(values, most)

    call = Call({"position_ids": position_ids}, out, scratch, stream)
    source, _ = _tokens(call, "position_ids", check, validate)
    return _listed(call, source, (most + 1,), by_positions=True)


def spans_from_ids(
    ids: Any,
    max_span_num: int,
    text_id: int = -1,
    *,
    out: Out | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Out:
    """Return the spans of tokens that see each other, from ids that tell them from text.

    A span is a run of one id other than text_id.

    Args:
        ids: int32 or int64, shape (N,) or (b, L), C-contiguous, on a GPU or the host. Of (b, L) the
            rows are read one behind the other, and no span goes on from one to the next.
        max_span_num: the most spans to expect, and how many the result has: those that are missing
            are empty ones, at the end of the last. Those that are more are left out.
        text_id: the id of tokens in no span.
        out: int32, shape (max_span_num, 2), C-contiguous, on the GPU; is what is returned.
        scratch, stream, validate: as in ``cu_seqlens_from_ids``.

    Returns:
        int32 cupy.ndarray, shape (max_span_num, 2), [start, end) in tokens of the pack; or ``out``.

    Two launches; O(N + max_span_num) work, the ids are read once; does not wait; allocates the
    result and the scratch memory from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; where values
            are checked, of more spans than max_span_num how many.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> spans_from_ids([-1, 4, 4, -1, 5, 6], 4).tolist()  # doctest: +SKIP
    [[1, 3], [4, 5], [5, 6], [6, 6]]
    """
    most = tokens.check_max_num(max_span_num, "max_span_num")
    text = tokens.check_id(text_id, "text_id")

    def check(values: np.ndarray) -> Any:
        return reference.spans_from_ids(values, most, text)

    call = Call({"ids": ids}, out, scratch, stream)
    source, _ = _tokens(call, "ids", check, validate)
    return _listed(call, source, (most, 2), text_id=text)


def _tokens(
    call: Call, name: str, check: Callable[[np.ndarray], Any], validate: bool
) -> tuple[Tokens, tuple[int, ...]]:
    """Return a call's ids or positions, and their shape; host arrays are checked and uploaded."""
    if call.inputs:
        given = call.inputs[name]
        shape = tuple(given.shape)
        tokens.check_tokens_form(name, given.dtype, shape)
        checks.check_contiguous(name, given)
        if validate:
            check(call.read_back(given, slice(None), _WAITS).reshape(shape))
    else:
        values, _ = tokens.host_tokens(name, call.named[name])
        check(values)
        shape = values.shape
        call.upload({name: values})
        given = call.inputs[name]
    batch, length = tokens.check_tokens_form(name, given.dtype, shape)
    return Tokens(given.pointer, given.dtype == "int64", batch * length, length), shape


def _listed(call: Call, source: Tokens, shape: tuple[int, ...], **kind: Any) -> Any:
    entries = call.result("int32", 4 * len(shape), shape)
    memory = call.scratch(plan_cu_seqlens.cu_seqlens_scratch_nbytes(source.token_num))
    call.run(*plan_cu_seqlens.run_launches(source, entries, shape[0], memory, **kind))
    return call.out


def cu_seqlens_from_padding(
    mask: Any,
    *,
    out: Pair | None = None,
    scratch: Any = None,
    stream: Any = None,
    validate: bool = False,
) -> Pair:
    """Return the cuts of a padded batch, as a pack of b * L rows and keys, from its padding mask.

    Each batch row becomes five sequences: front rows, front keys, the one from its first to its
    last token, tail keys, tail rows. So rows of padding see nothing, and nobody sees its keys. A
    hole between a batch row's tokens is like a token.

    Args:
        mask: bool or of an int dtype, shape (b, L), C-contiguous, on a GPU or the host: 0 at
            padding, which lies before or behind a batch row's tokens, or both.
        out: two of int32, shape (5 * b + 1,), C-contiguous, on the GPU; are what is returned.
        scratch: any contiguous, 16-byte aligned GPU array of at least
            ``cu_seqlens_scratch_nbytes(b * L)`` bytes; allocated if None. Needed in a graph capture
            only, and only of batch rows of more than 16 KiB.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: check the values on the GPU too: reads the mask back and waits for it.

    Returns:
        CuSeqlens, two of int32 cupy.ndarray, shape (5 * b + 1,), in tokens of the pack, or ``out``:
        ``get_attn_mask_q`` takes them as they are, and ``split_columns`` gives each batch row its
        own columns.

    One launch, two where batch rows are more than 16 KiB; the mask is read once; does not wait;
    allocates the result and the scratch memory from CuPy's pool, and nothing where they are given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; where values
            are checked, of a hole between a batch row's tokens, the first.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> cuts = cu_seqlens_from_padding(torch.tensor([[0, 1, 1, 0]]).cuda())  # doctest: +SKIP
    >>> cuts.cu_seqlens_q, cuts.cu_seqlens_k  # doctest: +SKIP
    (array([0, 1, 1, 3, 3, 4], dtype=int32), array([0, 0, 1, 3, 4, 4], dtype=int32))
    """
    call = Call({"mask": mask}, _named_pair(out), scratch, stream)
    if call.inputs:
        given = call.inputs["mask"]
        batch, length = tokens.check_mask_form(given.dtype, given.shape)
        checks.check_contiguous("mask", given)
        if validate:
            found = call.read_back(given, slice(None), _WAITS)
            reference.cu_seqlens_from_padding(found.reshape(batch, length))
    else:
        is_token = tokens.host_mask(mask)
        reference.cu_seqlens_from_padding(is_token)
        batch, length = is_token.shape
        call.upload({"mask": is_token})
        given = call.inputs["mask"]
    form = np.dtype(given.dtype).itemsize, batch, length
    pair, cuts = _pair(call, out, 5 * batch + 1)
    memory = call.scratch(plan_cu_seqlens.mask_scratch_nbytes(*form))
    call.run(*plan_cu_seqlens.mask_launches(given.pointer, *form, cuts, memory))
    return pair


def cu_seqlens_from_slots(
    cu_seqlens_q: Any,
    cu_seqlens_q_padded: Any,
    cu_seqlens_k: Any,
    cu_seqlens_k_padded: Any,
    *,
    out: Pair | None = None,
    stream: Any = None,
    validate: bool = False,
) -> Pair:
    """Return the cuts of sequences that lie in wider slots, as TransformerEngine's THD has them.

    Each becomes three sequences: itself, its gap's keys with no rows, its gap's rows with no keys.
    So rows of gaps see nothing, and nobody sees the gaps' keys. A sequence that is longer than its
    slot is cut to it.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,), non-decreasing from 0: the rows' lengths, one
            behind the other.
        cu_seqlens_q_padded: int32 or int64, shape (B + 1,), non-decreasing from 0: where each
            sequence's slot begins, and the last one's end.
        cu_seqlens_k, cu_seqlens_k_padded: the same of the keys. The four are all on one GPU, or all
            lists and host arrays.
        out: two of int32, shape (3 * B + 1,), C-contiguous, on the GPU; are what is returned.
        stream: the launch stream, as in ``get_attn_mask_q``.
        validate: check the values on the GPU too, at the cost of a wait.

    Returns:
        CuSeqlens, two of int32 cupy.ndarray, shape (3 * B + 1,), in rows and keys of the slots, or
        ``out``.

    One launch; O(B) work; does not wait; allocates the result from CuPy's pool where ``out`` is not
    given, and no scratch memory.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; where values
            are checked, of a sequence longer than its slot, the first.
        RuntimeError: without a GPU, or in a graph capture that would allocate, compile or wait.

    >>> cuts = cu_seqlens_from_slots([0, 2, 3], [0, 4, 6], [0, 2, 3], [0, 4, 6])  # doctest: +SKIP
    >>> cuts.cu_seqlens_q, cuts.cu_seqlens_k  # doctest: +SKIP
    (array([0, 2, 2, 4, 5, 5, 6], dtype=int32), array([0, 2, 4, 4, 5, 6, 6], dtype=int32))
    """
    named = {
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_q_padded": cu_seqlens_q_padded,
        "cu_seqlens_k": cu_seqlens_k,
        "cu_seqlens_k_padded": cu_seqlens_k_padded,
    }
    call = Call(named, _named_pair(out), stream=stream)
    given = call.inputs
    if given:
        batch = tokens.check_slots_forms({n: (a.dtype, a.shape) for n, a in given.items()})
        for name, array in given.items():
            checks.check_contiguous(name, array)
        if validate:
            found = (call.read_back(array, slice(None), _WAITS) for array in given.values())
            reference.cu_seqlens_from_slots(*found)
    else:
        reference.cu_seqlens_from_slots(**named)
        slots = tokens.host_slots(named)
        batch = len(slots[0]) - 1
        call.upload(dict(zip(named, slots, strict=True)))
    pair, cuts = _pair(call, out, 3 * batch + 1)
    pointers = tuple(array.pointer for array in given.values())
    strides = tuple(stride(array) for array in given.values())
    call.run(plan_cu_seqlens.slots_launch(pointers, strides, batch, cuts))
    return pair


def _named_pair(out: Any) -> dict[str, Any] | None:
    """Return the two arrays to write, by the names that errors give them."""
    if out is None:
        return None
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out must be a pair of GPU arrays, got {type(out).__name__}")
    return {"out[0]": out[0], "out[1]": out[1]}


def _pair(call: Call, out: Any, entry_num: int) -> tuple[Any, tuple[int, int]]:
    """Return two arrays of so many entries, the caller's or new ones, and their addresses."""
    if out is not None:
        for name, target in call.targets.items():
            if name != "scratch":
                checks.check_target_form(name, target, "int32", [(entry_num,)])
        cuts = call.target("out[0]", 4), call.target("out[1]", 4)
        checks.forbid_overlap("out[1]", call.targets["out[1]"], [call.targets["out[0]"]])
        return out, cuts
    step = -(-entry_num // 4) * 4  # both from a 16-byte boundary on
    first = call.result("int32", 16, (step + entry_num,))
    memory, ndarray = call.out.data, gpu.ndarray
    pair = (ndarray((entry_num,), "int32", memory + at) for at in (0, 4 * step))
    return CuSeqlens(*pair), (first, first + 4 * step)
