"""The mask of FlashAttention-4's kernels, in its own language: imports flash_attn.cute."""

from typing import Any

import cutlass
from cutlass import cute
from flash_attn.cute import utils


@cute.jit  # type: ignore[untyped-decorator]
def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any, seqlen_info: Any, aux_tensors: Any) -> Any:
    """Is the row shown the key? aux_tensors[0] holds the columns, (N, 2) or (b, h, N, 2).

    One function for every pack: which form it is, is known when the kernel is compiled.
    """
    columns = aux_tensors[0]
    key = kv_idx[0]
    if cutlass.const_expr(cute.rank(columns) == 2):
        lts, ute = columns[key, 0], columns[key, 1]
    else:
        lts, ute = columns[b[0], h[0], key, 0], columns[b[0], h[0], key, 1]
    start, end = utils.scalar_to_ssa(ute, cutlass.Int32), utils.scalar_to_ssa(lts, cutlass.Int32)
    return (q_idx >= start) & (q_idx < end)
