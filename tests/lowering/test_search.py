"""A search measures where the time is, learns from what it measured, and bears candidates that fail, hang or are wrong."""

import contextlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx

from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.build import build
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Winograd
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.runtime.description import TensorSpec
from reparam_compiler.lowering.runtime.executable import executable_of
from reparam_compiler.lowering.search import in_net
from reparam_compiler.lowering.search.layers import Layer, layers_of, module_of
from reparam_compiler.lowering.search.measuring import Builders, Kernels, Meter
from reparam_compiler.lowering.search.pairs import Outcome, Repeats
from reparam_compiler.lowering.search.planner import BATCH, Planner, State
from reparam_compiler.lowering.search.progress import Clock, TuneStep
from reparam_compiler.lowering.search.records import ConvRecord
from reparam_compiler.lowering.search.rivals import Rivals
from reparam_compiler.lowering.search.surrogate import Surrogate
from reparam_compiler.lowering.search.trials import Batch, Trials
from reparam_compiler.lowering.target import describe, resolve
from tests.support.onnx_models import model_of, normal, run_on

pytestmark = [pytest.mark.tvm, pytest.mark.usefixtures("one_process")]
HERE = backend_for(resolve(None))
TUNING = HERE.tuning()
assert TUNING is not None
TARGET = describe(HERE.target)


def residual() -> Any:
    """Two 3x3 convs of one shape, the second with a residual sum and a ReLU behind it, and a 1x1 conv."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "a"], ["p"], pads=[1] * 4),
        onnx.helper.make_node("Relu", ["p"], ["q"]),
        onnx.helper.make_node("Conv", ["q", "b"], ["r"], pads=[1] * 4),
        onnx.helper.make_node("Add", ["r", "q"], ["s"]),
        onnx.helper.make_node("Relu", ["s"], ["t"]),
        onnx.helper.make_node("Conv", ["t", "c"], ["y"]),
    ]
    weights = {"a": 0.1 * normal(16, 16, 3, 3), "b": 0.1 * normal(16, 16, 3, 3), "c": 0.1 * normal(24, 16, 1, 1)}
    return model_of(nodes, {"x": (1, 16, 12, 10)}, ["y"], weights)


@pytest.fixture(scope="module")
def net() -> tuple[Any, list[Layer]]:
    module = TUNING.prepared(to_relax(residual()).module)
    return module["main"], layers_of(TUNING.sites(module))


def planner(
    layers: list[Layer], known: list[ConvRecord] | None = None, likely: dict[ConvShape, Algorithm] | None = None
) -> Planner:
    return Planner(layers, TUNING, known or [], likely, max_error=MAX_ERROR)


def true_seconds(layer: Layer, point: Algorithm) -> float:
    """A machine on which Winograd's transforms cost twice what the rule thinks, and unrolling pays."""
    penalty = 2.0 if isinstance(point, Winograd) else 1.0
    return 1e-9 * penalty * TUNING.estimate(layer.shape, point) * (1.3 if point.tile.unroll < 4 else 1.0)


def timed(state: State, point: Algorithm, seconds: float) -> ConvRecord:
    """The record of a point that takes so long where the rule's takes what it took first."""
    record = ConvRecord(state.layer.shape, (), point, TARGET, (seconds,))
    if point == state.rule:
        return record
    return replace(record, against=state.rule, beside=(state.measured[state.rule],))


def test_layers_are_distinct_and_counted(net: tuple[Any, list[Layer]]) -> None:
    _, layers = net
    assert [(str(layer), layer.count) for layer in layers] == [("conv_3x3_16_16_at_12x10", 2), ("conv_1x1_16_24_at_12x10", 1)]


def test_a_layer_cut_out_of_a_net_computes_what_it_does_in_the_net() -> None:
    """The second conv, whose input is read again by the sum behind it."""
    module = TUNING.prepared(to_relax(residual()).module)
    layer = Layer(TUNING.sites(module)[1], 1)
    q_spec, y_spec = (TensorSpec(name, (1, 12, 10, 16), "float32") for name in "qy")
    cut = Imported(module_of(layer, module["main"]), (q_spec,), (y_spec,))
    made, q = executable_of([build(cut, HERE.target).variant], False, {}), normal(1, 12, 10, 16)
    nodes = [
        onnx.helper.make_node("Conv", ["q", "b"], ["r"], pads=[1] * 4),
        onnx.helper.make_node("Add", ["r", "q"], ["s"]),
        onnx.helper.make_node("Relu", ["s"], ["y"]),
    ]
    weight = layer.site.weight.transpose(0, 3, 1, 2)
    conv = model_of(nodes, {"q": (1, 16, 12, 10)}, ["y"], {"b": weight})
    expected = run_on(conv, q.transpose(0, 3, 1, 2))[0].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(made.run(q)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_rules_point_of_every_layer_comes_first(net: tuple[Any, list[Layer]]) -> None:
    _, layers = net
    plan = planner(layers)
    for layer in layers:
        ((state, points),) = plan.next(100)
        assert (state.layer, points) == (layer, [TUNING.rule(layer.shape)[0]])
        state.note(timed(state, points[0], 1e-3))
    assert plan.seconds == plan.rule_seconds == pytest.approx(3e-3)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 30))
