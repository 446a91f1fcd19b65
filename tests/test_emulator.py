"""The guards of the CPU runs hold: a kernel that reads or writes outside its arrays is reported."""

import platform
import subprocess
import sys

import numpy as np
import pytest
from on_cpu import emulator

OUTSIDE = """
extern "C" __global__ void write_at(char* words, int at)
{
    if (threadIdx.x == 0 && blockIdx.x == 0) words[at] = 1;
}
extern "C" __global__ void read_at(const char* words, int at, char* out)
{
    if (threadIdx.x == 0 && blockIdx.x == 0) *out = words[at];
}
extern "C" __global__ void wait_alone()
{
    if (threadIdx.x == 0) __syncthreads();
}
extern "C" __global__ void race(int* words)
{
    words[0] = (int)threadIdx.x;
}
"""


@pytest.fixture(scope="module")
def build():
    if not emulator.available():
        pytest.skip("g++ is not installed")
    sources = {"outside.cu": OUTSIDE}
    return lambda sanitizer: emulator.build(sanitizer=sanitizer, sources=sources)


@pytest.mark.parametrize(("size", "offset"), [(7, 0), (100, 4), (8, 8)])
def test_guards(build, size, offset):
    def run(sanitizer, kernel, at):
        script = emulator.Script()
        words = script.buffer(np.zeros(size, np.uint8), offset)
        out = [script.buffer(np.zeros(1, np.uint8))] if kernel == "read_at" else []
        script.launch((kernel, 1, (words, at, *out), False))
        return script.run(build(sanitizer))

    for at in (0, size - 1):
        run("plain", "write_at", at)
        run("address", "write_at", at)
        run("address", "read_at", at)
    for at in (-1, -1000, size, size + 1000):
        with pytest.raises(RuntimeError, match="guards of buffer 0"):
            run("plain", "write_at", at)
    # The sanitizer's words are of 8 bytes: it does not see the 4 bytes in front of an odd word.
    for at in (-1 - offset % 8, size):
        with pytest.raises(RuntimeError, match="AddressSanitizer"):
            run("address", "read_at", at)


def test_races(build):
    script = emulator.Script()
    script.launch(("race", 2, (script.buffer(np.zeros(1, np.int32)),), False))
    with pytest.raises(RuntimeError, match="ThreadSanitizer: data race"):
        script.run(build("thread"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="threads of the system wait for ever")
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_threads_that_wait_for_none_end_the_run(build, sanitizer):
    script = emulator.Script()
    script.launch(("wait_alone", 1, (), False))
    with pytest.raises(RuntimeError, match="threads wait for others that do not come"):
        script.run(build(sanitizer))


def test_preloaded_libraries_do_not_reach_a_build(build, monkeypatch):
    """A sanitizer's runtime must come first: it refuses to start behind another library."""
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    script = emulator.Script()
    words = script.buffer(np.zeros(4, np.uint8))
    script.launch(("write_at", 1, (words, 2), False))
    script.read(words)
    assert script.run(build("address"))[0].tolist() == [0, 0, 1, 0]


@pytest.mark.slow
def test_builds_are_kept_by_what_they_are_made_of(tmp_path, monkeypatch):
    if not emulator.available():
        pytest.skip("g++ is not installed")
    monkeypatch.setattr(emulator, "KEPT", 2)

    def build(old, new):
        path = emulator.build(tmp_path, sources={"outside.cu": OUTSIDE.replace(old, new)})
        return path, path.stat().st_ino

    one, other = build("", ""), build("= 1;", "= 2;")
    assert build("", "") == one != other  # found, not made again
    third = build("= 1;", "= 3;")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {one[0].name, third[0].name, "plain.lock"}  # the last used


@pytest.mark.slow
def test_processes_build_once(tmp_path):
    """Several at once, in one folder: one builds, the others wait for it."""
    if not emulator.available():
        pytest.skip("g++ is not installed")
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from on_cpu import emulator
made, compile = [], emulator._compile
emulator._compile = lambda *given: made.append(given) or compile(*given)
emulator.build({str(tmp_path)!r}, sources={{"outside.cu": {OUTSIDE!r}}})
print(len(made))
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert sorted(run.communicate()[0].strip() for run in runs) == ["0", "0", "1"]
