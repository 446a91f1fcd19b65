"""FlashMask column bounds [LTS, UTE] of a packed batch, on the GPU, for any framework.

`reference` holds the same in NumPy and needs nothing else. The GPU functions import CuPy when one
of them is first asked for.
"""

from typing import TYPE_CHECKING, Any

from maskq_cupy import reference
from maskq_cupy.plan import scratch_nbytes

if TYPE_CHECKING:
    from maskq_cupy.columns import get_attn_mask_q

__version__ = "0.1.0"

__all__ = ["get_attn_mask_q", "reference", "scratch_nbytes"]


def __getattr__(name: str) -> Any:
    if name != "get_attn_mask_q":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from maskq_cupy import columns

    globals()[name] = columns.get_attn_mask_q
    return columns.get_attn_mask_q
