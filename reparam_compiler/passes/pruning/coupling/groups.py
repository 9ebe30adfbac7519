"""Which channels must leave together.

    channel group    a connected component of the labels that `channel_labels` ties: removing one removes all
    family           the groups that go with the same parameters, along the same axes, as often: a layer's channels, or those
                     of the layers that a sum joins. A ratio applies to a family
    pinned family    one that cannot be cut, with the node that needs it whole and the reason

Groups are numbered from 1; number 0 is what can never be removed. A keep mask is a boolean for each number; through the
labels of values and parameters it says which positions stay:  keep[number[labels]].
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int64

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.kind import Place
from reparam_compiler.passes.pruning.coupling.labels import (
    Labelled,
    Labels,
    Pin,
    Slot,
    Trace,
    Value,
    coupling_model,
    reads_channels,
)
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

    values: Mapping[NodeId, Labelled]
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
        value = self.values[node_id]
        return Value(None, np.zeros(0, np.int64)) if isinstance(value, tuple) else value

    def params(self, graph: Graph) -> Iterator[tuple[Node, int, Param, Mapping[int, Labels]]]:
        """Every parameter that goes with labels, at every node that reads it: the node, which input it is, its labels."""
        return labelled_params(graph, self.slots)

    def along(self, node: Node, place: Place) -> Mapping[int, Labels]:
        """The labels along each axis of an operand that has any."""
        return self.slots.get((node.id, node.op.signature.index(place)), {})

    def kept(self, keep: Keep, labels: Labels) -> Bool[np.ndarray, "C"]:
        """For each position with these labels whether it stays."""
        return np.asarray(keep[self.number[labels]])

    def read(self, node: Node, keep: Keep) -> Bool[np.ndarray, "C"] | None:
        """For a conv or linear that mixes channels: what stays along the input axis of its weight. None for all other nodes."""
        if not isinstance(node.op, ops.Weighted) or not reads_channels(node, axes := self.along(node, "weight")):
            return None
        return self.kept(keep, axes[node.op.input_axis])


def labelled_params(
    graph: Graph, slots: Mapping[Slot, Mapping[int, Labels]]
) -> Iterator[tuple[Node, int, Param, Mapping[int, Labels]]]:
    """The slots that hold a parameter: a bias that is absent has its slot, too, and so has a mask, which no model gives.

    An opaque op may have another input at that place (the axes of a reduction), which its coupling model does not read.
    """
    for (node_id, index), axes in slots.items():
        node = graph[node_id]
        read = coupling_model(node)[1].inputs
        operand = read[index] if index < len(read) else None
        if isinstance(operand, Param):
            yield node, index, operand, axes


def channel_groups(graph: Graph, *, pinned: Mapping[NodeId, str] = MappingProxyType({})) -> ChannelGroups:
    """The groups and families of a graph.

    Args:
        graph: node types must be known, with every size a number but the batch's.
        pinned: nodes whose own channels must stay, with the reason that the report gives.

    Raises:
        UnsupportedModelError: a shape that is needed is not known.
    """
    coupled = _Coupled.of(Trace(graph, COUPLINGS, pinned))
    if others := coupled.dead_ends():
        second = _Coupled.of(Trace(graph, COUPLINGS, pinned, others))
        if second.free > coupled.free:
            coupled = second
    trace = coupled.trace
    return ChannelGroups(MappingProxyType(trace.values), MappingProxyType(trace.slots), coupled.number, _families(coupled))


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


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where groups can stand: an axis of a parameter, or a piece that a split or slice takes out.

    node: the first reader of the parameter, or the node that gives the piece.
    makes_channels: the axis is that of the outputs of a conv, linear or embedding.
    labels: along the axis. readers: all nodes that read the parameter.
    """

    node: NodeId
    makes_channels: bool
    labels: Labels
    readers: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class _Signature:
    """Why a group is pinned, and in which places it stands how often: groups of one signature are a family.

    So no piece of a split can be left empty: every family stands in it whole.
    """

    pin: Pin | None
    standing: tuple[tuple[_Place, int], ...]


def _families(coupled: _Coupled) -> tuple[Family, ...]:
    """The groups of each signature, in the order of the graph."""
    graph, names, families = coupled.trace.graph, Counter[str](), []
    for signature, groups in _signatures(coupled).items():
        family = _family(signature, groups, graph)
        names[family.name] += 1
        label = family.name if names[family.name] == 1 else f"{family.name}#{names[family.name]}"
        families.append(replace(family, name=label))
    return tuple(sorted(families, key=lambda family: graph.position[family.producers[0]]))


