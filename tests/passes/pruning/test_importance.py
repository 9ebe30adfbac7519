"""What each criterion ranks by, and what it refuses."""

from typing import get_args

import numpy as np
import pytest
import torch

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes import choices
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from reparam_compiler.passes.pruning.criteria import magnitude
from reparam_compiler.passes.pruning.criteria.importance import (
    CRITERIA,
    Criterion,
    Scores,
    Scoring,
    importance,
    is_cumulative,
    register_criterion,
)
from reparam_compiler.passes.pruning.pipeline import QUALITIES
from tests.support.pruning_nets import Net


def two_convs_summed() -> tuple[Net, Graph, ChannelGroups]:
    net = Net()
    graph = net.head(net.sum(net.norm(net.conv(net.x, 8, name="a")), net.conv(net.x, 8, 1, name="b")))
    return net, graph, channel_groups(graph)


def weight(graph: Graph, node: str) -> np.ndarray:
    param = graph[node].param(1)
    assert param is not None
    return param.float64()


@pytest.mark.parametrize("piece", [1, 60, magnitude.PIECE])
def test_l1_sums_the_filters_of_all_layers_of_a_group(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitude, "PIECE", piece)
    _, graph, groups = two_convs_summed()
    expected = sum(np.abs(weight(graph, node)).reshape(8, -1).sum(1) for node in ("a", "b"))
    np.testing.assert_allclose(importance(graph, groups, "l1")[groups.free[0].groups], expected, rtol=1e-12)


def test_l2_is_the_norm_of_the_filters_of_a_group() -> None:
    _, graph, groups = two_convs_summed()
    expected = np.sqrt(sum((weight(graph, node) ** 2).reshape(8, -1).sum(1) for node in ("a", "b")))
    np.testing.assert_allclose(importance(graph, groups, "l2")[groups.free[0].groups], expected, rtol=1e-12)


def test_bn_scale_is_the_absolute_scale() -> None:
    _, graph, groups = two_convs_summed()
    norm = next(node.id for node in graph if node.op.name == "batch_norm")
    np.testing.assert_allclose(importance(graph, groups, "bn_scale")[groups.free[0].groups], np.abs(weight(graph, norm)))


def test_bn_scale_without_batch_norm_names_the_families_and_what_to_do() -> None:
    net = Net()
    graph = net.head(net.conv(net.norm(net.conv(net.x, 8, name="a")), 8, name="b"))
    with pytest.raises(InfeasiblePruneError, match=r"net\.b have none; use 'l1'"):
        importance(graph, channel_groups(graph), "bn_scale")


def test_random_follows_the_seed() -> None:
    _, graph, groups = two_convs_summed()
    first, again, other = (importance(graph, groups, "random", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_any_function_is_a_criterion() -> None:
    _, graph, groups = two_convs_summed()
    assert np.array_equal(importance(graph, groups, lambda s: np.arange(s.groups.count)), np.arange(groups.count))


@pytest.mark.parametrize("scores", [np.zeros(2), np.full(200, np.nan)])
def test_scores_that_cannot_be_ranked_are_refused(scores: np.ndarray) -> None:
    _, graph, groups = two_convs_summed()
    with pytest.raises(InfeasiblePruneError, match="a finite number for each group"):
        importance(graph, groups, lambda s: scores[: s.groups.count])


@pytest.mark.parametrize("criterion", ["l1", lambda scoring: np.arange(scoring.groups.count)])
def test_a_loss_that_a_criterion_does_not_ask_is_refused(criterion: str | Criterion) -> None:
    _, graph, groups = two_convs_summed()
    with pytest.raises(InfeasiblePruneError, match=r"loss: importance .* takes none; leave it out"):
        importance(graph, groups, criterion, loss=lambda outputs: outputs.sum())  # type: ignore[union-attr]


def test_a_loss_reaches_a_criterion_of_the_caller() -> None:
    def asks(scoring: Scoring) -> Scores:
        assert scoring.loss is not None
        return np.full(scoring.groups.count, float(scoring.loss(torch.ones(3))))

    _, graph, groups = two_convs_summed()
    assert importance(graph, groups, asks, loss=torch.sum)[1] == 3.0


def test_unknown_criterion_lists_those_that_exist() -> None:
    _, graph, groups = two_convs_summed()
    with pytest.raises(
        InfeasiblePruneError, match=r"bn_scale, energy, fpgm, geometric, hessian, l1, l2, lasso, .*random, taylor"
    ):
        importance(graph, groups, "magnitude")


@pytest.mark.parametrize("criterion", ["taylor", "hessian", "energy", "lasso"])
def test_criterion_of_data_asks_for_calibration(criterion: str) -> None:
    _, graph, groups = two_convs_summed()
    with pytest.raises(InfeasiblePruneError, match=f"{criterion}.* give calibration="):
        importance(graph, groups, criterion)
    with pytest.raises(InfeasiblePruneError, match="holds no batch"):
        importance(graph, groups, criterion, batches=[])
    with pytest.raises(InfeasiblePruneError, match="2 arrays, the model 1 inputs"):
        importance(graph, groups, criterion, batches=[(np.zeros((2, 3, 9, 7)), np.zeros(2))])


def test_whether_a_criterion_is_cumulative_is_remembered() -> None:
    @register_criterion("ramp of a test", cumulative=True)
    def ramp(scoring: Scoring) -> Scores:
        return np.arange(scoring.groups.count, dtype=float)

    try:
        assert is_cumulative("ramp of a test")
        assert is_cumulative(ramp)
        assert not is_cumulative("l1")
        assert not is_cumulative(lambda scoring: np.zeros(scoring.groups.count))
    finally:
        del CRITERIA["ramp of a test"]


def test_name_can_be_registered_once() -> None:
    with pytest.raises(ValueError, match="l1 is registered"):
        register_criterion("l1")(lambda scoring: np.zeros(scoring.groups.count))


def test_a_command_line_offers_every_criterion_and_quality_of_the_library() -> None:
    """Without torch it cannot ask the registry, which holds what a caller added too."""
    ours = {name for name, criterion in CRITERIA.items() if criterion.__module__.startswith("reparam_compiler.")}
    assert ours == set(choices.CRITERIA)
    assert set(QUALITIES) == set(get_args(choices.Quality))
