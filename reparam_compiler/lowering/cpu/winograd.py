"""The Winograd conv on a CPU: one kernel of three loop nests, with tile-major scratch between them.

    V[t, e, q, c] = (B^T d B)[e]          d: the pixels of phase q under tile t, zeros beyond the border
    M[t, e, o]    = sum_{q, k} V[t, e, q, g K + k] U[e, o / nr, q, k, o mod nr]
    Z[n, y, x, o] = epilogue((A^T M[t] A)[y, x])

Which pixels a tile t holds, of dilated and strided convs too, `conv.tiles` says. Scratch that is tile-major makes the rows that
pad t to whole GEMM tiles free, and the transforms' writes contiguous.
"""

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step, Tile, Winograd, round_up, vector_step
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.conv.tiles import matrix_element, placed, source_pixel, tile_sums
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.prefetch import part_of, with_next_panel
from reparam_compiler.lowering.cpu.schedules import unroll_loops


def winograd_conv(shape: ConvShape, algorithm: Winograd, epilogue: Sequence[Step], unit: VectorUnit) -> Any:
    """The PrimFunc of a scheduled Winograd conv: (x `N H W C`, weights `e tiles q k nr`, operands…) -> `N H W G O/G`."""
    lanes = unit.lanes(shape.dtype)
    sch = scheduled_winograd(declare_winograd(shape, algorithm, epilogue, lanes), shape, algorithm, lanes)
    return finished(_with_next_panel(sch, shape, algorithm, unit))


def _with_next_panel(sch: Any, shape: ConvShape, algorithm: Winograd, unit: VectorUnit) -> Any:
    """The PrimFunc with prefetches of the weights, where each is read once: those of blocks stay in cache."""
    if algorithm.block:
        return sch.mod["main"]
    panel, *steps = map(sch.get, sch.get_loops(sch.get_sblock("products_update"))[:4])
    elements = math.prod(shape.stride) * shape.group_in * algorithm.tile.columns
    loops = [(step.loop_var, int(step.extent)) for step in steps]
    return with_next_panel(sch.mod["main"], unit, "weights", panel.loop_var, elements, loops)


