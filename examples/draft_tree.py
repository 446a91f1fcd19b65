"""Speculative decoding: a tree of draft tokens is verified in one call, behind a cached prompt.

The drafts come level by level and their outputs go back so; in between, all is in depth-first
order.

Needs torch. Without CuPy or a GPU the NumPy reference makes the mask.
Prints how far the result is from that of each draft's path alone.
"""

from importlib.util import find_spec

import torch
from torch.nn.functional import scaled_dot_product_attention

import maskq_cupy
from maskq_cupy import reference, tree_order

PROMPT = 100  # cached tokens: keys without rows
# Segment 0 is the prompt, the others are drafts of a token each, level by level.
PARENT = [-1, 0, 0, 1, 1, 2, 4]
HEADS, HEAD_DIM = 4, 32


def path(segment: int) -> list[int]:
    """Return the keys of a draft's path: the prompt's, its ancestors', its own."""
    above = [*range(PROMPT)] if PARENT[segment] == 0 else path(PARENT[segment])
    return [*above, PROMPT + segment - 1]


def main() -> None:
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available() and find_spec("cupy") is not None
    drafts = len(PARENT) - 1
    size, device = (1, HEADS, PROMPT + drafts, HEAD_DIM), "cuda" if on_gpu else "cpu"
    k, v = torch.randn(2, *size, dtype=torch.float64, device=device)
    q = torch.randn(*size, dtype=torch.float64, device=device)[:, :, PROMPT:]

    order, parent, inverse = tree_order(PARENT)
    cu_q = [max(segment - 1, 0) for segment in range(drafts + 2)]
    cu_k = [0, *range(PROMPT, PROMPT + drafts + 1)]
    package = maskq_cupy if on_gpu else reference
    columns = package.tree_attn_mask_q(parent, cu_q, cu_k)
    mask = torch.from_dlpack(package.to_dense(columns, drafts))

    rows = torch.from_numpy(order[1:] - 1).to(device)  # of the drafts, without the prompt
    keys = torch.cat([torch.arange(PROMPT, device=device), PROMPT + rows])
    result = scaled_dot_product_attention(q[:, :, rows], k[:, :, keys], v[:, :, keys], mask)
    result = result[:, :, inverse[1:] - 1]  # level by level again

    error = 0.0
    for draft in range(drafts):
        own = path(draft + 1)
        alone = scaled_dot_product_attention(q[:, :, draft : draft + 1], k[:, :, own], v[:, :, own])
        error = max(error, (result[:, :, draft : draft + 1] - alone).abs().max().item())
    assert error < 1e-12, error
    print(f"{drafts} drafts in one call: as each path alone (largest difference {error:.1e})")


if __name__ == "__main__":
    main()
