"""A size of 0 or -1 in a file is an open one, as some exporters write it."""

import numpy as np
import pytest
from onnx import ModelProto, helper

import reparam_compiler
from reparam_compiler.cost.model import cost
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from tests.support.onnx_models import FLOAT32, model_of, normal, run

CONSTANTS = {
    "w": normal(6, 3, 3, 3),
    "v": normal(6, 6, 1, 1, seed=1),
    **{name: normal(6, seed=seed) for seed, name in enumerate("abm")},
    "var": np.abs(normal(6)) + 0.5,
    "zero": np.array([0]),
    "rest": np.array([-1]),
}
NODES = [
    helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
    helper.make_node("BatchNormalization", ["c", "a", "b", "m", "var"], ["n"]),
    helper.make_node("Relu", ["n"], ["r"]),
    helper.make_node("Conv", ["r", "v"], ["d"]),
    helper.make_node("Shape", ["x"], ["s"]),
    helper.make_node("Gather", ["s", "zero"], ["batch"]),
    helper.make_node("Concat", ["batch", "rest"], ["flat"], axis=0),
    helper.make_node("Reshape", ["d", "flat"], ["y"]),
]


def net(batch: int | str, *, stated: bool = False) -> ModelProto:
    """stated: whether the output and a value between have the size as well."""
    model = model_of(
        NODES,
        {"x": [batch, 3, 5, 6]},
        ["y"],
        {k: v.astype(np.float32) if v.dtype == float else v for k, v in CONSTANTS.items()},
    )
    if stated:
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [batch, 180]))
        model.graph.value_info.append(helper.make_tensor_value_info("r", 1, [batch, 6, 5, 6]))
    return model


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("stated", [False, True])
def test_it_is_read_as_one_with_a_name(size: int, stated: bool) -> None:
    named, found = (OnnxFrontend().read(net(batch, stated=stated)).graph for batch in ("N", size))
    assert [(node.id, node.op, node.type) for node in found] == [(node.id, node.op, node.type) for node in named]
    assert cost(found) == cost(named)


@pytest.mark.parametrize("size", [0, -1])
def test_two_inputs_do_not_share_their_open_size(size: int) -> None:
    model = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [size, size, 4], "z": [size, 1, 4]}, ["y"])
    graph = OnnxFrontend().read(model).graph
    assert [node.type.shape for node in graph if node.type and node.id in "xz"] == [("N", "x.1", 4), ("N_1", 1, 4)]


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
def test_it_is_fused_pruned_and_run_at_any_batch() -> None:
    model, x = net(-1, stated=True), normal(4, 3, 5, 6).astype(np.float32)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert len(report.fusions) == 1
    assert report.whole_model is not None
    np.testing.assert_allclose(run(fused, {"x": x})[0], run(net("N"), {"x": x})[0], **FLOAT32)
    pruned = reparam_compiler.prune(fused, ratio=0.5, round_to=1)
    assert run(pruned, {"x": x})[0].shape == (4, 180)
    assert all(m.graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1 for m in (fused, pruned))


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
def test_a_model_that_only_other_runtimes_take_is_written_unrun() -> None:
    fused, report = reparam_compiler.fuse(net(0), return_report=True)  # ONNX Runtime takes a size of 0 at its word
    assert len(report.fusions) == 1
    assert report.whole_model is None
    pruned = reparam_compiler.prune(fused, ratio=0.5, round_to=1)
    assert {tensor.name: tensor.dims[0] for tensor in pruned.graph.initializer}["v"] == 6
