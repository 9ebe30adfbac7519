"""Why layers of an ONNX model are not read, said once; weights that it lists as inputs, and the word that frees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper
from typer.testing import CliRunner

import reparam_compiler
from reparam_compiler.commands.reparam import app
from reparam_compiler.errors import InfeasiblePruneError, RewriteError
from tests.support.onnx_models import FLOAT32, model_of, normal, run

CONSTANTS = {
    "w": normal(8, 3, 3, 3),
    "v": normal(8, 8, 1, 1, seed=1),
    **{name: normal(8, seed=seed) for seed, name in enumerate(["a", "b", "m", "a2", "b2", "m2"])},
    **{name: np.abs(normal(8)) + 0.5 for name in ("var", "var2")},
}
WEIGHTS = {name: array.astype(np.float32) for name, array in CONSTANTS.items()}
NORM = helper.make_node("BatchNormalization", ["c", "a", "b", "m", "var"], ["n"])
NODES = [
    helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
    NORM,
    helper.make_node("Relu", ["n"], ["r"]),
    helper.make_node("Conv", ["r", "v"], ["d"]),
    helper.make_node("BatchNormalization", ["d", "a2", "b2", "m2", "var2"], ["y"]),
]
LISTED = (
    "has weights that are listed as graph inputs, a caller may override them: weights_are_constant=True "
    "takes them for constants"
)
X = {"x": normal(2, 3, 5, 6).astype(np.float32)}


def listed(nodes: Sequence[NodeProto] = NODES, output: str = "y", *, ir_version: int = 8) -> ModelProto:
    """A model that lists its weights as inputs."""
    model = model_of(nodes, {"x": (2, 3, 5, 6)}, [output], WEIGHTS, ir_version=ir_version)
    model.graph.input.extend(helper.make_tensor_value_info(name, 1, a.shape) for name, a in WEIGHTS.items())
    return model


def reasons(model: ModelProto) -> list[tuple[str, str]]:
    return [(refusal.node, refusal.reason) for refusal in reparam_compiler.inspect(model).refusals]


def test_weights_that_a_caller_may_override_are_said_once() -> None:
    assert reasons(listed()) == [("n", f"{LISTED}; 1 more for that")]
    branches = [
        NODES[0],
        NORM,
        helper.make_node("Conv", ["x", "w"], ["e"], pads=[1] * 4),
        helper.make_node("Add", ["n", "e"], ["z"]),
    ]
    (refusal,) = reasons(listed(branches, "z"))
    assert refusal == ("z", f"n (BatchNormalization) {LISTED}; 1 more for that")
    with pytest.raises(InfeasiblePruneError, match="weights_are_constant=True") as raised:
        reparam_compiler.prune(listed(), ratio=0.5)
    assert str(raised.value).count("weights_are_constant=True") == 1


@pytest.mark.parametrize("inplace", [False, True])
def test_taken_for_constants_they_are_fused_and_leave_the_inputs(inplace: bool) -> None:
    model = listed()
    before = model.SerializeToString(deterministic=True)
    fused, report = reparam_compiler.fuse(model, return_report=True, weights_are_constant=True, inplace=inplace)
    assert len(report.fusions) == 2
    assert not report.refusals
    assert [value.name for value in fused.graph.input] == ["x"]
    np.testing.assert_allclose(run(fused, X)[0], run(listed(), X)[0], **FLOAT32)
    assert (fused is model) == inplace == (model.SerializeToString(deterministic=True) != before)
    assert len(reparam_compiler.inspect(listed(), weights_are_constant=True).fusions) == 2


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
def test_taken_for_constants_they_are_pruned_and_cut() -> None:
    pruned, report = reparam_compiler.prune(listed(), ratio=0.5, round_to=1, weights_are_constant=True, return_report=True)
    assert [value.name for value in pruned.graph.input] == ["x"]
    assert {tensor.name: tensor.dims[0] for tensor in pruned.graph.initializer}["w"] == 4
    again = reparam_compiler.apply_manifest(listed(), report.manifest, weights_are_constant=True)
    np.testing.assert_allclose(run(again, X)[0], run(pruned, X)[0], **FLOAT32)
    model, before = listed(), listed()
    with pytest.raises(InfeasiblePruneError):
        reparam_compiler.prune(model, ratio=0.1, round_to=8, weights_are_constant=True, inplace=True)
    assert model == before
    assert reparam_compiler.prune(model, ratio=0.5, round_to=1, weights_are_constant=True, inplace=True) is model
    assert model == pruned


@pytest.mark.parametrize("command", [("fuse",), ("prune", "--ratio", "0.5", "--round-to", "1"), ("inspect",)])
def test_the_commands_take_the_word(command: Sequence[str], tmp_path: Path) -> None:
    onnx.save(listed(), tmp_path / "given.onnx")
    written = () if command[0] == "inspect" else ("-o", str(tmp_path / "written.onnx"))
    found = CliRunner().invoke(app, [*command, str(tmp_path / "given.onnx"), "--weights-are-constant", *written])
    assert found.exit_code == 0, found.output
    assert "2 fused" in " ".join(found.output.split())
    for path in tmp_path.glob("written.onnx"):
        assert [value.name for value in onnx.load(path).graph.input] == ["x"]


def test_before_ir_version_4_all_weights_are_listed_and_none_can_be_overridden() -> None:
    model = listed(ir_version=3)
    assert not reasons(model)
    fused = reparam_compiler.fuse(model, weights_are_constant=True)
    assert len(fused.graph.input) == 1 + len(fused.graph.initializer)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (lambda: reparam_compiler.fuse(listed(), weights_are_constant=1), RewriteError),  # type: ignore[call-overload]
        (lambda: reparam_compiler.prune(listed(), ratio=0.5, weights_are_constant="yes"), InfeasiblePruneError),  # type: ignore[call-overload]
    ],
)
def test_the_word_is_true_or_false(how: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"weights_are_constant: found .*; expected True or False"):
        how()


def model(before: Sequence[NodeProto], weight: str, **constants: np.ndarray) -> ModelProto:
    """A conv and its norm, after what makes the weight of the conv."""
    conv = helper.make_node("Conv", ["x", weight], ["c"])
    return model_of([*before, conv, NORM], {"x": (2, 3, 5, 6), "k": (8, 3, 3, 3)}, ["n"], WEIGHTS | constants)


def test_a_weight_is_named_by_what_it_is() -> None:
    dequantized = helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"])
    turned = helper.make_node("Identity", ["dq"], ["also"])
    quantized = {"q": np.ones((8, 3, 3, 3), np.int8), "scale": np.array(0.1, np.float32)}
    assert reasons(model([dequantized, turned], "also", **quantized)) == [("n", "c (Conv) has a quantized weight")]
    assert reasons(model([], "k")) == [("n", "c (Conv) has a weight that is an input of the model, k")]
    doubled = helper.make_node("Mul", ["k", "k"], ["kk"])
    assert reasons(model([doubled], "kk")) == [("n", "c (Conv) has a weight that is computed from an input of the model, k")]


def test_the_product_of_two_computed_values_has_no_weight() -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["p"]), helper.make_node("Add", ["p", "x"], ["y"])]
    assert reasons(model_of(nodes, {"x": (2, 3, 3)}, ["y"])) == [("y", "p (MatMul) is not linear")]


def test_a_value_that_is_cast_like_another_one_depends_on_its_dtype_alone() -> None:
    nodes = [
        helper.make_node("CastLike", ["zero", "x"], ["zeros"]),
        helper.make_node("Expand", ["zeros", "eight"], ["bias"]),
        helper.make_node("Conv", ["x", "w", "bias"], ["c"]),
        NORM,
    ]
    constants = {**WEIGHTS, "zero": np.array(0), "eight": np.array([8])}
    fused, report = reparam_compiler.fuse(model_of(nodes, {"x": ("n", 3, 5, 6)}, ["n"], constants), return_report=True)
    assert [fusion.node for fusion in report.fusions] == ["n"]
    assert numpy_helper.to_array(fused.graph.initializer[0]).dtype == np.float32
