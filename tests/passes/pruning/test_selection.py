"""Optimal brain selection: what the consumers can do without leaves first."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param, TensorType
from reparam_compiler.passes.choices import Quality
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from reparam_compiler.passes.pruning.criteria.base import Scoring
from reparam_compiler.passes.pruning.criteria.importance import importance, is_cumulative
from reparam_compiler.passes.pruning.criteria.optimal_brain import optimal_brain
from reparam_compiler.passes.pruning.pipeline import prune
from tests.support.pruning_nets import SIZE, Net

DATA = [(torch.randn(12, 3, *SIZE, generator=torch.Generator().manual_seed(seed)),) for seed in range(2)]


def wide(net: Net, count: int = 6, copies: int = 2) -> NodeId:
    """A conv of which the last channels are mixtures of the others."""
    basis = net.random.standard_normal((count - copies, 3, 3, 3))
    weight = np.concatenate([basis, np.tensordot(net.random.standard_normal((copies, count - copies)), basis, 1)])
    pads = ((1, 1), (1, 1))
    return net.add(ops.Conv((1, 1), pads, (1, 1)), net.x, Param.of(weight, role="weight", dtype="f32"), None, name="wide")


def to_conv(net: Net, x: NodeId) -> Graph:
    return net.graph(net.conv(x, 5, 3, name="reader"))


def to_two(net: Net, x: NodeId) -> Graph:
    return net.graph(net.sum(net.conv(x, 5, 3), net.conv(x, 5, 1)))


def to_groups(net: Net, x: NodeId) -> Graph:
    return net.graph(net.conv(net.concat(x, x), 6, 1, groups=2))


def to_concat(net: Net, x: NodeId) -> Graph:
    return net.graph(net.conv(net.concat(net.relu(net.conv(net.x, 4, name="other")), x), 5, 3))


def to_linear(net: Net, x: NodeId) -> Graph:
    return net.graph(net.linear(net.add(ops.Flatten(1, 3), x), 4))


def scores_of(graph: Graph, groups: ChannelGroups, node_id: NodeId, name: str) -> np.ndarray:
    scores = importance(graph, groups, name, batches=DATA)
    return np.asarray(scores[groups.number[groups.value(node_id).labels]])


@pytest.mark.parametrize("name", ["obs", "obs_patches"])
@pytest.mark.parametrize("read", [to_conv, to_two, to_concat, to_groups, to_linear])
def test_what_others_make_good_for_costs_nothing(read: Callable[[Net, NodeId], Graph], name: str) -> None:
    net = Net(seed=1)
    graph = read(net, wide(net))
    scores = scores_of(graph, channel_groups(graph), "wide", name)
    order = np.sort(scores)
    assert order[1] < 0.02 * order[-1]  # two of six are mixtures; the ridge keeps their cost above zero
    assert order[2] > 3 * order[1]


@pytest.mark.parametrize("name", ["obs", "obs_patches"])
def test_what_no_consumer_reads_leaves_first(name: str) -> None:
    net = Net(seed=2)
    graph = net.graph(net.conv(net.conv(net.x, 6, name="a"), 4, name="reader"))
    weight = graph["reader"].params[0].float64().copy()
    weight[:, 3] = 0
    reader = Node("reader", graph["reader"].op, ("a", Param.of(weight, role="weight", dtype="f32"), graph["reader"].inputs[2]))
    graph = graph.rewrite({"reader": Node(reader.id, reader.op, reader.inputs, graph["reader"].type)})
    scores = scores_of(graph, channel_groups(graph), "a", name)
    assert int(scores.argmin()) == 3
    assert scores[3] < 1e-6


def test_both_are_errors_that_add_up() -> None:
    assert is_cumulative("obs")
    assert is_cumulative("obs_patches")
    assert not is_cumulative("l1")


@pytest.mark.parametrize("name", ["obs", "obs_patches"])
def test_without_data_there_is_nothing_to_look_at(name: str) -> None:
    net = Net()
    graph = to_conv(net, wide(net))
    with pytest.raises(InfeasiblePruneError, match="calibration"):
        importance(graph, channel_groups(graph), name)


@pytest.mark.parametrize("reads", [to_conv, to_two])
def test_where_the_widths_are_known_the_same_channels_leave(reads: Callable[[Net, NodeId], Graph]) -> None:
    """What stays is not put in order."""
    net = Net()
    graph = reads(net, net.relu(wide(net, 8)))
    groups = channel_groups(graph)
    for left in (2, 5, 7):
        widths = {family.name: left for family in groups.free}
        told, untold = (importance(graph, groups, "obs_patches", batches=DATA, widths=known) for known in (widths, None))
        for family in groups.free:
            ranked, expected = (np.argsort(scores[family.groups], kind="stable") for scores in (told, untold))
            gone = family.width - left
            assert ranked[:gone].tolist() == expected[:gone].tolist()


def test_what_comes_after_an_op_that_cannot_be_run_is_ranked_by_its_filters() -> None:
    net = Net()
    odd = net.add(ops.Opaque("odd", lambda v: v), net.conv(net.x, 4), name="odd")
    graph = net.graph(net.conv(net.conv(odd, 6, name="a"), 4))
    graph = graph.rewrite({"odd": Node("odd", ops.Opaque("odd"), graph["odd"].inputs, graph["odd"].type)})
    groups = channel_groups(graph)
    scores = optimal_brain(Scoring(graph, groups), DATA)[groups.number[groups.value("a").labels]]
    squares = (graph["a"].params[0].float64() ** 2).sum((1, 2, 3))
    order = np.argsort(squares)
    assert np.argsort(scores).tolist() == order.tolist()
    np.testing.assert_allclose(scores[order], np.cumsum(squares[order]) / squares.sum())


WIDTH, LITTLE = 8, (4, 3)
LITTLE_DATA = [(torch.randn(12, 3, *LITTLE, generator=torch.Generator().manual_seed(5)),)]
WORDS = [torch.randint(40, (48, 5), generator=torch.Generator().manual_seed(5))]


def silenced(net: Net, node_id: NodeId, axis: int, dead: np.ndarray) -> None:
    """Sets the filters of some channels to zero, and their biases."""
    node = net.nodes[node_id]
    inputs = list(node.inputs)
    for index, param in enumerate(inputs):
        if isinstance(param, Param):
            array = np.moveaxis(param.float64().copy(), axis if param.role == "weight" else 0, 0)
            array[dead] = 0
            array = np.moveaxis(array, 0, axis if param.role == "weight" else 0)
            inputs[index] = Param.of(array, role=param.role, dtype="f32", origin=param.origin)
    net.nodes[node_id] = replace(node, inputs=tuple(inputs))


def read_by_transposed_conv(net: Net, dead: np.ndarray, stride: int, groups: int) -> Graph:
    half = WIDTH // groups
    net.conv(net.x, WIDTH, name="a")
    silenced(net, "a", 0, np.concatenate([dead[dead < half] + block * half for block in range(groups)]))
    op = ops.ConvTranspose((stride, 1), ((0, 1), (1, 0)), (0, 0), (1, 2), groups)
    weight, bias = net.param(WIDTH, 4 // groups, 3, 2, role="weight"), net.param(4, role="bias")
    return net.graph(net.add(op, net.relu("a"), weight, bias, name="reader"))


def read_by_attention(net: Net, dead: np.ndarray) -> Graph:
    """Two heads, whose width is read by products alone."""
    heads, count = 2, LITTLE[0] * LITTLE[1]
    flat = net.add(ops.Permute((0, 2, 1)), net.add(ops.Reshape((0, 3, count)), net.x))
    sides = []
    for name, width in (("a", WIDTH), ("k", WIDTH), ("v", 3)):
        made = net.linear(flat, heads * width, name=name)
        if name != "v":
            silenced(net, name, 0, np.concatenate([dead + head * WIDTH for head in range(heads)]))
        sides.append(net.add(ops.Permute((0, 2, 1, 3)), net.add(ops.Reshape((0, count, heads, width)), made)))
    return net.graph(net.add(ops.Attention(0.3, WIDTH), *sides, name="reader"))


def read_by_mean(net: Net, dead: np.ndarray) -> Graph:
    """A mean counts a dead channel: nothing but its variance says that it tells nothing."""
    net.conv(net.x, WIDTH, name="a")
    silenced(net, "a", 0, dead)
    return net.graph(net.conv(net.add(ops.Reduce("mean", (1,), True), "a"), 4, name="reader"))


def looked_up(net: Net, dead: np.ndarray) -> Graph:
    """An embedding of forty words, read by a linear: of fewer, channels could stand in for each other."""
    words, shape = net.param(40, WIDTH, role="weight"), TensorType("f32", (2, 5, WIDTH))
    net.nodes = {"x": Node("x", ops.Input(), (), TensorType("i64", (2, 5)))}
    net.nodes["a"] = Node("a", ops.Embedding(), ("x", words), shape)
    silenced(net, "a", 1, dead)
    return net.graph(net.linear("a", 12, name="reader"))


READERS: dict[str, Callable[[Net, np.ndarray], Graph]] = {
    "transposed conv": lambda net, dead: read_by_transposed_conv(net, dead, 1, 1),
    "transposed conv, strided": lambda net, dead: read_by_transposed_conv(net, dead, 2, 1),
    "transposed conv, holes": lambda net, dead: read_by_transposed_conv(net, dead, 4, 1),
    "transposed conv, grouped": lambda net, dead: read_by_transposed_conv(net, dead, 2, 2),
    "attention": read_by_attention,
    "mean": read_by_mean,
    "embedding": looked_up,
}


@pytest.mark.parametrize("name", ["energy", "obs", "obs_patches"])
@pytest.mark.parametrize("reader", READERS)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 3))
def test_dead_channels_leave_first_whoever_reads_them(reader: str, name: str, seed: int, count: int) -> None:
    dead = np.sort(np.random.default_rng(seed).permutation(WIDTH // 2)[:count])  # below a half: two groups have the same
    graph = READERS[reader](Net(seed=seed, size=LITTLE), dead)
    groups = channel_groups(graph)
    scores = importance(graph, groups, name, batches=WORDS if reader == "embedding" else LITTLE_DATA)
    (family,) = [family for family in groups.free if "a" in family.producers]
    gone = set(family.groups[np.argsort(scores[family.groups], kind="stable")[:count]].tolist())
    assert gone == set(groups.number[groups.value("a").labels[dead]].tolist())


@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
@pytest.mark.parametrize("reader", [name for name in READERS if name != "mean"])
def test_a_cut_of_dead_channels_changes_nothing(reader: str, quality: Quality) -> None:
    """As many as are dead: half of the width, so that the lowest indices would not do."""
    dead = np.arange(2, 4) if "grouped" in reader else np.arange(4, 8)
    graph = READERS[reader](Net(seed=5, size=LITTLE), dead)
    data = WORDS if reader == "embedding" else LITTLE_DATA
    found = prune(graph, ratio=0.5, round_to=1, calibration=data, quality=quality)
    inputs = {"x": WORDS[0] if reader == "embedding" else LITTLE_DATA[0][0].double()}
    expected, value = (evaluate(g, inputs)["reader"] for g in (graph, found.graph))
    assert difference(expected, value).relative < 1e-5  # float32 weights and activations


@pytest.mark.parametrize(("quality", "by"), [("fast", "energy"), ("standard", "obs"), ("high", "obs_patches")])
def test_the_quality_says_how_channels_are_ranked(quality: Quality, by: str) -> None:
    net = Net(seed=4)
    graph = net.head(net.relu(net.conv(net.relu(net.conv(net.x, 16)), 12)))
    found = prune(graph, ratio=0.5, round_to=1, calibration=DATA, quality=quality)
    assert found.plan.importance == by
    assert prune(graph, ratio=0.5, round_to=1).plan.importance == "l1"


def test_selection_beats_magnitude_on_data_it_has_not_seen() -> None:
    """Where some channels are mixtures of others, optimal brain finds them and l1 does not."""
    better = 0
    for seed in range(6):
        net = Net(seed=seed)
        graph = to_conv(net, wide(net, 12, 6))
        x = torch.randn(16, 3, *SIZE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
        expected = evaluate(graph, {"x": x})[graph.outputs[0]]
        errors = []
        for name in ("l1", "obs"):
            cut = prune(graph, ratio=0.5, round_to=1, importance=name, calibration=DATA, quality="high").graph
            errors.append(float(((evaluate(cut, {"x": x})[cut.outputs[0]] - expected) ** 2).mean()))
        better += errors[1] <= errors[0]
    assert better == 6
