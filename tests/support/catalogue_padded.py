"""Blocks with convs in sequence: exact only by what stands on the border between them, or with kernels made in the graph."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.catalogue_parts import Entry, assigned_border, conv, conv_bn, on, random_parameter, value_outside

SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


class BNAndPad(nn.Module):
    """DBB: a norm, padded by what it gives for 0. `plain` leaves the zeros, which is what makes the border wrong."""

    def __init__(self, channels: int = 8, *, plain: bool = False) -> None:
        super().__init__()
        self.bn, self.plain = nn.BatchNorm2d(channels), plain

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.bn(x), [1] * 4)
        return padded if self.plain else assigned_border(padded, value_outside(self.bn))


class BNAndConcat(nn.Module):
    """DyRep: the same padding, by concatenating expanded rows and columns."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        values = value_outside(self.bn).view(1, -1, 1, 1)
        row = values.expand(y.size(0), -1, 1, y.size(3))
        y = torch.cat([row, y, row], dim=2)
        column = values.expand(y.size(0), -1, y.size(2), 1)
        return torch.cat([column, y, column], dim=3)


class IdentityBased1x1(nn.Module):
    """DBB: a 1x1 whose kernel is a parameter and the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = random_parameter(8, 8, 1, 1)
        self.register_buffer("id_tensor", torch.eye(8).view(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.id_tensor, None, stride=1, padding=0)  # type: ignore[operator]


class DBB(nn.Module):
    """k-BN + 1-BN + (1 -> BN and pad -> avgpool-BN) + (1 -> BN and pad -> k-BN)."""

    def __init__(self, *, groups: int = 1, plain: bool = False) -> None:
        super().__init__()
        first = IdentityBased1x1() if groups == 1 else conv(8, 8, 1, groups=groups)
        self.dbb_origin, self.dbb_1x1 = conv_bn(8, 8, 3, groups=groups), conv_bn(8, 8, 1, groups=groups)
        self.dbb_avg = nn.Sequential(
            conv(8, 8, 1, groups=groups), BNAndPad(plain=plain), nn.AvgPool2d(3, stride=1, padding=0), nn.BatchNorm2d(8)
        )
        self.dbb_1x1_kxk = nn.Sequential(
            first, BNAndPad(plain=plain), conv(8, 8, 3, padding=0, groups=groups), nn.BatchNorm2d(8)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.dbb_origin(inputs)
        out += self.dbb_1x1(inputs)
        out += self.dbb_avg(inputs)
        out += self.dbb_1x1_kxk(inputs)
        return torch.relu(out)


class DyRep(nn.Module):
    """Seven branches, stacked and summed; the first may be such a block itself."""

    def __init__(self, *, depth: int = 1) -> None:
        super().__init__()
        first = nn.Sequential(DyRep(depth=depth - 1), nn.BatchNorm2d(8)) if depth else conv_bn(8, 8, 3)
        self.branches = nn.ModuleList(
            [
                first,
                conv_bn(8, 8, 1),
                conv_bn(8, 8, (1, 3)),
                conv_bn(8, 8, (3, 1)),
                nn.Sequential(conv(8, 8, 1), BNAndConcat(), conv(8, 8, 3, padding=0), nn.BatchNorm2d(8)),
                nn.Sequential(conv(8, 8, 1), BNAndConcat(), nn.AvgPool2d(3, stride=1), nn.BatchNorm2d(8)),
                nn.BatchNorm2d(8),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class SeqConv3x3(nn.Module):
    """ECBSR: a 1x1 with a bias, padded by it, then a 3x3 or a fixed mask times a scale, depthwise."""

    def __init__(self, mask: Tensor | None = None, wide: int = 12) -> None:
        super().__init__()
        hidden = wide if mask is None else 8
        self.k0, self.b0 = random_parameter(hidden, 8, 1, 1), random_parameter(hidden)
        self.bias, self.masked = random_parameter(8), mask is not None
        if mask is None:
            self.k1 = random_parameter(8, hidden, 3, 3)
        else:
            self.scale, self.mask = random_parameter(8, 1, 1, 1), nn.Parameter(mask.repeat(8, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y0 = F.conv2d(input=x, weight=self.k0, bias=self.b0, stride=1)
        y0 = F.pad(y0, (1, 1, 1, 1), "constant", 0)
        y0 = assigned_border(y0, self.b0)
        if not self.masked:
            return F.conv2d(input=y0, weight=self.k1, bias=self.bias, stride=1)
        return F.conv2d(input=y0, weight=self.scale * self.mask, bias=self.bias, stride=1, groups=8)


class ECB(nn.Module):
    """3 + (1 -> 3) + (1 -> Sobel, both ways) + (1 -> Laplacian) + id."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3x3, self.conv1x1_3x3 = conv(8, 8, 3, bias=True), SeqConv3x3()
        self.sbx, self.sby, self.lpl = SeqConv3x3(SOBEL), SeqConv3x3(SOBEL.T), SeqConv3x3(LAPLACIAN)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.sbx(x) + self.sby(x) + self.lpl(x)
        y += x
        return torch.relu(y)


