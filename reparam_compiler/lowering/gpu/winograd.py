"""The Winograd conv of stride 1 on a GPU in float32: two transforms round the implicit GEMM of `conv`.

    V[t, e, c] = (B^T d B)[e]                          one thread a tile t and channel, all n^2 elements e in registers
    M[t, e, o] = sum_k V[t, e, g K + k] U[e, k, o]     the GEMM kernel: a 1x1 conv whose pixels are tiles, with n^2 G groups
    Z          = epilogue(A^T M[t] A)                  one thread a tile and channel

Three kernels, with tensors of the graph between them. A dilated conv of dilation d is d^2 plain ones over the lattices of
pixels that are equal modulo d, as on a CPU: index arithmetic in the transforms. The equations are `core.winograd`'s.
"""

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step, Tile, Winograd
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.conv.tiles import matrix_element, placed, source_pixel, tile_sums
from reparam_compiler.lowering.gpu.tiles import DRAM_BYTES, LAUNCH, Chip, GpuTile, choose_gpu_tile, gpu_cycles

THREADS = 128
MARGIN = 0.85  # of the GEMM's estimate that a form must stay below: the counts are rough, and three kernels are not one
OUTPUTS = (2, 4)
"""m of a tile: what lies between the transforms grows as ((m + 2) / m)^2, and a thread holds 2 (m + 2)^2 registers."""


def winograd_form(outputs: int) -> Winograd:
    """F(outputs x outputs); the tile of its GEMM is chosen with the GEMM's own shape."""
    return Winograd((outputs, outputs), Tile(1, 1))


def winograd_gemm(shape: ConvShape, form: Winograd) -> ConvShape:
    """The batched product as the grouped 1x1 conv that it is: a pixel a tile, n^2 G groups."""
    points = math.prod(t.size for t in form.transforms(shape))
    wide_in, wide_out = points * shape.channels_in, points * shape.channels_out
    return ConvShape(form.tiles(shape), 1, 1, wide_in, wide_out, (1, 1), groups=points * shape.groups, dtype=shape.dtype)


def choose_gpu_winograd(shape: ConvShape, chip: Chip) -> list[Winograd]:
    """The forms that are estimated to beat the implicit GEMM clearly, cheapest first.

    Counted: the GEMM's cycles, the bytes that both transforms read and write, and two more launches.
    """
    if not takes_winograd(shape):
        return []
    direct = gpu_cycles(shape, choose_gpu_tile(shape, chip, tensor_cores=False), chip, tensor_cores=False)
    costs = {form: winograd_cycles(shape, form, chip) for form in map(winograd_form, OUTPUTS)}
    return sorted((form for form in costs if costs[form] < MARGIN * direct), key=costs.__getitem__)


def takes_winograd(shape: ConvShape) -> bool:
    """Whether a conv has such a form."""
    return shape.stride == (1, 1) and shape.kernel == (3, 3) and shape.dtype == "float32"


def winograd_cycles(shape: ConvShape, form: Winograd, chip: Chip, tile: GpuTile | None = None) -> float:
    """Cycles of all three kernels. tile: of the product; None is its best one."""
    gemm = winograd_gemm(shape, form)
    tile = tile or choose_gpu_tile(gemm, chip, tensor_cores=False)
    product = gpu_cycles(gemm, tile, chip, tensor_cores=False)
    between = gemm.pixels * (gemm.channels_in + gemm.channels_out)
    outside = shape.batch * shape.height * shape.width * shape.channels_in + shape.pixels * shape.channels_out
    return product + 4 * (2 * between + outside) / (DRAM_BYTES * chip.multiprocessors) + 2 * LAUNCH


