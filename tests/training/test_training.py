"""What each method promises to those who train, on a small digits net of real branches and batch norms."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.pruning.allocation import FLOOR
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from reparam_compiler.passes.pruning.slice_channels import masked, sliced
from reparam_compiler.training import ApproximatedOracle, CentripetalSGD, Coupled, group_lasso
from reparam_compiler.zoo.digits import digits_split
from reparam_compiler.zoo.repvgg import Architecture, RepVGG

ARCHITECTURE = Architecture(layers=(1, 1, 1, 1), widths=(8, 8, 16, 16), strides=(2, 2, 2, 2))
"""No identity branch: each layer is a family."""
RESIDUAL = Architecture(layers=(1, 2, 1, 1), widths=(8, 8, 16, 16), strides=(2, 1, 2, 2))
"""With one: the first three layers are a family."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    split = digits_split()
    return torch.from_numpy(split.train_images[:16].copy()), torch.from_numpy(split.train_labels[:16].copy())


def digits_net(architecture: Architecture = ARCHITECTURE, seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    net = RepVGG(architecture, num_classes=10, in_channels=1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    return fx.symbolic_trace(net.eval())


def read(module: nn.Module) -> Graph:
    assert isinstance(module, fx.GraphModule)
    return FxFrontend().read(deepcopy(module).eval(), (digits()[0][:2],)).graph


def coupled(module: nn.Module) -> Coupled:
    graph = read(module)
    return Coupled.of(module, graph, channel_groups(graph))


def trained(
    module: nn.Module,
    steps: int,
    *,
    rate: float = 0.02,
    term: Callable[[], Tensor] | None = None,
    between: Callable[[], None] | None = None,
    momentum: float = 0.9,
    decay: float = 1e-4,
) -> float:
    """The loss after so many steps of SGD on the digits."""
    images, labels = digits()
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(images), labels)
        (loss if term is None else loss + term()).backward()  # type: ignore[no-untyped-call]
        if between is not None:
            between()
        optimizer.step()
    module.eval()
    return float(loss.detach())


def outputs(graph: Graph, images: Tensor) -> Tensor:
    found: Tensor = evaluate(graph, {node.id: images for node in graph if not node.sources and not node.params})[
        graph.outputs[0]
    ]
    return found


# ---- the groups of a graph in a module


def test_group_is_a_row_of_the_tensors_that_it_stands_in() -> None:
    module = digits_net(RESIDUAL)
    found = coupled(module)
    first = found.families[0]
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    assert len(first.filters) == 6  # a 3x3 and a 1x1 conv in each of the three layers that the identity ties
    assert {part.name.rpartition(".")[2] for part in first.statistics} == {"running_mean", "running_var"}
    for part in (*first.made, *first.statistics, *first.read):
        rows = part.rows()
        assert rows.shape[0] == 8
        torch.testing.assert_close(rows[3], tensors[part.name].movedim(part.axis, 0)[3].reshape(-1), rtol=0, atol=0)


def test_rows_go_back_to_where_they_came_from() -> None:
    part = coupled(digits_net()).families[0].read[0]
    before = part.tensor.detach().clone()
    part.put(2 * part.rows().detach(), into=before)
    torch.testing.assert_close(before, 2 * part.tensor.detach(), rtol=0, atol=0)


def test_module_that_the_graph_was_not_read_from_is_refused_with_the_name() -> None:
    graph = read(digits_net())
    other = digits_net(Architecture(layers=(1, 1, 1, 1), widths=(8, 8, 16, 24), strides=(2, 2, 2, 2)))
    with pytest.raises(UnsupportedModelError, match=r"stages\.3.* of shape \(16.*found it of shape \(24"):
        Coupled.of(other, graph, channel_groups(graph))
    with pytest.raises(UnsupportedModelError, match=r"expected the module to have stages\.0"):
        Coupled.of(nn.Linear(1, 1), graph, channel_groups(graph))


# ---- group lasso


def test_group_lasso_is_the_sum_of_the_norms_times_the_root_of_the_size() -> None:
    module = digits_net()
    tensors = dict(module.named_parameters())
    expected = 0.0
    for stage in range(4):
        pair = [tensors[f"stages.{stage}.0.branches.{branch}.conv.weight"] for branch in ("dense", "pointwise")]
        rows = torch.cat([weight.detach().reshape(len(weight), -1) for weight in pair], 1)
        expected += float(rows.shape[1] ** 0.5 * rows.norm(dim=1).sum())
    assert float(group_lasso(coupled(module)).detach()) == pytest.approx(expected, rel=1e-5)


def test_group_lasso_has_a_gradient_even_at_a_group_that_is_zero() -> None:
    module = digits_net()
    weights = [
        p for name, p in module.named_parameters() if name.startswith("stages.0.0.branches") and name.endswith("conv.weight")
    ]
    for weight in weights:
        weight.data[2] = 0
    group_lasso(coupled(module)).backward()  # type: ignore[no-untyped-call]
    for weight in weights:
        assert weight.grad is not None
        assert bool(weight.grad.isfinite().all())
        assert float(weight.grad[2].abs().max()) == 0
        assert float(weight.grad[1].abs().max()) > 0


def test_group_lasso_shrinks_whole_filters_and_the_net_still_learns() -> None:
    plain, sparse = digits_net(), digits_net()
    found = coupled(sparse)
    start = trained(deepcopy(plain), 1)
    trained(plain, 40, rate=0.02)
    loss = trained(sparse, 40, rate=0.02, term=lambda: 2e-2 * group_lasso(found))

    def norms(module: nn.Module) -> np.ndarray:
        parts = [part for family in coupled(module).families for part in family.filters]
        return np.concatenate([part.rows().detach().norm(dim=1).numpy() for part in parts])

    assert norms(sparse).sum() < 0.7 * norms(plain).sum()
    shrunk = norms(sparse) / norms(plain)
    assert shrunk[norms(plain).argmin()] < shrunk[norms(plain).argmax()]  # weight decay would shrink both alike
    assert loss < start


# ---- centripetal SGD


@pytest.mark.parametrize("architecture", [ARCHITECTURE, RESIDUAL], ids=["plain", "identity"])
@pytest.mark.parametrize("by", ["kmeans", "even"])
def test_filters_of_a_cluster_become_equal_and_merging_them_loses_nothing(architecture: Architecture, by: str) -> None:
    module = digits_net(architecture)
    found = coupled(module)
    centripetal = CentripetalSGD(found, ratio=0.5, strength=5.0, by=by, round_to=1)  # type: ignore[arg-type]
    before = centripetal.gap()
    trained(module, 60, momentum=0.5, between=centripetal.replace_gradients)
    assert before > 0.1
    assert centripetal.gap() < 1e-4
    whole = outputs(read(module), digits()[0])

    merged = centripetal.merge()
    module.load_state_dict(dict(merged.weights), strict=False)
    graph = read(module)
    groups = channel_groups(graph)
    small = sliced(graph, groups, merged.keep)
    assert difference(whole, outputs(small, digits()[0])).relative < 1e-5
    for family in groups.free:
        assert merged.keep[family.groups].sum() == len(family.groups) // 2


def test_pull_alone_leaves_the_mean_of_a_cluster_where_it_is() -> None:
    module = digits_net()
    found = coupled(module)
    centripetal = CentripetalSGD(found, ratio=0.5, strength=1.0, by="even", round_to=1)
    part = found.families[0].filters[0]
    means = part.rows().detach().reshape(4, 2, -1).mean(1)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    centripetal.replace_gradients()
    torch.optim.SGD(module.parameters(), lr=0.25).step()
    after = part.rows().detach().reshape(4, 2, -1)
    torch.testing.assert_close(after.mean(1), means, rtol=1e-5, atol=1e-6)


@settings(max_examples=6)
@given(rate=st.floats(0.01, 0.5), strength=st.floats(0.1, 1.5), decay=st.floats(0, 0.1), seed=st.integers(0, 9))
def test_what_sets_filters_apart_shrinks_by_the_factor_that_is_promised(
    rate: float, strength: float, decay: float, seed: int
) -> None:
    module = digits_net(seed=seed)
    found = coupled(module)
    centripetal = CentripetalSGD(found, ratio=0.5, strength=strength, by="even", round_to=1)
    rows = found.families[0].filters[0].rows
    before = rows().detach().reshape(4, 2, -1)
    trained(module, 1, rate=rate, momentum=0.0, decay=decay, between=centripetal.replace_gradients)
    after = rows().detach().reshape(4, 2, -1)
    factor = 1 - rate * (strength + decay)
    torch.testing.assert_close(after[:, 0] - after[:, 1], factor * (before[:, 0] - before[:, 1]), rtol=1e-3, atol=1e-5)


def test_alike_filters_share_a_cluster() -> None:
    module = digits_net()
    for name, parameter in module.named_parameters():
        if name.startswith("stages.1.0.branches") and name.endswith("conv.weight"):
            parameter.data[4:] = parameter.data[:4] + 1e-3
    clusters = CentripetalSGD(coupled(module), ratio=0.5, round_to=1).clusters
    second = clusters["stages.1.0.branches.dense.conv"]
    assert np.array_equal(second[:4], second[4:])
    assert len(np.unique(second)) == 4


def test_clusters_follow_the_rounding_of_widths() -> None:
    clusters = CentripetalSGD(coupled(digits_net()), ratio=0.4, by="even").clusters
    assert [len(np.unique(cluster)) for cluster in clusters.values()] == [8, 8, 8, 8]


def test_family_whose_channels_are_counted_is_left_out_with_the_reason() -> None:
    module = digits_net()
    for name, parameter in module.named_parameters():
        if name.startswith("stages.2"):
            parameter.requires_grad_(False)
    left_out = CentripetalSGD(coupled(module), ratio=0.5, round_to=1).left_out
    assert list(left_out) == ["stages.2.0.branches.dense.conv"]
    assert "is not trained" in left_out["stages.2.0.branches.dense.conv"]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InfeasiblePruneError, match=r"no family can be merged: .* is not trained"):
        CentripetalSGD(coupled(module), ratio=0.5)


