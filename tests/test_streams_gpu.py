"""Stream order, threads, graphs, processes on a GPU.

Producers have long work in front of them, and each kind of ordering is seen to fail without its
events: a test that passes then would test nothing. MASKQ_THREAD_SECONDS and MASKQ_REPLAYS make the
long tests longer or shorter.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from strategies import cuts, random_pack

import maskq_cupy
from maskq_cupy import reference, streams

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parent.parent
THREAD_SECONDS = float(os.environ.get("MASKQ_THREAD_SECONDS", "3"))
REPLAYS = int(os.environ.get("MASKQ_REPLAYS", "10000"))

SPIN = r"""
extern "C" __global__ void spin(long long cycles)
{
    long long begin = clock64();
    while (clock64() - begin < cycles) {}
}
"""
CYCLES = 100_000_000  # 50 ms or more


@pytest.fixture(scope="module")
def cupy():
    cupy = pytest.importorskip("cupy")
    maskq_cupy.warm_up()
    return cupy


@pytest.fixture(scope="module")
def spin(cupy):
    """A function that keeps CuPy's current stream busy."""
    kernel = cupy.RawKernel(SPIN, "spin", backend="nvrtc")

    def spin():
        kernel((1,), (1,), (np.int64(CYCLES),))

    spin()
    cupy.cuda.runtime.deviceSynchronize()
    return spin


# Producers: what a framework does on a stream of its own, under `with producer.current():`.


class CupyProducer:
    def __init__(self, cupy, spin):
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.busy = spin
        self._cupy = cupy

    def current(self):
        return self.stream

    def array(self, values):
        return self._cupy.asarray(values, np.int32)

    def write(self, array, right):
        array[...] = right

    def erase(self, array):
        array.fill(0)


class TorchProducer:
    def __init__(self, cupy, spin):
        self._torch = pytest.importorskip("torch")
        self.stream = self._torch.cuda.Stream()

    def busy(self):
        self._torch.cuda._sleep(CYCLES)

    def current(self):
        return self._torch.cuda.stream(self.stream)

    def array(self, values):
        return self._torch.tensor(values, dtype=self._torch.int32, device="cuda")

    def write(self, array, right):
        array.copy_(right)

    def erase(self, array):
        array.zero_()


