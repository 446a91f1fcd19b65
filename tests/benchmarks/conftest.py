"""The benchmarks: every timed configuration is checked in the same run.

Without a GPU they are skipped, with one line for all. `report.py` reads what they write.
"""

import subprocess
import sys

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    """Name what the times depend on."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    machine_info["gpu"] = properties["name"].decode()
    machine_info["driver"] = driver_version()
    machine_info["cupy"] = cupy.__version__
    torch = sys.modules.get("torch")  # imported, if there is one, by the tests that need it
    machine_info["torch"] = str(torch.__version__) if torch else None


def driver_version():
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return torch


@pytest.fixture
def measure(benchmark):
    """Return what takes samples and notes the facts by which the report finds the result.

    what: the name of what is timed. Facts are numbers and names: n, b and case of a pack, bytes
    moved, what it is compared with, and others.
    """
    import timing  # imports CuPy

    def measure(what, sample, rounds=timing.ROUNDS, warmup_rounds=timing.WARMUP_ROUNDS, **facts):
        seconds = timing.run(benchmark, sample, rounds, warmup_rounds)
        benchmark.extra_info.update(what=what, microseconds=seconds * 1e6, **facts)
        if nbytes := facts.get("bytes"):
            benchmark.extra_info["gb_per_s"] = nbytes / seconds * 1e-9

    return measure
