"""What every kind of op declares about itself: the operands that it reads, by name, and traits that passes ask for.

A pass asks `op.moves_data` or `isinstance(op, Weighted)`; no pass lists kinds. So a new kind says once what it is, and whatever
must know each kind by itself (the interpreter) ends in `assert_never`, which mypy refuses until the new kind has its rule.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from reparam_compiler.core.kernel import Ints
from reparam_compiler.errors import InvalidGraphError

OperandName = Literal["x", "weight", "bias", "mean", "var", "mask", "a", "b", "q", "k", "v", "value", "indices", "like"]
"""What an operand may be called."""
Place = OperandName | int
"""One input of a node: by the name of the operand, or by its number where an op reads any number of values."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Operands:
    """What a kind of op reads, in the order of its node's inputs.

    required: the operands that every node has.
    optional: those that follow and may be absent: None, or left out at the end.
    more: any number of values without names may follow, as in a sum.

    Example: a conv is `Operands(("x", "weight"), ("bias",))`, a concat `Operands(("x",), more=True)`.
    """

    required: tuple[OperandName, ...] = ("x",)
    optional: tuple[OperandName, ...] = ()
    more: bool = False

    @property
    def names(self) -> tuple[OperandName, ...]:
        """All of them."""
        return (*self.required, *self.optional)

    def index(self, place: Place) -> int:
        """The number of the input; raises InvalidGraphError for a name that is not declared."""
        if isinstance(place, int):
            return place
        if place not in self.names:
            raise InvalidGraphError(f"no operand is called {place}; declared: {', '.join(self.names) or 'none'}")
        return self.names.index(place)

    def name(self, index: int) -> OperandName | None:
        """The name of an input; None for one that has none."""
        return self.names[index] if index < len(self.names) else None

    def filled(self, values: Sequence[Value | None]) -> tuple[Value | None, ...]:
        """The values of all operands, None for those that were left out at the end."""
        return (*values, *(None,) * (len(self.names) - len(values)))

    def fault(self, inputs: Sequence[object]) -> str:
        """What is wrong with these inputs; empty where nothing is."""
        if len(inputs) > len(self.names) and not self.more:
            return f"{len(inputs)} inputs, expected at most {len(self.names)} ({', '.join(self.names)})"
        present = self.filled(inputs)
        absent = next((name for name, value in zip(self.required, present, strict=False) if value is None), None)
        return f"no {absent}, which it cannot do without" if absent else ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a node does to its inputs: the base of all kinds. The closed set of them is `ops.Op`."""

    operands: ClassVar[Operands] = Operands()
    """What it reads."""
    moves_data: ClassVar[bool] = False
    """It only moves elements: it runs as it is on labels (pruning)."""
    runs_whole: ClassVar[bool] = False
    """It moves data along axes that it does not name: labels run through it at the full size of every axis."""
    alike_everywhere: ClassVar[bool] = False
    """It does the same at every position of every sample; along which axes it joins or splits, its rule checks."""
    arithmetic: ClassVar[bool] = False
    """It is a sum, product or quotient with broadcasting, so that a constant may widen its dtype or its rank."""
    merges: ClassVar[bool] = False
    """It adds, joins or stacks values that were computed apart."""
    keeps_channels: ClassVar[bool] = False
    """Its result has the channels of x, wherever they stand."""
    channels_second: ClassVar[bool] = False
    """It takes the second axis for the channels, and slides along those that follow."""
    reshapes: ClassVar[bool] = False
    """It may give other axes than it reads."""
    gives_piece: ClassVar[bool] = False
    """It takes a piece out of what it reads."""
    takes_no_time: ClassVar[bool] = False
    """It only gives another name to what it reads, or to a part of it."""
    in_place: ClassVar[bool] = False
    """Its result can take the memory of x."""
    keeps_equals_equal: ClassVar[bool] = False
    """Two equal channels of what it reads do what one of them does with twice the weight; so does all that moves data."""
    states_sizes: ClassVar[bool] = False
    """As a coupling model: it can be told sizes in numbers, whatever the model computed them from."""
    runs_as_opaque: ClassVar[bool] = False
    """As a coupling model: it says how channels go together; the opaque op itself is run, and is right at other widths too."""

    @property
    def name(self) -> str:
        """The word that the printer and the reports use."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def signature(self) -> Operands:
        """What this op reads: the operands of its kind, or of its coupling model."""
        return self.operands

    @property
    def has_mask(self) -> bool:
        """True where the op works across channels: a mask says with 0 and 1 which positions of an axis count.

        No model has one. It is how the masked reference of pruning lets channels leave a norm (`slice_channels.masked`).
        """
        return "mask" in self.operands.names

    @property
    def affine(self) -> bool:
        """It is affine in what it reads, taken together, and has no rule for all cases: a region with it may be probed."""
        return False

    @property
    def spatial_rank(self) -> int | None:
        """Over how many spatial axes it slides; None for an op that does not, or that runs on any number of them."""
        return None


@dataclass(frozen=True, slots=True)
class Weighted(Kind):
    """A kind whose weight mixes channels: conv, transposed conv, linear. A fused op can take its place."""

    operands: ClassVar[Operands] = Operands(("x", "weight"), ("bias",))
    output_axis: ClassVar[int] = 0
    """Which axis of the weight stands for the channels that it makes."""
    input_axis: ClassVar[int] = 1
    """Which one stands for those that it reads."""
    alike_everywhere = keeps_equals_equal = True

    @property
    def blocks(self) -> int:
        """In how many groups it mixes channels."""
        return 1

    def channels_read(self, weight: Ints) -> int:
        """How many channels it reads, with a weight of this shape."""
        return weight[1] * self.blocks

    def is_depthwise(self, weight: Ints) -> bool:
        """True where every group reads one channel: channels are passed on, not mixed."""
        return self.blocks > 1 and self.channels_read(weight) == self.blocks


@dataclass(frozen=True, slots=True)
class AlongAxis(Kind):
    """A kind that joins or cuts along an axis of what it reads: concat, slice, split."""

    axis: int
    moves_data = affine = True
