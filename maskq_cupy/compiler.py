"""From `.cu` files to functions on a GPU: find, inline, compile at first use, cache, launch.

A kernel's signature is the one home of its parameters' order: a launch names them. Nothing
happens at import: a kernel is compiled when it is first asked for.
"""

import ctypes
import re
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from maskq_cupy import gpu, installing


class Sizes(NamedTuple):
    """What the kernels are compiled with, by its name in capitals, and launches are planned for."""

    block_threads: int = 256  # a multiple of 32
    near_tiles: int = 6  # row tiles with steps that a block reads for a tile of columns
    few_strips: int = 32  # of 128 rows, which a block reads whole; some packs twice as many
    many_strips: int = 1 << 16  # of rows, which are read twice rather than their staircases stored
    few_segments: int = 16384  # of a forest, whose minima fit in a block's shared memory

    @property
    def definitions(self) -> tuple[str, ...]:
        named = zip(self._fields, self, strict=True)
        return tuple(f"-D{name.upper()}={value}" for name, value in named)


SIZES = Sizes()  # tests replace it whole
# One tuple of options for all modules: CuPy runs an empty compile for each distinct tuple in a
# process, about 25 ms.
OPTIONS = ("-std=c++17", *SIZES.definitions)

_MISSING_NVRTC = (
    f"CuPy compiles the kernels with NVRTC, which it does not find: {installing.EITHER_CUPY}"
)


def kernel_folder() -> Path:
    """Return the folder of the kernels: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the kernels are missing from {package}: reinstall maskq-cupy")


def source(file: str) -> str:
    """Return a `.cu` file with its includes inlined, each once, and lines numbered as in the files.

    Inlined because CuPy's disk cache is keyed by the text that it is given.
    """
    return _inline(file, set())


def _inline(file: str, seen: set[str]) -> str:
    seen.add(file)
    lines = []
    for number, line in enumerate((kernel_folder() / file).read_text().splitlines(), start=1):
        include = re.fullmatch(r'#include "(.+)"', line)
        if include is None:
            lines.append(line)
        elif include[1] not in seen:
            lines += [_inline(include[1], seen), f'#line {number + 1} "{file}"']
        else:
            lines.append("")
    return f'#line 1 "{file}"\n' + "\n".join(lines)


def compile_sources(arch: int) -> dict[str, str]:
    """Compile every `.cu` file with NVRTC for sm_{arch}, no GPU needed; return the program logs.

    The logs hold each kernel's registers, stack and spills. Raises cupy's CompileException.
    """
    cuda = gpu.require_cupy().cuda
    options = (*OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v")
    logs = {}
    for path in sorted(kernel_folder().glob("*.cu")):
        text = source(path.name)
        program = cuda.nvrtc.createProgram(text, path.name, (), ())
        try:
            cuda.nvrtc.compileProgram(program, options)
        except cuda.nvrtc.NVRTCError:
            log = cuda.nvrtc.getProgramLog(program)
            raise cuda.compiler.CompileException(log, text, path.name, options) from None
        finally:
            logs[path.name] = cuda.nvrtc.getProgramLog(program).strip("\0\n ")
            cuda.nvrtc.destroyProgram(program)
    return logs


class Signature(NamedTuple):
    """A kernel's parameters: their names, and their kinds as `struct` writes them."""

    names: tuple[str, ...]
    form: str


def signatures(text: str) -> dict[str, Signature]:
    """Return the signature of each kernel that a `.cu` file's text defines."""
    code = re.sub("//.*", "", text)
    found = re.findall(r'extern "C" __global__ [^;{]*?void (\w+)\((.*?)\)\s*{', code, re.DOTALL)
    return {name: _signature(parameters.split(",")) for name, parameters in found}


def _signature(parameters: list[str]) -> Signature:
    declared = [re.fullmatch(r"(.*?)(\w+)", p.strip(), re.DOTALL) for p in parameters if p.strip()]
    kinds = [(match[1].strip(), match[2]) for match in declared if match]
    form = "".join("P" if "*" in kind else _FORMS[kind] for kind, _ in kinds)
    return Signature(tuple(name for _, name in kinds), form)


_FORMS = {"int": "i", "unsigned": "I", "long long": "q", "unsigned long long": "Q"}


@cache
def kernels() -> dict[str, tuple[str, Signature]]:
    """Return each kernel's file and signature, by its name."""
    files = {path.name: path.read_text() for path in sorted(kernel_folder().glob("*.cu"))}
    return {
        name: (file, signature)
        for file, text in files.items()
        for name, signature in signatures(text).items()
    }


# A kernel's name; its number of blocks; its arguments in the order of its signature, a pointer as
# an address; may it begin while the launch before it still runs, for which it waits by itself?
# No class: to make one takes twice as long.
Launch = tuple[str, int, tuple, bool]


@cache
def launch_of(kernel: str) -> Callable[..., Launch]:
    """Return the function that makes a launch of a kernel: of its blocks, its arguments by name.

    It is made from the signature, so that Python itself requires each name once. A call costs 0.1
    us, as a tuple in a fixed order does; a dict of the names and its lookup cost 0.3 us more.
    """
    names = ", ".join(kernels()[kernel][1].names)
    make = f"lambda grid, {names}, overlap=False: (kernel, grid, ({names},), overlap)"
    return eval(make, {"kernel": kernel})


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, of which programmatic stream serialization is used."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((axis, ctypes.c_uint) for axis in ("grid_x", "grid_y", "grid_z")),
        *((axis, ctypes.c_uint) for axis in ("block_x", "block_y", "block_z")),
        ("shared_memory", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_num", ctypes.c_uint),
    )


