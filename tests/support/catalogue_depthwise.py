"""Depthwise blocks: many small convs as one, large kernels, mixers, and convs that encode positions."""

import torch
from torch import Tensor, nn

from tests.support.catalogue_parts import NORMS, Entry, conv, conv_bn, depthwise, depthwise_bn, on, random_parameter

TOKENS = ("permute", "reshape", "view", "flatten", "slice", "concat")
"""What stands round a conv that reads tokens."""


class MobileOne(nn.Module):
    """N x (k-BN) + 1-BN + BN, summed from 0: MobileOne, FastViT, GhostNetV3; in one dimension the temporal form."""

    def __init__(self, size: int, *, groups: int, branches: int = 3, skip: bool = True, act: bool = True, rank: int = 2):
        super().__init__()
        self.rbr_skip = NORMS[rank](8) if skip else None
        self.rbr_scale = conv_bn(8, 8, 1, rank=rank, groups=groups) if size > 1 and branches else None
        self.rbr_conv = nn.ModuleList(conv_bn(8, 8, size, rank=rank, groups=groups) for _ in range(branches))
        self.activation = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        identity_out = 0
        if self.rbr_skip is not None:
            identity_out = self.rbr_skip(x)
        scale_out = 0
        if self.rbr_scale is not None:
            scale_out = self.rbr_scale(x)
        out = scale_out + identity_out
        for branch in self.rbr_conv:
            out += branch(x)
        return self.activation(out)


