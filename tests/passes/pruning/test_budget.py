"""A budget is met by the graph that is cut, not by an estimate of it, and nothing more goes than has to."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.cost.model import cost
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, NodeId, Param, TensorType, with_inputs
from reparam_compiler.passes.choices import AllocationName
from reparam_compiler.passes.pruning.allocation import FLOOR, RatioOf, removal_order, widths_after
from reparam_compiler.passes.pruning.budget import (
    MEASUREMENTS,
    Budget,
    Fit,
    Schedule,
    fit_budget,
    multiply_adds,
    savings,
    schedule,
)
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, channel_groups
from reparam_compiler.passes.pruning.slice_channels import sliced
from tests.support.pruning_nets import Net

ALLOCATIONS: tuple[AllocationName, ...] = ("uniform", "global", "sensitivity")
COUNTS: dict[str, Callable[[Graph], int]] = {"flops": multiply_adds, "params": lambda graph: cost(graph).params}


def mixed_net(seed: int = 0, width: int = 16) -> Graph:
    """A residual sum, a concat, a group conv, a depthwise one, and a flatten."""
    net = Net(seed=seed)
    a = net.conv(net.x, width, name="a")
    b = net.sum(a, net.conv(net.relu(net.norm(a)), width, name="b"))
    c = net.conv(net.concat(b, net.conv(b, width // 2, 1, name="c1")), 2 * width, groups=2, stride=2, name="c2")
    d = net.conv(net.conv(c, 2 * width, groups=2 * width, name="dw"), width, 1, name="d")
    return net.graph(net.linear(net.add(ops.Flatten(1, 3), d), 5, name="head"))


def fitted(
    graph: Graph,
    budget: Budget,
    allocation: AllocationName | RatioOf = "uniform",
    seed: int = 0,
    round_to: int = 4,
    **more: object,
) -> tuple[Fit, Graph, ChannelGroups]:
    groups = channel_groups(graph)
    scores = np.random.default_rng(seed).random(groups.count)
    cut = partial(sliced, graph, groups)
    found = fit_budget(graph, groups, scores, budget, cut=cut, allocation=allocation, round_to=round_to, **more)  # type: ignore[arg-type]
    return found, cut(found.allocation.keep), groups


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@settings(max_examples=20)
@given(kind=st.sampled_from([*COUNTS]), share=st.floats(0.3, 1.0), seed=st.integers(0, 99), round_to=st.sampled_from([1, 4]))
def test_budget_is_met_and_one_step_less_would_not_meet_it(
    allocation: AllocationName, kind: str, share: float, seed: int, round_to: int
) -> None:
    graph, count = mixed_net(), COUNTS[kind]
    found, after, groups = fitted(graph, Budget(**{kind: share}), allocation, seed, round_to)
    assert count(after) <= share * count(graph)
    assert found.shares[kind] == pytest.approx(count(after) / count(graph))
    scores = np.random.default_rng(seed).random(groups.count)
    saving = savings(graph, groups, params=kind == "params")
    order = removal_order(groups, scores, allocation, round_to=round_to, saving=saving)
    widths = [widths_after(groups.free, order[:k]) for k in range(len(order) + 1)]
    done = widths.index(dict(found.allocation.widths))
    if done:
        keep = np.ones(groups.count, np.bool_)
        for family in groups.free:
            left = widths[done - 1][family.name] // family.positions
            keep[family.groups[np.argsort(scores[family.groups], kind="stable")[: len(family.groups) - left]]] = False
        assert count(sliced(graph, groups, keep)) > share * count(graph)


def test_several_limits_hold_together() -> None:
    graph = mixed_net()
    found, after, _ = fitted(graph, Budget(flops=0.7, params=0.4))
    assert multiply_adds(after) <= 0.7 * multiply_adds(graph)
    assert cost(after).params <= 0.4 * cost(graph).params
    assert set(found.shares) == {"flops", "params"}


def test_budget_that_keeps_all_removes_nothing() -> None:
    found, _, _ = fitted(mixed_net(), Budget(flops=1.0))
    assert bool(found.allocation.keep.all())


def test_least_that_can_be_reached_is_named() -> None:
    graph = mixed_net()
    with pytest.raises(InfeasiblePruneError, match=r"flops=0.001: at least (\S+) remains") as caught:
        fitted(graph, Budget(flops=0.001), "global")
    least = float(str(caught.value).split("at least ")[1].split()[0])
    _, after, _ = fitted(graph, Budget(flops=least * 1.01), "global")
    assert multiply_adds(after) / multiply_adds(graph) == pytest.approx(least, rel=1e-2)


def test_no_family_falls_below_its_floor_for_a_budget() -> None:
    for allocation in ("global", "sensitivity"):
        with pytest.raises(InfeasiblePruneError) as caught:
            fitted(mixed_net(), Budget(flops=1e-6), allocation, round_to=1)
        least = float(str(caught.value).split("at least ")[1].split()[0])
        found, _, groups = fitted(mixed_net(), Budget(flops=least * 1.01), allocation, round_to=1)
        assert all(found.allocation.widths[family.name] >= FLOOR * family.width for family in groups.free)


def test_counting_loads_no_weight() -> None:
    def refuse() -> np.ndarray:
        raise AssertionError("a weight was loaded")

    graph = mixed_net()
    lazy = {}
    for node in graph:
        inputs = {
            index: Param(operand.role, operand.dtype, operand.shape, refuse, operand.origin)
            for index, operand in enumerate(node.inputs)
            if isinstance(operand, Param)
        }
        lazy[node.id] = with_inputs(node, dict(inputs))
    fitted(graph.rewrite(lazy), Budget(flops=0.5, params=0.9), "sensitivity")


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(seed=st.integers(0, 99), share=st.floats(0.3, 0.9))
@settings(max_examples=10)
def test_latency_is_measured_a_few_times_and_never_exceeded(allocation: AllocationName, seed: int, share: float) -> None:
    graph = mixed_net(width=32)
    calls: list[Graph] = []

    def measure(candidate: Graph) -> float:
        calls.append(candidate)
        return 0.3 * multiply_adds(graph) + 2 * multiply_adds(candidate)

    least = 0.3 / 2.3 + 1e-9
    try:
        found, after, _ = fitted(graph, Budget(latency=share), allocation, seed, measure=measure)
    except InfeasiblePruneError as error:
        assert float(str(error).split("at least ")[1].split()[0]) > share > least  # noqa: PT017
        return
    assert len(calls) <= MEASUREMENTS
    assert measure(after) <= share * measure(graph)
    as_flops, _, _ = fitted(graph, Budget(flops=min((2.3 * share - 0.3) / 2 + 1e-12, 1.0)), allocation, seed)
    assert found.allocation.widths == as_flops.allocation.widths  # a straight line, so that eight are enough


def test_a_machine_that_is_busy_at_first_does_not_make_a_net_that_nothing_was_cut_from_fast_enough() -> None:
    graph, times = mixed_net(width=32), [3.0]  # what the first measurement takes longer than the others

    def measure(candidate: Graph) -> float:
        return multiply_adds(candidate) * (times.pop() if times else 1.0)

    found, after, _ = fitted(graph, Budget(latency=0.5), measure=measure)
    assert 0 < found.shares["latency"] <= 0.5
    assert multiply_adds(after) < multiply_adds(graph)


def test_latency_and_multiply_adds_are_met_together() -> None:
    graph = mixed_net(width=32)
    found, _, _ = fitted(graph, Budget(flops=0.4, latency=0.9), measure=lambda g: float(multiply_adds(g)))
    assert found.shares["flops"] <= 0.4
    assert found.shares["latency"] <= 0.9
    alone, _, _ = fitted(graph, Budget(flops=0.4))
    assert found.allocation.widths == alone.allocation.widths


def test_named_layers_have_their_ratio_and_the_others_make_up_the_budget() -> None:
    graph = mixed_net(width=32)
    found, after, groups = fitted(graph, Budget(flops=0.8), {"net.a": 0.0, "net.d": 0.5})
    assert {name: width for name, width in found.allocation.widths.items() if "net.a" in name} == {
        family.name: family.width for family in groups.free if "a" in family.producers
    }
    assert found.allocation.widths["net.d"] == 16
    assert multiply_adds(after) <= 0.8 * multiply_adds(graph)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), params=st.booleans(), data=st.data())
def test_savings_are_the_difference_of_the_graphs(seed: int, params: bool, data: st.DataObject) -> None:
    graph = mixed_net(seed, 8)
    groups = channel_groups(graph)
    saved = savings(graph, groups, params=params)
    widths = {f.name: data.draw(st.integers(1, len(f.groups))) * f.positions for f in groups.free}

    def mask(changed: dict[str, int]) -> int:
        keep = np.ones(groups.count, np.bool_)
        for family in groups.free:
            keep[family.groups[changed[family.name] // family.positions :]] = False
        cut = sliced(graph, groups, keep)
        weights = sum(node.params[0].count for node in cut if isinstance(node.op, ops.Conv | ops.Linear))
        return weights if params else multiply_adds(cut)

    for family in groups.free:
        if widths[family.name] > family.positions:
            after = family.positions
            expected = mask(widths) - mask({**widths, family.name: after})
            assert saved(widths, family, after) == pytest.approx(expected, rel=1e-9)


def test_multiply_adds_count_linears_and_a_batch_that_is_not_known_as_one() -> None:
    net = Net(batch="n")
    graph = net.head(net.conv(net.x, 8, name="a"), classes=5)
    assert multiply_adds(graph) == 9 * 7 * 8 * 3 * 9 + 8 * 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "limits nothing"),
        ({"flops": 0.0}, "flops=0.0: give the share"),
        ({"params": 1.5}, "params=1.5"),
        ({"latency": -1.0}, "latency=-1.0"),
    ],
)
def test_budget_that_makes_no_sense_is_refused(asked: dict[str, float], message: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=message):
        Budget(**asked)


def test_latency_without_a_way_to_measure_is_refused() -> None:
    with pytest.raises(InfeasiblePruneError, match="give measure="):
        fitted(mixed_net(), Budget(latency=0.5))


def test_model_that_can_spare_nothing_says_why() -> None:
    net = Net()
    with pytest.raises(InfeasiblePruneError, match="model output"):
        fitted(net.graph(net.conv(net.x, 8, name="a")), Budget(flops=0.5))


def test_size_that_is_not_known_is_named() -> None:
    net = Net()
    graph = net.graph(net.conv(net.x, 8, name="a"))
    open_sized: dict[NodeId, TensorType] = {"a": TensorType("f32", ("n", 8, "h", "w"))}
    node = graph["a"]
    blind = graph.rewrite({"a": type(node)(node.id, node.op, node.inputs, open_sized["a"])})
    with pytest.raises(InfeasiblePruneError, match=r"a: the shape is n x 8 x h x w.*pass example_inputs"):
        multiply_adds(blind)


KINDS: tuple[Schedule, ...] = ("linear", "geometric", "cubic")


@given(ratio=st.floats(0, 0.99), steps=st.integers(1, 20), kind=st.sampled_from(KINDS))
def test_schedule_grows_to_the_ratio(ratio: float, steps: int, kind: Schedule) -> None:
    found = schedule(ratio, steps, kind)
    assert len(found) == steps
    assert found[-1] == ratio
    assert all(low <= high for low, high in zip((0, *found), found, strict=False))


@given(ratio=st.floats(0.01, 0.99), steps=st.integers(2, 20))
def test_schedules_spend_as_they_say(ratio: float, steps: int) -> None:
    linear, geometric, cubic = ((0.0, *schedule(ratio, steps, kind)) for kind in KINDS)
    assert np.diff(linear) == pytest.approx(ratio / steps)
    left = 1 - np.array(geometric)
    assert left[1:] / left[:-1] == pytest.approx((1 - ratio) ** (1 / steps))
    assert (np.diff(np.diff(cubic)) <= 1e-12).all()  # ever slower
    times = np.arange(steps + 1) / steps
    assert np.array(cubic) == pytest.approx(ratio + (0 - ratio) * (1 - times) ** 3)  # Zhu and Gupta, Eq. 1


@pytest.mark.parametrize(
    ("ratio", "steps", "kind", "message"),
    [(1.0, 3, "linear", "ratio=1.0"), (0.5, 0, "cubic", "steps=0"), (0.5, 3, "cosine", "cosine")],
)
def test_schedule_that_makes_no_sense_is_refused(ratio: float, steps: int, kind: Schedule, message: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=message):
        schedule(ratio, steps, kind)
