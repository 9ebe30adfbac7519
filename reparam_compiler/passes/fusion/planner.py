"""Which of the nested and overlapping regions of a graph to rewrite: the cheapest way to compute each value.

The dominators of a sink, as far up as all is linear, are a chain of values p_0 … p_n = sink, and each two of them bound a
region. The cheapest way to compute p_j from p_0 is

    best(0) = 0
    best(j) = min( best(j - 1) + alone(j),  min over i < j of best(i) + fused(i, j) )

where fused(i, j) is one conv in place of the region from p_i to p_j, and alone(j) the op of p_j with the cheapest way to
compute what stands between p_{j-1} and it (branches, which are planned in the same manner).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import prod

from reparam_compiler.advice import option
from reparam_compiler.core.kernel import NotFusable
from reparam_compiler.cost.model import NO_WORK, CostModel, Work, work
from reparam_compiler.interpreter.difference import Difference
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, TensorType
from reparam_compiler.passes.choices import Policy
from reparam_compiler.passes.fusion.interpretation import Interpretation
from reparam_compiler.passes.fusion.merge_rules import output_sizes
from reparam_compiler.passes.fusion.regions import Blocked, Region, Regions
from reparam_compiler.progress import steps

NOMINAL: Mapping[int, tuple[int, ...]] = {0: (), 1: (784,), 2: (28, 28), 3: (9, 9, 9)}
"""Sizes of a source that are not known, for each number of spatial axes; only costs depend on them."""
_POSITIONS = 196
"""Positions of a source whose channels are last, likewise."""
_UNKNOWN = 64 * 28 * 28
"""Elements of a value that no kernel tells anything of."""
_LARGEST, _GROWS = 2**26, 256
"""Elements of a value that is proven, or so many times its source has: a padding states any number."""
_AS_GOOD = 1.02
"""A price that is at most so many times another is as good: a bias that was not there before, say."""


@dataclass(frozen=True, slots=True)
class Built:
    """The op that can do a region. error: the measured difference of both forms, where it was asked for."""

    node: Node
    interpretation: Interpretation
    error: Difference | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A region that one op can do. node, error: as in `Built`. before, after: what both forms do in one run."""

    region: Region
    node: Node
    error: Difference | None
    before: Work
    after: Work


@dataclass(frozen=True, slots=True)
class Plan:
    """A way to compute some nodes: what it costs, and the regions to rewrite."""

    cost: float
    chosen: tuple[Candidate, ...] = ()

    def __add__(self, other: "Plan") -> "Plan":
        return Plan(self.cost + other.cost, self.chosen + other.chosen)


