"""Do two models compute the same? For any conversion script, the user's or ours (`api/comparing.py` opens them).

Both run on the example inputs, on random ones of the same shapes, and, where both take them, on other sizes and another batch:
a kernel that is wrong at the border hides behind some sizes. What they may differ by is what rounding does to *these* models:

    tolerance = 8 max over both of |model with its weights moved by a rounding - model| / |model|

A deployed form holds folded weights rounded to float32, and a deep net amplifies that: no fixed number would be honest.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from reparam_compiler.checking.runners import Outputs
from reparam_compiler.checking.subjects import Subject, subject
from reparam_compiler.checking.tolerances import BY_DTYPE, COMPUTED_FLOOR, EPS, MARGIN
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.torch.tensors import arrays_as_tensors
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.vocabulary.dtypes import FLOATING


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether two models compute the same; true and false as `equal` is.

    equal: nothing but rounding stands between them, on all inputs tried.
    max_abs, relative: the largest difference, relative to the largest value of its output; infinite where shapes differ.
    output: the index of the output where that was (outputs flattened); `where`: the inputs.
    dtype: the coarser of the dtypes that the two ran in. runtimes: what ran each, in words.
    tolerance: the relative difference that rounding explains. rounding: the response to it, measured; None where that was
        not needed.
    tried, skipped: inputs that both took, and those that one or both did not, with the reason.
    reason: why they are not equal where that is no number, or cannot be told; else empty.
    """

    equal: bool
    max_abs: float
    relative: float
    output: int | None
    where: str
    dtype: str
    runtimes: tuple[str, str]
    tolerance: float
    rounding: float | None
    tried: tuple[str, ...]
    skipped: tuple[str, ...]
    reason: str = ""

    def __bool__(self) -> bool:
        return self.equal

    def to_json(self) -> str:
        """A JSON object with the fields of this class; numbers that are not finite are null."""
        fields = asdict(self).items()
        return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields}, indent=2)

    def to_text(self) -> str:
        """The result as text."""
        lines = ["equal: nothing but rounding" if self.equal else f"not equal: {self.reason or 'more than rounding'}"]
        if self.output is not None:
            at = f"output {self.output}, on {self.where}"
            lines.append(f"  differs by {self.max_abs:.3g}, {self.relative:.1e} relative, at {at}")
        measured = "" if self.rounding is None else f" (rounding the weights moves the outputs by {self.rounding:.1e})"
        lines.append(f"  compared in {self.dtype}; tolerance {self.tolerance:.1e} relative{measured}")
        lines += [f"  {name}: {runtime}" for name, runtime in zip("ab", self.runtimes, strict=True)]
        lines += [f"  tried    {words}" for words in self.tried]
        return "\n".join(lines + [f"  skipped  {words}" for words in self.skipped])


def compare_models(a: Any, b: Any, example_inputs: Sequence[Any], *, tolerance: float | None = None) -> Equivalence:
    """What `equivalent` says of two native models."""
    inputs = arrays_as_tensors(tuple(example_inputs))
    subjects = subject(a, inputs), subject(b, inputs)
    comparison = _Comparison(subjects)
    comparison.add(f"example inputs {_shapes(inputs)}", subjects[0].examples, subjects[1].examples)
    for alternatives in _trials(inputs):
        for given in alternatives:
            if comparison.reason or comparison.run(f"random inputs {_shapes(given)}", given):
                break
    return comparison.result(inputs, tolerance)


