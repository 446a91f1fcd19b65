"""FlashMask column bounds [LTS, UTE] of a packed batch, on the GPU, for any framework.

`reference` holds the same in NumPy and needs nothing else. The GPU functions import CuPy when one
of them is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from maskq_cupy import reference
from maskq_cupy.plan import scratch_nbytes

if TYPE_CHECKING:
    from maskq_cupy.columns import get_attn_mask_q
    from maskq_cupy.excess import excess_pairs
    from maskq_cupy.tree import tree_attn_mask_q

__version__ = "0.1.0"

__all__ = [
    "excess_pairs",
    "get_attn_mask_q",
    "reference",
    "scratch_nbytes",
    "tree_attn_mask_q",
]


# The functions that need CuPy, by the module that is imported when one is first asked for.
_LAZY = {
    "excess_pairs": "excess",
    "get_attn_mask_q": "columns",
    "tree_attn_mask_q": "tree",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = function
    return function
