"""Packed documents through FlexAttention: each token sees its own document, up to itself.

Needs torch, CuPy and a GPU.
Prints how far result and gradients are from torch's attention of each document alone.
"""

import itertools

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from maskq_cupy import flex

LENGTHS = [1000, 37, 2000, 1, 1058]  # of the documents, in tokens
HEADS, HEAD_DIM = 8, 64


def main() -> None:
    tokens = sum(LENGTHS)
    edges = [*itertools.accumulate(LENGTHS, initial=0)]
    cu_seqlens = torch.tensor(edges, dtype=torch.int32, device="cuda")
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, tokens, HEAD_DIM, device="cuda").unbind()
    inputs = [x.requires_grad_() for x in (q, k, v)]

    # The mask of this batch: no compiling for a new shape, nothing of size tokens x tokens.
    block_mask = flex.packed_block_mask(cu_seqlens, cu_seqlens, tokens, tokens)
    packed = torch.compile(flex_attention)(*inputs, block_mask=block_mask)

    alone = [
        scaled_dot_product_attention(*(x[:, :, start:end] for x in inputs), is_causal=True)
        for start, end in itertools.pairwise(edges)
    ]
    expected = torch.cat(alone, dim=2)
    upstream = torch.randn_like(packed)
    results = (packed, *torch.autograd.grad(packed, inputs, upstream))
    wanted = (expected, *torch.autograd.grad(expected, inputs, upstream))
    error = max((a - b).abs().max().item() for a, b in zip(results, wanted, strict=True))
    assert error < 0.05, error
    print(
        f"{len(LENGTHS)} documents, {tokens} tokens: forward and backward as each document alone "
        f"(largest difference {error:.1e}); {block_mask.sparsity():.0f}% of the tiles skipped"
    )


if __name__ == "__main__":
    main()
