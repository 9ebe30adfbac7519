"""How a convolution is computed, and in which tiles: today the direct form, for dense, grouped and depthwise convs.

    Y[p, g, c] = sum_{r, s, k} X[pixel(p, r, s), g K + k] U[g c / nr, r, s, k, c mod nr]      p: all output pixels, flat

`p` is padded to a multiple of mr and `c` to one of nr, with zero weights, so that the tile of mr x nr sums needs no
guard. The tile is chosen by counting the cycles of one step of k: mr nr / lanes multiply-adds and mr + nr / lanes loads,
two of each a cycle, at least the four cycles of a multiply-add's latency, and no more registers than there are.
A dense layer is the same thing with one pixel a row.
"""

from dataclasses import dataclass
from typing import Literal

from reparam_compiler.lowering.target import VectorUnit

Operand = Literal["none", "scalar", "channels", "tensor"]
Order = Literal["weights", "pixels"]

FMA_LATENCY = 4
LOAD_COST = 0.1  # cycles that a load costs beyond its port: 4 x 24 measures 93 GFLOP/s where 4 x 16 gives 86
STREAM_BYTES = 16  # bytes a cycle from L3
CHUNKS = 4  # pieces of work a thread should find
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
    def macs(self) -> int:
        return self.pixels * self.channels_out * self.group_in * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True, slots=True)
class Step:
    """One elementwise op of the epilogue, applied to the sum before it is written.

    op: the Relax name without its prefix (`add`, `relu`, `sigmoid` …).
    operand: what the other side of a binary op is; "channels" has an element a channel, "tensor" one an output element.
    swapped: the operand is the left side.
    value: the scalar operand, or the op's attribute (leaky_relu's slope).
    """

    op: str
    operand: Operand = "none"
    swapped: bool = False
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Tile:
    """The knobs of the direct form.

    rows: mr, pixels of a tile. columns: nr, channels of a tile.
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
        return -(-shape.pixels // self.rows) * self.rows


def candidate_tiles(shape: ConvShape, unit: VectorUnit) -> list[Tile]:
    """Every tile whose sums, one row of weights and one broadcast fit the registers, best first by `tile_cycles`."""
    lanes = unit.lanes(shape.dtype)
    unroll = unroll_of(shape.group_in, UNROLL)
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
    step = max(fmas / 2, loads / 2, FMA_LATENCY) + LOAD_COST * loads
    depth = shape.kernel[0] * shape.kernel[1] * shape.group_in
    weight_bytes = depth * tile.columns * unit.bytes // lanes
    if weight_bytes > unit.l2_bytes * 3 // 4:
        step = max(step, tile.columns * (unit.bytes // lanes) / STREAM_BYTES)
    edges = 2.0 * fmas + 10
    tiles = shape.groups * tile.column_tiles(shape) * (tile.padded_pixels(shape) // tile.rows)
    return tiles * (depth * step + edges)


def unroll_of(extent: int, most: int) -> int:
    """The largest divisor of `extent` up to `most`, or a small odd extent whole: a ragged unroll would need a guard."""
    best = max(factor for factor in range(1, most + 1) if extent % factor == 0)
    return extent if best < 3 and extent <= 2 * most else best
