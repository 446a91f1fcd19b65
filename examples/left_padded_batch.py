"""A left-padded batch: each token sees its own row's tokens up to itself, padding sees nothing.

From the attention mask of a tokenizer to columns (b, 1, L, 2), here given to
scaled_dot_product_attention as a dense mask.

Needs torch. Without CuPy or a GPU the NumPy reference makes the columns.
Prints how far the result is from that of each row alone, without its padding.
"""

from importlib.util import find_spec

import torch
from torch.nn.functional import scaled_dot_product_attention

import maskq_cupy
from maskq_cupy import reference

LENGTHS = [7, 200, 64, 131]  # tokens of each row, behind its padding
HEADS, HEAD_DIM = 4, 32


def main() -> None:
    has_gpu = torch.cuda.is_available() and find_spec("cupy") is not None
    device, mq = ("cuda", maskq_cupy) if has_gpu else ("cpu", reference)
    b, length = len(LENGTHS), max(LENGTHS)
    first = length - torch.tensor(LENGTHS)
    attention_mask = (torch.arange(length) >= first[:, None]).long().to(device)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, b, HEADS, length, HEAD_DIM, device=device).unbind()

    # The batch as a pack of b * length rows; none of this waits for the GPU.
    cuts = mq.cu_seqlens_from_padding(attention_mask)
    columns = mq.get_attn_mask_q(*cuts, kv_token_num=b * length)
    columns = mq.split_columns(columns, b, b * length)

    dense = torch.stack([torch.as_tensor(mq.to_dense(part[0], length)) for part in columns])
    padded = scaled_dot_product_attention(q, k, v, attn_mask=dense[:, None])

    error = 0.0
    for row, start in enumerate(first.tolist()):
        own = (x[row : row + 1, :, start:] for x in (q, k, v))
        alone = scaled_dot_product_attention(*own, is_causal=True)
        error = max(error, (padded[row : row + 1, :, start:] - alone).abs().max().item())
    assert error < 0.01, error
    print(
        f"{b} rows padded on the left to {length}: as each alone (largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
