"""A training step on packed documents: from lists of tokens to a loss, and to new weights.

Needs torch; with CuPy and a GPU the mask is FlexAttention's. On the CPU flex_attention has no
backward pass: there the reference makes the columns, and a dense mask of them is used.
Prints the loss, and how far the gradients are from those of each document alone.
"""

import itertools
from importlib.util import find_spec

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from maskq_cupy import flex, reference

TEXTS = ["A pack is one row of tokens.", "Documents do not see each other.", "Short.", "The end."]
DOCUMENTS = [list(text.encode()) for text in TEXTS]  # lists of tokens, here of bytes
WIDTH, HEADS, NO_TARGET = 64, 4, -100
DEVICE = "cuda" if torch.cuda.is_available() and find_spec("cupy") else "cpu"


def attend(q, k, v, cu_seqlens):
    tokens = q.shape[2]
    if DEVICE == "cuda":
        cuts = torch.tensor(cu_seqlens, device=DEVICE)
        mask = flex.packed_block_mask(cuts, cuts, tokens, tokens)
        return torch.compile(flex_attention)(q, k, v, block_mask=mask)
    columns = reference.get_attn_mask_q(cu_seqlens, cu_seqlens)
    dense = torch.from_numpy(reference.to_dense(columns, tokens))
    return scaled_dot_product_attention(q, k, v, attn_mask=dense)


def loss_of(documents, embed, qkv, out):
    """Return the summed loss of a pack: the target of a token is the next one of its document."""
    tokens = torch.tensor([token for d in documents for token in d], device=DEVICE)
    targets = torch.tensor([t for d in documents for t in (*d[1:], NO_TARGET)], device=DEVICE)
    cu_seqlens = [*itertools.accumulate(map(len, documents), initial=0)]
    x = embed(tokens)
    q, k, v = qkv(x).view(1, len(x), 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    seen = attend(q, k, v, cu_seqlens)[0].transpose(0, 1).reshape(x.shape)
    return cross_entropy(out(x + seen), targets, ignore_index=NO_TARGET, reduction="sum")


def main() -> None:
    torch.manual_seed(0)
    sizes = (256, WIDTH), (WIDTH, 3 * WIDTH), (WIDTH, 256)
    kinds = torch.nn.Embedding, torch.nn.Linear, torch.nn.Linear
    model = torch.nn.ModuleList(k(*s, device=DEVICE) for k, s in zip(kinds, sizes, strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = loss_of(DOCUMENTS, *model)
    loss.backward()

    alone = sum(loss_of([document], *model) for document in DOCUMENTS)
    torch.testing.assert_close(loss, alone, rtol=1e-3, atol=0)
    wanted = torch.autograd.grad(alone, [*model.parameters()])
    pairs = zip(model.parameters(), wanted, strict=True)
    error = max((weight.grad - right).abs().max().item() for weight, right in pairs)
    assert error < 0.05, error

    optimizer.step()
    print(
        f"loss {loss:.1f} on the {DEVICE}, {loss_of(DOCUMENTS, *model):.1f} after the step: as of "
        f"each document alone (largest difference of gradients {error:.1e})"
    )


if __name__ == "__main__":
    main()
