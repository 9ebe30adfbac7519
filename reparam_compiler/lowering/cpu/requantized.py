"""What follows the integer sums of a layer in as few operations as say the same, each scale rounded once; Steps in, Steps out.

    (float(sums) s + b) / t   = float(sums) (s / t) + b / t          a division costs as much as a tile of products
    relu(x) / t               = relu(x / t)                          t > 0
    (a - y) s + (b - z) t     = a s + (b t - y s - z t)              a residual sum of bytes: two products, two sums
    quantize(x, z)            = byte(nearest(clamp(x)) + z)          clamp: between the least byte and the most, less z
    float(quantize(x, z))     = round(clamp(x)) + z                  bytes that nobody else reads are not made

Values between are sums of products by numbers, kept as such until an operation of another kind, or a second one, needs them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from reparam_compiler.lowering.conv.algorithms import Step
from reparam_compiler.lowering.conv.pointwise import READ
from reparam_compiler.lowering.relax.conv_sites import ConvSite
from reparam_compiler.lowering.relax.epilogues import QUANTIZED

SINGLE, INTEGER = "float32", "int32"
Factor: TypeAlias = Any
"""A number, or an array `O`, in float64."""


def requantized(site: ConvSite) -> ConvSite:
    """The site with the steps on the right; as it is where its sums are not cast to float32 at first."""
    if site.epilogue[:1] != (Step("to", dtype=SINGLE),):
        return site
    made = _Rewriting(site.epilogue, list(site.operands), _readers(site.epilogue))
    if not made.ends():
        return site
    return replace(site, epilogue=tuple(made.steps), operands=tuple(made.read))


@dataclass(frozen=True, slots=True, eq=False)
class _Sum:
    """`sum_i factor_i value_i + shift`, of values that steps have given, rectified or not. terms: pairs of i and factor_i."""

    terms: tuple[tuple[int, Factor], ...]
    shift: Factor = 0.0
    rectified: bool = False

    def times(self, factor: Factor) -> "_Sum":
        return replace(self, terms=tuple((at, each * factor) for at, each in self.terms), shift=self.shift * factor)

    def plus(self, other: "_Sum") -> "_Sum":
        factors = dict(self.terms)
        for at, factor in other.terms:
            factors[at] = factors.get(at, 0.0) + factor
        return _Sum(tuple(factors.items()), self.shift + other.shift)

    @property
    def vanishes(self) -> bool:
        """Whether a value stands in it 0 times: TVM would fold the sums of the layer away, which a schedule looks for."""
        return any(not np.any(factor) for _, factor in self.terms)


@dataclass(frozen=True, slots=True)
class _Quantizing:
    """Steps that quantize. low, high: the bounds, less the zero point. count: how many steps they are."""

    low: float
    high: float
    zero: float
    dtype: str
    count: int


@dataclass(slots=True)
class _Rewriting:
    """before: the steps. operands: what they read and is left to be read. readers: how many steps read each value.

    values: what each step gives, the sums first. steps, read: those made, and what they read.
    """

    before: Sequence[Step]
    operands: list[Any]
    readers: Counter[int]
    values: list[_Sum] = field(default_factory=lambda: [_Sum(((0, 1.0),))])
    steps: list[Step] = field(default_factory=list)
    read: list[Any] = field(default_factory=list)

    def ends(self) -> bool:
        """Makes the steps; whether the last of them gives the result."""
        while (at := len(self.values) - 1) < len(self.before):
            quantizing = self._quantizing(at)
            if quantizing is None:
                self.values.append(self._after(self.before[at]))
            else:
                self._quantize(at, quantizing)
        return self._at(self.values[-1]) == len(self.steps)

    def _after(self, step: Step) -> _Sum:
        """What a step gives of the values before."""
        operand = self.operands.pop(0) if step.operand in READ else None
        if step.op == "read":
            return _Sum(((self._emit(step, operand), 1.0),))
        place = len(self.values) - 1 if step.source is None else step.source
        for read in (place, *([step.other] if step.operand == "earlier" else [])):
            if self.readers[read] > 1:
                self._kept(read)
        value = self.values[place]
        if step.dtype == SINGLE and not step.swapped and (linear := self._linear(step, value, operand)) is not None:
            return linear
        other = self._kept(step.other) if step.operand == "earlier" else 0
        made = replace(step, source=self._kept(place), other=other)
        return _Sum(((self._emit(made, operand), 1.0),))

    def _linear(self, step: Step, value: _Sum, operand: Any) -> _Sum | None:
        """The sum that a step gives of another one; nothing where it gives none."""
        if step.op == "relu":
            return replace(value, rectified=True)
        if step.operand == "earlier" and step.op == "add":
            other = self.values[step.other]
            both = None if value.rectified or other.rectified else value.plus(other)
            return None if both is None or both.vanishes else both
        number = np.float64(step.value) if step.operand == "scalar" else operand
        if number is None or not isinstance(number, np.ndarray | np.float64):
            return None
        number = number.astype(np.float64)
        if step.op in ("mul", "div") and np.all(number > 0):
            return value.times(number if step.op == "mul" else 1 / number)
        if step.op in ("add", "sub") and not value.rectified:
            return replace(value, shift=value.shift + (number if step.op == "add" else -number))
        return None

    def _quantizing(self, at: int) -> _Quantizing | None:
        """The steps from one on, where they quantize, and nothing else reads what lies between."""
        steps = self.before[at:]
        zero = steps[1].value if len(steps) > 1 and steps[1].op == "add" and steps[1].operand == "scalar" else None
        words = ("round", *(() if zero is None else ("add",)), "maximum", "minimum", "to")
        count = len(words)
        if tuple(step.op for step in steps[:count]) != words or steps[count - 1].dtype not in QUANTIZED:
            return None
        inner, last = steps[:count], steps[count - 1]
        bounds = [step for step in inner if step.op in ("maximum", "minimum")]
        if any(step.source is not None or step.swapped for step in inner[1:]) or inner[0].source is not None:
            return None
        if any(step.operand != "scalar" for step in bounds) or any(self.readers[at + place] > 1 for place in range(1, count)):
            return None
        low, high = (step.value - (zero or 0.0) for step in bounds)
        return _Quantizing(low, high, zero or 0.0, last.dtype, count)

    def _quantize(self, at: int, to: _Quantizing) -> None:
        value, behind = self.values[-1], at + to.count
        clamped = replace(value, rectified=value.rectified and to.low < 0)
        self._emit(Step("maximum", "scalar", value=to.low, source=self._at(clamped), dtype=SINGLE))
        self._emit(Step("minimum", "scalar", value=to.high, dtype=SINGLE))
        back = self.before[behind : behind + 1] == (Step("to", dtype=SINGLE),) and self.readers[behind] == 1
        if back:
            number = _Sum(((self._emit(Step("round", dtype=SINGLE)), 1.0),), to.zero)
        else:
            self._emit(Step("nearest", dtype=INTEGER))
            if to.zero:
                self._emit(Step("add", "scalar", value=to.zero, dtype=INTEGER))
            number = _Sum(((self._emit(Step("to", dtype=to.dtype)), 1.0),))
        self.values += [number] * (to.count + back)

    def _kept(self, place: int) -> int:
        """The step that gives a value, made where there is none yet."""
        at = self._at(self.values[place])
        self.values[place] = _Sum(((at, 1.0),))
        return at

    def _at(self, value: _Sum) -> int:
        """The step that gives a sum, which is made of it; each product by its own step."""
        (first, factor), *others = value.terms
        total = self._product(first, factor)
        if np.any(value.shift):
            total = self._emit(*_with("add", value.shift, total))
        for at, factor in others:
            total = self._emit(Step("add", "earlier", source=self._product(at, factor), other=total, dtype=SINGLE))
        return self._emit(Step("relu", source=total, dtype=SINGLE)) if value.rectified else total

    def _product(self, at: int, factor: Factor) -> int:
        return at if np.all(np.float64(factor) == 1.0) else self._emit(*_with("mul", factor, at))

    def _emit(self, step: Step, operand: Any = None) -> int:
        """The place of the value that a step gives, which is added."""
        self.steps.append(replace(step, source=None) if step.source == len(self.steps) else step)
        if step.operand in READ:
            self.read.append(operand)
        return len(self.steps)


def _readers(steps: Sequence[Step]) -> Counter[int]:
    """How many steps read each value."""
    sources = [at if step.source is None else step.source for at, step in enumerate(steps) if step.op != "read"]
    return Counter([*sources, *(step.other for step in steps if step.operand == "earlier")])


def _with(op: str, factor: Factor, source: int) -> tuple[Step, Any]:
    """A step with a number, or one for each channel, and its operand."""
    if np.ndim(factor) == 0:
        return Step(op, "scalar", value=float(np.float32(factor)), source=source, dtype=SINGLE), None
    return Step(op, "channels", source=source, dtype=SINGLE), factor.astype(SINGLE)
