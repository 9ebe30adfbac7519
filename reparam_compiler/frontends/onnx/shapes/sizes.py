"""Values that are made of sizes: what exporters compute a shape from, by a rule a type.

Shape(x)                          ((x, 0), (x, 1), (x, 2), (x, 3))
Gather(that, 1)                   ((x, 1),)
Concat([2], that)                 (2, (x, 1))
"""

from collections.abc import Callable, Mapping, Sequence

from onnx import NodeProto

from reparam_compiler.frontends.onnx.tensors import Constant
from reparam_compiler.ir.graph import TensorType

Size = int | tuple[str, int]
"""A number, or the size of an axis of a value."""
Elements = tuple[Size, ...]
SMALL = 256
"""Elements of a tensor that may stand for a shape."""


class Sizes:
    """What is known so far, by the names of values.

    constant_of: the constant of a name, or None. types: what is known of values.
    """

    def __init__(self, constant_of: Callable[[str], Constant | None], types: Mapping[str, TensorType]) -> None:
        self._constant_of = constant_of
        self._types = types
        self._known: dict[str, Elements] = {}

    def of(self, name: str) -> Elements | None:
        """The elements of a value, or None for one that is not made of sizes."""
        if name in self._known:
            return self._known[name]
        constant = self._constant_of(name)
        if constant is None:
            return None
        if constant.dtype not in ("i64", "i32") or len(constant.shape) > 1 or max(constant.shape, default=1) > SMALL:
            return None
        return tuple(int(n) for n in constant.load().reshape(-1))

    def follow(self, node: NodeProto) -> None:
        """Notes what the node gives, if that is made of sizes."""
        elements = self._asked(node) if node.op_type == "Shape" else self._computed(node)
        if elements is not None:
            self._known[node.output[0]] = elements

    def _asked(self, node: NodeProto) -> Elements | None:
        known = self._types.get(node.input[0])
        if known is None:
            return None
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        axes = range(len(known.shape))[bounds.get("start", 0) : bounds.get("end")]
        return tuple((node.input[0], axis) for axis in axes)

    def _computed(self, node: NodeProto) -> Elements | None:
        """By the rule of the type; of a join any part may be made of sizes, of all others the first input."""
        rule = _RULES.get(node.op_type)
        if rule is None or (node.input[0] not in self._known and node.op_type != "Concat"):
            return None
        parts = [self.of(name) for name in node.input if name]
        return rule([part for part in parts if part is not None]) if parts and None not in parts[: _READ.get(rule)] else None


def _same(parts: Sequence[Elements]) -> Elements | None:
    return parts[0]


def _joined(parts: Sequence[Elements]) -> Elements | None:
    return tuple(size for part in parts for size in part)


def _taken(parts: Sequence[Elements]) -> Elements | None:
    first = parts[0]
    return tuple(first[place] for place in _numbers(parts[1]) if -len(first) <= place < len(first)) or None


def _cut(parts: Sequence[Elements]) -> Elements | None:
    bounds = [_numbers(part) for part in parts[1:]]
    if len(bounds) < 2 or any(len(part) != 1 for part in bounds):
        return None
    return parts[0][slice(bounds[0][0], bounds[1][0], bounds[3][0] if len(bounds) > 3 else 1)]


def _numbers(part: Elements) -> list[int]:
    return [n for n in part if isinstance(n, int)]


Rule = Callable[[Sequence[Elements]], Elements | None]
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"), _same),
    "Concat": _joined,
    "Gather": _taken,
    "Slice": _cut,
}
"""For each type what it gives, from the elements of its inputs."""
_READ: Mapping[Rule, int] = {_same: 1}
"""How many inputs a rule reads, where it is not all of them."""
