"""Criteria by what the consumers of a group read on calibration data. With x_c the channels of a group, W_c the slices of a
consumer that read them, and z_c = W_c * x_c what they contribute to its output:

    energy    sum over consumers of  sum_c Var(x_c) |W_c|^2  /  the same sum over all channels that the consumer reads
    lasso     the penalty at which the coefficient b_g of the group vanishes on the way up in
              min over b of  1/2 E |sum_g (1 - b_g) z_g|^2 + penalty sum_g |b_g|      (He et al. 2017, "Channel Pruning")

`energy` is the share of a consumer's variance that comes from the group, were channels and taps independent: an error that can
be compared between layers. Where no conv or linear reads a group (it goes into attention), it is the variance alone.

`lasso` sees that channels stand in for each other. Contributions are taken about their mean, which a bias makes up for; they
are sampled at `POSITIONS` places of each batch, as in the paper, and outputs beyond `DIRECTIONS` are mixed into so many random
combinations, drawn anew again and again, which keep inner products in the mean. Only the Gram matrix of a family is held. The
path is followed on a grid of penalties and interpolated between its points.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from reparam_compiler.core.least_squares import Spread
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import NodeId
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family
from reparam_compiler.passes.pruning.criteria.base import Reader, Scores, Scoring, places_of, readers, register_criterion
from reparam_compiler.passes.pruning.criteria.running import Running, batches_of
from reparam_compiler.passes.pruning.repair.consumers import windows

POSITIONS = 128
DIRECTIONS = 64
PENALTIES = 48
"""Points of the grid, from the penalty at which all coefficients vanish down to 1e-4 of it."""
_SWEEPS = 100
_MIXED_TOGETHER = 16
"""Positions that share their random combinations."""


@register_criterion("energy")
def energy(scoring: Scoring) -> Scores:
    """Share of the consumers' variance; raises InfeasiblePruneError without calibration data."""
    consumers = readers(scoring.graph, scoring.groups)
    unread = _unread(scoring, consumers)
    axes: dict[NodeId, int] = {reader.source: reader.axis for reader in consumers}
    spreads = {node_id: Spread() for node_id in axes}
    produced = Produced(scoring.groups, unread)

    def see(node_id: NodeId, value: Tensor) -> None:
        produced.see(node_id, value)
        if node_id in spreads:
            spreads[node_id].add(_rows(value, axes[node_id]))

    _run(scoring, "energy", see)
    scores = np.zeros(scoring.groups.count)
    for reader in consumers:
        shares = spreads[reader.source].variance * (reader.slices() ** 2).sum((1, 3)).ravel()
        total = float(shares.sum())
        np.add.at(scores, reader.numbers, shares / total if total else shares)
    for family in unread:
        scores[family.groups] = sum(produced.variances(family), np.zeros(len(family.groups)))
    return scores


class Produced:
    """What the producers of families give on calibration data: what a family is ranked by that no conv or linear reads."""

    def __init__(self, groups: ChannelGroups, families: Sequence[Family]) -> None:
        self._groups = groups
        self._producers = {producer for family in families for producer in family.producers}
        self._spreads: dict[NodeId, Spread] = {}

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._producers

    def see(self, node_id: NodeId, value: Tensor) -> None:
        """Takes in a value of a node on a batch, if the node is one of the producers."""
        if node_id in self._producers:
            spread = self._spreads.setdefault(node_id, Spread())
            spread.add(_rows(value, self._groups.value(node_id).axis or 1))

    def variances(self, family: Family) -> Iterator[Float64[np.ndarray, "F"]]:
        """Of the groups of a family, for each producer that was seen and gives them."""
        for producer in family.producers:
            places = places_of(family, self._groups.number[self._groups.value(producer).labels])
            if places.size and producer in self._spreads:
                yield self._spreads[producer].variance[places].sum(1)


def _rows(value: Tensor, axis: int) -> Float64[np.ndarray, "M C"]:
    rows: Float64[np.ndarray, "M C"] = value.movedim(axis, -1).flatten(0, -2).double().numpy()
    return rows