def gpu_winograd_input(shape: ConvShape, form: Winograd) -> Any:
    """The PrimFunc of the input's transform: x `N H W C` -> `tiles nh nw C`."""
    height, width = form.transforms(shape)
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), shape.dtype, "x")

    def pixel(t: Any, a: Any, b: Any, c: Any) -> Any:
        image, y, z = source_pixel(shape, form, t, a, b, 0)
        inside = tirx.all(y >= 0, y < shape.height, z >= 0, z < shape.width)
        return tirx.if_then_else(inside, x[image, y, z, c], tirx.const(0, shape.dtype))

    size = (form.tiles(shape), height.size, width.size, shape.channels_in)
    data = te.compute(size, pixel, "data")
    by_rows = te.compute(size, lambda t, i, b, c: matrix_element(height.data, i, lambda a: data[t, a, b, c]), "data_rows")
    out = te.compute(size, lambda t, i, j, c: matrix_element(width.data, j, lambda b: by_rows[t, i, b, c]), "transformed")
    sch = tvm.s_tir.Schedule(te.create_prim_func([x, out]).without_attr("global_symbol"))
    block = sch.get_sblock("transformed")
    t, i, j, c = sch.get_loops(block)
    sch.reorder(t, c, i, j)
    thread = _bound(sch, (t, c))
    _in_registers(sch, thread, ("data_rows", "data"), "transformed")
    return finished(sch.mod["main"])


def gpu_winograd_output(shape: ConvShape, form: Winograd, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc of the output's transform: (products `tiles nh nw G O/G`, operands…) -> `N H W G O/G`; no dilation."""
    products, sums = _products_and_sums(shape, form)
    out, operands = placed(shape, form, epilogue, sums)
    sch = tvm.s_tir.Schedule(te.create_prim_func([products, *operands, out]).without_attr("global_symbol"))
    n, y, z, g, o = sch.get_loops(sch.get_sblock("out"))
    tile_y, y = sch.split(y, [None, form.outputs[0]])
    tile_z, z = sch.split(z, [None, form.outputs[1]])
    sch.reorder(n, tile_y, tile_z, g, o, y, z)
    thread = _bound(sch, (n, tile_y, tile_z, g, o))
    _in_registers(sch, thread, ("sums", "output_rows"), "out")
    return finished(sch.mod["main"])


def gpu_winograd_sums(shape: ConvShape, form: Winograd) -> Any:
    """The PrimFunc of the output's transform alone: products `tiles nh nw G O/G` -> `tiles m m G O/G`."""
    products, sums = _products_and_sums(shape, form)
    sch = tvm.s_tir.Schedule(te.create_prim_func([products, sums]).without_attr("global_symbol"))
    t, i, j, g, o = sch.get_loops(sch.get_sblock("sums"))
    sch.reorder(t, g, o, i, j)
    _in_registers(sch, _bound(sch, (t, g, o)), ("output_rows",), "sums")
    return finished(sch.mod["main"])


def gpu_winograd_placed(shape: ConvShape, form: Winograd, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc that puts the sums of a dilated conv in place: (`tiles m m G O/G`, operands…) -> `N H W G O/G`.

    The pixels of its tiles lie scattered, so that no thread could write a tile's outputs side by side.
    """
    sums = te.placeholder((form.tiles(shape), *form.outputs, shape.groups, shape.group_out), shape.dtype, "sums")
    out, operands = placed(shape, form, epilogue, sums)
    sch = tvm.s_tir.Schedule(te.create_prim_func([sums, *operands, out]).without_attr("global_symbol"))
    _bound(sch, sch.get_loops(sch.get_sblock("out")))
    return finished(sch.mod["main"])


def _products_and_sums(shape: ConvShape, form: Winograd) -> tuple[Any, Any]:
    """The products `tiles nh nw G O/G`, and A^T M A of each tile."""
    height, width = form.transforms(shape)
    channels = (shape.groups, shape.group_out)
    products = te.placeholder((form.tiles(shape), height.size, width.size, *channels), shape.dtype, "products")
    return products, tile_sums(shape, form, lambda *at: products[at], channels)


def _bound(sch: Any, loops: Sequence[Any]) -> Any:
    """One thread for each step of the loops together; neighbours hold neighbouring channels."""
    grid, thread = sch.split(sch.fuse(*loops), [None, THREADS])
    sch.bind(grid, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread


def _in_registers(sch: Any, thread: Any, stages: Sequence[str], last: str) -> None:
    """The stages of a transform inside one thread, each written out, so that the selects of its matrix fold away."""
    for name in stages:
        stage = sch.get_sblock(name)
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        sch.set_scope(stage, 0, "local")
    for name in (last, *stages):
        for loop in sch.get_loops(sch.get_sblock(name))[2:]:
            sch.unroll(loop)
