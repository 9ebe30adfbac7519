"""Labels run through a graph: the machinery. How each op treats them is the table of `passes/pruning/coupling/rules.py`.

Every channel that could be removed carries a label, an integer. The labels of a value stand along one of its axes; along the
others they repeat (stride 0), so they cost nothing. Labels that must leave together are tied, those that cannot leave are
pinned, with the reason. Where labels vary along several axes after a reshape, the axis along which most can still be told apart
is the one that is cut; the labels of each slice across it are tied (channel shuffles, attention heads, pixel shuffles).

An op without a rule for all sizes may have a coupling model (`ops.Opaque.coupling`) for those of the graph. Labels follow it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from reparam_compiler.advice import ask_for_inputs
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.interpreter.size_expressions import asked, number_values, stale_numbers
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Graph, Node, NodeId, Param, TensorType
from reparam_compiler.ir.kind import Place

Labels = Int64[np.ndarray, "C"]
Slot = tuple[NodeId, int]
"""A node and the index of one of its inputs."""
_UNFIT = (IndexError, MemoryError, RuntimeError, StopIteration, ValueError)
"""What rules, numpy and torch raise of sizes that a file states and its values have not."""
FIXED = 0
"""The label of what can never be removed."""
_COMPLEX = "computes with complex numbers"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """The labels of a value: one for each position of `axis`; where axis is None, all of it is fixed."""

    axis: int | None
    labels: Labels


NOTHING = Value(None, np.zeros(0, np.int64))
Labelled = Value | tuple[Value, ...]
"""What a node gives: the labels of one value, or of each piece of several."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Why channels cannot be removed: the node that needs them all, and the reason in words."""

    node: NodeId
    reason: str


