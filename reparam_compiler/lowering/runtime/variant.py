"""The kernels of a model for one target and one size of its inputs, and how they are run.

Variants of one model share its weights (`weights.Store`); which of them a run takes, `Executable` says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.runtime.batches import batch_of
from reparam_compiler.lowering.runtime.description import Kernel, MemoryPlan, TensorSpec, TimedCall
from reparam_compiler.lowering.runtime.launchers import default_threads
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.runtime.virtual_machines import VirtualMachines
from reparam_compiler.lowering.runtime.weights import Weight
from reparam_compiler.lowering.target import resolve

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """Kernels for one target and one size of the inputs.

    target: as JSON, which `compile(target=…)` reads again.
    inputs, outputs: in the order in which `run` takes and gives them.
    memory: what a run needs; None where a size is symbolic, or an older version wrote the artifact.
    chosen_by: what its kernels were chosen by, which depends on the machine where no costs are shipped for its CPU.
    seconds: of a run, where several batches were compiled and measured (`paces`).
    library: what the backend compiled, or the bytes of one in a file. weights: what its `main` takes after the inputs.
    machines: what runs it; None where this machine cannot, or has a better variant.
    """

    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: tuple[Kernel, ...] = ()
    memory: MemoryPlan | None = None
    chosen_by: str = ""
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
        """The same with machines over a library, loaded or just compiled, where this machine can run it."""
        backend = self.backend
        if backend.unrunnable_here() or backend.lacking_here(module):
            return self
        return replace(self, machines=backend.machines(module, self.weights, default_threads()))

    def clone(self, threads: int | None) -> "Variant":
        """The same with machines of their own, whose calls take so many cores; None is as many as of this one."""
        machines = self.ready()
        return replace(self, machines=machines.clone(threads or machines.threads))

    def run(self, arrays: "Sequence[Array]") -> "list[Array]":
        """The outputs for inputs of exactly its shapes. Raises: LoweringError where they are others."""
        return self.ready().run(self._fitting(arrays))

    def measured(self, arrays: "Sequence[Array]", repeat: int, number: int) -> tuple[float, ...]:
        """`repeat` measurements: the mean of `number` runs in a row each, after one run that is not counted."""
        return self.ready().measured(self._fitting(arrays), repeat, number)

    def profiled(self, arrays: "Sequence[Array]", runs: int) -> list[list[TimedCall]]:
        """The kernels' calls of each of so many runs, in order."""
        return self.ready().profiled(self._fitting(arrays), runs)

    def with_machine(self, work: Callable[[Any, list[Any], Any], ResultT], arrays: "Sequence[Array]") -> ResultT:
        """What `work(machine, arguments, device)` gives on a virtual machine of its own.

        Raises: LoweringError where it is no virtual machine of TVM's that runs the model.
        """
        machines = self.ready()
        if not isinstance(machines, VirtualMachines):
            raise LoweringError(f"with_machine: no virtual machine of TVM's runs a model compiled for {self.backend.kind}")
        return machines.with_machine(work, self._fitting(arrays))

    def ready(self) -> Machines:
        """The machines. Raises: LoweringError where there are none."""
        if self.machines is None:
            if not (reason := self.backend.unrunnable_here() or (self.library and self.backend.lacking_here(self.library))):
                raise LoweringError(
                    f"run: the code for {self.target} was not loaded, as the file has better; compile for it alone"
                )
            raise LoweringError(
                f"run: this model is compiled for {self.backend.kind}, and {reason}; "
                "save it and load it where it can run, or compile with target=None"
            )
        return self.machines

    def _fitting(self, arrays: "Sequence[Array]") -> "Sequence[Array]":
        """The inputs. Raises: LoweringError where one has another shape than the model's."""
        for array, spec in zip(arrays, self.inputs, strict=True):
            if array.shape != spec.shape:
                raise LoweringError(f"{spec.name}: found shape {array.shape}; expected {spec.shape}")
        return arrays


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
