"""FlexAttention's BlockMask from columns, on torch's current stream and in torch's memory.

In a compiled forward `block_mask` and `packed_block_mask` go through the operators of `torch_ops`,
and take tensors on the CPU too.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from maskq_cupy import checks, gpu, plan, tokens, torch_ops
from maskq_cupy.blocks import layout_of, pointers_of, run_lists, slices_of
from maskq_cupy.call import Call, columns_of
from maskq_cupy.columns import get_attn_mask_q
from maskq_cupy.reference import Blocks
from maskq_cupy.torch_ops import current_stream

__all__ = [
    "ColumnsBlockMask",
    "MaskMod",
    "RefinedMaskMod",
    "as_block_mask",
    "block_mask",
    "mask_mod",
    "packed_block_mask",
    "padded_block_mask",
]


class MaskMod:
    """The function of (b, h, q_idx, kv_idx) by which FlexAttention asks for single pairs.

    A nested function would not pickle or copy; an object of this class does.
    """

    def __init__(self, columns: torch.Tensor) -> None:
        """columns: (N, 2) or (b, h, N, 2)."""
        self._columns = self._bounds = columns
        self._by_batch = self._by_head = False
        if columns.ndim == 4:
            b, h, _, _ = columns.shape
            self._by_batch, self._by_head = b != 1, h != 1
            bounds = columns if self._by_head else columns[:, 0]
            self._bounds = bounds if self._by_batch else bounds[0]

    @property
    def columns(self) -> torch.Tensor:
        """int32 tensor, shape (b, h, N, 2), columns [LTS, UTE]; b or h of 1 stands for all."""
        return self._columns if self._columns.ndim == 4 else self._columns[None, None]

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        bounds = self._bounds
        if self._by_batch and self._by_head:
            lts, ute = bounds[b, h, kv_idx, 0], bounds[b, h, kv_idx, 1]
        elif self._by_batch:
            lts, ute = bounds[b, kv_idx, 0], bounds[b, kv_idx, 1]
        elif self._by_head:
            lts, ute = bounds[h, kv_idx, 0], bounds[h, kv_idx, 1]
        else:
            lts, ute = bounds[kv_idx, 0], bounds[kv_idx, 1]
        return (q_idx >= ute) & (q_idx < lts)


class RefinedMaskMod(MaskMod):
    """A MaskMod that shows a pair if the columns show it and the caller's ``refine`` does too."""

    def __init__(self, columns: torch.Tensor, refine: Callable[..., Any]) -> None:
        super().__init__(columns)
        self.refine = refine

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return super().__call__(b, h, q_idx, kv_idx) & self.refine(b, h, q_idx, kv_idx)


class ColumnsBlockMask(BlockMask):  # type: ignore[misc]  # torch is not there for mypy
    """A BlockMask whose ``mask_mod`` is a MaskMod: its columns go where the lists go.

    ``mask[b]`` and ``mask[b, h]``, with ints or slices, have the columns of that slice. torch's own
    masks lose their ``mask_mod`` there. A mask is narrow if its lists have less room than there are
    tiles: then ``str``, ``to_dense`` and ``mask[b, h]`` work, and ``_adjust`` raises.
    """

    mask_mod: MaskMod

    def to(self, device: torch.device | str) -> "ColumnsBlockMask":
        """Return the mask on a device, its columns too."""
        return self._changed(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Any) -> "ColumnsBlockMask":
        """Return the mask of some batch rows and heads, which stay dimensions of length 1."""
        given = index if isinstance(index, tuple) else (index,)
        if any(part != slice(None) for part in given[2:]):
            raise ValueError(
                "mask[b, h] must not slice rows: make the columns of those rows, with "
                f"maskq_cupy.shard_columns, got {len(given)} indices"
            )
        if self._refine is not None:
            raise ValueError(
                "mask[b, h] must be of columns alone, got a mask with refine=, whose function "
                "would be asked for other batch rows and heads: slice the columns"
            )
        sizes = self.mask_mod.columns.shape
        at = tuple(_kept_dimension(part, n) for part, n in zip(given[:2], sizes, strict=False))
        return self._changed(lambda tensor: tensor[at])

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ColumnsBlockMask":
        """Return the mask with its lists and columns changed alike."""
        lists = Blocks(*[change(getattr(self, name)) for name in Blocks._fields])
        columns = change(self.mask_mod.columns)
        return _of_lists(lists, columns, self.seq_lengths, self.BLOCK_SIZE, self._refine)

    def to_dense(self) -> torch.Tensor:
        """Return which tiles are listed, int32, shape (b, h, Qt, Nt)."""
        _, column_tiles = self._grid
        counts, indices = self.kv_num_blocks, self.kv_indices
        # A last column takes what does not count.
        dense = counts.new_zeros((*counts.shape, column_tiles + 1))
        for num, listed in ((counts, indices), (self.full_kv_num_blocks, self.full_kv_indices)):
            place = torch.arange(listed.shape[-1], device=listed.device)
            at = torch.where(place < num[..., None], listed, column_tiles)
            dense.scatter_(-1, at.long(), 1)
        return dense[..., :column_tiles]

    def _adjust(self, new_q_len: int, new_kv_len: int) -> BlockMask:
        tiles = self._grid
        width = self.kv_indices.shape[-1], self.q_indices.shape[-1]
        if width != tiles[::-1]:
            raise ValueError(
                f"a mask must have lists as wide as there are tiles, {tiles[::-1]}, to be adjusted "
                f"to other lengths, got width={width}: make it of those lengths"
            )
        return super()._adjust(new_q_len, new_kv_len)

    @property
    def _grid(self) -> tuple[int, int]:
        q_token_num, kv_token_num = self.seq_lengths
        return plan.tile_grid(q_token_num, kv_token_num, self.BLOCK_SIZE)

    @property
    def _refine(self) -> Callable[..., Any] | None:
        return getattr(self.mask_mod, "refine", None)


