"""Threads and processes around the package: what needs no GPU."""

import threading

import pytest

from maskq_cupy import compile


def test_threads_share_a_kernel(monkeypatch):
    """The one that a thread has loaded is the one that it launches, however first uses meet."""
    pytest.importorskip("cupy")
    meet = threading.Barrier(2, timeout=30)

    class Slow(compile.Kernel):
        def __init__(self, name):
            super().__init__(name)
            meet.wait()

    monkeypatch.setattr(compile, "Kernel", Slow)
    monkeypatch.setattr(compile, "_kernels", {})
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(compile.kernel("columns_rule")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1] is compile.kernel("columns_rule")
