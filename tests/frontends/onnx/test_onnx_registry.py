"""The ONNX columns of the vocabulary, and what a type without a row is."""

from typing import Any

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, helper

import reparam_compiler
from reparam_compiler.core.kernel import ConvKernel, diagonal
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.onnx.ops import table
from reparam_compiler.frontends.onnx.ops.registry import COUPLING_MODELS, READERS, couples, reads
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, TensorType
from reparam_compiler.ir.ops import Facts
from reparam_compiler.passes.fusion import registry
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.pruning.coupling.registry import COUPLING_RULES
from reparam_compiler.passes.pruning.pipeline import prune
from reparam_compiler.vocabulary.resolve import ROWS, by_onnx
from tests.support.onnx_models import model_of, normal, session

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")

assert table  # it attaches the readers


@pytest.mark.parametrize("column", [READERS, COUPLING_MODELS])
def test_what_is_attached_belongs_to_a_row(column: dict[str, object]) -> None:
    assert column
    assert all(by_onnx(kind) is not None for kind in column)


def test_every_type_of_a_row_is_read_coupled_or_told_by_facts() -> None:
    mute = {
        of_type.name
        for row in ROWS.values()
        for of_type in row.onnx
        if of_type.name not in READERS | COUPLING_MODELS and row.form is None and not row.facts
    }
    assert not mute


def test_a_type_is_attached_once_and_only_with_a_row() -> None:
    with pytest.raises(ValueError, match="Conv has one already"):
        reads("Conv")(print)
    with pytest.raises(ValueError, match="Nonsense: no row"):
        couples("Nonsense")(print)


@pytest.mark.parametrize("domain", ["mylib", "com.microsoft"])
def test_a_type_of_another_domain_is_no_op_of_onnx(domain: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"], domain=domain, alpha=2, words=["a"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    model = model_of(nodes, {"x": (2, 4, 6, 5)}, ["y"], {"w": normal(8, 4, 1, 1), "v": normal(3, 8, 1, 1)})
    model.opset_import.append(helper.make_opsetid(domain, 1))
    model.graph.value_info.extend(helper.make_tensor_value_info(name, 1, (2, 8, 6, 5)) for name in "cr")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, (2, 3, 6, 5)))
    graph = OnnxFrontend().read(model).graph
    op = graph["r"].op
    assert isinstance(op, ops.Opaque)
    assert (op.target, op.run, op.facts, op.arguments) == (f"{domain}::Relu", None, Facts.NONE, {"alpha": 2})
    with pytest.raises(InfeasiblePruneError, match=rf"r \({domain}::Relu\) is not understood"):
        prune(graph, ratio=0.5, round_to=1)