class Ties:
    """A partition of the labels that only grows coarser (union-find)."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def fresh(self, count: int) -> Labels:
        """New labels, each on its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Makes each label of `a` one with the label of `b` at the same place, with broadcasting."""
        a, b = (side.ravel() for side in np.broadcast_arrays(a, b))
        codes = np.unique(a[a != b] * len(self._parent) + b[a != b])
        for code in codes.tolist():
            left, right = (self._root(label) for label in divmod(code, len(self._parent)))
            self._parent[max(left, right)] = min(left, right)

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """For each label the least one that it is tied to."""
        distinct, inverse = np.unique(labels, return_inverse=True)
        roots = np.array([self._root(label) for label in distinct.tolist()], np.int64)
        return roots[inverse].reshape(labels.shape)

    def __len__(self) -> int:
        return len(self._parent)

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


class Trace:
    """One run of the labels through a graph.

    ties: which labels are one.
    pins: labels that must stay, with the reason, in the order found.
    values: the labels of every value.
    slots: for each parameter of a node, the labels along each of its axes that has any.
    numbers: those that the model computes from sizes.
    chosen: for each node where labels vary along several axes the one that is cut, what else there was, and the labels.
    """

    def __init__(
        self,
        graph: Graph,
        couplings: Mapping[type[ops.Kind], "Coupling[ops.Op]"],
        keep: Mapping[NodeId, str],
        others: Collection[NodeId] = (),
    ) -> None:
        """A run.

        couplings: the rule for each kind of op.
        keep: nodes whose channels must stay, with the reason.
        others: nodes whose second choice of an axis is taken instead of the first.
        """
        self.graph = graph
        self._couplings = couplings
        self.ties = Ties()
        self.ties.fresh(1)  # FIXED
        self.pins: list[tuple[Labels, Pin]] = []
        self.values: dict[NodeId, Labelled] = {}
        self.slots: dict[Slot, Mapping[int, Labels]] = {}
        self._params: dict[Param, Mapping[int, Labels]] = {}
        self.numbers = number_values(graph)
        self.chosen: dict[NodeId, tuple[int, Sequence[int], Labels]] = {}
        self._others = others
        self._loose: set[int] = set()
        inputs = (node.type.shape[:1] for node in graph if isinstance(node.op, ops.Input) and node.type is not None)
        self._batch = {size for shape in inputs for size in shape if isinstance(size, str)}
        for node in graph:
            self.values[node.id] = NOTHING if node.id in self.numbers else self._follow(node)
            if node.id in keep:
                self.pin(self.values[node.id], node.id, keep[node.id])
        for output in graph.outputs:
            self.pin(self.values[output], output, _is_output(graph[output]))
        if self.numbers:
            self._pin_asked_sizes()

    def _follow(self, node: Node) -> Labelled:
        if (why := why_kept(node)) == _COMPLEX:
            return self.freeze(node, f"{called(node)} {why}")
        op, seen = coupling_model(node)
        rule = self._couplings.get(type(op))
        if rule is None:
            return self.freeze(node, _not_understood(node))
        for source in map(self.graph.__getitem__, seen.sources):
            if source.type is None and isinstance(source.op, ops.Opaque) and source.op.coupling is None:
                return self.freeze(
                    node, f"{called(node)} reads {called(source)}, which {why_kept(source) or 'is not understood'}"
                )
        if not isinstance(op, ops.TupleGet) and any(isinstance(self.values[source], tuple) for source in seen.sources):
            return self.freeze(node, f"{called(node)} reads several tensors as one value")
        try:
            return rule(seen, op, self)
        except UnsupportedModelError:
            if isinstance(op, ops.Input):
                raise
            return self.freeze(node, f"{called(node)} has sizes that are not known")
        except _UNFIT:
            return self.freeze(node, f"{called(node)} cannot be followed at this shape")

    def _pin_asked_sizes(self) -> None:
        """Pins values whose size an op is computed with, where the op cannot be told another size."""
        narrower = {node_id: shape for node_id in self.values if (shape := self._narrower(node_id)) is not None}
        stale = stale_numbers(self.graph, narrower)
        for output in stale.intersection(self.graph.outputs):
            for source in asked(self.graph, output):
                self.pin(self.values[source], output, _is_output(self.graph[output]))
        for node in self.graph:
            model = node.op.coupling if isinstance(node.op, ops.Opaque) else None
            if node.id in self.numbers or (model is not None and model.states_sizes):
                continue
            for number in stale.intersection(node.sources):
                if self._is_width_of(node, number, narrower):
                    continue
                for source in asked(self.graph, number):
                    self.pin(self.values[source], node.id, f"{called(node)} is computed with the size of {source}")

    def _is_width_of(self, node: Node, number: NodeId, narrower: Mapping[NodeId, tuple[Dim, ...]]) -> bool:
        """True for the sizes of a resize that takes its channels from what it reads: they come out right by themselves."""
        if not isinstance(node.op, ops.Opaque) or ops.Facts.WIDTH_OF_INPUT not in node.op.facts or node.id not in narrower:
            return False
        sizes = number_values(self.graph, narrower)[number]
        return isinstance(sizes, Tensor) and sizes.ndim == 1 and int(sizes[1]) == narrower[node.id][1]

    def _narrower(self, node_id: NodeId) -> tuple[Dim, ...] | None:
        """The shape of a value with one label less."""
        value, value_type = self.values[node_id], self.graph[node_id].type
        if value_type is None or isinstance(value, tuple) or value.axis is None:
            return None
        return tuple(len(value.labels) - 1 if axis == value.axis else size for axis, size in enumerate(value_type.shape))

    def shape(self, node_id: NodeId) -> tuple[int, ...]:
        """The sizes of a value; a batch that is not known counts as one."""
        known = self.graph[node_id].type
        sizes = [] if known is None else [1 if self._is_batch(axis, size) else size for axis, size in enumerate(known.shape)]
        numbers = tuple(size for size in sizes if isinstance(size, int))
        if known is None or len(numbers) < len(sizes):
            found = "is not known" if known is None else f"is {' x '.join(map(str, known.shape))}"
            raise UnsupportedModelError(
                f"{node_id}: the shape {found}, but every size except the batch's must be a number to follow channels; "
                f"{ask_for_inputs()}, or a model with static shapes"
            )
        return numbers

    def _is_batch(self, axis: int, size: Dim) -> bool:
        """True for an unknown size of the first axis, and for a size that names the batch, along whichever axis."""
        named = isinstance(size, str) and not self._batch.isdisjoint((size, *re.findall(r"\w+", size)))
        return named or (axis == 0 and not isinstance(size, int))

    def source(self, node: Node, place: Place = 0) -> Value:
        """The labels of what a node reads: of its first input, or of the one at that place."""
        operand = node.operand(place)
        value = self.values[operand] if isinstance(operand, str) else NOTHING
        return NOTHING if isinstance(value, tuple) else value

    def along(self, value: Value, axis: int, size: int) -> Labels | None:
        """The labels of a value along an axis; None where they stand along another one."""
        if value.axis is None:
            return np.full(size, FIXED)
        return value.labels if value.axis == axis else None

    def value(self, node: Node, axis: int, labels: Labels) -> Value:
        """What a node gives; a single channel cannot go, or nothing would be left."""
        if not labels.any():  # all are FIXED
            return NOTHING
        if len(labels) > 1:
            return Value(axis, labels)
        self._pin(labels, Pin(node.id, f"{called(node)} has one channel only"))
        return NOTHING

    def loose(self, count: int) -> Labels:
        """New labels of copies of one number; where channels stand along another axis, that axis is taken."""
        made = self.ties.fresh(count)
        self._loose.update(made.tolist())
        return made

    def is_loose(self, labels: Labels) -> bool:
        """True for such labels."""
        return self._loose.issuperset(labels.tolist())

    def choose(self, node: Node, axes: Sequence[int], labels: np.ndarray) -> int:
        """The axis that is cut, of several in the order of preference."""
        axis = axes[1] if node.id in self._others and len(axes) > 1 else axes[0]
        self.chosen[node.id] = axis, axes, np.unique(labels)
        return axis

    def tie(self, node: Node, a: np.ndarray, b: np.ndarray) -> None:
        """Ties labels at the same place; one that meets what is fixed is pinned."""
        a, b = np.broadcast_arrays(a, b)
        meets_fixed = (a == FIXED) != (b == FIXED)
        if meets_fixed.any():
            reason = f"{called(node)} joins it with what keeps its width"
            self._pin(np.maximum(a, b)[meets_fixed], Pin(node.id, reason))
        both = (a != FIXED) & (b != FIXED)
        self.ties.tie(a[both], b[both])

    def pin(self, labelled: Labelled, node_id: NodeId, reason: str) -> None:
        """Keeps every label of a value."""
        for value in labelled if isinstance(labelled, tuple) else (labelled,):
            self._pin(value.labels, Pin(node_id, reason))

    def use(self, node: Node, place: Place, axes: Mapping[int, Labels]) -> None:
        """Notes that a parameter goes with these labels; where it is shared, its uses are tied."""
        self.slots[node.id, node.op.signature.index(place)] = axes
        operand = node.operand(place)
        if not isinstance(operand, Param):
            return
        first = self._params.setdefault(operand, axes)
        for axis in sorted(first.keys() | axes.keys()) if first is not axes else ():
            if axis in first and axis in axes:
                self.tie(node, first[axis], axes[axis])
            else:
                labels = first[axis] if axis in first else axes[axis]
                self._pin(labels, Pin(node.id, f"{called(node)} shares a parameter with a use that needs all of it"))

    def freeze(self, node: Node, reason: str) -> Value:
        """Fixes all that a node reads; what it gives is fixed as well."""
        for index, operand in enumerate(node.inputs):
            if isinstance(operand, str):
                self.pin(self.values[operand], node.id, reason)
            elif operand is not None:
                self.use(node, index, {})
        return NOTHING

    def _pin(self, labels: np.ndarray, pin: Pin) -> None:
        if (labels != FIXED).any():
            self.pins.append((labels[labels != FIXED], pin))


Kind = TypeVar("Kind", bound=ops.Op)
Coupling = Callable[[Node, Kind, Trace], Labelled]
"""What an op does with the labels of what it reads: it ties and pins them in the trace, and gives those of its own value."""


def coupling_model(node: Node) -> tuple[ops.Op, Node]:
    """What a node is to pruning: its op or the coupling model of it, and the node with the inputs of that alone."""
    model = ops.understood(node.op)
    if model is node.op or not isinstance(node.op, ops.Opaque):
        return model, node
    return model, replace(node, inputs=node.inputs[: node.op.reads])


def reads_channels(node: Node, axes: Iterable[int]) -> bool:
    """True for a conv or linear that mixes the channels that it reads, where its weight has labels along these axes."""
    op, weight = node.op, node.operand("weight") if isinstance(node.op, ops.Weighted) else None
    if not isinstance(op, ops.Weighted) or not isinstance(weight, Param):
        return False
    return op.input_axis in axes and not op.is_depthwise(weight.shape)


def why_kept(node: Node) -> str:
    """What stands in the way of cutting a layer, as far as its own parameters and its value show; empty where nothing does."""
    types = [node.type, *(TensorType(param.dtype, param.shape) for param in node.params)]
    if not isinstance(node.op, ops.Input) and any(known is not None and known.is_complex for known in types):
        return _COMPLEX
    return ops.why_opaque(node.op)


def _is_output(node: Node) -> str:
    return f"{called(node)} is a model output"


def _not_understood(node: Node) -> str:
    """Why an op without a rule keeps the channels that it meets."""
    if isinstance(node.op, ops.Opaque) and ops.Facts.RANDOM in node.op.facts:
        return f"{called(node)} is random, as a dropout is in training mode (call model.eval() first)"
    is_written = isinstance(node.op, ops.Opaque) and ops.Facts.WRITTEN in node.op.facts
    return f"{called(node)} {why_kept(node) or (ops.IN_PLACE if is_written else 'is not understood')}"


def called(node: Node) -> str:
    """A node as reports name it."""
    return f"{node.id} ({node.op.name})"