@pytest.mark.parametrize("asked", [{"ratio": 1.0}, {"ratio": 0.5, "strength": 0.0}, {"ratio": 0.5, "by": "norm"}])
def test_clustering_that_makes_no_sense_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(InfeasiblePruneError, match="give a ratio"):
        CentripetalSGD(coupled(digits_net()), **asked)  # type: ignore[arg-type]


# ---- approximated oracle


def with_useless(module: nn.Module, channels: list[int]) -> nn.Module:
    """The net whose third layer takes next to no notice of some channels of the second, and of the others alike."""
    for name, tensor in module.named_parameters():
        if name.startswith("stages.1.0.branches") and ".bn." in name:
            tensor.data.fill_(1.0)
        if name.startswith("stages.2.0.branches") and name.endswith("conv.weight"):
            tensor.data /= tensor.data.flatten(2).norm(dim=(0, 2))[:, None, None]
            tensor.data[:, channels] *= 1e-3
    return module


def test_scores_find_planted_filters_that_nobody_would_miss() -> None:
    module = with_useless(digits_net(), [1, 4, 6]).train()
    images, _ = digits()
    with ApproximatedOracle(coupled(module), rounds=1000) as oracle:
        for _ in range(60):
            module(images)
    scores = oracle.scores["stages.1.0.branches.dense.conv"]
    assert set(np.argsort(scores)[:3].tolist()) == {1, 4, 6}


