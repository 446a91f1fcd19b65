"""What the package is compared with: plain kernels, bare launches, the same mask by torch."""

import functools
from pathlib import Path

import numpy as np
from timing import cupy

from maskq_cupy import compiler

BLOCK_THREADS = 256
SOURCE = Path(__file__).with_name("baselines.cu")


@functools.cache
def _module():
    return cupy.RawModule(code=SOURCE.read_text(), options=("-std=c++17",))


def launch(name, threads, *arguments):
    """Launch a kernel of baselines.cu on CuPy's current stream, on blocks for so many threads."""
    kernel = _module().get_function(name)
    kernel((-(-threads // BLOCK_THREADS),), (BLOCK_THREADS,), arguments)


def fill(out):
    pairs = out.nbytes // 16
    launch("fill", pairs, out, np.uint32(pairs))


def read_and_fill(source, out):
    pairs = out.nbytes // 16
    launch("read_and_fill", pairs, source, out, np.uint32(pairs))


def fill_after_loads(words, loads, out):
    pairs = out.nbytes // 16
    launch("fill_after_loads", pairs, words, np.uint32(loads), out, np.uint32(pairs))


def published(cu, intervals, out):
    """Launch the published algorithm: its interval form if there are intervals."""
    n, batch = np.uint32(len(out)), np.uint32(len(cu) - 1)
    if intervals is None:
        launch("published_causal", len(out), cu, cu, batch, out, n)
    else:
        launch("published_intervals", len(out), cu, cu, batch, intervals, out, n)


def overlapping_launch():
    """Return what launches `second_of_two`, by the package's own means, so that it may begin while
    the launch before it runs. Give it a number of blocks."""
    function = _module().get_function("second_of_two").kernel
    launch = compiler.overlapping_launch()
    return lambda grid: launch(function.ptr, grid, cupy.cuda.get_current_stream().ptr, 0)


def bare_launch(source, out):
    """Return a call that launches a kernel of five arguments by CuPy's RawKernel, as one does by
    hand: arguments ready, scalars sized, arrays as arrays."""
    kernel = _module().get_function("five_arguments")
    ready = (source, out, np.int32(8), np.uint32(len(out)), np.int32(1))
    grid, block = (-(-len(out) // BLOCK_THREADS),), (BLOCK_THREADS,)
    return lambda: kernel(grid, block, ready)


def causal_by(torch):
    """Return what makes the causal columns by torch's operators, of a pack without padding."""

    def columns(cu_seqlens_q, cu_seqlens_k, n):
        column = torch.arange(n, dtype=torch.int32, device=cu_seqlens_q.device)
        next_b = torch.searchsorted(cu_seqlens_k, column, right=True)
        q_end = cu_seqlens_q[next_b]
        q_len = q_end - cu_seqlens_q[next_b - 1]
        rows_from_ute = (cu_seqlens_k[next_b] - column).clamp(max=q_len)
        return torch.stack([q_end, q_end - rows_from_ute], dim=1)

    return columns
