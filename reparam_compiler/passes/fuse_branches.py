"""A linear region becomes one conv: parallel branches, and convs in sequence where that costs less (Eq. 1, 3, 4).

Sinks are tried from the outputs upwards, each with its largest region first. A region is rewritten where the interpretation
is exact, the one conv costs no more multiply-adds and no more weights than the region does, and the proof holds: both forms
evaluated in float64. What is refused is reported with the first node that stands in the way.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from reparam_compiler.core.kernel import ConvKernel, NotFusable
from reparam_compiler.equivalence import Difference, region_difference
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.text import type_text
from reparam_compiler.ir.view import immediate_dominators
from reparam_compiler.passes.regions import Blocked, Interpretation, Region, interpret, is_merge, regions_ending_at

logger = logging.getLogger(__name__)
_BITS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16}
TOLERANCE = 1e-9
"""The largest relative difference, in float64, of a region and the conv that replaces it."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """One region that became one op.

    nodes: the ids of what was replaced, sources first. node: the id of the new op (that of the last one replaced).
    op: the new op as the printer shows it. weight: its shape.
    shape: the type of its output, where it is known.
    error: the measured difference of both forms in float64; None where it was not asked for.
    """

    nodes: tuple[NodeId, ...]
    source: NodeId
    node: NodeId
    op: str
    weight: tuple[int, ...]
    shape: str
    error: Difference | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A merge or a norm that stayed, and why."""

    node: NodeId
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """A graph and what was done to get it."""

    graph: Graph
    fusions: tuple[Fusion, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def fuse_branches(graph: Graph, *, verify: bool = True) -> PassResult:
    """Rewrites every region that merges branches or composes convs."""
    return rewrite_regions(
        graph,
        wants=lambda region: bool(region.kernels) and (region.merges or len(region.kernels) > 1),
        reports=is_merge,
        verify=verify,
    )


def rewrite_regions(
    graph: Graph, *, wants: Callable[[Region], bool], reports: Callable[[Node], bool], verify: bool
) -> PassResult:
    """Rewrites the regions that `wants` takes; refusals are kept for the nodes that `reports` takes."""
    dominators = immediate_dominators(graph)
    replacements: dict[NodeId, Node] = {}
    taken: set[NodeId] = set()
    fusions: list[Fusion] = []
    refusals: list[Refusal] = []
    for sink in reversed(tuple(graph.nodes)):
        if sink in taken or not (graph.users[sink] or sink in graph.outputs):
            continue
        *regions, blocked = regions_ending_at(graph, sink, dominators)
        outcome = _first_exact(graph, [r for r in regions if isinstance(r, Region) and wants(r)], verify=verify)
        if isinstance(outcome, Fused):
            replacements[sink] = outcome.node
            taken.update(node.id for node in outcome.region.nodes)
            fusions.append(_described(outcome))
            logger.debug("%s: fused %d nodes", sink, len(outcome.region.nodes))
        elif reports(graph[sink]):
            reason = outcome or (blocked.reason if isinstance(blocked, Blocked) else "")
            refusals.append(Refusal(sink, graph[sink].op.name, reason))
    return PassResult(graph.rewrite(replacements), tuple(reversed(fusions)), tuple(reversed(refusals)))


@dataclass(frozen=True, slots=True)
class Fused:
    """A region, the node that replaces it, and the proof."""

    region: Region
    node: Node
    error: Difference | None


def _first_exact(graph: Graph, regions: list[Region], *, verify: bool) -> Fused | str:
    """The largest region that one conv can do, or why the smallest cannot (an empty reason where there is none)."""
    reason = ""
    for region in reversed(regions):
        try:
            found = interpret(graph, region)
            _check_cost(found)
            node = _node(graph, region, found.kernel)
            return Fused(region, node, _prove(region, node, found.kernel) if verify else None)
        except NotFusable as refusal:
            reason = str(refusal)
    return reason


def _check_cost(found: Interpretation) -> None:
    """The one conv must not cost more than what it replaces."""
    kernel = found.kernel
    if not kernel.weight.size:
        raise NotFusable("nothing is left")
    multiply_adds = Fraction(kernel.multiply_adds, prod(kernel.stride))
    if multiply_adds > found.multiply_adds or kernel.weight.size > found.weights:
        now, then = float(found.multiply_adds), float(multiply_adds)
        raise NotFusable(
            f"one conv would cost more: {then:.4g} multiply-adds a position instead of {now:.4g},"
            f" {kernel.weight.size} weights instead of {found.weights}"
        )


def _node(graph: Graph, region: Region, kernel: ConvKernel) -> Node:
    """The conv or linear that computes a kernel, under the id of the region's sink."""
    sink, first = graph[region.sink], region.kernels[0].params[0]
    _check_promotion(graph, region, first)
    weight = Param.of(kernel.weight, role="weight", dtype=first.dtype)
    bias = Param.of(kernel.bias, role="bias", dtype=first.dtype)
    op: ops.Op = ops.Conv(kernel.stride, kernel.padding, kernel.dilation, kernel.groups, kernel.mode)
    if kernel.rank == 0 and isinstance(region.kernels[0].op, ops.Linear):
        op = ops.Linear()
    has_bias = bool(kernel.bias.any()) or any(node.op.name == "batch_norm" or _has_bias(node) for node in region.nodes)
    ids = tuple(replaced for node in region.nodes for replaced in (node.replaces or (node.id,)))
    return replace(sink, op=op, inputs=(region.source, weight, bias if has_bias else None), replaces=ids)


def _check_promotion(graph: Graph, region: Region, weight: Param) -> None:
    """A constant of a wider dtype than the convs' makes wider values, which one conv in their dtype would not give."""
    known = graph[region.source].type
    if known is not None and known.dtype != weight.dtype:
        raise NotFusable(f"{region.source} is {known.dtype}, and the weights are {weight.dtype}")
    for node in region.nodes:
        for param in node.params if isinstance(node.op, ops.Add | ops.Mul | ops.Div) else ():
            if param.shape and _BITS.get(param.dtype, 0) > _BITS.get(weight.dtype, 0):
                raise NotFusable(f"{node.id}: a constant of {param.dtype} makes {param.dtype} of {weight.dtype}")


def _has_bias(node: Node) -> bool:
    return isinstance(node.op, ops.Conv | ops.Linear) and len(node.params) > 1


def _prove(region: Region, node: Node, kernel: ConvKernel) -> Difference:
    """Both forms in float64 on sources just wider than the kernel, so that most outputs see the border.

    No axis has the size of another, and a strided kernel is tried on odd and even sizes.
    """
    base = [
        max(span, *map(abs, pair)) + sum(abs(min(amount, 0)) for amount in pair) + s + 1
        for span, s, pair in zip(kernel.span, kernel.stride, kernel.padding, strict=True)
    ]
    sizes = [tuple(size + axis for axis, size in enumerate(base))]
    if any(s > 1 for s in kernel.stride):
        sizes.append(tuple(size + 2 * len(base) - 1 - axis for axis, size in enumerate(base)))
    shapes = [(1 if spatial else 3, kernel.channels[0], *spatial) for spatial in sizes]
    found = region_difference(region.nodes, (node,), region.source, region.sink, shapes)
    if not found.relative <= TOLERANCE:
        raise NotFusable(f"the proof failed: both forms differ by {found.max_abs:.3g} ({found.relative:.3g} relative)")
    return found


def _described(fused: Fused) -> Fusion:
    node = fused.node
    return Fusion(
        nodes=node.replaces,
        source=fused.region.source,
        node=node.id,
        op=" ".join([node.op.name, *(f"{key}={value}" for key, value in ops.attributes(node.op).items())]),
        weight=node.params[0].shape,
        shape=type_text(node.type),
        error=fused.error,
    )
