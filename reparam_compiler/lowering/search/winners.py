"""Which measurements decide: those that beat the rule by more than the noise, in a running net where there is one.

    measured in a net      the fastest there, where it beats the rule's choice there by `MARGIN`
    measured alone only    the fastest, where it beats the rule's choice alone by `MARGIN`: a layer in a net is another thing
    neither                the shared record of a target of its family (`shared`), if there is one, else the rule

What is faster alone and not in the net loses: the net is what is run. The rule's own choice is run by turns with every other;
what was run beside the choice of a version whose rule was another does not count.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from reparam_compiler.lowering.backend import Peers
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.search.records import SCHEDULES, ConvRecord, RestRecord, read_convs, read_rest
from reparam_compiler.lowering.search.shared import Shipped, shipped

Rule: TypeAlias = Callable[[ConvShape], Sequence[Point]]
MARGIN = {"alone": 0.03, "net": 0.02}
"""By how much of the rule's time a measurement must beat it: in a net there are more of them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What measurements decide for one target.

    convs: of a shape the algorithms that beat the rule's, the best first.
    folder: of MetaSchedule's database, where it holds one; functions: the hashes of those whose record beats the rule.
    shipped: what decides for shapes that are not among `convs`; None is the rule.
    """

    convs: Mapping[ConvShape, tuple[Point, ...]] = field(default_factory=dict)
    folder: Path | None = None
    functions: frozenset[int] = frozenset()
    shipped: Shipped | None = None

    def points(self, shape: ConvShape, rule: Point) -> tuple[Any, ...]:
        """What is taken for a conv before `rule`, the rule's first point, the best first: points of the target's kind."""
        return self.convs.get(shape) or (() if self.shipped is None else self.shipped.points(shape, rule))


def measured_in(folder: Path | None, target: str, rule: Rule, peers: Peers | None = None) -> Measured | None:
    """What the records of a folder decide for a target, and for the layers that it leaves those that are shipped; None without
    either.

    Args:
        rule: gives what is taken where nothing is measured, best first.
        peers: whom shipped records are shared with; None takes none.
    """
    ours = {} if peers is None else shipped(peers)
    if folder is None:
        return Measured(shipped=Shipped(peers.family, ours)) if peers is not None and ours else None
    records = [record for record in read_convs(folder) if record.target == target]
    functions = faster_functions(read_rest(folder), target)
    tried = ((record.shape, record.point) for record in records)
    return Measured(
        winners(records, target, rule),
        folder if functions and (folder / SCHEDULES).is_file() else None,
        functions,
        Shipped(peers.family, ours, tried) if peers is not None and ours else None,
    )


def winners(records: Iterable[ConvRecord], target: str, rule: Rule) -> dict[ConvShape, tuple[Point, ...]]:
    """Of each shape that was measured for a target the algorithms that beat the rule's, the best first."""
    return {shape: tuple(each.point for each in faster) for shape, faster in choices(records, target, rule).items() if faster}


@dataclass(frozen=True, slots=True)
class Choice:
    """A point that beat the rule's. where: "net" or "alone". ratio: its time by that of the rule's there."""

    point: Point
    where: str
    ratio: float


def choices(records: Iterable[ConvRecord], target: str, rule: Rule) -> dict[ConvShape, tuple[Choice, ...]]:
    """Of each shape that was measured for a target what beat the rule's algorithm, the best first; nothing where that stays."""
    by_shape = defaultdict[ConvShape, list[ConvRecord]](list)
    for record in records:
        if record.target == target:
            by_shape[record.shape].append(record)
    return {shape: _faster(found, rule(shape)) for shape, found in by_shape.items()}


def _faster(records: Sequence[ConvRecord], rule: Sequence[Point]) -> tuple[Choice, ...]:
    """Against the first of the rule's algorithms that was measured: one that is too inexact for the weights never is."""
    in_net = [record for record in records if record.where == "net"]
    counted = in_net or records
    measured = {record.point for record in counted if record.against is None and record.seconds}
    taken = next((each for each in rule if each in measured), None)
    ratios = {record.point: record.ratio for record in counted if taken is not None and record.against == taken}
    where = "net" if in_net else "alone"
    faster = (Choice(point, where, ratio) for point, ratio in ratios.items() if ratio < 1 - MARGIN[where])
    return tuple(sorted(faster, key=lambda each: each.ratio))


def faster_functions(records: Iterable[RestRecord], target: str) -> frozenset[int]:
    """The hashes of the functions whose record beat the rule when they were last measured for a target."""
    last = {record.function: record for record in records if record.target == target}
    return frozenset(function for function, each in last.items() if each.found < (1 - MARGIN["net"]) * each.rule)
