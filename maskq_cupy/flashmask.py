"""FlashMask's ``startend_row_indices`` and lists from columns, as tensors of torch or Paddle."""

import importlib
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from maskq_cupy.checks import check_int, form_error
from maskq_cupy.reference import Blocks

if TYPE_CHECKING:
    import torch

__all__ = [
    "forward_lists",
    "startend_row_indices",
]

Tensor = TypeVar("Tensor")

# What FlashMask's kernel for sm_90 reads of a listed tile: its number, and whether to mask pairs.
_IS_PARTIAL = 1 << 30


@overload
def startend_row_indices(
    columns: Any, heads: int | None = None, *, framework: Literal["torch"]
) -> "torch.Tensor": ...
@overload
def startend_row_indices(
    columns: Tensor, heads: int | None = None, *, framework: None = None
) -> Tensor: ...
@overload
def startend_row_indices(
    columns: Any, heads: int | None = None, *, framework: Literal["paddle"]
) -> Any: ...
def startend_row_indices(
    columns: Any, heads: int | None = None, *, framework: str | None = None
) -> Any:
    """Return columns as FlashMask takes them, with ``causal=False``.

    ``flashmask_attention(q, k, v, startend_row_indices=startend_row_indices(columns),
    causal=False)``: the columns hold causality already. With ``causal=True`` FlashMask would read
    UTE as the end of a hidden run, and say nothing.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE]: a tensor of torch or
            Paddle, or any array with ``__dlpack__``. h counts key heads.
        heads: number of heads of the result; that of the columns, 1 for (N, 2), if None. Columns
            of one head are repeated, for kernels that want a mask for each head.
        framework: ``"torch"`` or ``"paddle"``, for columns of another framework than the result.

    Returns:
        int32 tensor, shape (b, heads, N, 2), C-contiguous. It shares the columns' memory unless
        heads are repeated or the columns are a strided view.

    No launch, no synchronisation; a copy by the framework where memory is not shared.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    shape, dtype = tuple(columns.shape), str(columns.dtype).rpartition(".")[2]
    if dtype != "int32" or len(shape) not in (2, 4) or shape[-1] != 2:
        expected = "int32 of shape (N, 2) or (b, h, N, 2)"
        raise form_error("columns", expected, dtype, shape, ["int32"])
    tensor = _tensor_of(columns, "columns", framework)
    b, h = shape[:2] if len(shape) == 4 else (1, 1)
    tensor = tensor.reshape([b, h, *shape[-2:]])
    count = h if heads is None else check_int(heads, "heads", lowest=1)
    if h not in (1, count):
        raise ValueError(f"heads must be {h}, as of columns of shape {shape}, got {heads}")
    if count != h:
        tensor = tensor.expand([b, count, *shape[-2:]])
    return tensor.contiguous()


def forward_lists(blocks: Blocks, *, framework: str | None = None) -> tuple[Any, Any, Any, Any]:
    """Return lists of tiles as the forward pass of FlashMask's CuTe kernel reads them on sm_90.

    For ``block_sparse_tensors=BlockSparseTensorsPaddle(*forward_lists(blocks))`` beside
    ``startend_row_indices``, in the fork of FlashAttention-4 at PaddlePaddle/flash-attention,
    commit 9985af5. If no lists are given, that kernel makes its own from each tile's least and
    greatest bounds. On an H100, with head_dim 128, the forward pass was 10 to 11 % faster with our
    lists for causal documents at 32 K tokens and for a window at 128 K, and 15 % slower for image
    spans at 128 K. Measure your own case.

    Args:
        blocks: what ``to_blocks(columns, Q, (128, 128))`` returned, of full width. The kernel
            computes tiles of (128, 128) up to head_dim 128, and of (128, 64) above.
        framework: ``"torch"`` or ``"paddle"``, for arrays of another framework than the result.

    Returns:
        Four int32 tensors: counts of partial tiles (b, h, Qt), their numbers (b, h, Qt, Nt) with
        bit 30 set, and of full tiles alike. The counts, and the numbers of full tiles, share the
        memory of the blocks.

    One addition by the framework; no synchronisation.

    Raises:
        ValueError: naming the framework and the array, if that is of neither.
    """
    mask_num, mask_indices, full_num, full_indices = (
        _tensor_of(getattr(blocks, name), f"blocks.{name}", framework)
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    )
    return mask_num, mask_indices + _IS_PARTIAL, full_num, full_indices


def _tensor_of(array: Any, name: str, framework: str | None) -> Any:
    """Return the array as a tensor of the framework, its own if None, without a copy."""
    own = type(array).__module__.partition(".")[0]
    if framework is None:
        framework = own
    if framework not in ("torch", "paddle"):
        raise ValueError(
            'framework must be "torch" or "paddle" where an array is of neither, got '
            f"{framework!r} for {name}"
        )
    if own == framework:
        return array
    package = importlib.import_module("paddle.utils.dlpack" if framework == "paddle" else "torch")
    return package.from_dlpack(array)
