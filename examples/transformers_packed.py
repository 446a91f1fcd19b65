"""Packed documents through transformers: a Llama, and a Gemma 3 of sliding and full layers.

The batch is what a flattening collator gives: one row of tokens, position ids that start anew at
each document. The mask is made from them, once for all layers. The models are tiny and random.

Needs torch and transformers. With CuPy and a GPU all runs there; without, the NumPy reference makes
the lists of the mask, and FlexAttention is compiled for the CPU.
Prints how far the logits are from those of each document alone.
"""

from importlib.util import find_spec

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from maskq_cupy import cu_seqlens_from_positions, flex, reference

LENGTHS = [100, 37, 260, 115]  # of the documents, in tokens
MOST_DOCUMENTS = 8  # that a batch may hold: what is given is padded with empty ones
WINDOW = 64  # keys that a sliding layer sees, the token's own included
SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
    "attn_implementation": "flex_attention",
}  # fmt: skip
LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


def packed_mask(position_ids: torch.Tensor, **rule: object) -> object:
    """Return the BlockMask of a packed batch, which any layer of it takes as attention_mask."""
    tokens = position_ids.numel()
    if position_ids.is_cuda:
        cu_seqlens = torch.from_dlpack(cu_seqlens_from_positions(position_ids, MOST_DOCUMENTS))
        return flex.packed_block_mask(cu_seqlens, cu_seqlens, tokens, tokens, **rule)
    cu_seqlens = reference.cu_seqlens_from_positions(position_ids, MOST_DOCUMENTS)
    columns = reference.get_attn_mask_q(cu_seqlens, cu_seqlens, kv_token_num=tokens, **rule)
    return flex.as_block_mask(reference.to_blocks(columns, tokens), columns, tokens)


@torch.no_grad()
def largest_difference(
    model: torch.nn.Module, mask: object, batch: dict[str, torch.Tensor]
) -> float:
    """Return how far the packed batch's logits are from those of each document alone."""
    packed = model(**batch, attention_mask=mask, use_cache=False).logits[0]
    model.set_attn_implementation("sdpa")
    alone = [
        model(input_ids=document[None], use_cache=False).logits[0]
        for document in batch["input_ids"][0].split(LENGTHS)
    ]
    return (packed - torch.cat(alone)).abs().max().item()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() and find_spec("cupy") else "cpu"
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(1, SIZES["vocab_size"], (1, sum(LENGTHS)), device=device),
        "position_ids": torch.cat([torch.arange(n) for n in LENGTHS])[None].to(device),
    }
    full = packed_mask(batch["position_ids"])
    sliding = packed_mask(batch["position_ids"], window=(WINDOW - 1, 0))
    masks = {"full_attention": full, "sliding_attention": sliding}

    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).to(device).eval()
    gemma = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **LAYERS)).to(device).eval()
    errors = {
        "Llama": largest_difference(llama, full, batch),
        "Gemma 3": largest_difference(gemma, masks, batch),
    }
    assert max(errors.values()) < (1e-3 if device == "cuda" else 1e-5), errors
    found = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"{len(LENGTHS)} documents on the {device}: logits as each alone (largest: {found})")


if __name__ == "__main__":
    main()
