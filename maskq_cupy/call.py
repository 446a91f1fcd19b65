"""One call: its arrays, its device, its streams; results, scratch memory and launches.

    call = Call({"columns": columns}, out=out, stream=stream)
    ...                                           # checks, of the facts in call.inputs
    four = call.result("int32", 16, (n, 4))       # the address of out, or of a new array
    call.run(plan.four_columns_launch(...))
    return call.out

Its methods do their work on the arrays' device, whichever is the current one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskq_cupy import checks, compiler, gpu, streams
from maskq_cupy.compiler import Launch
from maskq_cupy.facts import Facts, facts_of

_NONE: dict[str, Any] = {}  # of what a call has none of; never written to


class Call:
    """What a call was given, found on one GPU.

    ``inputs``: the facts of the input arrays by name; none where all are lists and host arrays,
    until they are uploaded. ``targets``: those of the arrays to write: ``out`` or more of them, and
    ``scratch``. ``out``: what the call returns, as it was given or as `result` made it.
    """

    # Slots, and no helpers: a call on CuPy's arrays takes 10 us in all, of which this is a tenth.
    __slots__ = (
        *("named", "inputs", "targets", "out", "device"),
        *("_launch", "_current", "_in_order", "_kept"),
    )

    def __init__(
        self,
        inputs: dict[str, Any],
        out: Any = None,
        scratch: Any = None,
        stream: Any = None,
    ) -> None:
        """inputs: by the names of the arguments, a dict that is the call's from now on; out: an
        array, or a dict of some by name."""
        self.out = out
        self.device = device = gpu.current_device()
        current = gpu.get_current_stream(device).ptr
        if current == 1:
            current = streams.LEGACY_STREAM
        self._current = launch = current
        if stream is not None:
            launch = streams.launch_stream(stream)
        self._launch = launch
        self.named, self.inputs, self.targets = _NONE, inputs, _NONE
        self._kept: Any = None
        in_order, is_here = launch == current, True
        before: Any = inputs  # none of the values
        for name, value in inputs.items():
            if value is not before:  # cu_seqlens_q is often cu_seqlens_k too, and read once then
                facts = facts_of(value, name, launch, current)
                if facts is None:
                    self.named, self.inputs = _all_on_host(inputs), {}
                    break
                before = value
                if facts.stream != launch:
                    in_order = False
                if facts.device != device:
                    is_here = False
            inputs[name] = facts
        if scratch is not None or type(out) is dict:
            self.targets = targets = _targets(out, scratch, launch, current)
            for target in targets.values():
                in_order = in_order and target.stream == launch
                is_here = is_here and target.device == device
        elif out is not None:
            target = _target(out, "out", launch, current)
            self.targets = {"out": target}
            if target.stream != launch:
                in_order = False
            if target.device != device:
                is_here = False
        self._in_order = in_order
        if not is_here:
            return self._begin_elsewhere(scratch, stream)
        if stream is not None:
            streams.check_stream(launch)

    def _begin_elsewhere(self, scratch: Any, stream: Any) -> None:
        """Begin again where the arrays' device is the current one: frameworks ask what it is."""
        devices = {facts.device for facts in self._given()}
        if len(devices) > 1:
            raise ValueError(f"all arrays must be on one GPU, got devices {sorted(devices)}")
        before = self.device
        inputs = self.named or {name: facts.value for name, facts in self.inputs.items()}
        gpu.runtime.setDevice(devices.pop())
        try:
            Call.__init__(self, inputs, self.out, scratch, stream)
        finally:
            gpu.runtime.setDevice(before)
        self.__class__ = _CallElsewhere

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
            self.inputs[name] = facts_of(memory[start:end], name, self._launch, self._launch)

    def result(
        self, dtype: str, alignment: int, shape: tuple[int, ...], lead: Sequence[int] | None = None
    ) -> int:
        """Return the address to write the result to: of `out`, or else of a new array.

        lead: the columns' (b, h) before the shape, or () of columns without; of one slice `out` may
        have them or not. None where it has that shape alone.
        """
        full = (*lead, *shape) if lead else shape
        if self.out is None:
            return self._new(dtype, full)
        target = self.targets["out"]
        if target.shape != full or target.dtype != dtype:
            shapes = [full]
            if lead is not None and math.prod(lead) == 1:
                shapes.append(shape if lead else (1, 1, *shape))
            checks.check_target_form("out", target, dtype, shapes)
        checks.check_target("out", target, alignment, self.inputs)
        return target.pointer

    def columns(self, column_num: int) -> int:
        """The same of columns; the form of `out` is checked already, where N is taken from it."""
        if self.out is None:
            return self._new("int32", (column_num, 2))
        target = self.targets["out"]
        checks.check_target("out", target, 8, self.inputs)
        return target.pointer

    def target(self, name: str, alignment: int) -> int:
        """Return the address of an array to write, whose form is checked."""
        target = self.targets[name]
        checks.check_target(name, target, alignment, self.inputs)
        return target.pointer

    def _new(self, dtype: str, shape: tuple[int, ...]) -> int:
        if self._launch != streams.LEGACY_STREAM:  # which no graph records
            self.forbid_in_capture("the result is allocated: give out=")
        if self._launch == self._current:  # as cupy.empty does, which costs a third more
            self.out = out = gpu.ndarray(shape, dtype)
        else:
            with streams.as_current(self._launch):  # whose part of CuPy's pool it is then from
                self.out = out = gpu.ndarray(shape, dtype)
        return out.data.ptr

    def scratch(self, nbytes: int) -> int:
        """Return the address of scratch memory: the caller's, or else from CuPy's pool.

        The pool may hand the memory out again after the call: on this stream, behind the launches.
        """
        if "scratch" in self.targets:
            memory = self.targets["scratch"]
            checks.check_scratch(memory, nbytes)
            checks.forbid_overlap("scratch", memory, self._given())
            return memory.pointer
        if nbytes == 0:
            return 0
        self.forbid_in_capture(f"scratch memory is allocated: give scratch= of {nbytes} bytes")
        return self.allocate(nbytes)

    def allocate(self, nbytes: int) -> int:
        """Return the address of memory from CuPy's pool that is kept so long as the call lasts."""
        if self._launch == self._current:
            memory = gpu.cupy.cuda.alloc(nbytes)
        else:
            with streams.as_current(self._launch):
                memory = gpu.cupy.cuda.alloc(nbytes)
        self._kept = memory, self._kept
        return memory.ptr

    def read_back(self, array: Facts, entries: slice, why: str) -> np.ndarray:
        """Copy entries of an array, counted as if it were flat, and wait; `why` is of a capture."""
        self.forbid_in_capture(why)
        streams.wait_for_producers(self._launch, self._producers())
        start, stop, _ = entries.indices(math.prod(array.shape))
        host = np.empty(stop - start, array.dtype)
        self.download(array.pointer + start * host.itemsize, host)
        return host

    def download(self, pointer: int, host: np.ndarray) -> None:
        """Fill a host array from the device, behind the work on the launch stream, and wait."""
        kind, stream = gpu.runtime.memcpyDeviceToHost, self._launch
        gpu.runtime.memcpyAsync(host.ctypes.data, pointer, host.nbytes, kind, stream)
        gpu.runtime.streamSynchronize(stream)

    def run(self, *launches: Launch, zeroed: Sequence[tuple[int, int]] = ()) -> None:
        """Launch in order with the streams of the given arrays.

        ``zeroed`` are pointers and bytes of memory that is set to 0 before the launches.
        """
        stream, kernels = self._launch, compiler.loaded[self.device]
        for launch in launches:
            if launch[0] not in kernels:
                self._load(launch[0])
        if not self._in_order:
            streams.wait_for_producers(stream, self._producers())
        for pointer, nbytes in zeroed:
            gpu.runtime.memsetAsync(pointer, 0, nbytes, stream)
        for name, grid, arguments, overlap in launches:
            kernels[name].launch(stream, grid, arguments, overlap)
        if not self._in_order:
            held = [(a.value, a.kept) for a in self._given() if a.stream is None]
            streams.release_to_producers(stream, self._producers() | {self._current}, held)

    def _load(self, name: str) -> None:
        self.forbid_in_capture(
            "a kernel is compiled at its first use: call maskq_cupy.warm_up() before"
        )
        compiler.load(name, self.device)

    def _producers(self) -> set[int]:
        return {array.stream for array in self._given() if array.stream is not None}

    def _given(self) -> list[Facts]:
        return [*self.inputs.values(), *self.targets.values()]


