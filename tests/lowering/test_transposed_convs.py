"""Transposed convs become convs, with what follows in their epilogue, and compute what torch does."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.conv.algorithms import Step
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.conv_sites import find_conv_sites
from reparam_compiler.lowering.relax.layout import channels_last, simplify

pytestmark = pytest.mark.tvm
CONVS: dict[str, dict[str, Any]] = {
    "2x2": {"kernel_size": 2, "stride": 2},
    "3x3, doubled": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "3x3, one less than doubled": {"kernel_size": 3, "stride": 2, "padding": 1},
    "4x4, cut on all sides": {"kernel_size": 4, "stride": 2, "padding": 1},
    "stride 1, dilated": {"kernel_size": 3, "padding": 1, "dilation": 2},
    "unequal": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
    "phases without taps": {"kernel_size": 2, "stride": 3, "output_padding": 1},
    "stride 3": {"kernel_size": 5, "stride": 3, "padding": 2, "output_padding": 2},
    "groups": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 6, "bias": False},
}
REFUSED: dict[str, dict[str, Any]] = {
    "dilated phases": {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1},
    "more is cut than the kernel reaches": {"kernel_size": 3, "stride": 2, "padding": 3},
}


class Transposed(nn.Module):
    """Each transposed conv with a function behind it, of an input of 5 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.ConvTranspose2d(6, 6, **kwargs) for kwargs in (CONVS | REFUSED).values())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple((conv(x) * 2 + 0.25).relu() for conv in self.convs)


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    torch.manual_seed(0)
    model, x = Transposed().eval(), torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        expected = [value.numpy() for value in model(x)]
    return dict(zip(CONVS | REFUSED, zip(compile(model, x).run(x), expected, strict=True), strict=True))


@pytest.mark.parametrize("name", CONVS | REFUSED)
def test_it_is_what_torch_computes(name: str, results: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    found, expected = results[name]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def prepared(model: nn.Module, *inputs: torch.Tensor) -> Any:
    return channels_last(simplify(to_relax(model.eval(), inputs).module))["main"]


def with_relu(kwargs: dict[str, Any]) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(6, 6, **kwargs), nn.BatchNorm2d(6), nn.ReLU())


@pytest.mark.parametrize("name", CONVS)
def test_it_is_one_conv_site_with_what_follows_in_its_epilogue(name: str) -> None:
    (site,) = find_conv_sites(prepared(with_relu(CONVS[name]), torch.zeros(1, 6, 5, 4)))
    assert [step.op for step in site.epilogue][-1] == "relu"
    assert all(len(operand) == site.shape.channels_out for operand in site.operands)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_conv_is_left_to_tvm_which_takes_nchw(name: str) -> None:
    main = prepared(with_relu(REFUSED[name]), torch.zeros(1, 6, 5, 4))
    assert find_conv_sites(main) == []
    assert 'data_layout="NCHW"' in main.script(show_meta=False)


class GivenWeight(nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv_transpose2d(x, weight, stride=2)


def test_a_weight_that_is_an_input_is_left_to_tvm() -> None:
    x, weight = torch.randn(1, 3, 5, 4), torch.randn(3, 2, 3, 3)
    expected = GivenWeight()(x, weight).numpy()
    np.testing.assert_allclose(compile(GivenWeight().eval(), (x, weight)).run(x, weight)[0], expected, rtol=1e-5, atol=1e-5)


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (self.up(x) + other).relu()


def test_a_sum_with_another_tensor_is_behind_the_shuffle() -> None:
    (site,) = find_conv_sites(prepared(Added(), torch.zeros(1, 6, 5, 4), torch.zeros(1, 6, 10, 8)))
    assert site.epilogue == (Step("add", "channels"),)
