"""FlexAttention's BlockMask from columns, on torch's current stream and in torch's memory."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from maskq_cupy import checks, plan
from maskq_cupy.blocks import list_starts, write_lists
from maskq_cupy.columns import get_attn_mask_q
from maskq_cupy.reference import Blocks


def mask_mod(columns: Any) -> Callable[[Any, Any, Any, Any], Any]:
    """Return the function of (b, h, q_idx, kv_idx) by which FlexAttention asks for single pairs.

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE]: a torch tensor, or
            anything with ``__dlpack__``. The function keeps it alive.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return _mask_mod(_columns(columns))


def _mask_mod(columns: Any) -> Callable[[Any, Any, Any, Any], Any]:
    bounds = columns.view(-1, 2)

    def shown(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx >= bounds[kv_idx, 1]) & (q_idx < bounds[kv_idx, 0])

    return shown


def block_mask(
    columns: Any, q_token_num: int, block_size: int | tuple[int, int] = 128
) -> BlockMask:
    """Return the BlockMask of columns, ready for ``flex_attention``.

    Args:
        columns: int32, shape (N, 2) or (1, 1, N, 2), columns [LTS, UTE], on a GPU: a torch tensor,
            or anything with ``__dlpack__``.
        q_token_num: number of query rows Q, as long as the query tensor.
        block_size: (rows, columns) of a tile, or one int for both; a multiple of what
            ``flex_attention`` computes at a time.

    Returns:
        BlockMask of shape (1, 1, Q, N), with the lists for the forward and the backward pass.

    Two launches on torch's current stream; no synchronisation; one allocation, of which all lists
    are parts. All memory is torch's, so that a ``torch.cuda.graph`` captures it after one call
    outside.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    tensor = on_gpu(columns, "columns")
    row_num = checks.check_int(q_token_num, "q_token_num")
    block_size = checks.check_block_size(block_size)
    return _of_lists(tile_lists(tensor, row_num, block_size), tensor, row_num, block_size)


def tile_lists(tensor: torch.Tensor, row_num: int, block_size: tuple[int, int]) -> Blocks:
    """Return the lists of columns on a GPU as `block_mask` holds them; numbers are checked."""
    column_num = checks.check_columns_form(_dtype(tensor), tensor.shape)
    parts, scratch_start, words = _layout(row_num, column_num, block_size)
    memory = torch.empty(words, dtype=torch.int32, device=tensor.device)
    first = memory.data_ptr()
    pointers = Blocks(*[first + 4 * start for _, _, start in parts])
    scratch = first + 4 * scratch_start
    write_lists(tensor, row_num, block_size, pointers, scratch, _current_stream(tensor))
    return Blocks(*[memory.as_strided(*part) for part in parts])


def packed_block_mask(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    q_token_num: int,
    kv_token_num: int,
    *,
    block_size: int | tuple[int, int] = 128,
    **rule: Any,
) -> BlockMask:
    """Return the BlockMask of a packed batch, ready for ``flex_attention``.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, a torch tensor on a GPU.
        cu_seqlens_k: int32 or int64, shape (B + 1,), a torch tensor on the same GPU.
        q_token_num: number of query rows Q, as long as the query tensor; rows after the last
            sequence see nothing.
        kv_token_num: number of key columns N, as long as the key tensor.
        block_size: as in ``block_mask``.
        **rule: as in ``get_attn_mask_q``: ``causal``, ``window``, ``num_sink_tokens``, ``align``,
            ``causal_block``, ``chunk_size``, ``spans``, ``attn_mask_kv`` or ``validate``. Arrays
            are torch tensors on the same GPU.

    Three or four launches on torch's current stream; no synchronisation unless under
    ``validate=True``. Memory and errors are those of ``block_mask``.
    """
    columns = packed_columns(cu_seqlens_q, cu_seqlens_k, kv_token_num, rule)
    return block_mask(columns, q_token_num, block_size)


def packed_columns(
    cu_seqlens_q: Any, cu_seqlens_k: Any, kv_token_num: int, rule: dict[str, Any]
) -> torch.Tensor:
    """Return the columns of a packed batch, in torch's memory and on torch's current stream."""
    cuts_k = on_gpu(cu_seqlens_k, "cu_seqlens_k")
    column_num = checks.check_int(kv_token_num, "kv_token_num")
    columns = torch.empty((column_num, 2), dtype=torch.int32, device=cuts_k.device)
    scratch = None
    if rule.get("attn_mask_kv") is not None:
        intervals = rule["attn_mask_kv"] = on_gpu(rule["attn_mask_kv"], "attn_mask_kv")
        nbytes = plan.scratch_nbytes(intervals.numel() // 2)
        scratch = torch.empty(nbytes, dtype=torch.uint8, device=cuts_k.device)
    get_attn_mask_q(
        cu_seqlens_q, cuts_k, kv_token_num=column_num, out=columns, scratch=scratch,
        stream=_current_stream(cuts_k), **rule,
    )  # fmt: skip
    return columns


def as_block_mask(
    blocks: Blocks, columns: Any, q_token_num: int, block_size: int | tuple[int, int] = 128
) -> BlockMask:
    """Return the BlockMask that holds these lists, which it shares and keeps alive.

    Args:
        blocks: what ``to_blocks(columns, q_token_num, block_size)`` returned, of tensors or of
            arrays with ``__dlpack__``: on a GPU, or from ``reference`` for a run on the CPU.
        columns: on the same device.
        q_token_num: number of query rows Q.
        block_size: (rows, columns) of a tile, or one int for both.

    No launch, no copy.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    tensor = _columns(columns)
    row_num = checks.check_int(q_token_num, "q_token_num")
    block_size = checks.check_block_size(block_size)
    if not isinstance(blocks, Blocks):
        raise TypeError(f"blocks must be a maskq_cupy.Blocks, got {type(blocks).__name__}")
    lists = Blocks(*map(_tensor, blocks))
    shapes = plan.block_shapes(*plan.tile_grid(row_num, tensor.shape[-2], block_size))
    for name, found, shape in zip(Blocks._fields, lists, shapes, strict=True):
        if _dtype(found) != "int32" or found.shape != shape:
            kind = ValueError if _dtype(found) == "int32" else TypeError
            raise kind(
                f"blocks.{name} must be int32 of shape {shape}, for {row_num} rows and "
                f"{tensor.shape[-2]} columns in tiles of {block_size}, "
                f"got {_dtype(found)} of shape {tuple(found.shape)}"
            )
        if found.device != tensor.device:
            raise ValueError(
                f"blocks.{name} must be where the columns are, on {tensor.device}, "
                f"got a tensor on {found.device}"
            )
    return _of_lists(lists, tensor, row_num, block_size)


