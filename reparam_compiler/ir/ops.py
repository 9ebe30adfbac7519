"""The closed set of op kinds. Each is a frozen value; what it reads stands in its node's `inputs`, in the order given here.

An op that is not in this set is `Opaque`: passes leave it alone, and the frontend that read it says how to run it.
Padding is `((low, high), …)` for each spatial axis. Axes are counted from the front and never negative.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from typing import Any, ClassVar, Literal

from reparam_compiler.core.kernel import Ints, PaddingMode, Pairs


class Facts(Flag):
    """What is known of an op that has no form of its own here; the frontend that read it says so.

    LINEAR           affine in all that it reads, taken together
    BILINEAR         affine in one of its values, where the others are constants
    VIEW             gives a part of its first value's storage, or may
    SAME             gives its first value itself
    RANDOM           gives another value each time
    SIZE_QUERY       gives sizes of what it reads, as numbers
    SIZES_ALONE      gives a value that depends on the sizes of what it reads, not on its elements
    SHAPED_AS_OTHER  gives its first value in the shape of its last one
    WIDTH_OF_INPUT   gives as many channels as it reads, whatever sizes it is told
    GIVES_FIRST      gives a tuple, of which only the first element is of interest
    FACTORY          makes a value of numbers alone
    CHECK            checks something and gives nothing
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


