"""FlashAttention-4 on columns: its mask, its lists of tiles, and a call that is checked.

    arguments = fa4.packed_arguments(cu_seqlens_q, cu_seqlens_k, Q, N, head_dim)
    out = fa4.attention(q, k, v, arguments)       # (1, Q, heads, head_dim), with gradients

Made once, the arguments serve every layer of a step. On torch's current stream, in torch's memory.
"""

import functools
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple, overload

import torch

from maskq_cupy import checks, flex, plan
from maskq_cupy.reference import Blocks

__all__ = [
    "Arguments",
    "arguments",
    "attention",
    "block_size",
    "dq_write_order",
    "packed_arguments",
]

# What the tests ran with. Tiles, and what is refused, are facts of these versions.
TESTED = {"flash-attn-4": "4.0.0b36", "nvidia-cutlass-dsl": "4.8.1"}


class MadeFor(NamedTuple):
    """The call that arguments are made for; ``batch`` and ``heads`` of 1 stand for any number."""

    batch: int
    heads: int  # of the queries
    q_token_num: int
    kv_token_num: int
    head_dim: int
    head_dim_v: int
    device: torch.device
    backward: bool


class Arguments(dict[str, Any]):
    """Keyword arguments of ``flash_attn_func``, which also know what they were made for."""

    def __init__(self, given: dict[str, Any], made_for: MadeFor) -> None:
        super().__init__(given)
        self.made_for = made_for


def block_size(
    head_dim: int, capability: tuple[int, int], head_dim_v: int | None = None, backward: bool = True
) -> tuple[int, int]:
    """Return the (rows, columns) of the tiles that FlashAttention-4 lists on a GPU.

    Args:
        head_dim: of queries and keys, a multiple of 8.
        capability: of the GPU, as ``torch.cuda.get_device_capability()`` returns it.
        head_dim_v: of the values: head_dim if None, the only other case is 128 beside 192.
        backward: are the lists for the backward pass too?

    Raises:
        TypeError, ValueError: where the tested version does not read lists.

    >>> block_size(128, (9, 0)), block_size(192, (10, 0), head_dim_v=128)
    ((128, 128), (256, 256))
    """
    dim = checks.check_int(head_dim, "head_dim", lowest=1)
    dim_v = dim if head_dim_v is None else checks.check_int(head_dim_v, "head_dim_v", lowest=1)
    major, minor = capability
    is_deepseek = (dim, dim_v) == (192, 128)
    if (dim == dim_v and dim % 8 == 0) or is_deepseek:
        if major == 9 and dim <= 256:
            return 128, 128 if dim <= 128 else 96 if dim <= 192 else 64
        if major == 10 and is_deepseek:
            return 256, 256
        if major == 10 and (dim <= 128 or (dim == 256 and not backward)):
            return 256, 128
    raise ValueError(
        "head_dim and head_dim_v must be alike, a multiple of 8 up to 256 on sm_90, up to 128 or "
        "(in a forward pass alone) 256 on sm_10x, or be 192 and 128: FlashAttention-4 "
        f"{TESTED['flash-attn-4']} reads no other lists, got {dim} and {dim_v} on "
        f"sm_{major}{minor}, backward={backward}"
    )


