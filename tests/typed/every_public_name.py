"""Every public name as its user writes it: `make lint` checks it with mypy --strict and pyright.

It is read, never run. Where torch is missing its types are Any, and so are CuPy's always: nothing
is said of them then. `tests/test_typing.py` holds it to the package's names.
"""

from typing import Any, assert_type

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

import maskq_cupy as mq
from maskq_cupy import cp, fa4, flashmask, flex, reference

Array = np.ndarray


def columns_on_the_gpu(cu: torch.Tensor, out: torch.Tensor) -> None:
    """Without out= the result is CuPy's; with it, it is of its type."""
    columns = mq.get_attn_mask_q(cu, cu)
    columns = mq.get_attn_mask_q(
        cu, cu, None, 7, causal=True, window=(3, 0), num_sink_tokens=1, align="top_left",
        causal_block=None, chunk_size=None, spans=[[0, 2]], scratch=None, stream=None,
        validate=True,
    )  # fmt: skip
    tree = mq.tree_attn_mask_q([-1, 0], cu, cu, 7, full=None)
    mq.to_dense(columns, 7, limit=100)
    mq.needed_keys(tree, 128)
    assert_type(mq.get_attn_mask_q(cu, cu, out=out), torch.Tensor)
    assert_type(mq.tree_attn_mask_q([-1, 0], cu, cu, out=out), torch.Tensor)
    assert_type(mq.excess_pairs(cu, cu, cu, out=out), torch.Tensor)
    assert_type(mq.to_four_columns(columns, 7, out=out, validate=True), torch.Tensor)
    assert_type(mq.to_dense(columns, 7, out=out), torch.Tensor)
    assert_type(mq.split_columns(columns, 1, 7, out=out), torch.Tensor)
    assert_type(mq.shard_columns(columns, [[0, 3]], None, key_num=7, out=out), torch.Tensor)
    assert_type(mq.needed_keys(columns, out=out), torch.Tensor)
    assert_type(mq.cu_seqlens_from_ids(cu, 8, padding_id=0, out=out), torch.Tensor)
    assert_type(mq.cu_seqlens_from_positions(cu, 8, out=out), torch.Tensor)
    assert_type(mq.spans_from_ids(cu, 8, text_id=-1, out=out), torch.Tensor)
    pair = mq.cu_seqlens_from_padding(cu)
    assert_type(pair, mq.CuSeqlens)
    assert_type(mq.cu_seqlens_from_slots(cu, cu, cu, cu), mq.CuSeqlens)
    mq.get_attn_mask_q(*pair, kv_token_num=7)
    assert_type(mq.cu_seqlens_from_padding(cu, out=(out, out)), tuple[torch.Tensor, torch.Tensor])
    blocks = mq.to_blocks(
        columns, 7, (128, 64), width=mq.blocks_width(7), needed=out, all_partial=False, scratch=out
    )
    assert_type(blocks, mq.Blocks)
    assert_type(mq.to_blocks(columns, 7, out=blocks), mq.Blocks)


def on_the_host() -> None:
    """Sizes, orders, and what gets ready: ints, arrays of NumPy, nothing."""
    assert_type(mq.blocks_width(32_768, (128, 128), causal=False), tuple[int, int])
    assert_type(mq.scratch_nbytes(7), int)
    assert_type(mq.blocks_scratch_nbytes(7, 7, 128, slices=1, width=None), int)
    assert_type(mq.tree_scratch_nbytes(7), int)
    assert_type(mq.excess_scratch_nbytes(7), int)
    assert_type(mq.shard_scratch_nbytes(7, 7), int)
    assert_type(mq.cu_seqlens_scratch_nbytes(7), int)
    order = mq.tree_order([-1, 0])
    assert_type(order, mq.TreeOrder)
    assert_type(order.inverse, Array)
    mq.warm_up(0)
    assert_type(mq.__version__, str)


