"""How times are taken: device time from graph replays, host time without waiting for the GPU.

Each function here returns a `sample`: a call of it measures once and returns the seconds of one
launch or one call. pytest-benchmark then times samples with `clock`, which stands still but for
what they return: its statistics are the device's or the host's seconds, not those of the test.
"""

import time

import pytest

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: nothing is timed")

ROUNDS, WARMUP_ROUNDS = 15, 2
LEAST_LAUNCHES, MOST_LAUNCHES = 20, 1024  # of a graph
CALLS = 200  # of a host sample: too few for the queue of launches to fill

_measured = 0.0


def clock():
    """Return the seconds that samples have measured so far: the timer of all benchmarks here."""
    return _measured


def run(benchmark, sample, rounds, warmup_rounds):
    """Let pytest-benchmark take so many samples; return their median in seconds."""

    def step():
        global _measured
        _measured += sample()

    benchmark.pedantic(step, rounds=rounds, warmup_rounds=warmup_rounds)
    return benchmark.stats.stats.median


def buffer_num(nbytes):
    """Return how many buffers of so many bytes a graph writes in turn: twice what the L2 holds,
    unless that would take more than MOST_LAUNCHES; then they stay in it."""
    l2 = cupy.cuda.Device().attributes["L2CacheSize"]
    return min(max(-(-2 * l2 // nbytes), 1), MOST_LAUNCHES)


def graph_sample(launch, launches=LEAST_LAUNCHES):
    """Sample the device time of a launch, or of what `launch(i)` enqueues on CuPy's current stream,
    from the replay of a graph of so many of it."""
    launch(0)  # compiles, which a capture may not
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for i in range(launches):
            launch(i)
        graph = stream.end_capture()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def sample():
        graph.launch(stream)  # the GPU is busy with it while the host enqueues the timed one
        start.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) * 1e-3 / launches

    return sample


def rotating_sample(launch, buffers):
    """Sample a launch that is given the number of a buffer, each in turn, so many in all."""
    return graph_sample(lambda i: launch(i % buffers), max(buffers, LEAST_LAUNCHES))


def host_sample(call, calls=CALLS):
    """Sample the host time of a call that enqueues work and does not wait for it."""
    device = cupy.cuda.Device()

    def sample():
        device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls

    return sample


def wall_sample(call, calls):
    """Sample the time of a call, and of its work on the GPU, where many follow each other."""
    device = cupy.cuda.Device()

    def sample():
        device.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        device.synchronize()
        return (time.perf_counter() - start) / calls

    return sample


def torch_sample(torch, call, calls, launches=1):
    """Sample the time on the GPU of a call of torch, which a graph may not capture, by events.

    launches: how many of what is timed a call holds.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample():
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / (calls * launches)

    return sample


def torch_graph_sample(torch, call, launches=LEAST_LAUNCHES):
    """Sample the device time of a call of torch, from the replay of a graph of so many of it.

    It has been called before, so that nothing is left to compile.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            call()
    return torch_sample(torch, graph.replay, 1, launches)
