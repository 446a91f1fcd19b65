"""FlashMask column bounds [LTS, UTE] of a packed batch, on the GPU, for any framework.

`reference` holds the same in NumPy and needs nothing else. CuPy is imported by the first call that
computes on the GPU; `flex`, which makes FlexAttention's masks, imports torch.
"""

from maskq_cupy import cp, reference
from maskq_cupy.blocks import to_blocks
from maskq_cupy.columns import get_attn_mask_q
from maskq_cupy.compiler import warm_up
from maskq_cupy.excess import excess_pairs
from maskq_cupy.forms import to_dense, to_four_columns
from maskq_cupy.plan import (
    blocks_scratch_nbytes,
    excess_scratch_nbytes,
    scratch_nbytes,
    shard_scratch_nbytes,
    tree_scratch_nbytes,
)
from maskq_cupy.reference import Blocks, TreeOrder, tree_order
from maskq_cupy.shards import needed_keys, shard_columns
from maskq_cupy.tree import tree_attn_mask_q

__version__ = "0.1.0"

__all__ = [
    "Blocks",
    "TreeOrder",
    "blocks_scratch_nbytes",
    "cp",
    "excess_pairs",
    "excess_scratch_nbytes",
    "get_attn_mask_q",
    "needed_keys",
    "reference",
    "scratch_nbytes",
    "shard_columns",
    "shard_scratch_nbytes",
    "to_blocks",
    "to_dense",
    "to_four_columns",
    "tree_attn_mask_q",
    "tree_order",
    "tree_scratch_nbytes",
    "warm_up",
]
