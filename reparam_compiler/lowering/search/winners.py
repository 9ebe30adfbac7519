"""Which measurements decide: those that beat the rule by more than the noise, in a running net where there is one.

    measured in a net      the fastest there, where it beats the rule's choice there by `MARGIN`
    measured alone only    the fastest, where it beats the rule's choice alone by `MARGIN`: a layer in a net is another thing
    neither                the rule

What is faster alone and not in the net loses: the net is what is run. The rule's own choice is measured beside every other, and
a record of a version whose rule was another counts only where today's choice was measured too.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape
from reparam_compiler.lowering.search.records import SCHEDULES, ConvRecord, RestRecord, Where, read_convs, read_rest

MARGIN = {"alone": 0.03, "net": 0.01}
"""By how much of the rule's time a measurement must beat it: a net's are medians of interleaved runs."""
Times = Mapping[Algorithm, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What measurements decide for one target.

    convs: of a shape the algorithms that beat the rule's, the best first.
    folder: of MetaSchedule's database, where it holds one; functions: the hashes of those whose record beats the rule.
    """

    convs: Mapping[ConvShape, tuple[Algorithm, ...]] = field(default_factory=dict)
    folder: Path | None = None
    functions: frozenset[int] = frozenset()


def measured_in(folder: Path, target: str, rule: Callable[[ConvShape], Sequence[Algorithm]]) -> Measured:
    """What the records of a folder decide for a target. rule: gives what is taken where nothing is measured, best first."""
    convs = winners(read_convs(folder), target, rule)
    functions = faster_functions(read_rest(folder), target)
    return Measured(convs, folder if functions and (folder / SCHEDULES).is_file() else None, functions)


def winners(
    records: Iterable[ConvRecord], target: str, rule: Callable[[ConvShape], Sequence[Algorithm]]
) -> dict[ConvShape, tuple[Algorithm, ...]]:
    """Of each shape that was measured for a target the algorithms that beat the rule's, the best first."""
    found: dict[ConvShape, dict[Where, dict[Algorithm, float]]] = defaultdict(lambda: {"alone": {}, "net": {}})
    for record in records:
        if record.target == target:
            times = found[record.shape][record.where]
            times[record.algorithm] = min(record.median, times.get(record.algorithm, math.inf))
    return {shape: chosen for shape, times in found.items() if (chosen := _faster(times, rule(shape)))}


def _faster(times: Mapping[Where, Times], rule: Sequence[Algorithm]) -> tuple[Algorithm, ...]:
    """Against the first of the rule's algorithms that was measured: one that is too inexact for the weights never is."""
    where: Where = "net" if any(each in times["net"] for each in rule) else "alone"
    taken = next((each for each in rule if math.isfinite(times[where].get(each, math.inf))), None)
    if taken is None:
        return ()
    bound = (1 - MARGIN[where]) * times[where][taken]
    faster = [algorithm for algorithm, seconds in times[where].items() if seconds < bound]
    return tuple(sorted(faster, key=lambda algorithm: times[where][algorithm]))


def faster_functions(records: Iterable[RestRecord], target: str) -> frozenset[int]:
    """The hashes of the functions whose record beat the rule when they were last measured for a target."""
    last = {record.function: record for record in records if record.target == target}
    return frozenset(function for function, each in last.items() if each.found < (1 - MARGIN["net"]) * each.rule)
