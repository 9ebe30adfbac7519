"""Which points of which layer are measured next: where the net's time is, and where there is still something to gain.

    score(layer) = count x best seconds x max(gain that the surrogate sees, hope / (1 + measurements since the last gain))

Every layer's first point is the rule's own, its second what shared records say (`shared`). Then the layer of the highest score
has a batch measured: those that the surrogate thinks the fastest, and one at random, so that it does not only learn what it
believes already; with more devices than that, layers of the next scores have theirs at once. The surrogate learns from every
layer on record, of other nets too.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.search.layers import Layer
from reparam_compiler.lowering.search.records import ConvRecord
from reparam_compiler.lowering.search.surrogate import Pair, Surrogate

BATCH = 6  # points of a layer between two looks at the others
HOPE = 0.1  # of a layer's time: what may be gained although the surrogate does not see it
GAIN = 0.005  # of a layer's time, below which a measurement is no gain


@dataclass(slots=True, eq=False)
class State:
    """A layer and what is known of it.

    points: what may be measured, the rule's own first; none where even that is too inexact for the weights.
    since: measurements since the best time last fell.
    likely: what is measured after the rule's, whatever the surrogate thinks of it.
    """

    layer: Layer
    points: list[Point]
    measured: dict[Point, float] = field(default_factory=dict)
    since: int = 0
    likely: Point | None = None

    @property
    def best(self) -> float:
        """Seconds of the fastest point; infinite before any."""
        return min(self.measured.values(), default=math.inf)

    @property
    def left(self) -> list[Point]:
        """The points that are not measured."""
        return [point for point in self.points if point not in self.measured]

    @property
    def rule(self) -> Point:
        """The point of the rule."""
        return self.points[0]

    def note(self, record: ConvRecord) -> None:
        """What a measurement gave. Of another point than the rule's it is the ratio of both that counts."""
        rule = self.measured.get(self.rule, math.inf)
        seconds = record.least if record.against is None else record.ratio * rule
        gained = seconds < (1 - GAIN) * self.best
        self.since = 0 if gained else self.since + 1
        self.measured[record.point] = seconds


class Planner:
    """Chooses what is measured next."""

    def __init__(
        self,
        layers: Iterable[Layer],
        tuning: Tuning[Any],
        known: Sequence[ConvRecord],
        likely: Mapping[ConvShape, Point] | None = None,
        *,
        max_error: float,
    ) -> None:
        """known: the records of layers measured alone, for this target. likely: of a shape the point that won elsewhere."""
        self._max_error = max_error
        self._borne: dict[tuple[Layer, str], bool] = {}
        self.states = [self._started(layer, tuning, (likely or {}).get(layer.shape)) for layer in layers]
        self._surrogate = Surrogate(tuning)
        self._random = random.Random(0)
        by_shape = {state.layer.shape: state for state in self.states if state.points}
        for record in sorted(known, key=lambda each: each.against is not None):  # the rule's first
            if (state := by_shape.get(record.shape)) is not None and record.against in (None, state.rule):
                state.note(record)
        self._lessons = _lessons(record for record in known if record.shape not in by_shape)

    def _started(self, layer: Layer, tuning: Tuning[Any], likely: Point | None) -> State:
        first = next((point for point in tuning.rule(layer.shape) if self._bears(layer, point)), None)
        if first is None:
            return State(layer, [])
        if likely is not None and not self._bears(layer, likely):
            likely = None
        points = [first, *(() if likely is None else (likely,)), *tuning.points(layer.shape)]
        return State(layer, list(dict.fromkeys(points)), likely=likely)

    def _bears(self, layer: Layer, point: Point) -> bool:
        """Whether a point is exact enough on the layer's weights: its tile and blocks have no part in that."""
        if (layer, str(point)) not in self._borne:
            self._borne[layer, str(point)] = layer.bears(point, self._max_error)
        return self._borne[layer, str(point)]

    @property
    def measured(self) -> int:
        """Points of these layers that are known."""
        return sum(len(state.measured) for state in self.states)

    @property
    def seconds(self) -> float:
        """Of all convs of a run, each at its best; infinite before every layer has one."""
        return sum(state.layer.count * state.best for state in self.states if state.points)

    @property
    def rule_seconds(self) -> float:
        """The same with each at the rule's point."""
        return sum(state.layer.count * state.measured.get(state.rule, math.inf) for state in self.states if state.points)

    @property
    def started(self) -> bool:
        """Whether every layer's first points are known: the rule's, and what is likely."""
        return not self._first()

    def next(self, most: int, width: int = 1) -> list[tuple[State, list[Point]]]:
        """Layers with points of each, up to so many in all; nothing where nothing is left.

        width: points that can be measured at once: so many are given, of as many layers as that takes.
        """
        if first := self._first():
            return first[: min(most, width)]
        self._learn()
        scored = [(self._score(state, left), state, left) for state in self.states if (left := state.left)]
        found, taken, room = list[tuple[State, list[Point]]](), 0, min(most, max(width, BATCH))
        share = max(BATCH, math.ceil(room / max(1, len(scored))))
        for _, state, left in sorted(scored, key=lambda each: -each[0]):
            if taken >= min(most, width):
                break
            if batch := self._batch(state, left, min(room - taken, share)):
                found.append((state, batch))
                taken += len(batch)
        return found

    def _first(self) -> list[tuple[State, list[Point]]]:
        """The rules' points of layers that have none, then what is likely, each alone."""
        rules = [(state, [state.rule]) for state in self.states if state.points and state.rule not in state.measured]
        likely = ((state, state.likely) for state in self.states if state.likely not in state.measured)
        return rules or [(state, [point]) for state, point in likely if point is not None]

    def _learn(self) -> None:
        pairs = [((s.layer.shape, point), seconds) for s in self.states for point, seconds in s.measured.items()]
        self._surrogate.fit([*pairs, *self._lessons])

    def _score(self, state: State, left: Sequence[Point]) -> float:
        if not math.isfinite(state.best):
            return 0.0
        fastest = math.exp(float(self._surrogate.log_seconds([(state.layer.shape, point) for point in left]).min()))
        seen = 1 - fastest / state.best
        return state.layer.count * state.best * max(seen, HOPE / (1 + state.since))

    def _batch(self, state: State, left: Sequence[Point], most: int) -> list[Point]:
        """The likeliest points and a random one, of those that are exact enough; the others are struck off."""
        order = self._surrogate.log_seconds([(state.layer.shape, point) for point in left]).argsort()
        ranked = [left[index] for index in order]
        if len(ranked) > most > 1:
            ranked.insert(most - 1, ranked.pop(self._random.randrange(most - 1, len(ranked))))
        batch: list[Point] = []
        for point in ranked:
            if len(batch) == most:
                break
            if self._bears(state.layer, point):
                batch.append(point)
            else:
                state.points.remove(point)
        return batch


def _lessons(records: Iterable[ConvRecord]) -> list[tuple[Pair, float]]:
    """What layers of other nets teach: their points and the seconds of each, by the ratio to the rule's where that is known."""
    by_shape = defaultdict[ConvShape, list[ConvRecord]](list)
    for record in records:
        by_shape[record.shape].append(record)
    found: list[tuple[Pair, float]] = []
    for shape, measured in by_shape.items():
        rules = {record.point: record.least for record in measured if record.against is None}
        found += [((shape, point), seconds) for point, seconds in rules.items()]
        found += [
            ((shape, r.point), r.ratio * rules[r.against]) for r in measured if r.against is not None and r.against in rules
        ]
    return found
