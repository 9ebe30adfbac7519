"""A graph under construction: each value's type and, where it is known, its content; each op by its rule.

graph.add(Node("ReduceLogSumExp", ["x", axes], {"keepdims": 0}))      -> the names of what the rule puts in its place
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from reparam_compiler.errors import LoweringError
from reparam_compiler.vocabulary.misread import is_misread

OPSET = 21
"""Of the models that TVM sees, at least; all rules are written in it."""
READ_AS_DATA, FOLDED = 4096, 1 << 20
"""Elements: of a constant that type inference may read, and at most of a value that is computed here."""
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
OWN = ("", "ai.onnx")
"""What ONNX's own package is called."""
Ints = tuple[int, ...]


@dataclass(slots=True)
class Node:
    """One call of an op. inputs: names of values, "" for one left out. name: what messages call it."""

    op: str
    inputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    name: str = ""
    domain: str = ""

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def refusal(self, found: str, advice: str = "rewrite that op in the model, or cut the model before it") -> LoweringError:
        domain = f"{self.domain}::" if self.domain else ""
        return LoweringError(f"{self.name} ({domain}{self.op}): {found}; {advice}")


Rule = Callable[["Graph", Node], str | Sequence[str] | None]
"""Emits what stands in the place of a node; gives the names of its outputs, or None where TVM takes it as it is."""


