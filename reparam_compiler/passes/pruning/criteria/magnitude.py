"""Criteria that read nothing but the weights. With F the filters of a group, as one row of its family's matrix:

    l1          sum over the group's filters of |w|                  (Li et al. 2017, "Pruning Filters for Efficient ConvNets")
    l2          square root of the sum of w^2 over them
    bn_scale    sum of |gamma| over the group's batch norms          (Liu et al. 2017, "Network Slimming")
    fpgm        sum over the other filters G of the layer |F - G|    (He et al. 2019, "Filter Pruning via Geometric Median")
    geometric   |F - m|, where m minimises the sum over all filters of |F - m|
    random      uniform in [0, 1), from a seed

`fpgm` is the paper's: a filter near all others is one that they can stand in for. `geometric` is what it approximates: m is the
geometric median itself, found by Weiszfeld's iteration, and it need not be one of the filters.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param
from reparam_compiler.passes.pruning.coupling.labels import Labels
from reparam_compiler.passes.pruning.criteria.base import Scores, Scoring, family_filters, filters, register_criterion, summed

PIECE = 2**18
"""Elements of a weight whose absolute values are held at a time."""
WEISZFELD_STEPS = 100
"""The most steps of Weiszfeld's iteration; it stops when the median moves by less than 1e-9 of the mean distance."""


@register_criterion("l1")
def l1(scoring: Scoring) -> Scores:
    """Sum of absolute weights."""
    loaded = ((own.labels, own.stored_rows()) for own in filters(scoring))
    return summed(scoring, ((labels, _absolute_sums(rows)) for labels, rows in loaded))


def _absolute_sums(rows: Float[np.ndarray, "F D"]) -> Float64[np.ndarray, "F"]:
    """The sum of the absolute values of each row, a few rows at a time: those stay in the cache."""
    count = max(1, PIECE // max(1, rows.shape[1]))
    pieces = [np.abs(rows[first : first + count]).sum(1, dtype=np.float64) for first in range(0, max(1, len(rows)), count)]
    return np.concatenate(pieces)


@register_criterion("l2")
def l2(scoring: Scoring) -> Scores:
    """Euclidean norm of the weights."""
    loaded = ((own.labels, own.rows()) for own in filters(scoring))
    return np.asarray(np.sqrt(summed(scoring, ((labels, np.einsum("od,od->o", rows, rows)) for labels, rows in loaded))))


@register_criterion("bn_scale")
def bn_scale(scoring: Scoring) -> Scores:
    """Raises InfeasiblePruneError where a family has no batch norm with a scale: there is nothing to rank it by."""
    scales = list(_scales(scoring))
    scaled = {int(group) for labels, _ in scales for group in scoring.groups.number[labels]}
    without = [family.name for family in scoring.groups.free if not scaled.issuperset(family.groups.tolist())]
    if without:
        raise InfeasiblePruneError(
            f"importance 'bn_scale' ranks channels by the scale of their batch norm, but {', '.join(without[:5])}"
            f"{f' and {len(without) - 5} more' if len(without) > 5 else ''} have none; "
            "use 'l1', prune before fusing, or add them to ignore"
        )
    return summed(scoring, ((labels, np.abs(scale.float64())) for labels, scale in scales))


@register_criterion("fpgm")
def fpgm(scoring: Scoring) -> Scores:
    """Distances to the other filters of the layer, summed over the layers of a group."""
    return summed(scoring, ((own.labels, distances(own.rows()).sum(1)) for own in filters(scoring)))


@register_criterion("geometric")
def geometric(scoring: Scoring) -> Scores:
    """Distance to the geometric median of the family's filters."""
    scores = np.zeros(scoring.groups.count)
    for family, rows in family_filters(scoring):
        scores[family.groups] = np.linalg.norm(rows - geometric_median(rows), axis=1)
    return scores


@register_criterion("random")
def random(scoring: Scoring) -> Scores:
    """Drawn from the seed."""
    return np.random.default_rng(scoring.seed).random(scoring.groups.count)


def distances(rows: Float64[np.ndarray, "F D"]) -> Float64[np.ndarray, "F F"]:
    """The Euclidean distance of each row to each other one."""
    squares = (rows**2).sum(1)
    apart: Float64[np.ndarray, "F F"] = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
    np.fill_diagonal(apart, 0)
    return np.asarray(np.sqrt(apart))


def geometric_median(rows: Float64[np.ndarray, "F D"]) -> Float64[np.ndarray, "D"]:
    """The point whose distances to the rows have the least sum.

    Source: Weiszfeld 1937; Vardi and Zhang 2000 for an iterate that meets a row, where the plain iteration divides by zero.
    It begins at the row that is nearest to all: where the median is a row, iterates from elsewhere near it ever more slowly.
    """
    median: Float64[np.ndarray, "D"] = rows[distances(rows).sum(1).argmin()]
    for _ in range(WEISZFELD_STEPS):
        apart = np.linalg.norm(rows - median, axis=1)
        far = apart > 1e-12 * max(float(apart.max()), 1e-300)
        if not far.any():
            break
        weights = 1 / apart[far]
        target = weights @ rows[far] / weights.sum()
        pull = float(np.linalg.norm((weights[:, None] * (rows[far] - median)).sum(0)))
        stays = min(1.0, float((~far).sum()) / pull) if pull else 1.0
        step = (1 - stays) * (target - median)
        median = median + step
        if float(np.linalg.norm(step)) <= 1e-9 * float(apart.mean()):
            break
    return median


def _scales(scoring: Scoring) -> Iterator[tuple[Labels, Param]]:
    """The scales of batch norms with their labels; a shared one once."""
    seen: set[Param] = set()
    for node in scoring.graph:
        scale = node.operand("weight") if isinstance(node.op, ops.BatchNorm) else None
        axes = scoring.groups.along(node, "weight") if isinstance(scale, Param) else {}
        if isinstance(scale, Param) and 0 in axes and scale not in seen:
            seen.add(scale)
            yield axes[0], scale