class Planner:
    """Plans one graph.

    Args:
        graph, regions: what to plan.
        wants: which regions are worth a try.
        build: the op that can do a region, proven; raises NotFusable.
        policy: "cost" takes the fastest way by `cost_model`, "always" the one with the fewest ops.
    """

    def __init__(
        self,
        graph: Graph,
        regions: Regions,
        *,
        wants: Callable[[Region], bool],
        build: Callable[[Region], Built],
        policy: Policy,
        cost_model: CostModel,
    ) -> None:
        self.graph, self.regions, self.wants, self.build = graph, regions, wants, build
        self.policy, self.cost_model = policy, cost_model
        self.reasons: dict[NodeId, str] = {}
        self._tried: dict[tuple[NodeId, NodeId], Candidate | str] = {}
        self._elements: dict[NodeId, int] = {}

    def plan(self, nodes: Sequence[Node]) -> Plan:
        """The cheapest way to compute these nodes, which come in order."""
        total, done = Plan(0.0), set[NodeId]()
        for node in steps(reversed(nodes), "proving regions", len(nodes)):
            if node.id not in done:
                chain, zone, blocked = self._zone(node)
                done.update(zone)
                total += self._along(chain)
                self._explain(chain, blocked)
        return total

    def _explain(self, chain: list[list[Region]], blocked: str) -> None:
        """What has no reason of its own stays for that of what comes after it, or for what ends the chain."""
        reason = blocked
        for regions in reversed(chain):
            reason = self.reasons.setdefault(regions[-1].sink, reason) or blocked

    def _zone(self, node: Node) -> tuple[list[list[Region]], Set[NodeId], str]:
        """For each value of the chain that ends at a node the regions from the earlier ones to it; all nodes in them; and why
        it is no longer."""
        *regions, blocked = self.regions.ending_at(node.id)
        reason = blocked.reason if isinstance(blocked, Blocked) else ""
        growing = [region for region in regions if isinstance(region, Region)]
        unread = not self.graph.users[node.id] and node.id not in self.graph.outputs
        if not growing or unread or node.id in self.regions.dead:
            return [[_alone(node, self.graph)]], {node.id}, reason
        points = [region.source for region in reversed(growing)] + [node.id]
        whole = growing[-1]
        after = [_reached(whole, point) for point in points]
        chain = [[self._between(whole, points[i], point, after[i]) for i in range(j)] for j, point in enumerate(points) if j]
        return chain, {n.id for n in whole.nodes}, reason

    def _between(self, zone: Region, source: NodeId, sink: NodeId, after: Sequence[Node]) -> Region:
        """The region between two values of a chain. after: the nodes of the zone that depend on its source, in order."""
        if (source, sink) == (zone.source, zone.sink):
            return zone
        place = self.graph.position
        return Region(source, sink, tuple(after[: bisect_right(after, place[sink], key=lambda node: place[node.id])]))

    def _along(self, chain: list[list[Region]]) -> Plan:
        if (quick := self._obvious(chain)) is not None:
            return quick
        for region in (region for regions in chain for region in regions):
            self._candidate(region)  # and so all are priced by the same sizes where these are not known
        best = [Plan(0.0)]
        for regions in chain:
            ways = [
                best[i] + Plan(self._cost_of(candidate.after), (candidate,))
                for i, region in enumerate(regions)
                if (candidate := self._candidate(region)) is not None
            ]
            alone = best[-1] + self._not_fused(regions[-1])
            cheapest = min([*ways, alone], key=lambda plan: plan.cost * (_AS_GOOD if plan is alone else 1.0))
            sink = regions[-1].sink
            if ways and cheapest is alone:
                cheapest_region = self._cheapest(regions)
                self.reasons[sink] = _too_costly(cheapest_region.before, cheapest_region.after)
            best.append(cheapest)
        return best[-1]

    def _obvious(self, chain: list[list[Region]]) -> Plan | None:
        """One op for all of a zone, where that costs no more than the dearest conv in it does alone.

        A value between that is smaller than both ends may be worth stopping at: then nothing is obvious.
        """
        whole = chain[-1][0]
        candidate = self._candidate(whole)
        if candidate is None:
            return None
        plan = Plan(self._cost_of(candidate.after), (candidate,))
        if self.policy == "always":
            return plan
        ends = min(self._count(whole.source), self._count(whole.sink))
        if any(self._count(regions[-1].sink) < ends for regions in chain):
            return None
        dearest = max((self._cost_of(self._work(node)) for node in whole.kernels), default=0.0)
        return plan if plan.cost <= _AS_GOOD * dearest else None

    def _not_fused(self, segment: Region) -> Plan:
        """The op of a segment's sink as it is, and the cheapest way to what it reads."""
        *inside, sink = segment.nodes
        return self.plan(inside) + Plan(self._cost_of(self._work(sink)))

    def _candidate(self, region: Region) -> Candidate | None:
        key = region.source, region.sink
        if key not in self._tried:
            self._tried[key] = self._try(region)
        tried = self._tried[key]
        if isinstance(tried, Candidate):
            return tried
        if tried:
            self.reasons[region.sink] = tried
        return None

    def _try(self, region: Region) -> Candidate | str:
        """The candidate, or why there is none (an empty reason for a region that is not wanted)."""
        if not self.wants(region):
            return ""
        most = max(_LARGEST, _GROWS * _stated_elements(self.graph[region.source]))
        if grown := [node.id for node in region.nodes if _stated_elements(node) > most]:
            return f"{grown[0]} is too large to be proven"
        try:
            built = self.build(region)
        except NotFusable as refusal:
            return str(refusal)
        self._measure(region, built.interpretation)
        parts = [self._work(one) for one in region.nodes]
        before = sum(parts, NO_WORK)
        after = work(built.node.op, built.node.params, self._count(region.source), self._count(region.sink))
        if self._cost_of(_without_winograd(after)) > _AS_GOOD * sum(self._cost_of(_without_winograd(part)) for part in parts):
            return _too_costly(before, after)  # not every engine has Winograd: it must pay in those that have not, too
        return Candidate(region, built.node, built.error, before, after)

    def _cost_of(self, done: Work) -> float:
        return self.cost_model.seconds(done) if self.policy == "cost" else float(done.launches)

    def _work(self, node: Node) -> Work:
        """What a node does; a norm of what a conv gives does nothing, for it goes into the conv in any case, as a bias."""
        if isinstance(node.op, ops.BatchNorm) and self._norm_after(self.graph[node.sources[0]]) is node:
            return NO_WORK
        read = sum(map(self._count, node.sources))
        if (norm := self._norm_after(node)) is not None and node.operand("bias") is None:
            read += max((param.count for param in norm.params), default=0)
        return work(node.op, node.params, read, self._count(node.id))

    def _norm_after(self, node: Node) -> Node | None:
        """The norm that alone reads what a conv or linear gives."""
        readers = self.graph.users[node.id] if isinstance(node.op, ops.Weighted) else ()
        reader = self.graph[readers[0]] if len(readers) == 1 else None
        return reader if reader is not None and isinstance(reader.op, ops.BatchNorm) else None

    def _count(self, node_id: NodeId) -> int:
        """The elements of a value."""
        elements = self._elements.get(node_id) or _known_elements(self.graph[node_id].type)
        return _UNKNOWN if elements is None else elements

    def _measure(self, region: Region, interpretation: Interpretation) -> None:
        """Notes the elements of values whose types are not known, from their kernels and a source of nominal size."""
        layout = interpretation.layout
        sizes = (_POSITIONS,) if layout.last else NOMINAL[layout.rank]
        if _known_elements(self.graph[region.source].type) is None:
            self._elements.setdefault(region.source, layout.channels * prod(sizes))
        for node_id, kernel in interpretation.kernels.items():
            if node_id not in self._elements and _known_elements(self.graph[node_id].type) is None:
                positions = sizes if layout.last else output_sizes(kernel, sizes) or ()
                self._elements[node_id] = kernel.channels[1] * prod(max(n, 1) for n in positions)

    def _cheapest(self, regions: Sequence[Region]) -> Candidate:
        candidates = [found for region in regions if (found := self._candidate(region)) is not None]
        return min(candidates, key=lambda candidate: self._cost_of(candidate.after))


