"""Which operator a region is, by abstract interpretation: each node stands for the `ConvKernel` from the source to it.

There is one rule a node (`passes/fusion/registry.py`). Where there is an affine op without a rule the region is probed instead
(`passes/fusion/probe.py`).
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

import numpy as np

from reparam_compiler.advice import option
from reparam_compiler.core.affine import identity
from reparam_compiler.core.channels import finest
from reparam_compiler.core.drawn import is_drawn
from reparam_compiler.core.kernel import ConvKernel, NotFusable, compose, composed_weights
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.fusion import probe
from reparam_compiler.passes.fusion.abstract_values import (
    AbstractValue,
    DataIndependent,
    NoRule,
    Operand,
    Part,
    SourceLayout,
    Value,
)
from reparam_compiler.passes.fusion.merge_rules import MergeRule, of_parts, output_sizes
from reparam_compiler.passes.fusion.regions import Region
from reparam_compiler.passes.fusion.registry import LinearRule, linear_rule, merge_rule
from reparam_compiler.passes.fusion.source_layout import channels_second, source_layout
from reparam_compiler.passes.fusion.spelled_padding import with_pads

_WIDER, _SMALL = 4, 2**16
"""How many times the weights of a region one op may have, or how many at all, to be worth computing what it costs."""


@dataclass(frozen=True, slots=True)
class Interpretation:
    """The operator of a region.

    layout: what its source gives. kernels: the operators from there to each of its nodes, without the weights of those inside.
    varies_at: where the bias first came to depend on the position, in words; empty where it never did.
    must_be_proven: it was measured rather than derived.
    """

    kernel: ConvKernel
    layout: SourceLayout
    kernels: Mapping[NodeId, ConvKernel]
    varies_at: str = ""
    must_be_proven: bool = False


def interpret(
    graph: Graph,
    region: Region,
    data_independent: Set[NodeId] = frozenset(),
    *,
    whatever_size: bool = False,
    identify: Callable[..., ConvKernel] = probe.identify,
) -> Interpretation:
    """Carries a kernel from the source to the sink; raises NotFusable with the node and the reason where there is none.

    identify: probes what there is no rule for.

    It is also refused where convs in sequence would have many times the weights of the region, unless `whatever_size` is set:
    a depthwise conv and a pointwise one as one dense conv pay nowhere, and take long to compute.
    """
    most = None if whatever_size else max(_WIDER * sum(n.params[0].count for n in region.kernels), _SMALL)
    try:
        return _by_rules(graph, region, data_independent, most)
    except NoRule as refusal:
        layout = channels_second(graph, region)
        try:
            kernel = identify(
                region.nodes,
                region.source,
                layout.channels,
                layout.rank,
                graph[region.source].type,
                fixed=graph.sizes_are_fixed,
                rounding=region.rounding,
                most=most,
            )
        except NotFusable as reason:
            raise NotFusable(f"{refusal}; probed: {reason}") from reason
        return Interpretation(kernel, layout, {region.sink: kernel}, must_be_proven=True)


def _by_rules(graph: Graph, region: Region, data_independent: Set[NodeId], most: int | None) -> Interpretation:
    """What rules say of a region, or of the same with its padding as one op; raises NoRule where there is no rule for an op."""
    layout = source_layout(graph, region)
    if not is_drawn((layout.channels,)):
        raise NotFusable(f"{region.source} has {layout.channels} channels, which are too many to be followed")
    try:
        return _Interpreter(graph, region, data_independent, layout, most).run()
    except NotFusable:
        padded = with_pads(graph, region, data_independent, layout)
        if padded is None:
            raise
        return _Interpreter(graph, padded, data_independent, layout, most).run()


class _Interpreter:
    """Interprets one region by rules.

    most: how many weights a composed kernel may have; None for any number.
    """

    def __init__(
        self, graph: Graph, region: Region, data_independent: Set[NodeId], layout: SourceLayout, most: int | None
    ) -> None:
        self._graph, self._region, self._data_independent = graph, region, data_independent
        self._layout, self._most = layout, most
        self._values: dict[NodeId, AbstractValue] = {region.source: identity(layout.channels, layout.rank)}

    def run(self) -> Interpretation:
        """The operator at the sink; raises NotFusable, or NoRule where probing may help."""
        region = self._region
        last_reader = {source: node.id for node in region.nodes for source in node.sources}
        for node in region.nodes:
            try:
                self._check_rank(node)
                self._values[node.id] = self._value(node)
            except NotFusable as refusal:
                text = str(refusal)
                raise type(refusal)(text if text.startswith(f"{node.id}:") else f"{text} at {node.id}") from refusal
            for source in node.sources:
                value = self._values[source]
                if last_reader[source] == node.id and isinstance(value, ConvKernel):
                    self._values[source] = _outline(value)  # each weight in float64 counts
        sink = self._values[region.sink]
        kernel = sink.whole if isinstance(sink, Part) else sink
        if not isinstance(kernel, ConvKernel):
            raise NotFusable(f"{region.sink} gives more than one value")
        if self._layout.last and any(node.op.reshapes for node in region.nodes):
            self._check_positions()
        kernel = _without_slack(kernel)
        if any(isinstance(node.op, ops.AlongAxis) for node in region.nodes):
            kernel = finest(kernel)
        kernels = {node.id: own for node in region.nodes if (own := _kernel_of(self._values[node.id])) is not None}
        varying = next((node_id for node_id, own in kernels.items() if own.bias_varies), None)
        return Interpretation(kernel, self._layout, kernels, self._why_varying(varying) if varying is not None else "")

    def _why_varying(self, node_id: NodeId) -> str:
        """Why what is added is not the same everywhere from a node on."""
        node = next(node for node in self._region.nodes if node.id == node_id)
        if isinstance(node.op, ops.Pad) and node.sources == (self._region.source,):
            return f"{node_id} pads with {node.op.value:g}, and a conv with zeros"
        return f"pads over an inner bias with another value than that bias at {node_id}"

    def _value(self, node: Node) -> AbstractValue:
        if node.id in self._data_independent:
            return DataIndependent(None if node.type is None else node.type.shape)
        layout = self._layout
        if layout.last and node.type is not None:  # reshapes may have changed how many axes there are
            layout = replace(layout, axes=len(node.type.shape))
        if rule := linear_rule(node):
            return self._by_linear_rule(node, rule, layout)
        if merge := merge_rule(node):
            return self._by_merge_rule(node, merge, layout)
        raise NoRule(f"{node.op.name} has no rule")

    def _by_linear_rule(self, node: Node, rule: LinearRule, layout: SourceLayout) -> Value:
        """Composes the operator of an op with the kernel of its one computed input."""
        computed = [source for source in node.sources if not isinstance(self._values[source], DataIndependent)]
        if len(computed) != 1:
            raise NotFusable(f"{node.op.name} of {len(node.sources)} computed values")
        if computed[0] == self._region.source:
            return rule(node, layout)
        inner = self._values[computed[0]]
        if isinstance(inner, Part):
            return replace(inner, kernel=self._composed(node, rule, inner.kernel, layout))
        if not isinstance(inner, ConvKernel):
            raise NotFusable(f"{node.op.name} of stacked values")
        return self._composed(node, rule, inner, layout)

    def _composed(self, node: Node, rule: LinearRule, inner: ConvKernel, layout: SourceLayout) -> ConvKernel:
        sizes = output_sizes(inner, layout.sizes)
        outer = rule(node, replace(layout, channels=inner.channels[1], rank=inner.rank, sizes=sizes))
        if self._most is not None and (weights := composed_weights(outer, inner)) > self._most:
            always = option("policy", "always")
            raise NotFusable(f"one conv would have {weights} weights, and be slower; {always} fuses it all the same")
        return compose(outer, inner)

    def _by_merge_rule(self, node: Node, rule: MergeRule, layout: SourceLayout) -> AbstractValue:
        """The operator of an op that may read several values."""
        operands: list[Operand] = [
            operand if isinstance(operand, Param) else self._values[operand] for operand in node.inputs if operand is not None
        ]
        if any(isinstance(operand, Part) for operand in operands):
            return of_parts(rule, node, operands, layout)
        return rule(node, operands, layout)

    def _check_rank(self, node: Node) -> None:
        """Raises NotFusable for a constant with more axes than the values that it meets: the result would have more too."""
        ranks = [len(known.shape) for source in node.sources if (known := self._graph[source].type) is not None]
        if node.op.arithmetic and ranks:
            for param in node.params:
                if len(param.shape) > max(ranks):
                    raise NotFusable(f"a constant of {len(param.shape)} axes meets a value of {max(ranks)}")

    def _check_positions(self) -> None:
        """Raises NoRule where the region may change another axis than the last one."""
        graph, region = self._graph, self._region
        if not graph.sizes_are_fixed and any(isinstance(node.op, ops.Reshape) for node in region.nodes):
            raise NoRule("a reshape to sizes that may be others in another run")
        before, after = graph[region.source].type, graph[region.sink].type
        if before is None or after is None or before.shape[:-1] != after.shape[:-1] or None in before.shape[:-1]:
            raise NoRule(f"reshapes that leave other axes at {region.sink} than at {region.source}")


def _outline(kernel: ConvKernel) -> ConvKernel:
    """The same sizes and bias, and weights that are all zero and take no memory."""
    return replace(kernel, weight=np.broadcast_to(0.0, kernel.weight.shape))


def _without_slack(kernel: ConvKernel) -> ConvKernel:
    """The same operator on the sizes that it is for, padded alike at both ends where that can be."""
    ends = zip(kernel.padding, kernel.slack, strict=True)
    padding = tuple((low, low if high - slack <= low <= high else high - slack) for (low, high), slack in ends)
    return replace(kernel, padding=padding, slack=())


def _kernel_of(value: AbstractValue) -> ConvKernel | None:
    """The kernel of a value that has one of its own."""
    if isinstance(value, Part):
        return value.kernel
    return value if isinstance(value, ConvKernel) else None
