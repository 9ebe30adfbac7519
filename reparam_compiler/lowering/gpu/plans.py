"""How a GPU computes a conv: the plans that there are, and those of the rule.

Gemm            the implicit GEMM of `conv` or `tensor_cores`, in a tile
WinogradGemm    transform, the product as such a GEMM in a tile, transform      3x3 of stride 1, float32
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Tile, Winograd
from reparam_compiler.lowering.gpu.tiles import Chip, GpuTile, choose_gpu_tile, gpu_cycles
from reparam_compiler.lowering.gpu.winograd import choose_gpu_winograd, winograd_cycles, winograd_form, winograd_gemm


@dataclass(frozen=True, slots=True)
class Gemm:
    """An implicit GEMM. tile: its knobs."""

    tile: GpuTile

    def __str__(self) -> str:
        return "implicit GEMM"

    @property
    def arithmetic(self) -> Direct:
        """What it is as exact as."""
        return Direct(Tile(1, 1))


@dataclass(frozen=True, slots=True)
class WinogradGemm:
    """A Winograd conv. outputs: m of its tiles. tile: of the product."""

    outputs: int
    tile: GpuTile

    def __str__(self) -> str:
        return str(self.arithmetic)

    @property
    def arithmetic(self) -> Winograd:
        """Its form, which is all that its error depends on."""
        return winograd_form(self.outputs)


GpuPlan: TypeAlias = Gemm | WinogradGemm
POINTS = ((Gemm, GpuTile), (WinogradGemm, GpuTile))
GpuRule = Callable[[ConvShape], Sequence[GpuPlan]]


def has_tensor_cores(shape: ConvShape, chip: Chip) -> bool:
    """Whether a conv is computed on tensor cores."""
    return shape.dtype == "float16" and chip.tensor_rate > 0


def plans(shape: ConvShape, chip: Chip) -> list[GpuPlan]:
    """The rule: Winograd forms that are estimated to be clearly faster, cheapest first, then the GEMM; in their best tiles."""
    forms = choose_gpu_winograd(shape, chip)
    winograd = [WinogradGemm(form.outputs[0], _best_tile(winograd_gemm(shape, form), chip)) for form in forms]
    return [*winograd, Gemm(_best_tile(shape, chip))]


def plan_cycles(shape: ConvShape, plan: GpuPlan, chip: Chip) -> float:
    """What the rule counts for a plan: cycles of the whole conv."""
    if isinstance(plan, WinogradGemm):
        return winograd_cycles(shape, plan.arithmetic, chip, plan.tile)
    return gpu_cycles(shape, plan.tile, chip, tensor_cores=has_tensor_cores(shape, chip))


def _best_tile(shape: ConvShape, chip: Chip) -> GpuTile:
    return choose_gpu_tile(shape, chip, tensor_cores=has_tensor_cores(shape, chip))