def _too_costly(before: Work, after: Work) -> str:
    """Why the cheapest way does not fuse what could be fused."""
    return (
        f"one conv would be slower: {after.multiply_adds:.4g} multiply-adds and {after.bytes:.4g} bytes instead of "
        f"{before.multiply_adds:.4g} and {before.bytes:.4g} in {before.launches} ops; "
        f"{option('policy', 'always')} fuses it all the same"
    )


def _without_winograd(done: Work) -> Work:
    return replace(done, muls=float(done.multiply_adds))


def _reached(zone: Region, source: NodeId) -> list[Node]:
    """The nodes of a zone that depend on one of its values, in order."""
    reached, nodes = {source}, list[Node]()
    for node in zone.nodes:
        if not reached.isdisjoint(node.sources):
            reached.add(node.id)
            nodes.append(node)
    return nodes


def _alone(node: Node, graph: Graph) -> Region:
    return Region(node.sources[0] if node.sources else node.id, node.id, (node,))


def _stated_elements(node: Node) -> int:
    """The elements of a value as far as its sizes are known."""
    return 0 if node.type is None else prod(size for size in node.type.shape if isinstance(size, int))


def _known_elements(value_type: TensorType | None) -> int | None:
    """The elements of a value for a batch of one where the batch is symbolic; None where another size is not known."""
    if value_type is None or any(not isinstance(size, int) for size in value_type.shape[1:]):
        return None
    return prod(size if isinstance(size, int) else 1 for size in value_type.shape)
