"""What is known of an ONNX model without running it: inference, values made of sizes, and both asked by value."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.shapes import evaluator
from reparam_compiler.frontends.onnx.shapes.inference import infer_outputs, infer_types, opset_of
from reparam_compiler.frontends.onnx.shapes.sizes import SMALL, Sizes
from reparam_compiler.frontends.onnx.tensors import Constant
from reparam_compiler.ir.graph import TensorType
from tests.support.onnx_models import model_of, normal


def constant(*numbers: int, dtype: str = "i64") -> Constant:
    return Constant("k", dtype, (len(numbers),), lambda: np.array(numbers))


# sizes


def sizes_of(*nodes: NodeProto, **constants: Constant) -> Sizes:
    """Sizes of a model with x `n 16 h 5`, after these nodes."""
    sizes = Sizes(constants.get, {"x": TensorType("f32", ("n", 16, "h", 5))})
    for node in nodes:
        sizes.follow(node)
    return sizes


SHAPE = helper.make_node("Shape", ["x"], ["s"])


def test_a_shape_is_made_of_the_sizes_of_its_value() -> None:
    assert sizes_of(SHAPE).of("s") == (("x", 0), ("x", 1), ("x", 2), ("x", 3))
    part = helper.make_node("Shape", ["x"], ["s"], start=1, end=-1)
    assert sizes_of(part).of("s") == (("x", 1), ("x", 2))
    assert sizes_of(helper.make_node("Shape", ["unknown"], ["s"])).of("s") is None


def test_sizes_are_followed_through_what_exporters_compute_shapes_with() -> None:
    nodes = [
        SHAPE,
        helper.make_node("Gather", ["s", "first"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "zero"], ["b"]),
        helper.make_node("Concat", ["b", "rest"], ["target"], axis=0),
        helper.make_node("Slice", ["s", "two", "four"], ["tail"]),
    ]
    found = sizes_of(*nodes, first=constant(0), zero=constant(0), rest=constant(-1, 5), two=constant(2), four=constant(4))
    assert found.of("target") == (("x", 0), -1, 5)
    assert found.of("tail") == (("x", 2), ("x", 3))


def test_what_is_computed_of_sizes_is_none() -> None:
    product = helper.make_node("Mul", ["s", "s"], ["p"])
    beyond = helper.make_node("Gather", ["s", "far"], ["g"])
    found = sizes_of(SHAPE, product, beyond, far=constant(9))
    assert found.of("p") is found.of("g") is None


@pytest.mark.parametrize(
    ("given", "found"),
    [(constant(2, -1), (2, -1)), (constant(1, dtype="f32"), None), (constant(*range(SMALL + 1)), None), (None, None)],
)
def test_a_constant_is_a_shape_where_it_is_a_short_list_of_integers(given: Constant | None, found: Any) -> None:
    assert Sizes(lambda _: given, {}).of("k") == found


# inference


def test_a_model_of_an_old_opset_or_of_none_is_refused() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (2,)}, ["y"], opset=7)
    assert opset_of(model) == 7
    model.opset_import[0].version = 6
    with pytest.raises(UnsupportedModelError, match="opset is 6, at least 7 was expected"):
        opset_of(model)
    model.opset_import[0].domain = "mylib"
    with pytest.raises(UnsupportedModelError, match="opset is missing"):
        opset_of(model)


def test_inferred_types_keep_the_names_of_the_file_and_no_made_up_ones() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Relu", ["x"], ["y"])]
    found = infer_types(model_of(nodes, {"x": ("n", 4)}, ["y"]))
    assert found.types["y"] == TensorType("f32", ("n", 4))
    assert found.types["places"] == TensorType("i64", (2, None))
    of_example = infer_types(model_of(nodes, {"x": ("n", 4)}, ["y"]), {"x": (3, 4)})
    assert of_example.types["y"] == TensorType("f32", (3, 4))


def test_large_weights_are_declared_and_not_copied() -> None:
    weight = normal(8, 4, 5, 5)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (2, 4, 9, 7)}, ["y"], {"w": weight})
    assert infer_types(model).types["y"] == TensorType("f32", (2, 8, 5, 3))


def pool(kernel: int, stride: int, pads: list[int], ceil_mode: int) -> NodeProto:
    return helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[kernel], strides=[stride], pads=pads, ceil_mode=ceil_mode)


@pytest.mark.parametrize(
    ("node", "believed"),
    [
        (pool(2, 2, [0, 0], 1), True),
        (pool(2, 2, [1, 1], 1), False),
        (pool(2, 3, [0, 0], 1), False),
        (pool(2, 2, [1, 1], 0), True),
    ],
)
def test_sizes_are_not_believed_where_the_last_window_may_start_in_the_padding(node: NodeProto, believed: bool) -> None:
    model = model_of([node], {"x": (2, 4, 7)}, ["y"])
    found = infer_outputs(model, node, {"x": TensorType("f32", (2, 4, 7))})
    assert bool(found) == believed


# the evaluator


def shapes_of(model: ModelProto) -> tuple[evaluator.Shapes, list[bool]]:
    """The evaluator after all nodes of a model, and which of them depend on constants and sizes alone."""
    shapes = evaluator.of(model)
    for tensor in model.graph.initializer:
        numbers = numpy_helper.to_array(tensor)
        shapes.constants[tensor.name] = Constant(tensor.name, "i64", numbers.shape, partial(np.copy, numbers))
    return shapes, [shapes.derive(node, place) for place, node in enumerate(model.graph.node)]


FLATTEN = [
    helper.make_node("Shape", ["x"], ["s"]),
    helper.make_node("Gather", ["s", "one"], ["channels"]),
    helper.make_node("Mul", ["channels", "two"], ["wide"]),
    helper.make_node("Gather", ["s", "zero"], ["batch"]),
    helper.make_node("Relu", ["x"], ["y"]),
]
NUMBERS = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}


def test_what_open_sizes_have_no_part_in_is_constant() -> None:
    shapes, derived = shapes_of(model_of(FLATTEN, {"x": ("n", 16, 5)}, ["y"], NUMBERS))
    assert derived == [True, True, True, True, False]
    wide = shapes.constant("wide")
    assert wide is not None
    assert wide.load().tolist() == [32]
    assert shapes.constant("batch") is None
    assert "batch" in shapes
    assert "y" not in shapes
    assert shapes.sizes("batch") == (("x", 0),)
    samples = shapes.samples("batch")
    assert samples is not None
    assert len({int(sample[0]) for sample in samples}) == len(samples) > 1


def test_random_ops_and_ops_of_other_domains_are_never_constant() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["one"], ["r"]),
        helper.make_node("Identity", ["one"], ["i"], domain="mylib"),
        helper.make_node("Identity", ["one"], ["o"]),
    ]
    model = model_of(nodes, {"x": (1,)}, ["r", "i", "o"], {"one": np.array([1])})
    assert shapes_of(model)[1] == [False, False, True]


def test_a_type_is_taken_over_where_it_says_more() -> None:
    shapes, _ = shapes_of(model_of(FLATTEN, {"x": ("n", 16, 5)}, ["y"], NUMBERS))
    assert not shapes.note_type("y", TensorType("f32", (None, 16, 5)))
    assert shapes.note_type("y", TensorType("f32", (2, 16, 5)))
    assert shapes.type("y") == TensorType("f32", (2, 16, 5))
    shapes.note_dtype("y", "f64")
    assert shapes.dtype("y") == "f32"