def _kept_dimension(index: Any, length: int) -> Any:
    """Return an index that keeps the dimension: a slice of one for an int."""
    if not isinstance(index, int):
        return index
    if not -length <= index < length:
        raise IndexError(f"mask has {length} there, got index {index}")
    first = index % length
    return slice(first, first + 1)


def mask_mod(columns: Any) -> MaskMod:
    """Return the function of (b, h, q_idx, kv_idx) by which FlexAttention asks for single pairs.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE]: a torch tensor, or
            anything with ``__dlpack__``. The function keeps it alive. b or h of 1 stands for all.

    Returns:
        MaskMod, which pickles, and copies.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return MaskMod(_columns(columns))


def block_mask(
    columns: Any,
    q_token_num: int,
    block_size: int | tuple[int, int] = 128,
    *,
    width: int | tuple[int, int] | None = None,
    refine: Callable[..., Any] | None = None,
) -> ColumnsBlockMask:
    """Return the BlockMask of columns, ready for ``flex_attention``.

    With a ``width`` below what a tile needs, **its list is cut, and so pairs are hidden**:
    ``maskq_cupy.blocks_width`` gives one that is enough for a pack.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on a GPU: a torch tensor,
            or anything with ``__dlpack__``. h counts query heads; b or h of 1 stands for all.
        q_token_num: number of query rows Q, as long as the query tensor.
        block_size: (rows, columns) of a tile, or one int for both; a multiple of what
            ``flex_attention`` computes at a time.
        width: room of the lists, as in ``maskq_cupy.to_blocks``: for ``flex_attention`` compiled
            for a GPU.
        refine: a mask_mod that hides further pairs, for what two columns cannot say. All tiles that
            show a pair are partial then, and ``refine`` is asked for each of their pairs.

    Returns:
        ColumnsBlockMask of shape (b, h, Q, N), with the lists for the forward and the backward
        pass.

    Two launches on torch's current stream; no synchronisation; one allocation, of which all lists
    are parts. All memory is torch's, so that a ``torch.cuda.graph`` captures it after one call
    outside.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    block_size = checks.check_block_size(block_size)
    check_refine(refine)
    tensor, lists = tile_lists(
        columns, q_token_num, block_size, width=width, all_partial=refine is not None
    )
    lengths = q_token_num, tensor.shape[-2]
    return _of_lists(lists, tensor, lengths, block_size, refine)


def check_refine(refine: object) -> None:
    if refine is not None and not callable(refine):
        raise TypeError(
            "refine must be a function of (b, h, q_idx, kv_idx) or None, got "
            f"{type(refine).__name__}"
        )


