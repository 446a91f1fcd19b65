"""Decoding in a CUDA graph: lengths change from step to step, the graph is captured once.

Each step replays mask and attention on lengths changed in place.

Needs torch, CuPy and a GPU.
Prints how far the result is from that of each sequence alone.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from maskq_cupy import get_attn_mask_q, to_dense

BATCH, KEYS, STEPS = 16, 4096, 20  # keys: room for those of all sequences
HEADS, HEAD_DIM = 8, 64


def main() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, HEADS, BATCH, HEAD_DIM, device="cuda")
    k, v = torch.randn(2, 1, HEADS, KEYS, HEAD_DIM, device="cuda").unbind()
    cu_seqlens_q = torch.arange(BATCH + 1, dtype=torch.int32, device="cuda")  # a row each
    cu_seqlens_k = torch.arange(BATCH + 1, dtype=torch.int32, device="cuda")
    columns = torch.empty(KEYS, 2, dtype=torch.int32, device="cuda")
    dense = torch.empty(BATCH, KEYS, dtype=torch.bool, device="cuda")

    def attend() -> torch.Tensor:
        stream = torch.cuda.current_stream()
        get_attn_mask_q(cu_seqlens_q, cu_seqlens_k, out=columns, stream=stream)
        to_dense(columns, BATCH, out=dense, stream=stream)
        return scaled_dot_product_attention(q, k, v, attn_mask=dense)

    attend()  # compiles the kernels, which a capture may not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = attend()

    lengths, error = torch.randint(1, 200, (BATCH,)), 0.0
    for _ in range(STEPS):
        lengths += 1
        cu_seqlens_k[1:] = lengths.cumsum(0)
        graph.replay()
        ends = cu_seqlens_k.tolist()
        for b in range(BATCH):
            keys = slice(ends[b], ends[b + 1])
            alone = scaled_dot_product_attention(q[:, :, b : b + 1], k[:, :, keys], v[:, :, keys])
            error = max(error, (result[:, :, b : b + 1] - alone).abs().max().item())
    assert error < 0.02, error
    print(
        f"{STEPS} decoding steps of {BATCH} sequences in one graph: as each sequence alone "
        f"(largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
