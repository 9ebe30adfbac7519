"""RepVGG and the blocks that sum 3x3s, 1x1s and identities: what differs is where the norms, scales and gates stand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.catalogue_parts import Entry, conv, conv_bn, on, random_parameter

SQUEEZE_EXCITE = ("relu", "sigmoid", "mul", "avg_pool", "adaptive_avg_pool", "mean", "reshape", "flatten", "avg_pool2d")


class RepVGGBlock(nn.Module):
    """3-BN + 1-BN + BN, with `id_out = 0` where there is no identity: RepVGG, RepConv of YOLOv6, v7, v9, EfficientLoFTR."""

    def __init__(
        self, into: int, out: int, *, gate: nn.Module | None = None, act: nn.Module | None = None, dilation: int = 1, **how: int
    ) -> None:
        super().__init__()
        self.nonlinearity = act or nn.ReLU()
        self.se = gate or nn.Identity()
        self.rbr_identity = nn.BatchNorm2d(into) if into == out else None
        self.rbr_dense = conv_bn(into, out, 3, dilation=dilation, **how)
        self.rbr_1x1 = conv_bn(into, out, 1, **how)

    def forward(self, inputs: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.se(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out))


class RepVGGplus(RepVGGBlock):
    """The gate stands after the nonlinearity."""

    def forward(self, inputs: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        out = self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out
        return self.se(self.nonlinearity(out))


class SqueezeExcite(nn.Module):
    """The gate of D2se, which pools by the width, and of RepVGGplus, which pools everything."""

    def __init__(self, *, adaptive: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.adaptive = adaptive

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(inputs, 1) if self.adaptive else F.avg_pool2d(inputs, kernel_size=inputs.size(3))
        x = torch.sigmoid(self.up(F.relu(self.down(x))))
        return inputs * x.view(-1, 8, 1, 1)


class TwoConvs(nn.Module):
    """3-BN + 1-BN of RT-DETR, D-FINE and DAMO-YOLO: layers with an activation of their own, which is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn(8, 12, 3), nn.Identity())
        self.conv2 = nn.Sequential(*conv_bn(8, 12, 1), nn.Identity())
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x) + self.conv2(x)
        return self.act(y)


class LearnedAlpha(nn.Module):
    """PP-YOLOE and YOLO-NAS: 3-BN + alpha (1-BN), where a test of alpha's value defeats tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(8, 8, 3), conv_bn(8, 8, 1)
        self.alpha = random_parameter(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.alpha:  # noqa: SIM108 - as it is published
            y = self.conv1(x) + self.alpha * self.conv2(x)
        else:
            y = self.conv1(x) + self.conv2(x)
        return torch.relu(y)


class QARepVGG(nn.Module):
    """bn( (3-BN)(x) + 1x1(x) + x (+ avgpool(x)) )."""

    def __init__(self, *, pool: bool) -> None:
        super().__init__()
        self.rbr_dense, self.rbr_1x1 = conv_bn(8, 8, 3), conv(8, 8, 1)
        self.rbr_identity, self.bn = nn.Identity(), nn.BatchNorm2d(8)
        self.rbr_avg = nn.AvgPool2d(3, stride=1, padding=1) if pool else None

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.rbr_dense(inputs) + self.rbr_1x1(inputs) + self.rbr_identity(inputs)
        if self.rbr_avg is not None:
            out = out + self.rbr_avg(inputs)
        return torch.relu(self.bn(out))


class ScaleLayer(nn.Module):
    """A number for each channel: learned in LinearAdd, constant in CSLA."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.weight = random_parameter(8)
        self.weight.requires_grad_(learned)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight.view(1, 8, 1, 1)


class LinearAdd(nn.Module):
    """bn( s3 conv3(x) + s1 conv1(x) + s0 x ), the block that RepOptimizers search with."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.conv, self.conv_1x1, self.bn = conv(8, 8, 3), conv(8, 8, 1), nn.BatchNorm2d(8)
        self.scale_conv, self.scale_1x1, self.scale_identity = (ScaleLayer(learned=learned) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.scale_conv(self.conv(inputs)) + self.scale_1x1(self.conv_1x1(inputs))
        out += self.scale_identity(inputs)
        return torch.relu(self.bn(out))


class RealVGG(nn.Module):
    """relu(bn(conv(x))), what RepOptimizers train."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(inputs)))


