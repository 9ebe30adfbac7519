"""energy and lasso rank by what the consumers of a group read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import lars_path_gram
from torch import Tensor, fx

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, NodeId, Param, with_inputs
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from reparam_compiler.passes.pruning.criteria import activation as criteria_activation
from reparam_compiler.passes.pruning.criteria.activation import PENALTIES, vanishing_penalties
from reparam_compiler.passes.pruning.criteria.importance import importance
from reparam_compiler.zoo.digits import calibration_images
from reparam_compiler.zoo.repvgg import Architecture, RepVGG
from tests.support.pruning_nets import SIZE, Net


def images(count: int = 2, samples: int = 8) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(samples, 3, *SIZE, generator=draw) for _ in range(count)]


def scores_of(graph: Graph, node: NodeId, criterion: str, batches: list[Tensor] | None = None) -> np.ndarray:
    groups = channel_groups(graph)
    scores = importance(graph, groups, criterion, batches=batches or images())
    return scores[groups.number[groups.value(node).labels]]


def blinded(graph: Graph, reader: NodeId, channels: list[int]) -> Graph:
    """The graph whose reader takes no notice of some channels."""
    weight = graph[reader].params[0].float64()
    weight[:, channels] = 0
    return graph.rewrite({reader: with_inputs(graph[reader], {1: Param.of(weight, role="weight", dtype="f32")})})


def test_energy_is_variance_times_the_norm_of_what_reads_it_as_a_share() -> None:
    net = Net()
    a = net.relu(net.conv(net.x, 6, name="a"))
    graph = net.graph(net.conv(a, 4, name="b"), net.conv(a, 3, 1, stride=2, name="c"))
    x = torch.cat(images())
    value = evaluate(graph, {"x": x}, wanted=[a])[a].movedim(1, -1).reshape(-1, 6).numpy()
    expected = np.zeros(6)
    for reader in ("b", "c"):
        share = value.var(0) * (graph[reader].params[0].float64() ** 2).sum((0, 2, 3))
        expected += share / share.sum()
    np.testing.assert_allclose(scores_of(graph, "a", "energy"), expected, rtol=1e-4)  # float32 activations


def test_energy_of_a_group_conv_counts_the_block_that_reads_a_channel() -> None:
    net = Net()
    a = net.conv(net.x, 8, name="a")
    graph = net.graph(net.conv(a, 6, groups=2, name="b"))
    x = torch.cat(images())
    value = evaluate(graph, {"x": x}, wanted=[a])[a].movedim(1, -1).reshape(-1, 8).numpy()
    norms = (graph["b"].params[0].float64().reshape(2, 3, 4, 9) ** 2).sum((1, 3)).ravel()
    share = value.var(0) * norms / (value.var(0) * norms).sum()
    np.testing.assert_allclose(scores_of(graph, "a", "energy")[:4], share[:4] + share[4:], rtol=1e-4)


def test_energy_after_a_flatten_sums_all_positions_of_a_channel() -> None:
    net = Net(size=(3, 2))
    graph = net.graph(net.linear(net.add(ops.Flatten(1, 3), net.conv(net.x, 4, name="a")), 5, name="b"))
    batches = [torch.randn(8, 3, 3, 2)]
    value = evaluate(graph, {"x": batches[0]}, wanted=["a"])["a"].reshape(8, -1).numpy()
    share = value.var(0) * (graph["b"].params[0].float64() ** 2).sum(0)
    np.testing.assert_allclose(scores_of(graph, "a", "energy", batches), share.reshape(4, 6).sum(1) / share.sum(), rtol=1e-4)


@pytest.mark.parametrize("criterion", ["energy", "lasso"])
def test_channel_that_contributes_nothing_scores_nothing(criterion: str) -> None:
    net = Net()
    net.conv(net.relu(net.conv(net.x, 8, name="a")), 8, name="b")
    graph = blinded(net.head(net.sigmoid("b")), "b", [2, 5])
    scores = scores_of(graph, "a", criterion)
    assert np.flatnonzero(scores == 0).tolist() == [2, 5]


@pytest.mark.parametrize("criterion", ["energy", "lasso"])
def test_constant_channel_scores_nothing_however_large(criterion: str) -> None:
    net = Net()
    weight, bias = np.asarray(net.random.standard_normal((6, 3, 3, 3))), np.ones(6)
    weight[3], bias[3] = 0, 100
    params = (Param.of(weight, role="weight", dtype="f32"), Param.of(bias, role="bias", dtype="f32"))
    net.add(ops.Conv((1, 1), ((1, 1),) * 2, (1, 1)), net.x, *params, name="a")
    graph = net.graph(net.conv("a", 4, 1, name="b"))
    scores = scores_of(graph, "a", criterion)
    assert scores.argmin() == 3
    assert scores[3] < 1e-5 * np.median(scores)


@pytest.mark.parametrize("axis", ["conv", "stride", "groups", "linear"])
def test_lasso_sees_that_two_channels_cancel_each_other_and_energy_does_not(axis: str) -> None:
    net = Net()
    random = net.random
    weight = random.standard_normal((8, 3, 1, 1))
    weight[6] = weight[2]
    bias = random.standard_normal(8)
    params = (Param.of(weight, role="weight", dtype="f32"), Param.of(bias, role="bias", dtype="f32"))
    net.add(ops.Conv((1, 1), ((0, 0),) * 2, (1, 1)), net.x, *params, name="a")
    if axis == "linear":
        graph = net.graph(net.linear(net.add(ops.Permute((0, 2, 3, 1)), net.relu("a")), 5, name="b"))
    else:
        graph = net.graph(net.conv(net.relu("a"), 4, stride=2 if axis == "stride" else 1, name="b"))
    reads = graph["b"].params[0].float64()
    reads[:, 6] = -reads[:, 2]
    graph = graph.rewrite({"b": with_inputs(graph["b"], {1: Param.of(reads, role="weight", dtype="f64")})})
    scores = scores_of(graph, "a", "lasso")
    assert set(np.argsort(scores)[:2].tolist()) == {2, 6}
    assert set(np.argsort(scores_of(graph, "a", "energy"))[:2].tolist()) != {2, 6}


def test_lasso_of_many_outputs_ranks_as_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    graph = net.graph(net.conv(net.relu(net.conv(net.x, 12, name="a")), 80, 1, name="b"))
    mixed = scores_of(graph, "a", "lasso")
    monkeypatch.setattr(criteria_activation, "DIRECTIONS", 80)
    whole = scores_of(graph, "a", "lasso")
    assert np.corrcoef(mixed, whole)[0, 1] > 0.9


@settings(max_examples=30)
@given(size=st.integers(1, 12), samples=st.integers(20, 60), seed=st.integers(0, 999))
def test_penalties_are_those_of_the_exact_path(size: int, samples: int, seed: int) -> None:
    parts = np.random.default_rng(seed).standard_normal((samples, size)) * np.random.default_rng(seed + 1).uniform(0.2, 2, size)
    gram = parts.T @ parts / samples
    alphas, _, path = lars_path_gram(gram.sum(1), gram, n_samples=1, method="lasso")
    # at knot k a coefficient is zero for the last time where it is not at k + 1
    exact = np.array([alphas[max(int(np.flatnonzero(row).min()) - 1, 0)] if row.any() else 0 for row in path])
    found = vanishing_penalties(gram)
    ratio = 1e-4 ** (1 / (PENALTIES - 1))  # one point of the grid
    large = exact > alphas[0] * 1e-3
    assert (found[large] <= exact[large] / ratio**1.5).all()
    assert (found[large] >= exact[large] * ratio**1.5).all()


@pytest.mark.parametrize("criterion", ["lasso", "energy"])
def test_planted_channels_of_the_digits_net_that_contribute_nothing_come_last(criterion: str) -> None:
    architecture = Architecture(layers=(1, 1, 1, 1), widths=(8, 8, 16, 16), strides=(2, 2, 2, 2))
    module = fx.symbolic_trace(RepVGG(architecture, num_classes=10, in_channels=1).eval())
    for name, tensor in module.named_parameters():
        if name.startswith("stages.2.0.branches") and name.endswith("conv.weight"):
            tensor.data[:, [1, 4, 6]] = 0
    images = torch.from_numpy(calibration_images(32).copy())
    module.train()
    module(images)  # sets the statistics of the batch norms
    graph = FxFrontend().read(module.eval(), (images[:2],)).graph
    groups = channel_groups(graph)
    scores = importance(graph, groups, criterion, batches=images.split(16))
    assert set(np.flatnonzero(scores[groups.free[1].groups] == 0).tolist()) == {1, 4, 6}
    assert scores[groups.free[0].groups].min() > 0


def test_nothing_that_contributes_has_no_penalty() -> None:
    assert np.array_equal(vanishing_penalties(np.zeros((3, 3))), np.zeros(3))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_contributions_that_are_not_finite_have_no_order(wrong: float) -> None:
    assert np.isnan(vanishing_penalties(np.diag([1.0, wrong, 2.0]))).all()


def unread_net() -> tuple[Graph, ChannelGroups]:
    """A family whose reader the coupling does not know as one, as where channels end in an attention."""
    net = Net()
    a = net.conv(net.x, 4, 1, name="a")
    graph = net.graph(net.conv(net.relu(a), 3, name="b"))
    groups = channel_groups(graph)
    slots = {slot: axes for slot, axes in groups.slots.items() if slot != ("b", 1)}
    return graph, ChannelGroups(groups.values, slots, groups.number, groups.families)


def test_lasso_names_the_family_that_no_conv_reads() -> None:
    graph, groups = unread_net()
    with pytest.raises(InfeasiblePruneError, match=r"none reads net\.a; use 'energy'"):
        importance(graph, groups, "lasso", batches=images())


def test_energy_of_a_family_that_no_conv_reads_is_its_variance() -> None:
    graph, groups = unread_net()
    value = evaluate(graph, {"x": torch.cat(images())}, wanted=["a"])["a"].movedim(1, -1).reshape(-1, 4).numpy()
    found = importance(graph, groups, "energy", batches=images())[groups.number[groups.value("a").labels]]
    np.testing.assert_allclose(found, value.var(0), rtol=1e-4)


@pytest.mark.parametrize("criterion", ["energy", "lasso", "taylor", "hessian", "l1", "fpgm", "geometric"])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_conv_is_a_reader_along_axis_zero_and_made_along_axis_one(criterion: str, groups: int) -> None:
    net = Net()
    a = net.relu(net.conv(net.x, 6, name="a"))
    op = ops.ConvTranspose((2, 2), ((0, 0),) * 2, (0, 0), (1, 1), groups)
    up = net.add(
        op, a, net.param(6, 8 // groups, 3, 3, role="weight", origin="net.up.weight"), net.param(8, role="bias"), name="up"
    )
    graph = net.head(net.conv(net.sigmoid(up), 4, 1, name="b"))
    weight = graph["up"].params[0].float64()
    half = 6 // groups
    weight[2::half] = 0  # nobody reads channel 2, nor the one that goes with it
    blind = with_inputs(graph["up"], {1: Param.of(weight, role="weight", dtype="f32")})
    graph = graph.rewrite({"up": blind})
    reads = scores_of(graph, "a", criterion)
    if criterion in ("energy", "lasso", "taylor", "hessian"):
        assert set(np.flatnonzero(reads == 0).tolist()) == set(range(2, 6, half))
    made = scores_of(graph, "up", criterion)
    assert len(made) == 8
    assert made.min() > 0
    if criterion == "l1":
        per_group = np.abs(weight).sum((0, 2, 3))
        np.testing.assert_allclose(made, np.tile(per_group, groups), rtol=1e-6)


def test_scores_do_not_depend_on_how_the_data_is_cut_into_batches() -> None:
    net = Net()
    graph = net.head(net.conv(net.relu(net.conv(net.x, 6, name="a")), 4, name="b"))
    whole = torch.cat(images(4, 4))
    one, many = (scores_of(graph, "a", "energy", list(whole.split(size))) for size in (16, 3))
    np.testing.assert_allclose(one, many, rtol=1e-5)
