"""Tests marked `gpu` are skipped, with one line for all of them, where no CUDA device is usable."""

import functools
import importlib
import importlib.util
import sys

import pytest
from on_cpu import emulator


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="leave slow tests out, and most random cases"
    )
    # The suite also runs without pytest-timeout, which then does not declare its option.
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds a test, where pytest-timeout is installed")


# Fixtures that take long, once a process: what uses them is slow, and shares a process.
LONG = {"built", "compiled_on_cpu", "printed"}


# First: pytest-xdist reads the groups in this hook too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    is_quick = config.getoption("--quick")
    for item in items:
        callspec = getattr(item, "callspec", None)
        sanitizer = callspec.params.get("sanitizer", "plain") if callspec else "plain"
        long = LONG & {*item.fixturenames}
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.xdist_group("gpu"))
        elif long:
            item.add_marker(pytest.mark.xdist_group(*long))
        if long or sanitizer != "plain":
            item.add_marker(pytest.mark.slow)
        if is_quick and callspec and "count" in callspec.params:
            callspec.params["count"] = -(-callspec.params["count"] // 20)
    if is_quick:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


# One skip from one line of code: pytest folds equal places and reasons into a single line.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(
            "no CUDA device: the GPU suite runs with `pytest -m gpu` on a machine that has one "
            f"({reason})"
        )


# Behind pytest's own last line.
def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or importlib.util.find_spec("torch"):
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", ())]
    if count := sum("'torch'" in reason or "torch is not" in reason for reason in reasons):
        reporter.write_line(
            f"{count} tests or files of them were skipped for want of torch: "
            "`make venv TORCH=1` installs it"
        )


@functools.cache
def why_no_gpu():
    """Ask once, at the first test that needs the answer: nothing is touched at import."""
    from maskq_cupy.gpu import gpu_problem

    problem = gpu_problem()
    return problem and problem.removeprefix("no CUDA device: ")


@pytest.fixture(scope="session")
def builds():
    """Return what builds the kernels for the CPU, once a sanitizer for all files of tests.

    The builds are kept in `.kernels` for later runs, and for other processes of this one.
    """
    if not emulator.available():
        pytest.skip("g++ is not installed")
    return functools.cache(lambda sanitizer: emulator.build(sanitizer=sanitizer))


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


@pytest.fixture(autouse=True)
def _pool_is_emptied(request):
    """Give back what a test on a GPU left in CuPy's pool, which torch cannot use."""
    yield
    cupy = sys.modules.get("cupy")
    if cupy is not None and request.node.get_closest_marker("gpu"):
        cupy.get_default_memory_pool().free_all_blocks()
