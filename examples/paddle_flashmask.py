"""Packed documents through Paddle's FlashMask: the call that the columns are made for.

Compares the result with scaled_dot_product_attention of each document alone.
"""

import itertools

import paddle
from paddle.nn.functional import flashmask_attention, scaled_dot_product_attention
from paddle.utils import dlpack

from maskq_cupy import get_attn_mask_q

LENGTHS = [1000, 37, 2000, 1, 1058]  # of the documents, in tokens
HEADS, HEAD_DIM = 8, 64


def main() -> None:
    tokens = sum(LENGTHS)
    edges = [*itertools.accumulate(LENGTHS, initial=0)]
    cu_seqlens = paddle.to_tensor(edges, dtype="int32", place=paddle.CUDAPlace(0))
    paddle.seed(0)
    q, k, v = (paddle.randn([1, tokens, HEADS, HEAD_DIM]).astype("bfloat16") for _ in range(3))

    columns = get_attn_mask_q(cu_seqlens, cu_seqlens, kv_token_num=tokens)
    bounds = dlpack.from_dlpack(columns.reshape(1, 1, tokens, 2))  # the same memory
    packed = flashmask_attention(q, k, v, startend_row_indices=bounds, causal=False)

    alone = [
        scaled_dot_product_attention(*(x[:, start:end] for x in (q, k, v)), is_causal=True)
        for start, end in itertools.pairwise(edges)
    ]
    expected = paddle.concat(alone, axis=1)
    error = float((packed - expected).astype("float32").abs().max())
    assert error < 0.05, error
    print(
        f"{len(LENGTHS)} documents, {tokens} tokens: as each document alone "
        f"(largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
