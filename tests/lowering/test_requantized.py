"""The epilogue of a layer of bytes in few operations: the same numbers as the steps that it is made of, in numpy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.conv.pointwise import READ
from reparam_compiler.lowering.cpu.requantized import requantized
from reparam_compiler.lowering.relax.conv_sites import ConvSite

pytestmark = pytest.mark.tvm
CHANNELS, PIXELS = 5, 7
COMPUTED: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "relu": lambda value, _: np.maximum(value, value.dtype.type(0)),
    "round": lambda value, _: np.rint(value),
    "nearest": lambda value, _: np.rint(value).astype(np.int32),
    "sigmoid": lambda value, _: 1 / (1 + np.exp(-value)),
    "read": lambda _, other: other,
}


def computed(steps: Sequence[Step], operands: Sequence[Any], sums: np.ndarray) -> np.ndarray:
    """What steps give of sums."""
    values, rest = [sums], iter(operands)
    for step in steps:
        value = values[-1] if step.source is None else values[step.source]
        operand = next(rest) if step.operand in READ else None
        other = (
            values[step.other]
            if step.operand == "earlier"
            else np.asarray(step.value, step.dtype)
            if operand is None
            else operand
        )
        made = (
            value.astype(step.dtype)
            if step.op == "to"
            else COMPUTED[step.op](*((other, value) if step.swapped else (value, other)))
        )
        values.append(made)
    return values[-1]


@dataclass
class Written:
    """An epilogue under construction, in the steps that a model gives."""

    steps: list[Step] = field(default_factory=lambda: [Step("to", dtype="float32")])
    operands: list[np.ndarray] = field(default_factory=list)

    def __call__(self, op: str, value: float | np.ndarray | None = None, **options: Any) -> int:
        """The place of the value that the step gives."""
        kind = "none" if value is None else "channels" if isinstance(value, np.ndarray) else "scalar"
        number = float(np.float32(value)) if isinstance(value, float) else 0.0
        self.steps.append(Step(op, kind, value=number, dtype=options.pop("dtype", "float32"), **options))
        self.operands += [value] if isinstance(value, np.ndarray) else []
        return len(self.steps)

    def quantize(self, scale: float, zero: int, dtype: str) -> None:
        limits = np.iinfo(dtype)
        self("div", scale)
        self("round")
        if zero:
            self("add", float(zero))
        self("maximum", float(limits.min))
        self("minimum", float(limits.max))
        self("to", dtype=dtype)

    def dequantize(self, scale: float, zero: int) -> None:
        self("to")
        if zero:
            self("sub", float(zero))
        self("mul", scale)

    def residual(self, data: np.ndarray, scale: float, zero: int) -> None:
        """The sum with what bytes stand for."""
        place = len(self.steps)
        self.steps.append(Step("read", "tensor", dtype=str(data.dtype)))
        self.operands.append(data)
        self.dequantize(scale, zero)
        self.steps.append(Step("add", "earlier", source=place, other=len(self.steps), dtype="float32"))

    def site(self) -> ConvSite:
        shape = ConvShape(1, 1, PIXELS, 3, CHANNELS, (1, 1), dtype="int32")
        return ConvSite(shape, None, np.zeros((CHANNELS, 1, 1, 3)), tuple(self.steps), tuple(self.operands), (), None)


@st.composite
def epilogues(draw: st.DrawFn) -> Written:
    """Scales, biases, functions and sums of bytes, quantized in between or not.

    Scales are powers of two, so that float32 holds every product and sum, whatever their order, but for those of a sigmoid.
    """
    source = np.random.default_rng(draw(st.integers(0, 99)))
    dtype, scales = st.sampled_from(["uint8", "int8"]), st.integers(-6, -3).map(lambda power: 2.0**power)
    written = Written()

    def quantize(again: bool) -> None:
        kind, scale = draw(dtype), draw(scales)
        zero = draw(st.integers(-128, 127)) + (128 if kind == "uint8" else 0)
        written.quantize(scale, zero, kind)
        if again:
            written.dequantize(scale, zero)

    written("mul", 2.0 ** source.integers(-9, -5, CHANNELS).astype(np.float32))
    for part in draw(
        st.lists(st.sampled_from(["bias", "relu", "bytes", "residual", "sigmoid", "halved", "twice"]), max_size=5)
    ):
        if part == "bias":
            written("add", source.integers(-64, 64, CHANNELS).astype(np.float32) / 16)
        elif part == "bytes":
            quantize(again=True)
        elif part == "residual":
            kind = draw(dtype)
            limits = np.iinfo(kind)
            data = source.integers(limits.min, limits.max + 1, (PIXELS, CHANNELS)).astype(kind)
            written.residual(data, draw(scales), draw(st.integers(limits.min, limits.max)))
        elif part == "halved":
            written("div", 2.0)
        elif part == "twice":
            at = written("relu")
            written.steps.append(Step("add", "earlier", source=at - 1, other=at, dtype="float32"))
        else:
            written(part)
    if draw(st.booleans()):
        quantize(again=False)
    return written


@given(written=epilogues(), seed=st.integers(0, 99))
def test_the_steps_give_the_same_numbers(written: Written, seed: int) -> None:
    sums = np.random.default_rng(seed).integers(-4000, 4000, (PIXELS, CHANNELS)).astype(np.int32)
    site = written.site()
    made = requantized(site)
    found, expected = (computed(each.epilogue, each.operands, sums) for each in (made, site))
    if any(step.op == "sigmoid" for step in site.epilogue):  # two biases behind it are one, so that its sum is rounded once
        rounding = 1 if expected.dtype.kind in "iu" else 4 * np.finfo(np.float32).eps * np.abs(expected).max()
        np.testing.assert_allclose(found.astype("float64"), expected.astype("float64"), rtol=0, atol=rounding)
        assert found.dtype == expected.dtype
    else:
        np.testing.assert_array_equal(found, expected, strict=True)
    assert not any(step.op == "div" for step in made.epilogue)
    assert len(made.epilogue) <= len(site.epilogue)


def step(op: str, value: float | None = None, **options: Any) -> Step:
    return replace(Step(op, "none" if value is None else "scalar", dtype="float32"), value=value or 0.0, **options)


def test_a_residual_sum_of_bytes_is_two_products_and_two_sums() -> None:
    written, other = Written(), np.zeros((PIXELS, CHANNELS), np.uint8)
    written("mul", np.full(CHANNELS, 0.5, np.float32))
    written("add", np.ones(CHANNELS, np.float32))
    written.quantize(0.25, 7, "uint8")
    written.dequantize(0.25, 7)
    written.residual(other, 0.125, 3)
    written("relu")
    written.quantize(0.5, 0, "uint8")
    made = requantized(written.site())
    assert made.epilogue == (
        *(Step("to", dtype="float32"), Step("mul", "channels", dtype="float32"), Step("add", "channels", dtype="float32")),
        *(step("maximum", -7.0), step("minimum", 248.0), step("round")),
        *(Step("read", "tensor", dtype="uint8"), step("to")),
        *(step("mul", 0.5, source=6), step("add", -0.75), step("mul", 0.25, source=8)),
        Step("add", "earlier", other=10, dtype="float32"),
        *(step("maximum", 0.0), step("minimum", 255.0), Step("nearest", dtype="int32"), Step("to", dtype="uint8")),
    )
    assert [np.asarray(each).reshape(-1)[0] for each in made.operands] == [2.0, 4.0, 0.0]


def test_a_value_that_is_read_again_is_made_once() -> None:
    """x sigmoid(x): both read what the scale and the bias give."""
    written = Written()
    written("mul", 0.5)
    at = written("add", 1.0)
    written("sigmoid")
    written.steps.append(Step("mul", "earlier", source=at, other=at + 1, dtype="float32"))
    assert requantized(written.site()).epilogue == tuple(written.steps)


def test_what_is_no_float_at_first_stays_as_it_is() -> None:
    site = replace(Written().site(), epilogue=(Step("add", "channels"),), operands=(np.ones(CHANNELS, np.int32),))
    assert requantized(site) is site