def tile_lists(
    columns: Any,
    q_token_num: int,
    block_size: tuple[int, int],
    *,
    width: int | tuple[int, int] | None = None,
    all_partial: bool = False,
) -> tuple[torch.Tensor, Blocks]:
    """Return the columns as a tensor, and their lists as `block_mask` holds them."""
    if torch.compiler.is_compiling():
        if width is not None and not columns.is_cuda:
            raise ValueError(
                "width must be None on the CPU, where compiled flex_attention reads lists as wide "
                f"as there are tiles alone, got {width}"
            )
        operator = torch.ops.maskq_cupy.blocks
        lists = operator(columns, q_token_num, block_size, width=width, all_partial=all_partial)
        return columns, Blocks(*lists)
    tensor = on_gpu(columns, "columns")
    row_num = checks.check_int(q_token_num, "q_token_num")
    call = Call({"columns": tensor}, stream=current_stream(tensor))
    source = columns_of(call, checks.check_slices_form)
    layout = layout_of(source.shape, row_num, block_size, width)
    tiles, parts, words, scratch_nbytes = layout
    # Behind the lists, which take 128 bits a tile, 2 of scratch: not worth their own allocation.
    memory = tensor.new_empty(words + scratch_nbytes // 4)
    first = memory.data_ptr()
    run_lists(call, source, tiles, pointers_of(first, layout), first + 4 * words, all_partial)
    return tensor, Blocks(*[memory.as_strided(*part) for part in parts])


def packed_block_mask(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    q_token_num: int,
    kv_token_num: int,
    *,
    block_size: int | tuple[int, int] = 128,
    width: int | tuple[int, int] | None = None,
    refine: Callable[..., Any] | None = None,
    **rule: Any,
) -> ColumnsBlockMask:
    """Return the BlockMask of a packed batch, ready for ``flex_attention``.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, a torch tensor on a GPU.
        cu_seqlens_k: int32 or int64, shape (B + 1,), a torch tensor on the same GPU.
        q_token_num: number of query rows Q, as long as the query tensor; rows after the last
            sequence see nothing.
        kv_token_num: number of key columns N, as long as the key tensor.
        block_size, width, refine: as in ``block_mask``.
        **rule: as in ``get_attn_mask_q``: ``causal``, ``window``, ``num_sink_tokens``, ``align``,
            ``causal_block``, ``chunk_size``, ``spans``, ``attn_mask_kv`` or ``validate``. Arrays
            are torch tensors on the same GPU.

    Returns:
        ColumnsBlockMask of shape (1, 1, Q, N).

    Three or four launches on torch's current stream; no synchronisation unless under
    ``validate=True``. Memory is as in ``block_mask``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    columns = packed_columns(cu_seqlens_q, cu_seqlens_k, kv_token_num, rule)
    return block_mask(columns, q_token_num, block_size, width=width, refine=refine)


def padded_block_mask(
    attention_mask: Any,
    *,
    block_size: int | tuple[int, int] = 128,
    width: int | tuple[int, int] | None = None,
    refine: Callable[..., Any] | None = None,
    **rule: Any,
) -> ColumnsBlockMask:
    """Return the BlockMask of a padded batch, ready for ``flex_attention``.

    Args:
        attention_mask: bool or of an int dtype, shape (b, L), a torch tensor on a GPU: 0 at
            padding, which lies before or behind a batch row's tokens, or both.
        block_size, width, refine: as in ``block_mask``.
        **rule: as in ``packed_block_mask``; each batch row's tokens are a sequence.

    Returns:
        ColumnsBlockMask of shape (b, 1, L, L). Padding sees nothing and is seen by nobody.

    Five launches on torch's current stream, six where batch rows are more than 16 KiB; no
    synchronisation unless under ``validate=True``. Memory is as in ``block_mask``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    mask, operators = attention_mask, torch.ops.maskq_cupy
    if not torch.compiler.is_compiling():
        mask = on_gpu(mask, "attention_mask")
    batch, length = tokens.check_mask_form(_dtype(mask), mask.shape)
    total = batch * length
    cuts_q, cuts_k = operators.cu_seqlens_from_padding(mask)
    columns = packed_columns(cuts_q, cuts_k, total, rule)
    parts = operators.split_columns(columns, batch, total)
    return block_mask(parts, length, block_size, width=width, refine=refine)


def packed_columns(
    cu_seqlens_q: Any, cu_seqlens_k: Any, kv_token_num: int, rule: dict[str, Any]
) -> torch.Tensor:
    """Return the columns of a packed batch, in torch's memory and on torch's current stream."""
    if torch.compiler.is_compiling():
        return torch_ops.packed_columns(cu_seqlens_q, cu_seqlens_k, kv_token_num, **rule)
    cuts_k = on_gpu(cu_seqlens_k, "cu_seqlens_k")
    column_num = checks.check_int(kv_token_num, "kv_token_num")
    columns = cuts_k.new_empty((column_num, 2), dtype=torch.int32)
    scratch = None
    if rule.get("attn_mask_kv") is not None:
        intervals = rule["attn_mask_kv"] = on_gpu(rule["attn_mask_kv"], "attn_mask_kv")
        nbytes = plan.scratch_nbytes(intervals.numel() // 2)
        scratch = cuts_k.new_empty(nbytes, dtype=torch.uint8)
    get_attn_mask_q(
        cu_seqlens_q, cuts_k, kv_token_num=column_num, out=columns, scratch=scratch,
        stream=current_stream(cuts_k), **rule,
    )  # fmt: skip
    return columns


def as_block_mask(
    blocks: Blocks,
    columns: Any,
    q_token_num: int,
    block_size: int | tuple[int, int] = 128,
    *,
    refine: Callable[..., Any] | None = None,
) -> ColumnsBlockMask:
    """Return the BlockMask that holds these lists, which it shares and keeps alive.

    Args:
        blocks: what ``to_blocks(columns, q_token_num, block_size)`` returned, of tensors or of
            arrays with ``__dlpack__``: on a GPU, or from ``reference`` for a run on the CPU, where
            ``flex_attention`` needs lists as wide as there are tiles.
        columns: on the same device.
        q_token_num: number of query rows Q.
        block_size: (rows, columns) of a tile, or one int for both.
        refine: as in ``block_mask``; for lists of ``to_blocks(..., all_partial=True)``.

    No launch, no copy; with ``refine`` a wait, to see that no tile is full.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    tensor = _columns(columns)
    row_num = checks.check_int(q_token_num, "q_token_num")
    block_size = checks.check_block_size(block_size)
    check_refine(refine)
    if not isinstance(blocks, Blocks):
        raise TypeError(f"blocks must be a maskq_cupy.Blocks, got {type(blocks).__name__}")
    lists = Blocks(*map(_tensor, blocks))
    _check_lists(lists, tensor, row_num, block_size)
    if refine is not None and (lists.full_kv_num_blocks.any() or lists.full_q_num_blocks.any()):
        raise ValueError(
            "blocks must have no full tiles where refine is given, which is not asked in them: "
            "make them with to_blocks(..., all_partial=True)"
        )
    return _of_lists(lists, tensor, (row_num, tensor.shape[-2]), block_size, refine)


def _check_lists(
    lists: Blocks, columns: torch.Tensor, row_num: int, block_size: tuple[int, int]
) -> None:
    """Require lists of the mask's shapes, of one width a side, where the columns are."""
    lead, column_num = slices_of(columns.shape), columns.shape[-2]
    tiles = plan.tiles(math.prod(lead), row_num, column_num, block_size)
    widths = [indices.shape[-1] if indices.ndim else 0 for indices in lists[1::4]]
    narrow = min(widths[0], tiles.width[0]), min(widths[1], tiles.width[1])
    shapes = plan.block_shapes(tiles._replace(width=narrow), lead)
    for name, found, shape in zip(Blocks._fields, lists, shapes, strict=True):
        if _dtype(found) != "int32" or found.shape != shape:
            kind = ValueError if _dtype(found) == "int32" else TypeError
            raise kind(
                f"blocks.{name} must be int32 of shape {shape}, for {row_num} rows and "
                f"{column_num} columns in tiles of {block_size}, "
                f"got {_dtype(found)} of shape {tuple(found.shape)}"
            )
        if found.device != columns.device:
            raise ValueError(
                f"blocks.{name} must be where the columns are, on {columns.device}, "
                f"got a tensor on {found.device}"
            )
    if narrow != tiles.width and not columns.is_cuda:
        raise ValueError(
            f"blocks must be as wide as there are tiles, {tiles.width}, on the CPU, where compiled "
            f"flex_attention reads no narrower lists, got width={narrow}"
        )


def _of_lists(
    lists: Blocks,
    columns: torch.Tensor,
    seq_lengths: tuple[int, int],
    block_size: tuple[int, int],
    refine: Callable[..., Any] | None = None,
) -> ColumnsBlockMask:
    mask_mod = MaskMod(columns) if refine is None else RefinedMaskMod(columns, refine)
    return ColumnsBlockMask(seq_lengths, *lists, BLOCK_SIZE=block_size, mask_mod=mask_mod)


def _columns(columns: Any) -> Any:
    """Return columns as a tensor, of a form that the mask can be read from, on any device."""
    if not hasattr(columns, "__dlpack__"):
        raise TypeError(f"columns must be {checks.SLICES}, got {type(columns).__name__}")
    tensor = _tensor(columns)
    checks.check_slices_form(_dtype(tensor), tensor.shape)
    if not tensor.is_contiguous():
        shape = tuple(tensor.shape)
        raise ValueError(f"columns must be C-contiguous, got a strided view of shape {shape}")
    return tensor


def _tensor(array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        return array
    if type(array) is gpu.ndarray and torch.backends.cuda.is_built():
        # What torch does itself, but for its current_stream, which takes 5 us.
        stream = torch._C._cuda_getCurrentRawStream(array.device.id)
        return torch.from_dlpack(array.__dlpack__(stream=stream or _LEGACY_STREAM))
    return torch.from_dlpack(array)


_LEGACY_STREAM = 1  # as DLPack spells it


def on_gpu(array: Any, name: str) -> Any:
    """Return the array as a tensor, which must be on a GPU."""
    if isinstance(array, torch.Tensor) and array.is_cuda:
        return array
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
