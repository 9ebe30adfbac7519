"""Optimal brain surgery on channels: in which order they can leave consumers that make good for each loss as well as they can.

A consumer gives W z, where z are its features (channels, or channels x taps) with covariance S. When the features Q leave and
the weights of the rest are refitted, its output changes by a mean square of

    tr( W_Q (V_QQ)^-1 W_Q^T )        V = (S + r I)^-1

and what is left is the same problem, smaller: with P = (V_QQ)^-1 V_Q

    V <- V - V_:Q P                  W <- W - W_Q P

Of V only the columns that leave and the blocks on the diagonal are asked for, so its updates are kept as products until half of
the features have left. Consumers of the same channel group lose it together: their errors, each relative to the variance of its
output, add up. Greedy: what costs least leaves first.

Sources: Hassibi and Stork 1993 ("Second order derivatives for network pruning: Optimal Brain Surgeon"); Frantar and Alistarh
2022 ("Optimal Brain Compression") for the update of the inverse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from reparam_compiler.core.least_squares import inverse_of

RIDGE = 1e-2
AT_ONCE = 32
"""Of so many groups that are left one leaves in a step; the errors are counted anew after each step."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """What one consumer is to the order of removal.

    covariance: of its features.
    weight: what it makes of them, in any number of rows: its outputs (and its taps, where the features are channels).
    group: for each feature the group it leaves with; 0 for one that stays.
    """

    covariance: Float64[np.ndarray, "F F"]
    weight: Float64[np.ndarray, "O F"]
    group: Int64[np.ndarray, "F"]


def removal_errors(
    consumers: Sequence[Consumer],
    families: Sequence[Int64[np.ndarray, "_"]],
    *,
    leave: Sequence[int] | None = None,
    ridge: float = RIDGE,
) -> Mapping[int, float]:
    """For each group of the families the relative error that has come together in its family when it leaves.

    Families take turns, so that each has lost the same share when a consumer that reads several is asked for the next.

    Args:
        consumers: all that read the groups.
        families: group numbers; each group in one family.
        leave: how many groups of each family leave, where that is known: the rest is not put in order. None for all.
        ridge: relative to the mean variance of a consumer's features.

    Returns:
        Errors that grow in the order of removal within a family; the last group's counts as if it left too. Of groups that
        need not leave it is what it would be if they left next; a family of which none leaves has no errors.
    """
    stay = [0] * len(families) if leave is None else [len(f) - count for f, count in zip(families, leave, strict=True)]
    states = [_State(consumer, ridge) for consumer in consumers]
    left = list(families)
    spent = [0.0] * len(families)
    errors: dict[int, float] = {}
    while open_ := [index for index in range(len(left)) if len(left[index]) > stay[index]]:
        turn = max(open_, key=lambda index: len(left[index]) / len(families[index]))
        candidates = left[turn]
        costs = np.maximum(sum((state.costs(candidates) for state in states), np.zeros(len(candidates))), 0.0)
        order = np.argsort(costs, kind="stable")
        count = min(max(1, len(candidates) // AT_ONCE), len(candidates) - stay[turn])
        for index in order[:count].tolist():
            spent[turn] = np.nextafter(spent[turn] + float(costs[index]), np.inf)
            errors[int(candidates[index])] = spent[turn]
        left[turn] = np.delete(candidates, order[:count])
        if len(left[turn]) == stay[turn]:
            rest = order[count:]
            errors.update(zip(candidates[rest].tolist(), np.nextafter(spent[turn] + costs[rest], np.inf).tolist(), strict=True))
        gone = candidates[order[:count]]
        for state in states:
            state.remove(gone)
    return errors


class _State:
    """A consumer with what it has lost so far: `V - across @ absorbed`, until half is gone and the rest is packed."""

    def __init__(self, consumer: Consumer, ridge: float) -> None:
        covariance, weight = consumer.covariance, consumer.weight
        if len(weight) > len(covariance):
            weight = np.linalg.qr(weight).R  # the same squares in fewer rows
        variance = float(((weight @ covariance) * weight).sum())
        scale = float(np.trace(covariance)) / max(1, len(covariance))
        self._matters = variance > 0 and scale > 0
        if self._matters:
            inverse = inverse_of(covariance + ridge * scale * np.eye(len(covariance)))
            self._pack(consumer.group.copy(), inverse, weight / variance**0.5)

    def _pack(
        self, group: Int64[np.ndarray, "F"], inverse: Float64[np.ndarray, "F F"], weight: Float64[np.ndarray, "O F"]
    ) -> None:
        """Starts anew from what is left."""
        self._group, self._inverse, self._weight = group, inverse, weight
        self._across, self._absorbed = np.empty((len(group), len(group)), order="F"), np.empty((len(group), len(group)))
        self._lost = 0
        self._blocks = {}
        numbers, count = np.unique(group[group > 0], return_counts=True)
        order = np.argsort(group, kind="stable")
        for size in np.unique(count).tolist():
            of_size = numbers[count == size]
            places = order[np.searchsorted(group[order], of_size)[:, None] + np.arange(size)]
            self._blocks[size] = _Blocks(of_size, places, inverse[places[:, :, None], places[:, None, :]])

    def costs(self, candidates: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
        """The relative error of losing each of these groups now."""
        found = np.zeros(len(candidates))
        for blocks in self._blocks.values() if self._matters else ():
            asked = np.isin(candidates, blocks.groups)
            rows = np.searchsorted(blocks.groups, candidates[asked])
            weight = self._weight.T[blocks.places[rows]]  # N size O
            found[asked] = ((weight @ weight.transpose(0, 2, 1)) * np.linalg.inv(blocks.inverse[rows])).sum((1, 2))
        return found

    def remove(self, groups: Int64[np.ndarray, "N"]) -> None:
        """Takes the groups out and refits the rest."""
        lost = np.flatnonzero(np.isin(self._group, groups)) if self._matters else ()
        if not len(lost):
            return
        now, after = slice(self._lost), slice(self._lost, self._lost + len(lost))
        across = self._inverse[:, lost] - self._across[:, now] @ self._absorbed[now, lost]
        absorbed = np.linalg.solve(across[lost], across.T)  # P
        self._across[:, after], self._absorbed[after], self._lost = across, absorbed, after.stop
        self._weight -= self._weight[:, lost] @ absorbed
        self._group[lost] = _GONE
        for size, blocks in self._blocks.items():
            self._blocks[size] = blocks.without(groups, across, absorbed)
        left = np.flatnonzero(self._group != _GONE)
        if 2 * len(left) < len(self._group):
            inverse = self._inverse[np.ix_(left, left)] - self._across[left, : self._lost] @ self._absorbed[: self._lost, left]
            self._pack(self._group[left], inverse, self._weight[:, left])


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """The groups of so many features each, in order, with their features and their blocks of V."""

    groups: Int64[np.ndarray, "N"]
    places: Int64[np.ndarray, "N size"]
    inverse: Float64[np.ndarray, "N size size"]

    def without(
        self, gone: Int64[np.ndarray, "_"], across: Float64[np.ndarray, "F Q"], absorbed: Float64[np.ndarray, "Q F"]
    ) -> "_Blocks":
        """Those that stay, with their blocks of `V - across @ absorbed`."""
        stays = ~np.isin(self.groups, gone)
        places = self.places[stays]
        change = across[places] @ absorbed.T[places].transpose(0, 2, 1)
        return _Blocks(self.groups[stays], places, self.inverse[stays] - change)


_GONE = -1
"""In place of the group of a feature that has left."""
