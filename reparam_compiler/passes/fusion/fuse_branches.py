"""A linear region becomes one conv: parallel branches, and convs in sequence where that costs less (Eq. 1, 3, 4).

The planner says which regions are rewritten (`planner.py`). A region can be rewritten where its interpretation is exact and its
proof holds: both forms are evaluated in float64. A refusal names the first node that stands in the way.
"""

import logging
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from reparam_compiler.core.kernel import ConvKernel, NotFusable, regroup
from reparam_compiler.cost.model import USUAL, CostModel, Work
from reparam_compiler.interpreter.difference import Difference
from reparam_compiler.interpreter.evaluate import one_thread
from reparam_compiler.ir import ops
from reparam_compiler.ir.attributes import attributes
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.printer import type_text
from reparam_compiler.passes.choices import Policy
from reparam_compiler.passes.fusion.interpretation import Interpretation, interpret
from reparam_compiler.passes.fusion.planner import Built, Candidate, Planner
from reparam_compiler.passes.fusion.probe import Prober
from reparam_compiler.passes.fusion.proof import TOLERANCE, Trial, acts_on_positions, measured_bias, prove
from reparam_compiler.passes.fusion.regions import Region, Regions, is_merge
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

logger = logging.getLogger(__name__)
_BITS = {word: row.bits for word, row in FLOATING.items()}
_NARROW = DTYPES.keys() - FLOATING.keys()
"""Dtypes of sizes and masks, which stand inside regions and widen nothing."""
_LOST = 4
"""How many units in the last place, of all weights together, rounding may take: an underflow takes more."""
KEPT = 2**26
"""Bytes of folded weights, in float64, that are kept; those beyond are folded anew whenever they are read."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to fuse.

    verify: prove every region. policy, cost_model: see `planner.Planner`.
    keep_bn: leave a batch norm that ends a region, for quantization-aware training.
    """

    verify: bool = True
    policy: Policy = "cost"
    cost_model: CostModel = USUAL
    keep_bn: bool = False


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Fusion:
    """One region that became one op.

    nodes: the ids of what was replaced, sources first. node: the id of the new op (that of the last one replaced).
    op: the new op as the printer shows it. weight: its shape. weight_range: its least and largest element.
    shape: the type of its output, where it is known.
    error: the measured difference of both forms in float64; None where it was not asked for.
    before, after: what the region and the op do in one run (sizes that are not known count as nominal ones).
    """

    nodes: tuple[NodeId, ...]
    source: NodeId
    node: NodeId
    op: str
    weight: tuple[int, ...]
    weight_range: tuple[float, float]
    shape: str
    error: Difference | None
    before: Work
    after: Work


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


def fuse_branches(graph: Graph, options: Options = DEFAULTS) -> PassResult:
    """Rewrites the regions that merge branches or compose convs, where that pays."""
    return rewrite_regions(
        graph,
        wants=lambda region: bool(region.kernels) and (region.merges or len(region.kernels) > 1),
        reports=is_merge,
        options=options,
    )


def rewrite_regions(
    graph: Graph, *, wants: Callable[[Region], bool], reports: Callable[[Node], bool], options: Options
) -> PassResult:
    """Rewrites the best of the regions that `wants` takes; refusals are kept for the nodes that `reports` takes."""
    regions = Regions(graph)
    builder = _Builder(graph, regions.data_independent, options)
    planner = Planner(
        graph,
        regions,
        wants=lambda region: wants(region) and not (options.keep_bn and _ends_in_norm(region)),
        build=builder.build,
        policy=options.policy,
        cost_model=options.cost_model,
    )
    with one_thread():
        chosen = planner.plan(tuple(graph)).chosen
    gone = {node.id for candidate in chosen for node in candidate.region.nodes}
    refusals = tuple(
        Refusal(node.id, node.op.name, planner.reasons.get(node.id, ""))
        for node in graph
        if node.id not in gone and node.id not in regions.dead and reports(node)
    )
    ordered = sorted(chosen, key=lambda candidate: graph.position[candidate.node.id])
    fusions = tuple(_described(candidate, builder.ranges[candidate.node.id]) for candidate in ordered)
    replacements = {candidate.node.id: candidate.node for candidate in ordered}
    return PassResult(graph.rewrite(replacements, regions.dead), fusions, refusals)