def declare_winograd(shape: ConvShape, algorithm: Winograd, epilogue: Sequence[Step], lanes: int) -> Any:
    """The same PrimFunc before its schedule; its scratch has whole vectors of `lanes` channels.

    Tile t is row r of block p. Rows that only fill a block up to whole GEMM tiles repeat its last tile, and are not read.
    """
    height, width = algorithm.transforms(shape)
    tile, block = algorithm.tile, algorithm.block or algorithm.tiles(shape)
    per_group, phases = tile.column_tiles(shape), math.prod(shape.stride)
    blocks, rows, points = algorithm.tiles(shape) // block, round_up(block, tile.rows), height.size * width.size
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), shape.dtype, "x")
    weights = te.placeholder((points, shape.groups * per_group, phases, shape.group_in, tile.columns), shape.dtype, "weights")

    def pixel(p: Any, r: Any, a: Any, b: Any, q: Any, c: Any) -> Any:
        t = p * block + (tirx.min(r, block - 1) if rows != block else r)
        image, y, z = source_pixel(shape, algorithm, t, a, b, q)
        inside = [y >= 0, y < shape.height, z >= 0, z < shape.width]
        if ragged:
            inside.append(c // step < shape.channels_in // step)
        return tirx.if_then_else(tirx.all(*inside), x[image, y, z, c], tirx.const(0, shape.dtype))

    step, ragged = vector_step(shape.channels_in, lanes), shape.channels_in % lanes != 0
    size = (blocks, rows, height.size, width.size, phases, round_up(shape.channels_in, lanes))
    data = te.compute(size, pixel, "data")
    by_rows = te.compute(
        size, lambda p, r, i, b, q, c: matrix_element(height.data, i, lambda a: data[p, r, a, b, q, c]), "data_rows"
    )
    source = te.compute(
        size, lambda p, r, i, j, q, c: matrix_element(width.data, j, lambda b: by_rows[p, r, i, b, q, c]), "transformed"
    )

    q, k = te.reduce_axis((0, phases), "q"), te.reduce_axis((0, shape.group_in), "k")

    def multiplied(p: Any, r: Any, e: Any, g: Any, o: Any) -> Any:
        packed = weights[e, g * per_group + o // tile.columns, q, k, o % tile.columns]
        return te.sum(source[p, r, e // width.size, e % width.size, q, g * shape.group_in + k] * packed, axis=[q, k])

    products = te.compute((blocks, rows, points, shape.groups, per_group * tile.columns), multiplied, "products")
    channels = (shape.groups, round_up(shape.group_out, lanes))
    sums = tile_sums(
        shape, algorithm, lambda t, a, b, g, o: products[t // block, t % block, a * width.size + b, g, o], channels
    )
    out, operands = placed(shape, algorithm, epilogue, sums)
    return te.create_prim_func([x, weights, *operands, out]).without_attr("global_symbol")


def scheduled_winograd(func: Any, shape: ConvShape, algorithm: Winograd, lanes: int) -> Any:
    """The recipe's schedule of `declare_winograd`: transforms in registers, one vector of channels at a time; GEMM tiles.

    Only the reads of the input and the writes of the output know of channels that are no whole vectors; they go by the largest
    power of two that divides the channels.
    """
    sch = tvm.s_tir.Schedule(func)
    outer, blocked = _schedule_output(sch, shape, algorithm, lanes, vector_step(shape.group_out, lanes)), bool(algorithm.block)
    if blocked:
        tile_block, _ = sch.split(sch.fuse(*outer[:3]), [None, algorithm.block])
        sch.compute_at(sch.get_sblock("products"), tile_block, preserve_unit_loops=True)
    sch.parallel(tile_block if blocked else sch.fuse(*outer))
    _schedule_products(sch, algorithm.tile, lanes, parallel=not blocked)
    if blocked:
        sch.compute_at(sch.get_sblock("transformed"), tile_block, preserve_unit_loops=True)
    _schedule_input(sch, lanes, vector_step(shape.channels_in, lanes), parallel=not blocked)
    return sch


def _schedule_input(sch: Any, lanes: int, step: int, *, parallel: bool) -> None:
    source, by_rows, data = map(sch.get_sblock, ("transformed", "data_rows", "data"))
    *outer, r, i, j, q, c = sch.get_loops(source)
    block, lane = sch.split(c, [None, lanes])
    sch.reorder(r, q, block, i, j, lane)
    sch.compute_at(by_rows, block, preserve_unit_loops=True)
    *_, row, column, _, lane = sch.get_loops(by_rows)
    sch.reorder(column, row)
    sch.compute_at(data, column, preserve_unit_loops=True)
    *_, lane = sch.get_loops(data)
    sch.split(lane, [None, step])
    for stage in (by_rows, data):
        sch.set_scope(stage, 0, "local")
    for stage in (source, by_rows, data):
        unroll_loops(sch, sch.get_loops(stage)[len(outer) + 3 :])
    if parallel:
        sch.parallel(sch.fuse(*outer, r, q, block))


def _schedule_products(sch: Any, tile: Tile, lanes: int, *, parallel: bool) -> None:
    products = sch.get_sblock("products")
    *outer, r, e, g, o, q, k = sch.get_loops(products)
    row_tile, row = sch.split(r, [None, tile.rows], disable_predication=True)  # what is beyond a block's tiles is scratch
    column_tile, column = sch.split(o, [None, tile.columns])
    k_part, k_outer, k_inner = sch.split(k, [None, part_of(int(sch.get(k).extent) // tile.unroll), tile.unroll])
    sch.reorder(e, g, column_tile, row_tile, q, k_part, k_outer, k_inner, row, column)
    write = sch.cache_write(products, 0, "local")
    sch.reverse_compute_at(write, row_tile, preserve_unit_loops=True)
    if parallel:
        sch.parallel(sch.fuse(*outer, e, g, column_tile))
    vector, lane = sch.split(column, [None, lanes])
    sch.unroll(k_inner)
    unroll_loops(sch, (row, vector, lane))
    *_, row, _, _, column = sch.get_loops(write)
    vector, lane = sch.split(column, [None, lanes])
    unroll_loops(sch, (row, vector, lane))
    init = sch.decompose_reduction(products, q)
    unroll_loops(sch, sch.get_loops(init)[-3:])


def _schedule_output(sch: Any, shape: ConvShape, algorithm: Winograd, lanes: int, step: int) -> list[Any]:
    """One nest, tile by tile; of a dilated conv, whose tiles lie scattered, sums go through scratch and are placed after.

    Returns the outer loops, over tiles and vectors of channels.
    """
    out, sums, by_rows = map(sch.get_sblock, ("out", "sums", "output_rows"))
    if shape.dilation == (1, 1):
        n, y, z, g, o = sch.get_loops(out)
        row_tile, row = sch.split(y, [None, algorithm.outputs[0]])
        column_tile, column = sch.split(z, [None, algorithm.outputs[1]])
        block, part, lane = sch.split(o, [None, lanes // step, step])
        sch.reorder(n, row_tile, column_tile, g, block, row, column, part, lane)
        outer, nested, inner = [n, row_tile, column_tile, g, block], [sums, by_rows], [out, sums, by_rows]
    else:
        n, y, z, g, o = sch.get_loops(out)
        _, lane = sch.split(o, [None, step])
        sch.vectorize(lane)
        sch.parallel(sch.fuse(n, y))
        t, row, column, g, o = sch.get_loops(sums)
        block, lane = sch.split(o, [None, lanes])
        sch.reorder(t, g, block, row, column, lane)
        outer, nested, inner = [t, g, block], [by_rows], [sums, by_rows]
    for stage in nested:
        sch.compute_at(stage, block, preserve_unit_loops=True)
        sch.set_scope(stage, 0, "local")
    *_, row, column, _, _ = sch.get_loops(by_rows)
    sch.reorder(column, row)
    for stage in inner:
        unroll_loops(sch, sch.get_loops(stage)[len(outer) :])
    return outer