def arguments(
    columns: Any,
    q_token_num: int,
    head_dim: int,
    *,
    head_dim_v: int | None = None,
    width: int | tuple[int, int] | None = None,
    backward: bool = True,
    deterministic: bool = False,
) -> Arguments:
    """Return what ``flash_attn_func(q, k, v, **arguments)`` needs for the mask of columns.

    Args:
        columns: int32, shape (N, 2) or (b, h, N, 2), columns [LTS, UTE], on a GPU of sm_90 or
            sm_10x: a torch tensor, or anything with ``__dlpack__``; kept alive. h counts query
            heads; b or h of 1 stands for all.
        q_token_num: number of query rows Q, as long as the query tensor.
        head_dim: of queries and keys.
        head_dim_v: of the values, head_dim if None.
        width: room of the lists, as in ``to_blocks``.
        backward: make the lists of the backward pass too?
        deterministic: let gradients be the same bits on each run. On sm_10x only, where it was
            compiled but never run; not with a width that may cut a list.

    Returns:
        Arguments, a dict: ``mask_mod``, ``aux_tensors``, the lists, ``causal=False``,
        ``window_size=(None, None)`` and ``deterministic``. The last three are there so that giving
        one of them again is a TypeError. The forward pass would ignore it, but the backward pass
        would apply it on top of the mask, and the gradients would be wrong without an error.

    The launches of ``to_blocks`` on torch's current stream, and a few of torch's under
    ``deterministic=True``; no synchronisation. All memory is torch's, so that a
    ``torch.cuda.graph`` captures it after one call outside, and replays it with other columns.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        ImportError: without FlashAttention-4.
    """
    tensor = flex.on_gpu(columns, "columns")
    row_num = checks.check_int(q_token_num, "q_token_num")
    capability = _capability(tensor.device)
    size = block_size(head_dim, capability, head_dim_v, backward)
    if deterministic:
        tiles = plan.tile_grid(row_num, tensor.shape[-2], size)
        _check_deterministic(capability, width, tiles, backward)
    _, lists = flex.tile_lists(tensor, row_num, size, width=width)
    head_dims = (head_dim, head_dim_v or head_dim)
    return _of_lists(tensor, lists, row_num, head_dims, size, backward, deterministic)


def packed_arguments(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    q_token_num: int,
    kv_token_num: int,
    head_dim: int,
    *,
    head_dim_v: int | None = None,
    width: int | tuple[int, int] | None = None,
    backward: bool = True,
    deterministic: bool = False,
    **rule: Any,
) -> Arguments:
    """Return the arguments for a packed batch, as `arguments` does for its columns.

    Args:
        cu_seqlens_q: int32 or int64, shape (B + 1,) or longer, a torch tensor on a GPU.
        cu_seqlens_k: int32 or int64, shape (B + 1,), a torch tensor on the same GPU.
        q_token_num: number of query rows Q, as long as the query tensor.
        kv_token_num: number of key columns N, as long as the key tensor.
        head_dim, head_dim_v, width, backward, deterministic: as in ``arguments``.
        **rule: the mask, as in ``get_attn_mask_q``: ``window``, ``attn_mask_kv``, ``validate``...

    Returns:
        Arguments, as `arguments` does.

    The launches of ``get_attn_mask_q`` and of `arguments`; no synchronisation unless under
    ``validate=True``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        ImportError: without FlashAttention-4.
    """
    columns = flex.packed_columns(cu_seqlens_q, cu_seqlens_k, kv_token_num, rule)
    return arguments(
        columns, q_token_num, head_dim, head_dim_v=head_dim_v, width=width, backward=backward,
        deterministic=deterministic,
    )  # fmt: skip


