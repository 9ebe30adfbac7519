"""Blocks of other ranks and kinds: linears, transposed convs, slices and concats, other borders; and what is never exact."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.catalogue_padded import DBB
from tests.support.catalogue_parts import Entry, conv, conv_bn, on, random_parameter


class Sum(nn.Module):
    """relu of the sum of its branches, after a stem and before a norm where there are such."""

    def __init__(self, *branches: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        return torch.relu(self.after(out))


class Implicit(nn.Module):
    """YOLOv7's head: implicit m * (1x1)(implicit a + x)."""

    def __init__(self) -> None:
        super().__init__()
        self.ia, self.im, self.m = random_parameter(1, 8, 1, 1), random_parameter(1, 12, 1, 1), conv(8, 12, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.im * self.m(self.ia + x))


class LoRA(nn.Module):
    """W x + b + s B A x, by products with transposed parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = random_parameter(12, 8), random_parameter(12)
        self.lora_A, self.lora_B, self.dropout = random_parameter(2, 8), random_parameter(12, 2), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        result = F.linear(x, self.weight, bias=self.bias)
        result += (self.dropout(x) @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * 0.5
        return torch.relu(result)


class AdapterLoRA(nn.Module):
    """The same, by linear layers round a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.dropout = nn.Linear(8, 12), nn.Identity()
        self.lora_A, self.lora_B = nn.Linear(8, 2, bias=False), nn.Linear(2, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        result = result + self.lora_B(self.lora_A(self.dropout(x))) * 2.0
        return torch.relu(result)


class RepMLP(nn.Module):
    """A conv beside a grouped 1x1 over all positions: one matrix, but not one conv."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3, self.fc3_bn = nn.Conv2d(4 * 20, 4 * 20, 1, groups=4, bias=False), nn.BatchNorm2d(80)
        self.local = conv_bn(4, 4, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc3_bn(self.fc3(x.reshape(-1, 80, 1, 1))).reshape(-1, 4, 5, 4)
        return torch.relu(out + self.local(x))


class Parallel(nn.Module):
    """Two branches side by side, not summed: one wide conv. `pieces` gives each its own channels: one grouped conv."""

    def __init__(self, *branches: nn.Module, pieces: bool = False) -> None:
        super().__init__()
        self.branches, self.bn, self.pieces = nn.ModuleList(branches), nn.BatchNorm2d(16), pieces

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1) if self.pieces else (x, x)
        return torch.relu(self.bn(torch.cat([self.branches[0](first), self.branches[1](second)], dim=1)))


class Gated(nn.Module):
    """conv(x) + conv(x) sigmoid(conv(x)): the gate depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gate = conv(8, 8, 3), conv(8, 8, 1), conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(x) * torch.sigmoid(self.gate(x)))


def replicate() -> Sum:
    return Sum(
        nn.Sequential(conv(4, 4, 3, rank=3, mode="replicate"), nn.BatchNorm3d(4)),
        conv_bn(4, 4, 1, rank=3),
        nn.BatchNorm3d(4),
    )


def transposed() -> Sum:
    return Sum(
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        after=nn.BatchNorm2d(6),
    )


BORDERED = ("relu", "pad")
"""Exported programs have no conv that reflects or pads unevenly, ONNX none that reflects: there padding is an op of its own."""

