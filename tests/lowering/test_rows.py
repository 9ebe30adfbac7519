"""Softmax and layer norm by rows: what torch computes in float64, for widths that no vector divides, and far from zero."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.cpu.pipeline import with_kernels
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.target import resolve

pytestmark = pytest.mark.tvm
SIZES = [(2, 3, 27), (5, 64), (4, 3), (1, 40, 33), (7, 1)]


class Rows(nn.Module):
    """A softmax and a layer norm of each input."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size[-1], eps=1e-3) for size in SIZES)
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return *(norm(x) for norm, x in zip(self.norms, inputs, strict=True)), *(x.softmax(-1) for x in inputs)


@pytest.fixture(scope="module")
def results() -> list[tuple[np.ndarray, np.ndarray]]:
    torch.manual_seed(0)
    model, inputs = Rows().eval(), tuple(torch.randn(size) * 3 + 100 for size in SIZES)
    inputs[0][0, 0, :5] = -torch.inf
    found = compile(model, inputs).run(*inputs)
    with torch.no_grad():
        expected = model.double()(*(x.double() for x in inputs))
    return list(zip(found, (value.numpy() for value in expected), strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_layer_norm_is_exact_far_from_zero(size: tuple[int, ...], results: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found, expected = results[SIZES.index(size)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_softmax_gives_nothing_to_minus_infinity(size: tuple[int, ...], results: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found, expected = results[len(SIZES) + SIZES.index(size)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def kernels_of(model: nn.Module, x: torch.Tensor) -> str:
    module = channels_last(simplify(to_relax(model.eval(), x).module))
    return str(with_kernels(module, resolve("llvm")).script(show_meta=False))


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "by_rows"),
    [
        (lambda x: x.softmax(-1), True),
        (lambda x: x.softmax(1), False),
        (lambda x: x.double().softmax(-1), False),
        (lambda x: nn.functional.layer_norm(x, (16,)), True),
        (lambda x: nn.functional.layer_norm(x, (8, 16)), False),
    ],
    ids=["softmax", "along another axis", "in float64", "layer norm", "over two axes"],
)
def test_which_are_by_rows(function: Any, by_rows: bool) -> None:
    assert ("T.vectorized" in kernels_of(Function(function), torch.zeros(2, 8, 16))) == by_rows


def test_threads_take_rows() -> None:
    assert "T.parallel" in kernels_of(Function(lambda x: x.softmax(-1)), torch.zeros(64, 64))
    assert "T.parallel" not in kernels_of(Function(lambda x: x.softmax(-1)), torch.zeros(63, 64))
