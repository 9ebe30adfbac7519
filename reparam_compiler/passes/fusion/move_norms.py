"""A norm moves past what averages or moves its elements, into the conv or linear layer that reads them (a head, mostly).

    W mean(a x + b) + c  =  (W a) mean(x) + (c + W b)          a, b: a number for each channel

This holds for whatever gives averages or single elements of each channel: a mean over positions, an average pool that counts no
padding, a reshape, a permutation, a slice. It does not for a sum, a largest element or padding, nor where another op reads what
comes between. Where the channels end up is found by running these ops on numbers, at every size that the model may have.
The norm becomes an `Identity` under its own id, and all that stands between stays as it is.
"""

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.core.kernel import Bias, Ints, NotFusable
from reparam_compiler.cost.model import work
from reparam_compiler.errors import ReparamError
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.interpreter.evaluate import evaluate_node, one_thread
from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import data_independent_nodes, dead_nodes
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.printer import type_text
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.fuse_branches import DEFAULTS, Fusion, Options, PassResult, check_range, op_text
from reparam_compiler.passes.fusion.linear_rules import batch_norm
from reparam_compiler.passes.fusion.proof import TOLERANCE
from reparam_compiler.vocabulary.dtypes import FLOATING

_SIZES = ((7, 9, 8), (14, 12, 15))
"""Sizes that are tried where the model has no fixed ones."""


@dataclass(frozen=True, slots=True)
class _Reach:
    """A norm, what stands between it and its layers, in order, and these layers."""

    norm: Node
    between: tuple[Node, ...]
    layers: tuple[Node, ...]


def move_norms(graph: Graph, options: Options = DEFAULTS) -> PassResult:
    """Moves every norm that can be moved into the layers after it; those that stay have their reasons from `fold_bn`."""
    independent = data_independent_nodes(graph)
    dead = dead_nodes(graph, independent)
    fusions: list[Fusion] = []
    for node in graph:
        usable = isinstance(node.op, ops.BatchNorm) and not node.op.training and isinstance(node.operand("var"), Param)
        if usable and node.has_constant_params and node.id not in dead:
            with suppress(NotFusable), one_thread():
                graph, moved = _moved(graph, _reach(graph, graph[node.id], independent, dead))
                fusions += moved
    return PassResult(graph, tuple(fusions))


def _reach(graph: Graph, norm: Node, independent: Set[NodeId], dead: Set[NodeId]) -> _Reach:
    """Follows a norm to the layers that read it; raises NotFusable where something else does."""
    reached, between, layers, sizes = {norm.id}, list[Node](), list[Node](), set[NodeId]()
    for node in graph:
        if node.id in dead or (reached | sizes).isdisjoint(node.sources):
            continue
        computed = [source for source in node.sources if source not in independent]
        if node.id in independent:
            sizes.add(node.id)
            between.append(node)
        elif isinstance(node.op, ops.Linear | ops.Conv) and node.sources == node.inputs[:1]:
            layers.append(node)
        elif len(computed) == 1 and computed[0] in reached and _keeps_averages(node):
            between.append(node)
            reached.add(node.id)
        elif not reached.isdisjoint(node.sources):
            raise NotFusable(f"{node.id} ({node.op.name}) does not give averages of what it reads")
    if not layers or not reached.isdisjoint(graph.outputs):
        raise NotFusable("what it gives is read by no layer, or is an output of the model")
    known = {norm.id, *(node.id for node in between)}
    if any(source not in known for node in between for source in node.sources):
        raise NotFusable("a size of another value is asked for")
    return _Reach(norm, tuple(between), tuple(layers))


def _keeps_averages(node: Node) -> bool:
    """True where every element that a node gives is an element of what it reads, or an average of such."""
    match node.op:
        case ops.AvgPool(size, _, padding, _, counts, divisor):
            return divisor in (None, prod(size)) and not (counts and any(map(any, padding)))
        case ops.Reduce(function):
            return function == "mean" and node.operand("mask") is None
        case ops.Opaque(facts=facts):
            return ops.Facts.LINEAR in facts  # the proof is whether it gives averages
        case op:
            return isinstance(op, ops.AdaptiveAvgPool) or (op.moves_data and not op.merges)


