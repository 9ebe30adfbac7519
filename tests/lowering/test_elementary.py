"""The elementary functions against float64, at the edges too, in a kernel and in a model."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")

import tvm
from tvm import te

from reparam_compiler.lowering import CompileOptions, compile
from reparam_compiler.lowering.cpu import elementary
from reparam_compiler.lowering.target import resolve

pytestmark = pytest.mark.tvm
EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
RELATIVE, ABSOLUTE = 1e-6, 2e-7
"""In float32: of the value, and where it vanishes of 1, or of x where that is larger. (torch's own gelu loses 3.2e-7 of x.)"""


def evaluated(name: str, x: np.ndarray) -> np.ndarray:
    """One function in a kernel of its own, in vectors."""
    data = te.placeholder(x.shape, str(x.dtype), "data")
    out = te.compute(x.shape, lambda i: getattr(elementary, name)(data[i]), "out")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([data, out]).without_attr("global_symbol"))
    _, lane = schedule.split(schedule.get_loops(schedule.get_sblock("out"))[0], [None, 8])
    schedule.vectorize(lane)
    library = tvm.compile(tvm.IRModule({"main": schedule.mod["main"].with_attr("global_symbol", "main")}), target=resolve(None))
    result = tvm.runtime.tensor(np.zeros_like(x))
    library["main"](tvm.runtime.tensor(x), result)
    return result.numpy()


@pytest.mark.parametrize("name", EXACT)
def test_float32_is_as_exact_as_it_says(name: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 40000), np.linspace(-1e-3, 1e-3, 2000), np.linspace(-87, 88.5, 2000)]).astype(
        "float32"
    )
    expected = EXACT[name](torch.tensor(x).double()).numpy()
    error = np.abs(evaluated(name, x) - expected)
    assert (error <= RELATIVE * np.abs(expected) + (0 if name == "exp" else ABSOLUTE * np.maximum(1, np.abs(x)))).all()


@pytest.mark.parametrize("name", EXACT)
def test_edges_are_those_of_the_function(name: str) -> None:
    x = np.array([math.nan, math.inf, -math.inf, 0.0, 200.0, -200.0, 88.7, -103.0], "float32")
    found, expected = evaluated(name, x), EXACT[name](torch.tensor(x)).numpy()
    inexact = np.isnan(expected) & ~np.isnan(x)  # silu and gelu of -inf are nan in arithmetic, and torch's own differ
    np.testing.assert_allclose(found[~inexact], expected[~inexact], rtol=2e-6, atol=1e-30 if name == "exp" else 1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_float64_keeps_the_exact_function(name: str) -> None:
    x = np.linspace(-6, 6, 800)
    np.testing.assert_allclose(evaluated(name, x), EXACT[name](torch.tensor(x)).numpy(), rtol=1e-12, atol=1e-14)


class Activated(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], channels: int) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, channels, 3, padding=1), function

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return self.function(y), self.function(x) * 2


@pytest.mark.parametrize("channels", [16, 13])
@pytest.mark.parametrize("name", [name for name in EXACT if name != "exp"])
def test_in_a_conv_and_alone_they_are_what_torch_computes(name: str, channels: int) -> None:
    torch.manual_seed(0)
    model, x = Activated(EXACT[name], channels).eval(), torch.randn(1, 3, 9, 7)
    with torch.no_grad():
        expected: Any = model(x)
    for found, wanted in zip(compile(model, x).run(x), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_conv", [True, False])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GELU, lambda: nn.GELU("tanh")])
def test_chained_activations_grow_linearly(activation: Callable[[], nn.Module], with_conv: bool) -> None:
    sizes = []
    for count in (2, 5):
        layers = [nn.Conv2d(8, 8, 3)] if with_conv else []
        model, x = nn.Sequential(*layers, *(activation() for _ in range(count))).eval(), torch.randn(1, 8, 9, 7)
        compiled = compile(model, x, options=CompileOptions(sources=("tir",)))
        sizes.append(sum(map(len, map(str, compiled.listings.values()))))
        with torch.no_grad():
            np.testing.assert_allclose(compiled.run(x)[0], model(x).numpy(), rtol=1e-5, atol=2e-6)
    assert sizes[1] <= 5 / 2 * sizes[0]
