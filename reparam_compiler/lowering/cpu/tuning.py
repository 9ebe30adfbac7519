"""What a search moves for a CPU: the recipe's knobs for convs, MetaSchedule's generic space for what has no recipe.

conv:   algorithm, m_h x m_w, blocks, mr x nr, unroll, loop order     those that are estimated not much slower than the rule's
rest:   MetaSchedule's rules for a CPU
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tvm.target import Target

from reparam_compiler.lowering.backend import Peers, Tuning
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct, Order, Tile, unroll_of
from reparam_compiler.lowering.conv.choice import candidate_tiles, candidates, cycles, direct_forms, winograd_forms
from reparam_compiler.lowering.cpu.families import MODEL, CpuFamily
from reparam_compiler.lowering.cpu.machine import KIND, VectorUnit, is_native, shipped_family
from reparam_compiler.lowering.cpu.measured_family import processor
from reparam_compiler.lowering.cpu.pipeline import lowered, prepared, with_kernels
from reparam_compiler.lowering.cpu.rest import schedule_rest
from reparam_compiler.lowering.relax.conv_sites import DTYPES, ConvSite, find_conv_sites
from reparam_compiler.lowering.search.rest import space
from reparam_compiler.lowering.search.winners import Measured

ORDERS: tuple[Order, ...] = ("weights", "pixels")
FORMS = 12  # algorithms in their blocks whose tiles and loops are moved
TILES = 8  # of each
LIKELY = 1.5  # times the rule's estimate, up to which a point is worth a measurement
POINTS = 400  # of one conv


@dataclass(frozen=True, slots=True)
class CpuTuning(Tuning[Algorithm]):
    """The knobs of an llvm target, whose cores have `unit`. family: what is known of its CPU; None is what is shipped."""

    target: Target
    unit: VectorUnit
    family: CpuFamily | None = None
    rule_version: ClassVar = MODEL

    def prepared(self, module: Any) -> Any:
        """The phases of `cpu.pipeline` before kernels are chosen."""
        return prepared(module)

    def sites(self, module: Any) -> list[ConvSite]:
        """Those of floats; a depthwise conv has one form, and so have the sums of bytes."""
        return [site for site in find_conv_sites(module["main"], DTYPES, casts=True) if not site.shape.depthwise]

    def rule(self, shape: ConvShape) -> list[Algorithm]:
        """By their estimated cycles, the fewest first."""
        return candidates(shape, self.unit)

    @property
    def peers(self) -> Peers | None:
        """The CPUs of its family with vectors of the same width; a cpu without a name has none."""
        cpus = (self.family or shipped_family(self.target)).cpus
        return Peers(f"{cpus[0]}-{8 * self.unit.bytes}", self.unit.threads) if cpus else None

    def processor(self) -> str:
        """As Linux has it."""
        return processor() if is_native(self.target) else ""

    def points(self, shape: ConvShape) -> list[Algorithm]:
        """Those of the target's vector unit."""
        return points(shape, self.unit)

    def estimate(self, shape: ConvShape, point: Algorithm) -> float:
        """Cycles of one core."""
        return cycles(shape, point, self.unit)

    def features(self, shape: ConvShape, point: Algorithm) -> tuple[float, ...]:
        """Sizes and knobs, what is padded in vain, and what of the caches is taken."""
        return features(shape, point, self.unit)

    def lowered(self, module: Any, measured: Measured) -> Any:
        """The phases of `cpu.pipeline` from there on."""
        return lowered(module, self.target, measured, family=self.family)

    def rest(self, module: Any) -> Any:
        """The phases of `cpu.pipeline` up to the schedules."""
        return with_kernels(module, self.target, family=self.family)

    def scheduled(self, module: Any) -> Any:
        """By `cpu.rest`."""
        return schedule_rest(module, self.unit)

    def space(self) -> Any:
        """The generic one."""
        return space(KIND)


def points(shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
    """The points of a conv that a search may measure: the rule's own, then by their estimate."""
    forms: list[Algorithm] = [*direct_forms(shape, unit), *winograd_forms(shape, unit)]
    likely = sorted(forms, key=lambda form: cycles(shape, form, unit))[:FORMS]
    moved = [replace(form, tile=tile) for form in likely for tile in _tiles(shape, form, unit)]
    rule = candidates(shape, unit)[0]
    bound = LIKELY * cycles(shape, rule, unit)
    estimated = {point: cycles(shape, point, unit) for point in dict.fromkeys([*forms, *moved])}
    kept = sorted((point for point in estimated if estimated[point] <= bound), key=lambda point: estimated[point])
    return list(dict.fromkeys([rule, *kept]))[:POINTS]


def _tiles(shape: ConvShape, form: Algorithm, unit: VectorUnit) -> Iterable[Tile]:
    """Tiles of a form: the likeliest ones, each with other loops. Only the direct form has an order to choose."""
    gemm = form.gemm(shape)
    depth = None if isinstance(form, Direct) else shape.group_in
    likely = candidate_tiles(gemm, unit, depth, form.block if isinstance(form, Direct) else 0)[:TILES]
    unrolls = dict.fromkeys(unroll_of(shape.group_in, most) for most in (4, 8, 2, 1))
    orders = ORDERS if isinstance(form, Direct) else (form.tile.order,)
    for tile, unroll, order in itertools.product(likely, unrolls, orders):
        yield replace(tile, unroll=unroll, order=order)


def features(shape: ConvShape, algorithm: Algorithm, unit: VectorUnit) -> tuple[float, ...]:
    """See `CpuTuning.features`."""
    tile, gemm, lanes = algorithm.tile, algorithm.gemm(shape), unit.lanes(shape.dtype)
    outputs, scratch = ((1, 1), 0) if isinstance(algorithm, Direct) else (algorithm.outputs, algorithm.scratch(shape, unit))
    rows = algorithm.block or (shape.pixels if isinstance(algorithm, Direct) else algorithm.tiles(shape))
    depth = math.prod(gemm.kernel) * gemm.group_in
    sizes = (shape.pixels, shape.group_in, shape.group_out, shape.groups, rows, depth, scratch + 1)
    return (
        *(math.log2(size) for size in sizes),
        *(math.prod(shape.kernel), math.prod(shape.stride), shape.dilation != (1, 1)),
        *(*outputs, algorithm.blocks(shape), tile.rows, tile.columns // lanes, tile.unroll, tile.order == "pixels"),
        -(-rows // tile.rows) * tile.rows / rows,
        tile.column_tiles(shape) * tile.columns / shape.group_out,
        depth * tile.columns * unit.bytes / lanes / unit.l2_bytes,
    )