_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class Kernel:
    """A kernel, loaded for a device.

    Launches with its parameters packed into one buffer a thread: `RawKernel.__call__` wraps every
    argument in an object, which costs more than the launch.
    """

    def __init__(self, function: Any, form: str, device: int) -> None:
        """function: CuPy's, for the device; form: of the kernel's signature."""
        self._function = function  # keeps its module loaded
        self._pointer: int = function.ptr
        self._device = device
        self._packer = struct.Struct(form)
        ends = [struct.calcsize(form[: i + 1]) for i in range(len(form))]
        self._offsets = [end - struct.calcsize(c) for end, c in zip(ends, form, strict=True)]
        self._per_thread = threading.local()

    def launch(self, stream: int, grid: int, arguments: tuple, overlap: bool = False) -> None:
        """Launch on its device, which is the current one.

        arguments: in the order of the kernel's parameters.
        overlap: let it begin before the end of the launch before it, on devices that can.
        """
        try:
            pack, parameters = self._per_thread.buffer
        except AttributeError:
            pack, parameters = self._per_thread.buffer = self._new_buffer()
        pack(*arguments)
        function = self._pointer
        if overlap and _can_overlap(self._device):
            _launch_overlapping(function, grid, stream, parameters)
        else:
            threads = SIZES.block_threads
            gpu.driver.launchKernel(function, grid, 1, 1, threads, 1, 1, 0, stream, parameters, 0)

    def _new_buffer(self) -> tuple[Callable[..., None], int]:
        """Return what packs a thread's parameters, and the address of their addresses."""
        gpu.runtime.setDevice(self._device)  # makes the context current in a new thread
        buffer = ctypes.create_string_buffer(self._packer.size)
        start = ctypes.addressof(buffer)
        parameters = (ctypes.c_void_p * len(self._offsets))(*(start + at for at in self._offsets))
        self._per_thread.parameters = parameters  # its address alone would not keep it
        return partial(self._packer.pack_into, buffer, 0), ctypes.addressof(parameters)


def _launch_overlapping(function: int, grid: int, stream: int, parameters: int) -> None:
    """Launch so that the kernel may begin before the end of the launch before it.

    It spares intervals of 8,192 rows 0.3 us of 5.4 (docs/performance.md). Only cuLaunchKernelEx can
    do this. CuPy does not wrap it, hence ctypes.
    """
    try:
        launch = _per_thread.overlapping_launch
    except AttributeError:
        launch = _per_thread.overlapping_launch = overlapping_launch()
    launch(function, grid, stream, parameters)


_per_thread = threading.local()


def overlapping_launch() -> Callable[[int, int, int, int], None]:
    """Return a thread's function that does: of function, blocks, stream and parameters."""
    attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1
    threads = SIZES.block_threads, 1, 1
    config = _Config(*(1, 1, 1), *threads, 0, None, ctypes.pointer(attribute), 1)
    config_address = ctypes.addressof(config)
    call = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    call.argtypes = (ctypes.c_void_p,) * 4

    def launch(function: int, grid: int, stream: int, parameters: int) -> None:
        config.grid_x = grid
        config.stream = stream
        status = call(config_address, function, parameters, None)
        if status:
            gpu.driver.check_status(status)

    return launch


@cache
def _can_overlap(device: int) -> bool:
    """Programmatic dependent launch came with compute capability 9.0, and with NVRTC 11.8.

    An older NVRTC compiles for an older one, and no waits; the extras bring a newer one.
    """
    return int(gpu.cupy.cuda.Device(device).compute_capability) >= 90


def _check_nvrtc() -> None:
    """Require NVRTC, which CuPy asks for its version even where a kernel is in the disk cache."""
    try:
        gpu.require_cupy().cuda.nvrtc.getVersion()
    except RuntimeError as error:
        raise RuntimeError(_MISSING_NVRTC) from error


# Two threads that need one file would both compile it, for a second.
_one_compiles = threading.Lock()


loaded: dict[int, dict[str, Kernel]] = defaultdict(dict)  # by device and name, for all threads


def load(name: str, device: int) -> None:
    """Compile a kernel, or take it from CuPy's disk cache, and load it for the current device."""
    gpu.refuse_after_fork()
    with _one_compiles:
        if name not in loaded[device]:
            _check_nvrtc()
            file, (_, form) = kernels()[name]
            try:
                function = _module(file).get_function(name).kernel
            except OSError as error:
                raise RuntimeError(f"{gpu.UNUSABLE_CACHE} {error}") from error
            loaded[device][name] = Kernel(function, form, device)


@cache
def _module(file: str) -> Any:
    """Return the module of a file, whose kernels share it."""
    return gpu.require_cupy().RawModule(code=source(file), options=OPTIONS, backend="nvrtc")


def warm_up(device: int | None = None) -> None:
    """Compile and load every kernel for a device, the current one if None.

    This takes seconds the first time on a machine, milliseconds from CuPy's disk cache, and
    microseconds from then on. A call compiles a kernel by itself at its first use, but cannot in a
    graph capture.

    Args:
        device: its number.

    Raises:
        RuntimeError: without a GPU or NVRTC.
    """
    current = gpu.current_device()
    device = current if device is None else device
    with gpu.cupy.cuda.Device(device):
        for name in kernels():
            load(name, device)
