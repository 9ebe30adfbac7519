"""How a convolution is computed, and in which tiles: directly, or by Winograd's transforms (`core/winograd.py`).

    direct    Y[p, g, c] = sum_{r, s, k} X[pixel(p, r, s), g K + k] U[g c / nr, r, s, k, c mod nr]    p: all output pixels, flat
    Winograd  M[t, e, g, c] = sum_{q, k} V[t, e, q, g K + k] U[e, g c / nr, q, k, c mod nr]           e: the points of a tile t

Either is a GEMM, whose rows (pixels, tiles) are padded to a multiple of mr and its columns to one of nr, with zero weights, so
that the tile of mr x nr sums needs no guard. The tile is chosen by counting the cycles of one step of k: mr nr / lanes
multiply-adds and mr + nr / lanes loads, two of them a cycle, at least the four cycles of a multiply-add's latency, and no more
registers than there are. A dense layer is the same thing with one pixel a row.

Which algorithm a conv takes is chosen by the cycles of its GEMMs, of its transforms, and of its weights, which come from
memory: in a net every layer's do. The constants were measured on a Zen 4 core with cold weights (RepVGG-A0's layers).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from reparam_compiler.core.winograd import Transform, transform
from reparam_compiler.lowering.cpu.machine import VectorUnit

Operand = Literal["none", "scalar", "channels", "tensor", "earlier"]
Order = Literal["weights", "pixels"]

FMA_LATENCY = 4
LOAD_COST = 0.1  # cycles that a load costs beyond its port: 4 x 24 measures 93 GFLOP/s where 4 x 16 gives 86
STREAM_BYTES = 16  # bytes a cycle from L3
COLD_BYTES = 12  # bytes of weights that come from memory in a cycle, beside the arithmetic
TRANSFORM = 0.11  # cycles that each element of a Winograd tile costs a vector, by the square of the tile's rows and columns
FEWEST_TILES = 8  # of a block: with fewer the weights are read too often
BLOCK_CACHES = 2.0  # second-level caches that a block's scratch may take: it is read once, in order
SPILL = 1.0  # cycles that a byte of scratch beyond the second-level cache costs, written and read
OUTPUTS = (2, 3, 4, 5, 6)  # m; the error grows with it
LONGEST = 8  # rows or columns of a Winograd tile: beyond it float32 loses too much
UNROLL = 4  # steps of k written out


@dataclass(frozen=True, slots=True)
class ConvShape:
    """One convolution over NHWC data; `padding` is top, left, bottom, right."""

    batch: int
    height: int
    width: int
    channels_in: int
    channels_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    dtype: str = "float32"

    @property
    def out_height(self) -> int:
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - reach) // self.stride[1] + 1

    @property
    def pixels(self) -> int:
        """Output pixels of the whole batch."""
        return self.batch * self.out_height * self.out_width

    @property
    def group_in(self) -> int:
        return self.channels_in // self.groups

    @property
    def group_out(self) -> int:
        return self.channels_out // self.groups

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group: no sum over channels, so channels are the vector axis."""
        return self.groups > 1 and self.group_in == 1 and self.group_out == 1

    @property
    def phase_taps(self) -> tuple[int, int]:
        """Taps, down and across, of the kernel of one phase of the input: all of them at stride 1."""
        return -(-self.kernel[0] // self.stride[0]), -(-self.kernel[1] // self.stride[1])

    @property
    def pointwise(self) -> bool:
        """One tap that reads every pixel, or a dense layer: a GEMM as it stands."""
        return self.kernel == self.stride == (1, 1) and not any(self.padding)

    @property
    def macs(self) -> int:
        return self.pixels * self.channels_out * self.group_in * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True, slots=True)
class Step:
    """One elementwise op of the epilogue, applied to the sum before it is written.

    Value 0 is the sum, value n what the n-th step gave: x sigmoid(x) is `Step("sigmoid"), Step("mul", "earlier", other=0)`.

    op: the name of its row in `pointwise.POINTWISE` (`add`, `relu`, `sigmoid` …).
    operand: what the other side of a binary op is; "channels" has an element a channel, "tensor" one an output element,
        "earlier" is a value of this epilogue.
    swapped: the operand is the left side.
    value: the scalar operand.
    source: the value that the step is applied to; None is the last.
    other: the value that is the operand, where that is "earlier".
    """

    op: str
    operand: Operand = "none"
    swapped: bool = False
    value: float = 0.0
    source: int | None = None
    other: int = 0


