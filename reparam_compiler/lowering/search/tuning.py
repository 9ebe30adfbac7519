"""Search on this machine: the points of convs that the backend names, MetaSchedule for what has no recipe.

    conv:   the backend's points (`Tuning.points`)          in the order of their estimate, the rule's own first
    rest:   MetaSchedule, evolutionary, in `Tuning.space`   with the trials that the convs leave

Kernels are measured by MetaSchedule's runner, in a process of their own, with cold caches: in a net every layer's weights
come from memory, and a hot loop hides it. A killed search goes on where it was: what the database holds is not measured
again, and counts towards `trials`.
"""

import contextlib
import functools
import itertools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tvm import tirx
from tvm.s_tir import meta_schedule

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend, Tuning
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.build import COMPILING
from reparam_compiler.lowering.conv.scheduled import SCHEDULED
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.conv_sites import ConvSite, find_conv_sites
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.runtime.linking import export_library
from reparam_compiler.lowering.search.database import SCHEDULES, WORKLOADS, ConvRecord, append_conv, prepare, read_convs
from reparam_compiler.lowering.search.processes import Building, measuring, without_intrinsics
from reparam_compiler.lowering.target import TargetLike, describe, resolve

BATCH = 16  # generic trials between two writes of the database
Runner = Callable[[], Any]
"""What measures, started when it is first asked for: a search that goes on with nothing left needs none."""


@dataclass(frozen=True, slots=True)
class TunedTask:
    """One kernel: how many of its points are on record, and the best median seconds (infinite without any)."""

    name: str
    trials: int
    best_seconds: float


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a search did. `measured` is new, `total` includes what the folder held before.

    >>> TuneResult(measured=2, total=5, tasks=(TunedTask("conv_1x1", trials=5, best_seconds=1e-5),)).tasks[0].best_seconds
    1e-05
    """

    measured: int
    total: int
    tasks: tuple[TunedTask, ...]


def tune(
    model: Any,
    example_inputs: Any = None,
    *,
    target: TargetLike = None,
    trials: int = 256,
    database: str | os.PathLike[str],
    repeat: int = 3,
    number: int = 1,
    timeout: float = 30.0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: bool = True,
) -> TuneResult:
    """Measure candidates for every kernel of a model on this machine and keep them in `database`.

    Args:
        model, example_inputs, target, input_shapes: as for `compile`; the target must be one that this machine runs.
        trials: measurements in all, those that `database` already holds for this model included.
        database: the folder of the records; `compile(database=…)` reads it.
        repeat, number: measurements of one candidate, and runs in each.
        timeout: seconds that one candidate may take.
        progress: draw a progress bar on stderr.

    Raises: LoweringError as `check_search`, or what `compile` raises.
    """
    search = check_search(target, database, trials=trials, repeat=repeat, number=number, timeout=timeout)
    runner = functools.cache(lambda: measuring(number, repeat, timeout))
    with COMPILING, _bar(progress, trials) as advance, without_intrinsics(), search.backend.target, filter_stderr():
        imported = to_relax(model, example_inputs, input_shapes=input_shapes)
        module = search.tuning.prepared(imported.module)
        sites = _distinct(find_conv_sites(module["main"]))
        convs = _tune_convs(search, sites, trials, runner, advance)
        rest = _tune_rest(search, search.tuning.with_kernels(module), trials - convs.total, runner, advance)
    return TuneResult(convs.measured + rest.measured, convs.total + rest.total, (*convs.tasks, *rest.tasks))


@dataclass(frozen=True, slots=True)
class Search:
    """A search that can be made: for which target, of what, and the folder of its records."""

    backend: Backend
    tuning: Tuning
    folder: Path


def check_search(
    target: TargetLike, database: str | os.PathLike[str], *, trials: int, repeat: int, number: int, timeout: float
) -> Search:
    """What `tune` is asked for, where it can be done; asked before a model is fused, which may take minutes. Makes the folder.

    Raises: LoweringError where `target` cannot be read, is of a kind that nothing is searched for, or not this machine's;
    a number is too small; or `database` cannot be a folder.
    """
    backend = backend_for(resolve(target)).settled(measure=True)
    if (tuning := backend.tuning()) is None:
        raise LoweringError(
            f"tune: found target {describe(backend.target)}; expected an llvm target, on whose machine this runs"
        )
    if reason := backend.unrunnable_here():
        raise LoweringError(f"tune: found target {describe(backend.target)}; candidates are run here, and {reason}")
    if trials < 1 or repeat < 1 or number < 1:
        raise LoweringError(f"tune: found trials={trials}, repeat={repeat}, number={number}; expected 1 or more of each")
    if not timeout > 0:
        raise LoweringError(f"tune: found timeout={timeout}; expected more than 0 seconds")
    prepare(Path(database))
    return Search(backend, tuning, Path(database))


def _distinct(sites: Sequence[ConvSite]) -> list[ConvSite]:
    """One site for each shape, the costly ones first; depthwise convs have no tile to choose."""
    by_shape = {site.shape: site for site in sites if not site.shape.depthwise}
    return sorted(by_shape.values(), key=lambda site: -site.shape.macs)


def _tune_convs(search: Search, sites: Sequence[ConvSite], trials: int, runner: Runner, advance: Any) -> TuneResult:
    """Measure the missing points of every site, each site's first before any site's second."""
    name = describe(search.backend.target)
    wanted = [[(site, algorithm) for algorithm in search.tuning.points(site.shape)] for site in sites]
    ordered = [pair for group in itertools.zip_longest(*wanted) for pair in group if pair is not None]
    known = {(r.shape, r.algorithm): r for r in read_convs(search.folder) if r.target == name}
    kept = [pair for pair in ordered if (pair[0].shape, pair[1]) in known]
    advance(len(kept))
    missing = [pair for pair in ordered if (pair[0].shape, pair[1]) not in known][: max(0, trials - len(kept))]
    for site, algorithm in missing:
        seconds = _measure(search.tuning.kernel(site.shape, algorithm, site.epilogue), search.backend, runner())
        record = ConvRecord(site.shape, site.epilogue, algorithm, name, seconds)
        append_conv(search.folder, record)
        known[site.shape, algorithm] = record
        advance(1)
    tasks = []
    for site in sites:
        records = [record for (shape, _), record in known.items() if shape == site.shape]
        tasks.append(TunedTask(str(site), len(records), min((r.median for r in records), default=math.inf)))
    return TuneResult(len(missing), len(kept) + len(missing), tuple(tasks))


def _measure(func: Any, backend: Backend, runner: Any) -> tuple[float, ...]:
    """Seconds of one kernel, by the runner's process; nothing where it fails there."""
    arguments = meta_schedule.arg_info.ArgInfo.from_prim_func(func)
    with tempfile.TemporaryDirectory(prefix="reparam-") as work:
        path = Path(work) / "kernel.so"
        module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        kernel = tvm.compile(module, target=backend.target, tir_pipeline=backend.tir_pipeline())
        export_library(kernel, path)
        (future,) = runner.run([meta_schedule.runner.RunnerInput(str(path), backend.device_name, arguments)])
        result = future.result()
    return tuple(float(seconds) for seconds in result.run_secs or ())


