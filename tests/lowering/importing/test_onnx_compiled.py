"""What stands for an op that TVM misreads is what TVM reads rightly: many ops in one model each, compiled and run."""

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from reparam_compiler import lowering
from tests.support.one_op_models import Inputs
from tests.support.onnx_models import normal, run

pytestmark = pytest.mark.tvm


def of(op: str, inputs: str, outputs: str, **attrs: object) -> NodeProto:
    """A node; the names of its inputs and outputs a space apart, - for an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), outputs.split()[0], **attrs)


def side_by_side(nodes: list[NodeProto], inputs: Inputs, constants: Inputs) -> ModelProto:
    """A model whose outputs are all that its nodes make."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for node in nodes for name in node.output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def check(nodes: list[NodeProto], inputs: Inputs, constants: Inputs) -> None:
    model = side_by_side(nodes, inputs, constants)
    for node, found, expected in zip(
        model.graph.output, lowering.compile(model).run(**inputs), run(model, inputs), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=node.name)
        assert found.dtype == expected.dtype, node.name


def test_images_and_sequences() -> None:
    scales, sizes = np.asarray([1, 1, 1.6, 2.3], np.float32), np.asarray([1, 3, 3, 4], np.int64)
    nodes = [
        of("Resize", "x - scales", "linear", mode="linear"),
        of("Resize", "x - - sizes", "smaller", mode="linear", antialias=1),
        of("MaxPool", "x", "largest places", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        of("MaxPool", "x", "lower", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
        of("ConvTranspose", "x kernel", "wide", strides=[2, 2], output_shape=[14, 12]),
        of("LSTM", "s w r b", "states hidden cell", hidden_size=4),
    ]
    constants = {"scales": scales, "sizes": sizes, "kernel": normal(3, 2, 3, 3)}
    constants |= {"w": normal(1, 16, 3), "r": normal(1, 16, 4, seed=1), "b": normal(1, 32, seed=2)}
    check(nodes, {"x": normal(1, 3, 7, 6), "s": normal(3, 2, 3)}, constants)


def test_constants_that_the_reference_evaluator_misreads_are_computed_by_kernels() -> None:
    """Each was folded into another one."""
    nodes = [
        of("LRN", "k", "near", size=3, alpha=1.0, bias=2.0),
        of("LpNormalization", "k", "normal", p=1, axis=1),
        of("Resize", "k - scales", "large", mode="linear", coordinate_transformation_mode="align_corners"),
        of("Add", "x near", "one"),
        of("Add", "x normal", "other"),
        of("Add", "wide large", "last"),
    ]
    constants = {"k": normal(1, 4, 5, 5), "scales": np.asarray([1, 1, 1.5, 1.5], np.float32)}
    check(nodes, {"x": normal(1, 4, 5, 5, seed=1), "wide": normal(1, 4, 7, 7, seed=2)}, constants)


def test_elements_and_indices() -> None:
    nodes = [
        of("Pow", "x three", "cubes"),
        of("Pow", "n n", "powers"),
        of("Max", "x y x", "most"),
        of("Less", "x y", "below"),
        of("Or", "below b", "either"),
        of("Sinh", "x", "sinh"),
        of("IsInf", "x", "rising", detect_negative=0),
        of("OneHot", "n depth pair", "hot"),
        of("ReverseSequence", "y n", "turned", batch_axis=0, time_axis=1),
        of("ReduceMax", "b axis", "any", keepdims=0),
        of("QuantizeLinear", "x scale zero", "bytes"),
        of("DequantizeLinear", "bytes scale zero", "again"),
    ]
    constants = {"three": np.asarray(3, np.int64), "depth": np.asarray(4, np.int64), "pair": np.asarray([0.5, 2], np.float32)}
    constants |= {"axis": np.asarray([1]), "scale": np.asarray(0.05, np.float32), "zero": np.asarray(100, np.uint8)}
    flags = np.asarray([[True, False, False]] * 2)
    check(nodes, {"x": normal(2, 3), "y": normal(2, 3, seed=1), "n": np.asarray([3, 2]), "b": flags}, constants)


def test_a_model_may_give_what_is_known_before_it_runs() -> None:
    model = side_by_side([of("Shape", "x", "sizes"), of("Relu", "x", "y")], {"x": normal(2, 3)}, {})
    sizes, _ = lowering.compile(model).run(x=normal(2, 3))
    assert (sizes.tolist(), sizes.dtype) == ([2, 3], np.dtype(np.int64))


def test_a_large_weight_is_bound_behind_the_import() -> None:
    weight = normal(64, 40)
    model = side_by_side([of("MatMul", "x w", "y")], {"x": normal(2, 64)}, {"w": weight})
    compiled = lowering.compile(model)
    assert [spec.name for spec in compiled.inputs] == ["x"]
    np.testing.assert_allclose(compiled.run(x=normal(2, 64))[0], normal(2, 64) @ weight, rtol=1e-4, atol=1e-4)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
