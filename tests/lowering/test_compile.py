"""What a compiled model computes is what torch computes, over shapes that hide nothing (H != W, ragged widths, groups)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler import lowering
from tests.support.compiled_nets import CONVS, NETS, Residual, Results, rectified, results_of, seeded

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def check(module: nn.Module, *shapes: tuple[int, ...]) -> Any:
    torch.manual_seed(1)
    module = seeded(module)
    inputs = tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple | list) else (expected,)
    compiled = lowering.compile(module, inputs)
    found = compiled.run(*inputs)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), **FLOAT32)
    return compiled


def compile_and_run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    return lowering.compile(model, inputs).run(*inputs)


@pytest.fixture(scope="module")
def convs() -> Results:
    return results_of(rectified(CONVS), compile_and_run)


@pytest.mark.parametrize("name", CONVS)
def test_conv_matches_torch(name: str, convs: Results) -> None:
    ((found, expected),) = convs[name]
    np.testing.assert_allclose(found, expected, **FLOAT32)


@pytest.fixture(scope="module")
def nets() -> Results:
    return results_of(NETS, compile_and_run)


@pytest.mark.parametrize("name", NETS)
def test_net_matches_torch(name: str, nets: Results) -> None:
    for found, expected in nets[name]:
        np.testing.assert_allclose(found, expected, **FLOAT32)


class DynamicWeights(nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, weight, padding=1)


def test_conv_of_unknown_weights_matches_torch() -> None:
    check(DynamicWeights(), (1, 4, 8, 7), (6, 4, 3, 3))


def test_layer_used_twice_is_one_kernel() -> None:
    shared = nn.Conv2d(16, 16, 3, padding=1)
    compiled = check(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU()), (1, 16, 9, 8))
    assert sum(kernel.name.startswith("conv") for kernel in compiled.kernels) == 1


def test_bias_relu_and_residual_are_in_the_conv_kernel() -> None:
    compiled = check(Residual(16), (1, 16, 9, 8))
    names = [kernel.name for kernel in compiled.kernels]
    assert sum(name.startswith("conv") for name in names) == 2
    assert not [name for name in names if "add" in name or "relu" in name]


class Attention(nn.Module):
    """torch spells multi-head attention with a squeeze of a negative axis, on which TVM's ConvertLayout runs out of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 16, 3), nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(y, y, y)[0]


def test_attention_behind_a_conv() -> None:
    check(Attention(), (1, 3, 6, 7))


class _Scaled(nn.Module):
    """A layer, and a number times what it gives, or over it."""

    def __init__(self, layer: nn.Module, number: float, *, over: bool) -> None:
        super().__init__()
        self.layer, self.number, self.over = layer, number, over

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return (self.number / y if self.over else self.number * y) + 1


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(6, 8)], ids=["conv", "depthwise", "dense"]
)
def test_nothing_times_a_layer_is_nothing(layer: nn.Module, over: bool) -> None:
    x = torch.randn(1, 8, 5, 6)
    (found,) = lowering.compile(_Scaled(layer, 0.0, over=over).eval(), (x,)).run(x)
    np.testing.assert_array_equal(found, np.ones(layer(x).shape, "float32"))
