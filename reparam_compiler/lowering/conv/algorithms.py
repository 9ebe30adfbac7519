"""How a convolution is computed, and in which tiles: directly, or by Winograd's transforms (`core/winograd.py`).

    direct    Y[p, g, c] = sum_{r, s, k} X[pixel(p, r, s), g K + k] U[g c / nr, r, s, k, c mod nr]    p: all output pixels, flat
    Winograd  M[t, e, g, c] = sum_{q, k} V[t, e, q, g K + k] U[e, g c / nr, q, k, c mod nr]           e: the points of a tile t

Either is a GEMM, whose rows (pixels, tiles) are padded to a multiple of mr and its columns to one of nr, with zero weights, so
that the tile of mr x nr sums needs no guard. A dense layer is the same thing with one pixel a row.

Either goes through the image block by block, where what lies between input and output is then in cache. Which algorithm a
conv takes, in which tile and blocks, `choice.py` says.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from reparam_compiler.core.winograd import Transform, transform
from reparam_compiler.lowering.cpu.machine import VectorUnit

Operand = Literal["none", "scalar", "channels", "pixels", "tensor", "earlier"]
Order = Literal["weights", "pixels"]

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
        return (self.height + self.padding[0] + self.padding[2] - self.rows_read(1)) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - reach) // self.stride[1] + 1

    def rows_read(self, rows: int) -> int:
        """Rows of the padded input that so many rows of the output read."""
        return (rows - 1) * self.stride[0] + self.dilation[0] * (self.kernel[0] - 1) + 1

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
    def mark(self) -> str:
        """A line that is another for every other shape.

        >>> ConvShape(1, 14, 14, 8, 16, (3, 3), padding=(1, 1, 1, 1)).mark
        '1x14x14x8 float32 -> 16, kernel 3x3, stride 1x1, dilation 1x1, padding 1x1x1x1, groups 1'
        """
        size = f"{self.batch}x{self.height}x{self.width}x{self.channels_in} {self.dtype} -> {self.channels_out}"
        knobs = {"kernel": self.kernel, "stride": self.stride, "dilation": self.dilation, "padding": self.padding}
        return ", ".join(
            [size, *(f"{name} {'x'.join(map(str, value))}" for name, value in knobs.items()), f"groups {self.groups}"]
        )

    @property
    def macs(self) -> int:
        return self.pixels * self.channels_out * self.group_in * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True, slots=True)
class Step:
    """One elementwise op of the epilogue, applied to the sum before it is written.

    Value 0 is the sum, value n what the n-th step gave: x sigmoid(x) is `Step("sigmoid"), Step("mul", "earlier", other=0)`.

    op: the name of its row in `pointwise.POINTWISE` (`add`, `relu`, `sigmoid` …).
    operand: what the other side of a binary op is; "channels" has an element a channel, "pixels" one a pixel, "tensor" one an
        output element, "earlier" is a value of this epilogue.
    swapped: the operand is the left side.
    value: the scalar operand.
    source: the value that the step is applied to; None is the last.
    other: the value that is the operand, where that is "earlier".
    dtype: of what the step gives and of its operand, where that is not the conv's.
    """

    op: str
    operand: Operand = "none"
    swapped: bool = False
    value: float = 0.0
    source: int | None = None
    other: int = 0
    dtype: str = ""


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

    def column_bytes(self, shape: ConvShape, unit: VectorUnit) -> int:
        """Bytes of one step of k of all column tiles of all groups."""
        return shape.groups * self.column_tiles(shape) * self.columns * unit.bytes // unit.lanes(shape.dtype)


@dataclass(frozen=True, slots=True)
class Direct:
    """The knobs of the direct form.

    tile: its rows are pixels.
    block: output pixels that pass through all column tiles together: a divisor of their number, and where there is padding
        whole rows of the image, which then have a halo of their own; or 0: all of them.
    """

    tile: Tile
    block: int = 0

    def __str__(self) -> str:
        return "direct"

    @property
    def arithmetic(self) -> "Direct":
        """Itself."""
        return self

    def blocks(self, shape: ConvShape) -> int:
        """How many blocks of pixels there are."""
        return shape.pixels // (self.block or shape.pixels)

    def weight_bytes(self, shape: ConvShape, unit: VectorUnit) -> int:
        """Bytes of its packed weights."""
        return math.prod(shape.kernel) * shape.group_in * self.tile.column_bytes(shape, unit)

    def gemm(self, shape: ConvShape) -> ConvShape:
        """The conv itself, whose rows are its pixels."""
        return shape


@dataclass(frozen=True, slots=True)
class Winograd:
    """The knobs of a Winograd conv.

    outputs: m_h, m_w of a tile. tile: of the batched GEMM, whose rows are tiles.
    block: Winograd tiles that pass through all three stages together, so that their scratch stays in cache; a divisor of their
        number, or 0: all of them.
    """

    outputs: tuple[int, int]
    tile: Tile
    block: int = 0

    def __str__(self) -> str:
        return f"winograd {self.outputs[0]}x{self.outputs[1]}"

    @property
    def arithmetic(self) -> "Winograd":
        """Itself."""
        return self

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

    def weight_bytes(self, shape: ConvShape, unit: VectorUnit) -> int:
        """Bytes of its packed weights, transformed."""
        height, width = self.transforms(shape)
        wide = math.prod(shape.stride) * shape.group_in
        return height.size * width.size * wide * self.tile.column_bytes(shape, unit)

    def gemm(self, shape: ConvShape) -> ConvShape:
        """The product of a block at one point, as the 1x1 conv that it is: a pixel a tile, a channel a phase and channel."""
        wide = math.prod(shape.stride) * shape.channels_in
        tiles = self.block or self.tiles(shape)
        return ConvShape(tiles, 1, 1, wide, shape.channels_out, (1, 1), groups=shape.groups, dtype=shape.dtype)


Algorithm: TypeAlias = Direct | Winograd


@runtime_checkable
class Point(Hashable, Protocol):
    """How a kind of target computes a conv, with all its knobs: what a search measures. A CPU's are algorithms."""

    @property
    def arithmetic(self) -> Algorithm:
        """What it is as exact as."""
        ...


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
