"""The kernels of a model for one target and one size of its inputs, and how they are run.

Variants of one model share its weights (`weights.Store`); which of them a run takes, `Executable` says.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tvm

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.runtime.batches import batch_of
from reparam_compiler.lowering.runtime.description import Kernel, MemoryPlan, TensorSpec
from reparam_compiler.lowering.runtime.launchers import default_threads
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.runtime.stored import aligned
from reparam_compiler.lowering.runtime.weights import Weight
from reparam_compiler.lowering.target import resolve

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

ResultT = TypeVar("ResultT")

CPU = int(tvm.cpu().dlpack_device_type())
PLAIN = frozenset(("float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))))
"""The dtypes that numpy gives and takes by DLPack."""


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """Kernels for one target and one size of the inputs.

    target: as JSON, which `compile(target=…)` reads again.
    inputs, outputs: in the order in which `run` takes and gives them.
    memory: what a run needs; None where a size is symbolic, or an older version wrote the artifact.
    seconds: of a run, where several batches were compiled and measured (`paces`).
    library: what `tvm.compile` made, or the bytes of a linked one. weights: what its `main` takes after the inputs.
    machines: what runs it; None where this machine cannot, or has a better variant.
    """

    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: tuple[Kernel, ...] = ()
    memory: MemoryPlan | None = None
    seconds: float | None = None
    library: Any = field(default=None, repr=False)
    weights: tuple[Weight, ...] = field(default=(), repr=False)
    machines: Machines | None = field(default=None, repr=False)

    @property
    def backend(self) -> Backend:
        """That of its target."""
        return backend_for(resolve(self.target))

    @property
    def batch(self) -> int:
        """How many samples a run takes."""
        return batch_of(self.inputs)

    def made_ready(self, module: Any) -> "Variant":
        """The same with machines over a loaded library, or what `tvm.compile` made, where this machine can run it."""
        backend = self.backend
        if backend.unrunnable_here():
            return self
        values = [weight.value for weight in self.weights]
        return replace(self, machines=Machines(module, backend.device(), default_threads(), values))

    def clone(self, threads: int | None) -> "Variant":
        """The same with machines of their own, whose calls take so many cores; None is as many as of this one."""
        machines = self.ready()
        return replace(self, machines=machines.clone(threads or machines.threads))

    def run(self, arrays: "Sequence[Array]") -> "list[Array]":
        """The outputs for inputs of exactly its shapes. Raises: LoweringError where they are others."""
        machines, tensors = self.ready(), self._arguments(arrays)
        return machines.call(lambda machine: [_array(leaf, machines.device) for leaf in _leaves(machine["main"](*tensors))])

    def measured(self, arrays: "Sequence[Array]", repeat: int, number: int) -> tuple[float, ...]:
        """`repeat` measurements: the mean of `number` runs in a row each, after one run that is not counted."""
        machines, tensors = self.ready(), self._arguments(arrays)

        def timed(machine: Any) -> Any:
            machine["main"](*tensors)
            return machine.time_evaluator("main", machines.device, number=number, repeat=repeat)(*tensors)

        return tuple(map(float, machines.call(timed).results))

    def with_machine(self, work: Callable[[Any, list[Any], Any], ResultT], arrays: "Sequence[Array]") -> ResultT:
        """What `work(machine, arguments, device)` gives on a machine of its own."""
        machines, tensors = self.ready(), self._arguments(arrays)
        return machines.call_once(lambda machine: work(machine, tensors, machines.device))

    def ready(self) -> Machines:
        """The machines. Raises: LoweringError where there are none."""
        if self.machines is None:
            if not (reason := self.backend.unrunnable_here()):
                raise LoweringError(
                    f"run: the code for {self.target} was not loaded, as the file has better; compile for it alone"
                )
            raise LoweringError(
                f"run: this model is compiled for {self.backend.kind}, and {reason}; "
                "save it and load it where it can run, or compile with target=None"
            )
        return self.machines

    def _arguments(self, arrays: "Sequence[Array]") -> list[Any]:
        """Those of `main`: the inputs on the device, then the weights."""
        machines = self.ready()
        given = [_tensor(array, spec, machines.device) for array, spec in zip(arrays, self.inputs, strict=True)]
        return [*given, *machines.weights]


def as_array(value: Any, spec: TensorSpec) -> "Array":
    """An input as numpy has it. Raises: LoweringError where numpy cannot hold it, or its dtype is another."""
    try:
        if hasattr(value, "detach"):  # a torch tensor, without importing torch
            value = value.detach().cpu().numpy()
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as refusal:  # bfloat16, sparse; a ragged list
        what = f"{type(value).__name__} of dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise LoweringError(
            f"{spec.name}: numpy cannot hold the {what} that was found ({refusal}); expected {spec.dtype} {spec.shape}"
        ) from refusal
    if str(found.dtype) != spec.dtype:
        raise LoweringError(
            f"{spec.name}: found dtype {found.dtype}; expected {spec.dtype}. Convert it: array.astype({spec.dtype!r})"
        )
    return found


def _tensor(array: "Array", spec: TensorSpec, device: Any) -> Any:
    if array.shape != spec.shape:
        raise LoweringError(f"{spec.name}: found shape {array.shape}; expected {spec.shape}")
    if _is_cpu(device) and spec.dtype in PLAIN and array.size:  # nothing is nowhere aligned
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
