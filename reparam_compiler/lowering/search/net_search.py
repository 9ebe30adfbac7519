"""The search of one net: its convs, what has no recipe, and the last choice in the running net."""

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.lowering.conv.algorithms import Point
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.search.asked import Search, TunedTask, TuneResult, selected
from reparam_compiler.lowering.search.fleet import Fleet
from reparam_compiler.lowering.search.function_trials import FunctionTrials
from reparam_compiler.lowering.search.in_net import SHARE, Contest
from reparam_compiler.lowering.search.layers import layers_of
from reparam_compiler.lowering.search.measuring import Builders, Meter
from reparam_compiler.lowering.search.pairs import Outcome
from reparam_compiler.lowering.search.planner import Planner, State
from reparam_compiler.lowering.search.progress import Clock
from reparam_compiler.lowering.search.records import ConvRecord, append_conv, read_convs
from reparam_compiler.lowering.search.rest import Function, Generic, functions_of
from reparam_compiler.lowering.search.shared import won_elsewhere
from reparam_compiler.lowering.search.trials import Batch, Bench, Trials
from reparam_compiler.lowering.search.winners import Choice, choices
from reparam_compiler.lowering.target import describe

SMALL_SHARE = 0.05
"""Of a net's time that its functions without a recipe take, below which no trial is spent on them."""