def test_a_plan_never_measures_twice_nor_more_than_it_may(most: int) -> None:
    module = TUNING.prepared(to_relax(residual()).module)
    plan = planner(layers_of(TUNING.sites(module)))
    seen: set[tuple[ConvShape, Algorithm]] = set()
    for _ in range(12):
        if not (found := plan.next(most)):
            break
        ((state, points),) = found
        assert 1 <= len(points) <= min(most, BATCH)
        for point in points:
            assert (state.layer.shape, point) not in seen
            seen.add((state.layer.shape, point))
            state.note(timed(state, point, true_seconds(state.layer, point)))


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_plan_gives_every_device_a_point_of_few_layers(most: int, width: int) -> None:
    module = TUNING.prepared(to_relax(residual()).module)
    plan = planner(layers_of(TUNING.sites(module)))
    first = plan.next(most, width)
    assert [points for _, points in first] == [[state.rule] for state in plan.states[: min(most, width)]]
    assert not plan.started
    for state in plan.states:
        state.note(timed(state, state.rule, 1e-3))
    assert plan.started
    found = plan.next(most, width)
    chosen = [(state.layer, point) for state, points in found for point in points]
    assert len(set(chosen)) == len(chosen)
    assert min(most, width) <= len(chosen) <= min(most, max(width, BATCH))
    assert len(found) == (1 if min(most, width) <= BATCH else 2)


