"""NVIDIA's GPUs, through CUDA: convs by rule, TVM's fusion and a schedule for the rest, one CUDA graph at batch 1."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import tvm
from tvm.target import Target

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import PointKind, Tuning, VirtualMachineBackend

if TYPE_CHECKING:
    from reparam_compiler.lowering.search.winners import Measured

DEFAULT_ARCH = "sm_80"


@dataclass(frozen=True, slots=True)
class CudaBackend(VirtualMachineBackend):
    """A cuda target. What schedules must know of it is its `arch`."""

    kind: ClassVar = "cuda"
    device_name: ClassVar = "cuda"
    code: ClassVar = {"cu": ""}

    @staticmethod
    def completed(config: dict[str, Any]) -> dict[str, Any]:
        """The architecture of this machine's GPU where none is named, an A100's where there is no GPU."""
        return config if "arch" in config else {**config, "arch": _arch_here()}

    def checked(self) -> Target:
        """The target. Raises LoweringError where its architecture is not one of CUDA's."""
        arch = str(self.target.attrs.get("arch", ""))
        if not arch.startswith("sm_") or not arch[3:5].isdigit():
            raise LoweringError(f"target: arch {arch!r} is no CUDA architecture; expected one like {DEFAULT_ARCH!r}")
        return self.target

    def lower(self, module: Any, *, measured: "Measured | None", max_error: float) -> Any:
        """The phases of `gpu.pipeline`."""
        from reparam_compiler.lowering.gpu.cuda.chips import chip_of
        from reparam_compiler.lowering.gpu.pipeline import lowered, prepared

        return lowered(prepared(module), self.target, chip_of(str(self.target.attrs["arch"])), measured, max_error)

    @staticmethod
    def points() -> Sequence[PointKind]:
        """The plans of any GPU."""
        from reparam_compiler.lowering.gpu.plans import POINTS

        return POINTS

    def tuning(self) -> Tuning[Any]:
        """The knobs of the implicit GEMMs."""
        from reparam_compiler.lowering.gpu.cuda.chips import chip_of
        from reparam_compiler.lowering.gpu.tuning import GpuTuning

        return GpuTuning(self.target, chip_of(str(self.target.attrs["arch"])), int(self.target.attrs["max_num_threads"]))

    def vm_passes(self) -> Any:
        """TVM's passes for a GPU, with CUDA graphs where the model has batch 1."""
        from tvm.relax.backend.cuda import pipeline

        from reparam_compiler.lowering.gpu.cuda.graphs import with_cuda_graphs

        return with_cuda_graphs(pipeline.dataflow_lower_passes(self.target) + pipeline.finalize_passes(self.target))

    def toolchain(self) -> contextlib.AbstractContextManager[Any]:
        """nvcc, and a CUDA runtime that loads without a driver."""
        from reparam_compiler.lowering.gpu.cuda.cubin import cuda_toolchain

        return cuda_toolchain()

    def unrunnable_here(self) -> str:
        """No GPU; which GPU it is, the driver will say."""
        return "" if self.device().exist else "this machine has no device for it"


def _arch_here() -> str:
    device = tvm.cuda(0)
    version = str(device.compute_version) if device.exist else ""
    return f"sm_{version.replace('.', '')}" if version else DEFAULT_ARCH