def test_a_function_of_the_model_is_not_the_op_of_its_name() -> None:
    body = helper.make_node("Neg", ["a"], ["b"])
    function = helper.make_function("mine", "Relu", ["a"], ["b"], [body], [helper.make_opsetid("", 17)])
    node = helper.make_node("Relu", ["x"], ["y"], domain="mine")
    model = model_of([node], {"x": (2, 3)}, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    op = OnnxFrontend().read(model).graph["y"].op
    assert isinstance(op, ops.Opaque)
    assert (op.target, op.facts) == ("mine::Relu", Facts.NONE)
    assert op.run is not None


def branches(*, body: bool, factor: float = 0.5) -> ModelProto:
    """Two convs, one of which a custom op scales, their sum and a conv of it. body: the model says what the op computes."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Scale", ["c"], ["r"], domain="mylib", factor=factor),
        helper.make_node("Conv", ["x", "u"], ["d"]),
        helper.make_node("Add", ["r", "d"], ["s"]),
        helper.make_node("Conv", ["s", "v"], ["y"]),
    ]
    weights = {"w": normal(8, 4, 1, 1), "u": normal(8, 4, 1, 1), "v": normal(3, 8, 1, 1)}
    model = model_of(nodes, {"x": (2, 4, 6, 5)}, ["y"], weights)
    model.opset_import.append(helper.make_opsetid("mylib", 1))
    model.graph.value_info.extend(helper.make_tensor_value_info(name, 1, (2, 8, 6, 5)) for name in "crds")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, (2, 3, 6, 5)))
    if body:
        given = helper.make_node("Constant", [], ["k"])
        given.attribute.add(name="value_float", type=AttributeProto.FLOAT, ref_attr_name="factor")
        steps = [given, helper.make_node("CastLike", ["k", "a"], ["f"]), helper.make_node("Mul", ["a", "f"], ["b"])]
        function = helper.make_function("mylib", "Scale", ["a"], ["b"], steps, [helper.make_opsetid("", 17)], ["factor"])
        model.functions.append(function)
    return model


def scale(node: Node, reads: SourceLayout) -> ConvKernel:
    """The linear rule of `mylib::Scale`."""
    assert isinstance(node.op, ops.Opaque)
    factor = node.op.arguments["factor"]
    assert isinstance(factor, float)
    return diagonal(np.full(reads.channels, factor), np.zeros(reads.channels), reads.rank)


def elementwise(node: Node) -> ops.Op | None:
    """The coupling rule of `mylib::Scale`."""
    assert isinstance(node.op, ops.Opaque)
    assert node.op.arguments == {"factor": 0.5}
    assert node.inputs == ("c",)
    assert node.type == TensorType("f32", (2, 8, 6, 5))
    return ops.Slicewise((0, 1, 2, 3))


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    monkeypatch.delitem(COUPLING_RULES, "mylib::Scale", raising=False)
    reparam_compiler.register_linear("mylib::Scale")(scale)
    monkeypatch.setitem(COUPLING_RULES, "mylib::Scale", elementwise)


@pytest.mark.usefixtures("own_rules")
def test_rules_of_a_callers_own_hold_for_a_type_of_another_domain() -> None:
    model, x = branches(body=True), normal(2, 4, 6, 5)
    fused = reparam_compiler.fuse(model, policy="always")
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    np.testing.assert_allclose(*(session(m).run(None, {"x": x})[0] for m in (model, fused)), rtol=1e-4, atol=1e-5)
    pruned, report = reparam_compiler.prune(model, ratio=0.5, round_to=1, return_report=True)
    assert [(family.before, family.after) for family in report.plan.families] == [(8, 4)]
    assert [node.op_type for node in pruned.graph.node] == [node.op_type for node in model.graph.node]
    assert session(pruned).run(None, {"x": x})[0].shape == (2, 3, 6, 5)


@pytest.mark.usefixtures("own_rules")
def test_without_a_body_there_is_nothing_that_a_rule_could_be_proven_by() -> None:
    model = branches(body=False)
    fused, report = reparam_compiler.fuse(model, policy="always", return_report=True)
    assert [node.op_type for node in fused.graph.node] == [node.op_type for node in model.graph.node]
    assert "the region does not run on its own" in report.to_text()
    with pytest.raises(InfeasiblePruneError, match=r"r \(mylib::Scale\) is not understood"):
        reparam_compiler.prune(model, ratio=0.5, round_to=1)


@pytest.mark.usefixtures("own_rules")
def test_a_linear_rule_that_is_not_what_the_body_computes_is_refuted() -> None:
    reparam_compiler.register_linear("mylib::Scale", override=True)(
        lambda node, reads: diagonal(np.full(reads.channels, 0.25), np.zeros(reads.channels), reads.rank)
    )
    fused, report = reparam_compiler.fuse(branches(body=True), policy="always", return_report=True)
    assert "both forms differ" in report.to_text()
    assert "Scale" in [node.op_type for node in fused.graph.node]


def test_opaque_ops_have_the_facts_of_their_row_and_the_arguments_of_the_call() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], mean=1.0),
        helper.make_node("Resize", ["x", "", "scales"], ["z"], mode="linear"),
        helper.make_node("DepthToSpace", ["x"], ["d"], blocksize=2),
        helper.make_node("HardSigmoid", ["x"], ["h"], alpha=0.3),
    ]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    graph = OnnxFrontend().read(model_of(nodes, {"x": (2, 4, 3, 5)}, ["r", "z", "d", "h"], constants)).graph
    found = {name: node.op for name in "rzh" if isinstance((node := graph[name]).op, ops.Opaque)}
    assert {name: op.facts for name, op in found.items() if isinstance(op, ops.Opaque)} == {
        "r": Facts.RANDOM,
        "z": Facts.BILINEAR | Facts.WIDTH_OF_INPUT | Facts.SIZED_BY_VALUE,
        "h": Facts.NONE,
    }
    assert {name: op.arguments for name, op in found.items() if isinstance(op, ops.Opaque)} == {
        "r": {"mean": 1.0},
        "z": {"mode": "linear"},
        "h": {"alpha": pytest.approx(0.3)},
    }
    assert found["r"].run is None
    assert found["h"].coupling == ops.Slicewise((0, 1, 2, 3))


@pytest.mark.parametrize(
    ("kind", "attributes", "axes"),
    [
        ("LpPool", {"kernel_shape": [2, 2]}, (0, 1)),
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [3, 3], "pads": [0, 0, 1, 1]}, (0, 1)),
        ("Cast", {"to": 7}, (0, 1, 2, 3)),
        ("Sin", {}, (0, 1, 2, 3)),
    ],
)
def test_the_form_of_a_row_says_along_which_axes_slices_stay_apart(
    kind: str, attributes: dict[str, Any], axes: tuple[int, ...]
) -> None:
    nodes = [helper.make_node(kind, ["x"], ["v"], **attributes), helper.make_node("Cast", ["v"], ["y"], to=1)]
    op = OnnxFrontend().read(model_of(nodes, {"x": (2, 4, 6, 6)}, ["y"])).graph["v"].op
    assert isinstance(op, ops.Opaque)
    assert (op.coupling, op.reads) == (ops.Slicewise(axes), 1)