def test_a_layer_alone_gives_every_device_a_point(net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    plan = planner([layer])
    ((state, (rule,)),) = plan.next(100, 12)
    state.note(timed(state, rule, 1e-3))
    ((_, points),) = plan.next(100, 12)
    assert len(points) == 12


def test_a_plan_that_learns_finds_the_best_point_among_hundreds(net: tuple[Any, list[Layer]]) -> None:
    _, layers = net
    plan = planner(layers)
    for _ in range(12):
        ((state, points),) = plan.next(100)
        for point in points:
            state.note(timed(state, point, true_seconds(state.layer, point)))
    for state in plan.states:
        best = min(true_seconds(state.layer, point) for point in state.points)
        assert len(state.points) > 40
        assert state.best <= 1.02 * best
        assert best < 0.97 * true_seconds(state.layer, state.points[0]) or state.best == best


def test_what_won_elsewhere_is_measured_right_after_the_rules_points(net: tuple[Any, list[Layer]]) -> None:
    _, layers = net
    won = TUNING.points(layers[1].shape)[-1]
    plan = planner(layers, likely={layers[1].shape: won})
    for layer in layers:
        ((state, (point,)),) = plan.next(100)
        assert (state.layer, point) == (layer, state.rule)
        state.note(timed(state, point, 1e-3))
    ((state, points),) = plan.next(100)
    assert (state.layer, points) == (layers[1], [won])
    state.note(timed(state, won, 1e-4))
    assert all(won not in points for _, points in plan.next(100))


def test_another_net_teaches_which_points_to_begin_with(net: tuple[Any, list[Layer]]) -> None:
    """On a machine where loops that are not unrolled are the fastest, and a larger layer of another net has shown that."""
    _, (layer, _) = net
    sibling = Layer(replace(layer.site, shape=replace(layer.shape, height=24, width=20)), 1)

    def seconds(of: Layer, point: Algorithm) -> float:
        return 1e-9 * TUNING.estimate(of.shape, point) * (0.3 if point.tile.unroll == 1 else 1.0)

    points = TUNING.points(sibling.shape)
    started = State(sibling, points, {points[0]: seconds(sibling, points[0])})
    lessons = [timed(started, point, seconds(sibling, point)) for point in points]
    unknowing, taught = (planner([layer], known) for known in ([], lessons))
    for plan in (unknowing, taught):
        ((state, (rule,)),) = plan.next(100)
        state.note(timed(state, rule, seconds(layer, rule)))
        assert plan.measured == 1
    blind, informed = (sum(point.tile.unroll == 1 for point in plan.next(100)[0][1]) for plan in (unknowing, taught))
    assert blind <= BATCH // 2
    assert informed >= BATCH - 1  # one is drawn at random


def test_time_goes_where_the_nets_time_is(net: tuple[Any, list[Layer]]) -> None:
    _, layers = net
    plan = planner(layers)
    for state in plan.states:
        state.note(timed(state, state.rule, 1e-3 if state.layer is layers[0] else 1e-7))
    measured = dict.fromkeys(layers, 0)
    for _ in range(4):
        ((state, points),) = plan.next(100)
        measured[state.layer] += len(points)
        for point in points:
            state.note(timed(state, point, state.best))
    assert measured[layers[0]] == sum(measured.values())


def test_what_earlier_searches_measured_is_not_measured_again(net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    points = TUNING.points(layer.shape)
    started = State(layer, points, {points[0]: true_seconds(layer, points[0])})
    known = [timed(started, point, true_seconds(layer, point)) for point in points[:-2]]
    plan = planner([layer], known)
    assert plan.measured == len(points) - 2
    ((state, left),) = plan.next(100)
    assert set(left) <= set(points[-2:])
    for point in left:
        state.note(replace(timed(state, point, 1.0), seconds=(), beside=()))
    assert all(set(more) <= set(points[-2:]) - set(left) for _, more in plan.next(100))


def test_points_that_are_too_inexact_are_never_measured(net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    plan = Planner([layer], TUNING, [], max_error=0.0)
    assert plan.next(5) == []
    exact = Planner([layer], TUNING, [], max_error=1e-7)
    for _ in range(5):
        for state, points in exact.next(5):
            assert not any(isinstance(point, Winograd) for point in points)
            for point in points:
                state.note(timed(state, point, 1e-3))


def test_before_anything_is_measured_the_estimate_orders(net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    points = TUNING.points(layer.shape)
    found = Surrogate(TUNING).log_seconds([(layer.shape, point) for point in points])
    estimates = [TUNING.estimate(layer.shape, point) for point in points]
    np.testing.assert_allclose(found, np.log(estimates))


def test_failures_teach_a_surrogate_nothing(net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    points = [(layer.shape, point) for point in TUNING.points(layer.shape)[:20]]
    sound = [(point, true_seconds(layer, point[1])) for point in points[::2]]
    first, second = Surrogate(TUNING), Surrogate(TUNING)
    first.fit(sound)
    second.fit([*sound, *((point, math.inf) for point in points[1::2])])
    np.testing.assert_array_equal(first.log_seconds(points), second.log_seconds(points))


@pytest.fixture
def trials(net: tuple[Any, list[Layer]], tmp_path: Path) -> Iterator[Trials]:
    repeats = Repeats(2, 1, 0, 60.0)
    builders, meter = Builders(1, 60.0), Meter(repeats)
    yield Trials(HERE, TUNING, net[0], builders, meter, tmp_path)
    builders.close()
    meter.close()


@pytest.mark.slow
def test_every_candidate_is_measured_and_a_wrong_one_costs_itself(trials: Trials, net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    rule, *others = TUNING.points(layer.shape)[:3]
    by_rule, *found = trials.measure([Batch(layer, [rule, *others], rule)])
    assert len(by_rule.seconds) == 2
    assert not by_rule.beside
    assert all(len(each.seconds) == len(each.beside) == 2 and not each.failure for each in found)
    right, wrong = trials._jobs([(layer, point) for point in others])
    altered = trials.bench.folder / "altered.npy"
    np.save(altered, 1 + np.load(wrong.candidate.weights[0][0]))
    ((_, packing),) = wrong.candidate.weights
    wrong = replace(wrong, rule=right.candidate, candidate=replace(wrong.candidate, weights=((str(altered), packing),)))
    first, second = trials.bench.meter.measure([wrong, replace(right, rule=right.candidate)])
    assert "its output differs from the rule's by" in first.failure
    assert len(second.seconds) == 2


@pytest.mark.slow
def test_what_cannot_be_built_or_run_costs_itself(trials: Trials, net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    rule, other = TUNING.points(layer.shape)[:2]
    bench = trials.bench
    assert "building it failed" in bench.builders.build([Kernels(None, "no such target")], bench.folder)[0].failure
    (job,) = trials._jobs([(layer, rule)])
    (lost,) = bench.meter.measure([replace(job, candidate=replace(job.candidate, library="absent"))])
    assert "running it failed" in lost.failure
    assert next(trials.measure([Batch(layer, [other], rule)])).seconds


@pytest.mark.slow
def test_a_candidate_that_does_not_come_back_is_ended(trials: Trials, net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    (job,) = trials._jobs([(layer, TUNING.rule(layer.shape)[0])])
    endless = replace(job, repeats=Repeats(1, 10**9, 0, 6.0))
    with contextlib.closing(Meter(endless.repeats)) as meter:
        hung, sound = meter.measure([endless, job])
    assert hung == Outcome(failure="running it took too long")
    assert len(sound.seconds) == 2


def state_of(layer: Layer, seconds: list[float]) -> State:
    points = TUNING.points(layer.shape)[: len(seconds)]
    return State(layer, points, dict(zip(points, seconds, strict=True)))


def test_points_near_the_best_have_their_turns_in_the_net_and_then_whoever_leads(net: tuple[Any, list[Layer]]) -> None:
    _, (first, second) = net
    states = [state_of(first, [1.0, 0.6, 1.04, 1.06, math.inf]), state_of(second, [1.0])]
    (rule, one, other, *_), (only,) = (state.points for state in states)
    rivals = Rivals(states)
    assert rivals.rule == {first.shape: rule, second.shape: only}
    assert rivals.next() == {first.shape: one, second.shape: only}
    assert rivals.waiting
    rivals.note([timed(states[0], one, 0.95), timed(states[1], only, 1.0)])
    assert rivals.next()[first.shape] == other
    assert not rivals.waiting
    rivals.note([timed(states[0], other, 0.97)])
    assert rivals.next() == {first.shape: one, second.shape: only}
    rivals.note([timed(states[0], one, 1.01), timed(states[0], other, 1.01)])
    assert rivals.next()[first.shape] == rule
    assert not Rivals([state_of(first, [1.0])]).waiting


def test_a_point_that_had_its_turn_in_an_earlier_search_has_no_other_one(net: tuple[Any, list[Layer]]) -> None:
    _, (layer, _) = net
    state = state_of(layer, [1.0, 0.6, 0.7, 0.8])
    rule, one, other, third = state.points
    elsewhere = replace(timed(state, third, 0.5), against=other)  # what another rule's point was beside says nothing
    earlier = [replace(timed(state, rule, 1.0), against=None), timed(state, one, 1.1), timed(state, other, 0.9), elsewhere]
    rivals = Rivals([state], earlier)
    assert rivals.turns == 2
    assert rivals.next() == {layer.shape: third}
    assert not rivals.waiting
    rivals.note([timed(state, third, 0.95)])
    assert rivals.next() == {layer.shape: other}


def test_a_contest_holds_the_rules_net_and_one_more(net: tuple[Any, list[Layer]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has packed weights of its own, and there may be a dozen."""
    alive = weakref.WeakSet[Any]()
    most = 0

    class Net:
        pass

    def net_of(*_: Any) -> Any:
        nonlocal most
        alive.add(made := Net())
        most = max(most, len(alive))
        return made

    monkeypatch.setattr(in_net, "net_of", net_of)
    search = SimpleNamespace(backend=HERE)
    contest = in_net.Contest(search, SimpleNamespace(inputs=()), planner(net[1]), SimpleNamespace())  # type: ignore[arg-type]
    shape = net[1][0].shape
    for point in TUNING.points(shape)[:5]:
        assert contest._built({shape: point}, frozenset()) is contest._built({shape: point}, frozenset())
        assert contest._built({}, frozenset()) is contest._by_rule
    assert most == 2


def test_a_clock_says_where_a_search_is() -> None:
    heard: list[TuneStep] = []
    clock = Clock(10, None, (heard.append,))
    clock.known(4)
    clock.told("starting")
    clock.counted()
    clock.counted(failed=True)
    clock.told("conv", (2e-3, 1e-3))
    clock.told("conv", (2e-3, math.inf))
    assert [(step.doing, step.trial, step.failed, step.best_seconds) for step in heard] == [
        ("starting", 4, 0, None),
        ("conv", 6, 1, 1e-3),
        ("conv", 6, 1, None),
    ]
    assert heard[0].left is None
    assert heard[1].left is not None
    assert not clock.over()
    assert Clock(10, 1e-9, ()).over()
    half = Clock(10, 1e6, ())
    assert half.over(0.0)
    assert not half.over(0.5)
