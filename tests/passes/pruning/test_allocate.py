"""A ratio becomes widths; what the caller names stays."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.core.slicing import nearest_width
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.choices import ALLOCATIONS, AllocationName
from reparam_compiler.passes.pruning.allocation import FLOOR, allocate, ignored_nodes, least_widths
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from tests.support.pruning_nets import Net


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
def test_uniform_widths_are_next_to_the_ratio_in_every_family(ratio: float, widths: list[int], round_to: int) -> None:
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
        assert abs(after - (1 - ratio) * width) < max(round_to, round_to - (1 - ratio) * width) + 1e-9


@given(ratio=st.floats(0.01, 0.95), count=st.integers(1, 5), width=st.integers(12, 70), round_to=st.sampled_from([1, 4, 8]))
def test_uniform_total_is_within_a_step_where_all_families_round_the_same_way(
    ratio: float, count: int, width: int, round_to: int
) -> None:
    _, groups = chain(*[width] * count)
    least = max(round_to, -(-width // 10))
    try:
        found = allocate(groups, np.arange(groups.count, dtype=float), ratio=ratio, round_to=round_to)
    except InfeasiblePruneError:
        assert ratio * width <= round_to
        return
    over = sum(found.widths.values()) - count * width * (1 - ratio)
    if (1 - ratio) * width > 2 * least:  # else the floor is in the way
        assert abs(over) <= round_to + 1e-9
    for after in found.widths.values():
        assert after >= min(least, nearest_width((1 - ratio) * width, width, round_to))  # it only moves down to the floor


def test_uniform_leaves_the_nearest_widths_where_the_total_is_right() -> None:
    """Those of RepVGG-A0 at 0.3: 32, 64, 136 and 896."""
    _, groups = chain(48, 48, 96, 96, 192, 192, 192, 1280)
    found = allocate(groups, np.ones(groups.count), ratio=0.3)
    assert list(found.widths.values()) == [32, 32, 64, 64, 136, 136, 136, 896]


@pytest.mark.parametrize("allocation", ["global", "sensitivity"])
@given(ratio=st.floats(0, 0.99), widths=st.lists(st.integers(2, 40), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_total_is_what_was_asked_and_no_family_falls_below_its_floor(
    allocation: AllocationName, ratio: float, widths: list[int], seed: int
) -> None:
    _, groups = chain(*widths)
    scores = np.random.default_rng(seed).random(groups.count)
    for round_to in (1, 4, 8):
        try:
            found = allocate(groups, scores, ratio=ratio, allocation=allocation, round_to=round_to)
        except InfeasiblePruneError as error:
            assert "removes no channel" in str(error)  # noqa: PT017
            continue
        left = list(found.widths.values())
        assert all(after % round_to == 0 or after == width for after, width in zip(left, widths, strict=True))
        assert all(after >= FLOOR * width for after, width in zip(left, widths, strict=True))
        at_floor = all(after - round_to < max(FLOOR * width, 1) for after, width in zip(left, widths, strict=True))
        assert at_floor or abs(sum(left) - (1 - ratio) * sum(widths)) <= round_to + 1e-9


@settings(max_examples=30)
@given(widths=st.lists(st.integers(2, 6), min_size=1, max_size=3), seed=st.integers(0, 999), data=st.data())
def test_sensitivity_has_the_least_total_error_of_all_that_remove_as_many(
    widths: list[int], seed: int, data: st.DataObject
) -> None:
    _, groups = chain(*widths)
    scores = np.random.default_rng(seed).random(groups.count)
    removed = data.draw(st.integers(1, max(1, sum(widths) - len(widths))))
    found = allocate(groups, scores, ratio=removed / sum(widths), allocation="sensitivity", round_to=1)
    own = [np.sort(scores[family.groups]) for family in groups.free]
    errors = [
        sum(float(errors[:gone].sum()) for errors, gone in zip(own, counts, strict=True))
        for counts in product(*(range(width) for width in widths))
        if sum(counts) == removed
    ]
    assert float(scores[1:][~found.keep[1:]].sum()) == pytest.approx(min(errors), rel=1e-12)


def test_cumulative_errors_are_told_from_those_of_each_group() -> None:
    _, groups = chain(6, 6)
    each, together = np.zeros(groups.count), np.zeros(groups.count)
    for family, errors in zip(groups.free, ([1, 2, 3, 4, 5, 6], [2.5, 2.5, 2.5, 2.5, 2.5, 2.5]), strict=True):
        each[family.groups], together[family.groups] = errors, np.cumsum(errors)
    first = allocate(groups, each, ratio=0.5, allocation="sensitivity", round_to=1)
    second = allocate(groups, together, ratio=0.5, allocation="sensitivity", round_to=1, cumulative=True)
    assert np.array_equal(first.keep, second.keep)
    assert list(first.widths.values()) == [4, 2]


def test_mapping_gives_each_layer_its_ratio_and_the_last_pattern_wins() -> None:
    graph, groups = chain(16, 16, 16, 16)
    asked = {"net.c*": 0.5, "c1": 0.25, "net.c3.weight": 0.0}
    found = allocate(groups, np.ones(groups.count), allocation=asked, round_to=1, graph=graph)
    assert list(found.widths.values()) == [8, 12, 8, 16]
    rest = allocate(groups, np.ones(groups.count), ratio=0.5, allocation={"c1": 0.25}, round_to=1, graph=graph)
    assert list(rest.widths.values()) == [8, 12, 8, 8]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"c7": 0.5}, r"allocation: 'c7' matches no node; names like it: .*c[01]"),
        ({"head": 0.5}, "'head' names no layer whose channels can be cut.*model output"),
        ({"c0": 1.0}, r"allocation\['c0'\]=1.0"),
        ({0: 0.5}, "allocation: found 0; expected names or patterns"),
    ],
)
def test_mapping_that_cannot_be_followed_is_refused(asked: dict[Any, float], message: str) -> None:
    graph, groups = chain(16, 16)
    with pytest.raises(InfeasiblePruneError, match=message):
        allocate(groups, np.ones(groups.count), allocation=asked, graph=graph)


def test_node_without_channels_is_refused_in_a_mapping() -> None:
    net = Net()
    graph = net.head(net.conv(net.relu(net.x), 8, name="c0"))
    with pytest.raises(InfeasiblePruneError, match="It makes none"):
        allocate(channel_groups(graph), np.ones(99), allocation={"relu*": 0.5}, graph=graph)


def test_norm_after_a_layer_stands_for_it_in_a_mapping() -> None:
    net = Net()
    graph = net.head(net.conv(net.norm(net.conv(net.x, 8, name="c0")), 8, name="c1"))
    groups = channel_groups(graph)
    found = allocate(groups, np.ones(groups.count), allocation={"net.bn_*": 0.5}, round_to=1, graph=graph)
    assert list(found.widths.values()) == [4, 8]


def test_pinned_layer_may_be_named_with_no_ratio() -> None:
    graph, groups = chain(16, 16)
    found = allocate(groups, np.ones(groups.count), ratio=0.5, allocation={"head": 0.0}, graph=graph)
    assert list(found.widths.values()) == [8, 8]


def test_mapping_needs_the_graph() -> None:
    _, groups = chain(16, 16)
    with pytest.raises(InfeasiblePruneError, match="give graph="):
        allocate(groups, np.ones(groups.count), allocation={"c0": 0.5})


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


@given(
    ratio=st.floats(0.05, 0.95),
    widths=st.lists(st.integers(4, 40), min_size=1, max_size=3),
    round_to=st.sampled_from([1, 4, 8]),
    min_channels=st.integers(1, 20),
    max_ratio=st.floats(0.1, 1.0),
    allocation=st.sampled_from(ALLOCATIONS),
)
def test_no_family_falls_below_its_least_width(
    ratio: float, widths: list[int], round_to: int, min_channels: int, max_ratio: float, allocation: AllocationName
) -> None:
    _, groups = chain(*widths)
    least = least_widths(groups, min_channels, max_ratio)
    scores = np.random.default_rng(0).random(groups.count)
    found = allocate(
        groups, scores, ratio=ratio, round_to=round_to, allocation=allocation, least=least, may_be_empty=True
    ).widths
    for width, family in zip(widths, groups.free, strict=True):
        after = found[family.name]
        assert after == width or (after >= min_channels and width - after <= max_ratio * width + 1e-6)


def test_what_a_least_width_holds_back_is_said() -> None:
    _, groups = chain(16)
    with pytest.raises(InfeasiblePruneError, match=r"8\.0 of 16 channels is less than the 16 that are to stay"):
        allocate(groups, np.ones(groups.count), ratio=0.5, least={"net.c0": 16})
    assert allocate(groups, np.ones(groups.count), ratio=0.75, least={"net.c0": 6}, round_to=4).widths == {"net.c0": 8}


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
