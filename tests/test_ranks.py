"""Several processes: the example, unequal ranks, torch's own context parallelism; by gloo and NCCL.

One torchrun a backend runs ranks.py; each test reads what its check printed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = Path(__file__).with_name("ranks.py")


def output_of(backend):
    """Run the checks in two processes; return what they printed."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *torchrun, str(RANKS), backend],
        # Two processes of one thread each: a machine has more to do than these.
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def printed():
    """What was printed, by backend."""
    found = {}

    def printed(backend):
        torch = pytest.importorskip("torch")
        if not torch.distributed.is_available():
            pytest.skip("torch is built without torch.distributed")
        if backend == "nccl" and torch.cuda.device_count() < 2:
            pytest.skip("torch finds fewer than two GPUs")
        if backend not in found:
            found[backend] = output_of(backend)
        return found[backend]

    return printed


BACKENDS = ["gloo", pytest.param("nccl", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_example(printed, backend):
    lines = re.findall(r"^rank (\d): 1536 rows in \d+ chunks, (\d+) tiles, .* as one process .*$",
                       printed(backend), re.MULTILINE)  # fmt: skip
    assert [rank for rank, _ in lines] == ["0", "1"]
    tiles = [int(tiles) for _, tiles in lines]
    assert max(tiles) <= 1.05 * min(tiles)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["causal", "window", "full"])
def test_unequal_ranks(printed, backend, rule):
    assert f"unequal ranks: {rule} as one process" in printed(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torchs_own(printed, backend):
    out = printed(backend)
    if skipped := re.search(r"^skip torch's own: (.*)$", out, re.MULTILINE):
        pytest.skip(skipped[1])
    assert "torch's own: as one process" in out
