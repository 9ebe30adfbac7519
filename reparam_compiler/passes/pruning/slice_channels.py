"""Removes channels: the groups that a keep mask drops leave every parameter and every width, and nothing else changes.

Two forms of the pruned model are made from the same mask:

    masked    the graph with the input slices of the removed channels zeroed in every weight that reads them, and with masks for
              what works across channels without weights (norms, products, sums): it counts those that stay
    sliced    the graph without those channels: parameters cut, and what states a width (groups, reshapes, splits, types …)

Their outputs are equal: a removed channel reaches the outputs only through such a slice. That is checked in float64 before
any repair. (Zeroing a channel's own filter is not removal: batch norm and sigmoid turn zero into something else.)
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.advice import ask_for_inputs
from reparam_compiler.core.drawn import is_drawn
from reparam_compiler.core.slicing import blank, bounds, piece_sizes, take
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError, VerificationError
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.interpreter.size_expressions import numbers_of, stale_numbers
from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import data_independent_nodes
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType, with_inputs
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Keep
from reparam_compiler.passes.pruning.coupling.labels import Value, coupling_model, reads_channels
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
        if op.has_mask:
            for axis, labels in groups.along(seen, "mask").items():
                kept = groups.kept(keep, labels)
                if not kept.all():
                    mask = _mask(graph, seen, axis, kept)
                    replacements[node.id] = replace(seen, op=op).with_operands({"mask": mask})
        elif isinstance(node.op, ops.Weighted) and isinstance(weight := node.operand("weight"), Param):
            axes, axis = groups.along(node, "weight"), node.op.input_axis
            if reads_channels(node, axes) and not (kept := groups.kept(keep, axes[axis])).all():
                replacements[node.id] = node.with_operands({"weight": blanked.cut(weight, {axis: kept})})
    return graph.rewrite(replacements)


def _mask(graph: Graph, node: Node, axis: int, kept: Keep) -> Param:
    """A 1 for each position that counts along an axis of what a node reads first."""
    first = node.operand(0)
    known = first if isinstance(first, Param) else graph[first or ""].type
    rank = axis + 1 if known is None else len(known.shape)
    return Param.of(kept.astype(np.float64).reshape([-1 if a == axis else 1 for a in range(rank)]), role="const", dtype="f64")


def unmasked(graph: Graph, hidden: Graph, repaired: Graph) -> Graph:
    """The graph with what repair changed of its masked form: `sliced` takes the channels away itself.

    So what was masked alone keeps its own parameters, and those that are shared are cut once.
    """
    return graph.rewrite({node.id: node for node in repaired if node is not graph[node.id] and node is not hidden[node.id]})


def sliced(graph: Graph, groups: ChannelGroups, keep: Keep) -> Graph:
    """The graph without the removed channels.

    Parameters are cut when they are loaded, in their own dtype, and keep their origin; one that is shared stays shared.
    `graph` may be the one that `groups` was found on, or one of the same nodes with other parameters of the same shapes.
    """
    _check_keep(groups, keep)
    slicing = _Slicing(graph, groups, keep)
    return graph.rewrite({node.id: narrower for node in graph if (narrower := slicing.node(node)) is not node})


Types = Mapping[NodeId, TensorType | None]


class _Slicing:
    """What the nodes of one graph become without the removed channels."""

    def __init__(self, graph: Graph, groups: ChannelGroups, keep: Keep) -> None:
        self._graph, self._groups, self._keep, self._cut = graph, groups, keep, _Params(take)
        self._types: Types = {node.id: _narrowed_type(node, groups, keep) for node in graph}
        shapes = {node_id: known.shape for node_id, known in self._types.items() if known is not None}
        self._stale = stale_numbers(graph, shapes)

    def node(self, node: Node) -> Node:
        """The node without them; the same object where nothing changes."""
        new = replace(self._cut_node(node), type=self._types[node.id])
        return new if new.inputs != node.inputs or new.op != node.op or new.type != node.type else node

    def _cut_node(self, node: Node) -> Node:
        op, seen = coupling_model(node)
        inputs = self._cut_params(seen)
        narrowed = _narrowed(seen, op, self._groups, self._keep)
        if not isinstance(node.op, ops.Opaque) or node.op.coupling is None:
            return with_inputs(node, inputs, narrowed)
        if (op.runs_as_opaque and not _repeats(seen, op, self._groups)) or _follows(node, self._types):
            return with_inputs(node, inputs, replace(node.op, coupling=narrowed))  # it runs as it did, on fewer channels
        if inputs or narrowed != op or self._is_told_otherwise(node, node.op, op):
            return with_inputs(seen, inputs, narrowed)  # its coupling model, which states the new sizes, takes its place
        return node

    def _cut_params(self, node: Node) -> dict[int, Operand]:
        """The parameters that lose something, by the input that they are."""
        cut: dict[int, Operand] = {}
        for index, operand in enumerate(node.inputs):
            axes = self._groups.slots.get((node.id, index), {})
            keeps = {axis: self._groups.kept(self._keep, labels) for axis, labels in axes.items()}
            if isinstance(operand, Param) and not all(kept.all() for kept in keeps.values()):
                cut[index] = self._cut.cut(operand, keeps)
        return cut

    def _is_told_otherwise(self, node: Node, opaque: ops.Opaque, model: ops.Op) -> bool:
        """True where the model computes a size for the op that has another value after the cut."""
        if not model.states_sizes:
            return False
        numbers = [operand for operand in node.inputs[opaque.reads :] if isinstance(operand, str)]
        return any(number in self._stale or self._types[number] != self._graph[number].type for number in numbers)


def _repeats(node: Node, op: ops.Op, groups: ChannelGroups) -> bool:
    """True for a number that is repeated to a width that is stated."""
    alone = isinstance(op, ops.Expand) and len(node.sources) == 1 == len(node.inputs)
    return alone and groups.value(node.sources[0]).axis is None and groups.value(node.id).axis is not None


def _follows(node: Node, types: Types) -> bool:
    """True for an op that takes its shape from another value, which is cut as well: a reshape to the shape of another."""
    if not isinstance(node.op, ops.Opaque) or ops.Facts.SHAPED_AS_OTHER not in node.op.facts:
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
        UnsupportedModelError: the type of an input is not known; or an output is NaN everywhere, which is no proof.
    """
    graphs = _without_opaque(hidden), _without_opaque(pruned)
    drawn = {node.id: _random(node, seed) for seed, node in enumerate(graphs[0]) if isinstance(node.op, ops.Input)}
    worst, untold = _compared(*graphs, drawn | dict(inputs or {}), tolerance)
    if untold and inputs is None:  # a logarithm or a root of what is negative
        other, still = _compared(*graphs, {node_id: value.abs().to(value.dtype) for node_id, value in drawn.items()}, tolerance)
        worst, untold = max(worst, other, key=lambda d: d.relative), untold & still
    if untold:
        raise UnsupportedModelError(
            f"{min(untold, key=graphs[0].position.__getitem__)}: on random inputs it is NaN everywhere, so that no cut can be "
            "proven by it; look for weights that are NaN or infinite"
        )
    return worst


