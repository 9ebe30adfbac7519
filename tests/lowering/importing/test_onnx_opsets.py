"""Old forms of an op mean what they meant; ONNX Runtime no longer runs most of them."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from tests.support.one_op_models import one_op, run_rewritten
from tests.support.onnx_models import normal

pytestmark = pytest.mark.tvm
A, B = normal(2, 3, 4, 5), normal(3, 4, seed=1)
X = normal(2, 3, 4)


def test_before_opset_7_an_operand_was_laid_from_an_axis_on() -> None:
    for op, function in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply)):
        found = run_rewritten(one_op(op, {"a": A, "b": B}, opset=6, broadcast=1, axis=1), {"a": A, "b": B})
        np.testing.assert_allclose(found[0], function(A, B[None, :, :, None]), rtol=1e-6)
    found = run_rewritten(one_op("Greater", {"a": A}, {"b": B}, opset=6, broadcast=1, axis=1), {"a": A})
    np.testing.assert_array_equal(found[0], B[None, :, :, None] < A)


@pytest.mark.parametrize(
    ("op", "constants", "opset", "attrs", "expected"),
    [
        ("Squeeze", {}, 11, {"axes": [0]}, X[0]),
        ("Unsqueeze", {}, 11, {"axes": [1]}, X[:, None]),
        ("ReduceSum", {}, 11, {"axes": [1], "keepdims": 0}, X.sum(1)),
        ("ReduceMax", {}, 13, {"axes": [-1]}, X.max(-1, keepdims=True)),
        ("Slice", {}, 9, {"starts": [1], "ends": [-1], "axes": [2]}, X[:, :, 1:-1]),
        ("Slice", {}, 1, {"starts": [0, 1], "ends": [1, 9]}, X[:1, 1:]),
        ("Clip", {}, 6, {"max": 0.5}, X.clip(None, 0.5)),
        ("Reshape", {}, 4, {"shape": [3, -1]}, X.reshape(3, -1)),
        ("Pad", {}, 2, {"pads": [0, 1, 0, 0, 0, 2], "value": 3.0}, np.pad(X, ((0, 0), (1, 0), (0, 2)), constant_values=3)),
        ("Tile", {"n": np.float32(2), "axis": np.float32(1)}, 5, {}, np.tile(X, (1, 2, 1))),
        ("Softmax", {}, 11, {"axis": 1}, np.exp(X) / np.exp(X).sum((1, 2), keepdims=True)),
        ("Cast", {}, 5, {"to": "INT32"}, X.astype(np.int32)),
        ("Concat", {"y": X}, 3, {}, np.concatenate([X, X], 1)),
        ("Upsample", {}, 7, {"scales": [1.0, 1.0, 2.0]}, X.repeat(2, 2)),
    ],
)
def test_one_output(op: str, constants: dict[str, Any], opset: int, attrs: dict[str, Any], expected: np.ndarray) -> None:
    x = X[:1] if op == "Squeeze" else X
    held = {name: np.asarray(value) for name, value in constants.items()}
    found = run_rewritten(one_op(op, {"x": x}, held, opset=opset, **attrs), {"x": x})
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("opset", "attrs"), [(1, {}), (6, {}), (9, {})])
def test_the_largest(opset: int, attrs: dict[str, Any]) -> None:
    found = run_rewritten(one_op("TopK", {"x": X}, opset=opset, outputs=2, k=2, axis=1, **attrs), {"x": X})
    order = np.argsort(-X, 1)[:, :2]
    np.testing.assert_array_equal(found[1], order)
    np.testing.assert_array_equal(found[0], np.take_along_axis(X, order, 1))


def test_parts_by_an_attribute() -> None:
    found = run_rewritten(one_op("Split", {"x": X}, opset=11, outputs=2, axis=-1, split=[1, 3]), {"x": X})
    np.testing.assert_array_equal(found[0], X[..., :1])
    np.testing.assert_array_equal(found[1], X[..., 1:])


def test_a_slope_a_channel_and_a_norm_with_old_attributes() -> None:
    slope, x = normal(3, seed=5), normal(2, 3, 4, 5)
    found = run_rewritten(one_op("PRelu", {"x": x}, {"s": slope}, opset=6), {"x": x})
    np.testing.assert_allclose(found[0], np.where(x < 0, x * slope[:, None, None], x), rtol=1e-6)
    norm = {"s": normal(3), "b": normal(3, seed=1), "m": normal(3, seed=2), "v": np.ones(3, np.float32)}
    found = run_rewritten(one_op("BatchNormalization", {"x": x}, norm, opset=7, epsilon=0.0), {"x": x})
    column = {name: value[:, None, None] for name, value in norm.items()}
    np.testing.assert_allclose(found[0], (x - column["m"]) * column["s"] + column["b"], rtol=1e-4, atol=1e-5)
