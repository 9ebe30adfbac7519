"""Linear regions: the parts of a graph that one convolution operator can stand for.

A region has one source, which dominates its sink; every node between the two is linear and is read only inside. It is found by
walking up the sink's dominators as long as that holds, and understood by abstract interpretation: each node is carried as
the `ConvKernel` from the source to it, one rule a node (`registry.py`). No architecture is known here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from reparam_compiler.core.affine import identity
from reparam_compiler.core.kernel import ConvKernel, NotFusable, compose
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.view import ENTRY, between
from reparam_compiler.passes.registry import Signal, is_linear, linear_rule, merge_rule


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes on all paths from `source`, which is not one of them, to `sink`, which is the last."""

    source: NodeId
    sink: NodeId
    nodes: tuple[Node, ...]

    @property
    def kernels(self) -> tuple[Node, ...]:
        """Its convs and linears."""
        return tuple(node for node in self.nodes if isinstance(node.op, ops.Conv | ops.Linear))

    @property
    def merges(self) -> bool:
        """True where values that were computed apart meet."""
        return any(is_merge(node) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a region does not reach any further up."""

    reason: str


def is_merge(node: Node) -> bool:
    """True for an add or concat of at least two computed values."""
    return isinstance(node.op, ops.Add | ops.Concat) and len(node.sources) > 1


def regions_ending_at(graph: Graph, sink: NodeId, dominators: Mapping[NodeId, NodeId]) -> Iterator[Region | Blocked]:
    """The regions of one sink, from the smallest to the largest, and then why there is no larger one."""
    if not is_linear(graph[sink]):
        yield Blocked(f"{sink} ({graph[sink].op.name}) is not linear")
        return
    checked: set[NodeId] = {sink}
    source = dominators[sink]
    while source != ENTRY:
        inside = between(graph, source, sink)
        for node_id in inside:
            if node_id not in checked and (reason := _not_inside(graph, node_id, set(inside))):
                yield Blocked(reason)
                return
            checked.add(node_id)
        yield Region(source, sink, tuple(graph[node_id] for node_id in inside))
        if reason := _not_inside(graph, source, {*inside, source}):
            yield Blocked(reason)
            return
        source = dominators[source]
    yield Blocked(f"{sink} reads no single value")


def _not_inside(graph: Graph, node_id: NodeId, inside: set[NodeId]) -> str | None:
    """Why a node cannot stand inside a region of these nodes."""
    node = graph[node_id]
    if not is_linear(node):
        return f"{node_id} ({node.op.name}) is not linear"
    if node_id in graph.outputs:
        return f"{node_id} is an output of the model"
    readers = [reader for reader in graph.users[node_id] if reader not in inside]
    return f"{node_id} is also read by {readers[0]}" if readers else None


@dataclass(frozen=True, slots=True)
class Interpretation:
    """The operator of a region.

    multiply_adds: of the region as it is, for each position of its source; a mark of what it costs today.
    weights: the numbers of its convs' weights.
    """

    kernel: ConvKernel
    multiply_adds: Fraction
    weights: int


def interpret(graph: Graph, region: Region) -> Interpretation:
    """Carries a kernel from the source to the sink; raises NotFusable with the node and the reason where there is none."""
    signal = _signal(graph, region)
    kernels: dict[NodeId, ConvKernel] = {}
    multiply_adds, weights = Fraction(0), 0
    for node in region.nodes:
        try:
            kernels[node.id] = kernel = _carry(node, region.source, kernels, signal)
        except NotFusable as refusal:
            text = str(refusal)
            raise NotFusable(text if text.startswith(node.id) else f"{text} at {node.id}") from refusal
        if node in region.kernels:
            count = prod(node.params[0].shape)
            weights += count
            multiply_adds += Fraction(count, prod(kernel.stride))
    return Interpretation(kernels[region.sink], multiply_adds, weights)


def _carry(node: Node, source: NodeId, kernels: Mapping[NodeId, ConvKernel], signal: Signal) -> ConvKernel:
    if rule := linear_rule(node):
        if len(node.sources) != 1:
            raise NotFusable(f"{node.op.name} of {len(node.sources)} computed values")
        inner = kernels.get(node.sources[0])
        if inner is None:
            return rule(node, signal)
        return compose(rule(node, Signal(inner.channels[1], inner.rank)), inner)
    operands: list[ConvKernel | Param] = []
    for operand in node.inputs:
        if isinstance(operand, Param):
            operands.append(operand)
        elif operand is not None:
            operands.append(identity(signal.channels, signal.rank) if operand == source else kernels[operand])
    merge = merge_rule(node)
    if merge is None:
        raise NotFusable(f"{node.op.name} is not linear")
    return merge(node, operands)


def _signal(graph: Graph, region: Region) -> Signal:
    """What the source gives, told by the ops that read it, or by its type."""
    ranks = {rank for node in region.nodes if (rank := _rank(node)) is not None}
    known = graph[region.source].type
    if known is not None:
        ranks.add(len(known.shape) - 2)
    if len(ranks) != 1 or min(ranks) < 0:
        raise NotFusable(f"{region.source} has an unknown number of axes" if not ranks else f"axes {sorted(ranks)} meet")
    counts = {count for node in region.nodes if region.source in node.sources and (count := _channels_read(node))}
    if known is not None and len(known.shape) > 1 and isinstance(known.shape[1], int):
        counts.add(known.shape[1])
    if len(counts) != 1:
        raise NotFusable(
            f"{region.source} has an unknown number of channels" if not counts else f"{sorted(counts)} channels meet"
        )
    return Signal(counts.pop(), ranks.pop())


def _rank(node: Node) -> int | None:
    match node.op:
        case ops.Conv(stride=stride) | ops.AvgPool(stride=stride):
            return len(stride)
        case ops.Linear():
            if node.type is None or len(node.type.shape) != 2:
                raise NotFusable("linear on what is not known to have two axes")
            return 0
        case _:
            return None


def _channels_read(node: Node) -> int | None:
    match node.op:
        case ops.Conv(groups=groups):
            return node.params[0].shape[1] * groups
        case ops.Linear():
            return node.params[0].shape[1]
        case ops.BatchNorm():
            return node.params[-1].shape[0]
        case _:
            return None