def test_search_cuts_the_useless_filters_while_the_net_trains() -> None:
    module = with_useless(digits_net(), [1, 4, 6])
    found = coupled(module)
    with ApproximatedOracle(found, threshold=1e-3, rounds=40, trials=2) as oracle:
        for _ in range(12):
            if oracle.finished:
                break
            trained(module, 25, rate=1e-4)
        assert oracle.finished
        during = module(digits()[0]).detach()
    keep = oracle.keep
    gone = np.flatnonzero(~keep[found.families[1].family.groups])
    assert set(gone.tolist()) == {1, 4, 6}
    graph = read(module)
    groups = channel_groups(graph)
    assert difference(during, outputs(sliced(graph, groups, keep), digits()[0])).relative < 1e-5  # float32
    assert difference(during, outputs(masked(graph, groups, keep), digits()[0])).relative < 1e-5


def test_generous_threshold_stops_at_the_floor() -> None:
    module = digits_net()
    found = coupled(module)
    with ApproximatedOracle(found, threshold=1e9, rounds=1, trials=1) as oracle:
        for _ in range(30):
            module(digits()[0][:2])
    assert oracle.finished
    for family in found.groups.free:
        left = int(oracle.keep[family.groups].sum())
        assert left == max(1, int(np.ceil(FLOOR * len(family.groups))))