class _Comparison:
    """What has been found so far."""

    def __init__(self, subjects: tuple[Subject, Subject]) -> None:
        self._subjects = subjects
        self.reason, self._finite, self._outputs = "", False, 0
        self._worst, self._output, self._where = EXACT, 0, ""
        self._tried: list[str] = []
        self._skipped: list[str] = []

    def run(self, words: str, inputs: Sequence[Any]) -> bool:
        """Compares them on these inputs; False where one does not take them."""
        found: list[Outputs] = []
        for name, model in zip("ab", self._subjects, strict=True):
            try:
                found.append(model.runner.run(inputs))
            except UnsupportedModelError as error:
                self._skipped.append(f"{words}: {name} does not take them ({error})")
                return False
        self.add(words, *found)
        return True

    def add(self, words: str, expected: Outputs, found: Outputs) -> None:
        self._tried.append(words)
        self._outputs += len(expected)
        if len(expected) != len(found):
            self.reason = f"a gives {len(expected)} outputs and b gives {len(found)}, on {words}"
            return
        keyed = expected.keys() == found.keys()
        for index, (name, value) in enumerate(expected.items()):
            other = found[name] if keyed else [*found.values()][index]
            if value.shape != other.shape:
                shapes = f"shape {list(value.shape)} in a and {list(other.shape)} in b"
                self.reason = f"output {index} has the {shapes}, on {words}"
                self._worst, self._output, self._where = Difference(math.inf, math.inf), index, words
                return
            self._finite |= bool(value.isfinite().any())
            apart = difference(value, other)
            if apart.relative > self._worst.relative or not self._where:
                self._worst, self._output, self._where = apart, index, words

    def result(self, inputs: Sequence[Any], wanted: float | None) -> Equivalence:
        a, b = (subject.runner for subject in self._subjects)
        computed = max(a.computed, b.computed, key=EPS.__getitem__)
        stored = max(a.stored, b.stored, computed, key=EPS.__getitem__)
        if not self.reason and not self._finite:
            given = "a finite number" if self._outputs else "a tensor or a number"
            self.reason = f"neither gives {given}, so that nothing can be told"
        tolerance, rounding = wanted, None
        if tolerance is None:
            floor = BY_DTYPE[stored].floor
            tolerance = floor if computed == "f64" else max(floor, COMPUTED_FLOOR)
            if not self.reason and tolerance < self._worst.relative < math.inf:
                rounding = max(_response(subject, inputs) for subject in self._subjects)
                tolerance = max(tolerance, min(MARGIN * rounding, BY_DTYPE[stored].ceiling))
                if tolerance < self._worst.relative <= MARGIN * rounding:
                    self.reason = "it cannot be told: the models amplify rounding to as much as they differ by"
        found = self._worst if not self.reason or self._where else Difference(math.inf, math.inf)
        return Equivalence(
            equal=not self.reason and found.relative <= tolerance,
            max_abs=found.max_abs,
            relative=found.relative,
            output=self._output if self._where else None,
            where=self._where,
            dtype=FLOATING[computed].name,
            runtimes=(a.runtime, b.runtime),
            tolerance=tolerance,
            rounding=rounding,
            tried=tuple(self._tried),
            skipped=tuple(self._skipped),
            reason=self.reason,
        )


def _response(subject: Subject, inputs: Sequence[Any]) -> float:
    """How far moving the weights by a rounding moves the outputs, relative to the largest value of each."""
    moved = subject.runner.nudged().run(inputs)
    apart = (difference(value, moved[name]).relative for name, value in subject.examples.items() if name in moved)
    return max((found for found in apart if math.isfinite(found)), default=0.0)


def _trials(inputs: tuple[Any, ...]) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Random inputs: of the same shapes, of other spatial sizes, of another batch; of alternatives the first that both take."""
    tensors = [x for x in _pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    if not any(map(_is_drawn, tensors)):
        return
    batch = next((x.shape[0] for x in tensors if x.ndim), None)
    generator = torch.Generator().manual_seed(0)

    def drawn(*growths: Callable[[Tensor], Sequence[int]]) -> Iterator[tuple[Any, ...]]:
        for grow in growths:
            redraw = partial(_redrawn, grow=grow, generator=generator)
            yield _pytree.tree_map_only(Tensor, redraw, inputs)

    yield drawn(lambda x: x.shape)
    if any(_is_drawn(x) and x.ndim > 2 for x in tensors):
        yield drawn(lambda x: _wider(x, 1), lambda x: _wider(x, 32))  # 32: what most nets divide their input by
    if batch:
        yield drawn(lambda x: (x.shape[0] + (x.shape[0] == batch), *x.shape[1:]) if x.ndim else ())


def _is_drawn(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _wider(x: Tensor, step: int) -> tuple[int, ...]:
    """More positions along every spatial axis, on none as many as on another."""
    return (*x.shape[:2], *(size + step * (axis + 1) for axis, size in enumerate(x.shape[2:])))


def _redrawn(x: Tensor, *, grow: Callable[[Tensor], Sequence[int]], generator: torch.Generator) -> Tensor:
    """A normal tensor of the shape to which x grows, with its mean and deviation; one of integers repeats its rows."""
    shape = tuple(grow(x))
    if not _is_drawn(x):
        return x[torch.arange(shape[0]) % len(x)] if x.ndim and len(x) else x
    wide = torch.complex128 if x.is_complex() else torch.float64
    values = x.detach().cpu().to(wide)
    mean, deviation = (values.mean().item(), values.std(correction=0).item()) if x.numel() else (0.0, 0.0)
    drawn = torch.randn(shape, generator=generator, dtype=wide) * (deviation or 1.0) + mean
    return drawn.to(x.device, x.dtype)


def _shapes(inputs: Sequence[Any]) -> str:
    """ "2x3x9x7, 5" for tensors of those sizes."""
    tensors = (x for x in _pytree.tree_leaves(tuple(inputs)) if isinstance(x, Tensor))
    return ", ".join("x".join(map(str, x.shape)) or "scalar" for x in tensors)