@dataclass(frozen=True, slots=True)
class Op:
    """What a node does to its inputs."""

    moves_data: ClassVar[bool] = False
    """True for ops that only move elements: they run as they are on labels (pruning)."""
    mask: ClassVar[int | None] = None
    """The input, absent in every model, that says with 0 and 1 which positions of an axis count: what an op that works across
    channels does after some have left, without their leaving (`prune_channels.masked`)."""

    @property
    def name(self) -> str:
        """The word that the printer and the reports use."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


@dataclass(frozen=True, slots=True)
class Input(Op):
    """A model input."""


@dataclass(frozen=True, slots=True)
class Conv(Op):
    """(x `N C *S`, weight `O C/groups *K`, bias `O` or None)."""

    stride: Ints
    padding: Pairs
    dilation: Ints
    groups: int = 1
    mode: PaddingMode = "zeros"


@dataclass(frozen=True, slots=True)
class ConvTranspose(Op):
    """(x `N C *S`, weight `C O/groups *K`, bias `O` or None): the transpose of a conv.

    padding: what is cut off the full output, (low, high) for each axis; output_padding: what is added at the high end.
    """

    stride: Ints
    padding: Pairs
    output_padding: Ints
    dilation: Ints
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """(x `… I`, weight `O I`, bias `O` or None), on the last axis."""


@dataclass(frozen=True, slots=True)
class BatchNorm(Op):
    """(x `N C …`, weight or None, bias or None, mean, var), each `C`. In training mode it is not affine."""

    eps: float = 1e-5
    training: bool = False


@dataclass(frozen=True, slots=True)
class Add(Op):
    """(values …) -> sum of coefficient * value, with broadcasting: every spelling of add, subtract, negate and sum."""

    coefficients: tuple[float, ...]

    @property
    def name(self) -> str:
        """`add`, or `sub` for a difference."""
        return "sub" if self.coefficients == (1.0, -1.0) else "add"


@dataclass(frozen=True, slots=True)
class Mul(Op):
    """(a, b), with broadcasting."""


@dataclass(frozen=True, slots=True)
class Div(Op):
    """(a, b), with broadcasting."""


@dataclass(frozen=True, slots=True)
class Identity(Op):
    """(x): identity, dropout in evaluation, contiguous, clone …"""

    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Elementwise(Op):
    """(x): a function of each element by itself; `function` is a row of the vocabulary, which computes it."""

    function: str
    arguments: tuple[float | None, ...] = ()

    @property
    def name(self) -> str:
        """The function."""
        return self.function


@dataclass(frozen=True, slots=True)
class Pad(Op):
    """(x): `padding` for every axis of x, batch and channels included; negative numbers crop."""

    padding: Pairs
    mode: PaddingMode = "zeros"
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class AvgPool(Op):
    """(x `N C *S`)."""

    size: Ints
    stride: Ints
    padding: Pairs
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None


@dataclass(frozen=True, slots=True)
class MaxPool(Op):
    """(x `N C *S`)."""

    size: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    ceil_mode: bool = False


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPool(Op):
    """(x `N C *S`) -> `N C *size`."""

    size: Ints


@dataclass(frozen=True, slots=True)
class Reduce(Op):
    """(x, counted or None): mean, sum, max, min or Euclidean norm over `axes`."""

    function: Literal["mean", "sum", "max", "min", "norm"]
    axes: Ints
    keepdim: bool
    mask: ClassVar[int | None] = 1

    @property
    def name(self) -> str:
        """The function."""
        return self.function


@dataclass(frozen=True, slots=True)
class Concat(Op):
    """(values …)."""

    axis: int
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Stack(Op):
    """(values …): along a new axis."""

    axis: int
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SliceUpdate(Op):
    """(x, value): x with `x[cuts] = value`, broadcast; either may be a parameter.

    cuts: (axis, start, stop) for each axis that is not written to from end to end. Negative numbers count from the end,
    stop None is the end.
    """

    cuts: tuple[tuple[int, int, int | None], ...]


@dataclass(frozen=True, slots=True)
class Flatten(Op):
    """(x): axes `start` to `end` become one."""

    start: int
    end: int
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Reshape(Op):
    """(x): to `shape`, in which one -1 stands for what is left and 0 for the size of the same axis of x."""

    shape: Ints
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Permute(Op):
    """(x): axis k of the result is axis `axes[k]` of x."""

    axes: Ints
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """(x): `x[start:stop:step]` along an axis; stop None reads to the end, and negative numbers count from there."""

    axis: int
    start: int
    stop: int | None
    step: int = 1
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Split(Op):
    """(x) -> a tuple of pieces of `sizes` along an axis, taken apart by `TupleGet`."""

    axis: int
    sizes: Ints
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class TupleGet(Op):
    """(tuple): its element `index`."""

    index: int
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Expand(Op):
    """(x): repeated along axes of size 1, and along new ones at the front, to `shape`; -1 keeps a size."""

    shape: Ints
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LayerNorm(Op):
    """(x, weight or None, bias or None, counted or None): (x - mean) / sqrt(var + eps) over the last axes.

    shape: the sizes of these, which the weights have too; -1 where the model does not state one.
    centred: False for a root mean square norm, which takes no mean off.
    """

    shape: Ints
    eps: float
    centred: bool = True
    mask: ClassVar[int | None] = 3


@dataclass(frozen=True, slots=True)
class GroupNorm(Op):
    """(x `N C *S`, weight or None, bias or None, counted or None): the same over each group of channels and all positions.

    groups: None for as many as there are channels (instance norm).
    """

    groups: int | None
    eps: float
    mask: ClassVar[int | None] = 3


@dataclass(frozen=True, slots=True)
class Einsum(Op):
    """(a, b, counted or None): the sum of products over the letters of `a` and `b` that `out` lacks; the mask goes with `a`.

    a, b, out: a letter for each axis (`bik`, `bkj`, `bij`: a product of matrices), as in `torch.einsum`.
    """

    a: str
    b: str
    out: str
    mask: ClassVar[int | None] = 2


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """(q `… L E`, k `… M E`, v `… M V`, bias or None, counted or None): softmax(scale q k^T + bias) v.

    scale: always a number, whatever the model derives it from. width: E.
    """

    scale: float
    width: int
    causal: bool = False
    mask: ClassVar[int | None] = 4


@dataclass(frozen=True, slots=True)
class Embedding(Op):
    """(indices, weight `V C`): rows of the weight."""


@dataclass(frozen=True, slots=True)
class ChannelShuffle(Op):
    """(x `N C …`): channel i of group j of C / groups changes places with channel j of group i."""

    groups: int
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Move(Op):
    """(x): its elements in another place; `function` is a row of the vocabulary, which computes it (pixel shuffle …)."""

    function: str
    arguments: tuple[int, ...] = ()
    moves_data: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The function."""
        return self.function


