"""PSPNet: the segmentation net of the paper's Table 8, on RepVGG backbones and on the ResNets beside them.

    f      = backbone(x)                                        C H/8 W/8, the last two stages dilated instead of strided
    level  = resize( relu( bn( pool_n(f) * W1 ) ) )             n = 1, 2, 3, 6 cells a side, C / 4 channels each
    logits = resize( relu( bn( [f, levels] * W3 ) ) * W1 )      512 channels between, then the classes at the size of x

All resizing is bilinear with aligned corners. Dropout and the auxiliary loss of training are left out. Feature maps of
`image // 8` that 6 divides (images of 48 k - 7 pixels: 233, 473, 713) have pooling cells of equal size, which is what
ONNX's older exporter asks for; `torch.export` and `compile` take any.

Source: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3; RepVGG (CVPR 2021), section 4.4 and Table 8.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam_compiler.zoo.blocks import ConvBN, Site
from reparam_compiler.zoo.random_weights import initialise_convs
from reparam_compiler.zoo.repvgg import REPVGG
from reparam_compiler.zoo.resnet import RESNET

BINS = (1, 2, 3, 6)
HEAD_WIDTH = 512
FAMILY, FAST = "RepVGG-", " fast"
BACKBONES = (*(f"{FAMILY}{name}{suffix}" for name in REPVGG for suffix in ("", FAST)), *RESNET)


class PyramidPooling(nn.Module):
    """The input beside what is left of it at four coarse resolutions.

    Args:
        channels: C; each level has a share of C / 4.

    Shapes: `N C H W` to `N 2C H W`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), ConvBN(Site(channels, width), (1, 1)), nn.ReLU()) for cells in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return torch.cat([x, *(_resized(level(x), size) for level in self.levels)], dim=1)


class PSPNet(nn.Module):
    """A backbone, pyramid pooling and a head of two convs.

    Args:
        backbone: `N 3 H W` to `N channels H/8 W/8`.
        channels: what the backbone gives.
        num_classes: of a pixel.

    Shapes: `N 3 H W` to `N num_classes H W`.
    """

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = PyramidPooling(channels)
        pooled = channels + len(BINS) * (channels // len(BINS))
        self.head = nn.Sequential(ConvBN(Site(pooled, HEAD_WIDTH)), nn.ReLU(), nn.Conv2d(HEAD_WIDTH, num_classes, 1))
        initialise_convs(self.pyramid)
        initialise_convs(self.head)

    def forward(self, x: Tensor) -> Tensor:
        return _resized(self.head(self.pyramid(self.backbone(x))), x.shape[2:])


def pspnet(backbone: str, num_classes: int = 19) -> PSPNet:
    """The net of a row of Table 8.

    Args:
        backbone: one of `BACKBONES`: "RepVGG-B1g2", "RepVGG-B1g2 fast" (only the last five layers dilated), "ResNet-50" …
        num_classes: of a pixel; 19 in Cityscapes.

    Raises:
        ValueError: a backbone that is not one of them.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone={backbone!r}: choose one of {', '.join(BACKBONES)}")
    if backbone in RESNET:
        resnet = RESNET[backbone](dilated=True)
        return PSPNet(nn.Sequential(resnet.stem, resnet.stages), resnet.linear.in_features, num_classes)
    name = backbone.removeprefix(FAMILY).removesuffix(FAST)
    repvgg = REPVGG[name](dilated="last_five" if backbone.endswith(FAST) else "last_two_stages")
    return PSPNet(repvgg.stages, repvgg.linear.in_features, num_classes)


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
