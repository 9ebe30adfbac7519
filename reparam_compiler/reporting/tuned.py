"""The page of a search of kernels: what each takes by rule and at its best, what decided, and how the search went."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reparam_compiler.api.report import FuseReport
from reparam_compiler.reporting.compiled import page_of_what_is_built
from reparam_compiler.reporting.page import Page, Provenance, Search, SearchStep, TunedLayer

if TYPE_CHECKING:
    from reparam_compiler.lowering import TuneResult
    from reparam_compiler.lowering.search.asked import TunedTask
    from reparam_compiler.lowering.search.progress import TuneStep


def page_of_tuning(
    title: str,
    model: Any,
    example_inputs: Sequence[Any] | None,
    result: "TuneResult",
    steps: "Iterable[TuneStep]",
    provenance: Provenance,
    *,
    fused: FuseReport | None,
) -> Page:
    """The page of a model and of what a search found for it.

    steps: what the search told of each measurement. fused: what `fuse` did before, if it did anything.
    """
    page = page_of_what_is_built(title, model, example_inputs, provenance, fused=fused)
    interrupted = ("the search was interrupted: the same command goes on from here",) if result.interrupted else ()
    return replace(page, search=search_of(result, steps), remarks=(*page.remarks, *interrupted))


def search_of(result: "TuneResult", steps: "Iterable[TuneStep]") -> Search:
    """A search, told on a page."""
    curve = {step.trial: SearchStep(step.trial, step.seconds, step.best_seconds) for step in steps if step.best_seconds}
    return Search(
        layers=tuple(map(_layer, result.tasks)),
        curve=tuple(curve.values()),
        measured=result.measured,
        total=result.total,
        failed=result.failed,
        rule_seconds=result.rule_seconds,
        net_seconds=result.net_seconds,
    )


def _layer(task: "TunedTask") -> TunedLayer:
    rule, best = (
        seconds if seconds is not None and math.isfinite(seconds) else None
        for seconds in (task.rule_seconds, task.best_seconds)
    )
    return TunedLayer(task.name, task.count, task.trials, rule, best, task.taken, task.decided)
