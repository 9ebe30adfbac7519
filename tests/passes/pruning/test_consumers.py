"""What a conv or linear reads and gives, as rows: rows times the weight are its outputs. Held here and nowhere else: which
channels a block reads, in what order the weight of a transposed conv has them, and that rows that are drawn stay in step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param, with_inputs
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.repair import consumers
from reparam_compiler.passes.pruning.repair.activations import Activations
from reparam_compiler.passes.pruning.repair.consumers import (
    Block,
    blocks,
    channel_rows,
    channels_before,
    depthwise_rows,
    mixes,
    output_rows,
    outputs_first,
    patch_rows,
    patches_before,
    rows,
    taps,
)
from tests.support.pruning_nets import SIZE, Net

X = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64


def values_at(graph: Graph, node_id: NodeId) -> Activations:
    """The activations up to and with a node; they come in two batches of unlike size."""
    values = Activations(graph, [(X[:2],), (X[2:],)], dtype=torch.float64)
    for node in graph:
        if not isinstance(node.op, ops.Input):
            values.run_before(node)
            if node.id == node_id:
                return values
            values.run_now(node, node)
    raise AssertionError(node_id)


def outputs(graph: Graph, node_id: NodeId) -> np.ndarray:
    value = evaluate(graph, {"x": X}, wanted=[node_id])[node_id]
    second = graph[node_id].op.channels_second
    found: np.ndarray = (value.movedim(1, -1) if second else value).flatten(0, -2).numpy()
    return found


@settings(deadline=None, max_examples=8)
@given(
    groups=st.sampled_from([1, 2, 3]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    low=st.integers(0, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)
def test_patches_times_the_weight_are_the_outputs_of_a_conv(
    groups: int, stride: tuple[int, int], dilation: tuple[int, int], low: int, mode: str
) -> None:
    net = Net()
    op = ops.Conv(stride, ((low, 1), (1, low)), dilation, groups, mode)  # type: ignore[arg-type]
    read = net.relu(net.conv(net.x, 6, 1, name="a"))
    graph = net.graph(net.add(op, read, net.param(6, 6 // groups, 3, 2, role="weight"), net.param(6), name="reader"))
    node, values = graph["reader"], values_at(graph, "reader")
    weight, bias = (param.float64() for param in node.params)
    assert rows(node, evaluate(graph, {"x": X}, wanted=[read])[read]) == len(outputs(graph, "reader"))
    for block in blocks(node, channel_groups(graph)):
        seen = np.concatenate(list(patches_before(node, values, block.channels)))
        assert seen.shape[1] == len(block.channels) * taps(node)
        found = seen @ weight[block.outputs].reshape(len(weight[block.outputs]), -1).T + bias[block.outputs]
        np.testing.assert_allclose(found, outputs(graph, "reader")[:, block.outputs], **CLOSE)
        for gave, now in patch_rows(node, values, block.outputs, block.channels):
            np.testing.assert_allclose(
                now @ weight[block.outputs].reshape(gave.shape[1], -1).T + bias[block.outputs], gave, **CLOSE
            )


def test_rows_of_a_linear_are_its_positions() -> None:
    net = Net()
    tokens = net.add(ops.Permute((0, 2, 3, 1)), net.conv(net.x, 6, 1))
    graph = net.graph(net.linear(tokens, 4, name="reader"))
    node, values = graph["reader"], values_at(graph, "reader")
    (block,) = blocks(node, channel_groups(graph))
    weight, bias = (param.float64() for param in node.params)
    seen = np.concatenate(list(patches_before(node, values, block.channels)))
    np.testing.assert_allclose(seen @ weight.T + bias, outputs(graph, "reader"), **CLOSE)


def test_rows_of_a_depthwise_conv_are_its_channels() -> None:
    net = Net()
    graph = net.graph(net.conv(net.conv(net.x, 4), 8, groups=4, name="reader"))
    node, values = graph["reader"], values_at(graph, "reader")
    assert not mixes(node)
    weight, bias = (param.float64() for param in node.params)
    for gave, seen in depthwise_rows(node, values):
        found = np.einsum("mck,ctk->mct", seen, weight.reshape(4, 2, -1)) + bias.reshape(4, 2)
        np.testing.assert_allclose(found, gave, **CLOSE)


@settings(deadline=None, max_examples=6)
@given(groups=st.sampled_from([1, 2, 3]), stride=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_transposed_conv_has_its_outputs_first_and_reads_as_a_conv_does(groups: int, stride: int, seed: int) -> None:
    """Where it is as long as its stride each tap makes places of its own: `outputs_first` says what stands there."""
    net = Net(seed=seed)
    op = ops.ConvTranspose((stride, 1), ((0, 0),) * 2, (0, 0), (1, 1), groups)
    weight = net.param(6, 2, stride, 1, role="weight")
    graph = net.graph(net.add(op, net.conv(net.x, 6, 1, name="a"), weight, None, name="reader"))
    node, values = graph["reader"], values_at(graph, "reader")
    array = node.params[0].float64()
    first = outputs_first(node, array)
    assert mixes(node)
    assert first.shape == (2 * groups, 6 // groups, stride, 1)
    np.testing.assert_array_equal(outputs_first(node, first), array)
    y = evaluate(graph, {"x": X}, wanted=["reader"])["reader"]
    for block in blocks(node, channel_groups(graph)):
        seen = np.concatenate(list(channels_before(node, values, block.places + block.channels[0])))
        assert len(seen) == rows(node, evaluate(graph, {"x": X}, wanted=["a"])["a"])
        for tap in range(stride):
            placed = output_rows(node, y[:, :, tap::stride])
            np.testing.assert_allclose(seen @ first[block.outputs, :, tap, 0].T, placed[:, block.outputs], **CLOSE)


def test_a_depthwise_transposed_conv_does_not_mix() -> None:
    net = Net()
    op = ops.ConvTranspose((2, 2), ((0, 0),) * 2, (0, 0), (1, 1), 4)
    graph = net.graph(net.add(op, net.conv(net.x, 4), net.param(4, 2, 2, 2, role="weight"), None, name="reader"))
    assert not mixes(graph["reader"])


def test_a_weight_that_is_computed_mixes_nothing_that_could_be_refitted() -> None:
    net = Net()
    weight = net.add(ops.Reshape((4, 3, 1, 1)), net.add(ops.Slice(0, 0, 12), net.add(ops.Reshape((-1,)), net.x)))
    graph = net.graph(net.add(ops.Conv((1, 1), ((0, 0),) * 2, (1, 1)), net.x, weight, None, name="reader"))
    assert not mixes(graph["reader"])


def test_a_channel_that_was_flattened_stands_at_all_its_positions() -> None:
    net = Net(size=(2, 3))
    graph = net.graph(net.linear(net.add(ops.Flatten(1, 3), net.conv(net.x, 4, name="a")), 5, name="reader"))
    (block,) = blocks(graph["reader"], channel_groups(graph))
    np.testing.assert_array_equal(block.places, np.arange(24).reshape(4, 6))


def test_labels_that_stand_unequally_often_are_channels_each_by_itself() -> None:
    everything = slice(0, 1)
    for labels in ([1, 1, 2], [0, 0, 1, 1]):
        block = Block(everything, np.arange(len(labels)), np.array(labels))
        np.testing.assert_array_equal(block.places, np.arange(len(labels))[:, None])


def test_a_linear_that_mixes_another_axis_has_no_blocks() -> None:
    net = Net()
    graph = net.graph(net.conv(net.linear(net.conv(net.x, 6), 5, name="along"), 4, 1))
    assert blocks(graph["along"], channel_groups(graph)) == ()


@pytest.mark.parametrize("piece", [2**22, 64])
def test_rows_that_are_drawn_are_those_of_the_same_places_before_and_now(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 315 rows so few are taken that some are left out; what is read now is twice what was, row by row."""
    monkeypatch.setattr(consumers, "ROWS", 1)
    monkeypatch.setattr(consumers, "LEAST_ROWS", 40)
    monkeypatch.setattr(consumers, "PIECE", piece)
    net = Net()
    graph = net.graph(net.conv(net.conv(net.x, 6, 1, name="a"), 4, name="reader"))
    values = Activations(graph, [(X[:2],), (X[2:],)], dtype=torch.float64)
    a, reader = graph["a"], graph["reader"]
    double = with_inputs(a, {index: param_twice(a, index) for index in (1, 2)})
    values.run_before(a)
    values.run_now(a, double)
    values.run_before(reader)
    kept = np.array([True, False, True, True, False, True])
    before, now = (
        np.concatenate(side) for side in zip(*channel_rows(reader, values, np.arange(6)[:, None], kept), strict=True)
    )
    assert 40 <= len(before) < 315
    np.testing.assert_allclose(2 * before[:, kept], now, **CLOSE)
    weight, bias = (param.float64() for param in reader.params)
    gave, seen = (np.concatenate(side) for side in zip(*patch_rows(reader, values, slice(0, 4), np.arange(6)), strict=True))
    assert len(gave) < 315
    np.testing.assert_allclose(seen @ weight.reshape(4, -1).T / 2 + bias, gave, **CLOSE)


def param_twice(node: Node, index: int) -> Param:
    """A parameter of a node, doubled."""
    param = node.param(index)
    assert param is not None
    return Param.of(2 * param.float64(), role=param.role, dtype="f64")