def _compared(
    expected_graph: Graph, found_graph: Graph, values: Mapping[NodeId, Tensor], tolerance: float
) -> tuple[Difference, frozenset[NodeId]]:
    """The largest difference of the outputs, and which are NaN everywhere; raises VerificationError above the tolerance."""
    expected, found = evaluate(expected_graph, values), evaluate(found_graph, values)
    if any(isinstance(value, Tensor) and not value.isfinite().all() for value in expected.values()):
        expected = evaluate(_sealed(expected_graph), values)
    worst = EXACT
    for node_id in expected_graph.outputs:
        if not isinstance(expected[node_id], Tensor):
            continue  # a size that no cut changes: one that it does is pinned
        apart = difference(expected[node_id], found[node_id])
        if not apart.relative <= tolerance:
            largest = apart.max_abs / apart.relative if apart.relative else 1.0
            raise VerificationError(node_id, apart.max_abs, tolerance * largest)
        worst = max(worst, apart, key=lambda d: d.relative)
    outputs = {node_id: value for node_id in expected_graph.outputs if isinstance(value := expected[node_id], Tensor)}
    return worst, frozenset(node_id for node_id, value in outputs.items() if value.numel() and bool(value.isnan().all()))


def _without_opaque(graph: Graph) -> Graph:
    """The graph with each opaque node replaced by an input; what it read becomes an output.

    Those that pruning understands stay, and so does what depends on sizes alone: the numbers that ops are told, a grid of
    places. The value of an opaque node whose shape is not known cannot be an input: what reads it goes as well.
    """
    numbers = {*numbers_of(graph), *_run_by_sizes(graph)}
    hidden: set[NodeId] = set()
    unknown: set[NodeId] = set()
    nodes: list[Node] = []
    read: dict[NodeId, None] = {}
    for node in graph:
        if node.id in numbers and not graph.users[node.id] and node.id not in graph.outputs:
            continue
        opaque = isinstance(node.op, ops.Opaque) and node.op.coupling is None and node.id not in numbers
        part = isinstance(node.op, ops.TupleGet) and node.sources[0] in hidden
        if not opaque and not part and not unknown & {*node.sources}:
            nodes.append(node)
            continue
        hidden.add(node.id)
        read.update((source, None) for source in node.sources if graph[source].type and source not in hidden)
        if node.type is not None and None not in node.type.shape:
            nodes.append(Node(node.id, ops.Input(), (), node.type))
        else:
            unknown.add(node.id)
    outputs = {node_id: None for node_id in graph.outputs if node_id not in hidden}
    return Graph.of(nodes, outputs | read)


