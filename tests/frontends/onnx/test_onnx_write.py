"""Only the difference is written: everything else is the caller's own protobuf, byte for byte."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from reparam_compiler.checking.onnx_written import compare_fused_onnx
from reparam_compiler.core.kernel import Pairs
from reparam_compiler.errors import RewriteError, VerificationError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend, OnnxReading
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param, TensorType, with_inputs
from reparam_compiler.passes.fusion import pipeline
from tests.support.onnx_models import FLOAT32, evaluated, model_of, normal, run

SHAPE = (2, 4, 7, 5)
FEEDS = {"x": normal(*SHAPE)}
NORM = {"scale": normal(6, seed=1), "shift": normal(6, seed=2), "mean": normal(6, seed=3), "var": abs(normal(6, seed=4)) + 0.5}


def conv_bn() -> ModelProto:
    """conv, batch norm, relu; and beside it all that a careless write-back drops."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", *NORM], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["y"], name="relu", doc_string="kept"),
        helper.make_node("Custom", ["y"], ["z"], name="custom", domain="custom", words=b"\xff\xfe", raw=[1.5]),
    ]
    nodes[3].attribute.append(helper.make_attribute("empty", [], attr_type=onnx.AttributeProto.INTS))
    model = model_of(nodes, {"x": SHAPE}, ["z"], {"w": normal(6, 4, 3, 3), **NORM, "unused": normal(2)})
    model.opset_import.append(helper.make_opsetid("custom", 3))
    model.doc_string, model.producer_name, model.graph.doc_string = "a model", "a tool", "a graph"
    model.metadata_props.add(key="author", value="someone")
    model.graph.metadata_props.add(key="note", value="graph")
    model.graph.node[2].metadata_props.add(key="note", value="node")
    for name in ("c", "n", "y"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, 1, (2, 6, 7, 5), doc_string=f"value {name}"))
    model.graph.value_info[1].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    return model


def small(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: list[str], **options: Any) -> ModelProto:
    return model_of(nodes, {"x": SHAPE}, outputs, constants, **options)


def fused_conv(reading: OnnxReading, node_id: str, replaced: tuple[str, ...], op: ops.Conv) -> Graph:
    """The graph with a conv of random weights under that id."""
    old = reading.graph[node_id]
    width = old.type.shape[1] if old.type else None
    assert isinstance(width, int)
    size = (3,) * len(op.stride)
    weight = Param.of(normal(width, 4 // op.groups, *size, seed=7).astype(np.float64), role="weight", dtype="f32")
    bias = Param.of(normal(width, seed=8).astype(np.float64), role="bias", dtype="f32")
    return reading.graph.rewrite({node_id: replace(old, op=op, inputs=("x", weight, bias), replaces=replaced)})


def test_nothing_to_do_gives_the_same_bytes() -> None:
    model = conv_bn()
    reading = OnnxFrontend().read(model)
    assert reading.write(reading.graph).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert reading.write(reading.graph, inplace=True) is model


def test_a_fused_conv_replaces_what_it_was_made_of_and_nothing_else_changes() -> None:
    model = conv_bn()
    original = model.SerializeToString(deterministic=True)
    reading = OnnxFrontend().read(model)
    written = reading.write(pipeline.run(reading.graph).graph)
    assert model.SerializeToString(deterministic=True) == original
    conv = written.graph.node[0]
    assert [node.op_type for node in written.graph.node] == ["Conv", "Relu", "Custom"]
    assert (conv.name, list(conv.output)) == ("conv", ["n"])
    assert list(written.graph.node[1:]) == list(model.graph.node[2:])
    assert [tensor.name for tensor in written.graph.initializer] == ["unused", "n.weight", "n.bias"]
    assert [value for value in model.graph.value_info if value.name != "c"] == list(written.graph.value_info)
    stripped = [ModelProto.FromString(proto.SerializeToString()) for proto in (model, written)]
    for proto in stripped:
        for field in ("node", "initializer", "value_info"):
            proto.graph.ClearField(field)
    assert stripped[0].SerializeToString(deterministic=True) == stripped[1].SerializeToString(deterministic=True)


def test_inplace_writes_into_the_callers_model() -> None:
    model, other = conv_bn(), conv_bn()
    reading, same = OnnxFrontend().read(model), OnnxFrontend().read(other)
    assert reading.write(pipeline.run(reading.graph).graph, inplace=True) is model
    assert model == same.write(pipeline.run(same.graph).graph)


CONVS = [
    ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1)),
    ops.Conv((2, 1), ((0, 2), (3, 1)), (1, 1), 2),
    ops.Conv((1, 1), ((-1, 1), (2, 2)), (1, 2)),
    ops.Conv((1, 1), ((1, 1), (2, 1)), (1, 1), 1, "reflect"),
    ops.Conv((1, 1), ((1, 1), (2, 1)), (1, 1), 1, "replicate"),
]


