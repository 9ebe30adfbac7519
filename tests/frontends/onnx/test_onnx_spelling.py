"""A pruned ONNX model is valid, loads, computes the masked reference, and spells every node as the given one does."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, helper
from torch import Tensor, nn

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.pipeline import prune
from reparam_compiler.passes.pruning.slice_channels import masked
from tests.support.onnx_models import evaluated, exported, model_of, normal, run, runs_opset

FLOAT32 = 1e-5  # relative: ONNX Runtime's float32 against the graph in float64
EXPORTERS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])


def kinds(model: ModelProto) -> list[str]:
    """The op types of the nodes that compute values; those that compute sizes are folded where a size changes."""
    computing = set(OnnxFrontend().read(model).node_index.values())
    return [node.op_type for index, node in enumerate(model.graph.node) if index in computing]


def is_valid(model: ModelProto) -> bool:
    """Whether ONNX infers the sizes that the file declares."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def pruned(model: ModelProto, x: np.ndarray, *, calibration: np.ndarray | None = None, ratio: float = 0.5) -> ModelProto:
    """The pruned model, which is valid and computes in ONNX Runtime what the graph does that it was written from."""
    reading = OnnxFrontend().read(model)
    batches = None if calibration is None else [[batch] for batch in np.split(calibration, len(calibration) // len(x))]
    result = prune(reading.graph, ratio=ratio, round_to=1, calibration=batches)
    written = reading.write(result.graph)
    onnx.checker.check_model(written, full_check=is_valid(model))
    feeds = {model.graph.input[0].name: x}
    reference: Graph = result.graph if calibration is not None else masked(reading.graph, result.groups, result.keep)
    for name, expected, found in zip(reference.outputs, evaluated(reference, feeds), run(written, feeds), strict=True):
        assert difference(torch.from_numpy(expected), torch.from_numpy(found)).relative <= FLOAT32, name
    assert sum(np.prod(t.dims) for t in written.graph.initializer) < sum(np.prod(t.dims) for t in model.graph.initializer)
    return written


def between(nodes: list[NodeProto], constants: dict[str, np.ndarray], width: int, opset: int) -> ModelProto:
    """These nodes from c (2 16 6 5) to v, between two convs."""
    given = constants | {"w": normal(16, 4, 3, 3), "last": normal(3, width, 1, 1, seed=1)}
    convs = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Conv", ["v", "last"], ["y"])
    used = {name for node in (*nodes, *convs) for name in node.input}
    kept = {name: array for name, array in given.items() if name in used}
    return model_of([convs[0], *nodes, convs[1]], {"x": (2, 4, 6, 5)}, ["y"], kept, opset=opset, ir_version=8)


X = normal(2, 4, 6, 5, seed=9)
BOUNDS = {"from": np.array([-8]), "to": np.array([2**31 - 1]), "axis": np.array([1])}
SHAPES = {"blocks": np.array([2, 4, 4, 6, 5]), "back": np.array([2, 16, 6, 5]), "wide": np.array([2, 16, 6, 5])}
PIECES = {"pieces": np.array([6, 10])}


@pytest.mark.parametrize("opset", [9, 13, 17, 20])
def test_a_narrow_stays_a_slice_with_other_bounds(opset: int) -> None:
    attributes = {"starts": [-8], "ends": [2**31 - 1], "axes": [1]} if opset < 10 else {}
    node = helper.make_node("Slice", ["c"] if opset < 10 else ["c", *BOUNDS], ["v"], **attributes)
    written = pruned(between([node], BOUNDS, 8, opset), X)
    assert kinds(written) == ["Conv", "Slice", "Conv"]


@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("kind", ["zero", "by channel", "computed"])
def test_a_scatter_writes_to_the_places_that_are_left(kind: str, axes: int) -> None:
    """`y[:, :, 0:1] = value` is exported as the numbers of all its places, each channel's too."""
    box = (2, 16, 1, 5)
    index = np.stack(np.meshgrid(*map(np.arange, box[:axes]), indexing="ij"), -1)
    by_channel = np.broadcast_to(normal(1, 16, 1, 1), box)
    nodes = [helper.make_node("ScatterND", ["c", "index", "value"], ["v"])]
    constants = {"index": index, "value": np.zeros(box, np.float32) if kind == "zero" else by_channel.copy()}
    if kind == "computed":
        bounds = {"from": np.array([3]), "to": np.array([4]), "axis": np.array([2])}
        nodes.insert(0, helper.make_node("Slice", ["c", *bounds], ["value"]))
        constants = {"index": index, **bounds}
    written = pruned(between(nodes, constants, 16, 17), X)
    assert kinds(written) == ["Conv", *(["Slice"] if kind == "computed" else []), "ScatterND", "Conv"]


def test_bounds_keep_their_dtype() -> None:
    node = helper.make_node("Slice", ["c", *BOUNDS], ["v"])
    written = pruned(between([node], {key: value.astype(np.int32) for key, value in BOUNDS.items()}, 8, 17), X)
    bounds = [tensor for tensor in written.graph.initializer if tensor.dims == [1]]
    assert {tensor.data_type for tensor in bounds} == {onnx.TensorProto.INT32}


@pytest.mark.parametrize("opset", [9, 13, 17, 20])
def test_a_split_stays_a_split_with_other_sizes(opset: int) -> None:
    attributes = {"split": [6, 10]} if opset < 13 else {}
    nodes = [
        helper.make_node("Split", ["c"] if opset < 13 else ["c", "pieces"], ["p", "q"], axis=1, **attributes),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Concat", ["r", "q"], ["v"], axis=1),
    ]
    written = pruned(between(nodes, PIECES, 16, opset), X)
    assert kinds(written) == ["Conv", "Split", "Relu", "Concat", "Conv"]


@pytest.mark.parametrize(("sizes", "states"), [((8, 8), False), ((5, 5), False), ((4, 3), False), ((3, 4), True)])
def test_a_split_states_its_sizes_where_they_are_not_those_that_it_makes_by_itself(
    sizes: tuple[int, int], states: bool
) -> None:
    nodes = [
        helper.make_node("Split", ["c"], ["p", "q"], axis=1, num_outputs=2, name="split"),
        helper.make_node("Concat", ["q", "p"], ["v"], axis=1),
    ]
    reading = OnnxFrontend().read(between(nodes, {}, 16, 18))
    split = reading.graph["split:outputs"]
    written = reading.write(reading.graph.rewrite({split.id: replace(split, op=ops.Split(1, sizes))}))
    node = next(node for node in written.graph.node if node.op_type == "Split")
    assert (len(node.input) == 2) == states
    assert ("num_outputs" in {attribute.name for attribute in node.attribute}) != states


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_reshapes_keep_their_form_and_get_other_numbers(opset: int) -> None:
    nodes = [
        helper.make_node("Reshape", ["c", "blocks"], ["b"]),
        helper.make_node("Reshape", ["b", "back"], ["v"]),
    ]
    written = pruned(between(nodes, SHAPES, 16, opset), X)
    assert kinds(written) == ["Conv", "Reshape", "Reshape", "Conv"]
    shapes = [onnx.numpy_helper.to_array(t).tolist() for t in written.graph.initializer if len(t.dims) == 1]
    assert [2, 8, 6, 5] in shapes


@pytest.mark.parametrize("shape", [[0, 0, -1], [2, 16, 30], [-1, 16, 30], [0, 16, 30]])
def test_a_shape_that_states_no_width_stays_as_it_is(shape: list[int]) -> None:
    constants = {"flat": np.array(shape), "open": np.array([0, 0, 6, 5])}
    nodes = [helper.make_node("Reshape", ["c", "flat"], ["f"]), helper.make_node("Reshape", ["f", "open"], ["v"])]
    model = between(nodes, constants, 16, 17)
    written = pruned(model, X)
    tensors = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in written.graph.initializer}
    assert tensors["open"] == [0, 0, 6, 5]
    first = tensors[written.graph.node[1].input[1]]
    assert first == [8 if n == 16 else n for n in shape]
    assert written.graph.node[2] == model.graph.node[2]


def test_an_expand_to_the_shape_that_x_has_stays_an_expand() -> None:
    written = pruned(between([helper.make_node("Expand", ["c", "wide"], ["v"])], SHAPES, 16, 17), X)
    assert kinds(written) == ["Conv", "Expand", "Conv"]


def test_what_states_no_width_is_the_callers_own_protobuf() -> None:
    axes = {"last": np.array([4]), "rows": np.array([1])}
    nodes = [
        helper.make_node("Unsqueeze", ["c", "at"], ["u"]),
        helper.make_node("Squeeze", ["u", "at"], ["s"]),
        helper.make_node("Gather", ["s", "chosen"], ["g"], axis=2),
        helper.make_node("Slice", ["g", "low", "high", "spatial"], ["v"]),
    ]
    constants = {"at": axes["last"], "chosen": np.array([3, 1]), "low": np.array([1]), "high": np.array([4])}
    model = between(nodes, constants | {"spatial": np.array([3])}, 16, 17)
    written = pruned(model, X)
    assert list(written.graph.node[1:-1]) == list(model.graph.node[1:-1])


@pytest.mark.parametrize("opset", [13, 17, 20, 22])
@pytest.mark.parametrize(("kernel", "size", "cells"), [(2, 9, 25), (1, 8, 16), (3, 8, 25)])
def test_a_reshape_after_a_pool_whose_size_runtimes_infer_wrongly_loads(kernel: int, size: int, cells: int, opset: int) -> None:
    """Through a Flatten ONNX Runtime takes the pool's size, too large by one, for that of the matrix product."""
    if not runs_opset(opset):
        pytest.skip(f"ONNX Runtime takes no opset {opset}")
    pool = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [kernel // 2] * 4, "ceil_mode": 1, "count_include_pad": 1}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], **pool),
        helper.make_node("Reshape", ["p", "rows"], ["v"]),
        helper.make_node("Gemm", ["v", "m"], ["y"], transB=1),
    ]
    tensors = {"w": normal(16, 4, 3, 3), "b": normal(16, seed=1), "m": normal(10, 16 * cells, seed=2)}
    constants = {name: onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()}
    constants["rows"] = onnx.numpy_helper.from_array(np.array([2, 16 * cells]), "rows")
    sides = {"c": (2, 16, size, size), "r": (2, 16, size, size), "p": (2, 16, *[int(cells**0.5)] * 2), "v": (2, 16 * cells)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, (2, 4, size, size))],
        [helper.make_tensor_value_info("y", 1, (2, 10))],
        list(constants.values()),
        value_info=[helper.make_tensor_value_info(name, 1, shape) for name, shape in sides.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    written = pruned(model, normal(2, 4, size, size))
    assert kinds(written) == kinds(model)


Function = Callable[["Between", Tensor], Tensor]


class Between(nn.Module):
    """A function of 16 channels between two convs."""

    def __init__(self, function: Function, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(width, 3, 1)
        self.group_norm, self.layer_norm, self.rms_norm = nn.GroupNorm(4, 16), nn.LayerNorm(16), nn.RMSNorm(16)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


class Side(nn.Module):
    """Nets side by side, exported at once."""

    def __init__(self, nets: Sequence[Between]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net in self.nets)


def through(nets: Sequence[Between], folder: Path, *, dynamo: bool) -> ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exported(Side(nets).eval(), torch.from_numpy(X), folder, dynamo=dynamo, dynamic=False)


SPELLINGS: tuple[tuple[Function, int], ...] = (
    (lambda m, y: y.narrow(1, 8, 8), 8),
    (lambda m, y: y[:, 2:-2, 1:], 12),
    (lambda m, y: torch.cat(y.split([6, 10], 1)[::-1], 1), 16),
    (lambda m, y: (lambda a, b: a * b.sigmoid())(*y.chunk(2, 1)), 8),
    (lambda m, y: y.select(2, 1).unsqueeze(2), 16),
    (lambda m, y: torch.stack(y.unbind(2)[::-1], 2), 16),
    (lambda m, y: y[:, :, torch.tensor([3, 0, 1])], 16),
    (lambda m, y: y.view(2, 4, 4, 6, 5).relu().view(2, 16, 6, 5), 16),
    (lambda m, y: y.flatten(2).unflatten(2, (6, 5)), 16),
    (lambda m, y: y * y.mean((2, 3), keepdim=True).expand(-1, 16, 6, 5), 16),
)
"""narrow, slice, split, chunk, select, unbind, index, view, flatten and expand."""


@EXPORTERS
def test_exported_ops_keep_their_spelling(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = through([Between(*spelling) for spelling in SPELLINGS], tmp_path, dynamo=dynamo)
    assert {"Slice", "Split", "Gather", "Reshape", "Concat"} <= set(kinds(model))
    written = pruned(model, X)
    assert kinds(written) == kinds(model)
    assert all(tensor.dims[0] == 8 for tensor in written.graph.initializer if list(tensor.dims[1:]) == [4, 3, 3])


ACROSS: dict[str, Function] = {
    "group norm": lambda m, y: m.group_norm(y),
    "layer norm": lambda m, y: m.layer_norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "rms norm": lambda m, y: m.rms_norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "mean": lambda m, y: y * y.mean(1, keepdim=True).sigmoid(),
    "sum": lambda m, y: y * y.sum(1, keepdim=True).sigmoid(),
    "max": lambda m, y: y * y.amax(1, keepdim=True).sigmoid(),
    "length": lambda m, y: nn.functional.normalize(y, dim=1),
}


@EXPORTERS
def test_a_calibrated_net_that_works_across_channels_is_valid(dynamo: bool, tmp_path: Path) -> None:
    """The masks of the reference are no part of the model that is written."""
    torch.manual_seed(1)
    nets = [Between(function) for key, function in ACROSS.items() if dynamo or key != "rms norm"]
    model = through(nets, tmp_path, dynamo=dynamo)
    written = pruned(model, X, calibration=normal(12, 4, 6, 5, seed=3))
    assert kinds(written) == kinds(model)


@pytest.mark.parametrize("scale", [(16, 6, 5), (16, 1, 1), (1, 6, 5), (5,), (1,)])
def test_a_norm_loses_of_its_scale_what_stands_along_the_channels(scale: tuple[int, ...]) -> None:
    """ONNX broadcasts a scale that is shorter than the axes of the norm."""
    node = helper.make_node("LayerNormalization", ["c", "scale", "shift"], ["v"], axis=1)
    written = pruned(between([node], {"scale": normal(*scale, seed=2), "shift": normal(16, 6, 5, seed=3)}, 16, 17), X)
    found = next(tensor for tensor in written.graph.initializer if tensor.name == "scale")
    assert tuple(found.dims) == tuple(8 if size == 16 else size for size in scale)


def test_the_axes_of_a_reduction_are_no_parameter_of_the_channels() -> None:
    """They stand in the place where the coupling model has its mask."""
    nodes = [helper.make_node("ReduceL2", ["c", "axis"], ["v"])]
    graph = OnnxFrontend().read(between(nodes, {"axis": np.array([1])}, 1, 18)).graph
    groups = channel_groups(graph)
    assert [(node.id, index) for node, index, _, _ in groups.params(graph)] == [("c", 1), ("y", 1)]
    assert groups.families[0].members == ("c",)


def test_what_onnx_s_evaluator_cannot_run_keeps_its_channels_and_no_others_theirs() -> None:
    pool = [helper.make_node("Conv", ["c", "narrow"], ["n"]), helper.make_node("GlobalLpPool", ["n"], ["v"])]
    model = between(pool, {"narrow": normal(5, 16, 1, 1, seed=2)}, 5, 17)
    reading = OnnxFrontend().read(model)
    result = prune(reading.graph, ratio=0.5, round_to=1, calibration=[[normal(2, 4, 6, 5, seed=seed)] for seed in range(4)])
    assert [(family.name, family.after) for family in result.plan.families] == [("c", 8)]
    assert [(pin.width, pin.reason) for pin in result.plan.pinned][:1] == [(5, "v (GlobalLpPool) is not understood")]
    onnx.checker.check_model(reading.write(result.graph), full_check=True)


def test_a_group_norm_of_onnx_is_calibrated() -> None:
    node = helper.make_node("GroupNormalization", ["c", "scale", "shift"], ["v"], num_groups=4)
    model = between([node], {"scale": normal(16, seed=2), "shift": normal(16, seed=3)}, 16, 21)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 3, 6, 5)))  # none is inferred
    assert kinds(pruned(model, X, calibration=normal(12, 4, 6, 5, seed=3))) == ["Conv", "GroupNormalization", "Conv"]


def test_a_length_along_no_axes_passes_channels_on() -> None:
    written = pruned(between([helper.make_node("ReduceL2", ["c"], ["v"], noop_with_empty_axes=1)], {}, 16, 18), X)
    assert kinds(written) == ["Conv", "ReduceL2", "Conv"]


def test_a_mask_is_refused() -> None:
    nodes = [helper.make_node("ReduceMean", ["c"], ["v"], axes=[1])]
    reading = OnnxFrontend().read(between(nodes, {}, 1, 17))
    result = prune(reading.graph, ratio=0.5, round_to=1)
    assert isinstance(reading.graph["v"].op, ops.Reduce)
    with pytest.raises(RewriteError, match="v: a mask of mean has no ONNX form"):
        reading.write(masked(reading.graph, result.groups, result.keep))