def _ends_in_norm(region: Region) -> bool:
    """True where a batch norm follows the last kernel or merge of a region, and only a scale, say, comes after it."""
    tail = takewhile(lambda node: not isinstance(node.op, ops.Weighted) and not is_merge(node), reversed(region.nodes))
    return any(isinstance(node.op, ops.BatchNorm) for node in tail)


class _Builder:
    """Makes the op of a region."""

    def __init__(self, graph: Graph, data_independent: Set[NodeId], options: Options) -> None:
        self.graph, self.data_independent, self.options = graph, data_independent, options
        self.ranges: dict[NodeId, tuple[float, float]] = {}
        self._prober, self._kept = Prober(), 0

    def build(self, region: Region) -> Built:
        """The conv, transposed conv or linear that computes a region, under the id of its sink; raises NotFusable."""
        interpretation = self._understand(region)
        node = self._node(region, interpretation)
        error = None
        if self.options.verify or interpretation.must_be_proven or acts_on_positions(region.nodes):
            error = prove(
                self._trial(region, interpretation),
                node,
                max(region.rounding, TOLERANCE) if interpretation.must_be_proven else TOLERANCE,
            )
        weight = node.params[0]
        array = weight.load()
        self.ranges[node.id] = float(array.min()), float(array.max())
        self._kept += array.nbytes
        if self._kept > KEPT:
            folds_anew = Param(weight.role, weight.dtype, weight.shape, lambda: self._weight(region))
            node = node.with_operands({"weight": folds_anew})
        logger.debug("%s: %d nodes can be one", region.sink, len(region.nodes))
        return Built(node, interpretation, error)

    def _understand(self, region: Region) -> Interpretation:
        _check_promotion(self.graph, region)
        whatever_size = self.options.policy == "always"
        interpretation = interpret(
            self.graph, region, self.data_independent, whatever_size=whatever_size, identify=self._prober.identify
        )
        if not interpretation.kernel.weight.size:
            raise NotFusable("nothing is left")
        if not interpretation.kernel.bias_varies:
            return interpretation
        bias = measured_bias(self._trial(region, interpretation), max(region.rounding, TOLERANCE))
        if bias is None:
            raise NotFusable(interpretation.varies_at)
        return replace(interpretation, kernel=replace(interpretation.kernel, bias=bias), must_be_proven=True)

    def _trial(self, region: Region, interpretation: Interpretation) -> Trial:
        known, fixed = self.graph[region.source].type, self.graph.sizes_are_fixed
        return Trial(region.nodes, region.source, interpretation.kernel, interpretation.layout, known, fixed=fixed)

    def _weight(self, region: Region) -> np.ndarray:
        return self._node(region, self._understand(region)).params[0].load()

    def _node(self, region: Region, interpretation: Interpretation) -> Node:
        sink, first = self.graph[region.sink], region.kernels[0].params[0]
        op, array = _op(interpretation, region)
        _check_padding(self.graph, region, op)
        weight = Param.of(array, role="weight", dtype=first.dtype)
        check_range(weight, array)
        check_range(weight, interpretation.kernel.bias)
        bias = Param.of(interpretation.kernel.bias, role="bias", dtype=first.dtype)
        has_bias = bool(interpretation.kernel.bias.any()) or any(_may_have_bias(node) for node in region.nodes)
        ids = tuple(replaced for node in region.nodes for replaced in (node.replaces or (node.id,)))
        return replace(sink, op=op, inputs=(region.source, weight, bias if has_bias else None), replaces=ids)


def _op(interpretation: Interpretation, region: Region) -> tuple[ops.Op, np.ndarray]:
    """The op that computes a region, and its weight as that op has it."""
    kernel = interpretation.kernel
    if interpretation.layout.last:
        return ops.Linear(), regroup(kernel, 1).weight
    if kernel.upsamples:
        return _transposed(kernel)
    grows = any(isinstance(node.op, ops.ConvTranspose) for node in region.kernels) and any(n > 0 for n in kernel.margin)
    if grows and kernel.mode == "zeros":
        with suppress(NotFusable):  # as a conv it would multiply by its padding, which is most of what it reads
            return _transposed(kernel)
    return ops.Conv(kernel.stride, kernel.padding, kernel.dilation, kernel.groups, kernel.mode), kernel.weight