def _targets(out: Any, scratch: Any, launch: int, current: int) -> dict[str, Facts]:
    """Return the facts of the arrays to write by name: `out` is one, some by name, or None.

    What is given twice has facts of its own each time, by which the overlap is found.
    """
    named = out if type(out) is dict else {} if out is None else {"out": out}
    if scratch is not None:
        named = {**named, "scratch": scratch}
    return {name: _target(value, name, launch, current) for name, value in named.items()}


def _target(value: Any, name: str, launch: int, current: int) -> Facts:
    facts = facts_of(value, name, launch, current)
    if facts is None:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an array on a GPU, got {kind} on the host")
    return facts


def _on_its_device(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method of a call, with the call's device the current one while it runs."""

    def step(self: Call, *arguments: Any, **named: Any) -> Any:
        before = gpu.runtime.getDevice()
        gpu.runtime.setDevice(self.device)
        try:
            return method(self, *arguments, **named)
        finally:
            gpu.runtime.setDevice(before)

    return step


class _CallElsewhere(Call):
    """A call on another device than the current one."""

    __slots__ = ()
    forbid_in_capture = _on_its_device(Call.forbid_in_capture)
    upload = _on_its_device(Call.upload)
    result = _on_its_device(Call.result)
    columns = _on_its_device(Call.columns)
    scratch = _on_its_device(Call.scratch)
    allocate = _on_its_device(Call.allocate)
    read_back = _on_its_device(Call.read_back)
    download = _on_its_device(Call.download)
    run = _on_its_device(Call.run)


def columns_of(call: Call, check_form: Callable[..., int] = checks.check_columns_form) -> Facts:
    """Return the facts of the argument `columns`, of a form that a kernel can read."""
    if not call.inputs:
        raise TypeError(
            "columns must be an array on a GPU, got "
            f"{type(call.named['columns']).__name__} on the host: "
            "maskq_cupy.reference has this function for those"
        )
    columns = call.inputs["columns"]
    check_form(columns.dtype, columns.shape)
    if not columns.contiguous or columns.pointer % 8:
        checks.check_contiguous("columns", columns)
        checks.check_aligned("columns", columns, 8)
    return columns


def check_columns(call: Call, columns: Facts, row_num: int) -> None:
    """Read columns back and check that they are bounds of so many rows; waits."""
    host = call.read_back(columns, slice(0, None), "validate=True waits for the GPU")
    checks.check_columns_values(host.reshape(columns.shape), row_num)


def _all_on_host(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs, of which one is on the host: require that all are."""
    for name, value in inputs.items():
        if value is None:
            raise TypeError(f"{name} must be {checks.FORMS.get(name, 'an array')}, got None")
    on_gpu = [isinstance(v, Facts) or facts_of(v, n, 0, 0) is not None for n, v in inputs.items()]
    if any(on_gpu):
        places = ", ".join(
            f"{name} on {'a GPU' if is_so else 'the host'}"
            for name, is_so in zip(inputs, on_gpu, strict=True)
        )
        raise TypeError(f"the input must be all on one GPU or all on the host, got {places}")
    return inputs
