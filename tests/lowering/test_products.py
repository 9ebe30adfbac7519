"""Products of activations: what torch computes, for sizes that no tile divides, and tiles that the registers hold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.cpu.pipeline import with_kernels
from reparam_compiler.lowering.cpu.products import Product, product_tile
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.target import resolve

pytestmark = pytest.mark.tvm
SIZES = [
    ((6, 3, 11, 7), (6, 3, 7, 13)),
    ((2, 33, 49), (2, 49, 40)),
    ((1, 5), (5, 16)),
    ((3, 4, 9), (9, 24)),
    ((5, 8, 8), (5, 8, 8)),
    ((1, 4, 9), (3, 9, 16)),
    ((9,), (9, 16)),
]
NARROW = ((3, 4, 9), (3, 9, 5))  # no row of the result is a vector


class Products(nn.Module):
    """The product of each input with the next one."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(a @ b for a, b in zip(inputs[::2], inputs[1::2], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_what_torch_computes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = tuple(torch.randn(size).to(dtype) for pair in [*SIZES, NARROW] for size in pair)
    for found, expected in zip(compile(Products().eval(), inputs).run(*inputs), Products()(*inputs), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "tiled"), [*((pair, True) for pair in SIZES), (NARROW, False)], ids=str)
def test_which_have_tiles(sizes: tuple[tuple[int, ...], tuple[int, ...]], tiled: bool) -> None:
    module = to_relax(Products().eval(), tuple(map(torch.zeros, sizes))).module
    text = with_kernels(module, resolve({"kind": "llvm", "mcpu": "haswell"})).script(show_meta=False)
    assert ("T.vectorized" in text) == tiled


def test_threads_take_batches_and_column_tiles() -> None:
    def text(size: int) -> str:
        module = to_relax(Products().eval(), (torch.zeros(4, size, 32), torch.zeros(4, 32, size))).module
        return str(with_kernels(module, resolve("llvm")).script(show_meta=False))

    assert "T.parallel" in text(24)
    assert "T.parallel" not in text(16)


@given(st.integers(1, 300), st.integers(8, 300), st.sampled_from([(4, 32), (8, 16), (16, 32)]))
def test_a_tile_fits_the_product_and_the_registers(rows: int, columns: int, unit: tuple[int, int]) -> None:
    lanes, registers = unit
    height, width = product_tile(Product(1, rows, 64, max(columns, lanes)), lanes, registers)
    vectors = width // lanes
    assert width == vectors * lanes <= max(columns, lanes)
    assert height <= rows
    assert height * vectors + vectors + 1 <= registers


def test_the_second_factor_of_rank_two_makes_one_product_of_all_rows() -> None:
    assert Product.of((3, 4, 9), (9, 24)) == Product(1, 12, 9, 24)
    assert Product.of((3, 4, 9), (3, 9, 24)) == Product(3, 4, 9, 24)
    assert Product.of((1, 4, 9), (3, 9, 24)) is None
    assert Product.of((0, 9), (9, 24)) is None
