"""What accuracy, or output error, costs in speed: a model pruned by each ratio of a range (Fig. 1 of the paper, of any model).

    model --fuse--> fused --prune(ratio), repair--> a point: multiply-adds, bytes, milliseconds; accuracy, error

Every point is a model of its own, cut from the fused one. All are timed together, by turns, when the last is there.
"""

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Unpack

from reparam_compiler.api.options import PruneOptions, RoundKeywords, made
from reparam_compiler.api.pruning import prune
from reparam_compiler.api.timing import input_sizes
from reparam_compiler.cost.model import cost
from reparam_compiler.errors import InfeasiblePruneError, PruneWarning, UnsupportedModelError, first_line
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.io import check_installed, save_model
from reparam_compiler.models.opening import open
from reparam_compiler.passes.pruning.repair.gain import Gain
from reparam_compiler.progress import steps
from reparam_compiler.reporting.page import Sweep, SweepPoint
from reparam_compiler.reporting.views import bytes_moved

MOST = 50
"""Ratios of a sweep."""


def ratios_of(text: str) -> tuple[float, ...]:
    """The ratios that a text names: a range with both ends, in steps of a tenth where none are given, or a list.

    >>> ratios_of("0.1:0.5"), ratios_of("0.2:0.8:0.3"), ratios_of("0.3,0.15")
    ((0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.5, 0.8), (0.15, 0.3))

    Raises ValueError for another text, an end before the start, more than `MOST` of them, or what is no share.
    """
    expected = "expected FIRST:LAST, FIRST:LAST:STEP or a list by comma, from 0 up to below 1, as in 0.1:0.9"
    try:
        numbers = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        raise ValueError(f"found {text!r}; {expected}") from None
    if ":" in text:
        numbers = _range(numbers, text, expected)
    if len(numbers) > MOST or not all(0 <= number < 1 for number in numbers):
        raise ValueError(f"found {text!r}, {len(numbers)} ratios; {expected}, and at most {MOST} of them")
    return tuple(sorted(dict.fromkeys(numbers)))


def _range(numbers: list[float], text: str, expected: str) -> list[float]:
    first, last, step = (*numbers, 0.1) if len(numbers) == 2 else numbers if len(numbers) == 3 else (0.0, 0.0, 0.0)
    if "," in text or not (step > 0 and last >= first and math.isfinite(last - first)):
        raise ValueError(f"found {text!r}; {expected}")
    count = min(math.floor((last - first) / step + 1e-9), MOST)
    return [round(first + step * number, 9) for number in range(count + 1)]


@dataclass(frozen=True, slots=True)
class Score:
    """How good a model is: a function of the model, larger is better, and what it is called."""

    name: str
    of: Callable[[Any], object]

    def __call__(self, model: Any) -> float:
        """The number; raises UnsupportedModelError where it is none, or not finite."""
        found = self.of(model)
        with contextlib.suppress(TypeError, ValueError):
            number = float(found) if isinstance(found, Real) or hasattr(found, "__float__") else math.nan
            if math.isfinite(number):
                return number
        raise UnsupportedModelError(f"{self.name}: found {found!r}; expected a finite number, the larger the better")


def sweep(
    model: Any,
    fused: Any,
    inputs: Sequence[Any] | None,
    ratios: Sequence[float],
    score: Score | None = None,
    **options: Unpack[RoundKeywords],
) -> Sweep:
    """A model pruned by each of some ratios, with what each costs and how good it is.

    Args:
        model: as it came. fused: what is pruned: the same, fused, or the model itself.
        inputs: what both are called with, as for `prune`.
        ratios: the shares of channels to remove. One that cannot be had is a point that says why.
        score: how good a model is; without it the error of its outputs on held-out calibration data counts.
        options: more arguments of `prune`.

    Raises:
        InfeasiblePruneError: as `check_judged`; an option makes no sense, or no ratio can be had.
        UnsupportedModelError, VerificationError, RewriteError: as `prune`, and as the score.
    """
    made(PruneOptions, "sweep", options)
    check_judged(score, options.get("calibration"))
    with tempfile.TemporaryDirectory() as folder:
        found = _Sweeping(Path(folder), inputs, score, options)
        if fused is not model:
            found.add(None, model)
        found.add(0.0, fused)
        for ratio in steps(ratios, "pruning by each ratio", len(ratios)):
            if ratio:
                found.prune(ratio, fused)
        return found.timed()


