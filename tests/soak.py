# ruff: noqa: E402
"""Calls the operator on random packs for a long time, and shows that nothing drifts.

    python tests/soak.py [--calls 1000000]

Each tenth of the calls is the same calls in the same order. Prints a line a tenth: calls a second,
memory of CuPy's pool, of the process and of the GPU. Exits with 1 if a result is wrong (each
thousandth is checked), if memory is not as after the first tenth, or if the last tenth takes more
than 1.1 times the first.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import numpy as np
from strategies import random_pack

import maskq_cupy
from maskq_cupy import reference
from maskq_cupy.compiler import require_cupy

PACKS = 1000
CHECK_EVERY = 1000
MOST_SLOWER = 1.1
MIB = 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    tenth = parser.parse_args().calls // 10
    cupy = require_cupy()
    maskq_cupy.warm_up()
    rng = np.random.default_rng(0)
    sizes = [50, 600, 5000, 40000]
    packs = [random_pack(rng, tokens=int(rng.choice(sizes))) for _ in range(PACKS)]
    given = [pack.on_gpu(cupy) for pack in packs]
    expected = [reference.get_attn_mask_q(*pack.arguments(), **pack.rule) for pack in packs]
    order = rng.integers(0, PACKS, tenth)

    def call(i):
        return maskq_cupy.get_attn_mask_q(*given[i].arguments(), **given[i].rule)

    def check(i):
        return np.array_equal(cupy.asnumpy(call(i)), expected[i])

    assert all(check(i) for i in range(PACKS))  # and the pool has grown as far as it will
    print("tenth   calls/s  us/call   pool MiB   host MiB    GPU MiB  wrong")
    seconds, memory, wrong = [], [], 0
    for number in range(10):
        begin = time.perf_counter()
        for at, i in enumerate(order):
            if at % CHECK_EVERY == CHECK_EVERY - 1:
                wrong += not check(i)
            else:
                call(i)
        cupy.cuda.runtime.deviceSynchronize()
        seconds.append(time.perf_counter() - begin)
        memory.append(memory_in_use(cupy))
        rate = tenth / seconds[-1]
        print(
            f"{number + 1:5} {rate:9.0f} {1e6 / rate:8.2f} "
            + " ".join(f"{nbytes / MIB:10.1f}" for nbytes in memory[-1])
            + f" {wrong:6}",
            flush=True,
        )
    slower = seconds[-1] / seconds[0]
    # The process's own memory may move by an allocator's page or two.
    grown = [now - then for now, then in zip(memory[-1], memory[0], strict=True)]
    steady = grown[0] == 0 and grown[1] < 4 * MIB and grown[2] < 4 * MIB
    print(f"last tenth to first: {slower:.3f} times the time, {grown[1] / MIB:.1f} MiB more")
    good = steady and not wrong and slower <= MOST_SLOWER
    print("good" if good else "NOT GOOD")
    return 0 if good else 1


def memory_in_use(cupy):
    """Return bytes of CuPy's pool, of the process, and of the GPU, all processes on it counted."""
    pool = cupy.get_default_memory_pool().total_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    free, total = cupy.cuda.runtime.memGetInfo()
    return pool, pages * 4096, total - free


if __name__ == "__main__":
    sys.exit(main())
