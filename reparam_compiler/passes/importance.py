"""How much each channel group matters: criteria that give every group a score. The least important go first.

    l1          sum over the group's filters of |w|            (Li et al. 2017, "Pruning Filters for Efficient ConvNets")
    l2          square root of the sum of w^2 over them
    bn_scale    sum of |gamma| over the group's batch norms    (Liu et al. 2017, "Network Slimming")
    random      uniform in [0, 1), from a seed

A group's filters are the slices, along the output axis, of all convs and linears that it runs through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Param
from reparam_compiler.passes.channel_groups import ChannelGroups
from reparam_compiler.passes.channel_labels import Labels

Scores = Float64[np.ndarray, "G"]
"""A score for each group number; what stands at 0, for what is fixed, is not read."""


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """What a criterion sees.

    graph, groups: the model and its coupling.
    seed: for criteria that draw.
    """

    graph: Graph
    groups: ChannelGroups
    seed: int = 0


Criterion = Callable[[Scoring], Scores]
CRITERIA: dict[str, Criterion] = {}
"""The criteria by name."""


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Registers a criterion under a name; raises ValueError for a name that is taken."""

    def register(criterion: Criterion) -> Criterion:
        if name in CRITERIA:
            raise ValueError(f"the criterion {name} is registered already")
        CRITERIA[name] = criterion
        return criterion

    return register


def importance(graph: Graph, groups: ChannelGroups, criterion: str | Criterion = "l1", *, seed: int = 0) -> Scores:
    """A score for each group.

    Args:
        graph: the model.
        groups: its coupling.
        criterion: a name in `CRITERIA`, or a function from `Scoring` to scores.
        seed: for criteria that draw.

    Returns:
        `G`, finite.

    Raises:
        InfeasiblePruneError: an unknown name, a criterion that this model does not suit, or scores that cannot be ranked.
    """
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise InfeasiblePruneError(f"importance {criterion!r} is not known; choose one of {', '.join(sorted(CRITERIA))}")
    chosen = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    scores = np.asarray(chosen(Scoring(graph, groups, seed)), np.float64)
    if scores.shape != (groups.count,) or not np.isfinite(scores[1:]).all():
        raise InfeasiblePruneError(
            f"importance gave scores of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} not finite; "
            f"expected ({groups.count},), a finite number for each group"
        )
    return scores


@register_criterion("l1")
def _l1(scoring: Scoring) -> Scores:
    return _summed(scoring, [(labels, _per_filter(np.abs(weight.float64()))) for weight, labels in _filters(scoring)])


@register_criterion("l2")
def _l2(scoring: Scoring) -> Scores:
    squares = [(labels, _per_filter(weight.float64() ** 2)) for weight, labels in _filters(scoring)]
    return np.asarray(np.sqrt(_summed(scoring, squares)))


@register_criterion("bn_scale")
def _bn_scale(scoring: Scoring) -> Scores:
    """Raises InfeasiblePruneError where a family has no batch norm with a scale: there is nothing to rank it by."""
    found = list(_params(scoring, ops.BatchNorm))
    scaled = {int(group) for _, labels in found for group in scoring.groups.number[labels]}
    without = [family.name for family in scoring.groups.free if not scaled.issuperset(family.groups.tolist())]
    if without:
        raise InfeasiblePruneError(
            f"importance 'bn_scale' ranks channels by the scale of their batch norm, but {', '.join(without[:5])}"
            f"{f' and {len(without) - 5} more' if len(without) > 5 else ''} have none; "
            "use 'l1', prune before fusing, or add them to ignore"
        )
    return _summed(scoring, [(labels, np.abs(weight.float64())) for weight, labels in found])


@register_criterion("random")
def _random(scoring: Scoring) -> Scores:
    return np.random.default_rng(scoring.seed).random(scoring.groups.count)


def _filters(scoring: Scoring) -> Iterator[tuple[Param, Labels]]:
    """The weights of convs and linears with the labels of their outputs."""
    return _params(scoring, ops.Conv, ops.Linear)


def _params(scoring: Scoring, *kinds: type[ops.Op]) -> Iterator[tuple[Param, Labels]]:
    """The weights of the ops of these kinds with the labels along their first axis; a shared one once."""
    seen: set[Param] = set()
    for (node_id, index), axes in scoring.groups.slots.items():
        node = scoring.graph[node_id]
        weight = node.inputs[index] if index == 1 and len(node.inputs) > 1 else None
        if isinstance(node.op, kinds) and isinstance(weight, Param) and 0 in axes and weight not in seen:
            seen.add(weight)
            yield weight, axes[0]


def _per_filter(weight: np.ndarray) -> Float64[np.ndarray, "O"]:
    sums: Float64[np.ndarray, "O"] = weight.reshape(len(weight), -1).sum(1)
    return sums


def _summed(scoring: Scoring, found: list[tuple[Labels, Float64[np.ndarray, "O"]]]) -> Scores:
    scores = np.zeros(scoring.groups.count)
    for labels, values in found:
        np.add.at(scores, scoring.groups.number[labels], values)
    return scores
