"""The error of an algorithm on a layer's weights: over every form that a conv may take, and free of the weights' scale."""

import numpy as np
import pytest

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.accuracy import measured_error
from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.machine import VectorUnit

pytestmark = pytest.mark.tvm
UNIT = VectorUnit(32, 16, 2)
SHAPES = {
    "plain": ConvShape(1, 9, 7, 12, 8, (3, 3)),
    "strided, grouped": ConvShape(1, 9, 7, 12, 8, (3, 3), stride=(2, 1), groups=2),
    "dilated": ConvShape(1, 9, 7, 12, 8, (3, 3), dilation=(2, 3)),
    "depthwise": ConvShape(1, 9, 7, 12, 12, (3, 3), groups=12),
    "flat": ConvShape(1, 9, 7, 12, 8, (1, 5)),
    "dense": ConvShape(3, 1, 1, 40, 8, (1, 1)),
    "patches": ConvShape(1, 32, 32, 3, 8, (16, 16), stride=(16, 16)),
    "longer than any points": ConvShape(1, 33, 20, 4, 8, (31, 13)),
    "larger than what is measured": ConvShape(1, 1, 1, 4096, 2048, (1, 1)),
}


def weight(shape: ConvShape, dtype: str) -> np.ndarray:
    """`O kh kw Ig`."""
    drawn = np.random.default_rng(0).standard_normal((shape.channels_out, *shape.kernel, shape.group_in))
    return drawn.astype(dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_the_error_is_that_of_the_dtype_s_rounding_whatever_the_form(name: str) -> None:
    shape = SHAPES[name]
    for algorithm in candidates(shape, UNIT):
        single, double = (measured_error(weight(shape, dtype), shape, algorithm) for dtype in ("float32", "float64"))
        assert double < 1e-13
        assert 1e-9 < single < 1e-4


def test_the_error_is_relative() -> None:
    shape = SHAPES["plain"]
    small = weight(shape, "float32")
    for algorithm in candidates(shape, UNIT):
        assert measured_error(small, shape, algorithm) == measured_error(np.float32(1024) * small, shape, algorithm)


def test_what_overflows_in_the_weights_dtype_is_infinitely_wrong() -> None:
    shape = SHAPES["plain"]
    for algorithm in candidates(shape, UNIT):
        assert measured_error(np.full_like(weight(shape, "float32"), 2e38), shape, algorithm) == np.inf


def test_weight_that_is_not_finite_is_infinitely_wrong_in_any_channel() -> None:
    shape = SHAPES["larger than what is measured"]
    weights = weight(shape, "float32")
    weights[1, 0, 0, 0] = np.inf
    assert measured_error(weights, shape, candidates(shape, UNIT)[0]) == np.inf
