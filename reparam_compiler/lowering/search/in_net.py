"""The last choice, made in the running net: a layer alone is not a layer in a net.

    net 0        every layer as the rule has it
    net k        every layer in its k-th best point of those measured alone, and the rest from MetaSchedule's records
    chosen       every layer as it was fastest in any of these nets, which are run by turns

The net of what was chosen is run beside net 0 at the end: only where it is faster does anything of it count.
"""

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
from reparam_compiler.lowering.search.records import ConvRecord, RestRecord, append_conv, append_rest
from reparam_compiler.lowering.search.rest import Generic
from reparam_compiler.lowering.search.winners import Measured, faster_functions, winners
from reparam_compiler.lowering.target import describe

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
Put = Callable[[Executable], Executable]
"""Of a net the same where it is timed."""
NETS = 3  # beside the rule's
WINDOW = 1.15  # times a layer's best time alone, up to which a point is tried in the net
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

    def __init__(self, search: Search, imported: Imported, planner: Planner, generic: Generic) -> None:
        self._search, self._imported, self._planner, self._generic = search, imported, planner, generic
        self._arrays = [filled(spec, "random") for spec in imported.inputs]
        self._target = describe(search.backend.target)
        self._nets: dict[Any, Executable] = {}

    def check_device(self) -> None:
        """Raises LoweringError where the net cannot be run on the devices that are to measure."""
        if self._search.rpc is not None:
            self._staged(lambda put: put(self._by_rule).run(*self._arrays))

    @property
    def _by_rule(self) -> Executable:
        return self._built({}, frozenset())

    def rest_share(self) -> float:
        """Of a run by rule, the share of the functions without a recipe."""
        codes = {str(each.code) for each in self._generic.functions}
        took = self._staged(self._layer_seconds)
        return sum(took[layer] for layer in took if layer in codes) / (sum(took.values()) or 1.0)

    def _layer_seconds(self, put: Put) -> dict[str, float]:
        net = Timed(put(self._by_rule), {})
        run_by_turns([net], self._arrays, rounds=1)
        return {layer: sum(seconds) for layer, seconds in net.seconds.items()}

    def decided(self) -> tuple[float, float] | None:
        """Keeps what is fastest in the net; seconds of a run by rule, and of one with that. None where there is no choice."""
        codes, (rule, *others) = self._generic.codes, choices(self._planner.states)
        if not others and not codes:
            return None
        return self._staged(lambda put: self._decided(put, rule, others))

    def _decided(
        self, put: Put, rule: Mapping[ConvShape, Point], others: Sequence[Mapping[ConvShape, Point]]
    ) -> tuple[float, float]:
        codes, by_rule = self._generic.codes, put(self._by_rule)
        nets = [Timed(by_rule, rule), *(Timed(put(self._built(each, codes)), each) for each in others or [rule])]
        run_by_turns(nets, self._arrays)
        convs = [record for state in self._planner.states for record in self._conv_records(state, nets)]
        called = [each for each in self._generic.functions if each.code in codes and nets[0].seconds[str(each.code)]]
        rest = [self._rest_record(each.name, each.code, nets) for each in called]  # a reshape became none
        faster, functions = winners(convs, self._target, self._search.tuning.rule), faster_functions(rest, self._target)
        chosen = put(self._built({shape: points[0] for shape, points in faster.items()}, functions))
        before, after = whole_runs([by_rule, chosen], self._arrays)
        if after > (1 - WHOLE) * before:  # layer by layer it was faster, and as a whole it is not
            convs = [record for record in convs if record.point == rule.get(record.shape)]
            rest, after = [_undone(record) for record in rest], before
        for conv in convs:
            append_conv(self._search.folder, conv)
        for each in rest:
            append_rest(self._search.folder, each)
        return before, after

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
        key = (frozenset(points.items()), functions)
        if key not in self._nets:
            self._nets[key] = net_of(self._search, self._imported, points, functions)
        return self._nets[key]

    def _conv_records(self, state: State, nets: Sequence[Timed]) -> list[ConvRecord]:
        """What a layer took in each point that it had in a net, by call, beside the rule's in the same round."""
        shape, found = state.layer.shape, defaultdict[Point, list[tuple[float, float]]](list)
        for net in nets:
            if shape in net.points:
                found[net.points[shape]] += zip(net.seconds[shape.mark], nets[0].seconds[shape.mark], strict=True)
        return [self._conv_record(state, point, pairs) for point, pairs in found.items()]

    def _conv_record(self, state: State, point: Point, pairs: Sequence[tuple[float, float]]) -> ConvRecord:
        site, count = state.layer.site, state.layer.count
        seconds, beside = (tuple(each / count for each in side) for side in zip(*pairs, strict=True))
        record = ConvRecord(site.shape, site.epilogue, point, self._target, seconds, where="net")
        return record if point == state.rule else replace(record, against=state.rule, beside=beside)

    def _rest_record(self, name: str, code: int, nets: Sequence[Timed]) -> RestRecord:
        """What a function took by rule and by MetaSchedule's record."""
        first, *others = (min(net.seconds[str(code)]) for net in nets)
        return RestRecord(code, name, self._target, first, min(others))


def _undone(record: RestRecord) -> RestRecord:
    """A record by which the rule stays."""
    return RestRecord(record.function, record.name, record.target, record.rule, math.inf)


def choices(states: Sequence[State]) -> list[dict[ConvShape, Point]]:
    """The points of each net, the rule's first."""
    ranked = {state.layer.shape: _ranked(state) for state in states if state.points and state.rule in state.measured}
    most = max((len(points) - 1 for points in ranked.values()), default=0)
    return [
        {shape: points[min(rank, len(points) - 1)] for shape, points in ranked.items()} for rank in range(1 + min(NETS, most))
    ]


def _ranked(state: State) -> list[Point]:
    """The rule's point, then the fastest others."""
    bound = WINDOW * state.best
    others = [point for point, seconds in state.measured.items() if point != state.rule and seconds <= bound]
    return [state.rule, *sorted(others, key=lambda point: state.measured[point])]


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
