"""Removes channels: the groups that a keep mask drops leave every parameter and every width, and nothing else changes.

Two forms of the pruned model are made from the same mask:

    masked    the graph with the input slices of the removed channels zeroed in every conv and linear that reads them
    sliced    the graph without those channels: parameters cut, and what states a width (groups, reshapes, splits, types …)

Their outputs are equal: a removed channel reaches the outputs only through such a slice. That is checked in float64 before
any repair. (Zeroing a channel's own filter is not removal: batch norm and sigmoid turn zero into something else.)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.core.slicing import blank, bounds, piece_sizes, take
from reparam_compiler.equivalence import EXACT, Difference, difference, evaluate
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError, VerificationError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType, with_inputs
from reparam_compiler.passes.allocate import Allocation, AllocationName, allocate, ignored_nodes
from reparam_compiler.passes.channel_groups import ChannelGroups, Keep, channel_groups
from reparam_compiler.passes.channel_labels import is_depthwise
from reparam_compiler.passes.importance import Criterion, importance
from reparam_compiler.passes.reconstruct import Batch, Repair, fold

Cut = Callable[[np.ndarray, Mapping[int, Keep]], np.ndarray]


@dataclass(frozen=True, slots=True)
class CutFamily:
    """A family that could be pruned: its native name, its width before and after, the nodes whose parameters go with it."""

    name: str
    before: int
    after: int
    members: tuple[NodeId, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class PinnedFamily:
    """A family that keeps its width: the node that needs it whole, and why."""

    name: str
    width: int
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What was asked and what was done.

    relative_error: of the pruned graph against its masked reference, in float64, before repair.
    repair: which consumers were repaired; None without calibration data.
    """

    ratio: float
    importance: str
    allocation: AllocationName
    round_to: int
    families: tuple[CutFamily, ...]
    pinned: tuple[PinnedFamily, ...]
    relative_error: float
    repair: Repair | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PruneResult:
    """The pruned graph and its plan; `groups` and `keep` say which channels stayed."""

    graph: Graph
    plan: PrunePlan
    groups: ChannelGroups
    keep: Keep


def prune(
    graph: Graph,
    *,
    ratio: float,
    importance: str | Criterion = "l1",
    allocation: AllocationName = "uniform",
    calibration: Iterable[Batch] | None = None,
    round_to: int = 8,
    ignore: Iterable[str] = (),
    seed: int = 0,
) -> PruneResult:
    """The graph without `ratio` of the channels of every family that can be cut.

    Args:
        graph: node types must be known, with every size a number but the batch's.
        ratio: the share of channels to remove, at least 0 and below 1; 0 gives the same graph back.
        importance: a name in `importance.CRITERIA`, or a function.
        allocation: "uniform" for the same share in every family, "global" for the least important of the whole model.
        calibration: batches, each an array for each model input; with them the consumers are repaired (`reconstruct.fold`).
        round_to: widths go to the nearest multiple of it; 1 is the exact ratio.
        ignore: node ids, native names or patterns whose widths must stay.
        seed: for criteria that draw.

    Raises:
        InfeasiblePruneError: nothing can be pruned, or the request contradicts the graph.
        UnsupportedModelError: a shape is not known.
        VerificationError: the pruned graph differs from its masked reference.
    """
    groups = channel_groups(graph, pinned=ignored_nodes(graph, ignore))
    scores = _importance(graph, groups, importance, seed=seed)
    chosen = allocate(groups, scores, ratio=ratio, allocation=allocation, round_to=round_to)
    hidden = masked(graph, groups, chosen.keep)
    pruned = sliced(graph, groups, chosen.keep)
    error = verify_pruned(hidden, pruned).relative
    repair = None
    if calibration is not None and ratio:
        repaired, repair = fold(graph, hidden, groups, chosen.keep, calibration)
        pruned = sliced(repaired, groups, chosen.keep)
    named = importance if isinstance(importance, str) else getattr(importance, "__name__", "custom")
    plan = PrunePlan(ratio, named, allocation, round_to, _cut(groups, chosen), _pinned(groups), error, repair)
    return PruneResult(pruned, plan, groups, chosen.keep)


_importance = importance


def masked(graph: Graph, groups: ChannelGroups, keep: Keep) -> Graph:
    """The graph of full width in which no conv or linear reads a removed channel: what `sliced` must equal."""
    _check_keep(groups, keep)
    blanked = _Params(blank)
    replacements: dict[NodeId, Node] = {}
    for node in graph:
        removed = groups.read(node, keep)
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if removed is not None and isinstance(weight, Param) and not removed.all():
            replacements[node.id] = with_inputs(node, {1: blanked.cut(weight, {1: removed})})
    return graph.rewrite(replacements)


