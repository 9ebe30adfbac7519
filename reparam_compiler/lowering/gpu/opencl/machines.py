"""Runs a `Program` on an OpenCL device, through pyopencl: a queue, buffers and bound kernels for each run that goes on.

    once for a model    source -> kernels, by the driver;  weights -> buffers
    a machine           buffers of its activations, kernels bound to their buffers, a queue

Launches of a queue run in their order, so that nothing waits for anything else. As many runs go on at once as there are cores
for, as on a CPU: by default one, which has the device to itself.
"""

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyopencl

from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.gpu.opencl.devices import Opened
from reparam_compiler.lowering.gpu.opencl.program import Launch, Program
from reparam_compiler.lowering.runtime.description import TimedCall
from reparam_compiler.lowering.runtime.launchers import at_once
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.runtime.weights import Weight

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

NANOSECOND = 1e-9
LOG_LINES = 8
"""Of what a driver's compiler says that an error quotes."""


class Loaded:
    """A program on a device: what all machines of a model share.

    weights: as kernels read them; the variants of a model share their buffers.

    Raises: LoweringError where the driver refuses the source, a kernel cannot have its work-groups, or there is no memory.
    """

    def __init__(self, program: Program, opened: Opened, weights: Sequence[Weight] = ()) -> None:
        self.program, self.opened = program, opened
        with _failures(opened, "compile"):
            self.kernels = _built(program, opened)
            self.weights = [_uploaded(opened, weight) for weight in weights]


class OpenClMachines(Machines):
    """Gives runs a machine each. threads: how many cores of the host one run takes."""

    def __init__(self, loaded: Loaded, threads: int) -> None:
        self.threads = threads
        self._loaded = loaded
        self._free: list[_Machine] = []
        self._running = threading.BoundedSemaphore(at_once(threads))

    def run(self, arrays: "Sequence[Array]") -> "list[Array]":
        """The outputs."""
        with self._machine() as machine:
            machine.write(arrays)
            machine.launch(machine.queue)
            return machine.read()

    def measured(
        self, arrays: "Sequence[Array]", repeat: int, number: int, *, least_ms: int = 0, cold: bool = False
    ) -> tuple[float, ...]:
        """By the host's clock, from the first launch until the device has done the last; inputs and outputs are not copied."""
        with self._machine() as machine:
            machine.write(arrays)
            once = machine.seconds(1)
            runs = max(number, math.ceil(least_ms / 1e3 / once))
            return tuple(machine.seconds(runs) / runs for _ in range(repeat))

    def profiled(self, arrays: "Sequence[Array]", runs: int) -> list[list[TimedCall]]:
        """By the device's own clock: of a call the sum of its launches."""
        with self._machine() as machine:
            machine.write(arrays)
            machine.seconds(1)
            return [machine.timed() for _ in range(runs)]

    def clone(self, threads: int) -> "OpenClMachines":
        """Machines of their own, over the same kernels and weights."""
        return OpenClMachines(self._loaded, threads)

    @contextlib.contextmanager
    def _machine(self) -> "Iterator[_Machine]":
        """A machine that nobody else has; one that failed is not used again."""
        opened = self._loaded.opened
        opened.check_process()
        with self._running, _failures(opened, "run"):
            try:
                machine = self._free.pop()
            except IndexError:
                machine = _Machine(self._loaded)
            yield machine
            self._free.append(machine)


