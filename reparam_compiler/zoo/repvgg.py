"""RepVGG-A0 … B3 in training form, so that the compiler has something to fuse.

    M2 = relu( bn(M1 * W3) + bn(M1 * W1) + bn(M1) )                          Eq. 1, one layer; see `blocks.py`
    widths = min(64, 64 a), 64 a, 128 a, 256 a, 512 b                        of the five stages, section 3.4

The first layer of each stage has stride 2; global average pooling and one linear layer follow. `block=` swaps the
block of every layer for one of the ablations of Tables 6 and 7, `dilated=` makes the backbones of Table 8.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.4, Tables 2 and 8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypedDict, Unpack

from torch import Tensor, nn

from reparam_compiler.zoo.blocks import BlockName, Site, stage_of_blocks
from reparam_compiler.zoo.random_weights import initialise_convs

Dilated = Literal["last_two_stages", "last_five"]

FAST_LAYERS = 5  # the "fast" backbones of Table 8 dilate the last five layers only


@dataclass(frozen=True, slots=True)
class Architecture:
    """How many layers each stage has, how wide they are, and which of them are grouped.

    layers: for each stage.
    widths: output channels, for each stage.
    groups: of the 3rd, 5th, 7th … layer of the net, the 1x1 branch included; 1 for the plain variants.
    strides: of the first layer of each stage.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.widths) == len(self.strides):
            raise ValueError(
                f"{len(self.layers)} layer counts, {len(self.widths)} widths and {len(self.strides)} strides: "
                "give one of each for every stage"
            )

    @classmethod
    def scaled(cls, family: Literal["A", "B"], a: float, b: float, groups: int = 1) -> "Architecture":
        """The net of `family` with stages 1 to 4 `a` times as wide as the base and stage 5 `b` times (section 3.4)."""
        layers = {"A": (1, 2, 4, 14, 1), "B": (1, 4, 6, 16, 1)}[family]
        widths = (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b))
        return cls(layers, widths, groups)


class RepVGG(nn.Module):
    """A RepVGG in training form.

    Args:
        architecture: layers, widths, groups and strides.
        num_classes: outputs of the linear layer.
        in_channels: of the input image.
        dilated: as a segmentation backbone of output stride 8 (Table 8). The last two stages lose their strides, as in
            PSPNet. "last_two_stages" gives all their layers dilation 2 and 4 in return; "last_five" gives it to the
            last five layers of the net alone, at the same multiply-adds.
        block: the block type, a key of `reparam_compiler.zoo.blocks.BLOCKS`.

    Shapes: `N in_channels H W` to `N num_classes`.

    Raises:
        ValueError: a block type or a dilation mode that does not exist.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        dilated: Dilated | None = None,
        block: BlockName = "repvgg",
    ) -> None:
        super().__init__()
        stages = place_layers(architecture, in_channels=in_channels, dilated=dilated)
        self.stages = nn.Sequential(*(stage_of_blocks(stage, block) for stage in stages))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(architecture.widths[-1], num_classes)
        initialise_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flatten(self.pool(self.stages(x))))
        return logits


def place_layers(
    architecture: Architecture, *, in_channels: int = 3, dilated: Dilated | None = None
) -> tuple[tuple[Site, ...], ...]:
    """Where each 3x3 layer of `architecture` sits, stage by stage.

    Args:
        architecture: layers, widths, groups and strides.
        in_channels: of the input image.
        dilated: see `RepVGG`.

    Returns:
        A tuple of sites for each stage.

    Raises:
        ValueError: `dilated` is none of its values.
    """
    if dilated not in (None, "last_two_stages", "last_five"):
        raise ValueError(f"dilated={dilated!r}: choose 'last_two_stages', 'last_five' or None")
    depth, count = sum(architecture.layers), len(architecture.layers)
    number, into = 0, in_channels  # `number` counts layers from 1 through the whole net
    stages = []
    for index, (layers, width) in enumerate(zip(architecture.layers, architecture.widths, strict=True)):
        dense = dilated is not None and index >= count - 2  # output at the resolution of the stage before
        sites = []
        for layer in range(layers):
            number += 1
            stride = architecture.strides[index] if layer == 0 and not dense else 1
            spread = dense and (dilated == "last_two_stages" or number > depth - FAST_LAYERS)
            dilation = 2 ** (index - (count - 3)) if spread else 1
            groups = architecture.groups if number >= 3 and number % 2 == 1 else 1
            sites.append(Site(into, width, stride, dilation, groups))
            into = width
        stages.append(tuple(sites))
    return tuple(stages)


class Options(TypedDict, total=False):
    """What every `repvgg_*` takes.

    num_classes: outputs of the linear layer; 1000.
    dilated: None, "last_two_stages" or "last_five": see `RepVGG`.
    block: the block type, "repvgg" or an ablation: see `reparam_compiler.zoo.blocks`.
    """

    num_classes: int
    dilated: Dilated | None
    block: BlockName


def repvgg_a0(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-A0: a = 0.75, b = 2.5."""
    return RepVGG(Architecture.scaled("A", 0.75, 2.5), **options)


def repvgg_a1(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-A1: a = 1, b = 2.5."""
    return RepVGG(Architecture.scaled("A", 1, 2.5), **options)


def repvgg_a2(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-A2: a = 1.5, b = 2.75."""
    return RepVGG(Architecture.scaled("A", 1.5, 2.75), **options)


def repvgg_b0(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B0: a = 1, b = 2.5; the net of the ablations."""
    return RepVGG(Architecture.scaled("B", 1, 2.5), **options)


def repvgg_b1(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B1: a = 2, b = 4."""
    return RepVGG(Architecture.scaled("B", 2, 4), **options)


def repvgg_b1g2(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B1g2: B1 with every second layer in 2 groups."""
    return RepVGG(Architecture.scaled("B", 2, 4, groups=2), **options)


def repvgg_b1g4(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B1g4: B1 with every second layer in 4 groups."""
    return RepVGG(Architecture.scaled("B", 2, 4, groups=4), **options)


def repvgg_b2(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B2: a = 2.5, b = 5."""
    return RepVGG(Architecture.scaled("B", 2.5, 5), **options)


def repvgg_b2g4(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B2g4: B2 with every second layer in 4 groups."""
    return RepVGG(Architecture.scaled("B", 2.5, 5, groups=4), **options)


def repvgg_b3(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B3: a = 3, b = 5."""
    return RepVGG(Architecture.scaled("B", 3, 5), **options)


def repvgg_b3g4(**options: Unpack[Options]) -> RepVGG:
    """RepVGG-B3g4: B3 with every second layer in 4 groups."""
    return RepVGG(Architecture.scaled("B", 3, 5, groups=4), **options)


REPVGG: Mapping[str, Callable[..., RepVGG]] = MappingProxyType(
    {
        "A0": repvgg_a0,
        "A1": repvgg_a1,
        "A2": repvgg_a2,
        "B0": repvgg_b0,
        "B1": repvgg_b1,
        "B1g2": repvgg_b1g2,
        "B1g4": repvgg_b1g4,
        "B2": repvgg_b2,
        "B2g4": repvgg_b2g4,
        "B3": repvgg_b3,
        "B3g4": repvgg_b3g4,
    }
)
