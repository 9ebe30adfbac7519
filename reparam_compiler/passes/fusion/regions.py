"""Linear regions: the parts of a graph that one convolution operator can stand for.

A region has one source, which dominates its sink; every node between the two is linear and is read only inside. It is found by
walking up the sink's dominators as long as that holds, and understood by abstract interpretation: each node is carried as
the `ConvKernel` from the source to it, one rule a node (`passes/fusion/registry.py`). No architecture is known here.

Where there is an affine op without a rule the region is probed instead (`passes/fusion/probe.py`).
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace

from reparam_compiler.core.affine import identity
from reparam_compiler.core.channels import finest
from reparam_compiler.core.kernel import ConvKernel, NotFusable, compose, composed_weights
from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import ENTRY, between, data_independent_nodes, dead_nodes, immediate_dominators
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.fusion import probe
from reparam_compiler.passes.fusion.abstract_values import AbstractValue, DataIndependent, NoRule, Operand, Part, SourceLayout
from reparam_compiler.passes.fusion.merge_rules import of_parts, output_sizes
from reparam_compiler.passes.fusion.registry import LinearRule, is_linear, linear_rule, merge_rule
from reparam_compiler.vocabulary.dtypes import FLOATING

_WIDER, _SMALL = 4, 2**16
"""How many times the weights of a region one op may have, or how many at all, to be worth computing what it costs."""
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
    """Why a region does not reach any further up."""

    reason: str


def is_merge(node: Node) -> bool:
    """True where at least two computed values are added, joined or stacked."""
    return node.op.merges and len(node.sources) > 1


class Regions:
    """The regions of one graph. still: values that do not depend on any element. dead: nodes that nothing depends on."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.dominators = immediate_dominators(graph)
        self.data_independent = data_independent_nodes(graph)
        self.dead = dead_nodes(graph, self.data_independent)

    def ending_at(self, sink: NodeId) -> Iterator[Region | Blocked]:
        """The regions of one sink, from the smallest to the largest, and then why there is no larger one."""
        if reason := self._not_affine(sink):
            yield Blocked(reason)
            return
        checked: set[NodeId] = {sink}
        source = self.dominators[sink]
        for _ in range(_LONGEST):
            if source == ENTRY:
                yield Blocked(f"{sink} reads no single value")
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
        if is_linear(node) or node_id in self.data_independent or probe.is_affine(node):
            return None
        return f"{node_id} ({node.op.name}) is not linear"

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
        """True for a size that comes of values outside a region alone."""
        sources = self.graph[node_id].sources
        return all(s not in inside or (s in self.data_independent and self._asks_outside(s, inside)) for s in sources)


@dataclass(frozen=True, slots=True)
class Interpretation:
    """The operator of a region.

    signal: what its source gives. kernels: the operators from there to each of its nodes.
    varies_at: where the bias first came to depend on the position, in words; empty where it never did.
    must_be_proven: it was measured rather than derived.
    """

    kernel: ConvKernel
    layout: SourceLayout
    kernels: Mapping[NodeId, ConvKernel]
    varies_at: str = ""
    must_be_proven: bool = False


def interpret(
    graph: Graph, region: Region, data_independent: Set[NodeId] = frozenset(), *, whatever_size: bool = False
) -> Interpretation:
    """Carries a kernel from the source to the sink; raises NotFusable with the node and the reason where there is none.

    It is also refused where convs in sequence would have many times the weights of the region, unless `whatever_size` is set:
    a depthwise conv and a pointwise one as one dense conv pay nowhere, and take long to compute.
    """
    most = None if whatever_size else max(_WIDER * sum(n.params[0].count for n in region.kernels), _SMALL)
    try:
        return _by_rules(graph, region, data_independent, most)
    except NoRule as refusal:
        channels, rank = _channels_first(graph, region)
        known = graph[region.source].type
        try:
            kernel = probe.identify(
                region.nodes,
                region.source,
                channels,
                rank,
                known,
                fixed=graph.sizes_are_fixed,
                rounding=region.rounding,
                most=most,
            )
        except NotFusable as reason:
            raise NotFusable(f"{refusal}; probed: {reason}") from reason
        return Interpretation(kernel, SourceLayout(channels, rank), {region.sink: kernel}, must_be_proven=True)


