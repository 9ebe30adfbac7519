"""An ONNX node as the readers of `ops` see it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from reparam_compiler.frontends.base import Unsupported
from reparam_compiler.frontends.onnx.shapes.evaluator import Shapes
from reparam_compiler.frontends.onnx.shapes.sizes import Size
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Operand, Param, TensorType
from reparam_compiler.vocabulary.dtypes import FLOATING

__all__ = ["Call", "Read", "Unsupported", "attributes_of"]

Read = tuple[ops.Op, tuple[Operand, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """A node, and what is known of its inputs.

    shapes: what is known of the model's values.
    param_of: a constant as an operand in a role; transposed where the flag is set.
    """

    node: NodeProto
    shapes: Shapes
    param_of: Callable[[str, str, bool], Param]

    @property
    def opset(self) -> int:
        """The version of ONNX's own domain."""
        return self.shapes.opset

    def has(self, index: int) -> bool:
        """True where the optional input is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def attribute(self, key: str, default: Any) -> Any:
        """An attribute in Python's terms; words as str."""
        return next((_python(attribute) for attribute in self.node.attribute if attribute.name == key), default)

    def constant(self, index: int) -> np.ndarray:
        """The elements of an input, which must be constant."""
        found = self.shapes.constant(self.node.input[index]) if self.has(index) else None
        if found is None:
            raise Unsupported(f"{self.node.op_type}: input {index} is computed")
        return found.load()

    def values(self, index: int, key: str) -> tuple[int, ...] | None:
        """Integers that are an attribute in old opsets and an input in new ones; None where they are neither."""
        found = self.attribute(key, None)
        if found is None and self.has(index):
            found = np.asarray(self.constant(index)).reshape(-1)
        return None if found is None else tuple(int(n) for n in found)

    def sizes(self, index: int) -> tuple[Size, ...]:
        """Sizes that are constant, or are taken from the shapes of values."""
        found = self.shapes.sizes(self.node.input[index])
        return tuple(int(n) for n in self.constant(index).reshape(-1)) if found is None else found

    def samples(self, index: int) -> list[np.ndarray]:
        """The elements of an input that depends on sizes at most, for each try of those that are open."""
        found = self.shapes.samples(self.node.input[index])
        if found is None:
            raise Unsupported(f"{self.node.op_type}: input {index} is computed")
        return found

    def tried_shapes(self, index: int) -> list[tuple[int, ...]]:
        """The shape of an input for each try of open sizes."""
        found = self.shapes.shapes(self.node.input[index])
        if found is None:
            raise Unsupported(f"{self.node.op_type}: the shape is not known")
        return found

    def kept_size(self, size: tuple[str, int], place: int) -> int:
        """The size of an axis of a value: 0 where it is that of axis `place` of the first input, else its number."""
        name, axis = size
        known, own = self.shapes.type(name), self.type(0)
        dim = known.shape[axis] if known else None
        same_name = isinstance(dim, str) and own is not None and own.shape[place : place + 1] == (dim,)
        if size == (self.node.input[0], place) or same_name:
            return 0
        if not isinstance(dim, int):
            raise Unsupported(f"{self.node.op_type}: a size that is not known")
        return dim

    def operand(self, index: int, role: str = "const") -> Operand:
        """An input as an operand."""
        if not self.has(index):
            return None
        name = self.node.input[index]
        return name if self.shapes.constant(name) is None else self.param_of(name, role, False)

    def param(self, index: int, role: str) -> Param:
        """An input that must be a constant."""
        return self._param(index, role, False)

    def transposed(self, index: int, role: str) -> Param:
        """A constant matrix, the other way round."""
        return self._param(index, role, True)

    def _param(self, index: int, role: str, transposed: bool) -> Param:
        name = self.node.input[index] if self.has(index) else ""
        found = self.shapes.constant(name)
        if found is None or (transposed and len(found.shape) != 2):
            raise Unsupported(f"{self.node.op_type}: input {index} is computed, or is no matrix")
        return self.param_of(name, role, transposed)

    @property
    def x(self) -> Operand:
        """The first input, which must be computed in the graph."""
        found = self.operand(0)
        if not isinstance(found, str):
            raise Unsupported(f"{self.node.op_type} of a constant")
        return found

    def type(self, index: int) -> TensorType | None:
        """The type of an input."""
        return self.shapes.type(self.node.input[index])

    def dtype(self, index: int) -> str | None:
        """The dtype of an input."""
        return self.shapes.dtype(self.node.input[index])

    def floating(self) -> None:
        """Raises Unsupported for integers: they divide, and wrap, in other ways."""
        found = [self.shapes.dtype(name) for name in self.node.input if name]
        if not any(dtype in FLOATING for dtype in found):
            raise Unsupported(f"{self.node.op_type} of {found[0] if found else 'nothing'}")

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the first input, whose rank must be known."""
        known = self.type(0)
        if known is None:
            raise Unsupported(f"{self.node.op_type}: the shape is not known")
        return known.shape

    @property
    def rank(self) -> int:
        """The number of axes of the first input."""
        return len(self.shape)

    def axis(self, value: int) -> int:
        """An axis, counted from the front."""
        return value if value >= 0 else value + self.rank


def _python(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def attributes_of(node: NodeProto) -> dict[str | int, object]:
    """The numbers and words among a node's attributes, as Python has them; lists become tuples."""
    values = ((attribute.name, _python(attribute)) for attribute in node.attribute)
    flat = ((name, tuple(value) if isinstance(value, list) else value) for name, value in values)
    return {name: value for name, value in flat if isinstance(value, int | float | str) or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(n, int | float) for n in value)
