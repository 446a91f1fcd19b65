"""One call: its arrays, its device, its streams; results, scratch memory and launches.

    with Call({"columns": columns}, out=out, stream=stream) as call:
        ...                                           # checks, of the facts in call.inputs
        four = call.result("int32", 16, (n, 4))       # the address of out, or of a new array
        call.run(plan.four_columns_launch(...))
        return call.out

Inside, the arrays' device is the current one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from maskq_cupy import checks, compiler, gpu, streams
from maskq_cupy.compiler import Launch
from maskq_cupy.facts import Facts, facts_of, facts_on_gpu


class Call:
    """What a call was given, found on one GPU.

    ``inputs``: the facts of the input arrays by name; none where all are lists and host arrays,
    until they are uploaded. ``targets``: those of the arrays to write: ``out`` or more of them, and
    ``scratch``. ``out``: what the call returns, as it was given or as `result` made it.
    """

    # Slots and one loop: a call on CuPy's arrays takes 10 us in all, of which this is a tenth.
    __slots__ = (
        *("named", "inputs", "targets", "out", "device"),
        *("_stream", "_written", "_launch", "_current", "_given", "_in_order"),
        *("_device_before", "_kept"),
    )

    def __init__(
        self, inputs: dict[str, Any], out: Any = None, scratch: Any = None, stream: Any = None
    ) -> None:
        """inputs: by the names of the arguments; out: an array, or a dict of some by name."""
        self.named, self.out, self._stream = inputs, out, stream
        self._written = written = out if type(out) is dict else {} if out is None else {"out": out}
        if scratch is not None:
            self._written = written | {"scratch": scratch}
        self._device_before: int | None = None
        self._kept: list[Any] = []  # memory of the pool, so long as the call lasts
        if self._find():
            self._move_to_device_of_arrays()
        if stream is not None:
            self._on_device(streams.check_stream, self._launch)

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *error: object) -> None:
        if self._device_before is not None:
            gpu.runtime.setDevice(self._device_before)

    def _find(self) -> bool:
        """Read the facts of all arrays, as seen from the current device; is one on another?"""
        self.device = device = gpu.current_device()
        self._current = self._launch = current = launch = streams.current_stream(device)
        if self._stream is not None:
            self._launch = launch = streams.launch_stream(self._stream)
        inputs: dict[str, Facts] = {}
        targets: dict[str, Facts] = {}
        given: list[Facts] = []
        before = facts = None
        for name, value in self.named.items():
            if value is not before:  # cu_seqlens_q is often cu_seqlens_k too, and read once then
                before = value
                facts = facts_of(value, name, launch, current)
                if facts is not None:
                    given.append(facts)
            if facts is not None:
                inputs[name] = facts
        if inputs and len(inputs) < len(self.named):
            self._refuse_mixture(inputs)
        self.inputs, self.targets, self._given = inputs, targets, given
        for name, value in self._written.items():
            targets[name] = facts = facts_on_gpu(value, name, launch, current)
            given.append(facts)
        in_order, is_astray = launch == current, False
        for facts in given:
            if facts.stream != launch:
                in_order = False
            if facts.device != device:
                is_astray = True
        self._in_order = in_order
        return is_astray

    def _refuse_mixture(self, on_gpu: dict[str, Facts]) -> None:
        places = ", ".join(
            f"{name} on {'a GPU' if name in on_gpu else 'the host'}" for name in self.named
        )
        raise TypeError(f"the input must be all on one GPU or all on the host, got {places}")

    def _move_to_device_of_arrays(self) -> None:
        """Make the arrays' device the current one, and find them again from there."""
        found = {array.device for array in self._given}
        if len(found) > 1:
            raise ValueError(f"all arrays must be on one GPU, got devices {sorted(found)}")
        self._device_before = self.device
        gpu.runtime.setDevice(found.pop())
        self._on_device(self._find)

    def _on_device(self, step: Any, *arguments: Any) -> None:
        """Take a step after which the device is as before if the step raises."""
        try:
            step(*arguments)
        except BaseException:
            self.__exit__()
            raise

    def forbid_in_capture(self, reason: str) -> None:
        """Raise, with the reason, if the launch stream is recording a graph."""
        if streams.is_capturing(self._launch):
            raise RuntimeError(f"not possible while the stream is captured: {reason}")

    def upload(self, parts: dict[str, np.ndarray]) -> None:
        """Copy host arrays of int64 to the device in one transfer; they are the inputs then.

        Through pinned memory, without a wait. All become one-dimensional.
        """
        self.forbid_in_capture("host input is copied: give arrays on the GPU")
        with streams.as_current(self._launch):
            memory = gpu.cupy.asarray(np.concatenate([part.ravel() for part in parts.values()]))
        end = 0
        for name, part in parts.items():
            start, end = end, end + part.size
            self.inputs[name] = facts_on_gpu(memory[start:end], name, self._launch, self._launch)

    def result(self, dtype: str, alignment: int, *shapes: tuple[int, ...]) -> int:
        """Return the address to write the result to: of `out`, or else of a new array.

        `out` has one of the shapes, a new array the first.
        """
        if self.out is None:
            return self._new(dtype, shapes[0])
        checks.check_target_form("out", self.targets["out"], dtype, shapes)
        return self.target("out", alignment)

    def columns(self, column_num: int) -> int:
        """The same of columns; the form of `out` is checked already, where N is taken from it."""
        return self._new("int32", (column_num, 2)) if self.out is None else self.target("out", 8)

    def target(self, name: str, alignment: int) -> int:
        """Return the address of an array to write, whose form is checked."""
        target = self.targets[name]
        checks.check_target(name, target, alignment, self.inputs.values())
        return target.pointer

    def _new(self, dtype: str, shape: tuple[int, ...]) -> int:
        self.forbid_in_capture("the result is allocated: give out=")
        # As cupy.empty does, which costs a third more.
        self.out = self._allocated(gpu.ndarray, shape, dtype)
        return self.out.data.ptr

    def _allocated(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """Return what is made with memory of the launch stream's part of CuPy's pool."""
        if self._launch == self._current:
            return make(*arguments)
        with streams.as_current(self._launch):
            return make(*arguments)

    def scratch(self, nbytes: int) -> int:
        """Return the address of scratch memory: the caller's, or else from CuPy's pool.

        The pool may hand the memory out again after the call: on this stream, behind the launches.
        """
        if "scratch" in self.targets:
            memory = self.targets["scratch"]
            checks.check_scratch(memory, nbytes)
            checks.forbid_overlap("scratch", memory, self._given)
            return memory.pointer
        if nbytes == 0:
            return 0
        self.forbid_in_capture(f"scratch memory is allocated: give scratch= of {nbytes} bytes")
        return self.allocate(nbytes)

    def allocate(self, nbytes: int) -> int:
        """Return the address of memory from CuPy's pool that is kept so long as the call lasts."""
        memory = self._allocated(gpu.cupy.cuda.alloc, nbytes)
        self._kept.append(memory)
        return memory.ptr

    def read_back(self, array: Facts, entries: slice, why: str) -> np.ndarray:
        """Copy entries of an array of shape (n,) to the host, and wait; `why` is of a capture."""
        self.forbid_in_capture(why)
        streams.wait_for_producers(self._launch, self._producers())
        start, stop, _ = entries.indices(array.shape[0])
        host = np.empty(stop - start, array.dtype)
        self.download(array.pointer + start * host.itemsize, host)
        return host

    def download(self, pointer: int, host: np.ndarray) -> None:
        """Fill a host array from the device, behind the work on the launch stream, and wait."""
        kind, stream = gpu.runtime.memcpyDeviceToHost, self._launch
        gpu.runtime.memcpyAsync(host.ctypes.data, pointer, host.nbytes, kind, stream)
        gpu.runtime.streamSynchronize(stream)

    def run(self, *launches: Launch, zeroed: tuple[int, int] | None = None) -> None:
        """Launch in order with the streams of the given arrays.

        ``zeroed`` is the pointer and the bytes of memory that is set to 0 before the launches.
        """
        device, stream = self.device, self._launch
        for launch in launches:
            if device not in compiler.kernel(launch[0]).pointers:
                self._load(launch[0])
        if not self._in_order:
            streams.wait_for_producers(stream, self._producers())
        if zeroed is not None:
            gpu.runtime.memsetAsync(zeroed[0], 0, zeroed[1], stream)
        for name, grid, arguments, overlap in launches:
            compiler.kernel(name).launch(device, stream, grid, arguments, overlap)
        if not self._in_order:
            held = [array.value for array in self._given if array.stream is None]
            streams.release_to_producers(stream, self._producers() | {self._current}, held)

    def _load(self, name: str) -> None:
        self.forbid_in_capture(
            "a kernel is compiled at its first use: call maskq_cupy.warm_up() before"
        )
        compiler.kernel(name).load(self.device)

    def _producers(self) -> set[int]:
        return {array.stream for array in self._given if array.stream is not None}


def columns_of(call: Call) -> Facts:
    """Return the facts of the argument `columns`, of a form that a kernel can read."""
    if not call.inputs:
        raise TypeError(
            "columns must be an array on a GPU, got "
            f"{type(call.named['columns']).__name__} on the host: "
            "maskq_cupy.reference has this function for those"
        )
    columns = call.inputs["columns"]
    checks.check_columns_form(columns.dtype, columns.shape)
    checks.check_contiguous("columns", columns)
    checks.check_aligned("columns", columns, 8)
    return columns
