"""What abstract interpretation carries from the source of a region to its sink, in place of a tensor.

ConvKernel        the convolution operator from the source to here
Part              one that reads some channels of the source only
Stacked           several of them side by side along an axis of the value's own, until they are added up or taken apart
DataIndependent   a value that does not depend on the elements of the source, only on its sizes; known when it is run
Param             a constant of the model
"""

from dataclasses import dataclass

from reparam_compiler.core.channels import embedded
from reparam_compiler.core.kernel import ConvKernel, NotFusable
from reparam_compiler.ir.graph import Dim, Param


class NoRule(NotFusable):
    """No rule says which operator an affine op is here; probing may find out."""


@dataclass(frozen=True, slots=True)
class SourceLayout:
    """What an op reads: how many channels, over how many spatial axes.

    last: the channels stand on the last axis, and all others are positions that nothing mixes; rank is 0 then.
    axes: how many axes the value has, where that is known.
    sizes: of the spatial axes where every run has the same ones, else None.
    """

    channels: int
    rank: int
    last: bool = False
    axes: int | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def channel_axis(self) -> int | None:
        """Where the channels stand, counted from the front; None where that is not known."""
        if not self.last:
            return 1
        return None if self.axes is None else self.axes - 1


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A kernel that reads the channels from `start` on of a source of `channels`."""

    kernel: ConvKernel
    start: int
    channels: int

    @property
    def channels_read(self) -> range:
        """Which channels of the source it reads."""
        return range(self.start, self.start + self.kernel.channels[0])

    @property
    def whole(self) -> ConvKernel:
        """The same as an operator on all channels."""
        return embedded(self.kernel, self.start, self.channels)


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """Kernels side by side along a new axis.

    axes: the axes that may be the new one. Where there are several, each is 1 long, and they are the same.
    """

    kernels: tuple[ConvKernel, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataIndependent:
    """A value that depends on the sizes of the source alone. shape: None where it is not known."""

    shape: tuple[Dim, ...] | None = None


Value = ConvKernel | Part | Stacked | DataIndependent
AbstractValue = Value | tuple[Value, ...]
"""Of a node; a tuple for one that gives several values."""
Operand = AbstractValue | Param
