"""Optimal brain surgery on channels: in which order they can leave consumers that make good for each loss as well as they can.

A consumer gives W z, where z are its features (channels, or channels x taps) with covariance S. When the features Q leave and
the weights of the rest are refitted, its output changes by a mean square of

    tr( G_QQ (V_QQ)^-1 )        V = (S + r I)^-1,   G = W^T W

and what is left is the same problem, smaller: with P = (V_QQ)^-1 V_Q

    V <- V - V_:Q P             G <- G - G_:Q P - P^T G_Q: + P^T G_QQ P         (W <- W - W_Q P)

so W itself is not needed. Consumers of the same channel group lose it together: their errors, each relative to the variance of
its output, add up. Greedy: what costs least leaves first.

Sources: Hassibi and Stork 1993 ("Second order derivatives for network pruning: Optimal Brain Surgeon"); Frantar and Alistarh
2022 ("Optimal Brain Compression") for the update of the inverse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

RIDGE = 1e-2
AT_ONCE = 32
"""Of so many groups that are left one leaves in a step; the errors are counted anew after each step."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """What one consumer is to the order of removal.

    covariance: of its features.
    gram: W^T W, over its outputs (and over taps, where the features are channels).
    group: for each feature the group it leaves with; 0 for one that stays.
    """

    covariance: Float64[np.ndarray, "F F"]
    gram: Float64[np.ndarray, "F F"]
    group: Int64[np.ndarray, "F"]


def removal_errors(
    consumers: Sequence[Consumer], families: Sequence[Int64[np.ndarray, "_"]], *, ridge: float = RIDGE
) -> Mapping[int, float]:
    """For each group of the families the relative error that has come together in its family when it leaves.

    Families take turns, so that each has lost the same share when a consumer that reads several is asked for the next.

    Args:
        consumers: all that read the groups.
        families: group numbers; each group in one family.
        ridge: relative to the mean variance of a consumer's features.

    Returns:
        Errors that grow in the order of removal within a family; the last group's counts as if it left too.
    """
    states = [_State(consumer, ridge) for consumer in consumers]
    left = [family.tolist() for family in families]
    spent = [0.0] * len(families)
    errors: dict[int, float] = {}
    while any(left):
        turn = max(range(len(left)), key=lambda index: len(left[index]) / len(families[index]))
        candidates = np.array(left[turn])
        costs = np.zeros(len(candidates))
        for state in states:
            costs += state.costs(candidates)
        order = np.argsort(costs, kind="stable")[: max(1, len(candidates) // AT_ONCE)]
        for index in order.tolist():
            spent[turn] = np.nextafter(spent[turn] + max(float(costs[index]), 0.0), np.inf)
            errors[int(candidates[index])] = spent[turn]
        gone = candidates[order]
        for state in states:
            state.remove(gone)
        left[turn] = np.delete(candidates, order).tolist()
    return errors


class _State:
    """A consumer with what it has lost so far: zeros in V and G, until half is gone and the rest is packed."""

    def __init__(self, consumer: Consumer, ridge: float) -> None:
        covariance, gram = consumer.covariance, consumer.gram
        variance = float((covariance * gram).sum())
        scale = float(np.trace(covariance)) / max(1, len(covariance))
        self._group = consumer.group.copy()
        self._matters = variance > 0 and scale > 0
        if self._matters:
            self._inverse = np.linalg.inv(covariance + ridge * scale * np.eye(len(covariance)))
            self._gram = gram / variance

    def costs(self, candidates: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
        """The relative error of losing each of these groups now."""
        found = np.zeros(len(candidates))
        if not self._matters:
            return found
        order = np.argsort(self._group, kind="stable")
        first = np.searchsorted(self._group[order], candidates, side="left")
        count = np.searchsorted(self._group[order], candidates, side="right") - first
        for size in np.unique(count[count > 0]).tolist():
            chosen = np.flatnonzero(count == size)
            block = order[first[chosen][:, None] + np.arange(size)]
            rows, columns = block[:, :, None], block[:, None, :]
            inner = np.linalg.inv(self._inverse[rows, columns])
            found[chosen] = (self._gram[rows, columns] * inner).sum((1, 2))
        return found

    def remove(self, groups: Int64[np.ndarray, "N"]) -> None:
        """Takes the groups out and refits the rest."""
        lost = np.flatnonzero(np.isin(self._group, groups))
        if not self._matters or not len(lost):
            return
        across = self._inverse[:, lost]
        absorbed = np.linalg.solve(across[lost], across.T)  # P
        half = self._gram[:, lost] - 0.5 * absorbed.T @ self._gram[np.ix_(lost, lost)]
        moved = half @ absorbed
        self._inverse -= across @ absorbed
        self._gram -= moved
        self._gram -= moved.T
        for array in (self._inverse, self._gram):
            array[lost] = array[:, lost] = 0.0
        self._group[lost] = _GONE
        left = self._group != _GONE
        if 2 * np.count_nonzero(left) < len(left):
            self._inverse, self._gram = self._inverse[np.ix_(left, left)], self._gram[np.ix_(left, left)]
            self._group = self._group[left]


_GONE = -1
"""In place of the group of a feature that has left."""
