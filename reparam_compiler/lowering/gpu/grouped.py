"""Depthwise convs, and grouped ones of few channels a group, on a GPU: one thread, one pixel, a few channels.

    sums[4] = 0;   for r, s, i:   sums += x[pixel(r, s), i of the group] W[r, s, i, n .. n + 4];   Y = epilogue(sums)

Neighbouring threads hold neighbouring channels, so that every read and write is contiguous; a GEMM tile would be mostly
padding. The taps are unrolled, and what neighbouring pixels read again comes from the first-level cache.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.gpu.conv import SUMS, vector_width, write_back

FEW = 16  # channels of a group below which no tile of a GEMM is filled
THREADS = 128


def is_narrow(shape: ConvShape) -> bool:
    """Whether a conv is grouped too finely for a GEMM."""
    return shape.groups > 1 and shape.group_out < FEW


def gpu_grouped_conv(shape: ConvShape, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc of a scheduled conv: (x `N H W C`, weights `r s Ig O`, operands…) -> `pixels G O/G`."""
    return finished(scheduled_grouped_conv(declare_grouped_conv(shape, epilogue), shape).mod["main"])


def declare_grouped_conv(shape: ConvShape, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc before its schedule."""
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), shape.dtype, "x")
    weights = te.placeholder((*shape.kernel, shape.group_in, shape.channels_out), shape.dtype, "weights")
    r, s = te.reduce_axis((0, shape.kernel[0]), "r"), te.reduce_axis((0, shape.kernel[1]), "s")
    i = te.reduce_axis((0, shape.group_in), "i")
    area = shape.out_height * shape.out_width

    def product(m: Any, o: Any) -> Any:
        h = m % area // shape.out_width * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
        w = m % shape.out_width * shape.stride[1] + s * shape.dilation[1] - shape.padding[1]
        read = x[m // area, h, w, o // shape.group_out * shape.group_in + i]
        if any(shape.padding):
            inside = tirx.all(h >= 0, h < shape.height, w >= 0, w < shape.width)
            read = tirx.if_then_else(inside, read, tirx.const(0, shape.dtype))
        if shape.dtype != SUMS:
            return te.sum(read.astype(SUMS) * weights[r, s, i, o].astype(SUMS), axis=[r, s, i])
        return te.sum(read * weights[r, s, i, o], axis=[r, s, i])

    sums = te.compute((shape.pixels, shape.channels_out), product, name="sums")
    out, operands = write_back(shape, epilogue, lambda m, g, n: sums[m, g * shape.group_out + n])
    return te.create_prim_func([x, weights, *operands, out]).without_attr("global_symbol")


def scheduled_grouped_conv(func: Any, shape: ConvShape) -> Any:
    """The schedule of `declare_grouped_conv`."""
    sch = tvm.s_tir.Schedule(func)
    sums, out = sch.get_sblock("sums"), sch.get_sblock("out")
    width = vector_width(shape.channels_out if shape.depthwise else shape.group_out, 4)
    grid, thread, lane = sch.split(sch.fuse(*sch.get_loops(sums)[:2]), [None, THREADS, width])
    sch.bind(grid, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    r, s, i = sch.get_loops(sums)[-3:]
    sch.reorder(r, s, i, lane)
    sch.annotate(thread, "pragma_auto_unroll_max_step", 64)
    sch.annotate(thread, "pragma_unroll_explicit", 1)
    sch.set_scope(sums, 0, "local")
    sch.vectorize(lane)
    sch.reverse_compute_at(out, thread, preserve_unit_loops=True)
    with contextlib.suppress(tvm.s_tir.ScheduleError):  # where pixels and channels fuse to no affine index it stays a loop
        sch.vectorize(sch.get_loops(out)[-1])
    sch.decompose_reduction(sums, r)
    return sch
