"""The points that may be the fastest of their layers in the net: which has its turn next, and which led so far."""

from collections.abc import Container, Iterable, Sequence

from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.search.planner import State
from reparam_compiler.lowering.search.records import ConvRecord

WINDOW = 1.05
"""Times what the rule's point takes alone, up to which a point is tried in the net: not times the best, which may be luck."""


class Rivals:
    """Of each layer that was measured alone the rule's point and its rivals, the fastest alone first.

    rule: the rule's point of each layer. turns: how many other points the layer that had most of them tried before.
    """

    def __init__(self, states: Sequence[State], before: Iterable[ConvRecord] = ()) -> None:
        """before: what points took in the net in earlier searches; they had their turn."""
        known = [state for state in states if state.points and state.rule in state.measured]
        self.rule = {state.layer.shape: state.rule for state in known}
        self._ratios: dict[ConvShape, dict[Point, float]] = {shape: {point: 1.0} for shape, point in self.rule.items()}
        self.note(record for record in before if record.against is not None and record.against == self.rule.get(record.shape))
        self.turns = max((len(ratios) - 1 for ratios in self._ratios.values()), default=0)
        self._left = {state.layer.shape: _ranked(state, self._ratios[state.layer.shape]) for state in known}

    @property
    def waiting(self) -> bool:
        """Whether a point had no turn yet."""
        return any(self._left.values())

    def next(self) -> dict[ConvShape, Point]:
        """A point for each layer: the best alone that had no turn; where there is none, what is the fastest in the net."""
        return {shape: left.pop(0) if left else self._leader(shape) for shape, left in self._left.items()}

    def note(self, records: Iterable[ConvRecord]) -> None:
        """What points took in a net."""
        for record in records:
            self._ratios[record.shape][record.point] = record.ratio

    def _leader(self, shape: ConvShape) -> Point:
        ratios = self._ratios[shape]
        return min(ratios, key=lambda point: ratios[point])


def _ranked(state: State, tried: Container[Point]) -> list[Point]:
    """The points near the rule's, the fastest first, without those that were tried: the rule's is one of these."""
    bound = WINDOW * state.measured[state.rule]
    others = [point for point, seconds in state.measured.items() if point not in tried and seconds <= bound]
    return sorted(others, key=lambda point: state.measured[point])
