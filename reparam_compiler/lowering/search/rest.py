"""What no recipe makes: searched in MetaSchedule's space of its target, and taken from its database where that was faster.

    function without a schedule --MetaSchedule: rules, evolution, cost model--> schedules --`FunctionTrials`--> seconds, records

MetaSchedule measures a function alone; whether its record beats the rule's schedule, a running net says (`in_net`).
"""

import contextlib
import functools
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule import measure_callback as callbacks

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.errors import LoweringError, class_and_line
from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.conv.scheduled import SCHEDULED
from reparam_compiler.lowering.relax.conv_sites import LAYER
from reparam_compiler.lowering.search.layers import cut
from reparam_compiler.lowering.search.records import SCHEDULES, WORKLOADS
from reparam_compiler.lowering.search.winners import Measured
from reparam_compiler.lowering.target import describe

log = logging.getLogger(__name__)

BATCH = 16  # trials between two writes of the database
UNMADE = "it was not measured"
"""The failure of a candidate that none had a device for; nothing of it is kept."""
FAILED = 1e10  # seconds that MetaSchedule notes of a candidate that could not be built or run
# in a callback TVM makes a RuntimeError of every error that it does not know; these end a search
tvm_ffi.register_error(KeyboardInterrupt)
tvm_ffi.register_error(LoweringError)


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function without a recipe. code: its structural hash before it is scheduled. count: its calls in a run.

    variable: by which a module calls it. calling: the binding of one of its calls.
    """

    name: str
    func: Any
    code: int
    count: int
    variable: Any
    calling: Any

    def alone(self, func: Any) -> Any:
        """A module of one call, of the function as it is in `func`."""
        module = cut([self.calling])
        module.update_func(self.variable, func)
        return module


def functions_of(module: Any) -> list[Function]:
    """The functions of a module that have no schedule yet, each distinct one once."""
    calls = defaultdict[str, list[Any]](list)
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if (name := _called(binding.value)) is not None:
                calls[name].append(binding)
    found: dict[int, Function] = {}
    for variable, func in _unscheduled(module).items():
        code = code_of(func)
        if calling := calls[str(variable.name_hint)]:
            first = found.setdefault(code, Function(str(variable.name_hint), func, code, 0, variable, calling[0]))
            found[code] = replace(first, count=first.count + len(calling))
    return list(found.values())


def _called(value: Any) -> str | None:
    """The name of the function that a binding calls."""
    is_call = isinstance(value, relax.Call) and value.args and isinstance(value.args[0], tvm.ir.GlobalVar)
    return str(value.args[0].name_hint) if is_call else None


def _unscheduled(module: Any) -> dict[Any, Any]:
    return {
        variable: func
        for variable, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and not (func.attrs and func.attrs.get(SCHEDULED))
    }


def code_of(func: Any) -> int:
    """A number that is equal for equal functions of whatever name."""
    return int(tvm_ffi.structural_hash(func.without_attr("global_symbol")))


def with_records(module: Any, measured: Measured | None, target: Any) -> Any:
    """The module with MetaSchedule's schedules for the functions whose record for the target beat the rule.

    Where there are measurements each function is marked with its hash, by which a search finds it again in a net.
    """
    if measured is None:
        return module
    functions = {variable: (func, code_of(func)) for variable, func in _unscheduled(module).items()}
    store = None if measured.folder is None else Store(measured.folder, target)
    for variable, (func, code) in functions.items():
        best = store.best(func) if store is not None and code in measured.functions else None
        module.update_func(variable, (func if best is None else best).with_attr(LAYER, str(code)))
    return module


def space(kind: str) -> Any:
    """MetaSchedule's, by the name of its rules: chosen by the target it asks for tensor intrinsics wherever there is VNNI."""
    return meta_schedule.space_generator.PostOrderApply(
        sch_rules=meta_schedule.ScheduleRule.create(kind),
        postprocs=meta_schedule.Postproc.create(kind),
        mutator_probs=meta_schedule.Mutator.create(kind),
    )


class Store:
    """MetaSchedule's database in a folder, as far as it is of one target: records of several may lie there."""

    def __init__(self, folder: Path, target: Any) -> None:
        self.database = meta_schedule.database.JSONDatabase(str(folder / WORKLOADS), str(folder / SCHEDULES))
        self._target = describe(target)
        self._records, self._known = list[Any](), 0

    @property
    def records(self) -> list[Any]:
        """Those of the target; looked for anew where there are more records than the last time."""
        if len(self.database) != self._known:
            found = self.database.get_all_tuning_records()
            self._records, self._known = [each for each in found if describe(each.target) == self._target], len(found)
        return self._records

    def of(self, func: Any) -> list[Any]:
        """Those of a function."""
        module = _module(func)
        if not self.database.has_workload(module):
            return []
        workload = self.database.commit_workload(module)
        return [each for each in self.records if each.workload.same_as(workload)]

    def best(self, func: Any) -> Any:
        """The function in the schedule of the fastest; None where none has a time."""
        records = [each for each in self.of(func) if math.isfinite(least(each))]
        if not records:
            return None
        schedule = tvm.s_tir.Schedule(_module(func))
        min(records, key=least).trace.apply_to_schedule(schedule, remove_postproc=False)
        return in_schedule(schedule.mod)


