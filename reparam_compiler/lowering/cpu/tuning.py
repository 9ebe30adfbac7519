"""What a search moves for a CPU: the recipe's knobs for convs, MetaSchedule's generic space for what has no recipe.

conv:   algorithm, mr x nr, unroll, loop order     the points in the order of their estimate, the rule's own first
rest:   MetaSchedule's rules for a CPU
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.s_tir import meta_schedule
from tvm.target import Target

from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.conv.algorithms import (
    Algorithm,
    ConvShape,
    Direct,
    Order,
    Step,
    Tile,
    unroll_of,
)
from reparam_compiler.lowering.conv.choice import candidate_tiles, candidates
from reparam_compiler.lowering.cpu.families import CpuFamily
from reparam_compiler.lowering.cpu.kernels import kernel_of
from reparam_compiler.lowering.cpu.machine import KIND, VectorUnit, vector_unit
from reparam_compiler.lowering.cpu.pipeline import prepared, with_kernels

ORDERS: tuple[Order, ...] = ("weights", "pixels")
POINTS = 24  # points of one conv that are worth a measurement


@dataclass(frozen=True, slots=True)
class CpuTuning(Tuning):
    """The knobs of an llvm target. family: what is known of its CPU; None is what is shipped."""

    target: Target
    family: CpuFamily | None = None

    @property
    def unit(self) -> VectorUnit:
        """The vector unit that kernels are chosen for."""
        return vector_unit(self.target, self.family)

    def prepared(self, module: Any) -> Any:
        """The phases of `cpu.pipeline` before kernels are chosen."""
        return prepared(module)

    def points(self, shape: ConvShape) -> list[Algorithm]:
        """Those of the target's vector unit."""
        return points(shape, self.unit)

    def kernel(self, shape: ConvShape, algorithm: Algorithm, epilogue: Sequence[Step]) -> Any:
        """The recipe's."""
        return kernel_of(shape, algorithm, epilogue, self.unit)

    def with_kernels(self, module: Any) -> Any:
        """The phases of `cpu.pipeline` up to the schedules."""
        return with_kernels(module, self.target, family=self.family)

    def space(self) -> Any:
        """The generic space, named: chosen by the target it asks for tensor intrinsics wherever there is VNNI."""
        return meta_schedule.space_generator.PostOrderApply(
            sch_rules=meta_schedule.ScheduleRule.create(KIND),
            postprocs=meta_schedule.Postproc.create(KIND),
            mutator_probs=meta_schedule.Mutator.create(KIND),
        )


def points(shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
    """The points of a conv that a search measures.

    Every algorithm as the rule would have it, the rule's own first; then other tiles of the likeliest two, then other loops.
    """
    rule = candidates(shape, unit)
    found = list(rule)
    for each in rule[:2]:
        gemm = each.gemm(shape)
        tiles = candidate_tiles(gemm, unit, shape.group_in)[: POINTS // 4]
        found += [replace(each, tile=tile) for tile in [*tiles, *_loops(each.tile, shape, isinstance(each, Direct))]]
    return list(dict.fromkeys(found))[:POINTS]


def _loops(tile: Tile, gemm: ConvShape, ordered: bool) -> list[Tile]:
    """The same tile with other loops; only the direct form has an order to choose."""
    unrolls = sorted({unroll_of(gemm.group_in, most) for most in (1, 2, 4, 8)}, reverse=True)
    return [
        replace(tile, unroll=unroll, order=order)
        for order, unroll in itertools.product(ORDERS if ordered else (tile.order,), unrolls)
    ]
