"""What a function of an ONNX model has by default is stated where it is called, and so every verb computes with it."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

import reparam_compiler
from reparam_compiler.vocabulary.function_defaults import with_defaults_stated
from tests.support.onnx_models import normal

ort = pytest.importorskip("onnxruntime")

BLOCK = """
<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) { %s y = Conv(a, w2) }
<opset_import: ["" : 17, "own" : 1], domain: "own">
block <alpha: float = 0.3> (x, w, w1) => (z) {
    p = Conv<pads=[1,1,1,1]>(x, w) q = Conv(x, w1) s = Add(p, q)
    z = own.act<slope: float = @alpha>(s)
}
<opset_import: ["" : 17], domain: "own">
act <slope: float = 0.7> (x) => (z) { z = LeakyRelu<alpha: float = @slope>(x) }
"""
WITHIN = """a = If(c) <
    then_branch = yes () => (float[1,4,8,8] t) { t = own.block(x, w, w1) },
    else_branch = no () => (float[1,4,8,8] e) { e = own.act(x) } >"""


def model_of(body: str) -> ModelProto:
    model = parser.parse_model(BLOCK % body)
    for name, shape in (("w", (4, 4, 3, 3)), ("w1", (4, 4, 1, 1)), ("w2", (4, 4, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(normal(*shape), name))
    onnx.checker.check_model(model)
    return model


def run(model: ModelProto, x: np.ndarray, c: bool = True) -> Any:
    feeds = {"x": x, "c": np.array(c)}
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0]


def attributes(model: ModelProto) -> list[dict[str, float]]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in model.graph.node:
        nodes += [inner for attribute in node.attribute for inner in attribute.g.node]
    return [{each.name: round(each.f, 6) for each in node.attribute} for node in nodes if node.domain == "own"]


def test_each_call_states_what_it_leaves_out_and_nothing_else() -> None:
    model = model_of("b = own.block(x, w, w1) a = own.act<slope: float = 0.1>(b)")
    before = model.SerializeToString()
    assert attributes(with_defaults_stated(model)) == [{"alpha": 0.3}, {"slope": 0.1}, {"slope": 0.0}]  # the last by its name
    assert model.SerializeToString() == before
    whole = model_of("a = own.block<alpha: float = 0.2>(x, w, w1)")
    assert with_defaults_stated(whole) is whole
    assert attributes(with_defaults_stated(model_of(WITHIN)))[1:] == [{"alpha": 0.3}, {"slope": 0.7}]


def test_another_overload_has_its_own_defaults() -> None:
    model = model_of("a = own.act(x)")
    other = model.functions.add()
    other.CopyFrom(model.functions[1])
    other.overload = "steep"
    other.attribute_proto[0].f = 0.9
    model.graph.node[0].overload = "steep"
    assert attributes(with_defaults_stated(model))[0] == {"slope": 0.9}


@pytest.mark.parametrize("body", ["a = own.block(x, w, w1)", "b = own.block(x, w, w1) a = own.act(b)"])
def test_a_fused_model_has_the_defaults_of_its_functions(body: str) -> None:
    model, x = model_of(body), normal(1, 4, 8, 8)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert len(report.fusions) == 1
    np.testing.assert_allclose(run(fused, x), run(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")
def test_a_pruned_model_has_them_too() -> None:
    model = model_of("a = own.block(x, w, w1)")
    pruned = reparam_compiler.prune(model, ratio=0.5, round_to=1)
    (act,) = (node for node in pruned.graph.node if node.op_type == "LeakyRelu")
    assert helper.get_attribute_value(act.attribute[0]) == pytest.approx(0.3)


@pytest.mark.tvm
def test_a_compiled_model_has_them_too() -> None:
    pytest.importorskip("tvm")
    model, x = model_of("b = own.block(x, w, w1) a = own.act(b)"), normal(1, 4, 8, 8)
    compiled = reparam_compiler.compile(model)
    feeds = {"x": x, "c": np.array(True)}
    (found,) = compiled.run(*(feeds[spec.name] for spec in compiled.inputs))
    np.testing.assert_allclose(np.asarray(found), run(model, x), rtol=1e-4, atol=1e-4)
