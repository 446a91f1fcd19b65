"""Attention itself, forward and backward: on our lists, on torch's, and by kernels without a mask.

What is not installed is skipped. Each way's output is compared with that of FlexAttention on our
lists in the same run.
"""

import functools

import numpy as np
import packs
import pytest
import timing
from strategies import cuts

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="attention", timer=timing.clock)]

HEADS, HEAD_DIM = 16, 128
MOST_DENSE = 2**15  # tokens: a mask of a byte a pair, which SDPA makes into one of two
WINDOW = 1024


def image_intervals(cu):
    """Return the keys [start, end) of each row: causal, but an image's rows see all of it.

    Images are 512 tokens, one in each 2,048 of a document.
    """
    lens = np.diff(cu)
    row = np.arange(cu[-1]) - np.repeat(cu[:-1], lens)
    start = row // 2048 * 2048 + 1024
    is_image = (row >= start) & (row < start + 512)
    end = np.where(is_image, np.minimum(start + 512, np.repeat(lens, lens)), row + 1)
    return np.stack([np.zeros_like(end), end], axis=1).astype(np.int32)


# By name: tokens, documents, and the rule; images are given by intervals.
CASES = {
    "causal documents, 32 K": (2**15, 10, {}),
    "causal documents, 128 K": (2**17, 51, {}),
    "image spans, 128 K": (2**17, 51, {"attn_mask_kv": image_intervals}),
    "window, 128 K": (2**17, 10, {"window": (WINDOW - 1, 0)}),
    "bidirectional, 64 K": (2**16, 26, {"causal": False}),
}


class Case:
    """A pack of CASES on the GPU, and its inputs in the two layouts, (1, N, heads, d) first."""

    def __init__(self, torch, name):
        self.n, b, rule = CASES[name]
        cu = packs.documents(self.n, b)
        self.longest = int(np.diff(cu).max())
        self.cu = torch.as_tensor(cuts(np.diff(cu)), device="cuda")
        self.rule = {
            key: torch.as_tensor(value(cu), device="cuda") if callable(value) else value
            for key, value in rule.items()
        }
        torch.manual_seed(0)
        shape = (1, self.n, HEADS, HEAD_DIM)
        self.qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        self.upstream = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        self.pack = self.cu, self.cu, self.n, self.n


@functools.cache
def compiled_flex():
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    # A size and a mask each, with gradients and without: past the limit it would not be compiled.
    torch._dynamo.config.recompile_limit = 64
    # A backward pass is run many times over one forward pass.
    torch._functorch.config.donated_buffer = False
    return torch.compile(flex_attention, dynamic=False)


def on_heads_first(attend):
    """Let a function of tensors (1, heads, N, d) take and return (1, N, heads, d)."""
    return lambda *qkv: attend(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)


def flash_attention_on_our_lists(torch, case):
    fa4 = flash_attention()
    arguments = fa4.packed_arguments(*case.pack, HEAD_DIM, **case.rule)
    return lambda *qkv: fa4.attention(*qkv, arguments)


def flash_attention():
    pytest.importorskip("flash_attn.cute")
    return pytest.importorskip("maskq_cupy.fa4")


def flex_on_our_lists(torch, case):
    from maskq_cupy import flex

    mask = flex.packed_block_mask(*case.pack, **case.rule)
    return on_heads_first(lambda *qkv: compiled_flex()(*qkv, block_mask=mask))


def flex_on_torchs_lists(torch, case):
    """Of documents, by the mask_mod of torch's own guide, whose lists it makes by itself."""
    from torch.nn.attention.flex_attention import create_block_mask

    if case.rule:
        pytest.skip("timed for causal documents")
    lens = case.cu.diff()
    document = torch.repeat_interleave(torch.arange(len(lens), device="cuda"), lens)

    def mask_mod(b, h, q, kv):
        return (document[q] == document[kv]) & (q >= kv)

    create = torch.compile(create_block_mask, dynamic=False)
    mask = create(mask_mod, None, None, case.n, case.n, device="cuda")
    return on_heads_first(lambda *qkv: compiled_flex()(*qkv, block_mask=mask))


