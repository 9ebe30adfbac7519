"""What a row of the vocabulary is: one op, all that identifies it in torch and in ONNX, and the facts of it.

    Row("silu", modules=(nn.SiLU,), onnx=(OnnxType("Swish"),), form="pointwise", math=F.silu)

stands for `F.silu`, `torch.ops.aten.silu`, `nn.SiLU` and ONNX's `Swish`. `words` are looked up where torch keeps its own
functions, and what is found there is compared by identity: a user's function of the same name is another op.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reparam_compiler.ir.ops import Facts

Form = Literal["pointwise", "elementwise", "move", "rearranged", "resampled", "recast"]
"""How an op without a reader of its own is understood.

    pointwise     a function of each element by itself, which is read as `ops.Elementwise` and evaluated by `math`
    elementwise   a function of the elements at the same place, of which only pruning knows something
    move          moves elements, is read as `ops.Move` and evaluated by `math`
    rearranged    moves or repeats elements, of which only pruning knows something; a frontend may have a reader for it
    resampled     slides a window, or resizes, along the axes behind batch and channels, likewise
    recast        gives a value of the shape of its first argument, of another dtype or of other elements, likewise
"""


@dataclass(frozen=True, slots=True)
class OnnxType:
    """A type of ONNX's own domain.

    name: the type. arguments: for each parameter of the row the attribute that holds it and its default in ONNX.
    requires: attributes that must have a value for the type to be this row's op: (attribute, its default, the value).
    """

    name: str
    arguments: tuple[tuple[str, float | None], ...] = ()
    requires: tuple[tuple[str, object, object], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One op.

    name: what reports and goldens call it, and the key of readers and coupling models.
    words: what torch calls it, among its functions, tensor methods and aten ops; a word with a `_` behind it is the same op
        in place. The name alone where it is None.
    functions, in_place: further callables, which give a new value or write into their first argument.
    excluded: functions of these words that are another op.
    attributes: attributes of a tensor that are this op (`x.T`).
    modules: the exact classes. module_arguments: their attributes that follow the first argument of the function.
    onnx: the types of ONNX's own domain.
    facts: what passes need to know of it.
    parameters: what follows its first argument, in order, with defaults, for an op with a form.
    axes: of a resampled one, how many there are behind batch and channels; None for any number.
    form, math: how it is understood without a reader, and the torch function that computes it in float64.
    """

    name: str
    words: tuple[str, ...] | None = None
    functions: Sequence[Any] = ()
    in_place: Sequence[Any] = ()
    excluded: Sequence[Any] = ()
    attributes: tuple[str, ...] = ()
    modules: tuple[type, ...] = ()
    module_arguments: tuple[str, ...] | None = None
    onnx: tuple[OnnxType, ...] = ()
    facts: Facts = Facts.NONE
    parameters: tuple[tuple[str, float | None], ...] = ()
    axes: int | None = None
    form: Form | None = None
    math: Callable[..., Any] | None = None

    @property
    def spelled(self) -> tuple[str, ...]:
        """What torch calls it."""
        return (self.name,) if self.words is None else self.words

    @property
    def of_module(self) -> tuple[str, ...]:
        """The attributes of its modules that are arguments: those that are called as its parameters are, if none are stated."""
        return tuple(name for name, _ in self.parameters) if self.module_arguments is None else self.module_arguments


def onnx(*names: str) -> tuple[OnnxType, ...]:
    """Types without arguments."""
    return tuple(OnnxType(name) for name in names)


def moves(
    name: str, math: Callable[..., Any], *modules: type, onnx: tuple[OnnxType, ...] = (), parameters: tuple[str, ...] = ()
) -> Row:
    """The row of an op that only moves elements, told by numbers that every call gives."""
    numbers = tuple((parameter, None) for parameter in parameters)
    return Row(name, modules=modules, onnx=onnx, facts=Facts.LINEAR, parameters=numbers, form="move", math=math)


def rows(words: str, *, facts: Facts = Facts.NONE, form: Form | None = None, axes: int | None = None) -> tuple[Row, ...]:
    """A row for each of these words, of which nothing else is to be said."""
    return tuple(Row(word, facts=facts, form=form, axes=axes) for word in words.split())
