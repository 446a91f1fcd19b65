# ruff: noqa: E402
"""Runs every kernel through the public function, in each of its ways; for compute-sanitizer.

compute-sanitizer --tool memcheck python tests/sanitize_run.py
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import numpy as np
from on_cpu import emulator
from strategies import Pack, cuts, random_pack, random_parents
from test_hostile import hostile_pack
from test_shards import calls_around_sizes, random_calls

import maskq_cupy
from maskq_cupy import compiler, plan, plan_cu_seqlens, reference
from maskq_cupy.gpu import require_cupy


def packs():
    rng = np.random.default_rng(0)
    for tokens in (50, 600, 5000, 40000):
        for _ in range(8):
            yield random_pack(rng, tokens)
    yield far_apart(rng)
    ones = cuts(rng.integers(0, 2, 3000))
    yield Pack(ones, ones, None, int(ones[-1]), {"window": (3, 0), "num_sink_tokens": 1})
    large = cuts([2**19 + 77])
    yield Pack(large, large, None, 2**19 + 77, {})


def far_apart(rng):
    """Many rows to a column: tiles of rows are searched."""
    ends = np.sort(rng.integers(0, 300, 50_000))
    mask = np.stack([np.maximum(ends - 9, 0), ends], axis=1)
    return Pack(cuts([50_000]), cuts([300]), mask, 300, {})


def main():
    cupy = require_cupy()
    launched = record_kernels()
    for pack in packs():
        given = pack.on_gpu(cupy)
        found = maskq_cupy.get_attn_mask_q(*given.arguments(), **given.rule)
        expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        np.testing.assert_array_equal(cupy.asnumpy(found), expected)
        if pack.kv_token_num and pack.kv_token_num < 10_000:
            row_num = int(pack.cu_seqlens_q[len(pack.cu_seqlens_k) - 1])
            maskq_cupy.to_blocks(found, row_num)
            slices = cupy.stack([found, found[::-1]])[None]
            needed = cupy.empty(2, np.int32)
            maskq_cupy.to_blocks(slices, row_num, (16, 16), width=(3, 5), needed=needed)
            maskq_cupy.to_four_columns(found, row_num)
            maskq_cupy.to_dense(found, row_num)
        if pack.attn_mask_kv is not None:
            maskq_cupy.excess_pairs(*given[:3])
            for found in columns_as_if_of_more_rows(given):
                np.testing.assert_array_equal(cupy.asnumpy(found), expected)
    rng = np.random.default_rng(1)
    for segments in (1, 40, 1000, 20_000):
        lens = rng.integers(0, 4, segments)
        parent = cupy.asarray(random_parents(rng, segments), np.int32)
        cu = cupy.asarray(cuts(lens))
        maskq_cupy.tree_attn_mask_q(parent, cu, cu)
        for dtype in (bool, np.int16, np.int32, np.int64):
            maskq_cupy.tree_attn_mask_q(parent, cu, cu, full=cupy.ones(segments, dtype))
    run_cu_seqlens(cupy, rng)
    for _ in range(100):
        given = hostile_pack(rng, 3000).on_gpu(cupy)
        maskq_cupy.get_attn_mask_q(*given.arguments(), **given.rule)
    calls = [call for n in (50, 3000) for call in random_calls(rng, 20, n)]
    calls += [{**call, "key_num": None} for call in calls_around_sizes()]
    for call in calls:
        columns = cupy.asarray(call["columns"])
        local = maskq_cupy.shard_columns(columns, call["rows"], call["keys"])
        right = reference.shard_columns(call["columns"], call["rows"], call["keys"])
        np.testing.assert_array_equal(cupy.asnumpy(local), right)
        maskq_cupy.needed_keys(local)
        maskq_cupy.needed_keys(local, 5000)
    many = np.arange(20_000).reshape(-1, 2)  # more than a block counts: their sums are stored
    maskq_cupy.shard_columns(cupy.zeros((3000, 2), np.int32), many, many)
    cupy.cuda.runtime.deviceSynchronize()
    assert launched == set(compiler.kernels()), launched
    print(f"ran {', '.join(sorted(launched))}")


def columns_as_if_of_more_rows(given):
    """Yield the columns of intervals by the kernels of packs larger than this one."""
    for larger in ({"few_strips": 0}, {"few_strips": 0, "many_strips": 0}):
        with emulator.planning(compiler.SIZES._replace(**larger)):
            found = maskq_cupy.get_attn_mask_q(*given.arguments())
        yield found


def run_cu_seqlens(cupy, rng):
    for tokens in (1, 1000, 50_000, 1_200_000):
        ids = cupy.asarray(np.cumsum(rng.random(tokens) < 0.01), rng.choice([np.int32, np.int64]))
        maskq_cupy.cu_seqlens_from_ids(ids, 900, padding_id=int(ids[-1]))
        maskq_cupy.cu_seqlens_from_positions(ids, tokens)
        maskq_cupy.spans_from_ids(ids % 3, 900, text_id=1)
        columns = maskq_cupy.get_attn_mask_q([0, 2 * tokens], [0, 2 * tokens])
        maskq_cupy.split_columns(columns, 2, 2 * tokens)
        for dtype in (np.bool_, np.int64):
            mask = cupy.asarray(rng.random((3, tokens)) < 0.9, dtype)
            maskq_cupy.cu_seqlens_from_padding(mask)
    slots = [cupy.asarray(cuts(rng.integers(0, 9, 1000))) for _ in range(4)]
    maskq_cupy.cu_seqlens_from_slots(*slots)


def record_kernels():
    """Return a set that will hold the names of the kernels that the plan has launched."""
    launched = set()

    def recorded(make):
        def recording(*arguments, **named):
            made = make(*arguments, **named)
            is_one = made and isinstance(made[0], str)
            launched.update(kernel for kernel, *_ in ([made] if is_one else made))
            return made

        return recording

    for module in (plan, plan_cu_seqlens):
        for name in [name for name in vars(module) if name.endswith(("_launch", "_launches"))]:
            setattr(module, name, recorded(getattr(module, name)))
    return launched


if __name__ == "__main__":
    main()