@register_criterion("lasso")
def lasso(scoring: Scoring) -> Scores:
    """The penalty at which each group vanishes.

    Raises InfeasiblePruneError without calibration data, or where no conv or linear reads a family.
    """
    consumers = readers(scoring.graph, scoring.groups)
    if unread := _unread(scoring, consumers):
        raise InfeasiblePruneError(
            f"importance 'lasso' predicts what convs and linears read, but none reads "
            f"{', '.join(family.name for family in unread[:5])}; use 'energy', or add them to ignore"
        )
    shared: dict[NodeId, list[_Contributions]] = {}
    sources: dict[NodeId, list[Reader]] = {}
    for reader in consumers:
        sources.setdefault(reader.source, []).append(reader)
        for family in scoring.groups.free:
            if np.isin(reader.numbers, family.groups).any():
                shared.setdefault(reader.node.id, []).append(_Contributions.of(reader, family))
    draw = np.random.default_rng(scoring.seed)

    def see(node_id: NodeId, value: Tensor) -> None:
        for reader in sources.get(node_id, ()):
            rows = _patches(reader, value, draw)
            for seen in shared.get(reader.node.id, ()):
                seen.add(rows, draw)

    _run(scoring, "lasso", see)
    scores = np.zeros(scoring.groups.count)
    for family in scoring.groups.free:
        grams = [seen.gram() for group in shared.values() for seen in group if seen.family is family]
        scores[family.groups] = vanishing_penalties(np.sum([gram / (np.trace(gram) or 1.0) for gram in grams], 0))
    return scores


def vanishing_penalties(gram: Float64[np.ndarray, "F F"]) -> Float64[np.ndarray, "F"]:
    """The largest penalty at which each coefficient is not zero, for contributions with these inner products; NaN for all
    where one of these is not finite.

    Source: FISTA (Beck and Teboulle 2009) with restarts (O'Donoghue and Candes 2015), warm from one penalty to the next, on the
    coefficients that the sequential strong rule leaves (Tibshirani et al. 2012).
    """
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan)
    aim = gram.sum(1)
    top = float(np.abs(aim).max(initial=0.0))
    scores = np.zeros(len(gram))
    if not top:
        return scores
    step = 1 / _largest_eigenvalue(gram)
    coefficients, slope = np.zeros(len(gram)), np.abs(aim)
    unseen = np.ones(len(gram), np.bool_)
    for above, penalty in pairwise((top * np.geomspace(1, 1e-4, PENALTIES)).tolist()):
        # no other is likely to enter (strong rule); one that does enters at the next penalty
        taken = (slope >= 2 * penalty - above) | (coefficients != 0)
        coefficients = coefficients.copy()
        coefficients[taken] = _shrunk(gram[np.ix_(taken, taken)], aim[taken], penalty, step, coefficients[taken])
        entered = unseen & (coefficients != 0)
        scores[entered] = penalty + (above - penalty) * np.minimum(slope[entered] / above, 1)
        unseen &= ~entered
        slope = np.abs(aim - gram @ coefficients)
        scores[unseen] = np.minimum(slope[unseen], penalty)
    return scores


def _largest_eigenvalue(gram: Float64[np.ndarray, "F F"]) -> float:
    """An upper bound, by power iteration.

    After k steps from a random start it is low by 0.871 log(F) / (k - 1) in the mean whatever the spectrum (Kuczynski and
    Wozniakowski 1992): 6 % for a family of 1280. A fifth is added.
    """
    vector = np.random.default_rng(0).standard_normal(len(gram))
    size = 0.0
    for _ in range(100):
        vector = gram @ (vector / np.linalg.norm(vector))
        size = float(np.linalg.norm(vector))
    return 1.2 * size


def _shrunk(
    gram: Float64[np.ndarray, "F F"],
    aim: Float64[np.ndarray, "F"],
    penalty: float,
    step: float,
    start: Float64[np.ndarray, "F"],
) -> Float64[np.ndarray, "F"]:
    """The minimum of b G b / 2 - aim b + penalty |b|_1."""
    now, ahead, momentum = start, start, 1.0
    for _ in range(_SWEEPS):
        target = ahead - step * (gram @ ahead - aim)
        after = np.sign(target) * np.maximum(np.abs(target) - step * penalty, 0)
        moved = after - now
        if float((ahead - after) @ moved) > 0:
            momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / grown * moved
        now, momentum = after, grown
        if float(np.abs(moved).max()) <= 1e-6 * max(float(np.abs(after).max()), 1e-30):
            break
    return now