def check_judged(score: object, calibration: object) -> None:
    """Raises InfeasiblePruneError where there is neither of them."""
    if score is None and calibration is None:
        raise InfeasiblePruneError(
            "found neither --evaluate nor --calibration; expected one of them: nothing says how good a pruned model is"
        )


@dataclass(slots=True, eq=False)
class _Sweeping:
    """The points so far, and the files that they are timed from, in a folder."""

    folder: Path
    inputs: Sequence[Any] | None
    score: Score | None
    options: RoundKeywords
    points: list[SweepPoint] = field(default_factory=list)
    files: dict[int, Path] = field(default_factory=dict)
    sizes: list[list[int]] = field(default_factory=list)
    samples: int = 0
    untimed: str = ""
    refusals: list[InfeasiblePruneError] = field(default_factory=list)

    def add(self, ratio: float | None, model: Any) -> None:
        """A model that is not pruned: the one that the outputs of all others are compared with, or, of no ratio, as it came."""
        graph = open(model, self.inputs, copy=False).graph
        self.sizes = input_sizes(graph)
        is_reference = ratio is not None and self.options.get("calibration") is not None
        self._measure(ratio, model, graph, (0.0, 0.0) if is_reference else None)

    def prune(self, ratio: float, fused: Any) -> None:
        """The model of a ratio, or why there is none."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PruneWarning)
                model, done = prune(fused, self.inputs, ratio=ratio, return_report=True, **self.options)
        except InfeasiblePruneError as error:
            self.refusals.append(error)
            self.points.append(SweepPoint(ratio, refused=str(error)))
            return
        assert done.graphs is not None
        self._measure(ratio, model, done.graphs.after, _errors(done.plan.gain))
        self.samples = done.plan.gain.samples if done.plan.gain is not None else self.samples

    def _measure(self, ratio: float | None, model: Any, graph: Graph, errors: tuple[float, float] | None) -> None:
        costs = cost(graph)
        unrepaired, error = errors or (None, None)
        self._save(model)
        self.points.append(
            SweepPoint(
                ratio=ratio,
                parameters=costs.params,
                multiply_adds=costs.flops,
                bytes=bytes_moved(graph),
                score=None if self.score is None else self.score(model),
                error=error,
                unrepaired_error=unrepaired,
            )
        )

    def _save(self, model: Any) -> None:
        """Where one of the models cannot become an ONNX file none is timed: times are told beside each other."""
        if self.untimed:
            return
        place = len(self.points)
        file = self.folder / f"{place}.onnx"
        try:
            check_installed("timing", "onnx", "onnxruntime")
            save_model(model, file, example_inputs=self.inputs)
        except UnsupportedModelError as error:
            self.untimed = str(error)
        self.files[place] = file

    def timed(self) -> Sweep:
        """The points with their milliseconds.

        Raises InfeasiblePruneError where all ratios were refused, or no sample was held out that would tell an error.
        """
        pruned = [point for point in self.points if point.ratio]
        if self.refusals and all(point.refused for point in pruned):
            raise self.refusals[0]
        if self.score is None and pruned and all(point.error is None for point in pruned):
            raise InfeasiblePruneError(
                "no calibration sample could be held out to tell the error of a pruned model on; give eight or more, "
                "or --evaluate"
            )
        if not self.untimed:
            self._time()
        name = "" if self.score is None else self.score.name
        return Sweep(tuple(self.points), name, self.samples, self.untimed)

    def _time(self) -> None:
        from reparam_compiler.checking.onnx_runtime import RUNTIME_ERRORS
        from reparam_compiler.frontends.onnx.timing import least_milliseconds

        try:
            least = least_milliseconds(list(self.files.values()), self.sizes)
        except RUNTIME_ERRORS as error:
            self.untimed = f"ONNX Runtime does not run it: {first_line(error)}"
            return
        for place, taken in zip(self.files, least, strict=True):
            self.points[place] = replace(self.points[place], milliseconds=taken)


def _errors(gain: Gain | None) -> tuple[float, float] | None:
    """Of the outputs on held-out samples: before repair, and as it stays, which is unrepaired where repair did harm."""
    return None if gain is None else (gain.before, gain.before if gain.is_worse else gain.after)
