"""ResNet-18, -34, -50, -101 and -152: the baselines that the paper times RepVGG against, and residual nets to prune.

    y = relu( F(x) + shortcut(x) )        F: two 3x3, or 1x1 - 3x3 - 1x1 with a fourfold wider end; shortcut: x, or bn(x * W1)

Every conv is followed by a batch norm; the stride of a bottleneck is on its 3x3.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1; RepVGG (CVPR 2021), Table 4.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from reparam_compiler.zoo.blocks import ConvBN, ResidualBlock, Site, residual_pair
from reparam_compiler.zoo.random_weights import initialise_convs

BlockKind = Literal["basic", "bottleneck"]

WIDTHS = (64, 128, 256, 512)
EXPANSION = {"basic": 1, "bottleneck": 4}


class ResNet(nn.Module):
    """A ResNet for images of about 224 x 224.

    Args:
        kind: the block.
        layers: blocks in each of the four stages.
        num_classes: outputs of the linear layer.
        dilated: as a segmentation backbone of output stride 8: the last two stages keep the resolution, and their 3x3
            convs have dilation 2 and 4 in return (PSPNet).

    Shapes: `N 3 H W` to `N num_classes`.
    """

    def __init__(
        self, kind: BlockKind, layers: tuple[int, int, int, int], *, num_classes: int = 1000, dilated: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(conv=ConvBN(Site(3, 64, 2), (7, 7)), relu=nn.ReLU(), pool=nn.MaxPool2d(3, stride=2, padding=1))
        )
        stages, into = [], WIDTHS[0]
        for index, (count, width) in enumerate(zip(layers, WIDTHS, strict=True)):
            out = width * EXPANSION[kind]
            spread = dilated and index >= len(WIDTHS) - 2
            middle = Site(width, width, dilation=2 ** (index - 1) if spread else 1)
            first = _block(kind, into, replace(middle, stride=1 if index == 0 or spread else 2))
            stages.append(nn.Sequential(first, *(_block(kind, out, middle) for _ in range(count - 1))))
            into = out
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(into, num_classes)
        initialise_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flatten(self.pool(self.stages(self.stem(x)))))
        return logits


def resnet18(*, num_classes: int = 1000, dilated: bool = False) -> ResNet:
    """ResNet-18."""
    return ResNet("basic", (2, 2, 2, 2), num_classes=num_classes, dilated=dilated)


def resnet34(*, num_classes: int = 1000, dilated: bool = False) -> ResNet:
    """ResNet-34."""
    return ResNet("basic", (3, 4, 6, 3), num_classes=num_classes, dilated=dilated)


def resnet50(*, num_classes: int = 1000, dilated: bool = False) -> ResNet:
    """ResNet-50."""
    return ResNet("bottleneck", (3, 4, 6, 3), num_classes=num_classes, dilated=dilated)


def resnet101(*, num_classes: int = 1000, dilated: bool = False) -> ResNet:
    """ResNet-101."""
    return ResNet("bottleneck", (3, 4, 23, 3), num_classes=num_classes, dilated=dilated)


def resnet152(*, num_classes: int = 1000, dilated: bool = False) -> ResNet:
    """ResNet-152."""
    return ResNet("bottleneck", (3, 8, 36, 3), num_classes=num_classes, dilated=dilated)


RESNET: Mapping[str, Callable[..., ResNet]] = MappingProxyType(
    {
        "ResNet-18": resnet18,
        "ResNet-34": resnet34,
        "ResNet-50": resnet50,
        "ResNet-101": resnet101,
        "ResNet-152": resnet152,
    }
)


def _block(kind: BlockKind, in_channels: int, middle: Site) -> ResidualBlock:
    """The block with 3x3 convs like `middle`; it gives `EXPANSION[kind]` times as many channels."""
    width = middle.out_channels
    if kind == "basic":
        return residual_pair(replace(middle, in_channels=in_channels), replace(middle, stride=1))
    ends = Site(in_channels, width * EXPANSION[kind], middle.stride)
    layers = OrderedDict(
        reduce=ConvBN(Site(in_channels, width), (1, 1)),
        relu1=nn.ReLU(),
        spatial=ConvBN(middle),
        relu2=nn.ReLU(),
        expand=ConvBN(Site(width, ends.out_channels), (1, 1)),
    )
    return ResidualBlock(nn.Sequential(layers), ends)
