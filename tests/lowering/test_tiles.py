"""Which pixels a Winograd tile reads and where its sums go: the equations of `conv.tiles`, in whole numbers."""

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm import te

from reparam_compiler.core.winograd import transform
from reparam_compiler.lowering.conv.algorithms import ConvShape, Tile, Winograd
from reparam_compiler.lowering.conv.tiles import matrix_element, source_pixel

pytestmark = pytest.mark.tvm
SHAPES = {
    "ragged tiles, unequal pads": ConvShape(2, 7, 5, 4, 4, (3, 3), padding=(2, 0, 1, 3)),
    "two strides": ConvShape(1, 9, 8, 4, 4, (3, 3), stride=(2, 1), padding=(1, 1, 1, 1)),
    "lattices, batch 2": ConvShape(2, 9, 8, 4, 4, (3, 3), dilation=(2, 3), padding=(2, 3, 2, 3)),
    "5x5 of stride 3": ConvShape(1, 11, 10, 4, 4, (5, 5), stride=(3, 3), padding=(2, 2, 2, 2)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_output_finds_the_pixels_of_its_taps_in_its_tile(name: str) -> None:
    """Output y = l + d (m t + i) reads row y s + r d - top for tap r = s r' + q: what the tile has at point i + r', phase q."""
    shape, algorithm = SHAPES[name], Winograd((3, 2), Tile(4, 16))
    (tiles_h, tiles_w), (d_h, d_w), (m_h, m_w) = algorithm.grid(shape), shape.dilation, algorithm.outputs
    (s_h, s_w), (top, left, _, _) = shape.stride, shape.padding
    for n, y, x in itertools.product(range(shape.batch), range(shape.out_height), range(shape.out_width)):
        lattice = (n * d_h + y % d_h) * d_w + x % d_w
        tile = (lattice * tiles_h + y // d_h // m_h) * tiles_w + x // d_w // m_w
        assert tile < algorithm.tiles(shape)
        for r, s in itertools.product(*map(range, shape.kernel)):
            a, b, phase = y // d_h % m_h + r // s_h, x // d_w % m_w + s // s_w, r % s_h * s_w + s % s_w
            found = source_pixel(shape, algorithm, tile, a, b, phase)
            assert found == (n, y * s_h + r * d_h - top, x * s_w + s * d_w - left)


@pytest.mark.parametrize("outputs", [2, 4, 6])
def test_a_product_with_a_matrix_reads_nothing_that_its_zeros_leave_out(outputs: int) -> None:
    matrix = transform(outputs, 3).data
    vector = te.placeholder((len(matrix[0]),), "float32", "v")
    read: list[int] = []

    def term(k: int) -> Any:
        read.append(k)
        return vector[k]

    matrix_element(matrix, te.var("row"), term)
    assert read == [k for factors in matrix for k in np.flatnonzero(factors)]
