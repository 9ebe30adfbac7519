"""What the reference evaluator misreads is no constant: a conv whose weight it would make is left, and computes what it did."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

import reparam_compiler
from reparam_compiler.checking.onnx_written import compare_fused_onnx
from reparam_compiler.errors import VerificationError
from reparam_compiler.models.opening import open
from tests.support.onnx_models import model_of, normal, run

NORM: dict[str, np.ndarray] = {name: np.full(3, value, np.float32) for name, value in {"s": 1, "h": 0, "m": 5, "r": 4}.items()}
MADE = {
    "LRN": (17, ["k"], {"size": 3, "alpha": 1.0, "bias": 2.0}),
    "LpNormalization": (17, ["k"], {"p": 1, "axis": 1}),
    "BatchNormalization": (12, ["k", *NORM], {}),
    "Softmax": (11, ["k"], {"axis": 1}),
    "Resize": (17, ["k", "", "scales"], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
}


def of_made_weight(op: str) -> ModelProto:
    """A conv and a norm; the weight of the conv is made of constants by the op."""
    opset, inputs, attributes = MADE[op]
    constants = {"k": normal(4, 3, 3, 3), **NORM, "scales": np.array([1, 1, 1.5, 1.5], np.float32)}
    held = {name: constants[name] for name in inputs if name}
    held |= {name: abs(normal(4, seed=place)) for place, name in enumerate(("g", "b", "mean", "variance"))}
    nodes = [
        helper.make_node(op, inputs, ["w"], **attributes),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "mean", "variance"], ["y"]),
    ]
    return model_of(nodes, {"x": (1, 3, 9, 9)}, ["y"], held, opset=opset)


@pytest.mark.parametrize("op", MADE)
def test_a_weight_that_it_would_misread_is_left_to_the_model(op: str) -> None:
    model, x = of_made_weight(op), normal(1, 3, 9, 9)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert not report.fusions
    np.testing.assert_array_equal(run(fused, {"x": x})[0], run(model, {"x": x})[0])


@pytest.mark.parametrize("op", ["BatchNormalization", "LpNormalization", "Softmax"])
def test_what_is_left_is_misread_indeed(op: str) -> None:
    model = of_made_weight(op)
    del model.graph.node[1:], model.graph.output[:]
    del model.graph.input[:]
    model.graph.output.append(helper.make_empty_tensor_value_info("w"))
    (found,), (expected,) = ReferenceEvaluator(model).run(None, {}), run(model, {})
    assert np.abs(found - expected).max() > 0.03 * np.abs(expected).max()


def test_what_agrees_with_its_graph_alone_is_refused() -> None:
    """A reader that misreads a model writes another one, which is what its graph says."""
    model, other = of_made_weight("LpNormalization"), of_made_weight("LpNormalization")
    next(each for each in other.graph.node[0].attribute if each.name == "p").i = 2
    with pytest.raises(VerificationError, match="the rewritten model differs"):
        compare_fused_onnx(model, other, None, lambda: open(other).graph)