def _by_rules(graph: Graph, region: Region, data_independent: Set[NodeId], most: int | None) -> Interpretation:
    layout = _source_layout(graph, region)
    abstract: dict[NodeId, AbstractValue] = {}
    varies_at = ""
    for node in region.nodes:
        try:
            _check_rank(graph, node)
            abstract[node.id] = found = _abstract_value(node, region.source, abstract, layout, data_independent, most)
        except NotFusable as refusal:
            text = str(refusal)
            raise type(refusal)(text if text.startswith(f"{node.id}:") else f"{text} at {node.id}") from refusal
        if isinstance(found, Part):
            found = found.kernel
        if not varies_at and isinstance(found, ConvKernel) and found.bias_varies:
            varies_at = f"pads over an inner bias with another value than that bias at {node.id}"
    kernel = abstract[region.sink]
    if isinstance(kernel, Part):
        kernel = kernel.whole
    if not isinstance(kernel, ConvKernel):
        raise NotFusable(f"{region.sink} gives more than one value")
    if layout.last and any(node.op.reshapes for node in region.nodes):
        _check_positions(graph, region)
    if any(isinstance(node.op, ops.AlongAxis) for node in region.nodes):
        kernel = finest(kernel)
    bare = ((node_id, value.kernel if isinstance(value, Part) else value) for node_id, value in abstract.items())
    kernels = {node_id: value for node_id, value in bare if isinstance(value, ConvKernel)}
    return Interpretation(kernel, layout, kernels, varies_at)


def _check_rank(graph: Graph, node: Node) -> None:
    """A constant of more axes than the value that it meets adds axes to it."""
    ranks = [len(known.shape) for source in node.sources if (known := graph[source].type) is not None]
    if node.op.arithmetic and ranks:
        for param in node.params:
            if len(param.shape) > max(ranks):
                raise NotFusable(f"a constant of {len(param.shape)} axes meets a value of {max(ranks)}")


def _check_positions(graph: Graph, region: Region) -> None:
    """All axes but the last must come out of a region as they went in, in every run."""
    if not graph.sizes_are_fixed and any(isinstance(node.op, ops.Reshape) for node in region.nodes):
        raise NoRule("a reshape to sizes that may be others in another run")
    before, after = graph[region.source].type, graph[region.sink].type
    if before is None or after is None or before.shape[:-1] != after.shape[:-1] or None in before.shape[:-1]:
        raise NoRule(f"reshapes that leave other axes at {region.sink} than at {region.source}")


def _abstract_value(
    node: Node,
    source: NodeId,
    abstract: Mapping[NodeId, AbstractValue],
    layout: SourceLayout,
    data_independent: Set[NodeId],
    most: int | None,
) -> AbstractValue:
    if node.id in data_independent:
        return DataIndependent(None if node.type is None else node.type.shape)
    if layout.last and node.type is not None:  # reshapes may have changed how many axes there are
        layout = replace(layout, axes=len(node.type.shape))
    if rule := linear_rule(node):
        computed = [value for value in node.sources if value == source or not isinstance(abstract[value], DataIndependent)]
        if len(computed) != 1:
            raise NotFusable(f"{node.op.name} of {len(node.sources)} computed values")
        if computed[0] == source:
            return rule(node, layout)
        inner = abstract[computed[0]]
        if isinstance(inner, Part):
            return replace(inner, kernel=_composed(node, rule, inner.kernel, layout, most))
        if not isinstance(inner, ConvKernel):
            raise NotFusable(f"{node.op.name} of stacked values")
        return _composed(node, rule, inner, layout, most)
    merge = merge_rule(node)
    if merge is None:
        raise NoRule(f"{node.op.name} has no rule")
    operands: list[Operand] = []
    for operand in node.inputs:
        if isinstance(operand, Param):
            operands.append(operand)
        elif operand is not None:
            operands.append(identity(layout.channels, layout.rank) if operand == source else abstract[operand])
    if any(isinstance(operand, Part) for operand in operands):
        return of_parts(merge, node, operands, layout)
    return merge(node, operands, layout)


