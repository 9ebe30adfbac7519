"""The last choice, made in the running net: a layer alone is not a layer in a net.

    by rule      every layer as the rule has it: run by turns with each of the others
    net k        every layer in its k-th best point of those measured alone, else in its fastest so far (`rivals`); and the rest
                 from MetaSchedule's records
    chosen       every layer as it was fastest in any net, of earlier searches too: run again, for the fastest of many was lucky

What is not faster again has lost. The net of what is left is run whole beside that by rule at the end: only where it is faster
does anything of it count.
"""

import functools
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from reparam_compiler.lowering.build import build
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.rpc.device import LostError, held_device, sent
from reparam_compiler.lowering.runtime.description import filled
from reparam_compiler.lowering.runtime.executable import Executable, executable_of
from reparam_compiler.lowering.search.asked import Search
from reparam_compiler.lowering.search.fleet import DEVICES
from reparam_compiler.lowering.search.measuring import cores_of
from reparam_compiler.lowering.search.planner import Planner, State
from reparam_compiler.lowering.search.progress import Clock
from reparam_compiler.lowering.search.records import ConvRecord, RestRecord, append_conv, append_rest
from reparam_compiler.lowering.search.rest import Generic
from reparam_compiler.lowering.search.rivals import Rivals
from reparam_compiler.lowering.search.winners import Measured, faster_functions, winners
from reparam_compiler.lowering.target import describe

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
Put = Callable[[Executable], Executable]
"""Of a net the same where it is timed."""
NETS = 8  # beside the rule's: so many may always be run
SHARE = 0.5
"""Of the time of a search that is left to them: a net costs what its layers cost alone, and says what counts."""
BEFORE_AGAIN = 0.9  # of the time: what is left then is for the nets of what was fastest
AGAIN = 6  # of these, at most
WHOLE = 0.005  # of a run by rule, that the net of all winners must gain
ROUNDS = 7
RUNS = 3  # of each net in a round, the fastest of which counts


@dataclass(slots=True, eq=False)
class Timed:
    """A net and what its layers took.

    points: of its convs. seconds: of all calls of a layer in a run, by the layer's mark, one a round.
    """

    executable: Executable
    points: Mapping[ConvShape, Point]
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def net_of(
    search: Search, imported: Imported, points: Mapping[ConvShape, Point], functions: frozenset[int] = frozenset()
) -> Executable:
    """The net with convs in these points and the functions of these hashes by MetaSchedule's records; the rest by rule."""
    folder = search.folder if functions else None
    measured = Measured({shape: (point,) for shape, point in points.items()}, folder, functions)
    return executable_of([build(imported, search.backend.target, measured).variant], False, {})


