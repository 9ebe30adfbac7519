"""Which algorithm a conv takes, in which tile and blocks: the fewest estimated cycles of one core with cold weights.

    cycles = max(arithmetic of the GEMMs, weights from memory) + transforms + scratch that spills         weights prefetched
    cycles = arithmetic of the GEMMs + weights from memory + transforms + what is read again              block by block

The arithmetic is counted by steps of k of a tile: mr nr / lanes multiply-adds and mr + nr / lanes loads, two of them a cycle,
at least the four cycles of a multiply-add's latency, and no more registers than there are. In a net every layer's weights come
from memory. What a byte costs from where is measured, by family of CPU (`cpu.machine.Costs`).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from reparam_compiler.lowering.conv.algorithms import (
    UNROLL,
    Algorithm,
    ConvShape,
    Direct,
    Tile,
    Winograd,
    round_up,
    unroll_of,
)
from reparam_compiler.lowering.cpu.machine import VectorUnit

FMA_LATENCY = 4  # cycles from one multiply-add to the next of the same sum
L1_BYTES = 32 * 1024
OUTPUTS = (2, 3, 4, 5, 6)  # m; the error grows with it
LONGEST = 8  # rows or columns of a Winograd tile: beyond it float32 loses too much
FEWEST_TILES = 8  # of a block: with fewer the weights are read too often
BLOCK_CACHES = 2.0  # second-level caches that a block's scratch may take: it is read once, in order


def candidates(shape: ConvShape, unit: VectorUnit, columns: int | None = None) -> list[Algorithm]:
    """Every algorithm that computes the conv, each in its best tile and blocks, the fewest estimated cycles first.

    columns: of every tile; None leaves them open.
    """
    winograd = [_winograd_form(shape, outputs, unit, columns) for outputs in winograd_outputs(shape) if _square(outputs)]
    found: list[Algorithm] = [direct_form(shape, unit, columns), *winograd]
    return sorted(found, key=lambda algorithm: cycles(shape, algorithm, unit))


def winograd_outputs(shape: ConvShape) -> list[tuple[int, int]]:
    """Every m_h, m_w of a Winograd conv of the shape; none where it has no such form."""
    split = [size > 1 for size in shape.kernel]
    if not any(split) or shape.depthwise or (shape.stride != (1, 1) and shape.dilation != (1, 1)):
        return []
    down, across = (
        [outputs for outputs in OUTPUTS if outputs + taps - 1 <= LONGEST] if axis else [1]
        for axis, taps in zip(split, shape.phase_taps, strict=True)
    )
    return list(itertools.product(down, across))


def _square(outputs: tuple[int, int]) -> bool:
    """Whether a tile is as high as it is wide, or of one row or column."""
    return outputs[0] == outputs[1] or 1 in outputs


def computes(shape: ConvShape, algorithm: Algorithm) -> bool:
    """Whether an algorithm is one of the shape: a record of another version, or one that is written by hand, may be none."""
    if isinstance(algorithm, Direct):
        return algorithm.block in (0, *_pixel_blocks(shape))
    return algorithm.outputs in winograd_outputs(shape) and algorithm.tiles(shape) % (algorithm.block or 1) == 0


def with_packing(
    shape: ConvShape, unit: VectorUnit, found: Sequence[Algorithm], columns: Iterable[int], fits: Callable[[Algorithm], bool]
) -> Algorithm:
    """The algorithm for weights that another variant has packed already: of the fewest estimated cycles, memory counted.

        cycles  +  bytes of a packing of its own, as if it were read from memory once more

    Args:
        found: the algorithms that are open, in their best tiles.
        columns: of the tiles of the packings that are held. fits: whether an algorithm reads one of them.
    """
    alike = [form for width in columns for form in candidates(shape, unit, width) if fits(form)]

    def cost(form: Algorithm) -> float:
        own = 0 if fits(form) else form.weight_bytes(shape, unit)
        return cycles(shape, form, unit) + own / unit.costs.cold_bytes

    return min((*alike, *found), key=cost)


def direct_form(shape: ConvShape, unit: VectorUnit, columns: int | None = None) -> Direct:
    """The direct conv in the tile and the blocks of the fewest estimated cycles."""
    return min(direct_forms(shape, unit, columns), key=lambda form: cycles(shape, form, unit))


def direct_forms(shape: ConvShape, unit: VectorUnit, columns: int | None = None) -> list[Direct]:
    """The direct conv in each of its blocks, in the tile of the fewest estimated cycles."""
    blocked = [Direct(choose_tile(shape, unit, block, columns), block) for block in _pixel_blocks(shape)]
    return [Direct(choose_tile(shape, unit, 0, columns)), *blocked]


def _pixel_blocks(shape: ConvShape) -> Iterable[int]:
    """The blocks of pixels that a direct conv may go by."""
    if shape.pointwise:
        return [size for size in range(FEWEST_TILES, shape.pixels // 2 + 1) if shape.pixels % size == 0]
    rows = (rows for rows in range(1, shape.out_height) if shape.out_height % rows == 0)
    return [rows * shape.out_width for rows in rows if rows * shape.out_width >= FEWEST_TILES]


def _winograd_form(shape: ConvShape, outputs: tuple[int, int], unit: VectorUnit, columns: int | None = None) -> Winograd:
    """The Winograd conv of those outputs in the tile and the blocks of the fewest estimated cycles."""
    return min(_in_blocks(shape, outputs, unit, columns), key=lambda form: cycles(shape, form, unit))


def winograd_forms(shape: ConvShape, unit: VectorUnit) -> list[Winograd]:
    """The Winograd conv of every outputs in each of its blocks, in the tile of the fewest estimated cycles."""
    return [form for outputs in winograd_outputs(shape) for form in _in_blocks(shape, outputs, unit)]


def _in_blocks(shape: ConvShape, outputs: tuple[int, int], unit: VectorUnit, columns: int | None = None) -> list[Winograd]:
    tiles = Winograd(outputs, Tile(1, 1)).tiles(shape)
    sizes = [size for size in range(FEWEST_TILES, tiles // 2 + 1) if tiles % size == 0] if shape.dilation == (1, 1) else []
    found = []
    for block in (0, *sizes):
        form = Winograd(outputs, Tile(1, 1), block)
        form = replace(form, tile=candidate_tiles(form.gemm(shape), unit, shape.group_in, columns=columns)[0])
        if not block or form.scratch(shape, unit) <= BLOCK_CACHES * unit.l2_bytes:
            found.append(form)
    return found


def choose_tile(shape: ConvShape, unit: VectorUnit, pixels: int = 0, columns: int | None = None) -> Tile:
    """The tile of the fewest estimated cycles for so many pixels, or all."""
    return candidate_tiles(shape, unit, pixels=pixels, columns=columns)[0]


def candidate_tiles(
    shape: ConvShape, unit: VectorUnit, depth: int | None = None, pixels: int = 0, columns: int | None = None
) -> list[Tile]:
    """Every tile whose sums, one row of weights and one broadcast fit the registers, best first by `tile_cycles`.

    depth: of the loop that is unrolled, where it is not all of the shape's channels: of a Winograd product, one phase's.
    pixels: of one block, where it is not all of the shape's.
    columns: of every tile; None leaves them open.
    """
    lanes, pixels = unit.lanes(shape.dtype), pixels or shape.pixels
    unroll = unroll_of(depth or shape.group_in, UNROLL)
    tiles = [
        Tile(rows, vectors * lanes, unroll)
        for vectors in ([columns // lanes] if columns else range(1, min(8, -(-shape.group_out // lanes)) + 1))
        for rows in range(1, min(14, pixels) + 1)
        if rows * vectors + vectors + 1 <= unit.registers
    ]
    return sorted(tiles, key=lambda tile: (tile_cycles(shape, tile, unit, pixels), -tile.columns, tile.rows))


def tile_cycles(shape: ConvShape, tile: Tile, unit: VectorUnit, pixels: int) -> float:
    """Cycles of one core for so many pixels of the conv, by the count in the module's docstring."""
    lanes, costs = unit.lanes(shape.dtype), unit.costs
    vectors = tile.columns // lanes
    fmas, loads = tile.rows * vectors, tile.rows + vectors
    step = max(fmas / unit.fmas, loads / 2, FMA_LATENCY) + costs.load * loads
    depth = shape.kernel[0] * shape.kernel[1] * shape.group_in
    step_bytes = tile.columns * (unit.bytes // lanes)
    if depth * step_bytes > unit.l2_bytes * 3 // 4:
        step = max(step, step_bytes / costs.stream_bytes)
    elif depth * step_bytes > L1_BYTES * 3 // 4:
        step = max(step, step_bytes / costs.second_bytes)
    edges = 2.0 * fmas + 10
    tiles = shape.groups * tile.column_tiles(shape) * -(-pixels // tile.rows)
    return tiles * (depth * step + edges)


def cycles(shape: ConvShape, algorithm: Algorithm, unit: VectorUnit) -> float:
    """Cycles of one core for the whole conv with cold weights."""
    return _direct_cycles(shape, algorithm, unit) if isinstance(algorithm, Direct) else _winograd_cycles(shape, algorithm, unit)


def _direct_cycles(shape: ConvShape, form: Direct, unit: VectorUnit) -> float:
    """Data is read again for each column tile where a block's two ends take more than half of the second-level cache."""
    tile, costs, item = form.tile, unit.costs, unit.bytes // unit.lanes(shape.dtype)
    blocks, pixels = form.blocks(shape), form.block or shape.pixels
    rows = pixels // shape.out_width if form.block and not shape.pointwise else shape.batch * shape.out_height
    read = item * shape.channels_in * (pixels if shape.pointwise else shape.rows_read(rows) * shape.width)
    times = 1 if read + item * pixels * shape.channels_out <= unit.l2_bytes // 2 else shape.groups * tile.column_tiles(shape)
    weights = form.weight_bytes(shape, unit)
    turns = -(-blocks // unit.threads) * unit.threads / blocks if form.block else 1.0  # of threads that wait for the last block
    again = blocks * read * times + (blocks - 1) * weights
    arithmetic = turns * (blocks * tile_cycles(shape, tile, unit, pixels) + again / costs.stream_bytes)
    return _with_weights(arithmetic, weights / costs.cold_bytes, prefetched=not form.block)


def _with_weights(arithmetic: float, memory: float, *, prefetched: bool) -> float:
    """Cycles of both: at the same time where the weights are asked for in time."""
    return max(arithmetic, memory) if prefetched else arithmetic + memory


def _winograd_cycles(shape: ConvShape, form: Winograd, unit: VectorUnit) -> float:
    """A block's weights are read again for each; its scratch beyond the second-level cache is written and read."""
    gemm, tile, costs, lanes = form.gemm(shape), form.tile, unit.costs, unit.lanes(shape.dtype)
    height, width = form.transforms(shape)
    points, blocks = height.size * width.size, form.blocks(shape)
    read = math.prod(shape.stride) * round_up(shape.channels_in, lanes)
    written = shape.groups * round_up(shape.group_out, lanes)
    vectors = form.tiles(shape) * (read + written) // lanes
    transforms = costs.transform * (height.size + width.size) ** 2 * points * vectors
    spilled = max(form.scratch(shape, unit) - unit.l2_bytes, 0)
    arithmetic = blocks * (points * tile_cycles(gemm, tile, unit, gemm.pixels) + spilled * costs.spill)
    weights = form.weight_bytes(shape, unit)
    both = _with_weights(arithmetic, weights / costs.cold_bytes, prefetched=not form.block)
    return both + transforms + (blocks - 1) * weights / costs.stream_bytes
