"""The closed set of op kinds, `Op`. Each is a frozen value that declares its operands and its traits (`ir/kind.py`).

An op that is not in this set is `Opaque`: passes leave it alone, and the frontend that read it says how to run it.
Padding is `((low, high), …)` for each spatial axis. Axes are counted from the front and never negative.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any, ClassVar, Literal, get_args

from reparam_compiler.core.kernel import Ints, PaddingMode, Pairs
from reparam_compiler.ir.kind import AlongAxis, Kind, Operands, Weighted
from reparam_compiler.ir.moves import (
    ChannelShuffle,
    Concat,
    Expand,
    Flatten,
    Identity,
    Move,
    Permute,
    Rearrange,
    Reshape,
    Slice,
    Split,
    Stack,
    TupleGet,
)
from reparam_compiler.ir.windows import AdaptiveAvgPool, AvgPool, BatchNorm, Conv, ConvTranspose, Linear, MaxPool

__all__ = [
    "IN_PLACE",
    "KINDS",
    "ON_QUANTIZED",
    "QUANTIZED",
    "AdaptiveAvgPool",
    "Add",
    "AlongAxis",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "ChannelShuffle",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Div",
    "Einsum",
    "Elementwise",
    "Embedding",
    "Expand",
    "Facts",
    "Flatten",
    "Glu",
    "GroupNorm",
    "Identity",
    "Input",
    "Kind",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "Move",
    "Mul",
    "Op",
    "Opaque",
    "Pad",
    "PerChannel",
    "Permute",
    "Rearrange",
    "Reduce",
    "Reduction",
    "Reshape",
    "Slice",
    "SliceUpdate",
    "Slicewise",
    "Split",
    "Stack",
    "TupleGet",
    "Weighted",
    "understood",
    "why_opaque",
]


Reduction = Literal["mean", "sum", "max", "min", "norm"]
"""What a reduction makes of the elements along its axes."""


class Facts(Flag):
    """What is known of an op that has no form of its own here; the frontend that read it says so.

    LINEAR           affine in all that it reads, taken together
    BILINEAR         affine in one of its values, where the others are constants
    VIEW             gives a part of its first value's storage, or may
    SAME             gives its first value itself
    RANDOM           gives another value each time
    SIZE_QUERY       gives sizes of what it reads, as numbers
    ARGUMENT         is an argument of the model that is no tensor: None, a flag, a number, as given or by default
    SIZES_ALONE      gives a value that depends on the sizes of what it reads, not on its elements
    SHAPED_AS_OTHER  gives its first value in the shape of its last one
    WIDTH_OF_INPUT   gives as many channels as it reads, whatever sizes it is told
    GIVES_FIRST      gives a tuple, of which only the first element is of interest
    FACTORY          makes a value of numbers alone
    CHECK            checks something and gives nothing
    QUANTIZED        goes between numbers and whole ones that stand for them, which a model keeps
    LIKE_INPUT       gives a value of the shape and the dtype of its first one
    PIECEWISE        follows another formula where its values are small or large
    DISCONTINUOUS    gives another value where what it reads differs in its last digit
    SIZED_BY_VALUE   gives as many elements as a value that it reads says
    WRITTEN          is, or reads, a value whose memory is written to in place, in a way that no value of the graph shows
    """

    NONE = 0
    LINEAR = auto()
    BILINEAR = auto()
    VIEW = auto()
    SAME = auto()
    RANDOM = auto()
    SIZE_QUERY = auto()
    SIZES_ALONE = auto()
    SHAPED_AS_OTHER = auto()
    WIDTH_OF_INPUT = auto()
    GIVES_FIRST = auto()
    FACTORY = auto()
    CHECK = auto()
    QUANTIZED = auto()
    LIKE_INPUT = auto()
    PIECEWISE = auto()
    DISCONTINUOUS = auto()
    SIZED_BY_VALUE = auto()
    ARGUMENT = auto()
    WRITTEN = auto()


@dataclass(frozen=True, slots=True)
class Input(Kind):
    """A model input."""

    operands = Operands(())
    takes_no_time = True


@dataclass(frozen=True, slots=True)
class Add(Kind):
    """(values …) -> sum of coefficient * value, with broadcasting: every spelling of add, subtract, negate and sum."""

    operands = Operands(("x",), more=True)
    arithmetic = merges = alike_everywhere = keeps_equals_equal = True

    coefficients: tuple[float, ...]

    @property
    def name(self) -> str:
        """`add`, or `sub` for a difference."""
        return "sub" if self.coefficients == (1.0, -1.0) else "add"


@dataclass(frozen=True, slots=True)
class Mul(Kind):
    """(a, b), with broadcasting."""

    operands = Operands(("a", "b"))
    arithmetic = alike_everywhere = keeps_equals_equal = True


@dataclass(frozen=True, slots=True)
class Div(Kind):
    """(a, b), with broadcasting."""

    operands = Operands(("a", "b"))
    arithmetic = alike_everywhere = keeps_equals_equal = True


@dataclass(frozen=True, slots=True)
class Elementwise(Kind):
    """(x): a function of each element by itself; `function` is a row of the vocabulary, which computes it."""

    in_place = keeps_equals_equal = True

    function: str
    arguments: tuple[float | None, ...] = ()

    @property
    def name(self) -> str:
        """The function."""
        return self.function


@dataclass(frozen=True, slots=True)
class Pad(Kind):
    """(x): `padding` for every axis of x, batch and channels included; negative numbers crop."""

    alike_everywhere = keeps_channels = keeps_equals_equal = True

    padding: Pairs
    mode: PaddingMode = "zeros"
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Reduce(Kind):
    """(x, mask or None): mean, sum, max, min or Euclidean norm over `axes`."""

    operands = Operands(("x",), ("mask",))
    keeps_equals_equal = True

    function: Reduction
    axes: Ints
    keepdim: bool

    @property
    def name(self) -> str:
        """The function."""
        return self.function

    @property
    def affine(self) -> bool:
        """True for a sum and a mean."""
        return self.function in ("sum", "mean")


@dataclass(frozen=True, slots=True)
class SliceUpdate(Kind):
    """(x, value): x with `x[cuts] = value`, broadcast; either may be a parameter.

    cuts: (axis, start, stop) for each axis that is not written to from end to end. Negative numbers count from the end,
    stop None is the end.
    """

    operands = Operands(("x", "value"))

    cuts: tuple[tuple[int, int, int | None], ...]


@dataclass(frozen=True, slots=True)
class LayerNorm(Kind):
    """(x, weight or None, bias or None, mask or None): (x - mean) / sqrt(var + eps) over the last axes.

    shape: the sizes of these, which the weights have too; -1 where the model does not state one.
    centred: False for a root mean square norm, which takes no mean off.
    """

    operands = Operands(("x",), ("weight", "bias", "mask"))
    states_sizes = True

    shape: Ints
    eps: float
    centred: bool = True


@dataclass(frozen=True, slots=True)
class GroupNorm(Kind):
    """(x `N C *S`, weight or None, bias or None, mask or None): the same over each group of channels and all positions.

    groups: None for as many as there are channels (instance norm).
    """

    operands = Operands(("x",), ("weight", "bias", "mask"))

    groups: int | None
    eps: float


@dataclass(frozen=True, slots=True)
class Einsum(Kind):
    """(a, b, mask or None): the sum of products over the letters of `a` and `b` that `out` lacks; the mask goes with `a`.

    a, b, out: a letter for each axis (`bik`, `bkj`, `bij`: a product of matrices), as in `torch.einsum`.
    """

    operands = Operands(("a", "b"), ("mask",))

    a: str
    b: str
    out: str


@dataclass(frozen=True, slots=True)
class Attention(Kind):
    """(q `… L E`, k `… M E`, v `… M V`, bias or None, mask or None): softmax(scale q k^T + bias) v.

    scale: always a number, whatever the model derives it from. width: E.
    """

    operands = Operands(("q", "k", "v"), ("bias", "mask"))

    scale: float
    width: int
    causal: bool = False


@dataclass(frozen=True, slots=True)
class Embedding(Kind):
    """(indices, weight `V C`): rows of the weight."""

    operands = Operands(("indices", "weight"))
    output_axis: ClassVar[int] = 1
    """Which axis of the weight stands for the channels that it makes."""


@dataclass(frozen=True, slots=True)
class PerChannel(Kind):
    """(x `N C …`, parameters …), each `C` or a single number: a function of each element and the parameters of its channel.

    Like the following two it is a coupling model only: the `Opaque` op that has it says what is computed.
    """

    operands = Operands(("x",), more=True)
    runs_as_opaque = True


@dataclass(frozen=True, slots=True)
class Glu(Kind):
    """(x): the first half along `axis`, each element with its fellow of the second half (GLU)."""

    runs_as_opaque = True

    axis: int


@dataclass(frozen=True, slots=True)
class Slicewise(Kind):
    """(values …): each slice of the result along `axes` depends on the same slices of the operands alone, with broadcasting.

    A softmax over one axis does so along all others, a resize along batch and channels, a function of elements along all. The
    rank stays.
    """

    operands = Operands(("x",), more=True)
    runs_as_opaque = True

    axes: Ints


@dataclass(frozen=True, slots=True)
class Opaque(Kind):
    """Anything else. `run` maps torch tensors for the node's inputs to its value, or is None where it cannot be run alone.

    coupling: the coupling model: an op that gives the same for the sizes in the graph's types, perhaps not for others. It
    is what pruning sees, where every size but the batch's is known; a pass that must be right for all sizes leaves it alone.
    reads: how many inputs it has: the first ones of the node. Those that follow are numbers that the model computes.
    facts: what is known of it.
    arguments: the numbers and words of the call, by the names of the op's parameters, or by their positions where these have no
        names, and those that a leaf module holds: what a registered rule needs beside the inputs.
    why: of a conv, linear or norm that has no kind of its own because of how this model has it: "has a forward hook (f)".
    """

    operands = Operands((), more=True)
    reshapes = True

    target: str
    run: Callable[..., Any] | None = None
    coupling: "Op | None" = None
    reads: int = 0
    facts: Facts = Facts.NONE
    arguments: Mapping[str | int, object] = field(default_factory=dict, compare=False)
    why: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.target

    @property
    def slices(self) -> tuple[Any, ...]:
        """What a linear op takes along each axis, where it is told that as an index is; empty for any other."""
        told = [value for value in self.arguments.values() if isinstance(value, tuple)]
        is_index = len(told) == 1 and Facts.LINEAR in self.facts and any(isinstance(part, slice) for part in told[0])
        return told[0] if is_index else ()

    @property
    def signature(self) -> Operands:
        """That of its coupling model, which names the first `reads` inputs."""
        return self.operands if self.coupling is None else self.coupling.signature


Op = (
    Input
    | Conv | ConvTranspose | Linear | BatchNorm
    | Add | Mul | Div | Identity | Elementwise | Pad
    | AvgPool | MaxPool | AdaptiveAvgPool
    | Reduce | LayerNorm | GroupNorm | Einsum | Attention | Embedding
    | Concat | Stack | SliceUpdate | Flatten | Reshape | Permute | Slice | Split | TupleGet | Expand | ChannelShuffle | Move
    | PerChannel | Glu | Slicewise | Rearrange
    | Opaque
)  # fmt: skip
"""All kinds. A `match` that has a case for each ends in `assert_never`, so that mypy names what a new kind still lacks."""
KINDS: tuple[type[Op], ...] = get_args(Op)
"""The same as classes."""


def understood(op: Op) -> Op:
    """What an op is to pruning: itself, or the coupling model of an opaque one."""
    return op.coupling if isinstance(op, Opaque) and op.coupling is not None else op


QUANTIZED = "has a quantized weight"
"""Why a layer of whole numbers, or of a weight that is rounded to steps on its way, is opaque."""
IN_PLACE = "touches memory that is written to in place"
"""Why an op that is known is opaque where `Facts.WRITTEN` holds."""
ON_QUANTIZED = "works on quantized numbers"
"""Why what has no weight, and makes such numbers, takes or gives them, is opaque."""


def why_opaque(op: Op) -> str:
    """Why a layer has no kind of its own; empty for every other op."""
    return op.why if isinstance(op, Opaque) else ""
