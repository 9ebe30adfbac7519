"""What the emitter writes for the ops that passes make, by opset, and what it refuses."""

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.onnx.emitter import Emitter, trimmed
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Operand, Param, TensorType
from tests.support.onnx_models import FLOAT32, model_of, normal, run

WEIGHT = Param.of(normal(6, 4, 3), role="weight", dtype="f32", origin="w")
BIAS = Param.of(normal(6), role="bias", dtype="f32")


class Model:
    """An empty model that nodes are emitted into. tensors: those that were added, by name, with their dtypes."""

    def __init__(self, opset: int = 17, rank: int | None = 3, known: dict[Param, str] | None = None) -> None:
        self.tensors: dict[str, tuple[np.ndarray, str]] = {}
        self.opset = opset
        self.emitter = Emitter(opset, (known or {}).get, self._add, lambda name: name, lambda _: rank)

    def _add(self, name: str, param: Param, dtype: str, transposed: bool) -> str:
        self.tensors[name] = (param.load().T if transposed else param.load(), dtype)
        return name

    def run(self, nodes: list[NodeProto], x: np.ndarray) -> np.ndarray:
        """What the nodes give in ONNX Runtime."""
        constants = {name: array for name, (array, _) in self.tensors.items()}
        found: np.ndarray = run(model_of(nodes, {"x": x.shape}, ["y"], constants, opset=self.opset), {"x": x})[0]
        return found


def node(op: ops.Op, *operands: Operand, dtype: str = "f32") -> Node:
    return Node("n", op, ("x", *operands), TensorType(dtype, (2, 6, 5)))


def conv(padding: tuple[int, int], mode: Any = "zeros") -> ops.Conv:
    return ops.Conv((1,), (padding,), (1,), 1, mode)


def kinds(nodes: list[NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def test_a_tensor_that_the_model_has_is_read_by_its_name_and_another_is_added_in_the_dtype_of_the_values() -> None:
    model = Model(known={WEIGHT: "w"})
    (written,) = model.emitter.emit(node(conv((1, 1)), WEIGHT, BIAS, dtype="f16"), "y")
    assert list(written.input) == ["x", "w", "n.bias"]
    assert model.tensors["n.bias"][1] == "f16"


def test_an_absent_bias_is_left_out() -> None:
    for operands in ((WEIGHT,), (WEIGHT, None)):
        (written,) = Model().emitter.emit(node(conv((0, 0)), *operands), "y")
        assert list(written.input) == ["x", "n.weight"]
    assert trimmed(["x", "", "b", "", ""]) == ["x", "", "b"]


@pytest.mark.parametrize(("opset", "pads"), [(9, False), (17, True), (19, True)])
@pytest.mark.parametrize(("mode", "word"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_padding_that_a_conv_has_no_word_for_goes_before_it(mode: Any, word: str, opset: int, pads: bool) -> None:
    model = Model(opset)
    nodes = model.emitter.emit(node(conv((2, 1), mode), WEIGHT), "y")
    before = ["Slice", "Slice", "Concat"] if mode == "circular" and opset < 19 else ["Pad"]
    assert kinds(nodes) == [*before, "Conv"]
    assert ("n.padded.pads" in model.tensors) == (pads and before == ["Pad"])
    x = normal(2, 4, 7)
    wide = np.pad(x, ((0, 0), (0, 0), (2, 1)), word)
    inner = Model(opset)
    expected = inner.run(inner.emitter.emit(node(conv((0, 0)), WEIGHT), "y"), wide)
    np.testing.assert_allclose(model.run(nodes, x), expected, **FLOAT32)


def test_negative_padding_is_cut_off_before_what_mirrors_the_rest() -> None:
    model = Model()
    nodes = model.emitter.emit(node(conv((-2, 1), "reflect"), WEIGHT), "y")
    assert kinds(nodes) == ["Pad", "Pad", "Conv"]
    x = normal(2, 4, 7)
    inner = Model()
    wide = np.pad(x[..., 2:], ((0, 0), (0, 0), (0, 1)), "reflect")
    expected = inner.run(inner.emitter.emit(node(conv((0, 0)), WEIGHT), "y"), wide)
    np.testing.assert_allclose(model.run(nodes, x), expected, **FLOAT32)


@pytest.mark.parametrize(("rank", "written"), [(2, ["Gemm"]), (3, ["MatMul", "Add"]), (None, ["MatMul", "Add"])])
def test_a_linear_layer_is_a_gemm_for_rows_alone(rank: int | None, written: list[str]) -> None:
    matrix = Param.of(normal(6, 4), role="weight", dtype="f32")
    model = Model(rank=rank)
    nodes = model.emitter.emit(node(ops.Linear(), matrix, BIAS), "y")
    assert kinds(nodes) == written
    x = normal(3, 4)
    np.testing.assert_allclose(model.run(nodes, x), x @ matrix.load().T + BIAS.load(), **FLOAT32)
    without = Model(rank=rank).emitter.emit(node(ops.Linear(), matrix), "y")
    assert kinds(without) == written[:1]


def test_what_is_cut_off_and_what_is_added_at_the_high_end_cancel_out() -> None:
    op = ops.ConvTranspose((2,), ((1, 2),), (1,), (1,))
    (written,) = Model().emitter.emit(node(op, Param.of(normal(4, 6, 3), role="weight", dtype="f32")), "y")
    attributes = {attribute.name: list(attribute.ints) for attribute in written.attribute}
    assert attributes["pads"] == [1, 1]
    assert "output_padding" not in attributes


@pytest.mark.parametrize(
    "op", [ops.ConvTranspose((2,), ((-1, 0),), (0,), (1,)), ops.ConvTranspose((2,), ((0, 0),), (2,), (1,))]
)
def test_a_transposed_conv_that_onnx_has_no_form_for_is_refused(op: ops.ConvTranspose) -> None:
    with pytest.raises(RewriteError, match="n: found a transposed conv with padding"):
        Model().emitter.emit(node(op, Param.of(normal(4, 6, 3), role="weight", dtype="f32")), "y")


@pytest.mark.parametrize(("operand", "message"), [("w", "its weight is computed by w"), (None, "without a weight")])
@pytest.mark.parametrize("op", [conv((0, 0)), ops.Linear()])
def test_a_weight_that_is_computed_or_absent_is_refused(op: ops.Op, operand: Operand, message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        Model(rank=3).emitter.emit(node(op, operand), "y")


def test_what_no_pass_makes_is_refused() -> None:
    with pytest.raises(RewriteError, match=r"n: Flatten.* cannot be written back"):
        Model().emitter.emit(node(ops.Flatten(1, 2)), "y")
