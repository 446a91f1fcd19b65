"""FlashMask column bounds [LTS, UTE] of a packed batch, on the GPU, for any framework.

`reference` holds the same in NumPy and needs nothing else. CuPy is imported by the first call that
computes on the GPU; `flex`, which makes FlexAttention's masks, and `torch_ops`, which has the
functions as torch operators, import torch.
"""

from maskq_cupy import cp, reference
from maskq_cupy.blocks import to_blocks
from maskq_cupy.columns import get_attn_mask_q
from maskq_cupy.compiler import warm_up
from maskq_cupy.cu_seqlens import (
    cu_seqlens_from_ids,
    cu_seqlens_from_padding,
    cu_seqlens_from_positions,
    cu_seqlens_from_slots,
    spans_from_ids,
)
from maskq_cupy.excess import excess_pairs
from maskq_cupy.forms import split_columns, to_dense, to_four_columns
from maskq_cupy.plan import (
    blocks_scratch_nbytes,
    excess_scratch_nbytes,
    scratch_nbytes,
    shard_scratch_nbytes,
    tree_scratch_nbytes,
)
from maskq_cupy.plan_cu_seqlens import cu_seqlens_scratch_nbytes
from maskq_cupy.reference import Blocks, CuSeqlens, TreeOrder, blocks_width, tree_order
from maskq_cupy.shards import needed_keys, shard_columns
from maskq_cupy.tree import tree_attn_mask_q

__version__ = "0.2.0"

__all__ = [
    "Blocks",
    "CuSeqlens",
    "TreeOrder",
    "blocks_scratch_nbytes",
    "blocks_width",
    "cp",
    "cu_seqlens_from_ids",
    "cu_seqlens_from_padding",
    "cu_seqlens_from_positions",
    "cu_seqlens_from_slots",
    "cu_seqlens_scratch_nbytes",
    "excess_pairs",
    "excess_scratch_nbytes",
    "get_attn_mask_q",
    "needed_keys",
    "reference",
    "scratch_nbytes",
    "shard_columns",
    "shard_scratch_nbytes",
    "spans_from_ids",
    "split_columns",
    "to_blocks",
    "to_dense",
    "to_four_columns",
    "tree_attn_mask_q",
    "tree_order",
    "tree_scratch_nbytes",
    "warm_up",
]
