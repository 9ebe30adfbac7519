"""The dataflow graph: nodes in topological order, joined by their ids, with lazily loaded parameters.

A node is a value: `id = op(inputs)`, where an input is the id of another node, a `Param`, or None for an optional operand
that is absent. Nodes are immutable and compared by identity; a pass puts a new node under an old id, so that the users of
that id need not change, and `diff` is what the frontends write back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64

from reparam_compiler.errors import InvalidGraphError
from reparam_compiler.ir.kind import OperandName, Place
from reparam_compiler.ir.ops import Input, Op
from reparam_compiler.ir.windows import ANY_PADDING, ConvPadding

NodeId = str
Dim = int | str | None
"""A size, the name of a symbolic one, or None where it is not known."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """The dtype ("f32", "bf16", "i64" …) and the shape of a value."""

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape, where every size is a number."""
        sizes = tuple(size for size in self.shape if isinstance(size, int))
        return sizes if len(sizes) == len(self.shape) else None

    @property
    def is_complex(self) -> bool:
        """Whether its elements are complex numbers: every framework calls these alike."""
        return self.dtype.startswith("complex")


@dataclass(frozen=True, slots=True, eq=False)
class Param:
    """A constant tensor of the model.

    role: "weight", "bias", "mean", "var" or "const": what the printer calls it.
    dtype, shape: as the model stores it.
    load: gives its elements, in `dtype` or, for one that a pass computed, in float64; the frontend rounds, once.
    origin: its name in the native model; None for a new one.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    origin: str | None = None

    @staticmethod
    def of(array: np.ndarray, *, role: str, dtype: str, origin: str | None = None) -> "Param":
        """A parameter that holds `array` and is stored as `dtype`."""
        return Param(role, dtype, tuple(array.shape), lambda: array, origin)

    def float64(self) -> Float64[np.ndarray, "..."]:
        """The elements in float64."""
        return np.asarray(self.load()).astype(np.float64)

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)


Operand = NodeId | Param | None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value of the graph.

    type: None where it is not known, and for a tuple of tensors.
    replaces: the ids of the nodes that a pass fused into this one.
    """

    id: NodeId
    op: Op
    inputs: tuple[Operand, ...]
    type: TensorType | None = None
    replaces: tuple[NodeId, ...] = ()

    @property
    def sources(self) -> tuple[NodeId, ...]:
        """The ids that it reads, in order; an id that it reads twice stands there twice."""
        return tuple(operand for operand in self.inputs if isinstance(operand, str))

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters that it reads, in order."""
        return tuple(operand for operand in self.inputs if isinstance(operand, Param))

    @property
    def has_constant_params(self) -> bool:
        """True where all that it reads besides its first operand is constant or absent."""
        return not any(isinstance(operand, str) for operand in self.inputs[1:])

    def operand(self, place: Place) -> Operand:
        """What it reads as this operand; None where that is absent.

        Raises InvalidGraphError for a name that its op does not declare.

        Example: `node.operand("weight")` of a conv is a `Param`, or the id of the node that computes the weight.
        """
        index = self.op.signature.index(place)
        return self.inputs[index] if index < len(self.inputs) else None

    def param(self, place: Place) -> Param | None:
        """An operand where it is a parameter or absent; raises InvalidGraphError where it is computed."""
        operand = self.operand(place)
        if isinstance(operand, str):
            raise InvalidGraphError(f"{self.id} ({self.op.name}): its {place} is computed by {operand}, not a parameter")
        return operand

    def with_operands(self, operands: Mapping[OperandName, Operand]) -> "Node":
        """The node with some operands exchanged, or added where they were absent."""
        places = {self.op.signature.index(name): operand for name, operand in operands.items()}
        absent: tuple[Operand, ...] = (None,) * (max(places, default=0) + 1 - len(self.inputs))
        return with_inputs(replace(self, inputs=(*self.inputs, *absent)), places)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, and the ids that the model returns.

    sizes_are_fixed: the sizes in the nodes' types are those of every run, not of one example.
    conv_padding: what padding the model's own convs have a word for.
    """

    nodes: Mapping[NodeId, Node]
    outputs: tuple[NodeId, ...]
    sizes_are_fixed: bool = True
    conv_padding: ConvPadding = ANY_PADDING

    @staticmethod
    def of(nodes: Iterable[Node], outputs: Iterable[NodeId], *, sizes_are_fixed: bool = True) -> "Graph":
        """A graph of these nodes, which must come in topological order; raises InvalidGraphError for an id given twice."""
        table: dict[NodeId, Node] = {}
        for node in nodes:
            if node.id in table:
                raise InvalidGraphError(f"two nodes have the id {node.id}; ids must be unique in a graph")
            table[node.id] = node
        return Graph(MappingProxyType(table), tuple(outputs), sizes_are_fixed)

    def __getitem__(self, node_id: NodeId) -> Node:
        return self.nodes[node_id]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def position(self) -> Mapping[NodeId, int]:
        """For each id its place in the topological order."""
        return MappingProxyType({node_id: place for place, node_id in enumerate(self.nodes)})

    @cached_property
    def users(self) -> Mapping[NodeId, tuple[NodeId, ...]]:
        """For each id the ids that read it, in order, without repeats."""
        users: dict[NodeId, dict[NodeId, None]] = {node_id: {} for node_id in self.nodes}
        for node in self:
            for source in node.sources:
                users[source][node.id] = None
        return MappingProxyType({node_id: tuple(readers) for node_id, readers in users.items()})

    @cached_property
    def param_users(self) -> Mapping[Param, tuple[tuple[NodeId, int], ...]]:
        """For each parameter the (node, input index) pairs that read it."""
        users: dict[Param, list[tuple[NodeId, int]]] = {}
        for node in self:
            for index, operand in enumerate(node.inputs):
                if isinstance(operand, Param):
                    users.setdefault(operand, []).append((node.id, index))
        return MappingProxyType({param: tuple(readers) for param, readers in users.items()})

    def rewrite(self, replacements: Mapping[NodeId, Node], dead: Set[NodeId] = frozenset()) -> "Graph":
        """Replaces nodes by those of the same ids, and drops what only the replaced ones read.

        Model inputs stay, and so does a node that nothing read before. A replacement may read only nodes that come before the
        one that it replaces.

        dead: ids that no output depends on. They keep no node alive, and go where a node that they read goes.
        """
        if not replacements:
            return self
        table = {node_id: replacements.get(node_id, node) for node_id, node in self.nodes.items()}
        unread = [source for node_id in replacements for source in self[node_id].sources]
        self._collect(table, unread, dead)
        for node_id in [node_id for node_id in table if node_id in dead]:
            if any(source not in table for source in table[node_id].sources):
                del table[node_id]
        return replace(self, nodes=MappingProxyType(table))

    def _collect(self, table: dict[NodeId, Node], unread: list[NodeId], dead: Set[NodeId]) -> None:
        """Deletes the nodes that no living node reads any more, from those that may be `unread` on to what they read."""
        readers = dict.fromkeys(table, 0)
        for node in table.values():
            for source in node.sources if node.id not in dead else ():
                readers[source] += 1
        while unread:
            node_id = unread.pop()
            gone = table.get(node_id)
            if gone is None or readers[node_id] or node_id in self.outputs or isinstance(gone.op, Input):
                continue
            del table[node_id]
            for source in gone.sources:
                readers[source] -= 1
                unread.append(source)


