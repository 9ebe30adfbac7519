"""Models as torch's two exporters write them, from reading to fusing and pruning."""

import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_models import FLOAT32, evaluated, exported, run

import reparam_compiler
from reparam_compiler.frontends.onnx_gs import OnnxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.text import to_text
from reparam_compiler.passes import pipeline
from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm

EXPORTERS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
BATCHES = pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
BLOCKS = [("repvgg", False), ("repvgg", True), ("identity_without_bn", False), ("diracnet", False), ("trivial", False)]


def net(block: str) -> RepVGG:
    torch.manual_seed(0)
    architecture = Architecture((1, 2), (8, 16), strides=(2, 1))
    return randomise_batch_norm(RepVGG(architecture, num_classes=5, block=block)).eval()  # type: ignore[arg-type]


X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
FEEDS = {"x": X.numpy()}


@cache
def export_bytes(block: str, dynamo: bool, dynamic: bool) -> bytes:
    """The exporters are slow: each model is exported once."""
    with tempfile.TemporaryDirectory() as folder:
        return exported(net(block), X, Path(folder), dynamo=dynamo, dynamic=dynamic).SerializeToString()


def export(block: str, *, dynamo: bool, dynamic: bool) -> onnx.ModelProto:
    return onnx.load_model_from_string(export_bytes(block, dynamo, dynamic))


FUSED = """\
%0 = input()                                      # f32 {batch} 3 9 7
%1 = conv(%0, weight[8 3 3 3], bias[8])           # f32 {batch} 8 5 4   stride=2 pad=1   fused from {first} nodes
%2 = relu(%1)                                     # f32 {batch} 8 5 4
%3 = conv(%2, weight[16 8 3 3], bias[16])         # f32 {batch} 16 5 4   pad=1   fused from {first} nodes
%4 = relu(%3)                                     # f32 {batch} 16 5 4
%5 = conv(%4, weight[16 16 3 3], bias[16])        # f32 {batch} 16 5 4   pad=1   fused from {last} nodes
%6 = relu(%5)                                     # f32 {batch} 16 5 4
%7 = adaptive_avg_pool(%6)                        # f32 {batch} 16 1 1   size=1
%8 = flatten(%7)                                  # f32 {batch} 16   start=1 end=3
%9 = linear(%8, weight[5 16], bias[5])            # f32 {batch} 5
output(%9)
"""


@EXPORTERS
@pytest.mark.parametrize(("block", "dynamic"), BLOCKS)
def test_an_exported_net_is_read_evaluated_and_fused(block: str, dynamic: bool, dynamo: bool) -> None:
    model = export(block, dynamo=dynamo, dynamic=dynamic)
    original = model.SerializeToString(deterministic=True)
    expected = net(block)(X).detach().numpy()
    graph = OnnxFrontend().read(model).graph
    assert not [node for node in graph if isinstance(node.op, ops.Opaque)]
    np.testing.assert_allclose(evaluated(graph, FEEDS)[0], expected, **FLOAT32)

    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert model.SerializeToString(deterministic=True) == original
    onnx.checker.check_model(fused, full_check=True)
    assert [node.op_type for node in fused.graph.node].count("Conv") == 3
    assert "BatchNormalization" not in {node.op_type for node in fused.graph.node}
    np.testing.assert_allclose(run(fused, FEEDS)[0], expected, **FLOAT32)
    if report.fusions:  # the dynamo exporter may have done it all
        assert report.whole_model is not None
        assert report.whole_model.difference.relative < 1e-5


@EXPORTERS
@BATCHES
def test_both_exporters_fuse_to_the_same_graph(dynamo: bool, dynamic: bool) -> None:
    graph = OnnxFrontend().read(export("repvgg", dynamo=dynamo, dynamic=dynamic)).graph
    assert to_text(pipeline.run(graph).graph) == FUSED.format(batch="batch" if dynamic else 2, first=3, last=5)


@EXPORTERS
def test_the_path_of_a_file_is_fused_to_a_model(tmp_path: Path, dynamo: bool) -> None:
    onnx.save(export("repvgg", dynamo=dynamo, dynamic=False), tmp_path / "model.onnx")
    fused = reparam_compiler.fuse(str(tmp_path / "model.onnx"), (X,))
    np.testing.assert_allclose(run(fused, FEEDS)[0], net("repvgg")(X).detach().numpy(), **FLOAT32)


@EXPORTERS
@BATCHES
def test_a_fused_net_is_pruned(dynamo: bool, dynamic: bool) -> None:
    model = reparam_compiler.fuse(export("repvgg", dynamo=dynamo, dynamic=dynamic))
    with pytest.warns(UserWarning, match="calibration"):
        pruned = reparam_compiler.prune(model, ratio=0.5, round_to=1)
    onnx.checker.check_model(pruned, full_check=True)
    assert {tensor.dims[0] for tensor in pruned.graph.initializer if len(tensor.dims) == 4} == {4, 8}
    reading = OnnxFrontend().read(pruned)
    np.testing.assert_allclose(run(pruned, FEEDS)[0], evaluated(reading.graph, FEEDS)[0], **FLOAT32)


def test_batch_norms_in_training_mode_stay(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy exporter's, of which it has many here
        mode = torch.onnx.TrainingMode.TRAINING
        torch.onnx.export(net("repvgg").train(), (X,), tmp_path / "m.onnx", dynamo=False, training=mode)
    fused, report = reparam_compiler.fuse(onnx.load(tmp_path / "m.onnx"), return_report=True)
    assert not report.fusions
    assert any("training=True" in refusal.reason for refusal in report.refusals)
    assert [node.op_type for node in fused.graph.node].count("BatchNormalization") == 7
