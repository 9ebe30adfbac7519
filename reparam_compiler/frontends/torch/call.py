"""A call as a tracer wrote it, and what its reader gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reparam_compiler.core.kernel import Pairs
from reparam_compiler.frontends.base import Unsupported
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Operand, Param, TensorType

__all__ = ["Call", "Read", "Reader", "Unsupported", "both", "spread"]

Read = tuple[ops.Op, tuple[Operand, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call as a tracer wrote it.

    kwargs: the arguments by keyword, under torch's own names of the parameters (`arguments.by_own_words`).
    operand_of: the graph's operand for an argument (a traced value, a parameter, a number), given its role.
    type_of: the type of a traced argument, where it is known.
    size_of: for an argument that is the size of a traced value, that value and the axis.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operand_of: Callable[[Any, str], Operand]
    type_of: Callable[[Any], TensorType | None]
    size_of: Callable[[Any], tuple[Any, int] | None]

    def raw(self, index: int, key: str, default: Any = ...) -> Any:
        """The argument, as it stands."""
        value = self.args[index] if index < len(self.args) else self.kwargs.get(key, default)
        if value is ...:
            raise Unsupported(f"{self.name} without {key}")
        return value

    def constant(self, index: int, key: str, default: Any = ...) -> Any:
        """The argument, which must be plain numbers or words."""
        value = self.raw(index, key, default)
        parts = value if isinstance(value, list | tuple) else (value,)
        if any(not isinstance(part, int | float | str | bool | type(None)) for part in parts):
            raise Unsupported(f"{self.name}: {key} is computed")
        return value

    def sizes(self, index: int, key: str) -> tuple[Any, ...]:
        """Sizes or axes that stand in a list or one after the other: `x.view(2, 3)`, `x.view((2, 3))`."""
        value = self.raw(index, key)
        return tuple(value) if isinstance(value, list | tuple) else tuple(self.args[index:])

    def operand(self, index: int, key: str, default: Any = ...) -> Operand:
        """The argument as an operand."""
        return self.operand_of(self.raw(index, key, default), "const")

    def param(self, index: int, key: str, role: str, default: Any = ...) -> Param | None:
        """The argument, which must be a parameter or absent."""
        found = self.operand_of(self.raw(index, key, default), role)
        if isinstance(found, str):
            raise Unsupported(f"{self.name}: {key} is computed")
        return found

    @property
    def x(self) -> str:
        """The first argument, which must be computed in the graph."""
        found = self.operand_of(self.first, "const")
        if not isinstance(found, str):
            raise Unsupported(f"{self.name} of a constant")
        return found

    @property
    def first(self) -> Any:
        """The first argument, as it stands."""
        return self.args[0] if self.args else self.kwargs.get("input")

    @property
    def rank(self) -> int:
        """The number of axes of the first argument."""
        return len(self.shape)

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape of the first argument."""
        known = self.type_of(self.first)
        if known is None:
            raise Unsupported(f"{self.name}: the shape is not known")
        return known.shape

    def axis(self, value: int) -> int:
        """An axis, counted from the front."""
        return value if value >= 0 else value + self.rank


def spread(value: Any, rank: int) -> tuple[int, ...]:
    """A number, or one for each axis, as a tuple."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * rank if len(values) == 1 else values


def both(padding: Sequence[int]) -> Pairs:
    """Symmetric padding as pairs."""
    return tuple((amount, amount) for amount in padding)


Reader = Callable[[Call], Read]
"""Gives the op and its operands, or raises Unsupported."""
