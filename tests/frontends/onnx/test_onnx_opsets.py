"""Blocks in every opset from 9 to the newest: read, fused, written and run."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.ir import ops
from tests.support.onnx_blocks import SHAPE, Parts, dbb, mobileone, repvgg
from tests.support.onnx_models import FLOAT32, evaluated, model_of, normal, run, runs_opset

NEWEST = onnx.defs.onnx_opset_version()


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
