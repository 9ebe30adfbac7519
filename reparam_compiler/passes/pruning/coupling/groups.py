"""Which channels must leave together.

    channel group    a connected component of the labels that `channel_labels` ties: removing one removes all
    family           the groups that go with the same parameters, along the same axes, as often: a layer's channels, or those
                     of the layers that a sum joins. A ratio applies to a family
    pinned family    one that cannot be cut, with the node that needs it whole and the reason

Groups are numbered from 1; number 0 is what can never be removed. A keep mask is a boolean for each number; through the
labels of values and parameters it says which positions stay:  keep[number[labels]].
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int64

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.pruning.coupling.labels import Found, Labels, Pin, Slot, Trace, Value, coupling_model, is_depthwise
from reparam_compiler.passes.pruning.coupling.rules import COUPLINGS

Keep = Bool[np.ndarray, "G"]


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Groups that look the same to every parameter.

    name: the native name of the layer that makes the channels, or its node id; `name#2` for a second family of that layer.
    groups: their numbers.
    positions: how many channels of that layer each group holds.
    producers: the convs and linears that make these channels.
    members: all nodes whose parameters go with them.
    pin: why they cannot be removed, or None.
    """

    name: str
    groups: Int64[np.ndarray, "F"]
    positions: int
    producers: tuple[NodeId, ...]
    members: tuple[NodeId, ...]
    pin: Pin | None = None

    @property
    def width(self) -> int:
        """Channels of the layer that makes them."""
        return self.positions * len(self.groups)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroups:
    """The coupling of a graph.

    values: the labels of each value, or of each piece of a split.
    slots: for each parameter (node, input index), labels along each axis that can be cut. An absent bias has its slot too.
    number: for each label its group.
    families: all of them, those that are pinned too, in the order of the graph.
    """

    values: Mapping[NodeId, Found]
    slots: Mapping[Slot, Mapping[int, Labels]]
    number: Int64[np.ndarray, "L"]
    families: tuple[Family, ...]

    @property
    def count(self) -> int:
        """The length of a keep mask."""
        return int(self.number.max(initial=0)) + 1

    @property
    def free(self) -> tuple[Family, ...]:
        """The families that can be cut."""
        return tuple(family for family in self.families if family.pin is None)

    def value(self, node_id: NodeId) -> Value:
        """The labels of a value that is one tensor."""
        found = self.values[node_id]
        return Value(None, np.zeros(0, np.int64)) if isinstance(found, tuple) else found

    def kept(self, keep: Keep, labels: Labels) -> Bool[np.ndarray, "C"]:
        """For each position with these labels whether it stays."""
        return np.asarray(keep[self.number[labels]])

    def read(self, node: Node, keep: Keep) -> Bool[np.ndarray, "C"] | None:
        """For a conv or linear that mixes channels: what stays along axis 1 of its weight. None for all other nodes."""
        labels = self.slots.get((node.id, 1), {}).get(1)
        return self.kept(keep, labels) if labels is not None and isinstance(node.op, ops.Conv | ops.Linear) else None


def channel_groups(graph: Graph, *, pinned: Mapping[NodeId, str] = MappingProxyType({})) -> ChannelGroups:
    """The groups and families of a graph.

    Args:
        graph: node types must be known, with every size a number but the batch's.
        pinned: nodes whose own channels must stay, with the reason that the report gives.

    Raises:
        UnsupportedModelError: a shape that is needed is not known.
    """
    found = _Coupled.of(Trace(graph, COUPLINGS, pinned))
    if others := found.dead_ends():
        second = _Coupled.of(Trace(graph, COUPLINGS, pinned, others))
        if second.free > found.free:
            found = second
    trace, families = found.trace, _families(found.trace, found.number, found.count, found.pins)
    return ChannelGroups(MappingProxyType(trace.values), MappingProxyType(trace.slots), found.number, families)


