"""The arithmetic of Winograd's tiles, the same for every kind of target: which pixels a tile reads, and where its sums go.

    V[t, e, q, c] = (B^T d B)[e]          d: the pixels of phase q under tile t, zeros beyond the border
    Z[n, y, x, o] = epilogue((A^T M[t] A)[y, x])

A tile t is (image, lattice, row of tiles, column of tiles). A conv of dilation d is d_h d_w plain convs over the lattices of
pixels whose rows and columns are equal modulo d; one of stride s is the sum of s_h s_w plain convs of a kernel s times smaller,
over the phases of its input. Both are index arithmetic in the transforms, so one kernel does them all:

    row of tap a of tile t   =  (l_h + d_h (m_h t_h + a)) s_h + q_h - top         a < m_h + r_h - 1
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from tvm import te, tirx

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step, Winograd
from reparam_compiler.lowering.conv.pointwise import epilogue_operands, epilogue_value


def source_pixel(shape: ConvShape, algorithm: Winograd, t: Any, a: Any, b: Any, q: Any) -> tuple[Any, Any, Any]:
    """The image, row and column of tap (a, b) of tile t in phase q, by the equation above; beyond the border too."""
    (tiles_h, tiles_w), (step_h, step_w) = algorithm.grid(shape), shape.stride
    (lattice_h, lattice_w), (m_h, m_w), (top, left, _, _) = shape.dilation, algorithm.outputs, shape.padding
    lattice = t // (tiles_h * tiles_w)
    y = (lattice // lattice_w % lattice_h + lattice_h * (t // tiles_w % tiles_h * m_h + a)) * step_h + q // step_w - top
    z = (lattice % lattice_w + lattice_w * (t % tiles_w * m_w + b)) * step_w + q % step_w - left
    return t // (lattice_h * lattice_w * tiles_h * tiles_w), y, z


def tile_sums(
    shape: ConvShape, algorithm: Winograd, product: Callable[[Any, Any, Any, Any, Any], Any], channels: tuple[int, int]
) -> Any:
    """A^T M A of each tile, `tiles m_h m_w G O/G`, from its products by tile, point down, point across, group and channel."""
    height, width = algorithm.transforms(shape)
    tiles = algorithm.tiles(shape)
    by_rows = te.compute(
        (tiles, height.outputs, width.size, *channels),
        lambda t, i, b, g, o: matrix_element(height.output, i, lambda a: product(t, a, b, g, o)),
        "output_rows",
    )
    return te.compute(
        (tiles, height.outputs, width.outputs, *channels),
        lambda t, i, j, g, o: matrix_element(width.output, j, lambda b: by_rows[t, i, b, g, o]),
        "sums",
    )


def placed(shape: ConvShape, algorithm: Winograd, epilogue: Sequence[Step], sums: Any) -> tuple[Any, list[Any]]:
    """The output `N H W G O/G` from the sums of its tiles, and the operands that its epilogue reads, in order."""
    (tiles_h, tiles_w), (lattice_h, lattice_w), (m_h, m_w) = algorithm.grid(shape), shape.dilation, algorithm.outputs
    size = (shape.batch, shape.out_height, shape.out_width, shape.groups, shape.group_out)
    operands = epilogue_operands(shape, epilogue, size)

    def value(n: Any, y: Any, z: Any, g: Any, o: Any) -> Any:
        lattice = (n * lattice_h + y % lattice_h) * lattice_w + z % lattice_w
        t = (lattice * tiles_h + y // lattice_h // m_h) * tiles_w + z // lattice_w // m_w
        total = sums[t, y // lattice_h % m_h, z // lattice_w % m_w, g, o]
        return epilogue_value(total, shape, epilogue, operands, (n, y, z, g, o))

    return te.compute(size, value, "out"), operands


def matrix_element(matrix: Float64[np.ndarray, "n m"], index: Any, term: Callable[[int], Any]) -> Any:
    """Element `index` of a matrix times a vector: a chain of selects, of which unrolling the index leaves one."""
    values = [_row(row, term) for row in matrix]
    chosen = values[-1]
    for number in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(index == number, values[number], chosen)
    return chosen


def _row(row: Float64[np.ndarray, " m"], term: Callable[[int], Any]) -> Any:
    """The sum of the terms by their factors, without those of factor 0."""
    total = None
    for index in np.flatnonzero(row):
        operand, factor = term(int(index)), float(row[index])
        if abs(factor) != 1:
            operand = operand * tirx.const(abs(factor), operand.dtype)
        operand = operand if factor > 0 else -operand
        total = operand if total is None else total + operand
    return total
