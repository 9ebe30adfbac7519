"""The block types of RepVGG's paper, each one function from where a layer sits to a module in training form.

    M2 = relu( bn(M1 * W3) + bn(M1 * W1) + bn(M1) )                                                       Eq. 1

The last term is there where the layer keeps the shape (stride 1, equal widths). The 1x1 pads one pixel less than the
3x3, has its stride, and has its groups. Fused, every block of `BLOCKS` is one 3x3 conv and a ReLU but for
"relu_in_branches", which no conv equals, and "residual_reorg", whose residual blocks keep two convs each.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3 and Tables 6 and 7.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

BlockName = Literal[
    "repvgg",
    "without_identity",
    "without_1x1",
    "without_both",
    "identity_without_bn",
    "post_addition_bn",
    "relu_in_branches",
    "diracnet",
    "trivial",
    "acb",
    "residual_reorg",
]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a 3x3 layer sits in the net.

    in_channels, out_channels: widths.
    stride, dilation, groups: of the 3x3; the other branches follow it.
    """

    in_channels: int
    out_channels: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def keeps_shape(self) -> bool:
        """Whether an identity branch is possible."""
        return self.stride == 1 and self.in_channels == self.out_channels


class ConvBN(nn.Module):
    """bn(x * W): a conv without a bias, padded so that stride 1 keeps the size, then batch norm.

    Args:
        site: where the layer sits.
        kernel_size: `(kh, kw)`, odd.

    Shapes: `N C H W` to `N O H' W'`.
    """

    def __init__(self, site: Site, kernel_size: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.conv = _same_conv(site, kernel_size)
        self.bn = nn.BatchNorm2d(site.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x))
        return normed