def sliced(graph: Graph, groups: ChannelGroups, keep: Keep) -> Graph:
    """The graph without the removed channels.

    Parameters are cut when they are loaded, in their own dtype, and keep their origin; one that is shared stays shared.
    `graph` may be the one that `groups` was found on, or one of the same nodes with other parameters of the same shapes.
    """
    _check_keep(groups, keep)
    cut = _Params(take)
    replacements: dict[NodeId, Node] = {}
    for node in graph:
        inputs: dict[int, Operand] = {}
        for index, operand in enumerate(node.inputs):
            axes = groups.slots.get((node.id, index), {})
            keeps = {axis: groups.kept(keep, labels) for axis, labels in axes.items()}
            if isinstance(operand, Param) and not all(kept.all() for kept in keeps.values()):
                inputs[index] = cut.cut(operand, keeps)
        new = replace(with_inputs(node, inputs, _narrowed(node, groups, keep)), type=_narrowed_type(node, groups, keep))
        if inputs or new.op != node.op or new.type != node.type:
            replacements[node.id] = new
    return graph.rewrite(replacements)


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
    """The graph with opaque nodes, and what is taken out of them, as inputs; what they read is an output."""
    opaque = {node.id for node in graph if isinstance(node.op, ops.Opaque)}
    nodes: list[Node] = []
    outputs: dict[NodeId, None] = {node_id: None for node_id in graph.outputs if node_id not in opaque}
    for node in graph:
        if node.id in opaque:
            outputs.update((source, None) for source in node.sources if graph[source].type and source not in opaque)
        if node.id in opaque or (isinstance(node.op, ops.Item) and node.sources[0] in opaque):
            if node.type is not None:
                nodes.append(Node(node.id, ops.Input(), (), node.type))
        else:
            nodes.append(node)
    return Graph.of(nodes, outputs)


def _random(node: Node, seed: int) -> Tensor:
    if node.type is None:
        raise UnsupportedModelError(f"{node.id}: the shape of the input is not known; pass example_inputs")
    shape = [size if isinstance(size, int) else 2 for size in node.type.shape]
    if node.type.dtype in ("f64", "f32", "f16", "bf16"):
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(shape, dtype=torch.bool if node.type.dtype == "bool" else torch.int64)


class _Params:
    """Cut parameters, one for each old one, however many nodes share it."""

    def __init__(self, how: Cut) -> None:
        self._how = how
        self._done: dict[Param, Param] = {}

    def cut(self, param: Param, keeps: Mapping[int, Keep]) -> Param:
        if param not in self._done:
            how = self._how
            shape = tuple(
                int(keeps[axis].sum()) if axis in keeps and how is take else size for axis, size in enumerate(param.shape)
            )
            self._done[param] = replace(param, shape=shape, load=lambda: how(np.asarray(param.load()), keeps))
        return self._done[param]


def _narrowed(node: Node, groups: ChannelGroups, keep: Keep) -> ops.Op:
    """The op with the widths that it states."""
    value = groups.value(node.id)
    source = groups.value(node.sources[0]) if node.sources else value
    match node.op:
        case ops.Conv() as op if isinstance(node.inputs[1], Param) and is_depthwise(op, node.inputs[1]) and source.axis == 1:
            return replace(op, groups=int(groups.kept(keep, source.labels).sum()))
        case ops.Reshape(shape) as op if value.axis is not None and shape[value.axis] > 0:
            width = int(groups.kept(keep, value.labels).sum())
            return replace(op, shape=(*shape[: value.axis], width, *shape[value.axis + 1 :]))
        case ops.Split(axis, sizes) as op if axis == source.axis:
            return replace(op, sizes=piece_sizes(groups.kept(keep, source.labels), sizes))
        case ops.Slice(axis, start, stop, step) as op if axis == source.axis:
            first, last = bounds(groups.kept(keep, source.labels), start, stop, step)
            return replace(op, start=first, stop=last)
        case op:
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


def _cut(groups: ChannelGroups, chosen: Allocation) -> tuple[CutFamily, ...]:
    return tuple(
        CutFamily(f.name, f.width, chosen.widths[f.name], f.members, chosen.notes.get(f.name, "")) for f in groups.free
    )


def _pinned(groups: ChannelGroups) -> tuple[PinnedFamily, ...]:
    return tuple(PinnedFamily(f.name, f.width, f.pin.node, f.pin.reason) for f in groups.families if f.pin)
