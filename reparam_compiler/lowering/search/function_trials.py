"""MetaSchedule's candidates of one function -> their seconds, measured as points of convs are: checked, beside the rule's.

    a schedule --in a module of one call of the function--> Bench: a library, the rule's beside it --> seconds, or why not

So a candidate runs wherever the net would, in the target's own kind of runtime, and one that computes something else has lost.
"""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunner, RunnerFuture, RunnerResult

from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.search.measuring import Job
from reparam_compiler.lowering.search.pairs import Outcome
from reparam_compiler.lowering.search.rest import UNMADE, Function, in_schedule
from reparam_compiler.lowering.search.trials import Bench, beside, unsound


class FunctionTrials:
    """Measures schedules of one function; MetaSchedule has its builder and its runner."""

    def __init__(self, function: Function, tuning: Tuning[Any], bench: Bench) -> None:
        self._function, self._tuning, self._bench = function, tuning, bench
        self._jobs: dict[str, Job] = {}

    @functools.cached_property
    def _rule(self) -> Job | Outcome:
        """The rule's schedule, built."""
        return self._built([self._function.func])[0]

    def builder_and_runner(self) -> tuple[Any, Any]:
        """What MetaSchedule calls."""
        return _Builder(self), _Runner(self)

    def build(self, modules: Sequence[Any]) -> list[str | Outcome]:
        """The path of the library of each schedule, or why there is none."""
        if isinstance(self._rule, Outcome):
            return [unsound(self._rule)] * len(modules)
        found = self._built([in_schedule(module) for module in modules])
        self._jobs |= {job.candidate.library: job for job in found if isinstance(job, Job)}
        return [job.candidate.library if isinstance(job, Job) else job for job in found]

    def run(self, libraries: Sequence[str]) -> list[Outcome]:
        """What each takes."""
        rule = self._rule
        jobs = [beside(self._jobs.pop(path), rule) for path in libraries] if isinstance(rule, Job) else []
        return [outcome or Outcome(failure=UNMADE) for outcome in self._bench.measured(jobs)]

    def _built(self, funcs: Sequence[Any]) -> list[Job | Outcome]:
        return self._bench.jobs([functools.partial(self._lowered, func) for func in funcs])

    def _lowered(self, func: Any) -> Any:
        return self._tuning.scheduled(self._function.alone(func))


@derived_object
class _Builder(PyBuilder):  # type: ignore[misc]
    def __init__(self, trials: FunctionTrials) -> None:
        super().__init__()
        self.trials = trials

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        found = self.trials.build([each.mod for each in build_inputs])
        return [BuilderResult(None, each.failure) if isinstance(each, Outcome) else BuilderResult(each, None) for each in found]


@derived_object
class _Runner(PyRunner):  # type: ignore[misc]
    def __init__(self, trials: FunctionTrials) -> None:
        super().__init__()
        self.trials = trials

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        return [_future(each) for each in self.trials.run([str(each.artifact_path) for each in runner_inputs])]


def _future(outcome: Outcome) -> Any:
    """What is there already."""
    result = RunnerResult(None, outcome.failure) if outcome.failure else RunnerResult(list(outcome.seconds), None)
    return RunnerFuture(f_done=lambda: True, f_result=lambda: result)