def _of_lists(
    lists: Blocks, columns: Any, q_token_num: int, block_size: tuple[int, int]
) -> BlockMask:
    return BlockMask(
        seq_lengths=(q_token_num, columns.shape[-2]),
        **lists._asdict(),
        BLOCK_SIZE=block_size,
        mask_mod=_mask_mod(columns),
    )


def _columns(columns: Any) -> Any:
    """Return columns as a tensor, of a form that the mask can be read from, on any device."""
    if not hasattr(columns, "__dlpack__"):
        raise TypeError(f"columns must be {checks.COLUMNS}, got {type(columns).__name__}")
    tensor = _tensor(columns)
    checks.check_columns_form(_dtype(tensor), tensor.shape)
    if not tensor.is_contiguous():
        shape = tuple(tensor.shape)
        raise ValueError(f"columns must be C-contiguous, got a strided view of shape {shape}")
    return tensor


def _tensor(array: Any) -> Any:
    return array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)


def on_gpu(array: Any, name: str) -> Any:
    """Return the array as a tensor, which must be on a GPU."""
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"{name} must be a torch tensor on a GPU, got {type(array).__name__}")
    tensor = _tensor(array)
    if not tensor.is_cuda:
        raise TypeError(
            f"{name} must be on a GPU, got a tensor on {tensor.device}: as_block_mask makes a "
            "BlockMask of what maskq_cupy.reference.to_blocks returns"
        )
    return tensor


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _current_stream(tensor: Any) -> int:
    """Return the pointer of torch's current stream on the tensor's device."""
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())


Part = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and start of a tensor


@lru_cache
def _layout(
    row_num: int, column_num: int, block_size: tuple[int, int]
) -> tuple[list[Part], int, int]:
    """Return the lists' parts of one piece of memory, where its scratch starts, and its length.

    In 32-bit words. Known by its numbers alone, which most calls repeat.
    """
    shapes = plan.block_shapes(*plan.tile_grid(row_num, column_num, block_size))
    *starts, end = list_starts(shapes)
    parts = [(shape, _strides(shape), start) for shape, start in zip(shapes, starts, strict=True)]
    # Behind the lists, which take 128 bits a tile, 2 of scratch: not worth their own allocation.
    return parts, end, end + plan.blocks_scratch_nbytes(row_num, column_num, block_size) // 4


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides that torch.empty gives a tensor of that shape."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * (length or 1))
    return tuple(strides[::-1])
