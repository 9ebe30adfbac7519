"""Labels run through a graph: how each op passes on, ties or fixes the channels of what it reads.

Every channel that could be removed carries a label, an integer. The labels of a value stand along one of its axes; along the
others they repeat (stride 0), so they cost nothing. Ops that only move elements are run literally on the labels, by the
interpreter of `equivalence`, so there are no index rules for reshapes, concats, splits or shuffles. The rest is a table:

    conv, linear           consume the labels of their input channels, make new ones for their outputs
    depthwise conv         each channel keeps its label; its filter goes with it
    group conv             the same position in every group is one label, so that every group loses the same
    batch norm, constants  the params go with the channel
    add, mul, div          the labels at the same place are tied
    pool, reduce           pass on what they do not reduce over
    anything else          is not understood: what it reads and gives is fixed, and the reason is kept

Where labels vary along several axes after a reshape, the axis along which most can still be told apart is the one that is
cut; the labels of each slice across it are tied (channel shuffles, attention heads, pixel shuffles).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from reparam_compiler.core.slicing import block_heads
from reparam_compiler.equivalence import evaluate_node
from reparam_compiler.errors import RewriteError, UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param

Labels = Int64[np.ndarray, "C"]
Slot = tuple[NodeId, int]
"""A node and the index of one of its inputs."""
FIXED = 0
"""The label of what can never be removed."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """The labels of a value: one for each position of `axis`; where axis is None, all of it is fixed."""

    axis: int | None
    labels: Labels


NOTHING = Value(None, np.zeros(0, np.int64))
Found = Value | tuple[Value, ...]


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
        found = np.array([self._root(label) for label in distinct.tolist()], np.int64)
        return found[inverse].reshape(labels.shape)

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
    """

    def __init__(self, graph: Graph, keep: Mapping[NodeId, str]) -> None:
        self.graph = graph
        self.ties = Ties()
        self.ties.fresh(1)  # FIXED
        self.pins: list[tuple[Labels, Pin]] = []
        self.values: dict[NodeId, Found] = {}
        self.slots: dict[Slot, Mapping[int, Labels]] = {}
        self._params: dict[Param, Mapping[int, Labels]] = {}
        idle = _size_queries(graph)
        for node in graph:
            self.values[node.id] = NOTHING if node.id in idle else self._follow(node)
            if node.id in keep:
                self.pin(self.values[node.id], node.id, keep[node.id])
        for output in graph.outputs:
            self.pin(self.values[output], output, f"{called(graph[output])} is a model output")

    def _follow(self, node: Node) -> Found:
        rule = COUPLINGS.get(type(node.op))
        if rule is None:
            return self.freeze(node, f"{called(node)} is not understood")
        for source in map(self.graph.__getitem__, node.sources):
            if isinstance(source.op, ops.Opaque) and source.type is None:
                return self.freeze(node, f"{called(node)} reads {called(source)}, which is not understood")
        return rule(node, node.op, self)

    def shape(self, node_id: NodeId) -> tuple[int, ...]:
        """The sizes of a value; a batch that is not known counts as one."""
        known = self.graph[node_id].type
        if known is None or any(not isinstance(size, int) for size in known.shape[1:]):
            found = "is not known" if known is None else f"is {' x '.join(map(str, known.shape))}"
            raise UnsupportedModelError(
                f"{node_id}: the shape {found}, but every size except the batch's must be a number to follow channels; "
                "pass example_inputs, or a model with static shapes"
            )
        return tuple(size if isinstance(size, int) else 1 for size in known.shape)

    def source(self, node: Node, index: int = 0) -> Value:
        """The labels of what a node reads."""
        operand = node.inputs[index]
        found = self.values[operand] if isinstance(operand, str) else NOTHING
        return NOTHING if isinstance(found, tuple) else found

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

    def tie(self, node: Node, a: np.ndarray, b: np.ndarray) -> None:
        """Ties labels at the same place; one that meets what is fixed is pinned."""
        a, b = np.broadcast_arrays(a, b)
        meets_fixed = (a == FIXED) != (b == FIXED)
        if meets_fixed.any():
            reason = f"{called(node)} joins it with what keeps its width"
            self._pin(np.maximum(a, b)[meets_fixed], Pin(node.id, reason))
        both = (a != FIXED) & (b != FIXED)
        self.ties.tie(a[both], b[both])

    def pin(self, found: Found, node_id: NodeId, reason: str) -> None:
        """Keeps every label of a value."""
        for value in found if isinstance(found, tuple) else (found,):
            self._pin(value.labels, Pin(node_id, reason))

    def use(self, node: Node, index: int, axes: Mapping[int, Labels]) -> None:
        """Notes that a parameter goes with these labels; where it is shared, its uses are tied."""
        self.slots[node.id, index] = axes
        operand = node.inputs[index] if index < len(node.inputs) else None
        if not isinstance(operand, Param):
            return
        known = self._params.setdefault(operand, axes)
        for axis in sorted(known.keys() | axes.keys()) if known is not axes else ():
            if axis in known and axis in axes:
                self.tie(node, known[axis], axes[axis])
            else:
                labels = known[axis] if axis in known else axes[axis]
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
Coupling = Callable[[Node, Kind, Trace], Found]
COUPLINGS: dict[type[ops.Op], Coupling[ops.Op]] = {}
"""For each kind of op how it treats labels."""


