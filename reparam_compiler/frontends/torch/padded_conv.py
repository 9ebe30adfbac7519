"""A conv whose padding is not the same at both ends, for which torch has no option: a pad and a conv, read as one op."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from reparam_compiler.core.kernel import PaddingMode, Pairs
from reparam_compiler.vocabulary.padding import TORCH_PAD


class Pad(nn.Module):
    """Padding, or a crop, of the spatial axes: (low, high) for each."""

    def __init__(self, padding: Pairs, mode: PaddingMode = "zeros") -> None:
        super().__init__()
        self.padding = padding
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """`N C *S` to `N C *S'`."""
        amounts = [amount for pair in reversed(self.padding) for amount in pair]
        return F.pad(x, amounts, TORCH_PAD[self.mode])

    def extra_repr(self) -> str:
        """The padding."""
        return f"{self.padding}, mode={self.mode!r}"


class PaddedConv(nn.Sequential):
    """`conv(pad(x))`, where the conv itself does not pad."""

    def __init__(self, pad: Pad, conv: nn.Module) -> None:
        super().__init__(pad, conv)

    @property
    def padding_mode(self) -> PaddingMode:
        """What the padding holds."""
        return cast(Pad, self[0]).mode


def conv_of(module: nn.Module) -> nn.Module:
    """The module that has a conv's tensors: the conv of a `PaddedConv`, any other itself."""
    return module[1] if isinstance(module, PaddedConv) else module