@dataclass(frozen=True, slots=True, eq=False)
class _Coupled:
    """A trace, the number of each of its labels, how many there are, and why groups are pinned."""

    trace: Trace
    number: Int64[np.ndarray, "L"]
    count: int
    pins: Mapping[int, Pin]

    @staticmethod
    def of(trace: Trace) -> "_Coupled":
        roots = trace.ties.roots(np.arange(len(trace.ties)))
        _, first, number = np.unique(roots, return_index=True, return_inverse=True)
        number = number.reshape(-1)  # label 0 is its own root, and the least, so its number is 0
        pins: dict[int, Pin] = {}
        for labels, pin in trace.pins:
            for group in np.unique(number[labels]).tolist():
                pins.setdefault(group, pin)
        return _Coupled(trace, number, len(first), pins)

    def dead_ends(self) -> frozenset[NodeId]:
        """The nodes whose channels cannot be cut along the axis chosen first: heads may go where their widths cannot."""
        return frozenset(
            node_id
            for node_id, (_, axes, labels) in self.trace.chosen.items()
            if len(axes) > 1 and all(group in self.pins for group in np.unique(self.number[labels]).tolist())
        )

    @property
    def free(self) -> int:
        """How many labels can be removed."""
        return int((~np.isin(self.number, [0, *self.pins])).sum())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where groups can stand: an axis of a parameter, named by its first reader, or a piece that a split or slice takes out."""

    node: NodeId
    makes_channels: bool


def _families(trace: Trace, number: np.ndarray, count: int, pins: Mapping[int, Pin]) -> tuple[Family, ...]:
    """Groups with the same pin that stand in the same places equally often, so that no piece of a split can be left empty."""
    places: list[_Place] = []
    standing: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    readers: dict[int, set[NodeId]] = {}
    for place, labels, others in _places(trace):
        readers[len(places)] = others
        for group, often in Counter(number[labels].tolist()).items():
            standing[group].append((len(places), often))
        places.append(place)
    alike: dict[tuple[Pin | None, tuple[tuple[int, int], ...]], list[int]] = {}
    for group in range(1, count):
        if not standing[group]:  # copies of a number that nothing joined
            continue
        alike.setdefault((pins.get(group), tuple(standing[group])), []).append(group)
    families, names = [], Counter[str]()
    for (pin, where), groups in alike.items():
        made = [(index, often) for index, often in where if places[index].makes_channels] or list(where) or [(-1, 1)]
        producers = tuple(dict.fromkeys(places[index].node for index, _ in made if index >= 0))
        used = {reader for index, _ in where for reader in readers[index]}
        members = tuple(sorted(used, key=trace.graph.position.__getitem__))
        name = native_name(trace.graph[producers[0]]) if producers else f"constant {groups[0]}"
        names[name] += 1
        label = name if names[name] == 1 else f"{name}#{names[name]}"
        family = Family(label, np.array(groups), made[0][1], producers, members, pin)
        if pin is None and len(groups) == 1:
            node = producers[0] if producers else name
            family = replace(family, pin=Pin(node, f"its {family.width} channels can only leave together"))
        families.append(family)
    order = trace.graph.position
    return tuple(sorted(families, key=lambda family: order[family.producers[0]] if family.producers else len(order)))


def _places(trace: Trace) -> list[tuple[_Place, Labels, set[NodeId]]]:
    """Every axis of every parameter that goes with labels, a shared one once, and every piece; with the nodes that read it."""
    found: list[tuple[_Place, Labels, set[NodeId]]] = []
    for (node_id, index), axes in trace.slots.items():
        node = trace.graph[node_id]
        operand = node.inputs[index] if index < len(node.inputs) else None
        if not isinstance(operand, Param):
            continue
        users = trace.graph.param_users[operand]
        if users[0] == (node_id, index):
            readers = {user for user, _ in users}
            found += [(_Place(node_id, _makes(node, index, axis)), labels, readers) for axis, labels in axes.items()]
    for node in trace.graph:
        value = trace.values[node.id]
        if isinstance(node.op, ops.Slice | ops.TupleGet) and isinstance(value, Value) and value.axis is not None:
            found.append((_Place(node.id, False), value.labels, set()))
    return found


def _makes(node: Node, index: int, axis: int) -> bool:
    """True for the output axis of the weight of a conv or linear that mixes channels, and of an embedding."""
    op, weight = coupling_model(node)[0], node.inputs[1] if len(node.inputs) > 1 else None
    match op:
        case ops.Linear():
            made = 0
        case ops.Conv() if isinstance(weight, Param) and not is_depthwise(op, weight):
            made = 0
        case ops.ConvTranspose() if isinstance(weight, Param) and not (op.groups > 1 and weight.shape[0] == op.groups):
            made = 1
        case ops.Embedding():
            made = 1
        case _:
            return False
    return (index, axis) == (1, made)


def native_name(node: Node) -> str:
    """What the user's model calls a layer: the name of its weight, less `.weight`; the node's id where it has none."""
    for param in node.params:
        if param.origin and "." in param.origin:
            return param.origin.rpartition(".")[0]
    return node.id