class BranchBlock(nn.Module):
    """relu( after( sum of the branches ) ), all branches reading the same input.

    Args:
        branches: by name, in the order in which they are added.
        after: what the sum goes through before the ReLU; nothing by default.

    Shapes: `N C H W` to `N O H' W'`.
    """

    def __init__(self, branches: Mapping[str, nn.Module], after: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.after = after
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = reduce(add, [branch(x) for branch in self.branches.values()])
        if self.after is not None:
            total = self.after(total)
        activated: Tensor = self.relu(total)
        return activated


class ResidualBlock(nn.Module):
    """relu( residual(x) + shortcut(x) ), the block of a ResNet.

    Args:
        residual: conv-BN layers with a ReLU between each two, which is what keeps them apart.
        ends: the widths before the first and after the last of them, and their stride. The shortcut is the identity, or a
            1x1 and BN where `ends` changes the shape.

    Shapes: `N C H W` to `N O H' W'`.
    """

    def __init__(self, residual: nn.Sequential, ends: Site) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = nn.Identity() if ends.keeps_shape else ConvBN(ends, (1, 1))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return activated


class DiracWeight(nn.Module):
    """W = diag(a) I + diag(b) W_norm, each filter of W_norm of unit length. Source: Table 7, "DiracNet"."""

    identity: Tensor

    def __init__(self, weight: Tensor, groups: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(weight.shape[0]))
        self.b = nn.Parameter(torch.full((weight.shape[0],), 0.1))
        self.register_buffer("identity", _identity_kernel(weight, groups))

    def forward(self, weight: Tensor) -> Tensor:
        normed = weight / torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        total: Tensor = self.a.view(-1, 1, 1, 1) * self.identity + self.b.view(-1, 1, 1, 1) * normed
        return total


class TrivialWeight(nn.Module):
    """W + I. Source: Table 7, "trivial re-param"."""

    identity: Tensor

    def __init__(self, weight: Tensor, groups: int) -> None:
        super().__init__()
        self.register_buffer("identity", _identity_kernel(weight, groups))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.identity


def repvgg_block(site: Site) -> nn.Module:
    """Eq. 1."""
    return _branches(site, dense=ConvBN(site), pointwise=ConvBN(site, (1, 1)), identity=_identity_bn(site))


def without_identity(site: Site) -> nn.Module:
    """Eq. 1 less its third term (Table 6)."""
    return _branches(site, dense=ConvBN(site), pointwise=ConvBN(site, (1, 1)))


def without_1x1(site: Site) -> nn.Module:
    """Eq. 1 less its second term (Table 6)."""
    return _branches(site, dense=ConvBN(site), identity=_identity_bn(site))


def without_both(site: Site) -> nn.Module:
    """relu(bn(x * W)): a plain layer (Table 6)."""
    return _branches(site, dense=ConvBN(site))


def identity_without_bn(site: Site) -> nn.Module:
    """Eq. 1 with x itself as the third term (Table 7)."""
    return _branches(site, dense=ConvBN(site), pointwise=ConvBN(site, (1, 1)), identity=nn.Identity())


def post_addition_bn(site: Site) -> nn.Module:
    """relu( bn(x * W3 + x * W1 + x) ) (Table 7)."""
    return _branches(
        site,
        nn.BatchNorm2d(site.out_channels),
        dense=_same_conv(site, (3, 3)),
        pointwise=_same_conv(site, (1, 1)),
        identity=nn.Identity(),
    )


def relu_in_branches(site: Site) -> nn.Module:
    """Eq. 1 with a ReLU behind each batch norm (Table 7). No conv equals it."""
    return _branches(
        site,
        dense=nn.Sequential(ConvBN(site), nn.ReLU()),
        pointwise=nn.Sequential(ConvBN(site, (1, 1)), nn.ReLU()),
        identity=nn.Sequential(_identity_bn(site), nn.ReLU()),
    )


def diracnet(site: Site) -> nn.Module:
    """relu(bn(x * W)) with W = diag(a) I + diag(b) W_norm where the layer keeps the shape (Table 7)."""
    return _parametrized(site, DiracWeight)


def trivial(site: Site) -> nn.Module:
    """relu(bn(x * (W + I))) where the layer keeps the shape (Table 7)."""
    return _parametrized(site, TrivialWeight)


def acb(site: Site) -> nn.Module:
    """relu( bn(x * W3x3) + bn(x * W3x1) + bn(x * W1x3) ), the asymmetric conv block (Table 7)."""
    return _branches(site, dense=ConvBN(site), vertical=ConvBN(site, (3, 1)), horizontal=ConvBN(site, (1, 3)))


def residual_pair(first: Site, second: Site) -> ResidualBlock:
    """The block of ResNet-18 and -34: two 3x3 convs and a shortcut (Table 7, "residual reorg")."""
    layers = nn.Sequential(OrderedDict(first=ConvBN(first), relu=nn.ReLU(), second=ConvBN(second)))
    return ResidualBlock(layers, Site(first.in_channels, second.out_channels, first.stride))


BLOCKS: Mapping[BlockName, Callable[[Site], nn.Module]] = MappingProxyType(
    {
        "repvgg": repvgg_block,
        "without_identity": without_identity,
        "without_1x1": without_1x1,
        "without_both": without_both,
        "identity_without_bn": identity_without_bn,
        "post_addition_bn": post_addition_bn,
        "relu_in_branches": relu_in_branches,
        "diracnet": diracnet,
        "trivial": trivial,
        "acb": acb,
        "residual_reorg": without_both,  # for stages of one layer; `stage_of_blocks` pairs the others
    }
)


def stage_of_blocks(sites: Sequence[Site], block: BlockName) -> nn.Sequential:
    """The blocks of one stage, in order.

    Args:
        sites: where the layers of the stage sit.
        block: the block type. "residual_reorg" makes one `residual_pair` of every two layers where they are even
            in number.

    Raises:
        ValueError: a block type that is not in `BLOCKS`.
    """
    if block not in BLOCKS:
        raise ValueError(f"block={block!r}: choose one of {', '.join(BLOCKS)}")
    if block == "residual_reorg" and len(sites) % 2 == 0:
        pairs = zip(sites[::2], sites[1::2], strict=True)
        return nn.Sequential(*(residual_pair(first, second) for first, second in pairs))
    return nn.Sequential(*(BLOCKS[block](site) for site in sites))


def _branches(site: Site, after: nn.Module | None = None, /, **branches: nn.Module) -> BranchBlock:
    """The block of these branches, without the one called `identity` where the layer changes the shape."""
    return BranchBlock({k: v for k, v in branches.items() if k != "identity" or site.keeps_shape}, after)


def _parametrized(site: Site, parametrization: Callable[[Tensor, int], nn.Module]) -> BranchBlock:
    dense = ConvBN(site)
    if site.keeps_shape:
        parametrize.register_parametrization(dense.conv, "weight", parametrization(dense.conv.weight, site.groups))
    return BranchBlock({"dense": dense})


def _same_conv(site: Site, kernel_size: tuple[int, int]) -> nn.Conv2d:
    kh, kw = kernel_size
    return nn.Conv2d(
        site.in_channels,
        site.out_channels,
        kernel_size,
        stride=site.stride,
        padding=(site.dilation * (kh // 2), site.dilation * (kw // 2)),
        dilation=(site.dilation if kh > 1 else 1, site.dilation if kw > 1 else 1),
        groups=site.groups,
        bias=False,
    )


def _identity_bn(site: Site) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(site.in_channels)


def _identity_kernel(weight: Tensor, groups: int) -> Tensor:
    """The kernel, `O Ig kh kw`, whose conv gives back its input."""
    return nn.init.dirac_(torch.empty_like(weight, requires_grad=False), groups)