def _signatures(coupled: _Coupled) -> Mapping[_Signature, Int64[np.ndarray, "_"]]:
    """The groups by signature. Copies of a number that nothing joined stand nowhere, and are in none."""
    standings, standing = _standings(coupled)
    pins: list[Pin | None] = [None, *dict.fromkeys(coupled.pins.values())]
    number_of = {pin: number for number, pin in enumerate(pins)}
    pinned = np.zeros(coupled.count, np.int64)
    pinned[[*coupled.pins]] = [number_of[pin] for pin in coupled.pins.values()]
    groups = 1 + np.flatnonzero(standing[1:])
    signature = (standing * len(pins) + pinned)[groups]
    codes, first, count = np.unique(signature, return_index=True, return_counts=True)
    order = np.argsort(signature, kind="stable")
    parts = np.split(groups[order], np.cumsum(count)[:-1])
    signatures = [_Signature(pins[code % len(pins)], standings[code // len(pins)]) for code in codes.tolist()]
    return {signatures[index]: parts[index] for index in np.argsort(first).tolist()}


def _standings(coupled: _Coupled) -> tuple[list[tuple[tuple[_Place, int], ...]], Int64[np.ndarray, "G"]]:
    """In which places groups stand how often, and for each group which of these it is: 0 for one that stands nowhere.

    Groups that stood alike are told apart, place by place, by whether they stand there and how often.
    """
    standings: list[tuple[tuple[_Place, int], ...]] = [()]
    standing = np.zeros(coupled.count, np.int64)
    for place in _places(coupled.trace):
        found, often = np.unique(coupled.number[place.labels], return_counts=True)
        most = int(often.max(initial=0)) + 1
        codes, index = np.unique(standing[found] * most + often, return_inverse=True)
        standing[found] = len(standings) + index
        standings += [(*standings[code // most], (place, code % most)) for code in codes.tolist()]
    return standings, standing


def _family(signature: _Signature, groups: Int64[np.ndarray, "_"], graph: Graph) -> Family:
    """The family of one signature, under the name of the layer that makes its channels."""
    made = [(place, often) for place, often in signature.standing if place.makes_channels] or signature.standing
    producers = tuple(dict.fromkeys(place.node for place, _ in made))
    readers = frozenset[NodeId]().union(*(place.readers for place, _ in signature.standing))
    members = tuple(sorted(readers, key=graph.position.__getitem__))
    positions, pin = made[0][1], signature.pin
    if pin is None and len(groups) == 1:
        pin = Pin(producers[0], f"its {positions} channels can only leave together")
    return Family(native_name(graph[producers[0]]), groups, positions, producers, members, pin)


def _places(trace: Trace) -> list[_Place]:
    """Every axis of every parameter that goes with labels, a shared one once, and every piece."""
    places: list[_Place] = []
    for node, index, param, axes in labelled_params(trace.graph, trace.slots):
        users = trace.graph.param_users[param]
        if users[0] == (node.id, index):
            readers = frozenset(user for user, _ in users)
            places += [_Place(node.id, _makes(node, index, axis), labels, readers) for axis, labels in axes.items()]
    for node in trace.graph:
        value = trace.values[node.id]
        if node.op.gives_piece and isinstance(value, Value) and value.axis is not None:
            places.append(_Place(node.id, False, value.labels, frozenset()))
    return places


def _makes(node: Node, index: int, axis: int) -> bool:
    """True for the output axis of the weight of a conv or linear that mixes channels, and of an embedding."""
    op = coupling_model(node)[0]
    weight = node.inputs[index]
    if op.operands.name(index) != "weight" or not isinstance(weight, Param):
        return False
    if isinstance(op, ops.Embedding):
        return axis == op.output_axis
    return isinstance(op, ops.Weighted) and axis == op.output_axis and not op.is_depthwise(weight.shape)


def native_name(node: Node) -> str:
    """What the user's model calls a layer: the name of its weight, less `.weight`; the node's id where it has none."""
    for param in node.params:
        if param.origin and "." in param.origin:
            return param.origin.rpartition(".")[0]
    return node.id
