"""What a point of a conv will take, learned from what was measured: the rule's estimate, corrected by boosted trees.

    log seconds = log estimate + f(features of layer and point)        f: fitted to every layer of the target at once

Before anything is measured f is 0, so that the estimate decides. A layer's points share its sizes, so that what one layer
teaches of a knob serves the others.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xgboost
from jaxtyping import Float

from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point

FEWEST = 8  # measurements that a fit takes
ROUNDS = 60
PARAMETERS = {"max_depth": 4, "eta": 0.2, "min_child_weight": 1, "lambda": 1.0, "nthread": 1, "verbosity": 0, "seed": 0}
Pair = tuple[ConvShape, Point]


class Surrogate:
    """Predicts the time of points."""

    def __init__(self, tuning: Tuning[Any]) -> None:
        self.tuning = tuning
        self._offset = 0.0
        self._fitted: xgboost.Booster | None = None
        self._rows: dict[Pair, tuple[float, ...]] = {}
        self._estimates: dict[Pair, float] = {}

    def fit(self, measured: Sequence[tuple[Pair, float]]) -> None:
        """Learn from measured points and their seconds; those that failed teach nothing."""
        known = [(point, seconds) for point, seconds in measured if math.isfinite(seconds)]
        if not known:
            return
        errors = np.array([math.log(seconds) - self._estimate(point) for point, seconds in known])
        self._offset = float(np.median(errors))
        if len(known) >= FEWEST:
            data = xgboost.DMatrix(self._matrix([point for point, _ in known]), label=errors - self._offset)
            self._fitted = xgboost.train(PARAMETERS, data, ROUNDS)

    def log_seconds(self, points: Sequence[Pair]) -> Float[np.ndarray, " n"]:
        """The natural logarithms of the seconds of points."""
        found = self._offset + np.array([self._estimate(point) for point in points])
        return found if self._fitted is None else found + self._fitted.predict(xgboost.DMatrix(self._matrix(points)))

    def _estimate(self, point: Pair) -> float:
        if point not in self._estimates:
            self._estimates[point] = math.log(self.tuning.estimate(*point))
        return self._estimates[point]

    def _matrix(self, points: Sequence[Pair]) -> Float[np.ndarray, "n features"]:
        for point in points:
            if point not in self._rows:
                self._rows[point] = self.tuning.features(*point)
        return np.array([self._rows[point] for point in points], np.float32)