@overload
def attention(
    q: Any, k: Any, v: Any, arguments: Arguments, *, return_lse: Literal[True], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def attention(q: Any, k: Any, v: Any, arguments: Arguments, **options: Any) -> torch.Tensor: ...
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(q: Any, k: Any, v: Any, arguments: Arguments, **options: Any) -> Any:
    """Return the attention of queries to keys and values, by FlashAttention-4 with our lists.

    Args:
        q: float16 or bfloat16, shape (batch, Q, heads, head_dim), on the GPU of the arguments.
        k: the same dtype, shape (batch, N, key heads, head_dim); its heads divide those of q.
        v: the same dtype, shape (batch, N, key heads, head_dim_v).
        arguments: what `arguments` or `packed_arguments` returned.
        **options: other arguments of ``flash_attn_func``, such as ``softmax_scale=``.

    Returns:
        Tensor of q's dtype, shape (batch, Q, heads, head_dim_v); with ``return_lse=True`` a pair
        of it and the logarithms of the sums, float32, shape (batch, heads, Q). A row that sees
        nothing is 0.

    Gradients flow to q, k and v. The call breaks the graph of a model under ``torch.compile``.

    Raises:
        TypeError, ValueError: if the tensors are not those that the arguments were made for, or if
            FlashAttention-4 cannot do with lists what the options ask for. They are raised before
            it compiles anything.
    """
    if not isinstance(arguments, Arguments):
        raise TypeError(
            "arguments must be what fa4.arguments or fa4.packed_arguments returned, got "
            f"{type(arguments).__name__}"
        )
    _check_options(arguments, options)
    _check_tensors(q, k, v, arguments.made_for)
    from flash_attn.cute import flash_attn_func

    out, lse = flash_attn_func(q, k, v, **arguments, **options)
    return (out, lse) if options.get("return_lse") else out


def dq_write_order(lists: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order in which column tiles add to the gradient of a row tile.

    Args:
        lists: of tensors; no list cut by its width.

    Returns:
        Two int32 tensors, of the shapes of ``q_indices`` and ``full_q_indices``: for a listed row
        tile, how many column tiles that list it, partial or full, come before this one. What lies
        behind the counted entries means nothing.
    """
    b, h, row_tiles = lists.kv_num_blocks.shape
    column_tiles, device = lists.q_num_blocks.shape[-1], lists.q_indices.device
    first_row = row_tiles * torch.arange(b * h, device=device).view(b, h, 1, 1)
    column = torch.arange(column_tiles, device=device).unsqueeze(-1)
    # Row by row the listed columns ascend: with column_tiles behind them, and each row's number in
    # front, they ascend as a whole, so that one search in all of them finds a place in any row.
    step = column_tiles + 1
    lines = []
    for counts, indices in (
        (lists.kv_num_blocks, lists.kv_indices),
        (lists.full_kv_num_blocks, lists.full_kv_indices),
    ):
        width = indices.shape[-1]
        is_listed = torch.arange(width, device=device) < counts.unsqueeze(-1)
        row = first_row + torch.arange(row_tiles, device=device).unsqueeze(-1)
        lines.append((torch.where(is_listed, indices, column_tiles) + step * row, width))
    order = []
    for indices in (lists.q_indices, lists.full_q_indices):
        row = first_row + indices
        before = sum(
            torch.searchsorted(line.flatten(), step * row + column) - width * row
            for line, width in lines
        )
        order.append(before.to(torch.int32))
    return order[0], order[1]


def _of_lists(
    columns: torch.Tensor,
    lists: Blocks,
    q_token_num: int,
    head_dims: tuple[int, int],
    size: tuple[int, int],
    backward: bool,
    deterministic: bool,
) -> Arguments:
    """Return the arguments that hold these lists, of tiles of that size."""
    BlockSparseTensorsTorch, mask_mod = _flash_attention()
    by_row = BlockSparseTensorsTorch(
        lists.kv_num_blocks, lists.kv_indices, lists.full_kv_num_blocks, lists.full_kv_indices,
        block_size=size,
    )  # fmt: skip
    by_column = None
    if backward:
        ordered = {}
        if deterministic:
            partial, full = dq_write_order(lists)
            ordered = {"dq_write_order": partial, "dq_write_order_full": full, "spt": False}
        by_column = BlockSparseTensorsTorch(
            lists.q_num_blocks, lists.q_indices, lists.full_q_num_blocks, lists.full_q_indices,
            block_size=size, **ordered,
        )  # fmt: skip
    given = {
        "mask_mod": mask_mod,
        "aux_tensors": [_broadcast(columns)],
        "block_sparse_tensors": by_row,
        "block_sparse_tensors_bwd": by_column,
        "causal": False,
        "window_size": (None, None),
        "deterministic": deterministic,
    }
    batch, heads = columns.shape[:2] if columns.dim() == 4 else (1, 1)
    made_for = MadeFor(
        *(batch, heads, q_token_num, columns.shape[-2], *head_dims), columns.device, backward
    )
    return Arguments(given, made_for)


def _broadcast(columns: torch.Tensor) -> torch.Tensor:
    """Return columns that the kernel may ask for any batch row and head that they stand for."""
    if columns.dim() == 2:
        return columns
    if columns.shape[:2] == (1, 1):
        return columns[0, 0]
    # A stride of 0, which a size of 1 does not keep on its way to the kernel, a size of 2 does. No
    # kernel reads the sizes.
    return columns.expand(*(2 if n == 1 else n for n in columns.shape[:2]), -1, -1)


# Both take some microseconds each time that they are asked.
_capability = functools.cache(torch.cuda.get_device_capability)


@functools.cache
def _flash_attention() -> tuple[Any, Any]:
    """Return the kernel's type of lists, and our mask as it compiles it."""
    _warn_of_versions()
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    from maskq_cupy.fa4_mask import mask_mod

    return BlockSparseTensorsTorch, mask_mod


def _warn_of_versions() -> None:
    """Say once where FlashAttention-4 is not of the versions that the tests ran with."""
    try:
        found = {name: version(name) for name in TESTED}
    except PackageNotFoundError as error:
        raise ImportError(
            'maskq_cupy.fa4 needs FlashAttention-4: pip install "maskq-cupy[fa4]" (and '
            '"flash-attn-4[cu13]" beside cuda13x)'
        ) from error
    if found != TESTED:
        tested, now = (", ".join(map(" ".join, pairs.items())) for pairs in (TESTED, found))
        message = f"maskq_cupy.fa4 was tested with {tested}; found {now}"
        warnings.warn(message, stacklevel=5)


def _check_deterministic(
    capability: tuple[int, int],
    width: int | tuple[int, int] | None,
    tiles: tuple[int, int],
    backward: bool,
) -> None:
    """Require what FlashAttention-4's deterministic backward pass needs; tiles: (Qt, Nt)."""
    if capability[0] != 10:
        raise ValueError(
            "deterministic must be False off sm_10x: FlashAttention-4 has no deterministic "
            f"backward pass with lists there, got True on sm_{capability[0]}{capability[1]}"
        )
    if not backward:
        raise ValueError("deterministic must be False without a backward pass, got True")
    if width is None:
        return
    of_row, of_column = (width, width) if isinstance(width, int) else width
    if of_row < tiles[1] or of_column < tiles[0]:
        raise ValueError(
            f"deterministic must be False where width may cut a list, got width={width!r} below "
            f"{(tiles[1], tiles[0])}: a row tile would wait for a column tile that is not listed"
        )


_OF_VARLEN = (
    *("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k"),
    *("max_seqlen_q", "max_seqlen_k", "min_seqlen_k", "page_table"),
)


def _check_options(arguments: Arguments, options: dict[str, Any]) -> None:
    """Require that no option repeats an argument or asks for what lists exclude."""
    for name, value in options.items():
        if name in arguments:
            raise TypeError(f"{name} is one of the arguments already, got {name}={value!r} too")
        if name in _OF_VARLEN:
            raise TypeError(f"{name} cannot be given: the columns know where sequences begin")
        if name in ("qv", "gather_kv_indices") and value is not None:
            raise TypeError(f"{name} cannot be given: FlashAttention-4 reads no lists with it")
    if options.get("num_splits", 1) != 1:
        raise ValueError(f"num_splits must be 1 with lists, got {options['num_splits']}")


def _check_tensors(q: Any, k: Any, v: Any, made_for: MadeFor) -> None:
    """Require the tensors that the arguments were made for."""
    batch, heads, q_token_num, kv_token_num, head_dim, head_dim_v, device, backward = made_for
    for name, tensor, sizes in (
        ("q", q, (batch, q_token_num, heads, head_dim)),
        ("k", k, (batch, kv_token_num, 1, head_dim)),
        ("v", v, (batch, kv_token_num, 1, head_dim_v)),
    ):
        _check_shape(name, tensor, sizes)
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} as the arguments, got {tensor.device}")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must be {q.dtype} as q, got {tensor.dtype}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "q, k and v must have one batch, and k and v as many heads, which divide q's, got "
            f"shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    needs_gradient = any(tensor.requires_grad for tensor in (q, k, v))
    is_fp8 = q.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    if not is_fp8 and q.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"q must be float16 or bfloat16, got {q.dtype}")
    if is_fp8 and needs_gradient:
        raise TypeError(f"q, k and v must not need gradients in {q.dtype}, which has none")
    if needs_gradient and torch.is_grad_enabled() and not backward:
        raise ValueError("the arguments were made with backward=False, got tensors with gradients")


def _check_shape(name: str, tensor: Any, sizes: tuple[int, int, int, int]) -> None:
    """Require a tensor of these sizes; 1 for the batch or the heads stands for any number."""
    batch, tokens, heads, dim = sizes
    shape = tuple(tensor.shape)
    fits = len(shape) == 4 and shape[1] == tokens and shape[3] == dim
    if not fits or (batch != 1 and shape[0] != batch) or (heads != 1 and shape[2] != heads):
        expected = ("batch" if batch == 1 else batch, tokens, "heads" if heads == 1 else heads, dim)
        form = ", ".join(map(str, expected))
        raise ValueError(f"{name} must be of shape ({form}) as the arguments, got {shape}")
