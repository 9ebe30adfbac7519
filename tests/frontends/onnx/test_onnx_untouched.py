"""Nothing that was in the file and was not rewritten changes: every protobuf of a rich model, compared byte for byte."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

import reparam_compiler
from tests.support.onnx_blocks import SHAPE, Parts, conv, norm, repvgg, together
from tests.support.onnx_models import FLOAT32, model_of, normal, run


def quantized_block() -> Parts:
    """A RepVGG block as quantization-aware training exports it: its weights and activations quantized and back."""
    nodes, constants = [], {"step": np.array(0.05, np.float32), "zero": np.array(0, np.int8)}
    for name, size in (("q3", 3), ("q1", 1)):
        constants[f"{name}_int"] = np.random.default_rng(size).integers(-90, 90, (4, 4, size, size)).astype(np.int8)
        nodes += [
            helper.make_node("DequantizeLinear", [f"{name}_int", "step", "zero"], [f"{name}_w"], name=f"{name}_dq"),
            helper.make_node("Conv", ["xdq", f"{name}_w"], [name], name=name, pads=[size // 2] * 4),
            helper.make_node("QuantizeLinear", [name, "step", "zero"], [f"{name}_q"], name=f"{name}_yq"),
            helper.make_node("DequantizeLinear", [f"{name}_q", "step", "zero"], [f"{name}_dq"], name=f"{name}_ydq"),
        ]
    entry = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xdq"], name="xdq"),
    ]
    return [*entry, *nodes, helper.make_node("Add", ["q3_dq", "q1_dq"], ["quantized"], name="qadd")], constants


def rich() -> ModelProto:
    """A float block that is fused, and everything beside it that must not change."""
    block, constants = repvgg()
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("sparse_places", TensorProto.INT64, [1], [1]),
        [4],
    )
    body = [helper.make_node("Mul", ["y", "shared"], ["scaled"], doc_string="in a body")]
    bodies = {
        key: helper.make_graph(body, key, [], [helper.make_tensor_value_info("scaled", 1, None)]) for key in ("then_branch",)
    }
    other = [helper.make_node("Abs", ["y"], ["absolute"])]
    bodies["else_branch"] = helper.make_graph(other, "other", [], [helper.make_tensor_value_info("absolute", 1, None)])
    nodes = [
        helper.make_node("Relu", ["x"], ["first"], name="first", doc_string="kept"),
        *block,
        helper.make_node("Conv", ["y", "again"], ["reused"], name="reused", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["first", "again"], ["reused2"], name="reused2", pads=[1, 1, 1, 1]),
        helper.make_node("If", ["flag"], ["z"], name="choice", **bodies),
        helper.make_node("Twice", ["reused"], ["twice"], domain="local"),
        helper.make_node("Add", ["reused2", "given"], ["with_given"], name="overridable"),
        *quantized_block()[0],
        helper.make_node("Constant", [], ["held"], value=numpy_helper.from_array(normal(1), "held"), name="held"),
        helper.make_node("Mul", ["quantized", "held"], ["last"], name="last"),
    ]
    extra = {"again": normal(4, 4, 3, 3, seed=70), "shared": normal(4, 1, 1, seed=71), "flag": np.array(True)}
    constants |= quantized_block()[1] | extra | {"given": normal(4, 1, 1, seed=72), "unread": normal(3, seed=73)}
    outputs = ["z", "twice", "with_given", "last"]
    model = model_of(nodes, {"x": SHAPE, "given": (4, 1, 1)}, outputs, constants)
    model.opset_import.append(helper.make_opsetid("local", 1))
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], model.opset_import
    )
    twice.doc_string = "a function"
    model.functions.append(twice)
    for out in model.graph.output:
        out.CopyFrom(helper.make_tensor_value_info(out.name, 1, SHAPE, doc_string=f"output {out.name}"))
    model.graph.sparse_initializer.append(sparse)
    model.graph.quantization_annotation.add(tensor_name="reused").quant_parameter_tensor_names.add(key="SCALE", value="step")
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, 1, SHAPE, doc_string=f"value {name}")
        for name in ("first", "ab", "y", "reused", "xdq")
    )
    model.graph.value_info[0].metadata_props.add(key="value", value="kept")
    model.graph.initializer[-1].doc_string = "an initializer"
    model.graph.initializer[-1].metadata_props.add(key="tensor", value="kept")
    model.graph.node[0].metadata_props.add(key="node", value="kept")
    model.graph.metadata_props.add(key="graph", value="kept")
    model.metadata_props.add(key="model", value="kept")
    model.doc_string, model.graph.doc_string, model.domain, model.model_version = "model", "graph", "org.example", 7
    model.producer_name, model.producer_version = "someone", "1.2"
    return model


def by_name(protos: Iterable[onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto]) -> dict[str, bytes]:
    return {
        (proto.output[0] if isinstance(proto, onnx.NodeProto) else proto.name): proto.SerializeToString(deterministic=True)
        for proto in protos
    }


FUSED_AWAY = {"a1", "b1", "a2", "b2", "c2", "ab"}
FEEDS = {"x": normal(*SHAPE)}


def test_every_untouched_protobuf_is_the_same_bytes() -> None:
    model = rich()
    onnx.checker.check_model(model, full_check=True)
    original = model.SerializeToString(deterministic=True)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    onnx.checker.check_model(fused, full_check=True)
    assert model.SerializeToString(deterministic=True) == original
    assert [fusion.node for fusion in report.fusions] == ["y"]

    before, after = by_name(model.graph.node), by_name(fused.graph.node)
    assert set(before) - set(after) == FUSED_AWAY
    assert {name for name in after if after[name] != before.get(name)} == {"y"}
    assert [name for name in after if name != "y"] == [name for name in before if name not in {*FUSED_AWAY, "y"}]

    weights = set(repvgg()[1])
    before, after = by_name(model.graph.initializer), by_name(fused.graph.initializer)
    assert set(before) - set(after) == weights
    assert set(after) - set(before) == {"y.weight", "y.bias"}
    assert all(after[name] == before[name] for name in before if name not in weights)

    before, after = by_name(model.graph.value_info), by_name(fused.graph.value_info)
    assert set(before) - set(after) == {"ab"}
    assert all(after[name] == before[name] for name in after)
    for field in ("node", "initializer", "value_info"):
        model.graph.ClearField(field)
        fused.graph.ClearField(field)
    assert fused.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_rich_model_gives_the_same_values() -> None:
    model = rich()
    del model.graph.sparse_initializer[:]  # this one has no reader, and ONNX Runtime wants one
    fused = reparam_compiler.fuse(model)
    for given in ({}, {"given": normal(4, 1, 1, seed=99)}):
        for found, expected in zip(run(fused, FEEDS | given), run(model, FEEDS | given), strict=True):
            np.testing.assert_allclose(found, expected, **FLOAT32)


def test_a_quantized_block_stays_bit_for_bit() -> None:
    nodes, constants = quantized_block()
    model = model_of(nodes, {"x": SHAPE}, ["quantized"], constants)
    assert reparam_compiler.fuse(model).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    np.testing.assert_array_equal(run(reparam_compiler.fuse(model), FEEDS)[0], run(model, FEEDS)[0])


def test_a_norm_behind_a_quantized_conv_stays() -> None:
    nodes, constants = together(quantized_block(), norm("quantized", "y", 80))
    model = model_of(nodes, {"x": SHAPE}, ["y"], constants)
    assert reparam_compiler.fuse(model).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_fake_quantizer_between_two_branches_and_their_sum_is_not_crossed() -> None:
    block, constants = together(conv("x", "a", 3, 1), conv("x", "b", 1, 2))
    quantizers = [
        helper.make_node(kind, [source, "step", "zero"], [target])
        for kind, source, target in (("QuantizeLinear", "b", "bq"), ("DequantizeLinear", "bq", "bdq"))
    ]
    constants |= {"step": np.array(0.05, np.float32), "zero": np.array(0, np.int8)}
    model = model_of([*block, *quantizers, helper.make_node("Add", ["a", "bdq"], ["y"])], {"x": SHAPE}, ["y"], constants)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert fused == model
    assert any("QuantizeLinear" in refusal.reason or "not linear" in refusal.reason for refusal in report.refusals)