@dataclass(frozen=True, slots=True)
class Tile:
    """The knobs of a GEMM.

    rows: mr, pixels of a tile, or Winograd's tiles. columns: nr, channels of a tile.
    unroll: steps of k written out.
    order: what stays in cache while the other moves: a column tile's weights, or a row tile's pixels.
    """

    rows: int
    columns: int
    unroll: int = UNROLL
    order: Order = "weights"

    def column_tiles(self, shape: ConvShape) -> int:
        """Column tiles of one group."""
        return -(-shape.group_out // self.columns)

    def padded_pixels(self, shape: ConvShape) -> int:
        return round_up(shape.pixels, self.rows)


@dataclass(frozen=True, slots=True)
class Direct:
    """The direct form. tile: its rows are pixels."""

    tile: Tile

    def __str__(self) -> str:
        return "direct"

    def gemm(self, shape: ConvShape) -> ConvShape:
        """The conv itself, whose rows are its pixels."""
        return shape


@dataclass(frozen=True, slots=True)
class Winograd:
    """The knobs of a Winograd conv.

    outputs: m_h, m_w of a tile. tile: of the batched GEMM, whose rows are tiles.
    block: Winograd tiles that pass through all three stages together, so that their scratch stays in cache; a divisor of their
        number and a multiple of the GEMM's rows, or 0: all of them.
    """

    outputs: tuple[int, int]
    tile: Tile
    block: int = 0

    def __str__(self) -> str:
        return f"winograd {self.outputs[0]}x{self.outputs[1]}"

    def transforms(self, shape: ConvShape) -> tuple[Transform, Transform]:
        """Those of the rows and of the columns: of a strided kernel, one phase."""
        height, width = map(transform, self.outputs, shape.phase_taps)
        return height, width

    def grid(self, shape: ConvShape) -> tuple[int, int]:
        """Tiles down and across one lattice of one image."""
        (m_h, m_w), (d_h, d_w) = self.outputs, shape.dilation
        return -(-shape.out_height // (d_h * m_h)), -(-shape.out_width // (d_w * m_w))

    def tiles(self, shape: ConvShape) -> int:
        """Tiles of the whole batch."""
        return shape.batch * math.prod(shape.dilation) * math.prod(self.grid(shape))

    def blocks(self, shape: ConvShape) -> int:
        """How many blocks of tiles there are."""
        return self.tiles(shape) // (self.block or self.tiles(shape))

    def scratch(self, shape: ConvShape, unit: VectorUnit) -> int:
        """Bytes of what lies between the three stages of a block: transformed data and products."""
        height, width = self.transforms(shape)
        lanes, rows = unit.lanes(shape.dtype), round_up(self.block or self.tiles(shape), self.tile.rows)
        read = math.prod(shape.stride) * round_up(shape.channels_in, lanes)
        written = shape.groups * self.tile.column_tiles(shape) * self.tile.columns
        return rows * height.size * width.size * (read + written) * unit.bytes // lanes

    def gemm(self, shape: ConvShape) -> ConvShape:
        """The product of a block at one point, as the 1x1 conv that it is: a pixel a tile, a channel a phase and channel."""
        wide = math.prod(shape.stride) * shape.channels_in
        tiles = self.block or self.tiles(shape)
        return ConvShape(tiles, 1, 1, wide, shape.channels_out, (1, 1), groups=shape.groups, dtype=shape.dtype)


Algorithm: TypeAlias = Direct | Winograd


def candidate_tiles(shape: ConvShape, unit: VectorUnit, depth: int | None = None) -> list[Tile]:
    """Every tile whose sums, one row of weights and one broadcast fit the registers, best first by `tile_cycles`.

    depth: of the loop that is unrolled, where it is not all of the shape's channels: of a Winograd product, one phase's.
    """
    lanes = unit.lanes(shape.dtype)
    unroll = unroll_of(depth or shape.group_in, UNROLL)
    tiles = [
        Tile(rows, vectors * lanes, unroll)
        for vectors in range(1, min(8, -(-shape.group_out // lanes)) + 1)
        for rows in range(1, min(14, shape.pixels) + 1)
        if rows * vectors + vectors + 1 <= unit.registers
    ]
    return sorted(tiles, key=lambda tile: (tile_cycles(shape, tile, unit), -tile.columns, tile.rows))


def choose_tile(shape: ConvShape, unit: VectorUnit) -> Tile:
    """The tile that the rule takes: the fewest estimated cycles."""
    return candidate_tiles(shape, unit)[0]


def tile_cycles(shape: ConvShape, tile: Tile, unit: VectorUnit) -> float:
    """Cycles of one core for the whole conv, by the count in the module's docstring."""
    lanes = unit.lanes(shape.dtype)
    vectors = tile.columns // lanes
    fmas, loads = tile.rows * vectors, tile.rows + vectors
    step = max(fmas / unit.fmas, loads / 2, FMA_LATENCY) + LOAD_COST * loads
    depth = shape.kernel[0] * shape.kernel[1] * shape.group_in
    weight_bytes = depth * tile.columns * unit.bytes // lanes
    if weight_bytes > unit.l2_bytes * 3 // 4:
        step = max(step, tile.columns * (unit.bytes // lanes) / STREAM_BYTES)
    edges = 2.0 * fmas + 10
    tiles = shape.groups * tile.column_tiles(shape) * (tile.padded_pixels(shape) // tile.rows)
    return tiles * (depth * step + edges)


def candidates(shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
    """Every algorithm that computes the conv, each in its best tile, the fewest estimated cycles first."""
    found: list[Algorithm] = [Direct(choose_tile(shape, unit))]
    split = [size > 1 for size in shape.kernel]
    if any(split) and not shape.depthwise and (shape.stride == (1, 1) or shape.dilation == (1, 1)):
        taps = shape.phase_taps
        for outputs in OUTPUTS:
            down, across = (outputs if axis else 1 for axis in split)
            if max(down + taps[0], across + taps[1]) - 1 <= LONGEST:
                found.append(_in_blocks(shape, (down, across), unit))
    return sorted(found, key=lambda algorithm: cycles(shape, algorithm, unit))


def _in_blocks(shape: ConvShape, outputs: tuple[int, int], unit: VectorUnit) -> Winograd:
    """The Winograd conv of those outputs in the blocks and the tile of the fewest estimated cycles."""
    tiles = Winograd(outputs, Tile(1, 1)).tiles(shape)
    sizes = [size for size in range(FEWEST_TILES, tiles // 2 + 1) if tiles % size == 0] if shape.dilation == (1, 1) else []
    found = []
    for block in (0, *sizes):
        form = Winograd(outputs, Tile(1, 1), block)
        tile = candidate_tiles(form.gemm(shape), unit, shape.group_in)[0]
        if not block or replace(form, tile=tile).scratch(shape, unit) <= BLOCK_CACHES * unit.l2_bytes:
            found.append(replace(form, tile=tile))
    return min(found, key=lambda form: cycles(shape, form, unit))


def cycles(shape: ConvShape, algorithm: Algorithm, unit: VectorUnit) -> float:
    """Cycles of one core for the whole conv with cold weights."""
    lanes, tile, gemm = unit.lanes(shape.dtype), algorithm.tile, algorithm.gemm(shape)
    if isinstance(algorithm, Direct):
        points, arithmetic = math.prod(shape.kernel), tile_cycles(shape, tile, unit)
    else:
        height, width = algorithm.transforms(shape)
        points = height.size * width.size
        read = math.prod(shape.stride) * round_up(shape.channels_in, lanes)
        written = shape.groups * round_up(shape.group_out, lanes)
        vectors = algorithm.tiles(shape) * (read + written) // lanes
        transforms = TRANSFORM * (height.size + width.size) ** 2 * points * vectors
        blocks, spilled = algorithm.blocks(shape), max(algorithm.scratch(shape, unit) - unit.l2_bytes, 0)
        arithmetic = blocks * (points * tile_cycles(gemm, tile, unit) + spilled * SPILL) + transforms
    columns = shape.groups * tile.column_tiles(shape) * tile.columns
    weights = points * gemm.group_in * columns * unit.bytes // lanes
    again = 0 if isinstance(algorithm, Direct) else (algorithm.blocks(shape) - 1) * weights
    return arithmetic + weights / COLD_BYTES + again / STREAM_BYTES


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that holds `size`."""
    return -(-size // multiple) * multiple


def vector_step(width: int, lanes: int) -> int:
    """Elements a vector where `width` lie in a row: as many as there are lanes, or the largest power of two that divides."""
    return lanes if width % lanes == 0 else width & -width


def unroll_of(extent: int, most: int) -> int:
    """The largest divisor of `extent` up to `most`, or a small odd extent whole: a ragged unroll would need a guard."""
    best = max(factor for factor in range(1, most + 1) if extent % factor == 0)
    return extent if best < 3 and extent <= 2 * most else best
