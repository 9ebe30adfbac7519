"""Good CPU schedules without a search: the direct conv in tiles and the depthwise conv; `rest.py` has all other ops.

    for column tile, row tile  (parallel)
        sums[mr, nr] = 0                                       "local": registers
        for r, s, k / 4:  4 x  sums[i, :] += X[pixel(i), k] U[tile, r, s, k, :]        i, columns unrolled, lanes vectorized
        Z[rows, columns] = epilogue(sums)                      bias, ReLU, residual …

A padded conv reads from a scratch copy with a halo of zeros: a select in the inner loop costs half of the speed
(56x56x48: 1.95 ms against 1.57 with the copy).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Step, round_up, vector_step
from reparam_compiler.lowering.conv.pointwise import epilogue_operands, epilogue_value
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.prefetch import part_of, with_next_panel


def direct_conv(shape: ConvShape, algorithm: Direct, epilogue: Sequence[Step], unit: VectorUnit) -> Any:
    """The PrimFunc of a direct conv: (x `N H W C`, weights `tiles r s k nr`, operands…) -> `blocks pixels/blocks G O/G`."""
    return finished(scheduled_direct(declare_direct(shape, algorithm, epilogue), shape, algorithm, unit))


def declare_direct(shape: ConvShape, algorithm: Direct, epilogue: Sequence[Step]) -> Any:
    """The same PrimFunc before its schedule.

    Pixel p is row i of block b. Rows that only fill a block up to whole tiles repeat its last pixel, and are not written.
    """
    dtype, tile, block = shape.dtype, algorithm.tile, algorithm.block or shape.pixels
    rows, columns, per_group, (kh, kw) = round_up(block, tile.rows), tile.columns, tile.column_tiles(shape), shape.kernel
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), dtype, "x")
    weights = te.placeholder((shape.groups * per_group, kh, kw, shape.group_in, columns), dtype, "weights")
    source = with_halo(x, shape, shape.channels_in)
    r, s, k = te.reduce_axis((0, kh), "r"), te.reduce_axis((0, kw), "s"), te.reduce_axis((0, shape.group_in), "k")

    def product(b: Any, i: Any, g: Any, c: Any) -> Any:
        n, h, w = source_pixel(b * block + (tirx.min(i, block - 1) if rows != block else i), r, s, shape)
        packed = weights[g * per_group + c // columns, r, s, k, c % columns]
        return te.sum(source[n, h, w, g * shape.group_in + k] * packed, axis=[r, s, k])

    sums = te.compute((algorithm.blocks(shape), rows, shape.groups, per_group * columns), product, "sums")
    size = (algorithm.blocks(shape), block, shape.groups, shape.group_out)
    operands = epilogue_operands(shape, epilogue, size)
    out = te.compute(size, lambda *at: epilogue_value(sums[at], shape, epilogue, operands, at), "out")
    return te.create_prim_func([x, weights, *operands, out]).without_attr("global_symbol")


def scheduled_direct(func: Any, shape: ConvShape, algorithm: Direct, unit: VectorUnit, *, word: int = 1, dots: str = "") -> Any:
    """The recipe's schedule of `declare_direct`.

    word: integers that the innermost loop sums, of a shape whose channels are words of so many.
    dots: the intrinsic that does so for a vector of channels.
    """
    sch, tile, lanes = tvm.s_tir.Schedule(func), algorithm.tile, unit.lanes(shape.dtype)
    sums, out = sch.get_sblock("sums"), sch.get_sblock("out")
    b, i, g, c, r, s, k, *integer = sch.get_loops(sums)
    row_tile, row = sch.split(i, [None, tile.rows])
    column_tile, column = sch.split(c, [None, tile.columns])
    k_part, k_outer, k_inner = sch.split(k, [None, part_of(shape.group_in // tile.unroll), tile.unroll])
    inner = [g, column_tile, row_tile] if tile.order == "weights" else [row_tile, g, column_tile]
    sch.reorder(b, *inner, r, s, k_part, k_outer, k_inner, row, column, *integer)
    sch.set_scope(sums, 0, "local")
    sch.reverse_compute_at(out, inner[-1], preserve_unit_loops=True)
    schedule_halo(sch, word * vector_step(shape.channels_in, lanes), b if algorithm.block else None)
    sch.parallel(b if algorithm.block else sch.fuse(b, *inner))
    vector, lane = sch.split(column, [None, lanes])
    for loop in (k_inner, row, vector):
        sch.unroll(loop)
    if not dots:
        sch.vectorize(lane)
    _unroll_tile(sch, out, vector_step(shape.group_out, lanes))
    init = sch.decompose_reduction(sums, r)
    unroll_loops(sch, sch.get_loops(init)[-3:])
    if dots:
        sch.tensorize(lane, dots)
    return _with_next_panel(sch, shape, algorithm, unit, word)


def _with_next_panel(sch: Any, shape: ConvShape, algorithm: Direct, unit: VectorUnit, word: int) -> Any:
    """The PrimFunc with prefetches of the weights, where each is read once: those of blocks stay in cache."""
    if algorithm.block or algorithm.tile.order != "weights":
        return sch.mod["main"]
    tiles = -(-shape.pixels // algorithm.tile.rows)
    outer, *steps = map(sch.get, sch.get_loops(sch.get_sblock("sums_update_o" if word > 1 else "sums_update"))[:4])
    elements = math.prod(shape.kernel) * shape.group_in * word * algorithm.tile.columns
    loops = [(outer.loop_var % tiles, tiles), *((step.loop_var, int(step.extent)) for step in steps)]
    return with_next_panel(sch.mod["main"], unit, "weights", outer.loop_var // tiles, elements, loops)


def source_pixel(p: Any, r: Any, s: Any, shape: ConvShape) -> tuple[Any, Any, Any]:
    """The pixel of the (padded) source that tap (r, s) of output pixel `p` reads."""
    area = shape.out_height * shape.out_width
    y, x = p % area // shape.out_width, p % shape.out_width
    return p // area, y * shape.stride[0] + r * shape.dilation[0], x * shape.stride[1] + s * shape.dilation[1]


def with_halo(x: Any, shape: ConvShape, channels: int, zero: Any = None, copied: Callable[[Any], Any] | None = None) -> Any:
    """`x` in a scratch buffer with zeros round it and zero channels up to `channels`; `x` itself where neither is needed.

    zero: what stands for 0 there, where it is not that. copied: what becomes of an element there, which is then needed.
    """
    top, left, bottom, right = shape.padding
    if not any(shape.padding) and channels == shape.channels_in and copied is None:
        return x
    size = (shape.batch, shape.height + top + bottom, shape.width + left + right, channels)
    zero = tirx.const(0, shape.dtype) if zero is None else zero

    def value(n: Any, h: Any, w: Any, c: Any) -> Any:
        inside = [h >= top, h < top + shape.height, w >= left, w < left + shape.width]
        if channels != shape.channels_in:  # by vectors, which divide the channels
            step = shape.channels_in & -shape.channels_in
            inside.append(c // step < shape.channels_in // step)
        element = x[n, h - top, w - left, c]
        return tirx.if_then_else(tirx.all(*inside), element if copied is None else copied(element), zero)

    return te.compute(size, value, "halo")


def schedule_halo(sch: Any, step: int, at: Any = None) -> None:
    """The scratch copy, channels by vectors of `step`: within the loop `at`, or whole, rows in parallel."""
    try:
        halo = sch.get_sblock("halo")
    except tvm.s_tir.ScheduleError:
        return
    if at is not None:
        sch.compute_at(halo, at, preserve_unit_loops=True)
    *_, n, h, _, c = sch.get_loops(halo)
    _, lane = sch.split(c, [None, step])
    sch.vectorize(lane)
    if at is None:
        sch.parallel(sch.fuse(n, h))


def _unroll_tile(sch: Any, block: Any, step: int) -> None:
    """Write a tile back: rows unrolled, channels by vectors of `step`, which divides them, so that no guard scalarizes them."""
    *_, row, group, column = sch.get_loops(block)
    vector, lane = sch.split(sch.fuse(group, column), [None, step])
    unroll_loops(sch, (row, vector, lane))


def unroll_loops(sch: Any, loops: Sequence[Any]) -> None:
    """Write every loop out but the last, which becomes a vector."""
    *outer, lane = loops
    for loop in outer:
        sch.unroll(loop)
    sch.vectorize(lane)
