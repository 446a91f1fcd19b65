"""Runs the kernels' own text on the CPU: built with g++ behind cuda_on_cpu.h, run by scripts."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from maskq_cupy import compiler

HERE = Path(__file__).parent
SLOTS = 2

# Small, so that a pack of a few hundred tokens crosses tiles, windows and groups.
SIZES = compiler.Sizes(block_threads=64, near_tiles=2, few_tiles_shift=2, few_segments=1200)
WARP = 32
TILE = 4 * SIZES.block_threads

SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


@contextmanager
def planning(sizes=SIZES):
    """Plan launches for kernels that are built with these sizes."""
    before, compiler.SIZES = compiler.SIZES, sizes
    try:
        yield
    finally:
        compiler.SIZES = before


def available():
    return shutil.which("g++") is not None


def build(folder, sanitizer="plain", sources=None, more_flags=(), sizes=SIZES):
    """Compile all kernels, or the given {file: text}, into an executable; return its path.

    A build is found again in the folder by its content.
    """
    if sources is None:
        sources = {
            p.name: compiler.source(p.name) for p in sorted(compiler.kernel_folder().glob("*.cu"))
        }
    flags = [
        "-std=c++20",
        "-O1",
        "-g",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]
    flags += [*SANITIZERS[sanitizer], *sizes.definitions, *more_flags]
    parts = [str(flags), *sources.values()]
    parts += [(HERE / f).read_text() for f in ("cuda_on_cpu.h", "main.cpp")]
    name = f"{sanitizer}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    executable = Path(folder) / name
    if not executable.exists():
        _compile(executable, flags, sources)
    return executable


def _compile(executable, flags, sources):
    with tempfile.TemporaryDirectory() as temporary:
        units = [HERE / "main.cpp"]
        for slot in range(SLOTS):
            for file, text in sources.items():
                unit = Path(temporary) / f"{slot}_{file}.cpp"
                unit.write_text(_unit(text, slot))
                units.append(unit)
        objects = [Path(temporary) / f"{i}.o" for i in range(len(units))]
        jobs = [
            subprocess.Popen(["g++", *flags, f"-I{HERE}", "-c", str(u), "-o", str(o)])
            for u, o in zip(units, objects, strict=True)
        ]
        for job in jobs:
            job.wait()
        if any(job.returncode for job in jobs):
            raise RuntimeError("the kernels do not compile on the CPU")
        partial = Path(temporary) / "executable"
        subprocess.run(["g++", *flags, *map(str, objects), "-o", str(partial)], check=True)
        executable.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(partial, executable)


def _unit(text, slot):
    """Return a translation unit with a copy of the kernels that has its own names and statics."""
    names = re.findall(r'extern "C" __global__ .*?void (\w+)\(', text)
    defines = "".join(f"#define {name} {name}_{slot}\n" for name in names)
    registers = "".join(f'REGISTER("{name}", {name}_{slot}, {slot})\n' for name in names)
    undefines = "".join(f"#undef {name}\n" for name in names)
    return f'#include "cuda_on_cpu.h"\n{defines}{text}\n{undefines}{registers}'


class Script:
    """Launches to run in one process, and what to read back from their buffers."""

    def __init__(self):
        self._parts = []
        self._buffers = []
        self._reads = []

    def buffer(self, array, offset=0):
        """Add a buffer of the array's bytes, `offset` bytes past a 16-byte boundary."""
        array = np.ascontiguousarray(array)
        self._parts.append(f"B {array.nbytes} {offset}\n".encode() + array.tobytes())
        self._buffers.append(array)
        return Handle(len(self._buffers) - 1)

    def launch(self, launch):
        """Add a `plan.Launch`, whose pointers are handles."""
        words = " ".join(
            f"p {a.index} {a.offset}" if isinstance(a, Handle) else f"v {int(a) % 2**64}"
            for a in launch.arguments
        )
        self._parts.append(
            f"L {launch.kernel} {launch.grid} {len(launch.arguments)} {words}\n".encode()
        )

    def read(self, handle):
        """Ask for the buffer's content; run() returns the contents in this order."""
        self._parts.append(f"R {handle.index}\n".encode())
        self._reads.append(self._buffers[handle.index])

    def run(self, executable, timeout=240):
        """Run in one process; any report of a sanitizer, crash or time-out raises."""
        command = [str(executable)]
        if executable.name.startswith("thread"):
            command = ["setarch", platform.machine(), "-R", *command]
        inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        environment = inherited | {
            "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
            "ASAN_OPTIONS": "detect_leaks=0",
        }
        done = subprocess.run(
            command,
            input=b"".join(self._parts),
            capture_output=True,
            timeout=timeout,
            env=environment,
        )
        if done.returncode or done.stderr:
            raise RuntimeError(f"exit code {done.returncode}\n{done.stderr.decode()[-4000:]}")
        results, at = [], 0
        for like in self._reads:
            data = done.stdout[at : at + like.nbytes]
            results.append(np.frombuffer(data, like.dtype).reshape(like.shape))
            at += like.nbytes
        assert at == len(done.stdout)
        return results


class Handle:
    """A buffer of a script, or a place in it."""

    def __init__(self, index, offset=0):
        self.index, self.offset = index, offset

    def __add__(self, offset):
        return Handle(self.index, self.offset + offset)
