"""What each of several processes checks: torchrun --nproc-per-node 2 tests/ranks.py BACKEND

Run by test_ranks.py, once for all checks: a torchrun takes seconds. Rank 0 prints a line a check.
Tolerances are those of a sum in another order.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import context_parallel as example  # noqa: E402

import maskq_cupy  # noqa: E402
from maskq_cupy import cp, flex, reference  # noqa: E402

BACKEND = sys.argv[1]
ON_GPU = BACKEND == "nccl"
HEADS, HEAD_DIM = 2, 16 if not ON_GPU else 64
TOLERANCE = 1e-3 if ON_GPU else 1e-12  # of float32 and float64

CUTS = [0, 130, 131, 131, 400, 517, 640]
PACKS = {
    "causal": {},
    "window": {"window": (50, 0), "num_sink_tokens": 2},
    "full": {"causal": False},
}


def say(line):
    if dist.get_rank() == 0:
        print(line, flush=True)


def device():
    return torch.device("cuda", torch.cuda.current_device()) if ON_GPU else torch.device("cpu")


def tensors(tokens, count):
    torch.manual_seed(1)
    dtype = torch.float32 if ON_GPU else torch.float64
    return torch.randn(count, 1, HEADS, tokens, HEAD_DIM, dtype=dtype).to(device()).unbind()


def dense_attention(columns, q, k, v):
    mask = torch.from_numpy(reference.to_dense(columns, q.shape[2])).to(q.device)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def with_gradients(attention, inputs, upstream):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = attention(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, upstream))


def assert_close(results, wanted):
    for name, a, b in zip(("output", "dq", "dk", "dv"), results, wanted, strict=False):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def partitions(world):
    """Yield each rank's chunks: of all schemes, and of tokens dealt one by one."""
    for scheme in cp.SCHEMES:
        yield cp.cp_chunks(CUTS, CUTS, world, scheme)
    owner = np.random.default_rng(0).integers(0, world, CUTS[-1])
    yield [cp.chunks_of(np.flatnonzero(owner == rank)) for rank in range(world)]


def check_unequal_ranks():
    """Dense attention of the rank's columns, keys gathered rank by rank, against one process."""
    rank, world, tokens = dist.get_rank(), dist.get_world_size(), CUTS[-1]
    *whole, upstream = tensors(tokens, 4)
    for rule_name, rule in PACKS.items():
        columns = reference.get_attn_mask_q(CUTS, CUTS, **rule)
        alone = with_gradients(lambda *x, c=columns: dense_attention(c, *x), whole, upstream)
        for chunks in partitions(world):
            rows = torch.from_numpy(cp.chunk_rows(chunks[rank])).to(device())
            longest = max(len(cp.chunk_rows(some)) for some in chunks)
            local = reference.shard_columns(columns, chunks[rank], cp.gathered_keys(chunks))

            def attention(q, k, v, local=local, longest=longest):
                gathered = (example.Gather.apply(x, longest) for x in (k, v))
                return dense_attention(local, q, *gathered)

            own = [x[:, :, rows] for x in whole]
            results = with_gradients(attention, own, upstream[:, :, rows])
            assert_close(results, [x[:, :, rows] for x in alone])
        say(f"unequal ranks: {rule_name} as one process")


# torch's own context parallelism

PLACES = (
    "torch.distributed.tensor.experimental._context_parallel._attention",
    "torch.distributed.tensor.experimental._attention",
)


def context_parallel_class():
    """Return torch's _ContextParallel, or None where that private name is elsewhere."""
    for place in PLACES:
        try:
            found = getattr(importlib.import_module(place), "_ContextParallel", None)
        except ImportError:
            continue
        if found is not None and hasattr(getattr(found, "AttentionType", None), "FLEX"):
            return found
    return None


class Attention(torch.nn.Module):
    def forward(self, q, k, v, block_mask):
        function = torch.compile(flex_attention) if ON_GPU else flex_attention
        return function(q, k, v, block_mask=block_mask)


def check_torchs_own():
    """Our BlockMask through _ContextParallel(FLEX), whose keys are rank by rank.

    On the CPU forward only, where flex_attention applies the mask and ignores the lists.
    """
    found = context_parallel_class()
    if found is None:
        say(f"skip torch's own: no _ContextParallel with AttentionType.FLEX in {PLACES}")
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    rank, world, tokens = dist.get_rank(), dist.get_world_size(), 1024
    mesh = init_device_mesh("cuda" if ON_GPU else "cpu", (world,))
    style = found(seq_dim=2, attention_type=found.AttentionType.FLEX)
    module = parallelize_module(Attention(), mesh, style)
    *whole, upstream = tensors(tokens, 4)
    cuts = [0, 300, 301, 900, tokens]
    columns = reference.get_attn_mask_q(cuts, cuts)
    chunks = cp.cp_chunks(cuts, cuts, world)  # equal: torch gathers nothing else
    rows = torch.from_numpy(cp.chunk_rows(chunks[rank])).to(device())
    keys = cp.gathered_keys(chunks)
    if ON_GPU:
        local = torch.empty((tokens, 2), dtype=torch.int32, device=device())
        given = torch.from_numpy(columns).to(device())
        mask = flex.block_mask(
            maskq_cupy.shard_columns(given, chunks[rank], keys, out=local), len(rows)
        )
    else:
        local = reference.shard_columns(columns, chunks[rank], keys)
        mask = flex.as_block_mask(
            reference.to_blocks(local, len(rows)), torch.from_numpy(local), len(rows)
        )
    own = [x[:, :, rows] for x in whole]
    if ON_GPU:
        alone = with_gradients(lambda *x: dense_attention(columns, *x), whole, upstream)
        results = with_gradients(lambda *x: module(*x, mask), own, upstream[:, :, rows])
    else:
        alone = [dense_attention(columns, *whole)]
        with torch.no_grad():
            results = [module(*own, mask)]
    assert_close(results, [x[:, :, rows] for x in alone])
    say("torch's own: as one process")


if __name__ == "__main__":
    if ON_GPU:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(BACKEND)
    example.main(BACKEND)
    check_unequal_ranks()
    check_torchs_own()
    dist.destroy_process_group()
