"""What the catalogue's blocks are made of: the entry, convs that keep the size, norms, padding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.support.small_models import normal, randomised

Made = tuple[nn.Module, Tensor]
Size = int | tuple[int, ...]
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True, slots=True)
class Entry:
    """A published block in training form, and what `fuse(policy="always")` makes of it.

    make: the module and an input for it.
    convs: how many convs, transposed convs and linears are left.
    remains: the names of other ops that may be left.
    refused: what all refusals match, as "op: reason", and at least one does; None where there must be none.
    symbolic, exports: whether `fx.symbolic_trace` and `torch.export` take the block.
    """

    name: str
    make: Callable[[], Made]
    convs: int = 1
    remains: tuple[str, ...] = ("relu",)
    refused: str | None = None
    symbolic: bool = True
    exports: bool = True


def built(make: Callable[[], Made]) -> Made:
    """The module, with norms away from their defaults, and its input: both in float64, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = make()
        return randomised(model).double(), x


def on(module: Callable[[], nn.Module], *shape: int) -> Callable[[], Made]:
    """The module and an input of this shape, `2 8 9 7` by default."""
    return lambda: (module(), normal(*(shape or (2, 8, 9, 7))))


def conv(
    into: int,
    out: int,
    size: Size,
    *,
    rank: int = 2,
    stride: int = 1,
    padding: Size | None = None,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    mode: str = "zeros",
) -> nn.Module:
    """A conv that keeps the size, where its stride is 1 and no padding is given."""
    sizes = size if isinstance(size, tuple) else (size,) * rank
    same = tuple(dilation * (k // 2) for k in sizes)
    return CONVS[rank](
        into, out, sizes, stride, same if padding is None else padding, dilation, groups, bias=bias, padding_mode=mode
    )


def conv_bn(into: int, out: int, size: Size, *, rank: int = 2, **how: int) -> nn.Sequential:
    """A conv without a bias, and its norm."""
    return nn.Sequential(conv(into, out, size, rank=rank, **how), NORMS[rank](out))  # type: ignore[arg-type]


def depthwise(channels: int, size: Size, **how: int) -> nn.Module:
    """A depthwise conv."""
    return conv(channels, channels, size, groups=channels, **how)  # type: ignore[arg-type]


def depthwise_bn(channels: int, size: Size, **how: int) -> nn.Sequential:
    """A depthwise conv and its norm."""
    return conv_bn(channels, channels, size, groups=channels, **how)


def random_parameter(*shape: int) -> nn.Parameter:
    """A parameter away from the zeros or ones that it starts from in the original."""
    return nn.Parameter(torch.randn(shape))


def assigned_border(x: Tensor, values: Tensor, width: int = 1) -> Tensor:
    """x, which is padded already, with its border set to a value for each channel, as DBB and ECBSR spell it."""
    values = values.view(1, -1, 1, 1)
    x[:, :, 0:width, :] = values
    x[:, :, -width:, :] = values
    x[:, :, :, 0:width] = values
    x[:, :, :, -width:] = values
    return x


def value_outside(norm: nn.BatchNorm2d) -> Tensor:
    """What a norm gives for 0."""
    std = torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator]
    return norm.bias.detach() - norm.running_mean * norm.weight.detach() / std  # type: ignore[operator]
