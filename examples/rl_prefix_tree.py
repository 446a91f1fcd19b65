"""Many answers to one prompt, packed once: attention over prefix trees, as in RL rollouts.

A prompt's tokens are there once, and all of its answers see them.

Needs torch. Without CuPy or a GPU the NumPy reference makes the columns.
Prints how far the result is from that of each conversation, a prompt and one answer, alone.
"""

from importlib.util import find_spec

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from maskq_cupy import reference, tree_attn_mask_q

PROMPTS = [200, 120]  # tokens
ANSWERS = [[30, 50, 20, 40], [60, 10, 80, 35]]
HEADS, HEAD_DIM = 4, 32


def pack() -> tuple[list[int], list[int]]:
    """Return each segment's length and its parent, depth first: a prompt, then its answers."""
    lengths: list[int] = []
    parent: list[int] = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        parent += [-1, *[len(lengths)] * len(answers)]
        lengths += [prompt, *answers]
    return lengths, parent


def main() -> None:
    torch.manual_seed(0)
    lengths, parent = pack()
    cu = np.cumsum([0, *lengths])
    if torch.cuda.is_available() and find_spec("cupy"):
        columns = torch.from_dlpack(tree_attn_mask_q(parent, cu, cu))
    else:
        columns = torch.from_numpy(reference.tree_attn_mask_q(parent, cu, cu))
    lts, ute = columns.T
    row = torch.arange(cu[-1], device=columns.device)[:, None]
    size = (3, 1, HEADS, cu[-1], HEAD_DIM)
    q, k, v = torch.randn(size, dtype=torch.float64, device=columns.device)
    result = scaled_dot_product_attention(q, k, v, attn_mask=(row >= ute) & (row < lts))

    error = unpacked = 0
    for answer, prompt in enumerate(parent):
        if prompt != -1:
            own = np.concatenate([np.arange(cu[s], cu[s + 1]) for s in (prompt, answer)])
            own_q, own_k, own_v = (x[:, :, own] for x in (q, k, v))
            alone = scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True)
            error = max(error, (result[:, :, own] - alone).abs().max().item())
            unpacked += len(own)
    assert error < 1e-12, error
    print(
        f"{cu[-1]} tokens instead of {unpacked}: as each conversation alone "
        f"(largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