def _transposed(kernel: ConvKernel) -> tuple[ops.Op, np.ndarray]:
    """The transposed conv of a kernel that upsamples; inverts `linear_rules.conv_transpose`. Raises NotFusable for others."""
    if any(s != 1 for s in kernel.stride):
        raise NotFusable("upsampling and a stride are not one op")
    cuts, extras = [], []
    for (low, high), span, step, d in zip(kernel.padding, kernel.span, kernel.upsampling, kernel.dilation, strict=True):
        cut = span - low
        extra = high - (span - cut)
        if cut < 0 or not 0 <= extra < max(step, d):
            raise NotFusable(f"a transposed conv that cuts {cut} off one end and {span - high} off the other")
        cuts.append((cut, cut))
        extras.append(extra)
    blocks = kernel.weight.reshape(kernel.groups, -1, *kernel.weight.shape[1:]).swapaxes(1, 2)
    flipped = np.flip(blocks, axis=tuple(range(3, blocks.ndim))).reshape(-1, blocks.shape[2], *kernel.size)
    op = ops.ConvTranspose(kernel.upsampling, tuple(cuts), tuple(extras), kernel.dilation, kernel.groups)
    return op, np.ascontiguousarray(flipped)


def _check_padding(graph: Graph, region: Region, op: ops.Op) -> None:
    """Raises NotFusable for a pad and a conv that are two ops in the model's own terms all the same."""
    gains = any(isinstance(node.op, ops.BatchNorm) or node.op.arithmetic for node in region.nodes) or len(region.kernels) > 1
    if gains or not isinstance(op, ops.Conv) or not any(isinstance(node.op, ops.Pad) for node in region.nodes):
        return
    if lacks := graph.conv_padding.lacks(op):
        raise NotFusable(f"a conv of this kind of model {lacks}")


def _check_promotion(graph: Graph, region: Region) -> None:
    """Raises NotFusable where a wider dtype than the weights' enters the region: one conv would give a narrower result."""
    weight = region.kernels[0].params[0]
    if weight.dtype not in _BITS:
        raise NotFusable(f"the weights are {weight.dtype}; expected {', '.join(_BITS)}")
    source_type = graph[region.source].type
    if source_type is not None and source_type.dtype != weight.dtype:
        raise NotFusable(f"{region.source} is {source_type.dtype}, and the weights are {weight.dtype}")
    for node in region.nodes:
        if node.type is not None and node.type.dtype not in _NARROW and _BITS.get(node.type.dtype, 0) != _BITS[weight.dtype]:
            raise NotFusable(f"{node.id} is {node.type.dtype}, and the weights are {weight.dtype}")
        for param in node.params if node.op.arithmetic else ():
            wider = param.shape and _BITS.get(param.dtype, 0) > _BITS[weight.dtype]
            if wider or param.dtype.startswith("complex"):
                raise NotFusable(f"{node.id}: a constant of {param.dtype} makes {param.dtype} of {weight.dtype}")


def check_range(weight: Param, array: np.ndarray) -> None:
    """Raises NotFusable where rounding the weights to their dtype would lose them: they are too large or too small."""
    stored = FLOATING[weight.dtype]
    (smallest, most), largest = stored.span, float(max(array.max(initial=0.0), -array.min(initial=0.0)))
    if largest <= most / 2 and smallest * array.size**0.5 <= stored.eps * largest:
        return  # each loses at most half a unit and half of `smallest`, all of them together less than `_LOST` units
    if not np.isfinite(array).all():
        raise NotFusable("the weights of one conv would not be finite")
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(stored.numpy).astype(np.float64)
    size = float(np.linalg.norm(array))
    if not np.isfinite(rounded).all() or float(np.linalg.norm(rounded - array)) > _LOST * stored.eps * size:
        span = f"from {array.min():.3g} to {array.max():.3g}"
        raise NotFusable(f"the weights of one conv, {span}, are too large or too small for {weight.dtype}")


def _may_have_bias(node: Node) -> bool:
    return isinstance(node.op, ops.BatchNorm) or (isinstance(node.op, ops.Weighted) and len(node.params) > 1)


def op_text(op: ops.Op) -> str:
    """An op as the printer shows it."""
    return " ".join([op.name, *(f"{key}={value}" for key, value in attributes(op).items())])


def _described(candidate: Candidate, weight_range: tuple[float, float]) -> Fusion:
    node = candidate.node
    return Fusion(
        nodes=node.replaces,
        source=candidate.region.source,
        node=node.id,
        op=op_text(node.op),
        weight=node.params[0].shape,
        weight_range=weight_range,
        shape=type_text(node.type),
        error=candidate.error,
        before=candidate.before,
        after=candidate.after,
    )
