"""Narrow lists of packs of documents up to 32 K, beside a fill of them; of any columns, beside full
width."""

import baselines
import numpy as np
import pytest
import timing
from timing import cupy

import maskq_cupy

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="gpu", timer=timing.clock)]

LONGEST = 2**15  # tokens of a document
CASES = [(n, case) for n in (2**20, 2**24) for case in ("causal", "full")]
MIXED_WIDTH = (1100, 700)  # enough for `mixed_columns`


def pack_columns(n, case):
    """Return the columns of documents whose lengths are any up to LONGEST."""
    lengths = np.random.default_rng(0).integers(1, LONGEST + 1, 4 * n // LONGEST)
    cu = cupy.asarray(np.append(0, lengths.cumsum()).clip(max=n).astype(np.int32))
    return maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=n, causal=case == "causal")


def mixed_columns(n):
    """Return the same, 64 columns at a time in any order: column tiles of two live runs."""
    order = np.random.default_rng(1).permutation(n // 64)
    return pack_columns(n, "causal").reshape(-1, 64, 2)[order].reshape(-1, 2)


def width_of(case):
    return maskq_cupy.blocks_width(LONGEST, causal=case == "causal")


def lists_sample(columns, n, width):
    """Return a sample of to_blocks, what it writes, and the bytes of lists and of scratch."""
    nbytes = sum(array.nbytes for array in maskq_cupy.to_blocks(columns, n, width=width))
    outs = [maskq_cupy.to_blocks(columns, n, width=width) for _ in range(buffers(nbytes))]
    for array in outs[-1]:
        array.data.memset(255, array.nbytes)
    scratch = cupy.empty(maskq_cupy.blocks_scratch_nbytes(n, n, width=width), np.uint8)
    sample = timing.rotating_sample(
        lambda i: maskq_cupy.to_blocks(columns, n, width=width, out=outs[i], scratch=scratch),
        len(outs),
    )
    return sample, outs, nbytes, scratch.nbytes


def buffers(nbytes):
    return min(timing.buffer_num(nbytes), 4)


@pytest.mark.parametrize(("n", "case"), CASES)
def test_narrow_lists(measure, n, case):
    columns, width = pack_columns(n, case), width_of(case)
    sample, outs, nbytes, scratch_nbytes = lists_sample(columns, n, width)
    held = columns.nbytes + nbytes + scratch_nbytes
    measure(
        "narrow lists", sample, n=n, case=case, bytes=nbytes, held_bytes=held,
        against="fill of narrow lists",
    )  # fmt: skip
    check_head(columns, outs[-1], width)


def check_head(columns, lists, width):
    """Compare the first tiles' lists with those of full width; the others end behind that part."""
    part = min(len(columns), 2**20)
    whole = maskq_cupy.to_blocks(cupy.ascontiguousarray(columns[:part]), part)
    tiles = part // 128 if part == len(columns) else (part - LONGEST) // 128
    for name, array in whole._asdict().items():
        got = getattr(lists, name)[:, :, :tiles]
        room = width[0] if "kv" in name else width[1]
        expected = array[:, :, :tiles, :room] if array.ndim == 4 else array[:, :, :tiles]
        assert (got == expected).all(), name


@pytest.mark.parametrize(("n", "case"), CASES)
def test_fill_of_narrow_lists(measure, n, case):
    nbytes = 16 * (n // 128) * (width_of(case)[0] + 1)
    outs = cupy.empty((buffers(nbytes), nbytes // 16, 4), np.int32)
    sample = timing.rotating_sample(lambda i: baselines.fill(outs[i]), len(outs))
    measure("fill of narrow lists", sample, n=n, case=case, bytes=nbytes)
    assert (outs[-1, :, 0].get() == np.arange(outs.shape[1])).all()


@pytest.mark.parametrize("width", [None, MIXED_WIDTH])
def test_mixed_columns(measure, width):
    n = 2**20
    columns = mixed_columns(n)
    sample, outs, nbytes, _ = lists_sample(columns, n, width)
    what = "full lists" if width is None else "narrow lists"
    measure(what, sample, n=n, case="mixed", bytes=nbytes)
    if width is not None:
        check_head(columns, outs[-1], width)
