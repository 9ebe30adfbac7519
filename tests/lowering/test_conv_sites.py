"""Which layers a kernel of ours computes, and how much of what follows them it absorbs; nothing is compiled here."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import Step
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.conv_sites import ConvSite, find_conv_sites
from reparam_compiler.lowering.relax.layout import channels_last, simplify

pytestmark = pytest.mark.tvm
BIAS = Step("add", "channels")
Function = Callable[[torch.Tensor, torch.Tensor], Any]


class Behind(nn.Module):
    """A function of a conv's output and of the conv's input, which have the same shape."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(8, 8, 3, padding=1), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.conv(x), x)


def sites_of(model: nn.Module, x: torch.Tensor, dtypes: tuple[str, ...] = ("float32",)) -> list[ConvSite]:
    return find_conv_sites(channels_last(simplify(to_relax(model.eval(), x).module))["main"], dtypes)


def site_of(function: Function) -> ConvSite:
    (site,) = sites_of(Behind(function), torch.zeros(1, 8, 6, 5))
    return site


@pytest.mark.parametrize(
    ("function", "steps"),
    [
        (lambda y, x: y.relu(), (Step("relu"),)),
        (lambda y, x: (y + x).relu(), (Step("add", "tensor"), Step("relu"))),
        (lambda y, x: y * 0.5 + 1, (Step("mul", "scalar", value=0.5), Step("add", "scalar", value=1.0))),
        (lambda y, x: functional.gelu(y) + x, (Step("gelu"), Step("add", "tensor"))),
        (lambda y, x: y.clamp(-1, 6), (Step("maximum", "scalar", value=-1.0), Step("minimum", "scalar", value=6.0))),
        (lambda y, x: functional.leaky_relu(y, 0.125), (Step("prelu", "channels"),)),
        (lambda y, x: torch.tanh(torch.sigmoid(y)), (Step("sigmoid"),)),
        (lambda y, x: torch.sigmoid(y.relu()), (Step("relu"), Step("sigmoid"))),
        (
            lambda y, x: y * torch.sigmoid(y),
            (Step("sigmoid"), Step("mul", "earlier", source=1, other=2)),
        ),
        (
            lambda y, x: (torch.erf(y / 2) + 1) * y + x,
            (
                *(Step("div", "scalar", value=2.0), Step("erf"), Step("add", "scalar", value=1.0)),
                *(Step("mul", "earlier", other=1), Step("add", "tensor")),
            ),
        ),
        (
            lambda y, x: 0.5 * y * y.tanh(),
            (Step("mul", "scalar", value=0.5), Step("tanh", source=1), Step("mul", "earlier", source=2, other=3)),
        ),
        (lambda y, x: y * y.mean((2, 3), keepdim=True), ()),
        (lambda y, x: (y.sigmoid(), y * y.sigmoid()), ()),
        (lambda y, x: (y * y.sigmoid()).tanh() + y, ()),
        (lambda y, x: y.exp(), ()),
        (lambda y, x: functional.max_pool2d(y, 2).relu(), ()),
    ],
    ids=[
        "relu",
        "residual",
        "numbers",
        "gelu",
        "clamp",
        "slopes",
        "two functions",
        "one",
        "SiLU in arithmetic",
        "GELU in arithmetic",
        "two products",
        "its mean",
        "an output",
        "never closed",
        "exp",
        "a pool",
    ],
)
def test_what_follows_a_conv_is_in_its_epilogue(function: Function, steps: tuple[Step, ...]) -> None:
    assert site_of(function).epilogue == (BIAS, *steps)


def test_what_others_read_too_is_not_absorbed() -> None:
    site = site_of(lambda y, x: (y.relu(), y * 2))
    assert site.epilogue == (BIAS,)
    assert len(site.operands) == 1


def test_a_sum_of_two_convs_is_in_one_of_them() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a(x) + self.b(x)).relu()

    epilogues = {site.epilogue for site in sites_of(Two(), torch.zeros(1, 8, 6, 5))}
    assert epilogues == {(BIAS,), (BIAS, Step("add", "tensor"), Step("relu"))}


def test_a_dense_layer_is_a_conv_of_one_pixel_a_row() -> None:
    (site,) = sites_of(nn.Linear(6, 4), torch.zeros(3, 5, 6))
    assert (site.shape.pixels, site.shape.kernel, site.shape.channels_out) == (15, (1, 1), 4)
    assert site.epilogue == (replace(BIAS, swapped=True),)  # torch's bias comes first
    assert str(site) == "dense_6_4"


def test_only_the_dtypes_that_are_asked_for_are_taken() -> None:
    model, x = nn.Conv2d(8, 8, 3).half(), torch.zeros(1, 8, 6, 5, dtype=torch.float16)
    assert sites_of(model, x) == []
    assert len(sites_of(model, x, ("float16",))) == 1


@pytest.mark.parametrize(
    ("conv", "name"),
    [
        (nn.Conv2d(8, 12, 3, stride=2), "conv_3x3_8_12_at_2x2"),
        (nn.Conv2d(8, 12, 1, groups=2), "conv_1x1_8_12_g2_at_6x5"),
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise_3x3_8_8_at_4x3"),
    ],
)
def test_a_kernel_is_named_after_its_shape(conv: nn.Module, name: str) -> None:
    (site,) = sites_of(conv, torch.zeros(1, 8, 6, 5))
    assert str(site) == name
