"""The ONNX columns of the vocabulary, and what a type without a row is."""

import numpy as np
import pytest
from onnx import helper

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.onnx.ops import table
from reparam_compiler.frontends.onnx.ops.registry import COUPLING_MODELS, READERS, couples, reads
from reparam_compiler.ir import ops
from reparam_compiler.ir.ops import Facts
from reparam_compiler.passes.pruning.pipeline import prune
from reparam_compiler.vocabulary.resolve import ROWS, by_onnx
from tests.support.onnx_models import model_of, normal

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
        "z": Facts.BILINEAR | Facts.WIDTH_OF_INPUT,
        "h": Facts.NONE,
    }
    assert {name: op.arguments for name, op in found.items() if isinstance(op, ops.Opaque)} == {
        "r": {"mean": 1.0},
        "z": {"mode": "linear"},
        "h": {"alpha": pytest.approx(0.3)},
    }
    assert found["r"].run is None
    assert found["h"].coupling == ops.Slicewise((0, 1, 2, 3))
