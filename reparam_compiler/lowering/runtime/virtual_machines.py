"""TVM's virtual machines of one library: as many as run at once, over one copy of its weights.

    call(work) -> a launcher (`launchers`) -> work(a machine that nobody else has)

TVM's virtual machine holds the state of a run, and two threads that share one end in a segmentation fault. Another one costs a
tenth of a millisecond and the activations of a run: weights are arguments of `main`, and constants are the library's. The first
one of what was compiled in this process makes its machine code, a tenth of a build: who saves the model needs none.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.archive import LIBRARY
from reparam_compiler.lowering.runtime.description import TimedCall
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.runtime.launchers import on_launcher
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.runtime.stored import aligned

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

ResultT = TypeVar("ResultT")

CPU = int(tvm.cpu().dlpack_device_type())
PLAIN = frozenset(("float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))))
"""The dtypes that numpy gives and takes by DLPack."""
FLUSH = "cache_flush_cpu_non_first_arg"
"""TVM's function that empties the caches of all arguments but the first."""
BUILTIN = "vm.builtin."
GRAPH = "vm.builtin.cuda_graph."


class VirtualMachines(Machines):
    """Gives calls a virtual machine each.

    device: what the machines run on. threads: how many cores one call takes. weights: what `main` takes after its inputs.
    """

    def __init__(self, library: Any, device: Any, threads: int, weights: Sequence[Any] = ()) -> None:
        with filter_stderr():
            self._library = library.jit() if isinstance(library, tvm.runtime.Executable) else library
        self.device = device
        self.threads = threads
        self.weights = weights
        self._free: list[Any] = []
        self._making = threading.Lock()

    def run(self, arrays: "Sequence[Array]") -> "list[Array]":
        """The outputs, flattened, on a launcher."""
        tensors = self._arguments(arrays)
        return self.call(lambda machine: [_array(leaf, self.device) for leaf in _leaves(machine["main"](*tensors))])

    def measured(
        self, arrays: "Sequence[Array]", repeat: int, number: int, *, least_ms: int = 0, cold: bool = False
    ) -> tuple[float, ...]:
        """By TVM's own clock."""
        tensors = self._arguments(arrays)
        how = {"number": number, "repeat": repeat, "min_repeat_ms": least_ms}
        flush = FLUSH if cold and _is_cpu(self.device) else ""

        def timed(machine: Any) -> Any:
            machine["main"](*tensors)
            return machine.time_evaluator("main", self.device, **how, f_preproc=flush)(*tensors)

        return tuple(map(float, self.call(timed).results))

    def profiled(self, arrays: "Sequence[Array]", runs: int) -> list[list[TimedCall]]:
        """By the machine's instrument, which costs some microseconds a call, counted in no kernel.

        Raises: LoweringError where the kernels are launched as one CUDA graph, which hides them.
        """
        kept: list[list[TimedCall]] = []
        started: list[float] = []

        def watched(machine: Any, tensors: list[Any], device: Any) -> None:
            def instrument(_func: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> int:
                if symbol.startswith(GRAPH):
                    raise LoweringError(
                        "profile: the kernels of this model are launched as one CUDA graph; to see each, compile it with "
                        "--pass-config relax.backend.use_cuda_graph=0"
                    )
                if symbol.startswith(BUILTIN):
                    return 0
                device.sync()
                if before:
                    started.append(time.perf_counter())
                else:
                    seconds = time.perf_counter() - started.pop()
                    kept[-1].append(TimedCall(symbol, _shape(arguments), seconds))
                return 0

            machine["main"](*tensors)
            machine.set_instrument(instrument)
            for _ in range(runs):
                kept.append([])
                machine["main"](*tensors)

        self.with_machine(watched, arrays)
        return kept

    def with_machine(self, work: Callable[[Any, list[Any], Any], ResultT], arrays: "Sequence[Array]") -> ResultT:
        """What `work(machine, arguments, device)` gives for a machine that it may leave unfit for others."""
        tensors = self._arguments(arrays)
        return on_launcher(self.threads, lambda: work(self._another(), tensors, self.device))

    def call(self, work: Callable[[Any], ResultT]) -> ResultT:
        """What `work` gives for a machine; one that it fails on is not used again."""

        def called() -> ResultT:
            try:
                machine = self._free.pop()
            except IndexError:
                machine = self._another()
            result = work(machine)
            self._free.append(machine)
            return result

        return on_launcher(self.threads, called)

    def clone(self, threads: int) -> "VirtualMachines":
        """Machines of their own, over the same library and weights."""
        return VirtualMachines(self._library, self.device, threads, self.weights)

    def _another(self) -> Any:
        """One more machine; one at a time is made, of which the first may have to make code."""
        with self._making:
            return VirtualMachine(self._library, self.device)

    def _arguments(self, arrays: "Sequence[Array]") -> list[Any]:
        """Those of `main`: the inputs on the device, then the weights."""
        return [*(_tensor(array, self.device) for array in arrays), *self.weights]


def load_library(content: bytes) -> Any:
    """A shared library from its bytes. Raises RuntimeError, OSError or ValueError where this machine cannot load it."""
    with scratch_folder() as folder:
        file = folder / LIBRARY
        file.write_bytes(content)
        with filter_stderr():
            return tvm.runtime.load_module(str(file))


def _tensor(array: "Array", device: Any) -> Any:
    if _is_cpu(device) and str(array.dtype) in PLAIN and array.size:  # nothing is nowhere aligned
        return tvm.runtime.from_dlpack(aligned(array))
    return tvm.runtime.tensor(np.asarray(array, order="C"), device)  # ascontiguousarray raises the rank of a scalar


def _array(tensor: Any, device: Any) -> "Array":
    """A copy of a tensor; through DLPack where numpy can, as TVM's own way takes ten times as long for a small one."""
    plain = _is_cpu(device) and str(tensor.dtype) in PLAIN
    return np.from_dlpack(tensor).copy() if plain else tensor.numpy()


def _is_cpu(device: Any) -> bool:
    return bool(device.dlpack_device_type() == CPU)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tvm.runtime.Tensor):
        yield value
    else:
        for part in value:
            yield from _leaves(part)


def _shape(arguments: Sequence[Any]) -> tuple[int, ...]:
    """The shape of the last tensor among a kernel's arguments, which is its output."""
    tensors = [argument for argument in arguments if isinstance(argument, tvm.runtime.Tensor)]
    return tuple(int(size) for size in tensors[-1].shape) if tensors else ()
