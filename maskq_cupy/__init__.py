"""FlashMask column bounds [LTS, UTE] of a packed batch, on the GPU, for any framework.

`reference` holds the same in NumPy and needs nothing else. The GPU functions import CuPy when one
of them is first asked for; `flex`, which makes FlexAttention's masks, imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from maskq_cupy import reference
from maskq_cupy.plan import (
    blocks_scratch_nbytes,
    excess_scratch_nbytes,
    scratch_nbytes,
    tree_scratch_nbytes,
)
from maskq_cupy.reference import Blocks

if TYPE_CHECKING:
    from maskq_cupy.blocks import to_blocks
    from maskq_cupy.columns import get_attn_mask_q
    from maskq_cupy.excess import excess_pairs
    from maskq_cupy.forms import to_dense, to_four_columns
    from maskq_cupy.launch import warm_up
    from maskq_cupy.tree import tree_attn_mask_q

__version__ = "0.1.0"

__all__ = [
    "Blocks",
    "blocks_scratch_nbytes",
    "excess_pairs",
    "excess_scratch_nbytes",
    "get_attn_mask_q",
    "reference",
    "scratch_nbytes",
    "to_blocks",
    "to_dense",
    "to_four_columns",
    "tree_attn_mask_q",
    "tree_scratch_nbytes",
    "warm_up",
]

# The modules of the functions that need CuPy.
_ON_GPU = {
    "excess_pairs": "excess",
    "get_attn_mask_q": "columns",
    "to_blocks": "blocks",
    "to_dense": "forms",
    "to_four_columns": "forms",
    "tree_attn_mask_q": "tree",
    "warm_up": "launch",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_GPU:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_ON_GPU[name]}")
    globals()[name] = function = getattr(module, name)
    return function
