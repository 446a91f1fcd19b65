"""Print the seconds of the first call in this process, beyond importing CuPy and its context.

Run by test_first_call.py, with "rule" or "intervals", in a process of its own.
"""

import sys
import time

import cupy
import numpy as np

N = 8192
cu = cupy.asarray(np.array([0, N // 2, N], np.int32))
row = np.arange(N, dtype=np.int32) % (N // 2)
causal = np.stack([np.zeros_like(row), row + 1], axis=1)
intervals = cupy.asarray(causal) if sys.argv[1] == "intervals" else None
cupy.cuda.Device().synchronize()

start = time.perf_counter()
import maskq_cupy  # noqa: E402

columns = maskq_cupy.get_attn_mask_q(cu, cu, intervals, N)
cupy.cuda.Device().synchronize()
print(time.perf_counter() - start)

expected = maskq_cupy.reference.get_attn_mask_q(cu.get(), cu.get())
np.testing.assert_array_equal(columns.get(), expected)
