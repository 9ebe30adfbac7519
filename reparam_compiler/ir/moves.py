"""The kinds that only move elements. Pruning runs them as they are on the labels of channels."""

from dataclasses import dataclass

from reparam_compiler.core.kernel import Ints
from reparam_compiler.ir.kind import AlongAxis, Kind, Operands


@dataclass(frozen=True, slots=True)
class Identity(Kind):
    """(x): identity, dropout in evaluation, contiguous, clone …"""

    moves_data = alike_everywhere = keeps_channels = takes_no_time = in_place = True


@dataclass(frozen=True, slots=True)
class Concat(AlongAxis):
    """(values …)."""

    operands = Operands(("x",), more=True)
    merges = alike_everywhere = True


@dataclass(frozen=True, slots=True)
class Stack(Kind):
    """(values …): along a new axis."""

    operands = Operands(("x",), more=True)
    moves_data = affine = merges = alike_everywhere = True

    axis: int


@dataclass(frozen=True, slots=True)
class Flatten(Kind):
    """(x): axes `start` to `end` become one."""

    moves_data = affine = reshapes = takes_no_time = in_place = True

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reshape(Kind):
    """(x): to `shape`, in which one -1 stands for what is left and 0 for the size of the same axis of x."""

    operands = Operands(("x",), ("like",))
    moves_data = affine = reshapes = takes_no_time = in_place = states_sizes = True

    shape: Ints


@dataclass(frozen=True, slots=True)
class Permute(Kind):
    """(x): axis k of the result is axis `axes[k]` of x."""

    moves_data = affine = True

    axes: Ints


@dataclass(frozen=True, slots=True)
class Slice(AlongAxis):
    """(x): `x[start:stop:step]` along an axis; stop None reads to the end, and negative numbers count from there."""

    gives_piece = takes_no_time = True

    start: int
    stop: int | None
    step: int = 1


@dataclass(frozen=True, slots=True)
class Split(AlongAxis):
    """(x) -> a tuple of pieces of `sizes` along an axis, taken apart by `TupleGet`."""

    alike_everywhere = takes_no_time = True

    sizes: Ints


@dataclass(frozen=True, slots=True)
class TupleGet(Kind):
    """(tuple): its element `index`."""

    moves_data = affine = alike_everywhere = gives_piece = takes_no_time = True

    index: int


@dataclass(frozen=True, slots=True)
class Expand(Kind):
    """(x): repeated along axes of size 1, and along new ones at the front, to `shape`; -1 keeps a size."""

    operands = Operands(("x",), ("like",))
    moves_data = affine = states_sizes = runs_as_opaque = True

    shape: Ints


@dataclass(frozen=True, slots=True)
class ChannelShuffle(Kind):
    """(x `N C …`): channel i of group j of C / groups changes places with channel j of group i."""

    moves_data = affine = True

    groups: int


@dataclass(frozen=True, slots=True)
class Rearrange(Kind):
    """(values …): moves or repeats elements by a rule that stays the same when some channels leave: a flip of rows …

    by_number: axes whose positions the rule calls by their numbers, so that none may leave there.
    """

    operands = Operands(("x",), more=True)
    moves_data = runs_as_opaque = runs_whole = True

    by_number: Ints = ()


@dataclass(frozen=True, slots=True)
class Move(Kind):
    """(x): its elements in another place; `function` is a row of the vocabulary, which computes it (pixel shuffle …)."""

    moves_data = affine = runs_whole = True

    function: str
    arguments: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The function."""
        return self.function
