"""Runs the kernels' own text on the CPU: built with g++ behind cuda_on_cpu.h, run by scripts."""

import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from maskq_cupy import compiler

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / ".kernels"  # where builds are kept from run to run
KEPT = 20  # builds of a sanitizer, those that were used last
SLOTS = 2

# Small, so that a pack of a few hundred tokens crosses tiles, windows and groups.
SIZES = compiler.Sizes(block_threads=64, near_tiles=2, few_strips=8, few_segments=1200)
WARP = 32
TILE = 4 * SIZES.block_threads

SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def named_arguments(launch):
    """Return a launch's arguments by the names of the kernel's parameters."""
    kernel, _, arguments, _ = launch
    return dict(zip(compiler.kernels()[kernel][1].names, arguments, strict=True))


def changed(launch, grid, **arguments):
    """Return the launch with so many blocks, and other arguments for these names."""
    kernel, _, _, overlap = launch
    return compiler.launch_of(kernel)(grid, **named_arguments(launch) | arguments, overlap=overlap)


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


def build(folder=FOLDER, sanitizer="plain", sources=None, more_flags=(), sizes=SIZES):
    """Compile all kernels, or the given {file: text}, into an executable; return its path.

    It is found again in the folder by all that it is made of. Processes may build at once.
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
    units = {
        f"{slot}_{file}.cpp": _unit(text, slot)
        for slot in range(SLOTS)
        for file, text in sources.items()
    }
    units["main.cpp"] = (HERE / "main.cpp").read_text()
    headers = [(HERE / name).read_text() for name in ("cuda_on_cpu.h", "threads.h")]
    parts = [_gxx_version(), str(flags), *headers, *units.values()]
    name = f"{sanitizer}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    executable = Path(folder) / name
    with _locked(executable.parent, sanitizer):
        if executable.exists():
            os.utime(executable)
        else:
            _compile(executable, flags, units)
            _prune(executable.parent, sanitizer)
    return executable


@functools.cache
def _gxx_version():
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@contextmanager
def _locked(folder, sanitizer):
    """Let one process at a time build for a sanitizer in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{sanitizer}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(executable, flags, units):
    """Compile {file: text} into the executable, which is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=executable.parent) as temporary:
        for name, text in units.items():
            Path(temporary, name).write_text(text)

        def compile_unit(name):
            command = ["g++", *flags, f"-I{HERE}", "-c", name, "-o", f"{name}.o"]
            return subprocess.run(command, cwd=temporary).returncode

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if any(list(pool.map(compile_unit, units))):
                raise RuntimeError("the kernels do not compile on the CPU")
        objects = [f"{name}.o" for name in units]
        subprocess.run(["g++", *flags, *objects, "-o", "built"], cwd=temporary, check=True)
        Path(temporary, "built").replace(executable)


def _prune(folder, sanitizer):
    """Remove all but the builds that were used last."""
    builds = sorted(folder.glob(f"{sanitizer}-*"), key=lambda path: path.stat().st_mtime)
    for path in builds[:-KEPT]:
        path.unlink()


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
        """Add a `compiler.Launch`, whose pointers are handles."""
        kernel, grid, arguments, _ = launch
        words = " ".join(
            f"p {a.index} {a.offset}" if isinstance(a, Handle) else f"v {int(a) % 2**64}"
            for a in arguments
        )
        self._parts.append(f"L {kernel} {grid} {len(arguments)} {words}\n".encode())

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