ENTRIES = (
    Entry("yolov7_implicit", on(Implicit)),
    Entry("lora", on(LoRA, 5, 8)),  # on tokens, ONNX has no linear with a bias: an add stays
    Entry("lora_tokens", on(LoRA, 2, 5, 8), remains=("relu", "add")),
    Entry("lora_layers", on(AdapterLoRA, 5, 8)),
    Entry("lora_layers_tokens", on(AdapterLoRA, 2, 5, 8), remains=("relu", "add")),
    Entry(
        "csrep",
        on(lambda: Sum(conv(8, 8, 3, rank=1), conv(8, 8, 1, rank=1), nn.Identity(), before=nn.BatchNorm1d(8)), 2, 8, 9),
        remains=("relu", "batch_norm"),
        refused=r"^batch_norm: ",
    ),
    Entry("replicate_3d", on(replicate, 2, 4, 5, 4, 6), remains=BORDERED),
    Entry("reflect", on(lambda: Sum(conv(8, 8, 3, mode="reflect"), conv_bn(8, 8, 1), nn.BatchNorm2d(8))), remains=BORDERED),
    Entry(
        "reflect_layer",
        on(lambda: Sum(nn.Sequential(nn.ReflectionPad2d(1), conv(8, 8, 3, padding=0)), conv_bn(8, 8, 1))),
        remains=BORDERED,
    ),
    Entry("circular", on(lambda: Sum(conv(8, 8, 3, mode="circular"), conv_bn(8, 8, 1))), remains=BORDERED),
    Entry(
        "shifted",
        on(lambda: Sum(nn.Sequential(nn.ZeroPad2d((2, 0, 1, 1)), conv(8, 8, 3, padding=0)), conv_bn(8, 8, 1))),
        remains=BORDERED,
    ),
    Entry("unequal_groups", on(lambda: Sum(*(conv(8, 8, 3, groups=groups) for groups in (2, 4, 8))))),
    Entry("transposed", on(transposed)),
    Entry("parallel_concat", on(lambda: Parallel(conv(8, 10, 3), conv(8, 6, 1, bias=True)))),
    Entry("split_conv_concat", on(lambda: Parallel(conv(4, 8, 3), conv(4, 8, 3), pieces=True))),
    Entry("norm_before_unpadded_conv", on(lambda: nn.Sequential(nn.BatchNorm2d(8), conv(8, 8, 3, padding=0), nn.ReLU()))),
    # never exact
    Entry("repmlp", on(RepMLP, 2, 4, 5, 4), convs=2, remains=("relu", "reshape", "flatten", "add"), refused=r"^add: "),
    Entry(
        "dbb_padded_by_zeros",
        on(lambda: DBB(plain=True)),
        convs=4,
        remains=("relu", "add", "pad", "avg_pool", "batch_norm"),
        refused=r"^(add|batch_norm): ",
    ),
    Entry(
        "pool_that_skips_padding",
        on(lambda: Sum(conv(8, 8, 3), nn.AvgPool2d(3, 1, 1, count_include_pad=False))),
        remains=("relu", "add", "avg_pool"),
        refused=r"^add: .*(count|pad)",
    ),
    Entry(
        "padded_after_wide",
        on(lambda: Sum(nn.Sequential(conv(8, 8, 3), conv(8, 8, 3)), conv(8, 8, 1))),
        convs=3,
        remains=("relu", "add"),
        refused=r"^add: .*pad",
    ),
    Entry(
        "bias_under_zero_padding",
        on(lambda: Sum(nn.Sequential(conv(8, 8, 1, bias=True), conv(8, 8, 3)), conv(8, 8, 1))),
        convs=3,
        remains=("relu", "add"),
        refused=r"^add: .*(pad|border|bias)",
    ),
    Entry(
        "unlike_borders",
        on(lambda: Sum(conv(8, 8, 3, mode="reflect"), conv(8, 8, 3))),
        convs=2,
        remains=(*BORDERED, "add"),
        refused=r"^(add|pad): .*(reflect|border|pad)",
    ),
    Entry(
        "relu_inside",
        on(lambda: Sum(nn.Sequential(conv_bn(8, 8, 3), nn.ReLU()), conv_bn(8, 8, 1))),
        convs=2,
        remains=("relu", "add"),
        refused=r"^add: .*relu",
    ),
    Entry(
        "norm_through_padding",
        on(lambda: Sum(nn.Sequential(nn.BatchNorm2d(8), conv(8, 8, 3)), conv(8, 8, 1))),
        convs=2,
        remains=("relu", "add", "batch_norm"),
        refused=r"^(add: .*(pad|border|bias)|batch_norm: )",
    ),
    Entry(
        "norm_of_the_data",
        on(lambda: Sum(nn.Sequential(conv(8, 8, 3), nn.InstanceNorm2d(8)), conv(8, 8, 1))),
        convs=2,
        remains=("relu", "add", "InstanceNorm2d", "instance_norm", "InstanceNormalization"),
        refused=r"^add: ",
    ),
    Entry("gated", on(Gated), convs=3, remains=("relu", "add", "mul", "sigmoid"), refused=r"^add: "),
)
