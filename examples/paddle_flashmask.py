"""Packed documents through Paddle's FlashMask: the call that the columns are made for.

Needs Paddle; with its build for GPUs, CuPy too. The build for CPUs has no FlashMask: there a dense
mask reads the bounds as FlashMask's kernels do. This was run, with Paddle 3.3.1. The call on a GPU
was not, for want of a recent paddlepaddle-gpu. FlashMask's kernel in CuTe
(PaddlePaddle/flash-attention, commit 9985af5) did take these bounds, on an H100.
Prints how far the result is from Paddle's attention of each document alone.
"""

import itertools

import paddle
from paddle.nn.functional import flashmask_attention, scaled_dot_product_attention

from maskq_cupy import flashmask, get_attn_mask_q, reference

LENGTHS = [1000, 37, 2000, 1, 1058]  # of the documents, in tokens
HEADS, HEAD_DIM = 8, 64
ON_GPU = paddle.device.is_compiled_with_cuda()


def attend(q, k, v, bounds):
    if ON_GPU:
        return flashmask_attention(q, k, v, startend_row_indices=bounds, causal=False)
    row, (lts, ute) = paddle.arange(q.shape[1], dtype="int32")[:, None], bounds[0, 0].T
    hidden = (row >= lts) | (row < ute)
    return scaled_dot_product_attention(q, k, v, attn_mask=~hidden[None, None])


def main() -> None:
    tokens = sum(LENGTHS)
    edges = [*itertools.accumulate(LENGTHS, initial=0)]
    paddle.seed(0)
    dtype = "bfloat16" if ON_GPU else "float32"
    q, k, v = (paddle.randn([1, tokens, HEADS, HEAD_DIM]).astype(dtype) for _ in range(3))

    # On a GPU cu_seqlens may be a tensor there; a list is uploaded.
    columns = (get_attn_mask_q if ON_GPU else reference.get_attn_mask_q)(edges, edges)
    bounds = flashmask.startend_row_indices(columns, framework="paddle")  # the same memory
    packed = attend(q, k, v, bounds)

    alone = [
        scaled_dot_product_attention(*(x[:, start:end] for x in (q, k, v)), is_causal=True)
        for start, end in itertools.pairwise(edges)
    ]
    error = float((packed - paddle.concat(alone, axis=1)).astype("float32").abs().max())
    assert error < (0.05 if ON_GPU else 1e-5), error
    print(
        f"{len(LENGTHS)} documents, {tokens} tokens: as each document alone "
        f"(largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