def _run_by_sizes(graph: Graph) -> Iterable[NodeId]:
    """The nodes that can be run knowing the sizes of values alone."""
    found: set[NodeId] = set()
    for node_id in sorted(data_independent_nodes(graph), key=graph.position.__getitem__):
        op, read = graph[node_id].op, graph[node_id].sources
        asks = isinstance(op, ops.Opaque) and ops.Facts.SIZE_QUERY in op.facts
        if not (isinstance(op, ops.Opaque) and op.run is None) and (asks or found.issuperset(read)):
            found.add(node_id)
    return found


def _sealed(graph: Graph) -> Graph:
    """The graph with zeros in the place of channels that are read by zeros alone: times a zero, infinity would be NaN."""
    nodes: list[Node] = []
    for node in graph:
        weight = node.operand("weight") if isinstance(node.op, ops.Weighted) else None
        read = _read_by(node.op, weight) if isinstance(node.op, ops.Weighted) and isinstance(weight, Param) else None
        if read is None or read.all():
            nodes.append(node)
            continue
        seal = Node(f"({node.id} reads)", ops.Opaque("seal", partial(_where, read, node.op.channels_second)), node.inputs[:1])
        nodes += [seal, with_inputs(node, {0: seal.id})]
    return Graph.of(nodes, graph.outputs, sizes_are_fixed=graph.sizes_are_fixed)