def test_strict_threshold_cuts_nothing() -> None:
    module = digits_net()
    with ApproximatedOracle(coupled(module), threshold=1e-9, rounds=1, trials=1) as oracle:
        for _ in range(10):
            module(digits()[0][:2])
    assert oracle.finished
    assert bool(oracle.keep.all())


def test_forward_pass_is_as_ever_until_something_leaves_and_after_the_end() -> None:
    module = digits_net()
    images, _ = digits()
    before = module(images).detach()
    with ApproximatedOracle(coupled(module), threshold=1e9, rounds=1, trials=1) as oracle:
        assert torch.equal(module(images), before)  # a mask is tried beside the pass, not in it
        for _ in range(4):
            module(images)
        with torch.no_grad():
            counts = oracle.scores
            masked_now = module(images)
            assert all(np.array_equal(counts[name], oracle.scores[name]) for name in counts)
        assert not torch.allclose(masked_now, before)
    assert torch.equal(module(images), before)


def test_damage_is_the_share_of_what_the_next_layer_gives() -> None:
    module = digits_net()
    found = coupled(module)
    images, _ = digits()
    with ApproximatedOracle(found, rounds=1000) as oracle:
        module(images)
    name = "stages.3.0.branches.dense.conv"
    scores = oracle.scores[name]
    tried = np.flatnonzero(np.isfinite(scores))
    graph = read(module)
    pooled = next(node.sources[0] for node in graph if node.id == "linear")
    x = evaluate(graph, {"x": images}, wanted=[pooled])[pooled]
    weight, bias = module.linear.weight.detach().double(), module.linear.bias.detach().double()
    without = x.clone()
    without[:, tried] = 0
    whole = x @ weight.T + bias
    expected = float(((whole - (without @ weight.T + bias)) ** 2).sum() / (whole**2).sum())
    assert scores[tried] == pytest.approx(expected, rel=1e-4)
    assert len(tried) == 8


class Functional(nn.Module):
    """A conv whose consumer is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.conv(x).relu(), self.weight)


def test_consumer_that_is_no_module_is_named() -> None:
    module = fx.symbolic_trace(Functional().eval())
    with pytest.raises(InfeasiblePruneError, match=r"no family can be tried: conv: conv2d is no conv or linear module"):
        ApproximatedOracle(coupled(module))


@pytest.mark.parametrize("asked", [{"threshold": 0.0}, {"rounds": 0}, {"trials": 0}])
def test_search_that_makes_no_sense_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(InfeasiblePruneError, match="give a threshold above 0"):
        ApproximatedOracle(coupled(digits_net()), **asked)  # type: ignore[arg-type]


def test_groups_and_graph_are_those_that_were_given() -> None:
    module = digits_net()
    graph = read(module)
    groups: ChannelGroups = channel_groups(graph)
    found = Coupled.of(module, graph, groups)
    assert found.graph is graph
    assert found.groups is groups
    assert [family.family for family in found.families] == list(groups.free)


class Tied(nn.Module):
    """An embedding whose table is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.table(x).relu())
        return found


def test_table_that_is_also_the_head_is_not_merged() -> None:
    module = fx.symbolic_trace(Tied().eval())
    graph = FxFrontend().read(module, (torch.arange(6).reshape(2, 3),)).graph
    groups = channel_groups(graph)
    assert len(groups.free) == 1
    with pytest.raises(InfeasiblePruneError, match=r"weight both makes and reads its channels"):
        CentripetalSGD(Coupled.of(module, graph, groups), ratio=0.5)
