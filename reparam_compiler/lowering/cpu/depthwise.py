"""The depthwise conv on a CPU: band by band of rows and channels, each with a halo in cache, sums of a few pixels in registers.

    for image, band of rows, band of channels  (parallel)
        H = x, zeros round it                                            as many rows as the band reads, in cache
        for y, tile of pixels
            sums[pixels, channels] = 0                                   "local": registers
            for r, s:  sums[i, :] += H[pixel(i, r, s), :] U[r, s, :]     pixels unrolled, channels by vectors
            Z = epilogue(sums)

A halo of the whole image would be written to memory and read from there; here it never leaves the cache.
"""

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step, round_up, vector_step
from reparam_compiler.lowering.conv.pointwise import epilogue_operands, epilogue_value
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.schedules import schedule_halo, unroll_loops, with_halo

BAND_BYTES = 96 * 1024
"""Of a halo: it stays in the second-level cache, beside what is written."""
WIDEST = 7
"""Pixels of a tile: with two vectors of channels each they take 14 of 16 registers."""


def depthwise_conv(shape: ConvShape, epilogue: Sequence[Step], unit: VectorUnit, data: str = "") -> Any:
    """The PrimFunc: (x `N H W C`, weights `r s C'`, operands…) -> `N H W C 1`; C' is C padded to whole vectors.

    data: the dtype of x where that is of integers; their zero point, `1`, then stands behind the weights.
    """
    columns, pixels = depthwise_columns(shape, unit), pixel_tile(shape, unit)
    size = (shape.batch, shape.out_height, shape.out_width, shape.channels_out, 1)
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), data or shape.dtype, "x")
    zero = [te.placeholder((1,), shape.dtype, "zero")] if data else []
    weights = te.placeholder((*shape.kernel, columns), shape.dtype, "weights")
    copied = (lambda integer: integer.astype(shape.dtype) - zero[0][0]) if data else None
    source, width = with_halo(x, shape, columns, copied=copied), round_up(shape.out_width, pixels)
    r, s = te.reduce_axis((0, shape.kernel[0]), "r"), te.reduce_axis((0, shape.kernel[1]), "s")

    def product(n: Any, y: Any, z: Any, c: Any) -> Any:
        column = tirx.min(z, shape.out_width - 1) if width != shape.out_width else z
        row = y * shape.stride[0] + r * shape.dilation[0]
        return te.sum(source[n, row, column * shape.stride[1] + s * shape.dilation[1], c] * weights[r, s, c], axis=[r, s])

    sums = te.compute((shape.batch, shape.out_height, width, columns), product, "sums")
    operands = epilogue_operands(shape, epilogue, size)
    out = te.compute(
        size, lambda n, y, z, c, o: epilogue_value(sums[n, y, z, c], shape, epilogue, operands, (n, y, z, c, o)), "out"
    )
    func = te.create_prim_func([x, weights, *zero, *operands, out]).without_attr("global_symbol")
    return finished(_scheduled(func, shape, unit))


def _scheduled(func: Any, shape: ConvShape, unit: VectorUnit) -> Any:
    sch, lanes, vectors = tvm.s_tir.Schedule(func), unit.lanes(shape.dtype), vectors_of(shape, unit)
    sums, out = sch.get_sblock("sums"), sch.get_sblock("out")
    n, y, z, c, r, s = sch.get_loops(sums)
    band, y = sch.split(y, [None, band_rows(shape, unit)])
    tile, pixel = sch.split(z, [None, pixel_tile(shape, unit)])
    channels, vector, lane = sch.split(c, [None, vectors, lanes])
    sch.reorder(n, band, channels, y, tile, r, s, pixel, vector, lane)
    sch.set_scope(sums, 0, "local")
    sch.reverse_compute_at(out, tile, preserve_unit_loops=True)
    outer = sch.fuse(n, band, channels)
    schedule_halo(sch, vector_step(shape.channels_in, lanes), outer)
    sch.parallel(outer)
    unroll_loops(sch, (s, pixel, vector, lane))
    *_, pixel, c, _ = sch.get_loops(out)
    vector, lane = sch.split(c, [None, vector_step(shape.channels_out, lanes)])
    unroll_loops(sch, (pixel, vector, lane))
    init = sch.decompose_reduction(sums, r)
    unroll_loops(sch, sch.get_loops(init)[-3:])
    return sch.mod["main"]


def depthwise_columns(shape: ConvShape, unit: VectorUnit) -> int:
    """C': the channels of a depthwise conv, padded to whole vectors."""
    return round_up(shape.channels_out, unit.lanes(shape.dtype))


def vectors_of(shape: ConvShape, unit: VectorUnit) -> int:
    """Vectors of channels of a band: two where they divide the channels."""
    return 2 if depthwise_columns(shape, unit) // unit.lanes(shape.dtype) % 2 == 0 else 1


def pixel_tile(shape: ConvShape, unit: VectorUnit) -> int:
    """Pixels of a tile: as many as the registers hold and as leave the fewest pixels over at the end of a row."""
    most = min(WIDEST, (unit.registers - 2) // vectors_of(shape, unit), shape.out_width)
    return min(range(1, most + 1), key=lambda pixels: (-(-shape.out_width // pixels) * (pixels + 1), shape.out_width % pixels))


def band_rows(shape: ConvShape, unit: VectorUnit) -> int:
    """Rows of a band: the most that divide the image and whose halo is within `BAND_BYTES`."""
    row = (shape.width + shape.padding[1] + shape.padding[3]) * vectors_of(shape, unit) * unit.bytes
    dividing = (rows for rows in range(1, shape.out_height + 1) if shape.out_height % rows == 0)
    return max((rows for rows in dividing if shape.rows_read(rows) * row <= BAND_BYTES), default=1)