def _read_by(op: ops.Weighted, weight: Param) -> Tensor:
    """For each channel that is read whether a number other than zero does so."""
    taken = torch.from_numpy(weight.float64() != 0)
    channels, taken = op.channels_read(weight.shape), taken.movedim(op.output_axis, 0)
    if op.input_axis == 0:
        return taken.flatten(2).any(2).any(0) if taken.ndim > 2 else taken.any(0)
    return taken.reshape(op.blocks, -1, channels // op.blocks, math.prod(weight.shape[2:])).any(3).any(1).reshape(-1)


def _where(read: Tensor, channels_second: bool, x: Tensor) -> Tensor:
    """The value with zeros in the channels that are not read."""
    mask = read.reshape(-1, *(1,) * (x.ndim - 2)) if channels_second else read
    return torch.where(mask, x, 0.0)


def _random(node: Node, seed: int) -> Tensor:
    if node.type is None:
        raise UnsupportedModelError(f"{node.id}: the shape of the input is not known; {ask_for_inputs()}")
    shape = [size if isinstance(size, int) else 2 for size in node.type.shape]
    if not is_drawn(shape):
        raise UnsupportedModelError(f"{node.id}: an input of {shape} is too large for a proof; {ask_for_inputs()}")
    if node.type.dtype in FLOATING or node.type.is_complex:
        wide = torch.complex128 if node.type.is_complex else torch.float64
        return torch.randn(shape, dtype=wide, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(shape, dtype=torch.bool if node.type.dtype == "bool" else torch.int64)


class _Params:
    """Cuts each parameter once, however many nodes share it."""

    def __init__(self, how: Cut) -> None:
        self._how = how
        self._done: dict[tuple[Param, tuple[int, ...]], Param] = {}

    def cut(self, param: Param, keeps: Mapping[int, Keep]) -> Param:
        """Raises UnsupportedModelError where a parameter has another size than what it is read with."""
        for axis, keep in keeps.items():
            if param.shape[axis : axis + 1] != (len(keep),):
                raise UnsupportedModelError(
                    f"{param.origin or param.role}: found the shape {list(param.shape)}, expected {len(keep)} positions along "
                    f"axis {axis}, as what it is read with has; the model cannot run"
                )
        key = param, tuple(sorted(keeps)) if self._how is blank else ()  # read along several axes, it is blanked for each
        if key not in self._done:
            how = self._how
            shape = tuple(
                int(keeps[axis].sum()) if axis in keeps and how is take else size for axis, size in enumerate(param.shape)
            )
            self._done[key] = replace(param, shape=shape, load=lambda: how(np.asarray(param.load()), keeps))
        return self._done[key]


def _narrowed(node: Node, op: ops.Op, groups: ChannelGroups, keep: Keep) -> ops.Op:
    """The op with the widths that it states set to those that are left."""
    value = groups.value(node.id)
    source = groups.value(node.sources[0]) if node.sources else value
    if isinstance(op, ops.Conv | ops.ConvTranspose | ops.GroupNorm):
        each = source.axis == 1 and _has_a_group_each(node, op, len(source.labels))
        return replace(op, groups=int(groups.kept(keep, source.labels).sum())) if each else op
    if isinstance(op, ops.Reshape | ops.Expand):
        return _narrowed_shape(op, value, groups, keep)
    if isinstance(op, ops.LayerNorm):
        return _narrowed_norm(node, op, groups, keep)
    if isinstance(op, ops.Attention):
        width = next(iter(groups.along(node, "mask").values()), None)
        return op if width is None else replace(op, width=int(groups.kept(keep, width).sum()))
    if isinstance(op, ops.Split) and op.axis == source.axis:
        return replace(op, sizes=piece_sizes(groups.kept(keep, source.labels), op.sizes))
    if isinstance(op, ops.Slice) and op.axis == source.axis:
        start, stop = bounds(groups.kept(keep, source.labels), op.start, op.stop, op.step)
        return replace(op, start=start, stop=stop)
    return op


def _has_a_group_each(node: Node, op: ops.Conv | ops.ConvTranspose | ops.GroupNorm, channels: int) -> bool:
    """True where every channel that is read is a group of its own, so that there are as many groups as channels."""
    if isinstance(op, ops.GroupNorm):
        return op.groups == channels
    weight = node.operand("weight")
    return isinstance(weight, Param) and op.is_depthwise(weight.shape)


def _narrowed_shape(op: ops.Reshape | ops.Expand, value: Value, groups: ChannelGroups, keep: Keep) -> ops.Op:
    axis, shape = value.axis, op.shape
    if axis is None or shape[axis] <= 0:
        return op
    return replace(op, shape=(*shape[:axis], int(groups.kept(keep, value.labels).sum()), *shape[axis + 1 :]))


def _narrowed_norm(node: Node, op: ops.LayerNorm, groups: ChannelGroups, keep: Keep) -> ops.Op:
    first = len(node.type.shape) - len(op.shape) if node.type is not None else 0
    widths = {axis - first: int(groups.kept(keep, labels).sum()) for axis, labels in groups.along(node, "mask").items()}
    return replace(op, shape=tuple(widths.get(axis, size) if size > 0 else size for axis, size in enumerate(op.shape)))


def _narrowed_type(node: Node, groups: ChannelGroups, keep: Keep) -> TensorType | None:
    value = groups.value(node.id)
    if node.type is None or value.axis is None:
        return node.type
    if value.axis >= len(node.type.shape):
        return None  # the file states another rank
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
