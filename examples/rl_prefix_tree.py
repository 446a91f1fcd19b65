"""Many answers to one prompt, packed once: attention over a prefix tree, as in RL rollouts.

Two prompts, four sampled answers each. Packed as trees, a prompt's tokens are there once and all
its answers see them; packed as sequences, once an answer. Attention gives the same for each answer.
"""

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from maskq_cupy import reference

PROMPT_LENS = [200, 120]
ANSWER_LENS = [[30, 50, 20, 40], [60, 10, 80, 35]]


def pack_trees():
    """Return each segment's length and parent, depth first: a prompt, then its answers."""
    lens, parent = [], []
    for prompt_len, answer_lens in zip(PROMPT_LENS, ANSWER_LENS, strict=True):
        prompt = len(lens)
        lens += [prompt_len, *answer_lens]
        parent += [-1, *[prompt] * len(answer_lens)]
    return lens, parent


def columns_on(device, parent, cu):
    """Return [LTS, UTE] of each token as a key: by the GPU function where there is a GPU."""
    if device == "cpu":
        return torch.from_numpy(reference.tree_attn_mask_q(parent, cu, cu))
    from maskq_cupy import tree_attn_mask_q

    return torch.from_dlpack(tree_attn_mask_q(parent, cu, cu))


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lens, parent = pack_trees()
    cu = np.cumsum([0, *lens])
    lts, ute = columns_on(device, parent, cu).T
    row = torch.arange(cu[-1], device=device)[:, None]
    q, k, v = torch.randn(3, 1, 4, cu[-1], 32, dtype=torch.float64, device=device)
    packed = scaled_dot_product_attention(q, k, v, attn_mask=(row >= ute) & (row < lts))

    worst, unpacked = 0.0, 0
    for answer, prompt in enumerate(parent):
        if prompt != -1:
            own = torch.cat([torch.arange(cu[s], cu[s + 1]) for s in (prompt, answer)])
            alone = scaled_dot_product_attention(
                q[..., own, :], k[..., own, :], v[..., own, :], is_causal=True
            )
            worst = max(worst, (packed[..., own, :] - alone).abs().max().item())
            unpacked += len(own)
    print(f"{cu[-1]} tokens instead of {unpacked}, largest difference {worst:.0e} on the {device}")


if __name__ == "__main__":
    main()