class Contest:
    """The nets of one search."""

    def __init__(
        self, search: Search, imported: Imported, planner: Planner, generic: Generic, before: Sequence[ConvRecord] = ()
    ) -> None:
        """before: what earlier searches ran in nets."""
        self._search, self._imported, self._planner, self._generic, self._before = search, imported, planner, generic, before
        self._arrays = [filled(spec, "random") for spec in imported.inputs]
        self._target = describe(search.backend.target)
        self._last: tuple[Any, Executable] | None = None

    def check_device(self) -> None:
        """Raises LoweringError where the net cannot be run on the devices that are to measure."""
        if self._search.rpc is not None:
            self._staged(lambda put: put(self._by_rule).run(*self._arrays))

    @functools.cached_property
    def _by_rule(self) -> Executable:
        return net_of(self._search, self._imported, {})

    def rest_share(self) -> float:
        """Of a run by rule, the share of the functions without a recipe."""
        codes = {str(each.code) for each in self._generic.functions}
        took = self._staged(self._layer_seconds)
        return sum(took[layer] for layer in took if layer in codes) / (sum(took.values()) or 1.0)

    def _layer_seconds(self, put: Put) -> dict[str, float]:
        net = Timed(put(self._by_rule), {})
        run_by_turns([net], self._arrays, rounds=1)
        return {layer: sum(seconds) for layer, seconds in net.seconds.items()}

    def decided(self, clock: Clock) -> tuple[float, float] | None:
        """Keeps what is fastest in the net; seconds of a run by rule, and of one with that. None where there is no choice."""
        if not self._rivals().waiting and not self._generic.codes:
            return None
        return self._staged(lambda put: self._decided(put, clock))

    def _rivals(self) -> Rivals:
        return Rivals(self._planner.states, self._before)

    def _decided(self, put: Put, clock: Clock) -> tuple[float, float]:
        rivals, by_rule, codes = self._rivals(), put(self._by_rule), self._generic.codes
        convs, rest = list[ConvRecord](), list[RestRecord]()
        points_each = self._search.options.trials / max(1, len(self._planner.states))
        most = max(NETS, round(SHARE * points_each)) - rivals.turns
        for number in itertools.count():
            if number and (number >= most or not rivals.waiting or clock.over(BEFORE_AGAIN)):
                break
            clock.told(f"the running net, number {rivals.turns + number + 1}")
            points = rivals.next()
            new, more = self._run_beside(by_rule, put(self._built(points, codes)), rivals.rule, points)
            rivals.note(new)
            convs, rest = convs + new, rest + more
        convs, points = self._tried_again(put, by_rule, rivals, convs)
        rest = _best_of(rest)
        functions = faster_functions(rest, self._target)
        before, after = whole_runs([by_rule, put(self._built(points, functions))], self._arrays)
        if after > (1 - WHOLE) * before:  # layer by layer it was faster, and as a whole it is not
            convs = [record for record in convs if record.against is None]
            rest, after = [_undone(record) for record in rest], before
        for conv in convs:
            append_conv(self._search.folder, conv)
        for each in rest:
            append_rest(self._search.folder, each)
        return before, after

    def _tried_again(
        self, put: Put, by_rule: Executable, rivals: Rivals, convs: list[ConvRecord]
    ) -> tuple[list[ConvRecord], dict[ConvShape, Point]]:
        """The records, with those of the fastest points run again, and what still wins."""
        known, points = set[tuple[ConvShape, Point]](), dict[ConvShape, Point]()
        for _ in range(AGAIN):
            faster = winners([*self._before, *convs], self._target, self._search.tuning.rule)
            points = {shape: found[0] for shape, found in faster.items()}
            if known >= points.items():
                break
            known |= points.items()
            whole = rivals.rule | points
            convs = convs + self._run_beside(by_rule, put(self._built(points, frozenset())), rivals.rule, whole)[0]
        return convs, points

    def _run_beside(
        self, by_rule: Executable, net: Executable, rule: Mapping[ConvShape, Point], points: Mapping[ConvShape, Point]
    ) -> tuple[list[ConvRecord], list[RestRecord]]:
        """What each layer took in a net, and in that by rule, which is run by turns with it; each function's record too."""
        base, timed = Timed(by_rule, rule), Timed(net, points)
        run_by_turns([base, timed], self._arrays)
        states = [state for state in self._planner.states if state.layer.shape in points]
        convs = [record for state in states for record in _conv_records(state, base, timed, self._target)]
        known = [each for each in self._generic.functions if each.code in self._generic.codes]
        called = [each for each in known if base.seconds[str(each.code)] and timed.seconds[str(each.code)]]
        rest = [RestRecord(each.code, each.name, self._target, *_least(str(each.code), base, timed)) for each in called]
        return convs, rest  # without a time: a reshape, or one that another form of a conv leaves with other ops to be fused

    def _staged(self, work: Callable[[Put], ResultT]) -> ResultT:
        """What `work` gives for a way to put nets where they are timed: here, or on one device; on another if that is lost."""
        threads = cores_of(self._search.backend.target)
        if (rpc := self._search.rpc) is None:
            return work(lambda net: net.clone(threads=threads))
        left = DEVICES
        while True:
            device = held_device(rpc)
            try:
                return work(lambda net, device=device: sent(net, device, rpc.compiler).clone(threads=threads))  # type: ignore[misc]
            except LostError as lost:
                if not (left := left - 1):
                    raise
                log.warning("%s; the nets are run on another one", lost)
            finally:
                device.close()

    def _built(self, points: Mapping[ConvShape, Point], functions: frozenset[int]) -> Executable:
        """The net, whose packed weights may be gigabytes: beside that by rule the last one alone is kept."""
        if not points and not functions:
            return self._by_rule
        key = (frozenset(points.items()), functions)
        if self._last is None or self._last[0] != key:
            self._last = None  # goes before the next is made
            self._last = key, net_of(self._search, self._imported, points, functions)
        return self._last[1]


def _conv_records(state: State, base: Timed, timed: Timed, target: str) -> list[ConvRecord]:
    """What a call of a layer took by rule, and in the point that it has in a net, beside that."""
    site, mark, count = state.layer.site, state.layer.shape.mark, state.layer.count
    beside, seconds = (tuple(each / count for each in net.seconds[mark]) for net in (base, timed))
    first, point = ConvRecord(site.shape, site.epilogue, state.rule, target, beside, where="net"), timed.points[site.shape]
    if point == state.rule:
        return [first]
    return [first, replace(first, point=point, seconds=seconds, against=state.rule, beside=beside)]


def _least(mark: str, *nets: Timed) -> list[float]:
    return [min(net.seconds[mark]) for net in nets]


def _best_of(records: Sequence[RestRecord]) -> list[RestRecord]:
    """Of each function one: the least time by rule, and by the record."""
    by_code = defaultdict[int, list[RestRecord]](list)
    for record in records:
        by_code[record.function].append(record)
    return [
        replace(alike[0], rule=min(each.rule for each in alike), found=min(each.found for each in alike))
        for alike in by_code.values()
    ]


def _undone(record: RestRecord) -> RestRecord:
    """A record by which the rule stays."""
    return RestRecord(record.function, record.name, record.target, record.rule, math.inf)


def run_by_turns(nets: Sequence[Timed], arrays: Sequence[Any], rounds: int = ROUNDS) -> None:
    """Times the layers of each net, round by round."""
    for _ in range(rounds):
        for net in nets:
            marks = {kernel.name: kernel.layer for kernel in net.executable.kernels}
            runs = [_by_layer(calls, marks) for calls in net.executable.profiled(arrays, RUNS)]
            for layer in runs[0]:
                net.seconds[layer].append(min(run[layer] for run in runs))


def _by_layer(calls: Sequence[Any], marks: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for call in calls:
        found[marks.get(call.name, "")] += call.seconds
    return found


def whole_runs(nets: Sequence[Executable], arrays: Sequence[Any], rounds: int = 15) -> list[float]:
    """The least seconds of a run of each net, run by turns."""
    times = [[min(net.timing(*arrays, repeat=3).seconds) for net in nets] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]