def by_numpy(cu: Array) -> None:
    columns = reference.get_attn_mask_q(cu, cu, kv_token_num=7, window=(3, -1), validate=True)
    assert_type(columns, Array)
    assert_type(reference.tree_attn_mask_q([-1, 0], cu, cu, full=[0, 1]), Array)
    assert_type(reference.tree_order([-1, 0]), reference.TreeOrder)
    assert_type(reference.excess_pairs(cu, cu, cu), int)
    assert_type(reference.to_blocks(columns, 7, 128), reference.Blocks)
    assert_type(reference.blocks_width(7), tuple[int, int])
    assert_type(reference.to_four_columns(columns, 7), Array)
    assert_type(reference.to_dense(columns, 7), Array)
    assert_type(reference.split_columns(columns, 1, 7), Array)
    assert_type(reference.shard_columns(columns, cu), Array)
    assert_type(reference.needed_keys(columns, 128), Array)
    assert_type(reference.cu_seqlens_from_ids(cu, 8), Array)
    assert_type(reference.cu_seqlens_from_positions(cu, 8), Array)
    assert_type(reference.spans_from_ids(cu, 8), Array)
    assert_type(reference.cu_seqlens_from_padding(cu), reference.CuSeqlens)
    assert_type(reference.cu_seqlens_from_slots(cu, cu, cu, cu), reference.CuSeqlens)


def over_ranks(cu: Array) -> None:
    chunks = cp.cp_chunks(cu, cu, 4, cp.SCHEMES[0], q_token_num=7, work=None, tolerance=0.02)
    assert_type(chunks, list[Array])
    assert_type(cp.chunk_rows(chunks[0]), Array)
    assert_type(cp.chunks_of([0, 1]), Array)
    assert_type(cp.rows_below(chunks[0], cu), Array)
    assert_type(cp.gathered_keys(chunks, 7), Array)
    tile: int = cp.TILE
    cp.cp_chunks(cu, cu, tile)


def with_flex(cu: torch.Tensor) -> None:
    masks: list[BlockMask] = [
        flex.block_mask(cu, 7, 128, width=None, refine=None),
        flex.packed_block_mask(cu, cu, 7, 7, block_size=128, window=(3, 0)),
        flex.padded_block_mask(cu, block_size=128, causal=False),
        flex.as_block_mask(mq.to_blocks(cu, 7), cu, 7),
    ]
    mask = flex.block_mask(cu, 7)
    assert_type(mask, flex.ColumnsBlockMask)
    assert_type(mask.to("cpu"), flex.ColumnsBlockMask)
    assert_type(mask[0], flex.ColumnsBlockMask)
    assert_type(flex.mask_mod(cu), flex.MaskMod)
    assert_type(flex.RefinedMaskMod(cu, lambda b, h, q, k: q >= k).columns, torch.Tensor)
    assert_type(masks[0], BlockMask)


def with_fa4(cu: torch.Tensor, q: torch.Tensor) -> None:
    arguments = fa4.packed_arguments(cu, cu, 7, 7, 128, window=(3, 0))
    assert_type(arguments, fa4.Arguments)
    assert_type(fa4.arguments(cu, 7, 128, backward=False), fa4.Arguments)
    assert_type(fa4.block_size(128, (9, 0)), tuple[int, int])
    assert_type(fa4.attention(q, q, q, arguments, softmax_scale=0.1), torch.Tensor)
    both = fa4.attention(q, q, q, arguments, return_lse=True)
    assert_type(both, tuple[torch.Tensor, torch.Tensor])
    assert_type(fa4.dq_write_order(mq.to_blocks(cu, 7)), tuple[torch.Tensor, torch.Tensor])


def with_flashmask(columns: torch.Tensor, cupy_columns: Any) -> None:
    assert_type(flashmask.startend_row_indices(columns, 4), torch.Tensor)
    assert_type(flashmask.startend_row_indices(cupy_columns, framework="torch"), torch.Tensor)
    flashmask.startend_row_indices(cupy_columns, framework="paddle")
    flashmask.forward_lists(mq.to_blocks(columns, 7), framework="torch")