class NetSearch:
    """Measures, keeps what it measures, and says what came of it."""

    def __init__(self, search: Search, imported: Imported, clock: Clock, open_: contextlib.ExitStack) -> None:
        """open_: closes what the search starts."""
        self.search, self.clock, self._open = search, clock, open_
        tuning, self._target = search.tuning, describe(search.backend.target)
        module = tuning.prepared(imported.module)
        self._main = module["main"]
        records = [each for each in read_convs(search.folder) if each.target == self._target]
        layers, functions = layers_of(tuning.sites(module)), functions_of(tuning.rest(module))
        wanted = selected([*map(str, layers), *(each.name for each in functions)], search.options.tasks)
        layers = list(itertools.compress(layers, wanted))
        functions = list(itertools.compress(functions, wanted[-len(functions) :])) if functions else []
        alone = [each for each in records if each.where == "alone"]
        won = {} if tuning.peers is None else won_elsewhere(tuning.peers)
        self.planner = Planner(layers, tuning, alone, won, max_error=search.options.max_error)
        self.generic = Generic(functions, search.backend.target, tuning, search.folder)
        shapes = {layer.shape for layer in layers}
        in_net = [each for each in records if each.where == "net" and each.shape in shapes]
        self.contest = Contest(search, imported, self.planner, self.generic, in_net)
        self._chosen_before = bool(in_net)
        self._before = self._measured
        self._since_gain = 0
        clock.known(min(self._before, search.options.trials))

    def tuned(self) -> TuneResult:
        """All of it."""
        times, interrupted = None, False
        try:
            if (left := self.search.options.trials - self._before) > 0:
                self.contest.check_device()
                most = self.planner.measured + left
                self._convs(most, 1 - SHARE, first=True)
                share = self._rest_share()
                rest = round(share * left)
                self._convs(most - rest, (1 - share if rest else 1.0) * (1 - SHARE))
                self._rest(self.search.options.trials - self._measured if share else 0)
            if self.search.options.trials and (self._measured > self._before or not self._chosen_before):
                times = self.contest.decided(self.clock)
        except KeyboardInterrupt:
            interrupted = True
        return self._result(times, interrupted)

    @property
    def _measured(self) -> int:
        """On record: of the layers of this net, and of the folder's functions without a recipe."""
        return self.planner.measured + self.generic.measured

    @property
    def _stopped(self) -> bool:
        most = self.search.options.early_stopping
        return self.clock.over() or (most is not None and self._since_gain >= most)

    def _convs(self, most: int, until: float, *, first: bool = False) -> None:
        """Points of convs, until so many are on record, in so much of the time. first: those of every layer alone."""
        while (left := most - self.planner.measured) > 0 and not self._stopped and not self.clock.over(until):
            if first and self.planner.started:
                break
            if not (found := self.planner.next(left, self._fleet.width if self._fleet else 1)):
                break
            outcomes = self._trials.measure([Batch(state.layer, points, state.rule) for state, points in found])
            each = ((state, point) for state, points in found for point in points)
            for (state, point), outcome in zip(each, outcomes, strict=True):
                if outcome is not None:
                    self._keep(state, point, outcome)
            if self._fleet:
                self._fleet.check()

    def _keep(self, state: State, point: Point, outcome: Outcome) -> None:
        record, known = self._record(state, point, outcome), math.isfinite(state.best)
        append_conv(self.search.folder, record)
        state.note(record)
        self._since_gain = self._since_gain + 1 if known and state.since else 0
        self.clock.counted(failed=bool(outcome.failure))
        self.clock.told(str(state.layer), (self.planner.rule_seconds, self.planner.seconds))

    def _record(self, state: State, point: Point, outcome: Outcome) -> ConvRecord:
        site, against = state.layer.site, None if point == state.rule else state.rule
        seconds, beside, failure = outcome.seconds, outcome.beside, outcome.failure
        return ConvRecord(site.shape, site.epilogue, point, self._target, seconds, against, beside, failure=failure)

    @functools.cached_property
    def _trials(self) -> Trials:
        """What measures points of convs."""
        return Trials(self.search.backend, self.search.tuning, self._main, self._builders, self._meter, self._scratch)

    def _function_trials(self, function: Function) -> tuple[Any, Any]:
        """What measures a function without a recipe for MetaSchedule."""
        bench = Bench(self.search.backend, self._builders, self._meter, self._scratch)
        return FunctionTrials(function, self.search.tuning, bench).builder_and_runner()

    @functools.cached_property
    def _builders(self) -> Builders:
        options, compiler = self.search.options, self._fleet.rpc.compiler if self._fleet else None
        made = Builders(options.parallel, options.timeout, compiler, scratch=self._scratch)
        return self._open.enter_context(contextlib.closing(made))

    @functools.cached_property
    def _meter(self) -> Meter | Fleet:
        return self._fleet or self._open.enter_context(contextlib.closing(Meter(self.search.options.repeats)))

    @functools.cached_property
    def _scratch(self) -> Path:
        """For libraries and weights, gone with the search."""
        return self._open.enter_context(scratch_folder())

    @functools.cached_property
    def _fleet(self) -> Fleet | None:
        """What measures where it is not this machine."""
        if self.search.rpc is None:
            return None
        return self._open.enter_context(contextlib.closing(Fleet(self.search.rpc, self.search.options.repeats)))

    def _rest_share(self) -> float:
        """Of the trials, for what has no recipe: its share of a run by rule. Nothing where that is small, or none are left."""
        if not self.generic.functions or self._measured >= self.search.options.trials or self._stopped:
            return 0.0
        self.clock.told("the net by rule")
        share = self.contest.rest_share()
        return share if share >= SMALL_SHARE else 0.0

    def _rest(self, trials: int) -> None:
        """Up to so many points of what has no recipe."""
        if trials < 1 or not self.generic.functions or self._stopped:
            return
        self.clock.told("what has no recipe")
        before = self.generic.measured
        while (left := before + trials - self.generic.measured) > 0 and not self._stopped and not self.clock.over(1 - SHARE):
            earlier, failed = self.generic.measured, self.generic.failed
            self.generic.measure(min(left, self.generic.round), self._function_trials)
            if self._fleet:
                self._fleet.check()
            if self.generic.measured == earlier:  # nothing is left of the space
                break
            self.clock.counted(self.generic.measured - earlier, failed=self.generic.failed - failed)
            self.clock.told("what has no recipe")

    def _result(self, times: tuple[float, float] | None, interrupted: bool) -> TuneResult:
        records = read_convs(self.search.folder)
        chosen = choices(records, self._target, self.search.tuning.rule)
        in_net = {each.shape for each in records if each.target == self._target and each.where == "net"}
        convs = [
            _task_of(state, chosen.get(state.layer.shape, ()), in_net=state.layer.shape in in_net)
            for state in self.planner.states
        ]
        functions = self.generic.functions
        rest = [
            TunedTask(name=each.name, trials=trials, best_seconds=best, count=each.count)
            for each, (trials, best) in zip(functions, map(self.generic.trials, functions), strict=True)
        ]
        rule, net = times or (None, None)
        return TuneResult(
            measured=self._measured - self._before,
            total=self._measured,
            tasks=(*convs, *rest),
            failed=self.clock.failed,
            rule_seconds=rule,
            net_seconds=net,
            interrupted=interrupted,
        )


def _task_of(state: State, faster: Sequence[Choice], *, in_net: bool) -> TunedTask:
    taken, decided = _decided(state, faster, in_net=in_net)
    return TunedTask(
        name=str(state.layer),
        trials=len(state.measured),
        best_seconds=state.best,
        count=state.layer.count,
        rule_seconds=state.measured.get(state.rule) if state.points else None,
        taken=taken,
        decided=decided,
    )


def _decided(state: State, faster: Sequence[Choice], *, in_net: bool) -> tuple[str, str]:
    """The algorithm that is taken for a layer, and what decided that; faster: what beat the rule's, the best first."""
    if not state.measured:
        return "", ""
    places = {"net": "in the running net", "alone": "alone"}
    if not faster:
        return str(state.rule), f"the rule: nothing was faster {places['net' if in_net else 'alone']}"
    first = faster[0]
    return str(first.point), f"{first.ratio:.2f} of the rule's time {places[first.where]}"