class RepRFN(nn.Module):
    """3 + 1 + (1 x 3) + (3 x 1) + (1 -> 3) + (1 -> Laplacian) + id, each with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ModuleList(conv(8, 8, size, bias=True) for size in (3, 1, (1, 3), (3, 1)))
        self.sequences = nn.ModuleList([SeqConv3x3(wide=16), SeqConv3x3(LAPLACIAN)])

    def forward(self, x: Tensor) -> Tensor:
        res = x
        for branch in (*self.plain, *self.sequences):
            res = res + branch(x)
        return torch.relu(res)


class Conv3XC(nn.Module):
    """SPAN: padded first, then 1 -> 3 -> 1, with biases; + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.sk = conv(8, 8, 1, bias=True)
        self.conv = nn.Sequential(conv(8, 16, 1, bias=True), conv(16, 16, 3, padding=0, bias=True), conv(16, 8, 1, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        x_pad = F.pad(x, (1, 1, 1, 1), "constant", 0)
        return F.leaky_relu(self.conv(x_pad) + self.sk(x), negative_slope=0.05)


class PlainUSR(nn.Module):
    """1 -> pad by the bias -> 3, times a gate that an MLP makes of a parameter; + id."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.reduce, self.seed = (
            conv(8, 16, 1, bias=True),
            conv(16, 8, 3, padding=0, bias=True),
            random_parameter(1, 8),
        )
        self.mlp = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(self.seed)).view(1, 8, 1, 1)
        out = assigned_border(F.pad(self.expand(x), (1, 1, 1, 1)), self.expand.bias)  # type: ignore[arg-type]
        return torch.relu(self.reduce(out) * gate + x)


class RRRB(nn.Module):
    """FMEN: 1 -> (pad by the bias -> 3) + id -> 1, + id."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.fea, self.reduce = conv(8, 16, 1, bias=True), conv(16, 16, 3, padding=0), conv(16, 8, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(x)
        out_identity = out
        out = assigned_border(F.pad(out, (1, 1, 1, 1)), self.expand.bias)  # type: ignore[arg-type]
        out = self.fea(out) + out_identity
        out = self.reduce(out)
        out += x
        return torch.relu(out)


class RepSR(nn.Module):
    """id + 2 x (3-BN-1)."""

    def __init__(self) -> None:
        super().__init__()
        self.rbr = nn.ModuleList(
            nn.Sequential(conv(8, 16, 3, bias=True), nn.BatchNorm2d(16), conv(16, 8, 1, bias=True)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.rbr[0](x) + self.rbr[1](x))


class OREPA(nn.Module):
    """A kernel that parameters and fixed priors make at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.origin, self.avg_conv, self.pfir_conv = (
            random_parameter(8, 8, 3, 3),
            random_parameter(8, 8),
            random_parameter(8, 8),
        )
        self.conv1, self.conv2, self.vector = random_parameter(8, 8, 1, 1), random_parameter(8, 8, 3, 3), random_parameter(4, 8)
        self.register_buffer("avg_prior", torch.full((3, 3), 1 / 9))
        self.register_buffer("pfir_prior", torch.randn(8, 3, 3))
        self.register_buffer("id_tensor", torch.eye(8).view(8, 8, 1, 1))
        self.bn = nn.BatchNorm2d(8)

    def weight_gen(self) -> Tensor:
        origin = torch.einsum("oihw,o->oihw", self.origin, self.vector[0, :])
        avg = torch.einsum("oi,hw->oihw", self.avg_conv, self.avg_prior)
        pfir = torch.einsum("oi,ohw->oihw", self.pfir_conv, self.pfir_prior)
        both = torch.einsum("ti,othw->oihw", (self.conv1 + self.id_tensor).squeeze(3).squeeze(2), self.conv2)  # type: ignore[operator]
        scaled = [torch.einsum("oihw,o->oihw", w, self.vector[i, :]) for i, w in enumerate((avg, pfir, both), start=1)]
        return origin + scaled[0] + scaled[1] + scaled[2]

    def forward(self, inputs: Tensor) -> Tensor:
        out = F.conv2d(inputs, self.weight_gen(), bias=None, stride=1, padding=1)
        return torch.relu(self.bn(out))


ENTRIES = (
    Entry("dbb", on(DBB), symbolic=False),
    Entry("dbb_grouped", on(lambda: DBB(groups=2)), symbolic=False),
    Entry("dyrep", on(lambda: nn.Sequential(DyRep(depth=0), nn.ReLU()))),
    Entry("dyrep_nested", on(lambda: nn.Sequential(DyRep(), nn.ReLU()))),
    Entry("ecbsr", on(ECB), symbolic=False),
    Entry("reprfn", on(RepRFN), symbolic=False),
    Entry("span", on(Conv3XC), remains=("leaky_relu",)),
    Entry("plainusr", on(PlainUSR), symbolic=False),
    Entry("fmen_rrrb", on(RRRB), symbolic=False),
    Entry("repsr", on(RepSR)),
    Entry("orepa", on(OREPA)),
)
