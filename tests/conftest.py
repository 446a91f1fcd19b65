"""Tests marked `gpu` are skipped, with one line for all of them, where no CUDA device is usable."""

import functools
import importlib
import importlib.util

import pytest
from on_cpu import emulator


def pytest_addoption(parser):
    # The suite also runs without pytest-timeout, which then does not declare its option.
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds a test, where pytest-timeout is installed")


# One skip from one line of code: pytest folds equal places and reasons into a single line.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(
            "no CUDA device: the GPU suite runs with `pytest -m gpu` on a machine that has one "
            f"({reason})"
        )


@functools.cache
def why_no_gpu():
    """Ask once, at the first test that needs the answer: nothing is touched at import."""
    from maskq_cupy.gpu import gpu_problem

    problem = gpu_problem()
    return problem and problem.removeprefix("no CUDA device: ")


@pytest.fixture(scope="session")
def builds(tmp_path_factory):
    """Return what builds the kernels for the CPU, once a sanitizer for all files of tests."""
    if not emulator.available():
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("on_cpu")
    return lambda sanitizer: emulator.build(folder, sanitizer)


@pytest.fixture(scope="session")
def cupy():
    """Return cupy, for tests marked `gpu`: those are skipped where it cannot be imported."""
    return importlib.import_module("cupy")


@pytest.fixture
def second(cupy):
    """Return the second device."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    return cupy.cuda.Device(1)
