"""Gradients on the internal graph are those of the loss, and make the scores that the papers define."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param, TensorType, with_inputs
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.criteria import gradient as criteria_gradient
from reparam_compiler.passes.pruning.criteria.gradient import default_loss
from reparam_compiler.passes.pruning.criteria.importance import importance
from reparam_compiler.passes.pruning.criteria.running import samples_of
from tests.support.pruning_nets import SIZE, Net

STEP = 1e-5
CLOSE = {"rtol": 1e-3, "atol": 1e-7}  # float32 gradients against float64 differences


def small_net(batch: str | int = "n") -> Graph:
    net = Net(batch=batch)
    return net.head(net.sigmoid(net.norm(net.conv(net.sigmoid(net.conv(net.x, 3, 1, name="a")), 2, 1, name="b"))), classes=4)


def images(count: int, samples: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(samples, 3, *SIZE, generator=draw) for _ in range(count)]


def slopes(graph: Graph, node: str, index: int, x: Tensor, loss: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The derivative of the loss in each element of a parameter, by differences, in float64."""
    param = graph[node].param(index)
    assert param is not None
    whole, found = param.float64(), np.zeros(param.shape)

    def at(array: np.ndarray) -> float:
        changed = with_inputs(graph[node], {index: Param.of(array, role="weight", dtype="f64")})
        return float(loss(evaluate(graph.rewrite({node: changed}), {"x": x})[graph.outputs[0]]))

    for place in np.ndindex(*param.shape):
        low, high = whole.copy(), whole.copy()
        low[place], high[place] = low[place] - STEP, high[place] + STEP
        found[place] = (at(high) - at(low)) / (2 * STEP)
    return found


def labels_of(graph: Graph, x: Tensor) -> Tensor:
    found: Tensor = evaluate(graph, {"x": x})[graph.outputs[0]].argmax(1)
    return found


def test_taylor_is_weight_times_slope_summed_over_filters_biases_and_batches() -> None:
    graph, batches = small_net(), images(2, 4)
    groups = channel_groups(graph)
    scores = importance(graph, groups, "taylor", batches=batches)
    expected = np.zeros(3)
    for x in batches:
        labels = labels_of(graph, x)
        for index in (1, 2):
            param = graph["a"].param(index)
            assert param is not None
            slope = slopes(graph, "a", index, x, lambda y, labels=labels: torch.nn.functional.cross_entropy(y, labels))
            expected += np.abs(param.float64() * slope).reshape(3, -1).sum(1)
    np.testing.assert_allclose(scores[groups.number[groups.value("a").labels]], expected, **CLOSE)


def test_hessian_is_half_the_fisher_diagonal_times_the_square_sample_by_sample() -> None:
    graph, batches = small_net(), images(1, 3)
    groups = channel_groups(graph)
    scores = importance(graph, groups, "hessian", batches=batches)
    expected = np.zeros(3)
    for x in batches[0].split(1):
        labels = labels_of(graph, x)
        for index in (1, 2):
            param = graph["a"].param(index)
            assert param is not None
            slope = slopes(graph, "a", index, x, lambda y, labels=labels: torch.nn.functional.cross_entropy(y, labels))
            expected += 0.5 * (param.float64() ** 2 * slope**2 / 3).reshape(3, -1).sum(1)
    np.testing.assert_allclose(scores[groups.number[groups.value("a").labels]], expected, **CLOSE)


def test_hessian_stops_after_so_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, batches = small_net(), images(3, 4)
    groups = channel_groups(graph)
    monkeypatch.setattr(criteria_gradient, "FISHER_SAMPLES", 4)
    first = importance(graph, groups, "hessian", batches=batches)
    assert np.array_equal(first, importance(graph, groups, "hessian", batches=batches[:1]))


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_channel_that_nobody_reads_scores_nothing(criterion: str) -> None:
    graph = small_net()
    weight = graph["b"].params[0].float64()
    weight[:, 1] = 0
    blind = with_inputs(graph["b"], {1: Param.of(weight, role="weight", dtype="f32")})
    graph = graph.rewrite({"b": blind})
    groups = channel_groups(graph)
    scores = importance(graph, groups, criterion, batches=images(1, 4))[groups.number[groups.value("a").labels]]
    assert scores[1] == 0
    assert scores[[0, 2]].min() > 0


