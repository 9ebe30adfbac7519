"""The kinds that have weights for channels, and those that slide a window over spatial axes."""

from dataclasses import dataclass
from typing import get_args

from reparam_compiler.core.kernel import Ints, PaddingMode, Pairs
from reparam_compiler.ir.kind import Kind, Operands, Weighted


@dataclass(frozen=True, slots=True)
class Conv(Weighted):
    """(x `N C *S`, weight `O C/groups *K`, bias `O` or None)."""

    channels_second = True

    stride: Ints
    padding: Pairs
    dilation: Ints
    groups: int = 1
    mode: PaddingMode = "zeros"

    @property
    def spatial_rank(self) -> int:
        """As many as it has strides."""
        return len(self.stride)

    @property
    def blocks(self) -> int:
        """Its groups."""
        return self.groups


@dataclass(frozen=True, slots=True)
class ConvPadding:
    """What padding the convs of a kind of model have a word for; any other takes an op of its own before the conv.

    modes: of which kind. uneven: whether it may differ at both ends of an axis.
    """

    modes: tuple[PaddingMode, ...] = get_args(PaddingMode)
    uneven: bool = True

    def lacks(self, op: Conv) -> str:
        """What such a conv cannot do of an op's padding, in words; empty where it can do all of it."""
        if any(n < 0 for pair in op.padding for n in pair):
            return "cannot crop"
        if any(map(any, op.padding)) and op.mode not in self.modes:
            return f"has no {op.mode} padding"
        uneven = any(low != high for low, high in op.padding)
        return "pads both ends of an axis alike" if uneven and not self.uneven else ""


ANY_PADDING = ConvPadding()
"""All of it, as passes have it."""


@dataclass(frozen=True, slots=True)
class ConvTranspose(Weighted):
    """(x `N C *S`, weight `C O/groups *K`, bias `O` or None): the transpose of a conv.

    padding: what is cut off the full output, (low, high) for each axis; output_padding: what is added at the high end.
    """

    output_axis, input_axis = 1, 0
    channels_second = True

    stride: Ints
    padding: Pairs
    output_padding: Ints
    dilation: Ints
    groups: int = 1

    @property
    def spatial_rank(self) -> int:
        """As many as it has strides."""
        return len(self.stride)

    @property
    def blocks(self) -> int:
        """Its groups."""
        return self.groups

    def channels_read(self, weight: Ints) -> int:
        """The channels of all groups stand along the first axis of the weight."""
        return weight[0]


@dataclass(frozen=True, slots=True)
class Linear(Weighted):
    """(x `… I`, weight `O I`, bias `O` or None), on the last axis."""


@dataclass(frozen=True, slots=True)
class BatchNorm(Kind):
    """(x `N C …`, weight or None, bias or None, mean, var), each `C`. In training mode it is not affine."""

    operands = Operands(("x",), ("weight", "bias", "mean", "var"))
    alike_everywhere = keeps_equals_equal = True

    eps: float = 1e-5
    training: bool = False


@dataclass(frozen=True, slots=True)
class AvgPool(Kind):
    """(x `N C *S`)."""

    alike_everywhere = keeps_channels = channels_second = keeps_equals_equal = True

    size: Ints
    stride: Ints
    padding: Pairs
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    @property
    def spatial_rank(self) -> int:
        """As many as it has strides."""
        return len(self.stride)


@dataclass(frozen=True, slots=True)
class MaxPool(Kind):
    """(x `N C *S`)."""

    channels_second = keeps_equals_equal = True

    size: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    ceil_mode: bool = False

    @property
    def spatial_rank(self) -> int:
        """As many as it has strides."""
        return len(self.stride)


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPool(Kind):
    """(x `N C *S`) -> `N C *size`."""

    affine = channels_second = keeps_equals_equal = True

    size: Ints

    @property
    def spatial_rank(self) -> int:
        """As many as it gives sizes."""
        return len(self.size)
