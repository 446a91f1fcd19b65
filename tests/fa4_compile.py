"""Compile FlashAttention-4's whole kernels with our mask, for a GPU that need not be there.

    python tests/fa4_compile.py 90 64 128,4d        # sm_90: head_dim 64, then 128 with 4D columns

A case is HEAD_DIM[/HEAD_DIM_V][,OPTION...] of the options 4d (columns of every batch row and head),
heads (of every head, for all batch rows), forward (no backward pass), gqa and deterministic; a line
is printed for each. In a process of its own: what FlashAttention-4 compiles for, it takes from the
environment when it is imported.
"""

import importlib.util
import os
import sys
import time


def is_installed():
    """Is FlashAttention-4 there? It shares the name of its package with older ones."""
    parent = importlib.util.find_spec("flash_attn")
    return parent is not None and importlib.util.find_spec("flash_attn.cute") is not None


def main(arch, *cases):
    os.environ |= {
        "FLASH_ATTENTION_ARCH": f"sm_{arch}",
        "CUTE_DSL_ARCH": f"sm_{arch}a",
        "FLASH_ATTENTION_NUM_SMS": "132",
    }
    import cutlass

    if arch != "90":
        cutlass.utils.HardwareInfo = SomeHardware
    let_fake_tensors_be_locks()
    capability = divmod(int(arch), 10)
    for case in cases:
        head_dims, *options = case.split(",")
        dim, dim_v = (int(x) for x in (head_dims + "/" + head_dims).split("/")[:2])
        start = time.monotonic()
        count = compile_case(capability, dim, dim_v, options)
        print(f"sm_{arch} {case}: {count} in {time.monotonic() - start:.1f} s", flush=True)


class SomeHardware:
    """What a scheduler asks the driver of the GPU that is here."""

    def __init__(self, *_):
        pass

    def get_max_active_clusters(self, cluster_size, *_, **__):
        return 132 // cluster_size

    def get_device_multiprocessor_count(self):
        return 132


def let_fake_tensors_be_locks():
    """The locks of a deterministic backward pass are exported by DLPack, which no fake tensor is:
    give it some of the host's memory of the same form."""
    import torch
    from flash_attn.cute import utils
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    export = utils.convert_from_dlpack_leading_static

    def export_real(tensor, **options):
        with unset_fake_temporarily():
            return export(torch.empty(tensor.shape, dtype=tensor.dtype), **options)

    utils.convert_from_dlpack_leading_static = export_real


def compile_case(capability, dim, dim_v, options):
    """Compile both passes over several packs; return how many kernels were compiled."""
    from flash_attn.cute import interface

    caches = interface._flash_attn_fwd.compile_cache, interface._flash_attn_bwd.compile_cache
    before = [count(cache) for cache in caches]
    # Lengths, lists and their widths differ; the kernels must not.
    for q_token_num, kv_token_num, width in ((1000, 1300, None), (2048, 2048, 3), (777, 5000, 2)):
        run(capability, dim, dim_v, options, q_token_num, kv_token_num, width)
    made = [count(cache) - old for cache, old in zip(caches, before, strict=True)]
    return f"{made[0]} forward, {made[1]} backward"


def count(cache):
    return len(getattr(cache, "cache", cache))


def run(capability, dim, dim_v, options, q_token_num, kv_token_num, width):
    import torch
    from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
    from torch._subclasses.fake_tensor import FakeTensorMode

    from maskq_cupy import fa4, plan
    from maskq_cupy.reference import Blocks

    batch, heads = 2, 4
    heads_k = 2 if "gqa" in options else heads
    backward = "forward" not in options
    size = fa4.block_size(dim, capability, dim_v, backward)
    with FakeTensorMode():
        cuda = {"device": "cuda"}
        form = (batch, heads) if "4d" in options else (1, heads) if "heads" in options else ()
        columns = torch.empty(*form, kv_token_num, 2, dtype=torch.int32, **cuda)
        tiles = plan.tiles(1, q_token_num, kv_token_num, size, width)
        shapes = plan.block_shapes(tiles, form or (1, 1))
        lists = Blocks(*(torch.empty(shape, dtype=torch.int32, **cuda) for shape in shapes))
        arguments = fa4._of_lists(
            columns, lists, q_token_num, (dim, dim_v), size, backward, "deterministic" in options
        )
        half = {"dtype": torch.bfloat16, **cuda}
        q = torch.empty(batch, q_token_num, heads, dim, **half)
        k = torch.empty(batch, kv_token_num, heads_k, dim, **half)
        v = torch.empty(batch, kv_token_num, heads_k, dim_v, **half)
        common = {name: arguments[name] for name in ("mask_mod", "aux_tensors", "causal")}
        out, lse, *_ = _flash_attn_fwd(
            q, k, v, **common, block_sparse_tensors=arguments["block_sparse_tensors"],
            return_lse=True,
        )  # fmt: skip
        if backward:
            _flash_attn_bwd(
                q, k, v, out, torch.empty_like(out), lse, **common,
                deterministic=arguments["deterministic"],
                block_sparse_tensors=arguments["block_sparse_tensors_bwd"],
            )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
