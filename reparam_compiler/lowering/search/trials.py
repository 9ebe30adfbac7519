"""Points of a layer -> their seconds: lowered here, built and measured in other processes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reparam_compiler.errors import class_and_line
from reparam_compiler.lowering.backend import Backend, Tuning
from reparam_compiler.lowering.conv.algorithms import Point
from reparam_compiler.lowering.relax.packed import lifted, noted
from reparam_compiler.lowering.runtime.description import TensorSpec
from reparam_compiler.lowering.runtime.launchers import default_threads
from reparam_compiler.lowering.runtime.weights import Store, Weight, digest
from reparam_compiler.lowering.search.fleet import Fleet
from reparam_compiler.lowering.search.layers import Layer, module_of
from reparam_compiler.lowering.search.measuring import Builders, Job, Kernels, Meter, Runnable, cores_of
from reparam_compiler.lowering.search.pairs import Outcome
from reparam_compiler.lowering.search.winners import Measured
from reparam_compiler.lowering.target import describe


@dataclass(frozen=True, slots=True)
class Batch:
    """Points of a layer that are measured, and the rule's, beside which they are."""

    layer: Layer
    points: Sequence[Point]
    rule: Point

    @property
    def others(self) -> list[Point]:
        """Those that are not the rule's."""
        return [point for point in self.points if point != self.rule]


class Bench:
    """Builds modules and measures them, each beside the rule's kernels for the same."""

    def __init__(self, backend: Backend, builders: Builders, meter: Meter | Fleet, folder: Path) -> None:
        """folder: for libraries and weights."""
        self.backend, self.builders, self.meter, self.folder = backend, builders, meter, folder
        self._target = describe(backend.target)
        self._threads = cores_of(backend.target) or default_threads()

    def jobs(self, lowerings: Sequence[Callable[[], Any]]) -> list[Job | Outcome]:
        """Modules, built; each is given by a function that makes its scheduled kernels."""
        lowered = list(map(self._lowered, lowerings))
        made = [each for each in lowered if not isinstance(each, Outcome)]
        built = iter(self.builders.build([kernels for kernels, _ in made], self.folder))
        return [each if isinstance(each, Outcome) else _with_library(each[1], next(built)) for each in lowered]

    def measured(self, jobs: Sequence[Job | Outcome]) -> Iterator[Outcome | None]:
        """What each took, as soon as it is known, or why there is nothing to measure; None as `Fleet.measure`."""
        found = iter(self.meter.measure([each for each in jobs if not isinstance(each, Outcome)]))
        return (each if isinstance(each, Outcome) else next(found) for each in jobs)

    def _lowered(self, lowering: Callable[[], Any]) -> tuple[Kernels, Job] | Outcome:
        store = Store()
        try:
            with noted(store) as packed:
                module, weights = lifted(lowering(), packed, store, self.backend.weights_from)
        except Exception as refusal:  # noqa: BLE001 - whatever a schedule raises costs this point alone
            return Outcome(failure=f"scheduling it failed: {class_and_line(refusal)}")
        parameters = module["main"].params
        inputs = tuple(map(_spec, parameters[: len(parameters) - len(weights)]))
        kept = tuple((str(self._kept(weight)), weight.packing) for weight in weights)
        job = Job(Runnable("", kept), None, self._target, self._threads, inputs, self.meter.repeats)
        return Kernels(module, self._target), job

    def _kept(self, weight: Weight) -> Path:
        """The file of an array, written once."""
        path = self.folder / f"{digest(weight.stored).hex()}.npy"
        if not path.is_file():
            np.save(path, weight.stored)
        return path


class Trials:
    """Measures points of the layers of one net, each beside the rule's."""

    def __init__(
        self, backend: Backend, tuning: Tuning[Any], main: Any, builders: Builders, meter: Meter | Fleet, folder: Path
    ) -> None:
        """main: of the net, as `Tuning.prepared` gave it. folder: as for `Bench`."""
        self.bench = Bench(backend, builders, meter, folder)
        self._tuning, self._main = tuning, main
        self._rules: dict[Layer, Job | Outcome] = {}

    def measure(self, batches: Sequence[Batch]) -> Iterator[Outcome | None]:
        """What each point takes, as soon as it is known; None as `Fleet.measure`.

        Its output must be that of the rule's point, which is built first.
        """
        new = {batch.layer: batch.rule for batch in batches if batch.layer not in self._rules}
        self._rules |= zip(new, self._jobs(list(new.items())), strict=True)
        built = iter(self._jobs([(batch.layer, point) for batch in batches if self._sound(batch) for point in batch.others]))
        return self.bench.measured([self._job(batch, point, built) for batch in batches for point in batch.points])

    def _sound(self, batch: Batch) -> bool:
        return not isinstance(self._rules[batch.layer], Outcome)

    def _job(self, batch: Batch, point: Point, built: Iterator[Job | Outcome]) -> Job | Outcome:
        """What is to be measured of a point. built: has what was made of points that are not the rule's."""
        first = self._rules[batch.layer]
        if isinstance(first, Outcome):
            return unsound(first)
        return first if point == batch.rule else beside(next(built), first)

    def _jobs(self, points: Sequence[tuple[Layer, Point]]) -> list[Job | Outcome]:
        """Points of layers, built."""
        return self.bench.jobs([functools.partial(self._lowered, layer, point) for layer, point in points])

    def _lowered(self, layer: Layer, point: Point) -> Any:
        return self._tuning.lowered(module_of(layer, self._main), Measured({layer.shape: (point,)}))


def _with_library(job: Job, library: str | Outcome) -> Job | Outcome:
    return library if isinstance(library, Outcome) else replace(job, candidate=replace(job.candidate, library=library))


def unsound(rule: Outcome) -> Outcome:
    """Of a candidate whose rule has no kernel that works."""
    return Outcome(failure=f"there is nothing to compare it with: of the rule's kernel, {rule.failure}")


def beside(job: Job | Outcome, rule: Job) -> Job | Outcome:
    """A candidate that is compared with the rule's."""
    return job if isinstance(job, Outcome) else replace(job, rule=rule.candidate)


def _spec(parameter: Any) -> TensorSpec:
    return TensorSpec(str(parameter.name), tuple(map(int, parameter.ty.shape.values)), str(parameter.ty.dtype))