@dataclass(frozen=True, slots=True)
class Diff:
    """What a frontend has to write.

    changed: nodes that are new under their id, or have another op or other inputs. One with `replaces` is a new op in place of
        those; one without is the model's own, with new parameters (of the old origins) or attributes.
    retyped: nodes whose type alone is another one.
    removed: ids that are gone.
    """

    changed: tuple[Node, ...]
    retyped: tuple[Node, ...]
    removed: tuple[NodeId, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.retyped or self.removed)


def diff(before: Graph, after: Graph) -> Diff:
    """What passes changed that made the second graph of the first."""
    changed, retyped = [], []
    for node in after:
        old = before.nodes.get(node.id)
        if old is node:
            continue
        if old is None or old.op != node.op or old.inputs != node.inputs or old.replaces != node.replaces:
            changed.append(node)
        elif old.type != node.type:
            retyped.append(node)
    removed = tuple(node_id for node_id in before.nodes if node_id not in after.nodes)
    return Diff(tuple(changed), tuple(retyped), removed)


def with_inputs(node: Node, inputs: Mapping[int, Operand], op: Op | None = None) -> Node:
    """The node with some inputs, and perhaps its op, exchanged."""
    operands = tuple(inputs.get(index, operand) for index, operand in enumerate(node.inputs))
    return replace(node, inputs=operands, op=op or node.op)
