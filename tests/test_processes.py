"""Threads and processes around the package: what needs no GPU."""

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import maskq_cupy
from maskq_cupy import compiler, gpu

ROOT = Path(__file__).resolve().parent.parent

FORK = """
import os, sys, maskq_cupy
from maskq_cupy import gpu

def outcome():
    try:
        return str(maskq_cupy.get_attn_mask_q([0, 3], [0, 3]).shape)
    except RuntimeError as error:
        return str(error)

gpu.refuse_after_fork()  # as the first use of a kernel does
before = outcome()
if (child := os.fork()) == 0:
    print(outcome(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(outcome() == before)
"""


def test_call_after_a_fork():
    pytest.importorskip("cupy")
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "CUDA cannot be used after a fork of a process that has used it: "
        "start processes with multiprocessing's 'spawn' method",
        "True",
    ]


def test_threads_share_a_kernel(monkeypatch):
    """A kernel is loaded once for a device, however first uses meet."""
    pytest.importorskip("cupy")
    meet = threading.Barrier(2, timeout=30)
    function = SimpleNamespace(kernel=SimpleNamespace(ptr=7))
    loads = []

    def slow_module(file):
        loads.append(file)
        time.sleep(0.2)  # for the other thread to ask meanwhile
        return SimpleNamespace(get_function=lambda name: function)

    monkeypatch.setattr(compiler, "_module", slow_module)
    monkeypatch.setattr(compiler, "_check_nvrtc", lambda: None)
    monkeypatch.setattr(compiler, "loaded", defaultdict(dict))

    def first_use():
        meet.wait()
        compiler.load("columns_rule", 0)

    threads = [threading.Thread(target=first_use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["columns_rule.cu"]
    assert set(compiler.loaded[0]) == {"columns_rule"}


def test_warm_up_needs_a_gpu():
    pytest.importorskip("cupy")
    if gpu.gpu_problem() is None:
        pytest.skip("there is a GPU")
    for device in (None, 0):
        with pytest.raises(RuntimeError, match=r"maskq_cupy\.reference computes the same"):
            maskq_cupy.warm_up(device)
