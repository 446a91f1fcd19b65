"""Packed documents through JAX: columns by DLPack, and jax.nn.dot_product_attention.

Needs jax; with CuPy and a GPU the columns are made there, else by the reference. It was run with
jax 0.10.2 on the CPU, and not yet on a GPU.
Prints how far the result is from that of each document alone.
"""

import itertools
from importlib.util import find_spec

import jax
import jax.numpy as jnp

from maskq_cupy import get_attn_mask_q, reference

LENGTHS = [300, 37, 600, 1, 150]  # of the documents, in tokens
HEADS, HEAD_DIM = 4, 32


@jax.jit
def attend(q, k, v, columns):
    """Attend by columns: XLA makes the mask of them, anew for no other lengths."""
    lts, ute = columns.T
    row = jnp.arange(q.shape[1])[:, None]
    mask = (row >= ute) & (row < lts)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])


def main() -> None:
    tokens = sum(LENGTHS)
    edges = [*itertools.accumulate(LENGTHS, initial=0)]
    has_gpu = jax.default_backend() == "gpu" and find_spec("cupy") is not None
    # On a GPU cu_seqlens may be a JAX array there; a list is uploaded.
    columns = (get_attn_mask_q if has_gpu else reference.get_attn_mask_q)(edges, edges)
    size = (3, 1, tokens, HEADS, HEAD_DIM)
    q, k, v = jax.random.normal(jax.random.key(0), size)
    packed = attend(q, k, v, jnp.from_dlpack(columns))

    alone = [
        jax.nn.dot_product_attention(*(x[:, start:end] for x in (q, k, v)), is_causal=True)
        for start, end in itertools.pairwise(edges)
    ]
    error = float(jnp.abs(packed - jnp.concatenate(alone, axis=1)).max())
    assert error < (0.01 if has_gpu else 1e-5), error
    print(
        f"{len(LENGTHS)} documents, {tokens} tokens, on the {jax.default_backend()}: as each "
        f"document alone (largest difference {error:.1e})"
    )


if __name__ == "__main__":
    main()