def _tune_rest(search: Search, module: Any, trials: int, runner: Runner, advance: Any) -> TuneResult:
    """MetaSchedule's generic space for the functions that no recipe made, with what the convs left of the trials."""
    functions = {
        str(variable.name_hint): func
        for variable, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and not (func.attrs and func.attrs.get(SCHEDULED))
    }
    store = meta_schedule.database.JSONDatabase(str(search.folder / WORKLOADS), str(search.folder / SCHEDULES))
    before = len(store)
    advance(min(before, max(0, trials)))
    if functions and trials - before > 0:
        temporary = tempfile.TemporaryDirectory(prefix="reparam-")
        with _filter_logging(), temporary as work, contextlib.closing(Building()) as builder:
            contexts = [
                meta_schedule.TuneContext(
                    tvm.IRModule({"main": func.with_attr("global_symbol", "main")}),
                    target=search.backend.target,
                    space_generator=search.tuning.space(),
                    search_strategy=_strategy(),
                    task_name=name,
                    rand_state=1 + index,
                    num_threads=1,
                )
                for index, (name, func) in enumerate(functions.items())
            ]
            meta_schedule.tune.tune_tasks(
                tasks=contexts,
                task_weights=[1.0] * len(contexts),
                work_dir=work,
                max_trials_global=trials - before,
                num_trials_per_iter=max(1, min(BATCH, (trials - before) // len(contexts))),
                builder=builder,
                runner=runner(),
                database=store,
            )
        advance(len(store) - before)
    tasks = tuple(_generic_task(store, name, func) for name, func in functions.items())
    return TuneResult(len(store) - before, len(store), tasks)


def _strategy() -> Any:
    """Evolution in a small population: the default one of 512 spends minutes a task before its first measurement."""
    return meta_schedule.search_strategy.EvolutionarySearch(population_size=64, init_min_unmeasured=8, genetic_num_iters=2)


def _generic_task(store: Any, name: str, func: Any) -> TunedTask:
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    if not store.has_workload(module):
        return TunedTask(name, 0, math.inf)
    workload = store.commit_workload(module)
    times = [
        min(float(seconds) for seconds in record.run_secs)
        for record in store.get_all_tuning_records()
        if record.workload.same_as(workload) and record.run_secs
    ]
    return TunedTask(name, len(times), min(times, default=math.inf))


@contextlib.contextmanager
def _filter_logging() -> Iterator[None]:
    """MetaSchedule logs every round at level INFO and resets the handlers of its loggers; give them back."""
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    before = (logger.level, logger.handlers[:], logger.propagate)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.level, logger.handlers, logger.propagate = before


@contextlib.contextmanager
def _bar(shown: bool, total: int) -> Iterator[Any]:
    """A function that moves the progress bar on by n.

    The bar has a stderr of its own, for `filter_stderr` holds the common one.
    """
    if not (shown and sys.stderr is not None and sys.stderr.isatty()):
        yield lambda steps: None
        return
    columns = (TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w") as stderr,
        Progress(*columns, console=Console(file=stderr), transient=True) as progress,
    ):
        task = progress.add_task("tuning", total=total)
        yield lambda steps: progress.advance(task, steps)
