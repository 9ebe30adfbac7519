"""Blocks in training form: those of RepVGG's paper and variants of them, with random norms and inputs that are not square."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reparam_compiler.zoo.blocks import BLOCKS as ZOO
from reparam_compiler.zoo.blocks import Site, residual_pair
from tests.support.catalogue import ENTRIES
from tests.support.catalogue_parts import Made, built, conv_bn
from tests.support.small_models import Pieces, normal


class Branches(nn.Module):
    """relu of the sum of its branches, which starts from 0 as MobileOne's does."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for branch in self.branches:
            total = total + branch(x)
        return torch.relu(total)


class Nested(nn.Module):
    """relu( bn( (3x3-BN + BN)(x) + 1x1(x) ) ): a block inside a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([conv_bn(8, 8, 3), nn.BatchNorm2d(8)])
        self.point = nn.Conv2d(8, 8, 1)
        self.after = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.after((self.inner[0](x) + self.inner[1](x)) + self.point(x)))


def zoo(name: str, **site: int) -> Callable[[], Made]:
    def make() -> Made:
        place = Site(**({"in_channels": 8, "out_channels": 8} | site))
        return ZOO[name](place), normal(2, place.in_channels, 9, 7)  # type: ignore[index]

    return make


def branches(*make: Callable[[], nn.Module], shape: tuple[int, ...] = (2, 8, 9, 7)) -> Callable[[], Made]:
    return lambda: (Branches(*(one() for one in make)), normal(*shape))


def pieces(wiring: Callable[[Pieces, Tensor], Tensor]) -> Callable[[], Made]:
    return lambda: (Pieces(wiring, channels=8), normal(2, 8, 9, 7))


def used_twice(m: Pieces, x: Tensor) -> Tensor:
    y = m.point(x)
    return torch.relu(m.wide(x) + y + y)


def alternating(m: Pieces, x: Tensor) -> Tensor:
    return torch.relu(x - 2 * m.norm(x) + (m.wide(x) - m.point(x)) / 4 - 1)


BLOCKS: dict[str, Callable[[], Made]] = {
    "repvgg": zoo("repvgg"),
    "strided": zoo("repvgg", out_channels=12, stride=2),
    "dilated": zoo("repvgg", dilation=2),
    "grouped": zoo("repvgg", groups=4),
    "without_identity": zoo("without_identity"),
    "without_1x1": zoo("without_1x1"),
    "without_both": zoo("without_both"),
    "identity_without_bn": zoo("identity_without_bn"),
    "post_addition_bn": zoo("post_addition_bn"),
    "acb": zoo("acb"),
    "diracnet": zoo("diracnet"),
    "trivial": zoo("trivial"),
    "relu_in_branches": zoo("relu_in_branches"),
    "residual_reorg": lambda: (residual_pair(Site(8, 8), Site(8, 8)), normal(2, 8, 9, 7)),
    "residual_reorg_strided": lambda: (residual_pair(Site(8, 12, 2), Site(12, 12)), normal(2, 8, 9, 7)),
    "dbb_without_padding_by_bias": branches(
        lambda: conv_bn(8, 8, 3),
        lambda: conv_bn(8, 8, 1),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), *conv_bn(8, 8, 3)),
        lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(8)),
    ),
    "mobileone_depthwise": branches(
        lambda: nn.BatchNorm2d(8),
        lambda: conv_bn(8, 8, 3, groups=8),
        lambda: conv_bn(8, 8, 3, groups=8),
        lambda: conv_bn(8, 8, 1, groups=8),
    ),
    "padded_conv_after_conv": lambda: (
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        normal(2, 8, 9, 7),
    ),
    "one_dimension": branches(
        lambda: conv_bn(8, 8, 3, rank=1), lambda: conv_bn(8, 8, 1, rank=1), lambda: nn.BatchNorm1d(8), shape=(2, 8, 9)
    ),
    "three_dimensions": branches(
        lambda: conv_bn(4, 4, 3, rank=3), lambda: conv_bn(4, 4, 1, rank=3), lambda: nn.BatchNorm3d(4), shape=(2, 4, 5, 4, 6)
    ),
    "nested": lambda: (Nested(), normal(2, 8, 9, 7)),
    "used_twice": pieces(used_twice),
    "sub_and_scale": pieces(alternating),
}
"""For each name a function that makes a module and an input for it."""

CATALOGUE = {name: entry.make for name, entry in ENTRIES.items() if entry.exports}
"""The same for the catalogue's blocks, but for what no tracer takes whole."""


def block(name: str) -> Made:
    """A block and its input, both in float64."""
    return built((BLOCKS | CATALOGUE)[name])