def in_schedule(module: Any) -> Any:
    """The function that MetaSchedule has scheduled in a module of its own, as kernels are marked."""
    return module["main"].without_attr("global_symbol").with_attr(SCHEDULED, True)


class Generic:
    """MetaSchedule's search of the functions of one net, in the database of a folder."""

    def __init__(self, functions: list[Function], target: Any, tuning: Tuning[Any], folder: Path) -> None:
        self.functions = sorted(functions, key=lambda each: -each.count)
        self._target = target
        self._tuning = tuning
        self._store = Store(folder, target)
        self._empty = set[int]()

    @property
    def measured(self) -> int:
        """Records in the folder."""
        return len(self._store.records)

    @property
    def failed(self) -> int:
        """Those of them that have no time."""
        return sum(not math.isfinite(least(record)) for record in self._store.records)

    @property
    def round(self) -> int:
        """Measurements after which every function had its turn."""
        return BATCH * len(self.functions)

    @property
    def codes(self) -> frozenset[int]:
        """The hashes of the functions that have a record."""
        return frozenset(each.code for each in self.functions if self._store.of(each.func))

    def measure(self, trials: int, measuring: Callable[[Function], tuple[Any, Any]]) -> None:
        """So many new measurements at most, a turn for each function, those first that are called most.

        measuring: gives MetaSchedule's builder and runner for a function.
        """
        each = max(1, min(BATCH, trials // len(self.functions)))
        for index, function in enumerate(self.functions):
            if function.code not in self._empty and (turn := min(each, trials)) > 0:
                trials -= self._turn(index, function, turn, *measuring(function))

    def _turn(self, index: int, function: Function, trials: int, builder: Any, runner: Any) -> int:
        """Up to so many new measurements of one function; how many there were. It is said where its space gives none."""
        before, keeping, why = self.measured, _Keeping(function.name), ""
        try:
            with _quiet(), scratch_folder() as work:
                meta_schedule.tune.tune_tasks(
                    tasks=[self._context(index, function)],
                    task_weights=[1.0],
                    work_dir=str(work),
                    max_trials_global=trials,
                    num_trials_per_iter=trials,
                    builder=builder,
                    runner=runner,
                    database=self._store.database,
                    cost_model=self._model,
                    measure_callbacks=[keeping, callbacks.UpdateCostModel()],
                )
        except LoweringError:
            raise
        except Exception as refusal:  # noqa: BLE001 - whatever TVM's rules or strategy raise costs this function alone
            why = class_and_line(refusal)
        if why or not keeping.heard:
            self._empty.add(function.code)
            line = "%s: the search in MetaSchedule's space for %s ended: %s"
            log.warning(line, function.name, describe(self._target), why or "it holds no candidate that is valid and new")
        return self.measured - before

    @functools.cached_property
    def _model(self) -> Any:
        """What it learns from all functions of the net."""
        return meta_schedule.CostModel.create("xgb", num_tuning_cores=1, tree_method="auto")

    def _context(self, index: int, function: Function) -> Any:
        return meta_schedule.TuneContext(
            _module(function.func),
            target=self._target,
            space_generator=self._tuning.space(),
            search_strategy=_strategy(),
            task_name=function.name,
            rand_state=1 + index,
            num_threads=1,
        )

    def trials(self, function: Function) -> tuple[int, float]:
        """How many records a function has, and the best seconds."""
        records = self._store.of(function.func)
        return len(records), min(map(least, records), default=math.inf)


def least(record: Any) -> float:
    """The least seconds of a record; infinite where the candidate failed."""
    seconds = min(map(float, record.run_secs or ()), default=math.inf)
    return seconds if seconds < FAILED else math.inf


@derived_object
class _Keeping(callbacks.PyMeasureCallback):  # type: ignore[misc]
    """Adds to the database what was measured, and what failed when it was. heard: of so many candidates of a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.heard = name, 0

    def apply(self, task_scheduler: Any, task_id: int, candidates: Any, builds: Any, results: Any) -> None:
        """One batch; each argument but the first two has something of every candidate."""
        made = [result.error_msg != UNMADE for result in results]
        kept = (list(itertools.compress(each, made)) for each in (candidates, builds, results))
        callbacks.AddToDatabase().apply(task_scheduler, task_id, *kept)
        self.heard += len(results)
        if failures := [str(result.error_msg) for result in results if result.error_msg not in (None, UNMADE)]:
            log.warning("%s: %d of %d candidates failed, the first: %s", self.name, len(failures), len(results), failures[0])


def _module(func: Any) -> Any:
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


def _strategy() -> Any:
    """Evolution in a small population: the default one of 512 spends minutes a task before its first measurement."""
    return meta_schedule.search_strategy.EvolutionarySearch(population_size=64, init_min_unmeasured=8, genetic_num_iters=2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MetaSchedule logs every round at level INFO and resets the handlers of its loggers; give them back."""
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    before = (logger.level, logger.handlers[:], logger.propagate)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.level, logger.handlers, logger.propagate = before