class Graph:
    """What is known of the values, and the nodes so far.

    opset: of the nodes. rules: by domain and op.
    """

    def __init__(self, opset: int, rules: Mapping[tuple[str, str], Rule]) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.types: dict[str, TypeProto] = {}
        self.constants: dict[str, np.ndarray] = {}
        self._rules = rules
        self._taken: dict[str, int] = {}  # by name: the last number that was given to another of that name
        self._at = ""
        self._opsets = [helper.make_opsetid("", opset)]

    def fresh(self, like: str) -> str:
        """A name that no other value has."""
        name = like
        while name in self._taken:
            self._taken[like] += 1
            name = f"{like}_{self._taken[like]}"
        self._taken[name] = 0
        return name

    def constant(self, value: Any, dtype: Any = None, *, name: str = "constant") -> str:
        array = np.asarray(value, dtype)
        made = self.fresh(name)
        self.constants[made] = array
        self.types[made] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        return made

    def ints(self, *values: int) -> str:
        """A constant of int64, one axis."""
        return self.constant(values, np.int64)

    def like(self, value: float, other: str) -> str:
        """A constant scalar of another value's dtype."""
        return self.constant(value, self.dtype(other))

    def dtype(self, name: str) -> np.dtype[Any]:
        kind = self.types[name].tensor_type.elem_type if name in self.types else 0
        if not kind:
            raise LoweringError(
                f"{self._at or name}: the dtype of its input {name} is not known before the model runs; cut the model there"
            )
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind))

    def known_shape(self, name: str) -> Ints | None:
        if name not in self.types or not self.types[name].tensor_type.HasField("shape"):
            return None
        dims = self.types[name].tensor_type.shape.dim
        return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None

    def shape(self, name: str) -> Ints:
        """Raises LoweringError where a size is not known before the model runs."""
        shape = self.known_shape(name)
        if shape is None:
            raise LoweringError(
                f"{self._at or name}: the shape of its input {name} depends on values that the model computes; expected sizes "
                "that are known before it runs: cut the model there"
            )
        return shape

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def required(self, node: Node, index: int, what: str) -> np.ndarray:
        """An input that must be known before the model runs; raises LoweringError where it is computed."""
        found = self.constants.get(node.input(index))
        if found is None:
            raise node.refusal(f"its {what} is computed by the model", "expected a constant: set it in the model")
        return found

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node of one output, by its rule where it has one."""
        return self.add(Node(op, list(inputs), attrs, 1, self._at))[0]

    def emit_all(self, outputs: int, op: str, *inputs: str, **attrs: Any) -> list[str]:
        """A node of so many outputs, by its rule where it has one."""
        return self.add(Node(op, list(inputs), attrs, outputs, self._at))

    @contextlib.contextmanager
    def at(self, node: Node) -> Iterator[None]:
        """What is emitted in this block has the name of that node."""
        outer, self._at = self._at, node.name or self._at
        try:
            yield
        finally:
            self._at = outer

    def add(self, node: Node) -> list[str]:
        """A node by its rule, or as it is; its value where that is known. Gives the names of its outputs."""
        folded = None if self._is_weight(node) else self._folded(node)
        if folded is not None:
            return folded
        rule = self._rules.get((node.domain, node.op))
        with self.at(node):
            made = rule(self, node) if rule is not None else None
        if made is None:
            return self.keep(node)
        return [made] if isinstance(made, str) else list(made)

    def has_rule(self, node: Node) -> bool:
        return (node.domain, node.op) in self._rules

    def keep(self, node: Node, *, like: Node | None = None) -> list[str]:
        """A node as it is, for TVM to read; with the types of another where ONNX has no schema of it."""
        while node.inputs and not node.inputs[-1]:
            node.inputs.pop()
        name = node.name or node.op
        outputs = [self.fresh(f"{name}:{index}" if index else name) for index in range(node.outputs)]
        proto = helper.make_node(node.op, node.inputs, outputs, node.name, domain=node.domain, **node.attrs)
        typed = proto if like is None else helper.make_node(like.op, like.inputs, outputs, **like.attrs)
        self.types.update(self._inferred(typed))
        empty = [name for name in outputs if 0 in (self.known_shape(name) or ())]
        for name in empty:
            self.constants[name] = np.zeros(self.shape(name), self.dtype(name))
        if len(empty) < len(outputs):
            self.nodes.append(proto)
        return outputs

    def _inferred(self, proto: NodeProto) -> dict[str, TypeProto]:
        """The types of a node's outputs; none where they cannot be said before the model runs."""
        names = [name for name in proto.input if name]
        if not all(name in self.types for name in names):
            return {}
        data = {
            name: numpy_helper.from_array(self.constants[name], name)
            for name in names
            if name in self.constants and self.constants[name].size <= READ_AS_DATA
        }
        try:
            schema = onnx.defs.get_schema(proto.op_type, self.opset, proto.domain)
            types = {name: self.types[name] for name in names}
            found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=self._opsets)
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
            return {}
        return dict(found)

    def _folded(self, node: Node) -> list[str] | None:
        """The outputs of a node of constants alone; None where one is known later, and of a large or wrong value."""
        if node.domain or node.op in RANDOM or is_misread(node.op, self._opsets[0].version):
            return None
        if not all(name in self.constants for name in node.inputs if name):
            return None
        inputs = {name: self.constants[name] for name in node.inputs if name}
        outputs = [f"out{index}" for index in range(node.outputs)]
        proto = helper.make_node(node.op, node.inputs, outputs, **node.attrs)
        shapes = [self._size(kind) for kind in self._inferred(proto).values()]
        if not shapes or None in shapes or sum(filter(None, shapes)) > FOLDED:
            return None
        try:
            model = helper.make_model(
                helper.make_graph(
                    [proto],
                    "folded",
                    [helper.make_value_info(name, self.types[name]) for name in inputs],
                    [helper.make_empty_tensor_value_info(name) for name in outputs],
                ),
                opset_imports=self._opsets,
            )
            values = ReferenceEvaluator(model).run(None, inputs)
        except Exception:  # noqa: BLE001 - what the reference does not know stays a node
            return None
        return [self.constant(value, name=node.name or node.op) for value in values]

    def _is_weight(self, node: Node) -> bool:
        """Whether a node dequantizes weights, which are kept as they are stored."""
        return node.op == "DequantizeLinear" and self.rank(node.inputs[0]) > 1 and self.dtype(node.inputs[0]).itemsize == 1

    def _size(self, kind: TypeProto) -> int | None:
        dims = kind.tensor_type.shape.dim
        if not kind.tensor_type.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
            return None
        return int(np.prod([dim.dim_value for dim in dims], dtype=np.int64))
