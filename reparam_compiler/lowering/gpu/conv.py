"""Conv and dense layers on a GPU in float32: an implicit GEMM, staged through shared memory, register tiles in each thread.

    for block of rows x columns (x, y), group and piece of k (z)
        sums[8, 8] = 0                                                     registers of a thread
        for k / depth:   shared P[depth, rows] <- x  (halo, ragged edges: zero);   shared W[depth, columns] <- weights
            for k in depth:   sums += P[k, rows of the thread] W[k, columns of the thread]
        Y[m, n] = epilogue(sums)                                           bias, ReLU, residual …

Patches are gathered while they are staged and never written to memory. Both stagings and the write-back move four
numbers a thread at a time where the widths allow. With several `pieces` the sums go to a scratch tensor, and a second
kernel adds them up and runs the epilogue: a tensor of the graph, so that Relax plans its memory and CUDA graphs can hold it.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.conv.pointwise import epilogue_operands, epilogue_value
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.gpu.tiles import GpuTile

SUMS = "float32"  # what every conv sums in
UNROLL_STEPS = 1024  # statements that TVM writes out before it leaves a loop to nvcc
SUM_THREADS = 256


def gpu_conv(shape: ConvShape, tile: GpuTile, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc of a scheduled conv in one piece: (x `N H W C`, weights `G K' O'`, operands…) -> `pixels G O/G`."""
    return finished(scheduled_conv(declare_conv(shape, tile, epilogue), shape, tile).mod["main"])


def gpu_partial_conv(shape: ConvShape, tile: GpuTile) -> Any:
    """The PrimFunc of the sums of each piece of k: (x `N H W C`, weights `pieces*G K'/pieces O'`) -> `pieces*G M' O'`."""
    return finished(scheduled_conv(declare_conv(shape, tile, None), shape, tile).mod["main"])