def _composed(node: Node, rule: LinearRule, inner: ConvKernel, layout: SourceLayout, most: int | None) -> ConvKernel:
    outer = rule(node, _after(layout, inner))
    if most is not None and (weights := composed_weights(outer, inner)) > most:
        raise NotFusable(f"one conv would have {weights} weights, and be slower; policy='always' fuses it all the same")
    return compose(outer, inner)


def _after(layout: SourceLayout, kernel: ConvKernel) -> SourceLayout:
    return replace(layout, channels=kernel.channels[1], rank=kernel.rank, sizes=output_sizes(kernel, layout.sizes))


def _source_layout(graph: Graph, region: Region) -> SourceLayout:
    """What the source gives, told by the ops that read it, or by its type."""
    last = any(isinstance(node.op, ops.Linear) for node in region.nodes)
    known = graph[region.source].type
    if last and known is not None and len(known.shape) > 2 and any(map(_reads_second_axis, region.nodes)):
        raise NoRule("linear layers and ops whose channels are on the second axis meet")
    ranks = {0} if last else set()
    ranks |= {rank for node in region.nodes if (rank := node.op.spatial_rank) is not None}
    if known is not None and not last:
        ranks.add(len(known.shape) - 2)
    if len(ranks) != 1 or min(ranks) < 0:
        refusal = NoRule if last else NotFusable
        raise refusal(f"{region.source} has an unknown number of axes" if not ranks else f"axes {sorted(ranks)} meet")
    counts = _channels_of_source(region)
    if known is not None and len(known.shape) > 1 and isinstance(size := known.shape[-1 if last else 1], int):
        counts.add(size)
    if len(counts) != 1:
        raise NotFusable(
            f"{region.source} has an unknown number of channels" if not counts else f"{sorted(counts)} channels meet"
        )
    sizes = None
    if graph.sizes_are_fixed and known is not None and not last:
        spatial = tuple(size for size in known.shape[2:] if isinstance(size, int))
        sizes = spatial if len(spatial) == len(known.shape) - 2 else None
    return SourceLayout(counts.pop(), ranks.pop(), last, None if known is None else len(known.shape), sizes)


def _channels_first(graph: Graph, region: Region) -> tuple[int, int]:
    """Channels and spatial axes of a source whose channels are second."""
    known = graph[region.source].type
    counts = _channels_of_source(region)
    ranks = {rank for node in region.nodes if (rank := node.op.spatial_rank) is not None}
    if known is not None:
        ranks = {len(known.shape) - 2}
        counts = {size} if len(known.shape) > 1 and isinstance(size := known.shape[1], int) else counts
    if len(ranks) != 1 or len(counts) != 1:
        raise NotFusable(f"{region.source} has an unknown number of axes or channels")
    return counts.pop(), ranks.pop()


def _channels_of_source(region: Region) -> set[int]:
    """How many channels the source has, told by what reads it, or reads what has as many."""
    alike, counts = {region.source}, set[int]()
    for node in region.nodes:
        if alike.isdisjoint(node.sources):
            continue
        if count := _channels_read(node):
            counts.add(count)
        elif node.op.keeps_channels or (isinstance(node.op, ops.Slice) and node.op.axis >= 2):
            alike.add(node.id)
    return counts


def _reads_second_axis(node: Node) -> bool:
    is_norm = isinstance(node.op, ops.BatchNorm) and (node.type is None or len(node.type.shape) > 2)
    return is_norm or node.op.channels_second


def _channels_read(node: Node) -> int | None:
    """How many channels a node reads, where its parameters or sizes say so."""
    op = node.op
    if isinstance(op, ops.Weighted):
        return op.channels_read(node.params[0].shape)
    if isinstance(op, ops.BatchNorm):
        return node.params[-1].shape[0]
    return sum(op.sizes) if isinstance(op, ops.Split) and op.axis == 1 else None
