"""Optimal brain selection: what the consumers can do without leaves first."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
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


def test_what_comes_after_an_op_that_cannot_be_run_scores_nothing() -> None:
    net = Net()
    odd = net.add(ops.Opaque("odd", lambda v: v), net.conv(net.x, 4), name="odd")
    graph = net.graph(net.conv(net.conv(odd, 6, name="a"), 4))
    graph = graph.rewrite({"odd": Node("odd", ops.Opaque("odd"), graph["odd"].inputs, graph["odd"].type)})
    groups = channel_groups(graph)
    assert optimal_brain(graph, groups, DATA)[groups.number[groups.value("a").labels]].max() < 1e-300


@pytest.mark.parametrize(("quality", "by"), [("fast", "energy"), ("standard", "obs"), ("high", "obs_patches")])
def test_the_quality_says_how_channels_are_ranked(quality: str, by: str) -> None:
    net = Net(seed=4)
    graph = net.head(net.relu(net.conv(net.relu(net.conv(net.x, 16)), 12)))
    found = prune(graph, ratio=0.5, round_to=1, calibration=DATA, quality=quality)  # type: ignore[arg-type]
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