def flash_attention_varlen(torch, case):
    flash_attention()
    from flash_attn.cute import flash_attn_varlen_func

    if "attn_mask_kv" in case.rule:
        pytest.skip("FlashAttention-4's varlen has no such mask")
    left, right = case.rule.get("window", (None, None))
    options = {
        "cu_seqlens_q": case.cu, "cu_seqlens_k": case.cu, "max_seqlen_q": case.longest,
        "max_seqlen_k": case.longest, "causal": case.rule.get("causal", left is None),
        "window_size": (left, right),
    }  # fmt: skip
    return lambda *qkv: flash_attn_varlen_func(*(x[0] for x in qkv), **options)[0][None]


def dense_sdpa(torch, case):
    from maskq_cupy import get_attn_mask_q, to_dense

    if case.n > MOST_DENSE:
        pytest.skip("a dense mask does not fit")
    columns = get_attn_mask_q(case.cu, case.cu, kv_token_num=case.n, **case.rule)
    shown = torch.from_dlpack(to_dense(columns, case.n, limit=case.n**2))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    return on_heads_first(lambda *qkv: sdpa(*qkv, attn_mask=shown))


WAYS = {
    "FA4, our lists": flash_attention_on_our_lists,
    "flex, our lists": flex_on_our_lists,
    "FA4 varlen": flash_attention_varlen,
    "flex, torch's lists": flex_on_torchs_lists,
    "dense SDPA": dense_sdpa,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_attention(measure, torch, direction, name, way):
    case = Case(torch, name)
    attend = WAYS[way](torch, case)
    inputs = [x.requires_grad_(direction == "backward") for x in case.qkv]
    out = attend(*inputs)
    right = flex_on_our_lists(torch, case)(*inputs)
    torch.testing.assert_close(out, right, atol=2e-2, rtol=2e-2)

    def forward():
        return attend(*inputs)

    def backward():
        return torch.autograd.grad(out, inputs, case.upstream, retain_graph=True)

    if direction == "backward":
        expected = torch.autograd.grad(right, inputs, case.upstream)
        for got, gradient in zip(backward(), expected, strict=True):
            scale = gradient.abs().max().item()
            torch.testing.assert_close(got, gradient, atol=2e-2 * scale, rtol=2e-2)
    del right
    call = forward if direction == "forward" else backward
    sample = timing.torch_sample(torch, call, calls=10)
    measure(f"attention {direction}", sample, rounds=5, n=case.n, case=name, way=way)


@pytest.mark.parametrize("clock", ["GPU", "wall"])
@pytest.mark.parametrize("name", CASES)
def test_making_of_arguments(measure, torch, name, clock):
    """Columns and lists: on the GPU by graph replay, and the wall time of a call."""
    case, fa4 = Case(torch, name), flash_attention()

    def make():
        return fa4.packed_arguments(*case.pack, HEAD_DIM, **case.rule)

    make()
    if clock == "GPU":
        sample = timing.torch_graph_sample(torch, make)
    else:
        sample = timing.wall_sample(make, timing.CALLS)
    measure(f"columns and lists, {clock}", sample, n=case.n, case=name)


# A step of a model


@pytest.mark.parametrize("way", ["our mask", "the model's own"])
def test_step_of_transformers(measure, torch, way):
    """A small Llama on packed documents, forward and backward, in wall time: its mask is made in
    each step from what it is given, cu_seqlens or position ids that start anew."""
    transformers = pytest.importorskip("transformers")
    from maskq_cupy import flex

    case = Case(torch, "causal documents, 32 K")
    config = transformers.LlamaConfig(
        vocab_size=1024, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=16, attn_implementation="flex_attention",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    token_ids = torch.randint(0, 1024, (1, case.n), device="cuda")
    position = torch.arange(case.n, device="cuda")
    starts = torch.repeat_interleave(case.cu[:-1], case.cu.diff())
    given = {"input_ids": token_ids, "position_ids": (position - starts)[None], "use_cache": False}

    def logits(way):
        mask = flex.packed_block_mask(*case.pack) if way == "our mask" else None
        return model(**given, attention_mask=mask).logits

    def step():
        model.zero_grad()
        logits(way).float().square().mean().backward()

    with torch.no_grad():
        ours, own = logits("our mask"), logits("the model's own")
    scale = own.abs().max().item()
    torch.testing.assert_close(ours, own, atol=2e-2 * scale, rtol=2e-2)
    del ours, own
    step()
    sample = timing.wall_sample(step, calls=3)
    measure("step of transformers, wall", sample, rounds=5, n=case.n, way=way)