def _moved(graph: Graph, reach: _Reach) -> tuple[Graph, list[Fusion]]:
    """The graph without the norm, and what became of its layers; raises NotFusable where that is not exact."""
    norm, source = reach.norm, reach.norm.sources[0]
    dtypes = {param.dtype for node in (norm, *reach.layers) for param in node.params}
    dtypes |= {known.dtype for node in (norm, *reach.layers, graph[source]) if (known := node.type) is not None}
    channels = norm.params[-1].count
    if len(dtypes) != 1 or dtypes.isdisjoint(FLOATING):
        raise NotFusable(f"dtypes {sorted(dtypes)} meet")
    affine = batch_norm(norm, SourceLayout(channels, 0))
    trial = _Trial(reach, _shapes(graph, reach, channels))
    without = replace(norm, op=ops.Identity(), inputs=(source,), replaces=norm.replaces or (norm.id,))
    layers = {
        layer.id: _taken_in(layer, affine.weight.reshape(-1), affine.bias, trial.channels_of(layer)) for layer in reach.layers
    }
    error, counts = trial.proven(without, layers), trial.counts
    fusions = [_described(norm, layer, layers[layer.id], error, counts) for layer in reach.layers]
    return graph.rewrite({norm.id: without, **layers}), fusions


def _shapes(graph: Graph, reach: _Reach, channels: int) -> list[Ints]:
    """Shapes of what the norm reads that the model may have: its own, or several where some size is open."""
    known = graph[reach.norm.sources[0]].type
    shape = None if known is None else known.shape
    if shape is not None and graph.sizes_are_fixed and (fixed := known.static_shape if known else None):
        return [fixed]
    if shape is None:
        ranks = {rank for node in reach.between if (rank := node.op.spatial_rank) is not None}
        ranks |= _ranks_above(graph, reach.norm.sources[0])
        if len(ranks) != 1:
            raise NotFusable("how many axes it reads is not known")
        shape = (None, channels, *[None] * ranks.pop())
    opened = [(2 + place, channels, *sizes[: len(shape) - 2]) for place, sizes in enumerate(_SIZES)]
    recorded = tuple(n if isinstance(n, int) else other for n, other in zip(shape, opened[0], strict=True))
    flat = [layer.params[0].shape[1] // channels for layer in reach.layers if isinstance(layer.op, ops.Linear)]
    flat_shapes = [(2, channels, n, *[1] * (len(shape) - 3)) for n in flat if n and len(shape) > 2]
    if graph.sizes_are_fixed:
        return [tuple(n if isinstance(n, int) else m for n, m in zip(shape, other, strict=True)) for other in opened]
    return list(dict.fromkeys([recorded, *opened, *flat_shapes]))


def _ranks_above(graph: Graph, node_id: NodeId) -> set[int]:
    """Over how many spatial axes the op slides that made a value, or the one from which it was computed element by element."""
    node = graph[node_id]
    while node.op.spatial_rank is None and node.sources and (node.op.alike_everywhere or isinstance(node.op, ops.Elementwise)):
        node = graph[node.sources[0]]
    return set() if node.op.spatial_rank is None else {node.op.spatial_rank}


class _Trial:
    """What stands between a norm and its layers, run on sources of several shapes: those that the model runs on."""

    def __init__(self, reach: _Reach, shapes: Sequence[Ints]) -> None:
        self.reach, self.counts = reach, dict[NodeId, int]()
        self._sources: list[Tensor] = []
        for shape in shapes:
            x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(prod(shape)))
            with suppress(ReparamError):
                values = self._run(x, reach.norm, {})
                self.counts = self.counts or {key: value.numel() for key, value in values.items() if isinstance(value, Tensor)}
                self._sources.append(x)
        if not self._sources:
            raise NotFusable("what reads it does not run on its own")

    def _run(self, x: Tensor, norm: Node, layers: Mapping[NodeId, Node]) -> dict[NodeId, Any]:
        values: dict[NodeId, Any] = {self.reach.norm.sources[0]: x}
        with torch.no_grad():
            for node in (norm, *self.reach.between, *(layers.get(layer.id, layer) for layer in self.reach.layers)):
                values[node.id] = evaluate_node(node, values)
        return values

    def channels_of(self, layer: Node) -> np.ndarray:
        """Which channel of the norm each channel is that a layer reads; raises NotFusable where one is several."""
        count = self.reach.norm.params[-1].count
        numbers = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        order, found = numbers.argsort(), list[np.ndarray]()
        for x in self._sources:
            marked = numbers.reshape(-1, *[1] * (x.ndim - 2)).expand(x.shape)
            read = self._run(marked, replace(self.reach.norm, op=ops.Identity(), inputs=self.reach.norm.inputs[:1]), {})
            value = read[layer.sources[0]].movedim(-1 if isinstance(layer.op, ops.Linear) else 1, 0).flatten(1)
            nearest = order[torch.bucketize(value[:, 0].contiguous(), (numbers[order][1:] + numbers[order][:-1]) / 2)]
            if float((value - numbers[nearest][:, None]).abs().max()) > TOLERANCE:
                raise NotFusable(f"{layer.id} reads several channels at one place")
            found.append(nearest.numpy())
        if any(not np.array_equal(found[0], other) for other in found):
            raise NotFusable(f"which channels {layer.id} reads depends on the size")
        return found[0]

    def proven(self, norm: Node, layers: Mapping[NodeId, Node]) -> Difference:
        """The largest difference of both forms, on normal random sources; raises NotFusable where it is more than rounding."""
        worst = EXACT
        for x in self._sources:
            expected, found = self._run(x, self.reach.norm, {}), self._run(x, norm, layers)
            worst = max(worst, *(difference(expected[key], found[key]) for key in layers), key=lambda d: d.relative)
        if not worst.relative <= TOLERANCE:
            raise NotFusable(f"the proof failed: both forms differ by {worst.max_abs:.3g} ({worst.relative:.3g} relative)")
        return worst


