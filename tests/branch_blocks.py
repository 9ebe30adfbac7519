"""Blocks in training form, one for each family that the design names, all with random norms and inputs that are not square."""

from collections.abc import Callable

import torch
from small_models import Pieces, normal, randomised
from torch import Tensor, nn

from reparam_compiler.zoo.blocks import BLOCKS as ZOO
from reparam_compiler.zoo.blocks import Site, residual_pair

Made = tuple[nn.Module, Tensor]


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
        self.inner = nn.ModuleList([conv_bn(2, 8, 8, 3), nn.BatchNorm2d(8)])
        self.point = nn.Conv2d(8, 8, 1)
        self.after = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.after((self.inner[0](x) + self.inner[1](x)) + self.point(x)))


class Mixer(nn.Module):
    """x + s (dw(x) - bn(x)), RepMixer of FastViT."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = conv_bn(2, 8, 8, 3, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.scale * (self.mix(x) - self.norm(x)))


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv_bn(rank: int, into: int, out: int, size: int, *, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = CONVS[rank](into, out, size, stride, dilation * (size // 2), dilation, groups, bias=False)
    return nn.Sequential(conv, NORMS[rank](out))


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
        lambda: conv_bn(2, 8, 8, 3),
        lambda: conv_bn(2, 8, 8, 1),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), *conv_bn(2, 8, 8, 3)),
        lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(8)),
    ),
    "mobileone_depthwise": branches(
        lambda: nn.BatchNorm2d(8),
        lambda: conv_bn(2, 8, 8, 3, groups=8),
        lambda: conv_bn(2, 8, 8, 3, groups=8),
        lambda: conv_bn(2, 8, 8, 1, groups=8),
    ),
    "large_kernel_depthwise": branches(lambda: conv_bn(2, 8, 8, 7, groups=8), lambda: conv_bn(2, 8, 8, 3, groups=8)),
    "padded_conv_after_conv": lambda: (
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        normal(2, 8, 9, 7),
    ),
    "one_dimension": branches(
        lambda: conv_bn(1, 8, 8, 3), lambda: conv_bn(1, 8, 8, 1), lambda: nn.BatchNorm1d(8), shape=(2, 8, 9)
    ),
    "three_dimensions": branches(
        lambda: conv_bn(3, 4, 4, 3), lambda: conv_bn(3, 4, 4, 1), lambda: nn.BatchNorm3d(4), shape=(2, 4, 5, 4, 6)
    ),
    "nested": lambda: (Nested(), normal(2, 8, 9, 7)),
    "repmixer": lambda: (Mixer(), normal(2, 8, 9, 7)),
    "used_twice": pieces(used_twice),
    "sub_and_scale": pieces(alternating),
}
"""For each name a function that makes a module and an input for it, both in float64."""


def block(name: str) -> Made:
    """A block of `BLOCKS` and its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = BLOCKS[name]()
        return randomised(model).double(), x
