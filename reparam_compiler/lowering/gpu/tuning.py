"""What a search moves for a GPU: the knobs of the implicit GEMM and of the product of a Winograd conv, MetaSchedule's space for
what has no recipe.

conv:   rows x columns of a block, depth, thread tile, pieces of the sum over k, Winograd's m      the rule's first, by estimate
rest:   MetaSchedule's rules for a GPU

The rule counts for a data-centre chip or an integrated one; on another it may be far off, so that points are left out by what a
work-group may have and not by their estimate.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from tvm.target import Target

from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.gpu.conv import gathered_width
from reparam_compiler.lowering.gpu.grouped import is_narrow
from reparam_compiler.lowering.gpu.kernels import gpu_sites
from reparam_compiler.lowering.gpu.pipeline import lowered, prepared, with_kernels
from reparam_compiler.lowering.gpu.plans import Gemm, GpuPlan, WinogradGemm, has_tensor_cores, plan_cycles, plans
from reparam_compiler.lowering.gpu.schedules import schedule_gpu
from reparam_compiler.lowering.gpu.tiles import PIECES, SMALLEST_PIECE, TENSOR_TILES, Chip, GpuTile
from reparam_compiler.lowering.gpu.winograd import OUTPUTS, takes_winograd, winograd_form, winograd_gemm
from reparam_compiler.lowering.relax.conv_sites import ConvSite
from reparam_compiler.lowering.search.rest import space
from reparam_compiler.lowering.search.winners import Measured

SIDES = (16, 32, 48, 64, 96, 128)  # rows and columns of a block
DEPTHS = (8, 16, 32)
THREAD_SIDES = (4, 8, 16)
MOST_SUMS = 128  # of a thread, in registers
FEWEST_THREADS = 16
POINTS = 600  # of one conv
KIND = "cuda"
"""Of target, whose rules TVM has for any GPU; those for tensor cores are others."""


@dataclass(frozen=True, slots=True)
class GpuTuning(Tuning[GpuPlan]):
    """The knobs of a GPU. threads: that a block may have."""

    target: Target
    chip: Chip
    threads: int

    def prepared(self, module: Any) -> Any:
        """The phases of `gpu.pipeline` before kernels are chosen."""
        return prepared(module)

    def sites(self, module: Any) -> list[ConvSite]:
        """Those that are GEMMs; convs of few channels a group have one form."""
        return [site for site in gpu_sites(module["main"]) if not is_narrow(site.shape)]

    def rule(self, shape: ConvShape) -> list[GpuPlan]:
        """By their estimated cycles, Winograd's forms first."""
        return plans(shape, self.chip)

    def points(self, shape: ConvShape) -> list[GpuPlan]:
        """Those that fit a block of threads."""
        return points(shape, self.chip, self.threads)

    def estimate(self, shape: ConvShape, point: GpuPlan) -> float:
        """Cycles of the chip."""
        return plan_cycles(shape, point, self.chip)

    def features(self, shape: ConvShape, point: GpuPlan) -> tuple[float, ...]:
        """Sizes and knobs, and what is padded in vain."""
        return features(shape, point)

    def lowered(self, module: Any, measured: Measured) -> Any:
        """The phases of `gpu.pipeline` from there on."""
        return lowered(module, self.target, self.chip, measured)

    def rest(self, module: Any) -> Any:
        """The phases of `gpu.pipeline` up to the schedules."""
        return with_kernels(module, self.target, self.chip)

    def scheduled(self, module: Any) -> Any:
        """By `gpu.schedules`."""
        return schedule_gpu(module)

    def space(self) -> Any:
        """That of any GPU: blocks, threads, shared memory, sums across threads."""
        return space(KIND)


def points(shape: ConvShape, chip: Chip, threads: int) -> list[GpuPlan]:
    """The points of a conv that a search may measure: the rule's own, then by their estimate."""
    rule = plans(shape, chip)
    found: list[GpuPlan] = [Gemm(tile) for tile in _tiles(shape, chip, threads)]
    for outputs in OUTPUTS if takes_winograd(shape) else ():
        gemm = winograd_gemm(shape, winograd_form(outputs))
        found += [WinogradGemm(outputs, tile) for tile in _tiles(gemm, chip, threads)]
    found.sort(key=lambda plan: plan_cycles(shape, plan, chip))
    return list(dict.fromkeys([rule[0], *found]))[:POINTS]


def _tiles(shape: ConvShape, chip: Chip, threads: int) -> list[GpuTile]:
    """Every tile that fits a block: its threads, its shared memory; whose stagings are whole vectors of every thread."""
    whole = TENSOR_TILES if has_tensor_cores(shape, chip) else _float32_tiles(gathered_width(shape), threads)
    k = math.prod(shape.kernel) * shape.group_in
    return [
        replace(tile, pieces=pieces)
        for tile in whole
        if tile.shared_bytes <= chip.shared_memory
        and tile.rows < 2 * shape.pixels + 16
        and tile.columns < 2 * shape.group_out + 16
        for pieces in PIECES
        if pieces == 1 or math.ceil(k / (tile.depth * pieces)) >= SMALLEST_PIECE
    ]


def _float32_tiles(width: int, threads: int) -> list[GpuTile]:
    """width: of the vectors that stage pixels."""
    knobs = itertools.product(SIDES, SIDES, DEPTHS, THREAD_SIDES, THREAD_SIDES)
    return [tile for tile in itertools.starmap(GpuTile, knobs) if _is_whole(tile, width, threads)]


def _is_whole(tile: GpuTile, width: int, threads: int) -> bool:
    if tile.rows % tile.thread_rows or tile.columns % tile.thread_columns or tile.thread_rows * tile.thread_columns > MOST_SUMS:
        return False
    workers = tile.workers
    staged = tile.rows * tile.depth % (workers * width) == 0 and tile.columns * tile.depth % (workers * 4) == 0
    return FEWEST_THREADS <= workers <= threads and staged


def features(shape: ConvShape, plan: GpuPlan) -> tuple[float, ...]:
    """See `GpuTuning.features`."""
    tile, outputs = plan.tile, plan.outputs if isinstance(plan, WinogradGemm) else 1
    gemm = winograd_gemm(shape, plan.arithmetic) if isinstance(plan, WinogradGemm) else shape
    rows, columns, depth = tile.padded(gemm)
    k = math.prod(gemm.kernel) * gemm.group_in
    sizes = (gemm.pixels, gemm.group_out, k, gemm.groups, tile.blocks(gemm) * tile.pieces, tile.workers, tile.shared_bytes)
    knobs = (tile.rows, tile.columns, tile.depth, tile.thread_rows, tile.thread_columns, tile.pieces)
    padded = rows / gemm.pixels, columns / gemm.group_out, depth / k
    return *map(math.log2, sizes), *map(math.log2, knobs), *padded, outputs, math.prod(shape.kernel), math.prod(shape.stride)
