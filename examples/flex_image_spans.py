"""Images in a text through FlexAttention: text is causal, an image's tokens see all of the image.

Each row says which keys it sees, as an interval [start, end).

Needs torch, CuPy and a GPU.
Prints how far the result is from that of a dense mask, and how many tiles are skipped.
"""

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from maskq_cupy import flex

TOKENS = 2048
IMAGES = [(100, 676), (900, 1476)]  # tokens [first, end) of each image
HEADS, HEAD_DIM = 8, 64


def intervals() -> torch.Tensor:
    """Return the keys [start, end) of each row: up to itself, or up to the end of its image."""
    end = torch.arange(1, TOKENS + 1, dtype=torch.int32, device="cuda")
    for first, image_end in IMAGES:
        end[first:image_end] = image_end
    return torch.stack([torch.zeros_like(end), end], dim=1)


def main() -> None:
    cu_seqlens = torch.tensor([0, TOKENS], dtype=torch.int32, device="cuda")
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, TOKENS, HEAD_DIM, device="cuda").unbind()
    rows = intervals()

    block_mask = flex.packed_block_mask(cu_seqlens, cu_seqlens, TOKENS, TOKENS, attn_mask_kv=rows)
    packed = torch.compile(flex_attention)(q, k, v, block_mask=block_mask)

    key = torch.arange(TOKENS, device="cuda")
    dense = (key >= rows[:, :1]) & (key < rows[:, 1:])
    expected = scaled_dot_product_attention(q, k, v, attn_mask=dense)
    error = (packed - expected).abs().max().item()
    assert error < 0.02, error
    print(
        f"{TOKENS} tokens with {len(IMAGES)} images: as with the dense mask "
        f"(largest difference {error:.1e}); {block_mask.sparsity():.0f}% of the tiles skipped"
    )


if __name__ == "__main__":
    main()
