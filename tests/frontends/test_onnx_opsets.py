"""Blocks in every opset from 9 to the newest: read, fused, written and run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.ir import ops
from tests.support.onnx_models import FLOAT32, evaluated, model_of, normal, run, runs_opset

NEWEST = onnx.defs.onnx_opset_version()
SHAPE = (2, 4, 7, 6)
Parts = tuple[list[NodeProto], dict[str, np.ndarray]]


def norm(x: str, y: str, seed: int) -> Parts:
    names = [f"{y}_{role}" for role in ("scale", "shift", "mean", "var")]
    values = [normal(4, seed=seed + k) for k in range(3)] + [abs(normal(4, seed=seed + 3)) + 0.5]
    return [helper.make_node("BatchNormalization", [x, *names], [y], name=y)], dict(zip(names, values, strict=True))


def conv(x: str, y: str, size: int, seed: int, **attributes: Any) -> Parts:
    weight = normal(4, 4 // attributes.get("group", 1), size, size, seed=seed)
    pads = [size // 2] * 4
    return [helper.make_node("Conv", [x, f"{y}_w"], [y], name=y, pads=pads, **attributes)], {f"{y}_w": weight}


def together(*parts: Parts) -> Parts:
    return [node for nodes, _ in parts for node in nodes], {k: v for _, constants in parts for k, v in constants.items()}


def repvgg() -> Parts:
    add = [helper.make_node("Add", ["a2", "b2"], ["ab"]), helper.make_node("Add", ["ab", "c2"], ["y"])]
    convs = conv("x", "a1", 3, 1), conv("x", "b1", 1, 2)
    return together(*convs, norm("a1", "a2", 10), norm("b1", "b2", 20), norm("x", "c2", 30), (add, {}))


def mobileone() -> Parts:
    convs = [conv("x", f"a{k}", 3, k, group=4) for k in range(3)] + [conv("x", "a3", 1, 3, group=4)]
    norms = [norm(f"a{k}", f"n{k}", 10 * k + 10) for k in range(4)]
    return together(*convs, *norms, norm("x", "n4", 60), ([helper.make_node("Sum", [f"n{k}" for k in range(5)], ["y"])], {}))


def dbb() -> Parts:
    pool = helper.make_node(
        "AveragePool", ["c1"], ["c2"], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1
    )
    add = helper.make_node("Sum", ["a2", "b2", "c3"], ["y"])
    convs = conv("x", "a1", 3, 1), conv("x", "b1", 1, 2), conv("x", "c1", 1, 3)
    norms = norm("a1", "a2", 10), norm("b1", "b2", 20), norm("c2", "c3", 30)
    return together(*convs, ([pool], {}), *norms, ([add], {}))


@pytest.mark.parametrize("opset", range(9, NEWEST + 1))
@pytest.mark.parametrize("block", [repvgg, mobileone, dbb])
def test_a_block_is_one_conv_in_every_opset(block: Callable[[], Parts], opset: int) -> None:
    nodes, constants = block()
    model = model_of(nodes, {"x": ("batch", *SHAPE[1:])}, ["y"], constants, opset=opset, ir_version=4 if opset < 11 else 8)
    feeds = {"x": normal(*SHAPE)}
    graph = OnnxFrontend().read(model).graph
    assert not [node for node in graph if isinstance(node.op, ops.Opaque)]
    fused = reparam_compiler.fuse(model)
    onnx.checker.check_model(fused, full_check=True)
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    assert fused.opset_import == model.opset_import
    expected = evaluated(graph, feeds)[0]
    np.testing.assert_allclose(evaluated(OnnxFrontend().read(fused).graph, feeds)[0], expected, **FLOAT32)
    if runs_opset(opset):
        np.testing.assert_allclose(run(fused, feeds)[0], run(model, feeds)[0], **FLOAT32)
        np.testing.assert_allclose(run(fused, feeds)[0], expected, **FLOAT32)


@pytest.mark.parametrize("opset", [15, 18, 21, 24])
def test_a_block_that_was_converted_to_another_opset_is_one_conv(opset: int) -> None:
    nodes, constants = repvgg()
    model = model_of(nodes, {"x": SHAPE}, ["y"], constants, opset=14)
    fused = reparam_compiler.fuse(onnx.version_converter.convert_version(model, opset))
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    feeds = {"x": normal(*SHAPE)}
    np.testing.assert_allclose(run(fused, feeds)[0], run(model, feeds)[0], **FLOAT32)


@pytest.mark.parametrize("opset", [1, 6])
def test_an_older_opset_is_refused(opset: int) -> None:
    nodes, constants = repvgg()
    model = model_of(nodes, {"x": SHAPE}, ["y"], constants, opset=14)
    model.opset_import[0].version = opset
    with pytest.raises(UnsupportedModelError, match=rf"opset is {opset}, at least 7 was expected.*version_converter"):
        reparam_compiler.fuse(model)


def test_the_opset_of_another_domain_is_none() -> None:
    nodes, constants = repvgg()
    model = model_of(nodes, {"x": SHAPE}, ["y"], constants)
    model.opset_import[0].domain = "ai.onnx.ml"
    with pytest.raises(UnsupportedModelError, match="opset is missing"):
        reparam_compiler.fuse(model)