class CropLayer(nn.Module):
    """Cuts rows and columns off, so that a smaller kernel sees what the larger one is centred on."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.rows, self.cols = rows, cols

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.rows : -self.rows, :] if self.rows else x[:, :, :, self.cols : -self.cols]


class ACBlock(nn.Module):
    """ACNet: k-BN + (k x 1)-BN + (1 x k)-BN; with too little padding the thin convs read a cropped input."""

    def __init__(self, *, padding: int) -> None:
        super().__init__()
        self.square_conv = conv(8, 8, 3, padding=padding)
        self.ver_crop = nn.Identity() if padding else CropLayer(0, 1)
        self.hor_crop = nn.Identity() if padding else CropLayer(1, 0)
        self.ver_conv = conv(8, 8, (3, 1), padding=(padding, 0))
        self.hor_conv = conv(8, 8, (1, 3), padding=(0, padding))
        self.square_bn, self.ver_bn, self.hor_bn = (nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(inputs))
        vertical = self.ver_bn(self.ver_conv(self.ver_crop(inputs)))
        horizontal = self.hor_bn(self.hor_conv(self.hor_crop(inputs)))
        return torch.relu(square + vertical + horizontal)


class RepConvLayer(nn.Module):
    """FAST and TextNet: k-BN + (kh x 1)-BN + (1 x kw)-BN + BN, the last where the shape is kept."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.main_conv, self.main_bn = conv(8, out, 3), nn.BatchNorm2d(out)
        self.ver_conv, self.ver_bn = conv(8, out, (3, 1)), nn.BatchNorm2d(out)
        self.hor_conv, self.hor_bn = conv(8, out, (1, 3)), nn.BatchNorm2d(out)
        self.rbr_identity = nn.BatchNorm2d(8) if out == 8 else None

    def forward(self, inputs: Tensor) -> Tensor:
        main = self.main_bn(self.main_conv(inputs))
        vertical = self.ver_bn(self.ver_conv(inputs))
        horizontal = self.hor_bn(self.hor_conv(inputs))
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return torch.relu(main + vertical + horizontal + id_out)


ENTRIES = (
    Entry("repvgg_grouped", on(lambda: RepVGGBlock(8, 8, groups=2))),
    Entry("repvgg_dilated", on(lambda: RepVGGBlock(8, 8, dilation=2))),
    Entry("repvgg_strided", on(lambda: RepVGGBlock(8, 12, stride=2))),
    Entry("repconv_without_identity", on(lambda: RepVGGBlock(8, 12, act=nn.SiLU())), remains=("silu", "sigmoid", "mul")),
    Entry("repvgg_d2se", on(lambda: RepVGGBlock(8, 8, gate=SqueezeExcite(adaptive=False))), convs=3, remains=SQUEEZE_EXCITE),
    Entry("repvggplus", on(lambda: RepVGGplus(8, 8, gate=SqueezeExcite(adaptive=True))), convs=3, remains=SQUEEZE_EXCITE),
    Entry("rt_detr", on(TwoConvs)),
    Entry("pp_yoloe", on(LearnedAlpha), symbolic=False, exports=False),
    Entry("qarepvgg", on(lambda: QARepVGG(pool=False))),
    Entry("qarepvgg_v2", on(lambda: QARepVGG(pool=True))),
    Entry("linear_add", on(lambda: LinearAdd(learned=True))),
    Entry("csla", on(lambda: LinearAdd(learned=False))),
    Entry("repopt", on(RealVGG)),
    Entry("acnet", on(lambda: ACBlock(padding=1))),
    Entry("acnet_cropped", on(lambda: ACBlock(padding=0))),
    Entry("fast", on(lambda: RepConvLayer(8))),
    Entry("textnet", on(lambda: RepConvLayer(12))),
)
