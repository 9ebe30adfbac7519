"""Removes channels: the groups that a keep mask drops leave every parameter and every width, and nothing else changes.

Two forms of the pruned model are made from the same mask:

    masked    the graph with the input slices of the removed channels zeroed in every weight that reads them, and with masks for
              what works across channels without weights (norms, products, sums): it counts those that stay
    sliced    the graph without those channels: parameters cut, and what states a width (groups, reshapes, splits, types …)

Their outputs are equal: a removed channel reaches the outputs only through such a slice. That is checked in float64 before
any repair. (Zeroing a channel's own filter is not removal: batch norm and sigmoid turn zero into something else.)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.core.slicing import blank, bounds, piece_sizes, take
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError, VerificationError
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.interpreter.size_expressions import numbers_of, stale_numbers
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType, with_inputs
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Keep
from reparam_compiler.passes.pruning.coupling.labels import RUN_AS_OPAQUE, STATE_SIZES, Labels, coupling_model, is_depthwise
from reparam_compiler.vocabulary.dtypes import FLOATING

Cut = Callable[[np.ndarray, Mapping[int, Keep]], np.ndarray]


def masked(graph: Graph, groups: ChannelGroups, keep: Keep) -> Graph:
    """The graph of full width in which nothing reads a removed channel: what `sliced` must equal.

    Weights that read one are zeroed there; an op that works across channels without weights gets a mask of those that count.
    """
    _check_keep(groups, keep)
    blanked = _Params(blank)
    replacements: dict[NodeId, Node] = {}
    for node in graph:
        op, seen = coupling_model(node)
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        place, axis = (op.mask, None) if op.mask is not None else (1, 0 if isinstance(op, ops.ConvTranspose) else 1)
        along = groups.slots.get((node.id, place), {})
        read = next(iter(along), None) if axis is None else axis
        if read is None or read not in along or groups.kept(keep, along[read]).all():
            continue
        kept = groups.kept(keep, along[read])
        if op.mask is not None:
            replacements[node.id] = replace(seen, op=op, inputs=_with_mask(seen, op.mask, _mask(graph, seen, read, kept)))
        elif _mixes(op, along) and isinstance(weight, Param):
            replacements[node.id] = with_inputs(node, {1: blanked.cut(weight, {read: kept})})
    return graph.rewrite(replacements)


def _mixes(op: ops.Op, along: Mapping[int, Labels]) -> bool:
    """True for an op whose weight reads several channels; a depthwise one passes each on by itself."""
    return isinstance(op, ops.Conv | ops.Linear) or (isinstance(op, ops.ConvTranspose) and 1 in along)


def _mask(graph: Graph, node: Node, axis: int, kept: Keep) -> Param:
    """A 1 for each position that counts along an axis of what a node reads first."""
    first = node.inputs[0]
    known = first if isinstance(first, Param) else graph[first or ""].type
    rank = axis + 1 if known is None else len(known.shape)
    return Param.of(kept.astype(np.float64).reshape([-1 if a == axis else 1 for a in range(rank)]), role="const", dtype="f64")


def _with_mask(node: Node, place: int, mask: Param) -> tuple[Operand, ...]:
    absent: tuple[Operand, ...] = (None,) * (place - len(node.inputs))
    return (*node.inputs, *absent, mask)


def sliced(graph: Graph, groups: ChannelGroups, keep: Keep) -> Graph:
    """The graph without the removed channels.

    Parameters are cut when they are loaded, in their own dtype, and keep their origin; one that is shared stays shared.
    `graph` may be the one that `groups` was found on, or one of the same nodes with other parameters of the same shapes.
    """
    _check_keep(groups, keep)
    cut = _Params(take)
    replacements: dict[NodeId, Node] = {}
    types = {node.id: _narrowed_type(node, groups, keep) for node in graph}
    shapes = {node_id: found.shape for node_id, found in types.items() if found is not None}
    stale = stale_numbers(graph, shapes)
    for node in graph:
        inputs: dict[int, Operand] = {}
        for index, operand in enumerate(node.inputs):
            axes = groups.slots.get((node.id, index), {})
            keeps = {axis: groups.kept(keep, labels) for axis, labels in axes.items()}
            if isinstance(operand, Param) and not all(kept.all() for kept in keeps.values()):
                inputs[index] = cut.cut(operand, keeps)
        op, seen = coupling_model(node)
        narrowed = _narrowed(seen, op, groups, keep)
        if seen is node:
            new = with_inputs(node, inputs, narrowed)
        elif (isinstance(op, RUN_AS_OPAQUE) and not _repeats(seen, op, groups)) or _follows(node, types):
            new = with_inputs(node, inputs, _now_like(node.op, narrowed))
        elif inputs or narrowed != op or _is_told_otherwise(node, op, stale, types, graph):
            new = with_inputs(seen, inputs, narrowed)
        else:
            new = node
        new = replace(new, type=types[node.id])
        if inputs or new.op != node.op or new.type != node.type:
            replacements[node.id] = new
    return graph.rewrite(replacements)


def _now_like(op: ops.Op, like: ops.Op) -> ops.Op:
    return replace(op, coupling=like) if isinstance(op, ops.Opaque) and op.coupling != like else op


def _repeats(node: Node, op: ops.Op, groups: ChannelGroups) -> bool:
    """True for a number that is repeated to a width that is stated."""
    alone = isinstance(op, ops.Expand) and len(node.sources) == 1 == len(node.inputs)
    return alone and groups.value(node.sources[0]).axis is None and groups.value(node.id).axis is not None


Types = Mapping[NodeId, TensorType | None]


def _is_told_otherwise(node: Node, op: ops.Op, stale: frozenset[NodeId], types: Types, graph: Graph) -> bool:
    """True where a size that an op is told by the model comes out otherwise after the cut."""
    if not isinstance(op, STATE_SIZES) or not isinstance(node.op, ops.Opaque):
        return False
    rest = [operand for operand in node.inputs[node.op.reads :] if isinstance(operand, str)]
    return any(operand in stale or types[operand] != graph[operand].type for operand in rest)


def _follows(node: Node, types: Types) -> bool:
    """True for what takes its shape from another value, which comes out right by itself: `x.reshape_as(y)`."""
    if not isinstance(node.op, ops.Opaque) or node.op.target not in ("reshape_as", "view_as"):
        return False
    other, own = node.inputs[-1], types[node.id]
    known = types[other] if isinstance(other, str) else None
    return known is not None and own is not None and known.shape == own.shape


def verify_pruned(
    hidden: Graph, pruned: Graph, inputs: Mapping[NodeId, Tensor] | None = None, *, tolerance: float = 1e-9
) -> Difference:
    """Runs the masked and the pruned graph in float64 and compares them.

    Opaque nodes are cut out: what they read, which no pruning may change, is compared, and what they give is random, so that
    one that cannot be run outside its model hides nothing.

    Args:
        hidden: the masked graph.
        pruned: the sliced one.
        inputs: a tensor for each model input; normal random ones of the inputs' types where it is None.
        tolerance: on the largest difference over the largest value.

    Returns:
        The largest difference.

    Raises:
        VerificationError: they differ by more.
        UnsupportedModelError: the type of an input is not known.
    """
    expected_graph, found_graph = _without_opaque(hidden), _without_opaque(pruned)
    values = {node.id: _random(node, seed) for seed, node in enumerate(expected_graph) if isinstance(node.op, ops.Input)}
    values |= inputs or {}
    expected, found = evaluate(expected_graph, values), evaluate(found_graph, values)
    worst = EXACT
    for node_id in expected_graph.outputs:
        apart = difference(expected[node_id], found[node_id])
        if not apart.relative <= tolerance:
            largest = apart.max_abs / apart.relative if apart.relative else 1.0
            raise VerificationError(node_id, apart.max_abs, tolerance * largest)
        worst = max(worst, apart, key=lambda d: d.relative)
    return worst


def _without_opaque(graph: Graph) -> Graph:
    """The graph with opaque nodes, and what is taken out of them, as inputs; what they read is an output.

    Those that pruning understands stay, and so do the numbers that they are told.
    """
    numbers = set(numbers_of(graph))
    opaque = {n.id for n in graph if isinstance(n.op, ops.Opaque) and n.op.coupling is None and n.id not in numbers}
    nodes: list[Node] = []
    outputs: dict[NodeId, None] = {node_id: None for node_id in graph.outputs if node_id not in opaque}
    for node in graph:
        if node.id in numbers and not graph.users[node.id]:
            continue
        if node.id in opaque:
            outputs.update((source, None) for source in node.sources if graph[source].type and source not in opaque)
        if node.id in opaque or (isinstance(node.op, ops.TupleGet) and node.sources[0] in opaque):
            if node.type is not None:
                nodes.append(Node(node.id, ops.Input(), (), node.type))
        else:
            nodes.append(node)
    return Graph.of(nodes, outputs)


def _random(node: Node, seed: int) -> Tensor:
    if node.type is None:
        raise UnsupportedModelError(f"{node.id}: the shape of the input is not known; pass example_inputs")
    shape = [size if isinstance(size, int) else 2 for size in node.type.shape]
    if node.type.dtype in FLOATING:
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(shape, dtype=torch.bool if node.type.dtype == "bool" else torch.int64)


class _Params:
    """Cut parameters, one for each old one, however many nodes share it."""

    def __init__(self, how: Cut) -> None:
        self._how = how
        self._done: dict[tuple[Param, tuple[int, ...]], Param] = {}

    def cut(self, param: Param, keeps: Mapping[int, Keep]) -> Param:
        key = param, tuple(sorted(keeps)) if self._how is blank else ()  # read along several axes, it is blanked for each
        if key not in self._done:
            how = self._how
            shape = tuple(
                int(keeps[axis].sum()) if axis in keeps and how is take else size for axis, size in enumerate(param.shape)
            )
            self._done[key] = replace(param, shape=shape, load=lambda: how(np.asarray(param.load()), keeps))
        return self._done[key]


def _narrowed(node: Node, op: ops.Op, groups: ChannelGroups, keep: Keep) -> ops.Op:
    """The op with the widths that it states."""
    value = groups.value(node.id)
    source = groups.value(node.sources[0]) if node.sources else value
    match op:
        case ops.Conv() if isinstance(node.inputs[1], Param) and is_depthwise(op, node.inputs[1]) and source.axis == 1:
            return replace(op, groups=int(groups.kept(keep, source.labels).sum()))
        case ops.ConvTranspose() if (
            isinstance(node.inputs[1], Param) and source.axis == 1 and 1 < op.groups == len(source.labels)
        ):
            return replace(op, groups=int(groups.kept(keep, source.labels).sum()))
        case ops.GroupNorm(groups=count) if source.axis == 1 and count == len(source.labels):
            return replace(op, groups=int(groups.kept(keep, source.labels).sum()))
        case ops.Reshape(shape) | ops.Expand(shape) if value.axis is not None and shape[value.axis] > 0:
            width = int(groups.kept(keep, value.labels).sum())
            return replace(op, shape=(*shape[: value.axis], width, *shape[value.axis + 1 :]))
        case ops.LayerNorm(shape) if along := groups.slots.get((node.id, 3)):
            rank = len(shape) - len(node.type.shape) if node.type is not None else 0
            axes = {axis + rank: int(groups.kept(keep, labels).sum()) for axis, labels in along.items()}
            return replace(op, shape=tuple(axes.get(axis, size) if size > 0 else size for axis, size in enumerate(shape)))
        case ops.Attention() if along := groups.slots.get((node.id, 4)):
            return replace(op, width=int(groups.kept(keep, next(iter(along.values()))).sum()))
        case ops.Split(axis, sizes) if axis == source.axis:
            return replace(op, sizes=piece_sizes(groups.kept(keep, source.labels), sizes))
        case ops.Slice(axis, start, stop, step) if axis == source.axis:
            first, last = bounds(groups.kept(keep, source.labels), start, stop, step)
            return replace(op, start=first, stop=last)
        case _:
            return op


def _narrowed_type(node: Node, groups: ChannelGroups, keep: Keep) -> TensorType | None:
    value = groups.value(node.id)
    if node.type is None or value.axis is None:
        return node.type
    sizes = list(node.type.shape)
    sizes[value.axis] = int(groups.kept(keep, value.labels).sum())
    return replace(node.type, shape=tuple(sizes))


def _check_keep(groups: ChannelGroups, keep: Keep) -> None:
    if keep.shape != (groups.count,) or keep.dtype != np.bool_:
        raise InfeasiblePruneError(f"keep is {keep.dtype} of shape {keep.shape}; expected bool of shape ({groups.count},)")
    for family in groups.families:
        stays = keep[family.groups]
        if family.pin and not stays.all():
            raise InfeasiblePruneError(f"{family.name} cannot be cut: {family.pin.reason}")
        if not stays.any():
            raise InfeasiblePruneError(f"{family.name}: all {family.width} channels would go; keep at least {family.positions}")
