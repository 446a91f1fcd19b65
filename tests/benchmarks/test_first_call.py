"""The first call in a new process, with and without compiled kernels in CuPy's cache."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timing

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(group="first_call", timer=timing.clock)]

SCRIPT = Path(__file__).with_name("first_call.py")
ROOT = SCRIPT.parent.parent.parent
ROUNDS = 3


def seconds_in_new_process(mode, cache):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, SCRIPT, mode],
        env=os.environ | {"PYTHONPATH": path, "CUPY_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("mode", ["rule", "intervals"])
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_first_call(measure, tmp_path, cache, mode):
    caches = (tmp_path / str(i) for i in itertools.count())
    if cache == "warm":
        seconds_in_new_process(mode, tmp_path)

    def sample():
        return seconds_in_new_process(mode, next(caches) if cache == "cold" else tmp_path)

    measure("first call", sample, rounds=ROUNDS, warmup_rounds=0, case=mode, cache=cache)
