"""FlashAttention-4's own code with ours, without a GPU: kernels compile, lists are its lists."""

import os
import subprocess
import sys
from pathlib import Path

import fa4_compile
import numpy as np
import pytest

from maskq_cupy import reference

if not fa4_compile.is_installed():
    pytest.skip("flash-attn-4 is not installed", allow_module_level=True)
torch = pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent


# Every form of columns and lists, and each size of tile but one, which differs in its columns only.
CASES = {
    "90": ["128,gqa", "64,4d", "256"],
    "100": ["128,gqa,deterministic", "192/128,heads", "256,forward"],
}


@pytest.mark.parametrize("arch", CASES)
def test_kernels_compile_once_for_all_packs(arch):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fa4_compile.py"), arch, *CASES[arch]],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(CASES[arch])
    for line, case in zip(lines, CASES[arch], strict=True):
        backward = 0 if "forward" in case else 1
        assert f"sm_{arch} {case}: 1 forward, {backward} backward in " in line


@pytest.mark.parametrize("size", [32, (64, 128)])
def test_dq_write_order_is_flash_attentions_own(size):
    """On the entries that count: it writes some to the others, which are never read."""
    from flash_attn.cute.block_sparsity import compute_dq_write_order

    from maskq_cupy import fa4

    columns = reference.get_attn_mask_q([0, 130, 500, 900], [0, 100, 600, 1111], window=(300, 0))
    arrays = reference.to_blocks(columns, 900, size)
    lists = reference.Blocks(*map(torch.as_tensor, arrays))
    theirs = compute_dq_write_order(*lists, spt=False)
    for counts, ours, right in zip(
        (arrays.q_num_blocks, arrays.full_q_num_blocks), fa4.dq_write_order(lists), theirs,
        strict=True,
    ):  # fmt: skip
        is_listed = np.arange(ours.shape[-1]) < counts[..., None]
        assert is_listed.any()
        np.testing.assert_array_equal(ours.numpy()[is_listed], right.numpy()[is_listed])