def test_loss_of_the_caller_is_what_gradients_are_taken_of() -> None:
    graph, x = small_net(), images(1, 4)[0]
    groups = channel_groups(graph)

    def first_logit(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        assert isinstance(outputs, Tensor)
        return outputs[:, 0].sum()

    scores = importance(graph, groups, "taylor", batches=[x], loss=first_logit)
    expected = sum(
        np.abs(graph["a"].params[i - 1].float64() * slopes(graph, "a", i, x, first_logit)).reshape(3, -1).sum(1) for i in (1, 2)
    )
    np.testing.assert_allclose(scores[groups.number[groups.value("a").labels]], expected, **CLOSE)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y: y, r"shape \(4, 4\); expected a finite scalar"),
        (lambda y: y.sum() * float("nan"), "nan"),
        (lambda y: 1.0, "1.0; expected a finite scalar tensor"),
        (lambda y: y.detach().sum(), "does not depend on the parameters"),
    ],
)
def test_loss_that_has_no_gradient_is_refused(loss: Callable[[Tensor], Tensor], message: str) -> None:
    graph = small_net()
    with pytest.raises(InfeasiblePruneError, match=message):
        importance(graph, channel_groups(graph), "taylor", batches=images(1, 4), loss=loss)


def test_default_loss_is_cross_entropy_of_classes_and_else_half_the_squared_norm() -> None:
    logits, map_ = torch.randn(4, 5), torch.randn(4, 2, 3, 3)
    expected = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
    torch.testing.assert_close(default_loss(logits), expected)
    torch.testing.assert_close(default_loss(map_), 0.5 * (map_**2).sum() / 4)
    torch.testing.assert_close(default_loss((logits, map_)), 0.5 * ((logits**2).sum() + (map_**2).sum()) / 4)


@pytest.mark.parametrize(
    "outputs", [torch.zeros(3, dtype=torch.int64), (torch.zeros(3, dtype=torch.int64), torch.zeros(3) > 0)]
)
def test_output_without_a_gradient_has_no_default_loss(outputs: Tensor | tuple[Tensor, ...]) -> None:
    with pytest.raises(InfeasiblePruneError, match=r"the model gives int64.*which no gradient comes from"):
        default_loss(outputs)


def test_an_argmax_at_the_end_is_refused_by_name() -> None:
    net = Net()
    last = net.conv(net.relu(net.conv(net.x, 6, name="a")), 4, name="b")
    graph = net.graph(net.add(ops.Opaque("argmax", lambda v: v.argmax(1)), last))
    with pytest.raises(InfeasiblePruneError, match="the model gives int64"):
        importance(graph, channel_groups(graph), "taylor", batches=images(1, 2))


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_embedding_is_scored_by_what_it_looks_up(criterion: str) -> None:
    random = np.random.default_rng(0)
    words, reads = random.standard_normal((9, 6)), random.standard_normal((4, 6))
    reads[:, 2] = 0
    nodes = [
        Node("i", ops.Input(), (), TensorType("i64", ("n", 5))),
        Node("e", ops.Embedding(), ("i", Param.of(words, role="weight", dtype="f32")), TensorType("f32", ("n", 5, 6))),
        Node("l", ops.Linear(), ("e", Param.of(reads, role="weight", dtype="f32"), None), TensorType("f32", ("n", 5, 4))),
    ]
    graph = Graph.of(nodes, ["l"])
    groups = channel_groups(graph)
    scores = importance(graph, groups, criterion, batches=[torch.arange(9).reshape(1, 9)[:, :5], torch.arange(4, 9)[None]])
    assert np.flatnonzero(scores[groups.number[groups.value("e").labels]] == 0).tolist() == [2]


def test_outputs_of_several_tensors_reach_the_loss_in_a_tuple() -> None:
    net = Net()
    a = net.sigmoid(net.conv(net.x, 3, 1, name="a"))
    graph = net.graph(net.conv(a, 2, name="b"), net.conv(a, 4, name="c"))
    seen: list[int] = []

    def both(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        assert isinstance(outputs, tuple)
        seen.append(len(outputs))
        return outputs[0].sum() + outputs[1].mean()

    importance(graph, channel_groups(graph), "taylor", batches=images(1, 4), loss=both)
    assert seen == [2]


def test_batch_is_taken_apart_only_where_the_graph_leaves_its_size_open() -> None:
    x = {"x": torch.zeros(4, 3, *SIZE)}
    assert len(list(samples_of(small_net("n"), x))) == 4
    assert len(list(samples_of(small_net(2), x))) == 1
    assert len(list(samples_of(replace(small_net(2), sizes_are_fixed=False), x))) == 4


def test_batch_norms_and_depthwise_convs_pass_gradients_on() -> None:
    net = Net()
    graph = net.head(net.norm(net.conv(net.relu(net.norm(net.conv(net.x, 8, name="a"))), 8, groups=8, name="dw")))
    groups = channel_groups(graph)
    assert importance(graph, groups, "taylor", batches=images(1, 4))[groups.free[0].groups].min() > 0
    assert isinstance(graph["dw"].op, ops.Conv)