@pytest.mark.parametrize("op", CONVS)
@pytest.mark.parametrize("opset", [9, 13, 20])
def test_every_conv_that_a_pass_can_make_is_written(op: ops.Conv, opset: int) -> None:
    model = small([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": normal(6, 4, 3, 3)}, ["y"], opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    reading = OnnxFrontend().read(model)
    after = fused_conv(reading, "y", ("y",), op)
    written = reading.write(after)
    np.testing.assert_allclose(run(written, FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


TRANSPOSED = [
    ops.ConvTranspose((1, 1), ((0, 0), (0, 0)), (0, 0), (1, 1)),
    ops.ConvTranspose((2, 3), ((1, 0), (0, 2)), (1, 0), (1, 1)),
    ops.ConvTranspose((2, 3), ((1, 0), (1, 1)), (0, 2), (2, 1), 2),
    ops.ConvTranspose((2, 3), ((0, 0), (0, 0)), (1, 2), (1, 2)),
]


@pytest.mark.parametrize("op", TRANSPOSED)
@pytest.mark.parametrize("opset", [9, 13, 22])
@pytest.mark.parametrize("bias", [False, True])
def test_every_transposed_conv_that_a_pass_can_make_is_written(op: ops.ConvTranspose, opset: int, bias: bool) -> None:
    model = small([helper.make_node("ConvTranspose", ["x", "w"], ["y"])], {"w": normal(4, 6, 3, 3)}, ["y"], opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    reading = OnnxFrontend().read(model)
    weight = Param.of(normal(4, 6 // op.groups, 3, 2, seed=7).astype(np.float64), role="weight", dtype="f32")
    shift = Param.of(normal(6, seed=8).astype(np.float64), role="bias", dtype="f32") if bias else None
    node = replace(reading.graph["y"], op=op, inputs=("x", weight, shift), replaces=("y",))
    after = reading.graph.rewrite({"y": node})
    written = reading.write(after)
    np.testing.assert_allclose(run(written, FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


@pytest.mark.parametrize(("padding", "extra"), [((-1, 0), 0), ((0, 0), 2), ((0, -2), 0)])
def test_a_transposed_conv_that_onnx_has_not_is_refused(padding: tuple[int, int], extra: int) -> None:
    reading = OnnxFrontend().read(
        small([helper.make_node("ConvTranspose", ["x", "w"], ["y"])], {"w": normal(4, 6, 3, 3)}, ["y"])
    )
    old = reading.graph["y"]
    op = ops.ConvTranspose((2, 2), (padding, (0, 0)), (extra, 0), (1, 1))
    with pytest.raises(RewriteError, match="y: found a transposed conv"):
        reading.write(reading.graph.rewrite({"y": replace(old, op=op, replaces=("y",))}))


@pytest.mark.parametrize("opset", [9, 13, 17, 20])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((2, 1), (0, 1)), ((0, 0), (2, 0))])
def test_circular_padding_is_written_in_every_opset(opset: int, padding: Pairs) -> None:
    op = ops.Conv((1, 1), padding, (1, 1), 1, "circular")
    model = small([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], {"w": normal(6, 4, 3, 3)}, ["y"], opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    reading = OnnxFrontend().read(model)
    after = fused_conv(reading, "y", ("y",), op)
    np.testing.assert_allclose(run(reading.write(after), FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_a_fused_linear_is_a_gemm_for_rows_and_a_matmul_otherwise(shape: tuple[int, ...]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    model = model_of(nodes, {"x": shape}, ["y"], {"w": normal(4, 6), "b": normal(6)})
    reading = OnnxFrontend().read(model)
    weight = Param.of(normal(6, 4, seed=5).astype(np.float64), role="weight", dtype="f32")
    bias = Param.of(normal(6, seed=6).astype(np.float64), role="bias", dtype="f32")
    new = replace(reading.graph["y"], op=ops.Linear(), inputs=("x", weight, bias), replaces=("m", "y"))
    after = reading.graph.rewrite({"y": new})
    written = reading.write(after)
    onnx.checker.check_model(written, full_check=True)
    assert [node.op_type for node in written.graph.node] == (["Gemm"] if len(shape) == 2 else ["MatMul", "Add"])
    feeds = {"x": normal(*shape)}
    np.testing.assert_allclose(run(written, feeds)[0], evaluated(after, feeds)[0], **FLOAT32)


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE])
def test_a_fold_is_rounded_once_to_the_models_dtype(dtype: int) -> None:
    model = conv_bn()
    del model.graph.node[3:], model.graph.value_info[:], model.graph.quantization_annotation[:]
    model.graph.input[0].type.tensor_type.elem_type = dtype
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", dtype, (2, 6, 7, 5)))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, dtype, values.shape, values.reshape(-1).tolist()))
    reading = OnnxFrontend().read(model)
    after = pipeline.run(reading.graph).graph
    written = {tensor.name: tensor for tensor in reading.write(after).graph.initializer}
    weight = after["n"].param(1)
    assert weight is not None
    assert written["n.weight"].data_type == dtype
    stored = numpy_helper.to_array(written["n.weight"])
    np.testing.assert_array_equal(stored, weight.float64().astype(stored.dtype))


def narrower(node: Node, keep: dict[int, tuple[int, int]], shape: tuple[int, ...], **attributes: Any) -> Node:
    """The node with the first entries of its parameters: for an input its axis and how many."""

    def cut(param: Param, axis: int, count: int) -> Param:
        sizes = tuple(count if a == axis else n for a, n in enumerate(param.shape))
        return replace(param, shape=sizes, load=lambda: np.take(param.load(), range(count), axis))

    inputs = {
        index: cut(operand, *keep[index])
        for index, operand in enumerate(node.inputs)
        if index in keep and isinstance(operand, Param)
    }
    return replace(with_inputs(node, inputs), type=TensorType("f32", shape), op=replace(node.op, **attributes))


@pytest.mark.parametrize("linear", ["Gemm", "MatMul"])
@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_pruned_parameters_keep_their_names_and_types_follow(linear: str, flatten: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node(flatten, ["p", "rows"] if flatten == "Reshape" else ["p"], ["f"], name="flatten"),
        helper.make_node(linear, ["f", "m"], ["y"]),
    ]
    constants = {"w": normal(6, 4, 1, 1), "b": normal(6, seed=1), "m": normal(6, 3, seed=2)}
    model = small(nodes, constants | ({"rows": np.array([2, 6])} if flatten == "Reshape" else {}), ["y"])
    model.graph.value_info.append(helper.make_tensor_value_info("c", 1, ("batch", 6, 7, 5)))
    original = model.SerializeToString()
    reading = OnnxFrontend().read(model)
    graph = reading.graph
    after = Graph.of(
        [
            graph["x"],
            narrower(graph["c"], {1: (0, 4), 2: (0, 4)}, (2, 4, 7, 5)),
            narrower(graph["p"], {}, (2, 4, 1, 1)),
            narrower(graph["f"], {}, (2, 4)),
            narrower(graph["y"], {1: (1, 4)}, (2, 3)),
        ],
        ["y"],
    )
    written = reading.write(after)
    onnx.checker.check_model(written, full_check=True)
    assert model.SerializeToString() == original
    shapes = {tensor.name: list(tensor.dims) for tensor in written.graph.initializer}
    assert {name: shapes[name] for name in "wbm"} == {"w": [4, 4, 1, 1], "b": [4], "m": [4, 3]}
    sizes = written.graph.value_info[0].type.tensor_type.shape.dim
    assert [sizes[0].dim_param, sizes[1].dim_value] == ["batch", 4]
    np.testing.assert_allclose(run(written, FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


def two_convs(extra: list[onnx.NodeProto] | None = None, outputs: tuple[str, ...] = ("a", "b")) -> ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["x", "w"], ["b"])]
    return small([*nodes, *(extra or [])], {"w": normal(6, 4, 1, 1)}, list(outputs))


def scaled(factor: float) -> Callable[[Param], Param]:
    return lambda param: replace(param, load=lambda: factor * param.load())


@pytest.mark.parametrize(
    ("factors", "names"), [((2, 2), ["w"]), ((2, 3), ["a.weight", "b.weight"]), ((2, None), ["w", "a.weight"])]
)
def test_a_shared_initializer_is_copied_on_write(factors: tuple[float | None, ...], names: list[str]) -> None:
    model = two_convs()
    reading = OnnxFrontend().read(model)
    changed = {}
    for node_id, factor in zip("ab", factors, strict=True):
        weight = reading.graph[node_id].param(1)
        assert weight is not None
        if factor is not None:
            changed[node_id] = with_inputs(reading.graph[node_id], {1: scaled(factor)(weight)})
    after = reading.graph.rewrite(changed)
    written = reading.write(after)
    assert [tensor.name for tensor in written.graph.initializer] == names
    for found, expected in zip(run(written, FEEDS), evaluated(after, FEEDS), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


def test_a_new_bias_is_added_and_a_name_that_exists_is_not_taken() -> None:
    model = two_convs([helper.make_node("Relu", ["b"], ["a.bias"])], ("a", "a.bias"))
    reading = OnnxFrontend().read(model)
    bias = Param.of(normal(6, seed=5), role="bias", dtype="f32")
    node = reading.graph["a"]
    after = reading.graph.rewrite({"a": replace(node, inputs=(*node.inputs[:2], bias))})
    written = reading.write(after)
    onnx.checker.check_model(written, full_check=True)
    assert list(written.graph.node[0].input) == ["x", "w", "a.bias_1"]
    np.testing.assert_allclose(run(written, FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


def test_a_matmul_that_gets_a_bias_becomes_a_gemm() -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 4)}, ["y"], {"w": normal(4, 6)})
    reading = OnnxFrontend().read(model)
    node = reading.graph["y"]
    bias = Param.of(normal(6, seed=5), role="bias", dtype="f32")
    after = reading.graph.rewrite({"y": replace(node, inputs=(*node.inputs[:2], bias))})
    feeds = {"x": normal(2, 4)}
    np.testing.assert_allclose(run(reading.write(after), feeds)[0], evaluated(after, feeds)[0], **FLOAT32)


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_splits_slices_and_groups_get_other_sizes(opset: int) -> None:
    attributes = {"split": [2, 2]} if opset < 13 else {}
    bounds = {"starts": np.array([-1]), "ends": np.array([2**31 - 1]), "axes": np.array([1])}
    cut = {"starts": [-1], "ends": [2**31 - 1], "axes": [1]} if opset < 10 else {}
    nodes = [
        helper.make_node("Split", ["x"], ["s", "t"], name="split", axis=1, **attributes),
        helper.make_node("Slice", ["x", *(bounds if opset >= 10 else {})], ["u"], **cut),
    ]
    model = small(nodes, bounds if opset >= 10 else {}, ["s", "t", "u"], opset=opset)
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[1].Clear()
    reading = OnnxFrontend().read(model)
    graph = reading.graph
    replacements = {
        "split:outputs": replace(graph["split:outputs"], op=ops.Split(1, (1, 3))),
        "u": replace(graph["u"], op=ops.Slice(1, 2, None)),
    }
    after = graph.rewrite(replacements)
    for found, expected in zip(run(reading.write(after), FEEDS), evaluated(after, FEEDS), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


def test_a_slice_that_counts_from_the_end_is_written_anew_when_its_source_shrinks() -> None:
    bounds = {"starts": np.array([0]), "ends": np.array([-2]), "axes": np.array([1])}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Slice", ["c", *bounds], ["y"])]
    reading = OnnxFrontend().read(small(nodes, {"w": normal(6, 4, 1, 1), **bounds}, ["y"]))
    graph = reading.graph
    assert graph["y"].op == ops.Slice(1, 0, 4)
    after = Graph.of([graph["x"], narrower(graph["c"], {1: (0, 5)}, (2, 5, 7, 5)), graph["y"]], ["y"])
    np.testing.assert_allclose(run(reading.write(after), FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


def test_what_computed_a_weight_goes_with_it() -> None:
    nodes = [helper.make_node("Mul", ["w", "s"], ["kernel"]), helper.make_node("Conv", ["x", "kernel"], ["y"])]
    model = small(nodes, {"w": normal(6, 4, 1, 1), "s": normal(6, 1, 1, 1)}, ["y"])
    reading = OnnxFrontend().read(model)
    weight = reading.graph["y"].param(1)
    assert weight is not None
    after = reading.graph.rewrite({"y": with_inputs(reading.graph["y"], {1: scaled(2.0)(weight)})})
    written = reading.write(after)
    assert [node.op_type for node in written.graph.node] == ["Conv"]
    assert [tensor.name for tensor in written.graph.initializer] == ["y.weight"]
    np.testing.assert_allclose(run(written, FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


def test_what_nothing_read_before_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *NORM], ["y"]),
        helper.make_node("Relu", ["x"], ["unread"]),
    ]
    reading = OnnxFrontend().read(small(nodes, {"w": normal(6, 4, 1, 1), **NORM}, ["y"]))
    written = reading.write(pipeline.run(reading.graph).graph)
    assert [node.op_type for node in written.graph.node] == ["Conv", "Relu"]


def test_a_value_that_only_a_body_reads_is_kept() -> None:
    bodies = {
        key: helper.make_graph(
            [helper.make_node(kind, ["c"], [f"{key}_out"])], key, [], [helper.make_tensor_value_info(f"{key}_out", 1, None)]
        )
        for key, kind in (("then_branch", "Relu"), ("else_branch", "Abs"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *NORM], ["n"]),
        helper.make_node("If", ["flag"], ["z"], **bodies),
    ]
    model = small(nodes, {"w": normal(6, 4, 1, 1), **NORM, "flag": np.array(True)}, ["n", "z"])
    reading = OnnxFrontend().read(model)
    written = reading.write(pipeline.run(reading.graph).graph)
    assert "c" in {name for node in written.graph.node for name in node.output}
    for found, expected in zip(run(written, FEEDS), run(model, FEEDS), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


def test_before_ir_version_4_new_initializers_are_listed_as_inputs() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("BatchNormalization", ["c", *NORM], ["y"])]
    constants = {"w": normal(6, 4, 1, 1), **NORM}
    inputs = {"x": SHAPE, **{name: array.shape for name, array in constants.items()}}
    model = model_of(nodes, inputs, ["y"], constants, ir_version=3, opset=9)
    reading = OnnxFrontend().read(model)
    written = reading.write(pipeline.run(reading.graph).graph)
    onnx.checker.check_model(written, full_check=True)
    assert [value.name for value in written.graph.input] == ["x", "y.weight", "y.bias"]
    np.testing.assert_allclose(run(written, FEEDS)[0], run(model, FEEDS)[0], **FLOAT32)


def test_what_has_no_onnx_form_is_refused_and_the_model_is_as_it_was() -> None:
    model = conv_bn()
    original = model.SerializeToString(deterministic=True)
    reading = OnnxFrontend().read(model)
    node = reading.graph["n"]
    odd = replace(node, op=ops.Add((0.5, 2.0)), inputs=("c", "c"), replaces=("n",))
    with pytest.raises(RewriteError, match="n: Add"):
        reading.write(reading.graph.rewrite({"n": odd}), inplace=True)
    with pytest.raises(RewriteError, match="outputs"):
        reading.write(Graph(reading.graph.nodes, ("y",)))
    with pytest.raises(RewriteError, match="z: Custom was changed"):
        reading.write(reading.graph.rewrite({"z": replace(reading.graph["z"], inputs=("n",), op=ops.Opaque("Custom", print))}))
    assert model.SerializeToString(deterministic=True) == original


@pytest.mark.parametrize("batch", [2, "batch"])
def test_models_are_compared_on_random_inputs_of_the_files_shapes(batch: int | str) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("BatchNormalization", ["c", *NORM], ["y"])]
    model = model_of(nodes, {"x": (batch, *SHAPE[1:])}, ["y"], {"w": normal(6, 4, 1, 1), **NORM})
    reading = OnnxFrontend().read(model)
    found = compare_fused_onnx(model, reading.write(pipeline.run(reading.graph).graph), None)
    assert found is not None
    assert (found.dtype, found.runtime, found.inputs) == ("float32", "ONNX Runtime", "random inputs")
    assert 0 < found.difference.relative < 1e-5
    weight = reading.graph["c"].param(1)
    assert weight is not None
    wrong = reading.graph.rewrite({"c": with_inputs(reading.graph["c"], {1: scaled(1.1)(weight)})})
    with pytest.raises(VerificationError, match="output: the rewritten model differs by"):
        compare_fused_onnx(model, reading.write(wrong), [FEEDS["x"]])


def test_sizes_that_the_file_leaves_open_are_not_made_up() -> None:
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (1, 4, "h", "w")}, ["y"], {"w": normal(6, 4, 1, 1)})
    assert compare_fused_onnx(model, model, None) is None


def test_a_size_that_a_value_no_longer_has_is_written_as_it_was_read() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Shape", ["c"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["width"]),
        helper.make_node("Cast", ["width"], ["scale"], to=1),
        helper.make_node("Div", ["x", "scale"], ["y"]),
        helper.make_node("Relu", ["c"], ["z"]),
    ]
    model = small(nodes, {"w": normal(6, 4, 1, 1), "one": np.array(1)}, ["y", "z"])
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[1].Clear()
    reading = OnnxFrontend().read(model)
    graph = reading.graph
    assert list(graph.nodes) == ["x", "c", "y", "z"]
    after = Graph.of(
        [
            graph["x"],
            narrower(graph["c"], {1: (0, 5)}, (2, 5, 7, 5)),
            graph["y"],
            narrower(graph["z"], {}, (2, 5, 7, 5)),
        ],
        graph.outputs,
    )
    written = reading.write(after)
    onnx.checker.check_model(written, full_check=True)
    assert "Shape" not in {node.op_type for node in written.graph.node}
    for found, expected in zip(run(written, FEEDS), evaluated(after, FEEDS), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


def test_a_crop_is_written_anew_when_its_source_shrinks() -> None:
    bounds = {"starts": np.array([1, 1]), "ends": np.array([-1, 7]), "axes": np.array([1, 2])}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Slice", ["c", *bounds], ["y"])]
    bounds["ends"] = np.array([5, 7])
    reading = OnnxFrontend().read(small(nodes, {"w": normal(6, 4, 1, 1), **bounds}, ["y"]))
    graph = reading.graph
    assert graph["y"].op == ops.Pad(((0, 0), (-1, -1), (-1, 0), (0, 0)))
    narrow = narrower(graph["c"], {1: (0, 5)}, (2, 5, 7, 5))
    after = Graph.of([graph["x"], narrow, narrower(graph["y"], {}, (2, 3, 6, 5))], ["y"])
    written = reading.write(after)
    np.testing.assert_allclose(run(written, FEEDS)[0], evaluated(after, FEEDS)[0], **FLOAT32)


def test_an_assignment_that_was_changed_is_written_with_its_places() -> None:
    constants = {"index": np.array([[[1], [2]]]).reshape(2, 1), "value": normal(2, 4, 7, 5)}
    model = model_of([helper.make_node("ScatterND", ["x", *constants], ["y"])], {"x": (3, 4, 7, 5)}, ["y"], constants)
    reading = OnnxFrontend().read(model)
    node = reading.graph["y"]
    assert node.op == ops.SliceUpdate(((0, 1, None),))
    other = Param.of(np.array([[[2.0]], [[3.0]], [[4.0]], [[5.0]]], np.float32), role="const", dtype="f32")
    after = reading.graph.rewrite({"y": replace(node, op=ops.SliceUpdate(((0, 0, 1), (2, -2, None))), inputs=("x", other))})
    feeds = {"x": normal(3, 4, 7, 5)}
    written = reading.write(after)
    assert [node.op_type for node in written.graph.node] == ["ScatterND"]
    onnx.checker.check_model(written, full_check=True)
    np.testing.assert_allclose(run(written, feeds)[0], evaluated(after, feeds)[0], **FLOAT32)
    unknown = replace(after["y"], type=TensorType("f32", (None, 4, 7, 5)))
    with pytest.raises(RewriteError, match="y: slice_update was changed, and its places cannot be numbered"):
        reading.write(reading.graph.rewrite({"y": unknown}))
