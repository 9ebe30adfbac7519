"""CPUs, through LLVM: convs by the recipes, a schedule by rule for the rest, measurements of a search where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import tvm
from tvm.target import Target

from reparam_compiler.lowering.backend import Peak, PointKind, Tuning, VirtualMachineBackend
from reparam_compiler.lowering.cpu.families import CpuFamily
from reparam_compiler.lowering.cpu.machine import (
    KIND,
    check_cpu,
    completed,
    forgone_here,
    missing_here,
    shipped_family,
    strength,
    vector_unit,
)
from reparam_compiler.lowering.cpu.packing import PACKINGS

if TYPE_CHECKING:
    from reparam_compiler.lowering.search.winners import Measured

IDLE_PASSES = (
    "s_tir.LowerCrossThreadReduction",
    "s_tir.LiftThreadBinding",
    "s_tir.UnifyThreadBinding",
    "s_tir.InjectVirtualThread",
    "s_tir.ThreadSync",
    "s_tir.InferFragment",
    "s_tir.LowerThreadAllreduce",
    "s_tir.MergeSharedMemoryAllocations",
    "s_tir.HoistIfThenElse",
    "tirx.RemoveNoOp",
    "tirx.CommonSubexprElim",
)
"""What only a GPU's threads need, and the last three, which LLVM does again: a third of the time of a U-Net's kernels. Without
all but the last one machine code is the same; without that one nets are as fast."""


@dataclass(frozen=True, slots=True)
class CpuBackend(VirtualMachineBackend):
    """An llvm target. family: what is known of its CPU; None is what is shipped."""

    family: CpuFamily | None = None
    kind: ClassVar = KIND
    device_name: ClassVar = "cpu"
    code: ClassVar = {"ll": "ll", "asm": "asm"}
    packings: ClassVar = PACKINGS
    idle_passes: ClassVar = IDLE_PASSES
    weights_from: ClassVar = 64 * 1024

    @staticmethod
    def completed(config: dict[str, Any]) -> dict[str, Any]:
        """This machine's cpu and cores where no attribute says which machine it is."""
        return completed(config)

    def checked(self) -> Target:
        """The target. Raises LoweringError where LLVM does not know its cpu."""
        check_cpu(self.target)
        return self.target

    def settled(self, *, measure: bool) -> "CpuBackend":
        """With what is shipped for its cpu; else measured on this machine, if that is it; else borrowed from another family."""
        from reparam_compiler.lowering.cpu.measured_family import family_for

        return replace(self, family=family_for(self.target, measure=measure))

    @property
    def chosen_by(self) -> str:
        """The costs of its cpu, and where they are from."""
        return f"costs {self.family or shipped_family(self.target)}"

    def lower(self, module: Any, *, measured: "Measured | None", max_error: float) -> Any:
        """The phases of `cpu.pipeline`."""
        from reparam_compiler.lowering.cpu.pipeline import lowered, prepared

        return lowered(prepared(module), self.target, measured, max_error, self.family)

    def vm_passes(self) -> Any:
        """TVM's passes for a CPU, without its fusion and schedules."""
        from reparam_compiler.lowering.cpu.pipeline import vm_passes

        return vm_passes(self.target)

    def tir_pipeline(self) -> str:
        """TVM's, with the sums of a tile in registers."""
        from reparam_compiler.lowering.cpu.registers import TIR_PIPELINE

        return TIR_PIPELINE

    def unrunnable_here(self) -> str:
        """Another architecture, or vector instructions that this machine lacks."""
        return missing_here(self.target)

    def unloadable_here(self) -> str:
        """The same: the library is code of the target, and loading it runs some."""
        return missing_here(self.target)

    def forgone_here(self) -> str:
        """Wider vectors, or fused multiply-adds, which this machine has and the code does not use."""
        return forgone_here(self.target)

    def strength(self) -> tuple[int, ...]:
        """The width of its vectors, then how many features it has."""
        return strength(self.target)

    @staticmethod
    def points() -> Sequence[PointKind]:
        """The algorithms."""
        from reparam_compiler.lowering.conv.algorithms import Direct, Tile, Winograd

        return ((Direct, Tile), (Winograd, Tile))

    def tuning(self) -> Tuning[Any]:
        """The recipe's knobs for convs, MetaSchedule's generic space for the rest."""
        from reparam_compiler.lowering.cpu.tuning import CpuTuning

        return CpuTuning(self.target, vector_unit(self.target, self.family), self.family)

    def peak(self) -> Peak:
        """Measured on as many threads as kernels run on."""
        from reparam_compiler.lowering.cpu.peak import measure_peak

        threads = int(tvm.runtime.num_threads())
        return Peak(measure_peak(self.target, threads), threads)
