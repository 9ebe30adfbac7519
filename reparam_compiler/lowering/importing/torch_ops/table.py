"""What stands instead of TVM's converters: by the name of an aten overload, a function from a call to a Relax expression.

    @instead("amax.default", tvm="does not know it")
    def amax(call: Call) -> Any:
        return relax.op.max(call.tensor("input"), call["dim"] or None, call["keepdim"])

A file declares the converters of a family so; TVM's importer asks for them by name (`custom_convert_map`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.operator_schemas import normalize_function
from tvm import relax, te, tirx

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.importing.refusals import named


class Call:
    """A call of an aten overload in a decomposed program, at which TVM's importer stands.

    call[name]: an argument as it was given, or its default; "input" is what aten calls `self`.
    """

    def __init__(self, node: fx.Node, importer: Any) -> None:
        normal = normalize_function(node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True)  # type: ignore[arg-type]
        self.node, self._importer = node, importer
        self._arguments = {} if normal is None else normal.kwargs

    def __getitem__(self, name: str) -> Any:
        return self._arguments.get(name)

    @property
    def results(self) -> list[torch.Tensor]:
        """What the call gives, without values."""
        value = self.node.meta["val"]
        return list(value) if isinstance(value, list | tuple) else [value]

    @property
    def dtype(self) -> str:
        """Of the first result, as TVM names it."""
        return word(self.results[0].dtype)

    @property
    def shape(self) -> list[int]:
        """Of the first result. Raises LoweringError where a size is open."""
        return self._fixed(self.results[0].shape, "its result")

    def sizes(self, name: str) -> list[int]:
        """Of a tensor that is given. Raises LoweringError where a size is open."""
        return self.sizes_of(self[name])

    def sizes_of(self, given: fx.Node) -> list[int]:
        """Of a node. Raises LoweringError where a size is open."""
        return self._fixed(given.meta["val"].shape, given.name)

    def _fixed(self, sizes: Sequence[Any], what: str) -> list[int]:
        if not all(isinstance(size, int) for size in sizes):
            raise self.refusal(f"{what} of open sizes ({', '.join(map(str, sizes))})", "export the model with fixed sizes")
        return list(sizes)

    def given_dtype(self, name: str) -> str:
        """The dtype of a tensor that is given."""
        return word(self[name].meta["val"].dtype)

    def tensor(self, name: str, dtype: str | None = None) -> Any:
        """The value of an argument, a tensor or a number, in a dtype; of its own where none is named."""
        return self.value(self[name], dtype)

    def value(self, given: Any, dtype: str | None = None) -> Any:
        """The value of a node or a number, in a dtype."""
        if not isinstance(given, fx.Node):
            return relax.const(given, dtype or self.dtype)
        found = self._importer.env[given]
        return found if dtype is None or str(found.ty.dtype) == dtype else self.emit(relax.op.astype(found, dtype))

    def emit(self, expression: Any) -> Any:
        """A name for the value of an expression."""
        return self._importer.block_builder.emit(expression)

    def loops(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """The value of a function from TE tensors to one or several, as a kernel of its own."""
        hint = str(self.node.target.__name__).partition(".")[0].strip("_")  # type: ignore[union-attr]
        return self._importer.block_builder.emit_te(function, *tensors, primfunc_name_hint=hint)

    def elements(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """A function of numbers, for each element of tensors that are broadcast, as a kernel of its own."""

        def compute(*data: Any) -> Any:
            rank = max(len(each.shape) for each in data)
            padded = [[1] * (rank - len(each.shape)) + [int(size) for size in each.shape] for each in data]
            return te.compute(
                [max(sizes) for sizes in zip(*padded, strict=True)],
                lambda *at: function(*(each(*own(each, at)) for each in data)),
            )

        return self.loops(compute, *tensors)

    def refusal(self, found: str, cure: str) -> LoweringError:
        """The error that names this node."""
        return LoweringError(f"{named(self.node)}: found {found}; {cure}")


def own(tensor: Any, at: Sequence[Any]) -> tuple[Any, ...]:
    """Where a tensor that is broadcast is read for an element of the result."""
    behind = at[len(at) - len(tensor.shape) :]
    return tuple(0 if int(size) == 1 else index for size, index in zip(tensor.shape, behind, strict=True))


def word(dtype: torch.dtype) -> str:
    """TVM's name of a dtype of torch."""
    return str(dtype).removeprefix("torch.")


def number(value: float, like: Any) -> Any:
    """A number in the dtype of a TIR expression."""
    return tirx.const(value, str(like.ty))


@dataclass(frozen=True, slots=True)
class Converter:
    """What stands instead of TVM's converter. tvm: what TVM makes of the op."""

    convert: Callable[[Call], Any]
    tvm: str


INSTEAD: dict[str, Converter] = {}
"""By the name of an aten overload: `amax.default`."""
Convert = Callable[[Call], Any]


def instead(*names: str, tvm: str) -> Callable[[Convert], Convert]:
    """Declares a function as the converter of these overloads."""

    def declare(convert: Convert) -> Convert:
        INSTEAD.update(dict.fromkeys(names, Converter(convert, tvm)))
        return convert

    return declare


def converters() -> dict[str, Callable[[fx.Node, Any], Any]]:
    """All of them, as TVM's importer takes them."""

    def of(converter: Converter) -> Callable[[fx.Node, Any], Any]:
        def convert(node: fx.Node, importer: Any) -> Any:
            call = Call(node, importer)
            found = converter.convert(call)
            return found if isinstance(found, relax.Var) else call.emit(found)

        return convert

    return {name: of(converter) for name, converter in INSTEAD.items()}