def register_coupling(*kinds: type[Kind]) -> Callable[[Coupling[Kind]], Coupling[Kind]]:
    """Registers a rule for these kinds of op; raises ValueError for a kind that has one."""

    def register(rule: Coupling[Kind]) -> Coupling[Kind]:
        for kind in kinds:
            if kind in COUPLINGS:
                raise ValueError(f"{kind.__name__} has a coupling rule already")
            COUPLINGS[kind] = cast(Coupling[ops.Op], rule)
        return rule

    return register


@register_coupling(ops.Input)
def _input(node: Node, op: ops.Input, trace: Trace) -> Found:
    trace.shape(node.id)
    return NOTHING


@register_coupling(ops.Conv)
def _conv(node: Node, op: ops.Conv, trace: Trace) -> Found:
    weight = node.inputs[1]
    if not isinstance(weight, Param) or any(isinstance(operand, str) for operand in node.inputs[2:]):
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    out, into = weight.shape[:2]
    read = trace.along(trace.source(node), 1, into * op.groups)
    if read is None:
        return trace.freeze(node, f"{called(node)} slides along the channels")
    if is_depthwise(op, weight):
        made = read
        if out != op.groups:
            made = trace.ties.fresh(out)
            trace.tie(node, made, np.repeat(read, out // op.groups))
        trace.use(node, 1, {0: made})
    else:
        blocks = read.reshape(op.groups, into)
        trace.tie(node, blocks, blocks[:1])
        made = trace.ties.fresh(out)
        trace.tie(node, made.reshape(op.groups, -1), made[: out // op.groups])
        trace.use(node, 1, {0: made, 1: blocks[0]})
    trace.use(node, 2, {0: made})
    return trace.value(node, 1, made)


@register_coupling(ops.Linear)
def _linear(node: Node, op: ops.Linear, trace: Trace) -> Found:
    weight, x = node.inputs[1], trace.source(node)
    if not isinstance(weight, Param) or any(isinstance(operand, str) for operand in node.inputs[2:]):
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    last = len(trace.shape(node.sources[0])) - 1
    read = trace.along(x, last, weight.shape[1])
    if read is None:  # it mixes another axis than the one that may be cut
        trace.use(node, 1, {})
        trace.use(node, 2, {})
        return x
    made = trace.ties.fresh(weight.shape[0])
    trace.use(node, 1, {0: made, 1: read})
    trace.use(node, 2, {0: made})
    return trace.value(node, last, made)


@register_coupling(ops.BatchNorm)
def _batch_norm(node: Node, op: ops.BatchNorm, trace: Trace) -> Found:
    x = trace.source(node)
    if any(isinstance(operand, str) for operand in node.inputs[1:]):
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    if x.axis not in (None, 1) and op.training:
        return trace.freeze(node, f"{called(node)} takes its statistics over them")
    for index in range(1, len(node.inputs)):
        trace.use(node, index, {0: x.labels} if x.axis == 1 else {})
    return x


@register_coupling(ops.Add, ops.Mul, ops.Div)
def _broadcast(node: Node, op: ops.Op, trace: Trace) -> Found:
    """The first operand that carries labels says along which axis; the others follow, are the same for all, or pin it."""
    shapes = [trace.shape(o) if isinstance(o, str) else o.shape if isinstance(o, Param) else () for o in node.inputs]
    rank = max(map(len, shapes))
    values = [trace.source(node, index) for index in range(len(node.inputs))]
    axes = [None if v.axis is None else v.axis + rank - len(shape) for v, shape in zip(values, shapes, strict=True)]
    first = next((index for index, axis in enumerate(axes) if axis is not None), None)
    axis = None if first is None else axes[first]
    if first is None or axis is None:
        return trace.freeze(node, f"{called(node)} joins constants")
    if any(other not in (None, axis) for other in axes):
        return trace.freeze(node, f"{called(node)} joins channels of different axes")
    labels = values[first].labels
    for index, (operand, shape, value) in enumerate(zip(node.inputs, shapes, values, strict=True)):
        own = axis - rank + len(shape)
        spans = own >= 0 and shape[own] > 1
        if isinstance(operand, Param):
            trace.use(node, index, {own: labels} if spans else {})
        elif value.axis is not None:
            trace.tie(node, labels, value.labels)
        elif spans:
            trace.tie(node, labels, np.array(FIXED))
    return Value(axis, labels)


@register_coupling(ops.Elementwise)
def _elementwise(node: Node, op: ops.Elementwise, trace: Trace) -> Found:
    return trace.source(node)


@register_coupling(ops.AvgPool, ops.MaxPool, ops.AdaptiveAvgPool)
def _pool(node: Node, op: ops.Op, trace: Trace) -> Found:
    x = trace.source(node)
    return x if x.axis in (None, 1) else trace.freeze(node, f"{called(node)} slides along the channels")


@register_coupling(ops.Pad)
def _pad(node: Node, op: ops.Pad, trace: Trace) -> Found:
    x = trace.source(node)
    if x.axis is None or op.padding[x.axis] == (0, 0):
        return x
    low, high = op.padding[x.axis]
    if op.mode != "zeros" or low < 0 or high < 0:
        return trace.freeze(node, f"{called(node)} crops the channels, or repeats them")
    return Value(x.axis, np.pad(x.labels, (low, high), constant_values=FIXED))


@register_coupling(ops.Reduce)
def _reduce(node: Node, op: ops.Reduce, trace: Trace) -> Found:
    x = trace.source(node)
    if x.axis is None:
        return x
    if x.axis in op.axes:
        return trace.freeze(node, f"{called(node)} runs over the channels")
    return Value(x.axis if op.keepdim else x.axis - sum(axis < x.axis for axis in op.axes), x.labels)


@register_coupling(ops.Item)
def _item(node: Node, op: ops.Item, trace: Trace) -> Found:
    found = trace.values[node.sources[0]]
    return found[op.index] if isinstance(found, tuple) else NOTHING


@register_coupling(ops.Identity, ops.Concat, ops.Flatten, ops.Reshape, ops.Permute, ops.Slice, ops.Split)
def _move(node: Node, op: ops.Op, trace: Trace) -> Found:
    """The op itself, run on the labels of what it reads. Axes that neither carry labels nor are moved along shrink to one."""
    values = _operand_values(node, trace)
    labelled = {value.axis for value in values if value.axis is not None}
    if not labelled:
        return tuple(NOTHING for _ in op.sizes) if isinstance(op, ops.Split) else NOTHING
    if isinstance(op, ops.Slice) and op.axis in labelled:
        if op.step < 1 or op.start < 0 or (op.stop or 0) < 0:
            return trace.freeze(node, f"{called(node)} runs backwards")
        labels = values[0].labels
        trace.tie(node, labels, labels[block_heads(len(labels), op.start, op.step)])
    own_axis = {op.axis} if isinstance(op, ops.Concat | ops.Slice | ops.Split) else set()
    whole = isinstance(op, ops.Flatten | ops.Reshape)
    tensors: dict[NodeId, Tensor] = {}
    for index, (operand, value) in enumerate(zip(node.inputs, values, strict=True)):
        shape = trace.shape(operand) if isinstance(operand, str) else operand.shape if isinstance(operand, Param) else ()
        sizes = [size if whole or axis in labelled | own_axis else 1 for axis, size in enumerate(shape)]
        tensors[f"operand {index}"] = _expanded(value, sizes)
    try:
        moved = evaluate_node(Node(node.id, op, tuple(tensors)), tensors)
    except RewriteError:
        return trace.freeze(node, f"{called(node)} cannot be followed at this shape")
    pieces = tuple(_settle(node, piece.numpy(), trace) for piece in (moved if isinstance(moved, tuple) else (moved,)))
    return pieces if isinstance(op, ops.Split) else pieces[0]


def _operand_values(node: Node, trace: Trace) -> list[Value]:
    """The labels of the operands; a constant that is joined along another axis than the channels' gets labels of its own."""
    values = [trace.source(node, index) for index in range(len(node.inputs))]
    axis = next((value.axis for value in values if value.axis is not None), None)
    for index, operand in enumerate(node.inputs):
        if not isinstance(operand, Param):
            continue
        if isinstance(node.op, ops.Concat) and axis is not None and axis != node.op.axis:
            values[index] = Value(axis, trace.ties.fresh(operand.shape[axis]))
        own = values[index]
        trace.use(node, index, {} if own.axis is None else {own.axis: own.labels})
    return values


def _expanded(value: Value, shape: Iterable[int]) -> Tensor:
    """The label of each element, repeated without being copied."""
    sizes = tuple(shape)
    if value.axis is None:
        return torch.full((1,) * len(sizes), FIXED).expand(sizes)
    flat = torch.from_numpy(value.labels).reshape([-1 if axis == value.axis else 1 for axis in range(len(sizes))])
    return flat.expand(sizes)


def _settle(node: Node, labels: np.ndarray, trace: Trace) -> Value:
    """The axis along which a value can be cut, with what lies across each of its slices tied."""
    if not labels.size:
        return NOTHING
    dynamic = {axis for axis, size in enumerate(node.type.shape) if not isinstance(size, int)} if node.type else set()
    varying = [axis for axis in range(labels.ndim) if (labels != labels.take([0], axis)).any()]
    usable = [axis for axis in varying if axis not in dynamic]
    if not usable:
        trace.pin(Value(None, labels.ravel()), node.id, f"{called(node)} leaves one channel, or moves channels to the batch")
        return NOTHING
    slices = {axis: np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1) for axis in usable}
    axis = usable[0]
    if len(varying) > 1:
        axis = max(usable, key=lambda a: (_told_apart(trace.ties.roots(slices[a])), a))
        trace.tie(node, slices[axis], slices[axis][:, :1])
    return trace.value(node, axis, np.ascontiguousarray(slices[axis][:, 0]))


def _told_apart(slices: Int64[np.ndarray, "n m"]) -> int:
    """How many sets of slices have no label in common."""
    distinct, inverse = np.unique(slices, return_inverse=True)
    across = Ties()
    across.fresh(len(distinct))
    compact = inverse.reshape(slices.shape)
    across.tie(compact, compact[:, :1])
    return len(np.unique(across.roots(compact[:, 0])))


def is_depthwise(op: ops.Conv, weight: Param) -> bool:
    """True for a conv whose every group reads one channel: it passes channels on instead of mixing them."""
    return op.groups > 1 and weight.shape[1] == 1


def called(node: Node) -> str:
    """A node as reports name it."""
    return f"{node.id} ({node.op.name})"


def _size_queries(graph: Graph) -> set[NodeId]:
    """Nodes that ask for a size which nothing computed depends on: they pin nothing."""
    idle: set[NodeId] = set()
    for node in reversed(list(graph)):
        asks = isinstance(node.op, ops.Opaque) and node.op.target in _SIZES and node.type is None
        if asks and node.id not in graph.outputs and all(user in idle for user in graph.users[node.id]):
            idle.add(node.id)
    return idle


_SIZES = frozenset({"size", "shape", "dim", "ndim", "ndimension", "numel", "sym_size", "getitem"})