class _Machine:
    """Buffers for the activations of a run, every launch with its arguments bound to them, and a queue."""

    def __init__(self, loaded: Loaded) -> None:
        self._program, self._context = loaded.program, loaded.opened.context
        parameters = self._program.parameters
        inputs = parameters - len(loaded.weights)
        self.queue = pyopencl.CommandQueue(self._context)
        sizes = self._program.sizes
        own = [[_buffer(loaded.opened, size) for size in some] for some in (sizes[:inputs], sizes[parameters:])]
        self._buffers = [*own[0], *loaded.weights, *own[1]]
        self._bound = [self._bind(loaded.kernels, launch) for launch in self._program.launches]

    def _bind(self, kernels: Any, launch: Launch) -> tuple[Any, Launch]:
        """A kernel of its own: arguments are the kernel's state."""
        kernel = pyopencl.Kernel(kernels, launch.function)
        kernel.set_args(*(self._buffers[number] for number in launch.arguments))
        return kernel, launch

    def write(self, arrays: "Sequence[Array]") -> None:
        """Copy the inputs to the device."""
        for array, buffer in zip(arrays, self._buffers, strict=False):
            if array.size:
                pyopencl.enqueue_copy(self.queue, buffer, np.ascontiguousarray(array))

    def launch(self, queue: Any) -> list[Any]:
        """Launch everything once, in order; an event for each launch."""
        return [
            pyopencl.enqueue_nd_range_kernel(queue, kernel, launch.global_size, launch.threads)
            for kernel, launch in self._bound
        ]

    def read(self) -> "list[Array]":
        """The outputs, once the device has done what was launched."""
        found = [np.empty(output.shape, output.dtype) for output in self._program.outputs]
        for array, output in zip(found, self._program.outputs, strict=True):
            if array.size:
                pyopencl.enqueue_copy(self.queue, array, self._buffers[output.buffer])
        self.queue.finish()
        return found

    def seconds(self, runs: int) -> float:
        """Of so many runs in a row."""
        start = time.perf_counter()
        for _ in range(runs):
            self.launch(self.queue)
        self.queue.finish()
        return time.perf_counter() - start

    def timed(self) -> list[TimedCall]:
        """One run, in a queue that times each launch."""
        queue = pyopencl.CommandQueue(self._context, properties=pyopencl.command_queue_properties.PROFILING_ENABLE)
        events = iter(self.launch(queue))
        queue.finish()
        found = []
        for call in self._program.calls:
            times = [(event.profile.start, event.profile.end) for _, event in zip(call.launches, events, strict=False)]
            found.append(TimedCall(call.kernel, call.shape, NANOSECOND * sum(end - start for start, end in times)))
        return found


_UPLOADED: WeakKeyDictionary[Weight, dict[Opened, Any]] = WeakKeyDictionary()
"""The buffers of weights, by their devices."""


def _uploaded(opened: Opened, weight: Weight) -> Any:
    """The buffer of a weight, made where the device has none."""
    held = _UPLOADED.setdefault(weight, {})
    if opened not in held:
        array = weight.value.numpy()
        held[opened] = _buffer(opened, array.nbytes, array)
    return held[opened]


def _buffer(opened: Opened, size: int, array: "Array | None" = None) -> Any:
    """A buffer of so many bytes, filled with an array where there is one; OpenCL has none of no bytes."""
    flags = pyopencl.mem_flags
    if array is None or not array.size:
        return pyopencl.Buffer(opened.context, flags.READ_WRITE, max(size, 1))
    return pyopencl.Buffer(opened.context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=np.ascontiguousarray(array))


def _built(program: Program, opened: Opened) -> Any:
    """The source, compiled by the driver. Raises: LoweringError where it refuses, or gives a kernel fewer threads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyopencl.CompilerWarning)
            kernels = pyopencl.Program(opened.context, program.source).build()
    except pyopencl.RuntimeError as refusal:
        said = [line.strip() for line in str(refusal).splitlines() if line.strip()]
        telling = [line for line in said if "error" in line] or said
        raise LoweringError(
            f"main: the compiler of {opened.name} refuses the kernels: {' | '.join(telling[:LOG_LINES])}. It is a defect of "
            "that driver or of this package: report the model, with its code (sources='cl')"
        ) from refusal
    for launch in program.launches:
        kernel = pyopencl.Kernel(kernels, launch.function)
        most = kernel.get_work_group_info(pyopencl.kernel_work_group_info.WORK_GROUP_SIZE, opened.device)
        if int(np.prod(launch.threads)) > most:
            raise LoweringError(
                f"{launch.function}: found work-groups of {launch.threads} threads; {opened.name} runs up to {most} of this "
                f"kernel. Compile for it with -max_threads_per_block={most}"
            )
    return kernels


@contextlib.contextmanager
def _failures(opened: Opened, what: str) -> Iterator[None]:
    """What a driver refuses, as an error of ours."""
    try:
        yield
    except pyopencl.Error as refusal:
        raise LoweringError(f"{what}: {opened.name} failed: {first_line(refusal)}") from refusal
