"""fpgm and geometric rank by how far a filter is from the others."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from reparam_compiler.passes.pruning.criteria.importance import importance
from reparam_compiler.passes.pruning.criteria.magnitude import distances, geometric_median
from tests.support.pruning_nets import Net

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64


def conv_of(weight: np.ndarray) -> tuple[Graph, ChannelGroups]:
    net = Net()
    param = Param.of(weight, role="weight", dtype="f64", origin="net.a.weight")
    graph = net.head(net.add(ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), net.x, param, None, name="a"))
    return graph, channel_groups(graph)


@given(count=st.integers(1, 8), size=st.integers(1, 5), seed=st.integers(0, 999))
def test_distances_are_those_of_each_pair(count: int, size: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((count, size))
    expected = np.linalg.norm(rows[:, None] - rows, axis=2)
    np.testing.assert_allclose(distances(rows), expected, rtol=1e-6, atol=1e-6)  # by differences of squares


def test_fpgm_sums_the_distances_to_the_other_filters_of_each_layer() -> None:
    net = Net()
    graph = net.head(net.sum(net.conv(net.x, 6, name="a"), net.conv(net.x, 6, 1, name="b")))
    groups = channel_groups(graph)
    expected = np.zeros(6)
    for node in ("a", "b"):
        rows = graph[node].params[0].float64().reshape(6, -1)
        expected += np.linalg.norm(rows[:, None] - rows, axis=2).sum(1)
    np.testing.assert_allclose(importance(graph, groups, "fpgm")[groups.free[0].groups], expected, **EXACT)


@pytest.mark.parametrize("criterion", ["fpgm", "geometric"])
def test_filter_in_the_middle_of_the_others_goes_first_however_large_it_is(criterion: str) -> None:
    random = np.random.default_rng(0)
    around = random.standard_normal((8, 3, 3, 3))
    weight = 5 + np.concatenate([around, around.mean(0, keepdims=True), around - 2 * (around - around.mean(0))])
    graph, groups = conv_of(weight)
    assert importance(graph, groups, criterion)[groups.free[0].groups].argmin() == 8
    assert importance(graph, groups, "l2")[groups.free[0].groups].argmin() != 8


@settings(max_examples=30)
@example(
    count=3, size=2, seed=115, repeats=1
)  # half of the rows are one: the median is there, and iterates come near it slowly
@given(count=st.integers(2, 8), size=st.integers(1, 4), seed=st.integers(0, 999), repeats=st.integers(0, 3))
def test_geometric_median_has_the_least_sum_of_distances(count: int, size: int, seed: int, repeats: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((count, size))
    rows = np.concatenate([rows, *[rows[:1]] * repeats])

    def total(point: np.ndarray) -> float:
        return float(np.linalg.norm(rows - point, axis=1).sum())

    found = total(geometric_median(rows))
    best = min(minimize(total, start, method="Nelder-Mead").fun for start in (rows.mean(0), rows[0]))
    assert found <= best * (1 + 1e-3)


def test_geometric_median_of_equal_filters_is_the_filter() -> None:
    assert np.array_equal(geometric_median(np.ones((4, 3))), np.ones(3))


def test_geometric_looks_at_all_layers_of_a_family_together() -> None:
    net = Net()
    graph = net.head(net.sum(net.conv(net.x, 6, name="a"), net.conv(net.x, 6, 1, name="b")))
    groups = channel_groups(graph)
    rows = np.concatenate([graph[node].params[0].float64().reshape(6, -1) for node in ("a", "b")], 1)
    expected = np.linalg.norm(rows - geometric_median(rows), axis=1)
    np.testing.assert_allclose(importance(graph, groups, "geometric")[groups.free[0].groups], expected, **EXACT)
