"""Heads of two kinds in one call: some see all of their document so far, others a window of it.

Needs torch. With CuPy and a GPU flex_attention takes the columns. Without, the NumPy reference
makes them, and a dense mask of them is used.
Prints how far the result is from that of each kind of heads by itself.
"""

import itertools
from importlib.util import find_spec

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskq_cupy
from maskq_cupy import flex, reference

LENGTHS = [300, 37, 600, 151]  # of the documents, in tokens
KINDS = ({}, {"window": (127, 0)})  # full, sliding
KIND_OF_HEAD = [0, 1, 1, 1, 0, 1, 1, 1]
HEAD_DIM = 64


def main() -> None:
    has_gpu = torch.cuda.is_available() and find_spec("cupy") is not None
    device, mq = ("cuda", maskq_cupy) if has_gpu else ("cpu", reference)
    tokens = sum(LENGTHS)
    edges = [*itertools.accumulate(LENGTHS, initial=0)]
    cu_seqlens = torch.tensor(edges, dtype=torch.int32, device=device)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, len(KIND_OF_HEAD), tokens, HEAD_DIM, device=device).unbind()

    # Columns of each kind, (1, kinds, N, 2), and then of each head, (1, heads, N, 2).
    made = [mq.get_attn_mask_q(cu_seqlens, cu_seqlens, kv_token_num=tokens, **r) for r in KINDS]
    kinds = torch.stack([torch.as_tensor(columns, device=device) for columns in made])[None]
    columns = kinds.index_select(1, torch.tensor(KIND_OF_HEAD, device=device))
    if has_gpu:
        mask = flex.block_mask(columns, tokens)
        result = torch.compile(flex_attention)(q, k, v, block_mask=mask)
    else:
        dense = torch.as_tensor(reference.to_dense(columns, tokens))
        result = scaled_dot_product_attention(q, k, v, attn_mask=dense)

    error = 0.0
    for kind in range(len(KINDS)):
        heads = [h for h, of_head in enumerate(KIND_OF_HEAD) if of_head == kind]
        dense = torch.as_tensor(mq.to_dense(kinds[0, kind], tokens), device=device)
        own = (x[:, heads] for x in (q, k, v))
        expected = scaled_dot_product_attention(*own, attn_mask=dense)
        error = max(error, (result[:, heads] - expected).abs().max().item())
    assert error < 0.05, error
    print(
        f"{len(KIND_OF_HEAD)} heads of {len(KINDS)} kinds, {tokens} tokens, on the {device}: "
        f"as each kind by itself (largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
