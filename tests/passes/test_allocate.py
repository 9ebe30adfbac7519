"""A ratio becomes widths; what the caller names stays."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_nets import Net

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.allocate import FLOOR, allocate, ignored_nodes
from reparam_compiler.passes.channel_groups import ChannelGroups, channel_groups


def chain(*widths: int) -> tuple[Graph, ChannelGroups]:
    net = Net()
    x = net.x
    for index, width in enumerate(widths):
        x = net.conv(x, width, name=f"c{index}")
    graph = net.head(x)
    return graph, channel_groups(graph)


@settings(deadline=None)
@given(
    ratio=st.floats(0, 0.99), widths=st.lists(st.integers(2, 40), min_size=1, max_size=3), round_to=st.sampled_from([1, 4, 8])
)
def test_uniform_widths_are_as_near_as_the_rounding_allows(ratio: float, widths: list[int], round_to: int) -> None:
    _, groups = chain(*widths)
    try:
        found = allocate(groups, np.arange(groups.count, dtype=float), ratio=ratio, round_to=round_to)
    except InfeasiblePruneError as error:
        assert "removes no channel" in str(error)  # noqa: PT017
        return
    for width, family in zip(widths, groups.free, strict=True):
        after = int(found.keep[family.groups].sum())
        assert after == found.widths[family.name] >= 1
        assert after % round_to == 0 or after == width
        assert abs(after - (1 - ratio) * width) <= max(round_to / 2, round_to - (1 - ratio) * width) + 1e-9


def test_highest_scores_stay() -> None:
    _, groups = chain(10)
    scores = np.zeros(groups.count)
    family = groups.free[0]
    scores[family.groups] = [3, 9, 1, 7, 5, 8, 2, 6, 4, 0]
    found = allocate(groups, scores, ratio=0.5, round_to=1)
    assert np.flatnonzero(found.keep[family.groups]).tolist() == [1, 3, 4, 5, 7]


def test_global_takes_the_least_of_all_but_leaves_a_tenth() -> None:
    _, groups = chain(20, 20)
    scores = np.ones(groups.count)
    scores[groups.free[0].groups] = np.linspace(1e-3, 2e-3, 20)
    scores[groups.free[1].groups] = np.r_[np.full(10, 1e-6), np.full(10, 1.0)]
    found = allocate(groups, scores, ratio=0.25, allocation="global", round_to=1)
    assert list(found.widths.values()) == [20, 10]
    most = allocate(groups, scores, ratio=0.99, allocation="global", round_to=1)
    assert min(most.widths.values()) == FLOOR * 20


def test_global_removes_the_share_that_was_asked() -> None:
    _, groups = chain(20, 30, 14)
    scores = np.random.default_rng(0).random(groups.count)
    found = allocate(groups, scores, ratio=0.3, allocation="global", round_to=1)
    assert sum(found.widths.values()) == round(0.7 * 64)


def test_grouped_width_stays_divisible() -> None:
    net = Net()
    graph = net.head(net.conv(net.conv(net.x, 24, name="a"), 36, groups=3, name="b"))
    groups = channel_groups(graph)
    found = allocate(groups, np.ones(groups.count), ratio=0.4, round_to=8)
    assert found.widths == {"net.a": 24, "net.b": 24}
    assert all(width % 3 == 0 for width in found.widths.values())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ratio": 1.0}, "below 1"),
        ({"ratio": 0.3, "round_to": 0}, "round_to=0"),
        ({"ratio": 0.3, "allocation": "local"}, "local"),
    ],
)
def test_request_out_of_bounds_is_refused(asked: dict[str, object], message: str) -> None:
    _, groups = chain(10)
    with pytest.raises(InfeasiblePruneError, match=message):
        allocate(groups, np.ones(groups.count), **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["c1", "net.c1", "net.c1.weight", "*.c1", "c[1]", "rbr_1x1"])
def test_nodes_are_named_by_id_origin_pattern_or_what_was_fused_into_them(pattern: str) -> None:
    graph, _ = chain(8, 8, 8)
    graph = graph.rewrite({"c1": replace(graph["c1"], replaces=("rbr_1x1", "add"))})
    assert list(ignored_nodes(graph, [pattern])) == ["c1"]


def test_name_of_a_module_stands_for_all_in_it() -> None:
    graph, _ = chain(8, 8)
    assert list(ignored_nodes(graph, ["net"])) == ["c0", "c1", "head"]


def test_unknown_name_lists_those_like_it() -> None:
    graph, _ = chain(8, 8)
    with pytest.raises(InfeasiblePruneError, match=r"'net\.c7' matches no node; names like it: .*net\.c[01]"):
        ignored_nodes(graph, ["c0", "net.c7"])