def _taken_in(layer: Node, factor: Bias, shift: Bias, channels: np.ndarray) -> Node:
    """A layer that does to what it reads what the norm did before; raises NotFusable where it pads what is shifted."""
    weight, bias = layer.param("weight"), layer.param("bias")
    if weight is None:
        raise NotFusable(f"{layer.id} has no weight")
    zeros = (
        isinstance(layer.op, ops.Conv) and layer.op.mode == "zeros" and any(n > 0 for pair in layer.op.padding for n in pair)
    )
    if zeros and shift[channels].any():
        raise NotFusable(f"{layer.id} pads with another value than the norm gives")
    taps, blocks = weight.float64(), layer.op.blocks if isinstance(layer.op, ops.Weighted) else 1
    groups = taps.reshape(blocks, len(taps) // blocks, taps.shape[1], -1)
    each = channels.reshape(blocks, 1, taps.shape[1], 1)
    scaled = (groups * factor[each]).reshape(taps.shape)
    shifted = (groups * shift[each]).sum((2, 3)).reshape(-1) + (0.0 if bias is None else bias.float64())
    check_range(weight, scaled)
    check_range(weight, shifted)
    new_weight, new_bias = (Param.of(a, role=r, dtype=weight.dtype) for a, r in ((scaled, "weight"), (shifted, "bias")))
    return replace(layer.with_operands({"weight": new_weight, "bias": new_bias}), replaces=layer.replaces or (layer.id,))


def _described(norm: Node, before: Node, after: Node, error: Difference, counts: Mapping[NodeId, int]) -> Fusion:
    read, written = counts[before.sources[0]], counts[before.id]
    own = work(norm.op, norm.params, counts[norm.id], counts[norm.id])
    weight = after.params[0]
    return Fusion(
        nodes=(norm.id, *(before.replaces or (before.id,))),
        source=norm.sources[0],
        node=after.id,
        op=op_text(after.op),
        weight=weight.shape,
        weight_range=(float(weight.load().min()), float(weight.load().max())),
        shape=type_text(after.type),
        error=error,
        before=own + work(before.op, before.params, read, written),
        after=work(after.op, after.params, read, written),
    )