@dataclass(frozen=True, slots=True)
class PerChannel(Op):
    """(x `N C …`, parameters …), each `C` or a single number: a function of each element and the parameters of its channel.

    What it computes, and what the following three do, is told by the `Opaque` op that has this coupling model.
    """


@dataclass(frozen=True, slots=True)
class Glu(Op):
    """(x): the first half along `axis`, each element with its fellow of the second half (GLU)."""

    axis: int


@dataclass(frozen=True, slots=True)
class Slicewise(Op):
    """(values …): along `axes`, each slice of the result is made of the same slices of what is read, with broadcasting.

    A softmax over one axis does so along all others, a resize along batch and channels, a function of elements along all. The
    rank stays.
    """

    axes: Ints


@dataclass(frozen=True, slots=True)
class Rearrange(Op):
    """(values …): elements are moved or repeated by a rule that is the same after some have left: pixel shuffle, unbind …

    by_number: axes whose positions the rule calls by their numbers, so that none may leave there.
    """

    by_number: Ints = ()
    moves_data: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Opaque(Op):
    """Anything else. `run` maps torch tensors for the node's inputs to its value, or is None where it cannot be run alone.

    coupling: the coupling model: an op that gives the same for the sizes in the graph's types, perhaps not for others. It
    is what pruning sees, where every size but the batch's is known; a pass that must be right for all sizes leaves it alone.
    reads: how many inputs it has: the first ones of the node. Those that follow are numbers that the model computes.
    facts: what is known of it.
    arguments: the numbers and words of the call, by the names of the op's parameters, or by their positions where these have no
        names: what a registered rule needs beside the inputs.
    """

    target: str
    run: Callable[..., Any] | None = None
    coupling: Op | None = None
    reads: int = 0
    facts: Facts = Facts.NONE
    arguments: Mapping[str | int, object] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.target


def attributes(op: Op) -> dict[str, object]:
    """The attributes of an op that differ from their defaults, as the printer shows them."""
    shown: dict[str, object] = {}
    for attribute in fields(op):
        name, value = attribute.name, getattr(op, attribute.name)
        if name in _SILENT.get(type(op), ()) or value == attribute.default or value in _PLAIN.get(name, ()):
            continue
        shown[_SHORT.get(name, name)] = _compact(value)
    return shown


def _compact(value: object) -> object:
    """((1, 1), (1, 1)) and (1, 1) read 1; ((0, 0), (1, 1)) reads 0,1; ((0, 1), (0, 1)) reads 0:1."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        parts = [str(_compact(part)) for part in value]
        if isinstance(value[0], tuple):
            parts = [part.replace(",", ":") for part in parts]
        return parts[0] if len(set(parts)) == 1 else ",".join(parts)
    return value


_SHORT = {"padding": "pad"}
_PLAIN: dict[str, tuple[object, ...]] = {
    "stride": ((1,), (1, 1), (1, 1, 1), ()),
    "output_padding": ((0,), (0, 0), (0, 0, 0), ()),
    "dilation": ((1,), (1, 1), (1, 1, 1), ()),
    "padding": (((0, 0),), ((0, 0), (0, 0)), ((0, 0), (0, 0), (0, 0)), ()),
    "coefficients": ((1.0, -1.0), *((1.0,) * n for n in range(1, 33))),
}
_SILENT: dict[type[Op], tuple[str, ...]] = {
    Elementwise: ("function",),
    Reduce: ("function",),
    Move: ("function",),
    Opaque: ("target", "run", "coupling", "reads", "facts", "arguments"),
}
