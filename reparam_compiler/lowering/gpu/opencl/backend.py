"""OpenCL devices: GPUs of any maker, and CPUs; the kernels of `gpu`, launched by a program of our own (ADR 10)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tvm.target import Target

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend, PointKind, Tuning
from reparam_compiler.lowering.gpu.opencl.devices import LEAST, device_here, why_none
from reparam_compiler.lowering.gpu.opencl.program import Program
from reparam_compiler.lowering.gpu.packing import PACKINGS

if TYPE_CHECKING:
    from reparam_compiler.lowering.gpu.tiles import Chip
    from reparam_compiler.lowering.runtime.machines import Machines
    from reparam_compiler.lowering.runtime.weights import Weight
    from reparam_compiler.lowering.search.winners import Measured


@dataclass(frozen=True, slots=True)
class OpenClBackend(Backend):
    """An opencl target. What it says of its device are the limits of a work-group: its threads and its local memory."""

    kind: ClassVar = "opencl"
    device_name: ClassVar = "opencl"
    code: ClassVar = {"cl": "cl"}
    packings: ClassVar = PACKINGS
    weights_from: ClassVar = 0
    linked: ClassVar = False

    @staticmethod
    def completed(config: dict[str, Any]) -> dict[str, Any]:
        """The limits of this machine's device where none are named; where it has none, TVM assumes those of `LEAST`."""
        return config if "tag" in config or why_none() else {**device_here().limits, **config}

    def checked(self) -> Target:
        """The target. Raises LoweringError where our kernels do not fit its device."""
        for name, least in LEAST.items():
            if (found := int(self.target.attrs[name])) < least:
                raise LoweringError(f"target: found {name}={found}; kernels take {least} of a device")
        return self.target

    def lower(self, module: Any, *, measured: "Measured | None", max_error: float) -> Any:
        """The phases of `gpu.pipeline`."""
        from reparam_compiler.lowering.gpu.pipeline import lowered, prepared

        return lowered(prepared(module), self.target, self._chip(), measured, max_error)

    @staticmethod
    def points() -> Sequence[PointKind]:
        """The plans of any GPU."""
        from reparam_compiler.lowering.gpu.plans import POINTS

        return POINTS

    def tuning(self) -> Tuning[Any]:
        """The knobs of the implicit GEMMs."""
        from reparam_compiler.lowering.gpu.tuning import GpuTuning

        return GpuTuning(self.target, self._chip(), int(self.target.attrs["max_threads_per_block"]))

    def _chip(self) -> "Chip":
        """An integrated GPU, middling, with the target's local memory."""
        from reparam_compiler.lowering.gpu.tiles import Chip

        shared = int(self.target.attrs["max_shared_memory_per_block"])
        return Chip(multiprocessors=16, float32_rate=64, tensor_rate=0, shared_memory=shared)

    def compiled(self, module: Any) -> Program:
        """The program of it."""
        from reparam_compiler.lowering.gpu.opencl.translate import program_of

        return program_of(module, self.target)

    def listing(self, library: Program, name: str) -> str:
        """The source of its kernels."""
        return library.source

    def loaded(self, content: bytes) -> Program:
        """The program that a file holds."""
        return Program.from_bytes(content)

    def machines(self, library: Program, weights: "Sequence[Weight]", threads: int) -> "Machines":
        """Ours, on this machine's device."""
        from reparam_compiler.lowering.gpu.opencl.machines import Loaded, OpenClMachines

        return OpenClMachines(Loaded(library, device_here(), weights), threads)

    def unrunnable_here(self) -> str:
        """No device, or one of smaller work-groups."""
        if reason := why_none():
            return reason
        device = device_here()
        for name, has in device.limits.items():
            if (wanted := int(self.target.attrs[name])) > has:
                return f"{device.name} has {name}={has}, where code for {wanted} was made"
        return ""

    def lacking_here(self, library: Any) -> str:
        """Extensions of OpenCL, such as half precision."""
        program = library if isinstance(library, Program) else Program.from_bytes(library)
        device = device_here()
        lacking = [name for name in program.extensions if name not in device.extensions]
        return f"{device.name} lacks {', '.join(lacking)}" if lacking else ""
