"""What no recipe makes: searched in MetaSchedule's space, and taken from its database where that was faster in the net.

MetaSchedule measures a function alone; whether its record beats the rule's schedule, a running net says (`in_net`).
"""

import contextlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule import measure_callback as callbacks

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.conv.scheduled import SCHEDULED
from reparam_compiler.lowering.relax.conv_sites import LAYER
from reparam_compiler.lowering.search.records import SCHEDULES, WORKLOADS
from reparam_compiler.lowering.search.winners import Measured

BATCH = 16  # trials between two writes of the database
UNMADE = "it was not measured"
"""The failure of a candidate that none had a device for; nothing of it is kept."""
FAILED = 1e10  # seconds that MetaSchedule notes of a candidate that could not be built or run


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function without a recipe. code: its structural hash before it is scheduled. count: its calls in a run."""

    name: str
    func: Any
    code: int
    count: int


def functions_of(module: Any) -> list[Function]:
    """The functions of a module that have no schedule yet, each distinct one once."""
    calls = Counter[str]()
    relax.analysis.post_order_visit(module["main"], lambda expr: calls.update(_called(expr)))
    found: dict[int, Function] = {}
    for variable, func in _unscheduled(module).items():
        name, code = str(variable.name_hint), code_of(func)
        count = calls[name] + (found[code].count if code in found else 0)
        found[code] = Function(found[code].name if code in found else name, func, code, count)
    return list(found.values())


def _called(expr: Any) -> list[str]:
    is_call = isinstance(expr, relax.Call) and expr.args and isinstance(expr.args[0], tvm.ir.GlobalVar)
    return [str(expr.args[0].name_hint)] if is_call else []


def _unscheduled(module: Any) -> dict[Any, Any]:
    return {
        variable: func
        for variable, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and not (func.attrs and func.attrs.get(SCHEDULED))
    }


def code_of(func: Any) -> int:
    """A number that is equal for equal functions of whatever name."""
    return int(tvm_ffi.structural_hash(func.without_attr("global_symbol")))


def with_records(module: Any, measured: Measured | None) -> Any:
    """The module with MetaSchedule's schedules for the functions whose record beat the rule.

    Where there are measurements each function is marked with its hash, by which a search finds it again in a net.
    """
    if measured is None:
        return module
    functions = {variable: (func, code_of(func)) for variable, func in _unscheduled(module).items()}
    applied = _applied(module, measured.folder) if measured.folder is not None else module
    for variable, (func, code) in functions.items():
        taken = applied[variable] if code in measured.functions else func
        module.update_func(variable, taken.with_attr(LAYER, str(code)))
    return module


def _applied(module: Any, folder: Path) -> Any:
    with meta_schedule.database.JSONDatabase(str(folder / WORKLOADS), str(folder / SCHEDULES)):
        return relax.transform.MetaScheduleApplyDatabase()(module)


class Generic:
    """MetaSchedule's search of the functions of one net, in the database of a folder."""

    def __init__(self, functions: list[Function], target: Any, tuning: Tuning[Any], folder: Path) -> None:
        self.functions = functions
        self._target = target
        self._tuning = tuning
        self._store = meta_schedule.database.JSONDatabase(str(folder / WORKLOADS), str(folder / SCHEDULES))

    @property
    def measured(self) -> int:
        """Records in the folder."""
        return len(self._store)

    @property
    def failed(self) -> int:
        """Those of them that have no time."""
        return sum(not math.isfinite(_least(record)) for record in self._store.get_all_tuning_records())

    @property
    def round(self) -> int:
        """Measurements after which every function had its turn."""
        return BATCH * len(self.functions)

    @property
    def codes(self) -> frozenset[int]:
        """The hashes of the functions that have a record."""
        return frozenset(each.code for each in self.functions if self._store.has_workload(_module(each)))

    def measure(self, trials: int, builder: Any, runner: Any) -> None:
        """So many new measurements, most of what is called most."""
        with _quiet(), scratch_folder() as work:
            meta_schedule.tune.tune_tasks(
                tasks=[self._context(index, each) for index, each in enumerate(self.functions)],
                task_weights=[float(each.count or 1) for each in self.functions],
                work_dir=str(work),
                max_trials_global=trials,
                num_trials_per_iter=max(1, min(BATCH, trials // len(self.functions))),
                builder=builder,
                runner=runner,
                database=self._store,
                measure_callbacks=[_Keeping(), callbacks.RemoveBuildArtifact(), callbacks.UpdateCostModel()],
            )

    def _context(self, index: int, function: Function) -> Any:
        return meta_schedule.TuneContext(
            _module(function),
            target=self._target,
            space_generator=self._tuning.space(),
            search_strategy=_strategy(),
            task_name=function.name,
            rand_state=1 + index,
            num_threads=1,
        )

    def trials(self, function: Function) -> tuple[int, float]:
        """How many records a function has, and the best seconds."""
        module = _module(function)
        if not self._store.has_workload(module):
            return 0, math.inf
        workload = self._store.commit_workload(module)
        times = [_least(record) for record in self._store.get_all_tuning_records() if record.workload.same_as(workload)]
        return len(times), min(times, default=math.inf)


def _least(record: Any) -> float:
    """The least seconds; infinite where the candidate failed."""
    least = min(map(float, record.run_secs or ()), default=math.inf)
    return least if least < FAILED else math.inf


@derived_object
class _Keeping(callbacks.PyMeasureCallback):  # type: ignore[misc]
    """Adds to the database what was measured, and what failed when it was."""

    def apply(self, task_scheduler: Any, task_id: int, candidates: Any, builds: Any, results: Any) -> None:
        """One batch; each argument but the first two has something of every candidate."""
        made = [result.error_msg != UNMADE for result in results]
        kept = (list(itertools.compress(each, made)) for each in (candidates, builds, results))
        callbacks.AddToDatabase().apply(task_scheduler, task_id, *kept)


def _module(function: Function) -> Any:
    return tvm.IRModule({"main": function.func.with_attr("global_symbol", "main")})


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
