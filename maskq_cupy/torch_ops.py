"""The functions of this package as torch operators, for masks made inside a compiled forward.

Importing this module registers them; ``maskq_cupy.flex`` imports it. Each is its namesake of this
package on torch tensors, with results in torch's memory:

    import maskq_cupy.torch_ops

    columns = torch.ops.maskq_cupy.columns(cu_seqlens_q, cu_seqlens_k, N, window=(128, 0))

``torch.compile(fullgraph=True)`` does not break at them, and their numbers may be symbolic: other
lengths compile nothing anew. On a GPU they launch on torch's current stream and wait for nothing,
so that CUDA graphs, ``mode="reduce-overhead"`` among them, capture them. On the CPU they are
``maskq_cupy.reference``, for tests of a model.

Values are checked on the CPU only, as everywhere. A call costs the host some microseconds more than
the function, for its way through torch's dispatcher.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from maskq_cupy import checks, cu_seqlens, forms, plan, plan_cu_seqlens, reference, tokens
from maskq_cupy.blocks import run_lists, slices_of
from maskq_cupy.call import Call, columns_of
from maskq_cupy.columns import get_attn_mask_q
from maskq_cupy.reference import Blocks
from maskq_cupy.rule import resolve_rule
from maskq_cupy.tree import tree_attn_mask_q

# By define and impl, not by torch.library.custom_op, whose calls cost five times as much.
_LIBRARY = torch.library.Library("maskq_cupy", "DEF")


def packed_columns(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    kv_token_num: int,
    *,
    attn_mask_kv: Any = None,
    validate: bool = False,
    **rule: Any,
) -> torch.Tensor:
    """Return the operator's columns for the arguments of ``get_attn_mask_q``, as torch traces them.

    Raises:
        ValueError: of rules that do not go with intervals, and of ``validate=True``.
    """
    if validate:
        raise ValueError("validate must be False in a compiled forward, which cannot wait")
    if attn_mask_kv is None:
        return torch.ops.maskq_cupy.columns(cu_seqlens_q, cu_seqlens_k, kv_token_num, **rule)
    has_spans = rule.pop("spans", None) is not None
    resolve_rule(**rule, spans_given=has_spans, intervals_given=True)
    return torch.ops.maskq_cupy.interval_columns(
        cu_seqlens_q, cu_seqlens_k, attn_mask_kv, kv_token_num
    )


def current_stream(tensor: Any) -> int:
    """Return the pointer of torch's current stream on the tensor's device."""
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())


def _register(
    schema: str,
    of_gpu: Callable[..., Any],
    of_host: Callable[..., Any],
    result: Callable[..., Any],
    scratch_nbytes: Callable[..., int] | None = None,
) -> None:
    """Define an operator.

    of_gpu and of_host are this package's functions of its arguments, on a GPU and on the host.
    result returns the empty tensors to write, and is what tracing sees of the operator.
    """

    def on_gpu(*given: Any, **more: Any) -> Any:
        out = result(*given, **more)
        first = _each(out)[0]
        memory = {}
        if scratch_nbytes is not None and (nbytes := scratch_nbytes(*given, **more)):
            memory["scratch"] = torch.empty(nbytes, dtype=torch.uint8, device=first.device)
        of_gpu(*given, **more, **memory, out=out, stream=current_stream(first))
        return out

    def on_cpu(*given: Any, **more: Any) -> Any:
        arrays = {name: _on_host(value) for name, value in more.items()}
        found = of_host(*map(_on_host, given), **arrays)
        out = result(*given, **more)
        for tensor, array in zip(_each(out), _each(found), strict=True):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))
        return out

    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, on_gpu, "CUDA")
    _LIBRARY.impl(name, on_cpu, "CPU")
    torch.library.register_fake(f"maskq_cupy::{name}", result, lib=_LIBRARY)


def _each(results: Any) -> Sequence[Any]:
    return results if isinstance(results, (tuple, list)) else (results,)


def _on_host(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _form(tensor: Any) -> tuple[str, Sequence[int]]:
    return str(tensor.dtype).removeprefix("torch."), tensor.shape


def _int32(shape: Sequence[int], beside: Any) -> Any:
    return torch.empty(shape, dtype=torch.int32, device=beside.device)


def _columns_of(kv_token_num: int, cu_seqlens_k: Any) -> Any:
    return _int32((checks.check_token_num(kv_token_num), 2), cu_seqlens_k)


def _by_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``get_attn_mask_q`` without its argument for intervals."""
    return lambda q, k, n, **more: function(q, k, None, n, **more)


