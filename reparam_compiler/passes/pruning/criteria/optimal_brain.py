"""Which channels to remove, told by what their loss does to those who read them: optimal brain selection on calibration data.

    obs            the features of a consumer are its channels, whose covariance all taps share: what `fold` can make good
    obs_patches    its features are channels x taps: what `least_squares` can make good. It costs the square of the taps more

The score of a group is the relative error, at all outputs of all its consumers, that has come together in its family when it
leaves (`core/optimal_brain.py`), so that scores of different families compare. Consumers that share families are solved
together; their covariances are held until the last one of them has been seen.

Nobody can make good for a family that no conv or linear reads (it goes into an attention, or a mean over channels): its
channels are ranked by their share of the variance of what makes them, or, where that cannot be run on data, of the squares of
its filters. Shares add up as errors do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float64, Int64

from reparam_compiler.core.least_squares import covariance
from reparam_compiler.core.optimal_brain import Consumer, removal_errors
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, NodeId
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family
from reparam_compiler.passes.pruning.criteria.activation import Produced
from reparam_compiler.passes.pruning.criteria.base import Scores, Scoring, family_filters, register_criterion
from reparam_compiler.passes.pruning.criteria.running import calibration
from reparam_compiler.passes.pruning.repair.activations import Activations, Batch
from reparam_compiler.passes.pruning.repair.consumers import (
    Block,
    blocks,
    channels_before,
    mixes,
    outputs_first,
    patches_before,
    rows,
    taps,
)
from reparam_compiler.progress import steps

WIDEST = 5120
"""The most features of a consumer whose taps are told apart."""
MOST_FEATURES = 2
"""Likewise, for each row of data: a covariance of more of them says too little."""


@register_criterion("obs", cumulative=True)
def obs(scoring: Scoring) -> Scores:
    """What the consumers lose that they cannot make good from their other channels."""
    return optimal_brain(scoring, calibration(scoring, "obs"))


@register_criterion("obs_patches", cumulative=True)
def obs_patches(scoring: Scoring) -> Scores:
    """The same where each tap is refitted for itself."""
    return optimal_brain(scoring, calibration(scoring, "obs_patches"), taps_apart=True)


def optimal_brain(scoring: Scoring, batches: Iterable[Batch], *, taps_apart: bool = False) -> Scores:
    """A score for each group.

    Args:
        scoring: the model, its coupling, and the widths where they are known.
        batches: calibration data.
        taps_apart: whether a consumer refits each tap for itself.

    Raises:
        InfeasiblePruneError: no calibration data, or not an array for each input.
    """
    graph, groups = scoring.graph, scoring.groups
    values = Activations(graph, batches)
    coupled = _coupled(scoring)
    scores = np.zeros(groups.count)
    free = np.zeros(groups.count, np.int64)  # a group's own number, 0 for one that stays
    for family in groups.free:
        free[family.groups] = family.groups
    set_of = {node_id: own for own in coupled for node_id in own.nodes}
    read = {int(group) for own in coupled for family in own.families for group in family.groups}
    produced = Produced(groups, [family for family in groups.free if read.isdisjoint(family.groups.tolist())])
    asked = np.zeros(groups.count, np.bool_)
    with torch.no_grad():
        for node in steps(graph, "ranking channels", len(graph.nodes)):
            if isinstance(node.op, ops.Input):
                continue
            if (own := set_of.get(node.id)) is not None:
                own.consumers += _consumers(node, groups, values, free, taps_apart)
                own.nodes.discard(node.id)
                if not own.nodes:
                    for consumer in own.consumers:
                        asked[consumer.group] = True
                    _rank(scoring, own, scores)
            values.run_before(node)
            for value in values.before(node.id) if node.id in produced and node.id in values else ():
                produced.see(node.id, value)
            values.run_now(node, node)
    unknown = [family for family in groups.free if not asked[family.groups].any()]
    filters = dict(family_filters(scoring)) if unknown else {}
    for family in unknown:
        rows = filters.get(family, np.zeros((len(family.groups), 0)))
        parts = list(produced.variances(family)) or [(rows**2).sum(1)]
        scores[family.groups] = _together([part / (part.sum() or 1.0) for part in parts])
    return scores


def _rank(scoring: Scoring, coupled: "_Coupled", scores: Scores) -> None:
    """Gives each group that these consumers read its score, NaN where the data is not finite, and lets go of them."""
    families = [family.groups for family in coupled.families]
    if all(np.isfinite(consumer.covariance).all() for consumer in coupled.consumers):
        leave = [scoring.leaving(family) for family in coupled.families]
        errors = removal_errors(coupled.consumers, families, leave=leave)
        scores[[*errors.keys()]] = [*errors.values()]
    else:
        scores[np.concatenate(families)] = np.nan
    coupled.consumers.clear()


def _together(shares: Sequence[Float64[np.ndarray, "F"]]) -> Float64[np.ndarray, "F"]:
    """For each group the sum of its shares and of those of all groups that have less."""
    own = np.sum(shares, axis=0)
    order = np.argsort(own, kind="stable")
    together = np.zeros(len(own))
    together[order] = np.cumsum(own[order])
    return together


@dataclass(slots=True, eq=False)
class _Coupled:
    """Consumers that share families, and these families. nodes: the consumers that have not been reached yet."""

    nodes: set[NodeId]
    families: list[Family]
    consumers: list[Consumer] = field(default_factory=list)


def _coupled(scoring: Scoring) -> list[_Coupled]:
    """The connected sets of consumers and of the families that they read."""
    graph, groups = scoring.graph, scoring.groups
    family_of = np.full(groups.count, -1)
    for index, family in enumerate(groups.free):
        family_of[family.groups] = index
    view: nx.Graph[NodeId | int] = nx.Graph()
    for node in graph:
        axis = node.op.input_axis if isinstance(node.op, ops.Weighted) else 0
        labels = groups.along(node, "weight").get(axis) if mixes(node) else None
        if labels is not None:
            view.add_edges_from(
                (node.id, index) for index in np.unique(family_of[groups.number[labels]]).tolist() if index >= 0
            )
    return [
        _Coupled(
            {member for member in own if isinstance(member, str)},
            [groups.free[index] for index in sorted(member for member in own if isinstance(member, int))],
        )
        for own in nx.connected_components(view)
    ]


def _consumers(
    node: Node, groups: ChannelGroups, values: Activations, free: Int64[np.ndarray, "G"], taps_apart: bool
) -> list[Consumer]:
    """What each block of a node is to the order of removal; none where its input is not known."""
    if node.sources[0] not in values:
        return []
    weight = outputs_first(node, node.params[0].float64())
    return [
        _consumer(node, block, weight[block.outputs], free[groups.number[block.labels]], values, taps_apart)
        for block in blocks(node, groups)
    ]


def _consumer(
    node: Node,
    block: Block,
    weight: Float64[np.ndarray, "O I *K"],
    group: Int64[np.ndarray, "I"],
    values: Activations,
    taps_apart: bool,
) -> Consumer:
    count = sum(rows(node, x) for x in values.before(node.sources[0]))
    apart = taps_apart and not isinstance(node.op, ops.ConvTranspose)  # whose taps do not meet in one output
    if apart and len(block.channels) * taps(node) <= min(WIDEST, MOST_FEATURES * count):
        flat = weight.reshape(len(weight), -1)
        own = covariance(patches_before(node, values, block.channels))
        return Consumer(own, flat, np.repeat(group, taps(node)))
    places = block.places
    read = np.moveaxis(weight[:, places], 1, -1).reshape(-1, len(places))  # (O P *K) C
    own = covariance(channels_before(node, values, block.channels[places]))
    return Consumer(own, read, group[places[:, 0]])
