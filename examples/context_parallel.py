"""A pack too long for one GPU: its rows are dealt to ranks, and attention comes out as on one.

    torchrun --nproc-per-node 2 examples/context_parallel.py                  # a GPU a rank, NCCL
    torchrun --nproc-per-node 2 examples/context_parallel.py --backend gloo   # without a GPU

A token sees its document up to itself, in an image the whole image. Every rank makes the columns of
its own rows, alone; only keys and values travel.

Needs torch, CuPy and as many GPUs as ranks; with gloo, torch alone.
Prints from rank 0, for each rank, how far its part is from the result of one process.
"""

import argparse
import itertools
import os

import torch
import torch.distributed as dist
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskq_cupy
from maskq_cupy import cp, flex, reference

LENGTHS = [900, 150, 1200, 30, 792]  # of the documents, in tokens
IMAGES = [(100, 350), (1400, 1900), (2300, 2500)]  # [start, end) in tokens of the pack
EDGES = [*itertools.accumulate(LENGTHS, initial=0)]
TOKENS, HEADS, HEAD_DIM = EDGES[-1], 4, 64


class Gather(torch.autograd.Function):
    """All ranks' keys (batch, heads, keys, dim), rank by rank, each filled up to `longest`."""

    @staticmethod
    def forward(ctx, own, longest):
        ctx.start, ctx.length = dist.get_rank() * longest, own.shape[2]
        filled = own.new_zeros(*own.shape[:2], longest, own.shape[3])
        filled[:, :, : own.shape[2]] = own
        parts = [torch.empty_like(filled) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, filled)
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # every rank has a part of the gradient of every key
        return gradient[:, :, ctx.start : ctx.start + ctx.length], None


def attend(columns, q, k, v):
    """Return the attention of q to the keys that the columns show it."""
    if q.is_cuda:
        mask = flex.block_mask(columns, q.shape[2])
        return torch.compile(flex_attention)(q, k, v, block_mask=mask)
    dense = torch.from_numpy(reference.to_dense(columns.numpy(), q.shape[2]))
    return scaled_dot_product_attention(q, k, v, attn_mask=dense)


def main(backend: str = "nccl") -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    on_gpu = backend == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    ops = maskq_cupy if on_gpu else reference

    # The pack's columns, and how many tiles of 128 keys each 128 rows see: their work.
    cu_seqlens = torch.tensor(EDGES, dtype=torch.int32, device=device)
    images = torch.tensor(IMAGES, device=device)
    columns = ops.get_attn_mask_q(cu_seqlens, cu_seqlens, kv_token_num=TOKENS, spans=images)
    lists = ops.to_blocks(columns, TOKENS)
    work = torch.from_dlpack(lists.kv_num_blocks + lists.full_kv_num_blocks).cpu()

    # Who holds which rows, and the columns of this rank's rows: all ranks' keys, rank by rank.
    chunks = cp.cp_chunks(EDGES, EDGES, world, work=work)
    rows = torch.from_numpy(cp.chunk_rows(chunks[rank])).to(device)
    longest = max(len(cp.chunk_rows(some)) for some in chunks)
    local = ops.shard_columns(columns, chunks[rank], cp.gathered_keys(chunks, TOKENS))
    lists = ops.to_blocks(local, len(rows))
    tiles = int((lists.kv_num_blocks + lists.full_kv_num_blocks).sum())
    needed = int(ops.needed_keys(local, TOKENS).sum())

    torch.manual_seed(0)
    dtype = torch.float32 if on_gpu else torch.float64
    whole = torch.randn(4, 1, HEADS, TOKENS, HEAD_DIM, dtype=dtype).to(device).unbind()
    *inputs, upstream = (x[:, :, rows] for x in whole)
    inputs = [x.requires_grad_() for x in inputs]
    q, k, v = inputs
    out = attend(torch.from_dlpack(local), q, Gather.apply(k, longest), Gather.apply(v, longest))
    results = (out, *torch.autograd.grad(out, inputs, upstream))

    inputs = [x.requires_grad_() for x in whole[:3]]
    alone = attend(torch.from_dlpack(columns), *inputs)
    wanted = [x[:, :, rows] for x in (alone, *torch.autograd.grad(alone, inputs, whole[3]))]
    error = max((a - b).abs().max().item() for a, b in zip(results, wanted, strict=True))
    assert error < (0.05 if on_gpu else 1e-12), error
    line = (
        f"rank {rank}: {len(rows)} rows in {len(chunks[rank])} chunks, {tiles} tiles, {needed} of "
        f"{TOKENS} keys needed; forward and backward as one process (off by {error:.1e})"
    )
    lines = [None] * world
    dist.all_gather_object(lines, line)
    if rank == 0:
        print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=["nccl", "gloo"], default="nccl")
    backend = parser.parse_args().backend
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    main(backend)
    dist.destroy_process_group()