_register(
    "columns(Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt kv_token_num, *, bool causal=True, "
    "SymInt[]? window=None, SymInt num_sink_tokens=0, str align='bottom_right', "
    "SymInt? causal_block=None, SymInt? chunk_size=None, Tensor? spans=None) -> Tensor",
    _by_rule(get_attn_mask_q),
    _by_rule(reference.get_attn_mask_q),
    lambda q, k, n, **rule: _columns_of(n, k),
)

_register(
    "interval_columns(Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor attn_mask_kv, "
    "SymInt kv_token_num) -> Tensor",
    get_attn_mask_q,
    reference.get_attn_mask_q,
    lambda q, k, intervals, n: _columns_of(n, k),
    lambda q, k, intervals, n: plan.scratch_nbytes(intervals.numel() // 2),
)

_register(
    "tree_columns(Tensor parent, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt kv_token_num, *, "
    "Tensor? full=None) -> Tensor",
    tree_attn_mask_q,
    reference.tree_attn_mask_q,
    lambda parent, q, k, n, *, full=None: _columns_of(n, k),
    lambda parent, q, k, n, *, full=None: plan.tree_scratch_nbytes(parent.numel()),
)


def _tiles(
    columns: Any, q_token_num: int, block_size: Any, width: Any
) -> tuple[plan.Tiles, tuple[int, int]]:
    """Return the tiles of columns, and their batch rows and heads."""
    row_num = checks.check_int(q_token_num, "q_token_num")
    column_num = checks.check_slices_form(*_form(columns))
    lead = slices_of(columns.shape)
    size = checks.check_block_size(block_size)
    return plan.tiles(math.prod(lead), row_num, column_num, size, width), lead


def _new_lists(
    columns: Any,
    q_token_num: int,
    block_size: Any = 128,
    *,
    width: Any = None,
    all_partial: bool = False,
) -> list[Any]:
    # Memory of their own, unlike flex's: an operator's results must not be parts of each other's.
    tiles, lead = _tiles(columns, q_token_num, block_size, width)
    return [_int32(shape, columns) for shape in plan.block_shapes(tiles, lead)]


def _write_lists(
    columns: Any,
    q_token_num: int,
    block_size: Any = 128,
    *,
    width: Any = None,
    all_partial: bool = False,
    out: list[Any],
    stream: int,
) -> None:
    tiles, _ = _tiles(columns, q_token_num, block_size, width)
    nbytes = plan.lists_scratch_nbytes(tiles)
    scratch = torch.empty(nbytes, dtype=torch.uint8, device=columns.device)
    pointers = Blocks(*[part.data_ptr() for part in out])
    call = Call({"columns": columns}, stream=stream)
    source = columns_of(call, checks.check_slices_form)
    run_lists(call, source, tiles, pointers, scratch.data_ptr(), all_partial)


_register(
    "blocks(Tensor columns, SymInt q_token_num, int[2] block_size=128, *, "
    "int[2]? width=None, bool all_partial=False) -> Tensor[]",
    _write_lists,
    reference.to_blocks,
    _new_lists,
)


def _new_dense(columns: Any, q_token_num: int, *, limit: int = reference.DENSE_LIMIT) -> Any:
    row_num = checks.check_int(q_token_num, "q_token_num")
    column_num = checks.check_slices_form(*_form(columns))
    checks.check_dense_size(math.prod(columns.shape[:-2]) * row_num, column_num, limit)
    shape = (*columns.shape[:-2], row_num, column_num)
    return torch.empty(shape, dtype=torch.bool, device=columns.device)


_register(
    f"dense(Tensor columns, SymInt q_token_num, *, SymInt limit={reference.DENSE_LIMIT}) -> Tensor",
    forms.to_dense,
    reference.to_dense,
    _new_dense,
)


def _new_parts(columns: Any, b: int, q_token_num: int) -> Any:
    column_num = checks.check_columns_form(*_form(columns))
    tokens.check_split(column_num, b, q_token_num)
    return _int32((b, 1, column_num // b, 2), columns)


_register(
    "split_columns(Tensor columns, SymInt b, SymInt q_token_num) -> Tensor",
    forms.split_columns,
    reference.split_columns,
    _new_parts,
)


def _new_cuts(ids: Any, max_sequence_num: int, padding_id: int | None = None) -> Any:
    return _int32((tokens.check_max_num(max_sequence_num, "max_sequence_num") + 1,), ids)


def _new_spans(ids: Any, max_span_num: int, text_id: int = -1) -> Any:
    return _int32((tokens.check_max_num(max_span_num, "max_span_num"), 2), ids)


def _ids_scratch_nbytes(ids: Any, *_: Any) -> int:
    return plan_cu_seqlens.cu_seqlens_scratch_nbytes(ids.numel())


_register(
    "cu_seqlens_from_ids(Tensor ids, SymInt max_sequence_num, SymInt? padding_id=None) -> Tensor",
    cu_seqlens.cu_seqlens_from_ids,
    reference.cu_seqlens_from_ids,
    _new_cuts,
    _ids_scratch_nbytes,
)

_register(
    "cu_seqlens_from_positions(Tensor position_ids, SymInt max_sequence_num) -> Tensor",
    cu_seqlens.cu_seqlens_from_positions,
    reference.cu_seqlens_from_positions,
    _new_cuts,
    _ids_scratch_nbytes,
)

_register(
    "spans_from_ids(Tensor ids, SymInt max_span_num, SymInt text_id=-1) -> Tensor",
    cu_seqlens.spans_from_ids,
    reference.spans_from_ids,
    _new_spans,
    _ids_scratch_nbytes,
)


def _pair(entry_num: int, beside: Any) -> tuple[Any, Any]:
    return _int32((entry_num,), beside), _int32((entry_num,), beside)


def _new_padding_cuts(mask: Any) -> tuple[Any, Any]:
    batch, _ = tokens.check_mask_form(*_form(mask))
    return _pair(5 * batch + 1, mask)


def _new_slot_cuts(q: Any, q_padded: Any, k: Any, k_padded: Any) -> tuple[Any, Any]:
    checks.check_cu_seqlens_form("cu_seqlens_q", *_form(q))
    return _pair(3 * (q.shape[0] - 1) + 1, q)


_register(
    "cu_seqlens_from_padding(Tensor mask) -> (Tensor cu_seqlens_q, Tensor cu_seqlens_k)",
    cu_seqlens.cu_seqlens_from_padding,
    reference.cu_seqlens_from_padding,
    _new_padding_cuts,
    lambda mask: plan_cu_seqlens.mask_scratch_nbytes(mask.element_size(), *mask.shape),
)

_register(
    "cu_seqlens_from_slots(Tensor cu_seqlens_q, Tensor cu_seqlens_q_padded, Tensor cu_seqlens_k, "
    "Tensor cu_seqlens_k_padded) -> (Tensor cu_seqlens_q, Tensor cu_seqlens_k)",
    cu_seqlens.cu_seqlens_from_slots,
    reference.cu_seqlens_from_slots,
    _new_slot_cuts,
)