def declare_conv(shape: ConvShape, tile: GpuTile, epilogue: Sequence[Step] | None) -> Any:
    """The PrimFunc before its schedule; without an epilogue its output is the padded sums of each piece."""
    rows, columns, depth = tile.padded(shape)
    depth //= tile.pieces
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), shape.dtype, "x")
    weights = te.placeholder((tile.pieces * shape.groups, depth, columns), shape.dtype, "weights")
    patches = gathered_patches(x, shape, tile)
    width = gathered_width(shape)
    k = te.reduce_axis((0, depth), "k")
    sums = te.compute(
        (tile.pieces * shape.groups, rows, columns),
        lambda g, m, n: te.sum(
            patches[g, m, k // width, k % width].astype(SUMS) * weights[g, k, n].astype(SUMS)
            if shape.dtype != SUMS
            else patches[g, m, k // width, k % width] * weights[g, k, n],
            axis=[k],
        ),
        name="sums",
    )
    if epilogue is None:
        return te.create_prim_func([x, weights, sums]).without_attr("global_symbol")
    out, operands = write_back(shape, epilogue, lambda m, g, n: sums[g, m, n])
    return te.create_prim_func([x, weights, *operands, out]).without_attr("global_symbol")


def gathered_patches(x: Any, shape: ConvShape, tile: GpuTile) -> Any:
    """P `pieces*G M' K'/pieces/v v`: what tap and channel k reads for output pixel m; zero outside the image and the ranges.

    v channels of one tap are one read: an axis of their own, so that no condition and no division depends on it.
    """
    rows, _, depth = tile.padded(shape)
    width = gathered_width(shape)
    piece, channels = depth // tile.pieces // width, shape.group_in // width
    vectors, area = shape.kernel[0] * shape.kernel[1] * channels, shape.out_height * shape.out_width

    def value(z: Any, m: Any, k: Any, lane: Any) -> Any:
        group, at = z % shape.groups, (z // shape.groups) * piece + k
        tap, channel = at // channels, at % channels * width + lane
        r, s = tap // shape.kernel[1], tap % shape.kernel[1]
        h = m % area // shape.out_width * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
        w = m % shape.out_width * shape.stride[1] + s * shape.dilation[1] - shape.padding[1]
        inside = []
        if rows != shape.pixels:
            inside.append(m < shape.pixels)
        if depth // width != vectors:
            inside.append(at < vectors)
        if any(shape.padding):
            inside += [h >= 0, h < shape.height, w >= 0, w < shape.width]
        read = x[m // area, h, w, group * shape.group_in + channel]
        return tirx.if_then_else(tirx.all(*inside), read, tirx.const(0, shape.dtype)) if inside else read

    return te.compute((tile.pieces * shape.groups, rows, piece, width), value, name="patches")


def gathered_width(shape: ConvShape) -> int:
    """v: the channels that one read takes, 16 bytes where the channels of a group divide so."""
    return vector_width(shape.group_in, 4 if shape.dtype == SUMS else 8)


def write_back(shape: ConvShape, epilogue: Sequence[Step], total: Any) -> tuple[Any, list[Any]]:
    """The output `pixels G O/G` from `total(m, g, n)`, in float32 until it is written, and the operands that it reads."""
    size = (shape.pixels, shape.groups, shape.group_out)
    operands = epilogue_operands(shape, epilogue, size)

    def value(m: Any, g: Any, n: Any) -> Any:
        result = epilogue_value(total(m, g, n), shape, epilogue, operands, (m, g, n), SUMS)
        return result if shape.dtype == SUMS else result.astype(shape.dtype)

    return te.compute(size, value, "out"), operands


def scheduled_conv(func: Any, shape: ConvShape, tile: GpuTile) -> Any:
    """The schedule of `declare_conv` without tensor cores, for any dtype."""
    sch = tvm.s_tir.Schedule(func)
    sums, patches = sch.get_sblock("sums"), sch.get_sblock("patches")
    in_pieces = not has_block(sch, "out")
    out = sch.cache_write(sums, 0, "local") if in_pieces else sch.get_sblock("out")
    z, m, n, k = sch.get_loops(sums)
    block_m, half_m, thread_m, row = sch.split(m, [None, tile.thread_rows // 4, tile.rows // tile.thread_rows, 4])
    block_n, half_n, thread_n, column = sch.split(n, [None, tile.thread_columns // 4, tile.columns // tile.thread_columns, 4])
    step, inner = sch.split(k, [None, tile.depth])
    sch.reorder(z, block_m, block_n, half_m, half_n, thread_m, thread_n, step, inner, row, column)
    thread = sch.fuse(thread_m, thread_n)
    for loop, axis in (
        (z, "blockIdx.z"),
        (block_m, "blockIdx.x"),
        (block_n, "blockIdx.y"),
        (half_m, "vthread.y"),
        (half_n, "vthread.x"),
        (thread, "threadIdx.x"),
    ):
        sch.bind(loop, axis)
    sch.annotate(thread, "pragma_auto_unroll_max_step", UNROLL_STEPS)
    sch.annotate(thread, "pragma_unroll_explicit", 1)
    sch.vectorize(column)
    if not in_pieces:
        sch.set_scope(sums, 0, "local")
    sch.reverse_compute_at(out, thread, preserve_unit_loops=True)
    if in_pieces or shape.group_out % 4 == 0:
        sch.vectorize(sch.get_loops(out)[-1])
    staged = sch.cache_read(sums, 1, "shared")
    sch.set_scope(patches, 0, "shared")
    width = gathered_width(shape)
    sch.transform_layout(patches, ("write", 0), lambda g, m, k, lane: (g, k * width + lane, m))
    for block in (patches, staged):
        sch.compute_at(block, step, preserve_unit_loops=True)
    stage(sch, sch.get_loops(patches)[-3:], [None, tile.workers, width], ("threadIdx.x",))
    stage(sch, sch.get_loops(staged)[-2:], [None, tile.workers, 4], ("threadIdx.x",))
    sch.storage_align(patches, 0, axis=1, factor=32, offset=4)
    sch.decompose_reduction(sums, step)
    return sch


def vector_width(extent: int, most: int) -> int:
    """The largest power of two up to `most` that divides `extent`: channels that one load may read at once."""
    width = most
    while extent % width:
        width //= 2
    return width


def gpu_sum_of_pieces(shape: ConvShape, tile: GpuTile, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc that adds pieces up: (sums `pieces*G M' O'`, operands…) -> `pixels G O/G`."""
    rows, columns, _ = tile.padded(shape)
    sums = te.placeholder((tile.pieces * shape.groups, rows, columns), SUMS, "sums")

    def total(m: Any, g: Any, n: Any) -> Any:
        return functools.reduce(operator.add, (sums[z * shape.groups + g, m, n] for z in range(tile.pieces)))

    out, operands = write_back(shape, epilogue, total)
    sch = tvm.s_tir.Schedule(te.create_prim_func([sums, *operands, out]).without_attr("global_symbol"))
    loops = sch.fuse(*sch.get_loops(sch.get_sblock("out")))
    grid, thread, lane = sch.split(loops, [None, SUM_THREADS, vector_width(shape.group_out, 4)])
    sch.bind(grid, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lane)
    return finished(sch.mod["main"])


def stage(sch: Any, loops: Sequence[Any], parts: Sequence[int | None], axes: Sequence[str]) -> None:
    """All threads of a block copy one staged tile together: its loops, cut into `parts`, the middle ones bound to `axes`."""
    _, *threads, lane = sch.split(sch.fuse(*loops), parts)
    for thread, axis in zip(threads, axes, strict=True):
        sch.bind(thread, axis)
    sch.vectorize(lane)


def has_block(sch: Any, name: str) -> bool:
    """Whether the schedule has a block of that name."""
    try:
        sch.get_sblock(name)
    except tvm.s_tir.ScheduleError:
        return False
    return True
