"""What a model computes from the sizes of its inputs becomes tensors, where these sizes are known."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from reparam_compiler.frontends.onnx.fixed_sizes import shapes_for, with_fixed_sizes
from tests.frontends.onnx.test_onnx_bound import NETS, net
from tests.support.onnx_models import FLOAT32, model_of, normal, run

ASKS = {"Shape", "Range", "Gather"}


@pytest.mark.parametrize("name", NETS)
def test_the_model_is_the_same_without_shape_arithmetic(name: str) -> None:
    model, x = net(name), normal(2, 3, 6, 8)
    before = model.SerializeToString()
    fixed = with_fixed_sizes(model, {"x": x.shape})
    assert ASKS.isdisjoint(node.op_type for node in fixed.graph.node)
    np.testing.assert_allclose(run(fixed, {"x": x})[0], run(model, {"x": x})[0], **FLOAT32)
    assert [dim.dim_value for dim in fixed.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 6, 8]
    assert model.SerializeToString() == before


def test_a_model_that_computes_no_sizes_or_gives_them_stays() -> None:
    plain = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n", 4)}, ["y"])
    assert with_fixed_sizes(plain, {"x": (2, 4)}) is plain
    gives = model_of([helper.make_node("Shape", ["x"], ["y"])], {"x": ("n", 4)}, ["y"])
    assert with_fixed_sizes(gives, {"x": (2, 4)}) is gives


def test_indices_that_are_counted_from_constants_become_tensors() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["ones"], value=helper.make_tensor("one", TensorProto.INT64, [1], [1])),
        helper.make_node("NonZero", ["ones"], ["places"]),
        helper.make_node("Squeeze", ["places", "first"], ["indices"]),
        helper.make_node("Gather", ["x", "indices"], ["y"], axis=1),
        helper.make_node("Exp", ["scale"], ["scales"]),
        helper.make_node("Mul", ["y", "scales"], ["z"]),
    ]
    constants = {"many": np.array([3]), "first": np.array([0]), "scale": normal(1)}
    model, x = model_of(nodes, {"x": ("n", 4)}, ["z"], constants), normal(2, 4)
    fixed = with_fixed_sizes(model, {"x": x.shape})
    assert [node.op_type for node in fixed.graph.node] == ["Gather", "Exp", "Mul"]  # no float is computed for the model
    np.testing.assert_array_equal(run(fixed, {"x": x})[0], run(model, {"x": x})[0])


@pytest.mark.parametrize(
    ("examples", "given", "found"),
    [
        ([normal(2, 3, 6, 8)], {}, {"x": (2, 3, 6, 8)}),
        (None, {"x": (1, 3, 4, 4)}, {"x": (1, 3, 4, 4)}),
        ([normal(2, 3, 6, 8)], {"x": (1, 3, 4, 4)}, {"x": (1, 3, 4, 4)}),
        (None, {}, None),  # sizes are open
        ([normal(2, 4, 6, 8)], {}, None),  # another number of channels than the file has
        ([normal(3, 6, 8)], {}, None),
        ([normal(1), normal(1)], {}, None),
    ],
)
def test_shapes_are_those_given_those_of_the_examples_or_none(examples: Any, given: Any, found: Any) -> None:
    assert shapes_for(net("anchors"), examples, given) == found