class Ghost(nn.Module):
    """GhostNetV3: half of the channels by pointwise branches, the other half from them by depthwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = MobileOne(1, groups=1), MobileOne(3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        x2 = self.cheap(x1)
        out = torch.cat([x1, x2], dim=1)
        return out[:, :14, :, :]


class RepGhost(nn.Module):
    """relu( dw3-BN(x) + BN(x) ) or relu( dw3-BN(x) + x ), after a pointwise conv."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(*conv_bn(8, 8, 1), nn.ReLU())
        self.cheap_operation = depthwise_bn(8, 3)
        self.fusion_conv = nn.ModuleList([nn.Identity()])
        self.fusion_bn = nn.ModuleList([nn.BatchNorm2d(8) if norm else nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        for fusion_conv, fusion_bn in zip(self.fusion_conv, self.fusion_bn, strict=True):
            x2 = x2 + fusion_bn(fusion_conv(x1))
        return torch.relu(x2)


class RepMixer(nn.Module):
    """FastViT: x + s (mixer(x) - norm(x)), where norm is a MobileOne of one skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = MobileOne(3, groups=8, branches=0, act=False)
        self.mixer = MobileOne(3, groups=8, branches=1, act=False)
        self.layer_scale = random_parameter(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layer_scale * (self.mixer(x) - self.norm(x)))


class EfficientViM(nn.Module):
    """(1 - a) x + a BN(dw(x)), with a = sigmoid(param)."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconv1, self.alpha = depthwise_bn(8, 3), random_parameter(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.alpha).view(4, -1, 1, 1)
        x = (1 - alpha[0]) * x + alpha[0] * self.dwconv1(x)
        return torch.relu(x)


class LargeKernel(nn.Module):
    """RepLKNet: a large kernel and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.lkb_origin, self.small_conv = depthwise_bn(8, 7), depthwise_bn(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.lkb_origin(inputs)
        out += self.small_conv(inputs)
        return torch.relu(out)


class DilatedReparam(nn.Module):
    """UniRepLKNet: a large kernel and dilated small ones, each with its norm, and a norm after."""

    KERNELS = ((5, 1), (3, 2), (3, 3))

    def __init__(self) -> None:
        super().__init__()
        self.lk_origin, self.origin_bn, self.norm = depthwise(8, 7), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        for k, r in self.KERNELS:
            setattr(self, f"dil_conv_k{k}_{r}", depthwise(8, k, dilation=r))
            setattr(self, f"dil_bn_k{k}_{r}", nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin_bn(self.lk_origin(x))
        for k, r in self.KERNELS:
            out = out + getattr(self, f"dil_bn_k{k}_{r}")(getattr(self, f"dil_conv_k{k}_{r}")(x))
        return torch.relu(self.norm(out))


class SumOfList(nn.Module):
    """The branches' values, through python's `sum`: LCNetV2 (k and smaller k's), wespeaker's RSBB (3 + 3 dilated + BN)."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(sum(branch(x) for branch in self.branches))


class RepVGGDW(nn.Module):
    """RepViT: bn( dw3-BN(x) + dw1(x) + x ); YOLOv10: silu( dw7-BN(x) + dw3-BN(x) )."""

    def __init__(self, *, yolo: bool) -> None:
        super().__init__()
        self.conv = depthwise_bn(8, 7 if yolo else 3)
        self.conv1 = depthwise_bn(8, 3) if yolo else depthwise(8, 1, bias=True)
        self.bn, self.act = nn.BatchNorm2d(8), nn.SiLU()
        self.yolo = yolo

    def forward(self, x: Tensor) -> Tensor:
        if self.yolo:
            return self.act(self.conv(x) + self.conv1(x))
        return torch.relu(self.bn((self.conv(x) + self.conv1(x)) + x))


class RepNeXt(nn.Module):
    """k + 1 x k + k x 1 + (1 x k -> k x 1) + 2x2 dilated 2, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_h, self.conv_w = depthwise(8, 5, bias=True), depthwise(8, (5, 1), bias=True), depthwise(8, (1, 5))
        self.conv_w_h = nn.Sequential(depthwise(8, (1, 3)), depthwise(8, (3, 1), bias=True))
        self.conv_2_2 = depthwise(8, 2, padding=1, dilation=2, bias=True)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(x) + self.conv_h(x) + self.conv_w(x) + self.conv_w_h(x) + self.conv_2_2(x)
        return torch.relu(self.bn(x))


class Residual(nn.Module):
    """x + m(x): iFormer, SHViT, EfficientViT, DaViT in timm."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.m(x))


class CoaTPosition(nn.Module):
    """dw3(x) + x on the image tokens; the class token passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.size = depthwise(8, 3, bias=True), (9, 7)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        cls_token, img_tokens = x[:, :1], x[:, 1:]
        feat = img_tokens.transpose(1, 2).view(batch, channels, *self.size)
        x = self.proj(feat) + feat
        x = x.flatten(2).transpose(1, 2)
        return torch.cat((cls_token, x), dim=1)


class DaViTPosition(nn.Module):
    """x + dw3(x), added as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.size = depthwise(8, 3, bias=True), (9, 7)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        feat = x.transpose(1, 2).view(batch, channels, *self.size)
        feat = self.proj(feat)
        return x + feat.flatten(2).transpose(1, 2)


class TwinsPosition(nn.Module):
    """dw3(x) + x in place, added as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.size = nn.Sequential(depthwise(8, 3, bias=True)), (9, 7)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        cnn_feat_token = x.transpose(1, 2).view(batch, channels, *self.size)
        x = self.proj(cnn_feat_token)
        x += cnn_feat_token
        return x.flatten(2).transpose(1, 2)


SILU = ("silu", "sigmoid", "mul")
ENTRIES = (
    Entry("mobileone", on(lambda: nn.Sequential(MobileOne(3, groups=8), MobileOne(1, groups=1))), convs=2),
    Entry("mobileone_1d", on(lambda: MobileOne(3, groups=8, rank=1), 2, 8, 9)),
    Entry("ghostnetv3", on(Ghost), convs=2, remains=("relu", "concat", "slice"), refused=r"^concat: .*relu"),
    Entry("repghost", on(lambda: RepGhost(norm=True)), convs=2),
    Entry("repghost_without_norm", on(lambda: RepGhost(norm=False)), convs=2),
    Entry("fastvit", on(RepMixer)),
    Entry("efficientvim", on(EfficientViM)),
    Entry("replknet", on(LargeKernel)),
    Entry("unireplknet", on(DilatedReparam)),
    Entry("lcnetv2", on(lambda: SumOfList(depthwise_bn(8, 5), depthwise_bn(8, 3), depthwise_bn(8, 1)))),
    Entry("rsbb", on(lambda: SumOfList(conv_bn(8, 8, 3), conv_bn(8, 8, 3, dilation=2), nn.BatchNorm2d(8)))),
    Entry("repvit", on(lambda: RepVGGDW(yolo=False))),
    Entry("yolov10", on(lambda: RepVGGDW(yolo=True)), remains=SILU),
    Entry("repnext", on(RepNeXt)),
    Entry("iformer", on(lambda: Residual(conv(8, 8, 3, groups=8, bias=True)))),
    Entry("shvit", on(lambda: Residual(depthwise_bn(8, 3)))),
    Entry("coat", on(CoaTPosition, 2, 64, 8), remains=TOKENS, refused=r"^concat: "),
    # exact, but the add is over tokens: the reshapes round the conv would have to move past it
    Entry("davit_tokens", on(DaViTPosition, 2, 63, 8), remains=(*TOKENS, "add"), refused=r"^add: axes \[1, 2\] meet"),
    Entry("twins", on(TwinsPosition, 2, 63, 8), remains=TOKENS),
)