N = 4096
CUTS = [0, N // 4, N]


def columns_of_late_input(cupy, producer):
    """Call while the producer has yet to write the input; return whether the columns are right."""
    late, right = producer.array(CUTS), producer.array(CUTS)
    out = cupy.zeros((N, 2), np.int32)
    launch_stream = cupy.cuda.Stream(non_blocking=True)
    with producer.current():
        producer.write(late, right)  # whatever a first use costs is spent
        producer.erase(late)
    cupy.cuda.runtime.deviceSynchronize()
    with producer.current():
        producer.busy()
        producer.write(late, right)
        maskq_cupy.get_attn_mask_q(late, late, out=out, stream=launch_stream)
    cupy.cuda.runtime.deviceSynchronize()
    return is_right(cupy, out)


def columns_of_input_erased_early(cupy, spin, producer):
    """Erase the input right after a call that has long work in front; return whether it was read
    before."""
    given = producer.array(CUTS)
    out = cupy.zeros((N, 2), np.int32)
    launch_stream = cupy.cuda.Stream(non_blocking=True)
    with producer.current():
        producer.erase(producer.array(CUTS))  # whatever a first use costs is spent
    cupy.cuda.runtime.deviceSynchronize()
    with launch_stream:
        spin()
    with producer.current():
        maskq_cupy.get_attn_mask_q(given, given, out=out, stream=launch_stream)
        producer.erase(given)
    cupy.cuda.runtime.deviceSynchronize()
    return is_right(cupy, out)


def is_right(cupy, out):
    return np.array_equal(cupy.asnumpy(out), reference.get_attn_mask_q(CUTS, CUTS))


def drop(monkeypatch, name):
    """Let streams.<name> do nothing."""
    assert callable(getattr(streams, name))
    monkeypatch.setattr(streams, name, lambda *arguments: None)


PRODUCERS = [CupyProducer, TorchProducer]


@pytest.mark.parametrize("kind", PRODUCERS)
def test_late_input_is_waited_for(cupy, spin, kind):
    producer = kind(cupy, spin)
    for _ in range(5):
        assert columns_of_late_input(cupy, producer)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_late_input_is_missed_without_the_event(cupy, spin, kind, monkeypatch):
    drop(monkeypatch, "wait_for_producers")
    assert not columns_of_late_input(cupy, kind(cupy, spin))


@pytest.mark.parametrize("kind", PRODUCERS)
def test_input_may_be_erased_at_once(cupy, spin, kind):
    producer = kind(cupy, spin)
    for _ in range(5):
        assert columns_of_input_erased_early(cupy, spin, producer)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_erased_input_is_read_without_the_event(cupy, spin, kind, monkeypatch):
    drop(monkeypatch, "release_to_producers")
    assert not columns_of_input_erased_early(cupy, spin, kind(cupy, spin))


@pytest.mark.parametrize("kept", [True, False])
def test_current_stream_waits_for_the_result(cupy, spin, monkeypatch, kept):
    """Work that follows on CuPy's current stream sees the columns; without the event, zeros."""
    if not kept:
        drop(monkeypatch, "release_to_producers")
    launch_stream, current = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    given = cupy.asarray(CUTS, np.int32)
    out, copy = cupy.zeros((N, 2), np.int32), cupy.zeros((N, 2), np.int32)
    copy[...] = out  # whatever a first use costs is spent
    cupy.cuda.runtime.deviceSynchronize()
    with launch_stream:
        spin()
    with current:
        maskq_cupy.get_attn_mask_q(given, given, out=out, stream=launch_stream)
        copy[...] = out
    cupy.cuda.runtime.deviceSynchronize()
    assert is_right(cupy, out)
    assert is_right(cupy, copy) is kept


# Threads


def call_from_threads(cupy, seconds, thread_num=8):
    """Call from threads at once, each on its own stream; return the number of calls and errors."""
    start, counts, errors = threading.Barrier(thread_num), [0] * thread_num, []

    def work(number):
        rng = np.random.default_rng(number)
        packs = [random_pack(rng, tokens=int(rng.choice([50, 600, 5000]))) for _ in range(50)]
        expected = [reference.get_attn_mask_q(*p.arguments(), **p.rule) for p in packs]
        stream = cupy.cuda.Stream(non_blocking=True)
        start.wait()
        try:
            with stream:
                given = [pack.on_gpu(cupy) for pack in packs]
                end = time.monotonic() + seconds
                while counts[number] < 20 or time.monotonic() < end:
                    i = counts[number] % len(packs)
                    found = maskq_cupy.get_attn_mask_q(*given[i].arguments(), **given[i].rule)
                    np.testing.assert_array_equal(cupy.asnumpy(found), expected[i])
                    counts[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(thread_num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts, errors


def test_threads(cupy):
    counts, errors = call_from_threads(cupy, THREAD_SECONDS)
    print(f"{sum(counts)} calls of 8 threads in {THREAD_SECONDS:g} s")
    assert not errors, errors[0]


def run(code, **environment):
    """Run code in a process of its own, without compiled kernels; return what it did."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_threads_race_to_the_first_use(tmp_path):
    code = """
import cupy
from test_streams_gpu import call_from_threads
counts, errors = call_from_threads(cupy, seconds=0)
assert not errors, errors[0]
print(len(counts))
"""
    for cache in ("cold", "cold", "warm"):
        folder = tmp_path / "cache" if cache == "warm" else tmp_path / f"{time.monotonic_ns()}"
        done = run(code, CUPY_CACHE_DIR=str(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "8\n"


# Graphs

CAPTURE = """
import cupy, maskq_cupy, numpy as np
if {warm}:
    maskq_cupy.warm_up()
cu = cupy.asarray([0, 3], np.int32)
mask = cupy.asarray([[0, 1], [0, 2], [0, 3]], np.int32) if {intervals} else None
out = cupy.zeros((3, 2), np.int32)
scratch = cupy.empty(maskq_cupy.scratch_nbytes(3), np.uint8)
stream = cupy.cuda.Stream(non_blocking=True)
cupy.cuda.runtime.deviceSynchronize()
with stream:
    stream.begin_capture()
    try:
        maskq_cupy.get_attn_mask_q(cu, cu, mask, out=out, scratch=scratch)
    except RuntimeError as error:
        print(error)
    graph = stream.end_capture()
    graph.launch()
    stream.synchronize()
print(out.T.tolist())
"""


@pytest.mark.parametrize("intervals", [False, True])
def test_capture_with_a_cold_cache(tmp_path, intervals):
    cold = run(CAPTURE.format(warm=False, intervals=intervals), CUPY_CACHE_DIR=str(tmp_path))
    assert cold.stdout.splitlines()[0] == (
        "not possible while the stream is captured: a kernel is compiled at its first use: "
        "call maskq_cupy.warm_up() before"
    ), cold.stderr
    warm = run(CAPTURE.format(warm=True, intervals=intervals), CUPY_CACHE_DIR=str(tmp_path))
    assert warm.stdout == "[[3, 3, 3], [0, 1, 2]]\n", warm.stderr


@pytest.mark.parametrize("intervals", [False, True])
def test_many_replays(cupy, intervals):
    """Inputs change in place between the replays of one captured call."""
    rng = np.random.default_rng(13)
    n, batch, kinds = 9000, 20, 100  # more rows than one launch reads
    q, k = (cupy.zeros(batch + 1, np.int32) for _ in range(2))
    mask = cupy.zeros((n, 2), np.int32) if intervals else None
    out = cupy.empty((n, 2), np.int32)
    scratch = cupy.empty(maskq_cupy.scratch_nbytes(n), np.uint8)
    inputs, expected = [], []
    for _ in range(kinds):
        lens = rng.multinomial(n - 10, np.ones(batch) / batch)
        host = [cuts(lens), cuts(rng.permutation(lens))]
        host.append(rng.integers(-1, 150, (n, 2)).astype(np.int32) if intervals else None)
        inputs.append([None if a is None else cupy.asarray(a) for a in host])
        expected.append(cupy.asarray(reference.get_attn_mask_q(*host, n)))
    stream = cupy.cuda.Stream(non_blocking=True)
    wrong = cupy.zeros((), np.int64)
    cupy.cuda.runtime.deviceSynchronize()
    with stream:
        stream.begin_capture()
        maskq_cupy.get_attn_mask_q(q, k, mask, out=out, scratch=scratch)
        graph = stream.end_capture()
        for i in rng.integers(0, kinds, REPLAYS):
            for place, values in zip((q, k, mask), inputs[i], strict=True):
                if place is not None:
                    place[...] = values
            out.fill(-1)
            graph.launch()
            wrong += (out != expected[i]).any()
        stream.synchronize()
    assert int(wrong) == 0


# Processes


def test_fork_after_use():
    done = run("""
import os, cupy, maskq_cupy
maskq_cupy.get_attn_mask_q([0, 3], [0, 3])
if (child := os.fork()) == 0:
    for call in (lambda: maskq_cupy.get_attn_mask_q([0, 3], [0, 3]), maskq_cupy.warm_up):
        try:
            call()
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(maskq_cupy.get_attn_mask_q([0, 3], [0, 3]).T.tolist())
""")
    message = (
        "CUDA cannot be used after a fork of a process that has used it: "
        "start processes with multiprocessing's 'spawn' method"
    )
    assert done.stdout.splitlines() == [message, message, "[[3, 3, 3], [0, 1, 2]]"], done.stderr


def test_fork_after_another_library_used_cuda():
    done = run("""
import os, cupy, maskq_cupy
cupy.zeros(1)
if (child := os.fork()) == 0:
    try:
        maskq_cupy.get_attn_mask_q([0, 3], [0, 3])
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
""")
    assert done.stdout.startswith("CUDA cannot be used after a fork of a process"), done.stderr


DLPACK = """
class Exporter:
    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

cu = Exporter(cupy.asarray([0, 3], 'i4'))
"""


@pytest.mark.parametrize("kind", ["cupy", "torch", "dlpack"])
def test_shutdown_with_live_arrays_is_silent(kind):
    pytest.importorskip("torch" if kind == "torch" else "cupy")
    make = {
        "cupy": "cu = cupy.asarray([0, 3], 'i4')",
        "torch": "import torch; cu = torch.tensor([0, 3], dtype=torch.int32, device='cuda')",
        "dlpack": DLPACK,
    }[kind]
    done = run(f"""
import cupy, maskq_cupy
{make}
stream = cupy.cuda.Stream(non_blocking=True)
kept = [maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=3) for _ in range(10)]
kept += [maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=3, stream=stream) for _ in range(10)]
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
