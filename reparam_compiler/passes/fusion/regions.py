"""Linear regions: the parts of a graph that one convolution operator can stand for.

A region has one source, which dominates its sink; every node between the two is linear and is read only inside. It is found by
walking up the sink's dominators as long as that holds. `passes/fusion/interpretation.py` says which operator it is. No
architecture is known here.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass

from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import ENTRY, between, data_independent_nodes, dead_nodes, immediate_dominators
from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.passes.fusion import probe
from reparam_compiler.passes.fusion.registry import is_linear
from reparam_compiler.vocabulary.dtypes import FLOATING

_LONGEST = 64
"""How many dominators a region is followed up; longer chains of linear ops are not met in nets."""


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes on all paths from `source`, which is not one of them, to `sink`, which is the last."""

    source: NodeId
    sink: NodeId
    nodes: tuple[Node, ...]

    @property
    def kernels(self) -> tuple[Node, ...]:
        """Its convs, transposed convs and linears."""
        return tuple(node for node in self.nodes if isinstance(node.op, ops.Weighted))

    @property
    def rounding(self) -> float:
        """How far a constant that was written down in the region's dtype may be from what it was computed from.

        Exporters fold what DBB pads with into a tensor: it is the inner bias but for rounding, eight units in the last place.
        """
        return 8 * FLOATING.get(self.kernels[0].params[0].dtype, FLOATING["f64"]).eps

    @property
    def merges(self) -> bool:
        """True where values that were computed apart meet."""
        return any(is_merge(node) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a region cannot begin further up."""

    reason: str


def is_merge(node: Node) -> bool:
    """True where at least two computed values are added, joined or stacked."""
    return node.op.merges and len(node.sources) > 1


class Regions:
    """The regions of one graph.

    data_independent: values that depend on sizes alone. dead: nodes that no output depends on.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.data_independent = data_independent_nodes(graph)
        self.dominators = immediate_dominators(graph, self.data_independent)
        self.dead = dead_nodes(graph, self.data_independent)

    def ending_at(self, sink: NodeId) -> Iterator[Region | Blocked]:
        """The regions of one sink, from the smallest to the largest, and then why there is no larger one."""
        if reason := self._not_affine(sink):
            yield Blocked(ops.why_opaque(self.graph[sink].op) or reason)
            return
        checked: set[NodeId] = {sink}
        source = self.dominators.get(sink, ENTRY)
        for _ in range(_LONGEST):
            if source == ENTRY:
                yield Blocked(self._opaque_above(sink) or f"{sink} reads no single value")
                return
            inside = between(self.graph, source, sink)
            for node_id in inside:
                if node_id not in checked and (reason := self._not_inside(node_id, set(inside))):
                    yield Blocked(reason)
                    return
                checked.add(node_id)
            if not isinstance(self.graph[source].op, ops.Split):  # which gives several values
                yield Region(source, sink, tuple(self.graph[node_id] for node_id in inside))
            if reason := self._not_inside(source, {*inside, source}):
                yield Blocked(reason)
                return
            source = self.dominators[source]
        yield Blocked(f"more than {_LONGEST} linear ops in a row")

    def _not_affine(self, node_id: NodeId) -> str | None:
        node = self.graph[node_id]
        if is_linear(node) or node_id in self.data_independent or probe.is_affine(node, self.data_independent):
            return None
        return f"{node_id} ({node.op.name}) {ops.why_opaque(node.op) or 'is not linear'}"

    def _opaque_above(self, sink: NodeId) -> str | None:
        """What is said of the nearest layer above a node that the model has in a way that is not read."""
        waiting, seen = [sink], {sink}
        for node_id in waiting:
            for source in self.graph[node_id].sources:
                reason = self._not_affine(source)
                if reason and ops.why_opaque(self.graph[source].op):
                    return reason
                if not reason and source not in seen and len(seen) < _LONGEST:
                    seen.add(source)
                    waiting.append(source)
        return None

    def _not_inside(self, node_id: NodeId, inside: Set[NodeId]) -> str | None:
        """Why a node cannot stand inside a region of these nodes."""
        if reason := self._not_affine(node_id):
            return reason
        if node_id in self.data_independent and self._asks_outside(node_id, inside):
            return None  # it stays for its other readers
        if node_id in self.graph.outputs:
            return f"{node_id} is an output of the model"
        readers = [r for r in self.graph.users[node_id] if r not in inside and r not in self.dead]
        return f"{node_id} is also read by {readers[0]}" if readers else None

    def _asks_outside(self, node_id: NodeId, inside: Set[NodeId]) -> bool:
        """True for a size that is computed from values outside the region alone."""
        sources = self.graph[node_id].sources
        return all(s not in inside or (s in self.data_independent and self._asks_outside(s, inside)) for s in sources)