@dataclass(slots=True, eq=False)
class _Contributions:
    """Inner products of what the groups of a family contribute to the output of one consumer, over all batches.

    places: for each block where the groups stand among the channels that it reads; weights: the taps of each group, `F T O`.
    """

    family: Family
    reader: Reader
    places: list[Tensor]
    weights: list[Tensor]
    _means: list[Tensor]
    _products: Tensor
    _count: int = 0

    @staticmethod
    def of(reader: Reader, family: Family) -> "_Contributions":
        slices = reader.slices()  # B O C K
        blocks, out, into, _ = slices.shape
        size = len(family.groups)
        places = np.moveaxis(places_of(family, reader.numbers).reshape(size, blocks, -1), 1, 0)  # B F P
        weights = [
            torch.from_numpy(np.moveaxis(own[:, where - block * into], 0, -1).reshape(size, -1, out))
            for block, (own, where) in enumerate(zip(slices, places, strict=True))
        ]
        means = [torch.zeros(size, 1, weight.shape[1], dtype=torch.float64) for weight in weights]
        products = torch.zeros(size, size, dtype=torch.float64)
        return _Contributions(family, reader, [torch.from_numpy(where.copy()) for where in places], weights, means, products)

    def add(self, rows: Float64[Tensor, "M C K"], draw: np.random.Generator) -> None:
        """Rows of the consumer's input at random places, about the mean of all that have come so far."""
        self._count += len(rows)
        for block, (places, weight) in enumerate(zip(self.places, self.weights, strict=True)):
            taps = rows[:, places].flatten(2).transpose(0, 1)  # F M T
            mean = self._means[block]
            mean += (taps - mean).sum(1, keepdim=True) / self._count
            for piece in torch.split(taps - mean, _MIXED_TOGETHER, 1):
                parts = (piece @ _mixed(weight, draw)).flatten(1)  # F M*D
                self._products += parts @ parts.T

    def gram(self) -> Float64[np.ndarray, "F F"]:
        """For each position."""
        return self._products.numpy() / max(self._count, 1)


def _mixed(weight: Float64[Tensor, "F T O"], draw: np.random.Generator) -> Float64[Tensor, "F T D"]:
    """The outputs, or where they are more than `DIRECTIONS` so many random combinations of them."""
    out = weight.shape[2]
    if out <= DIRECTIONS:
        return weight
    return weight @ torch.from_numpy(draw.standard_normal((out, DIRECTIONS)) / DIRECTIONS**0.5)


def _patches(reader: Reader, value: Tensor, draw: np.random.Generator) -> Tensor:
    """What the consumer reads at random places of its output: `M C K`, in float64."""
    op = reader.node.op
    if not isinstance(op, ops.Conv):
        rows = value.movedim(reader.axis, -1).reshape(-1, value.shape[reader.axis])
        return rows[draw.integers(len(rows), size=min(POSITIONS, len(rows)))].double().unsqueeze(-1)
    seen = windows(op, reader.weight.shape[2:], value)
    places = [torch.from_numpy(draw.integers(size, size=POSITIONS)) for size in seen.shape[1 : 1 + len(op.stride)]]
    samples = torch.from_numpy(draw.integers(len(value), size=POSITIONS))
    return seen[(samples, *places)].flatten(2).double()


def _unread(scoring: Scoring, consumers: tuple[Reader, ...]) -> list[Family]:
    read = np.unique(np.concatenate([reader.numbers for reader in consumers])) if consumers else np.zeros(0, np.int64)
    return [family for family in scoring.groups.free if not np.isin(family.groups, read).all()]


def _run(scoring: Scoring, criterion: str, see: Callable[[NodeId, Tensor], None]) -> None:
    running = Running(scoring.graph)
    with torch.no_grad():
        for inputs in batches_of(scoring, criterion):
            running.outputs(inputs, see)
