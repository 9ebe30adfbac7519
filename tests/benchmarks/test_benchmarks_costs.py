"""The fit of a CPU's constants, to times that other constants made."""

from dataclasses import replace

import pytest

from benchmarks.cpu_costs import SHAPES, Score, Times, fitted, rivals, score, table
from reparam_compiler.lowering.conv.choice import cycles
from reparam_compiler.lowering.cpu.families import GOLDEN_COVE, ZEN4, Costs
from reparam_compiler.lowering.cpu.machine import VectorUnit

HERTZ = 3e9
GUESS = VectorUnit(64, 32, 1, costs=ZEN4)


def as_if(costs: Costs) -> Times:
    """The times of a machine whose kernels take what the model says."""
    unit = replace(GUESS, costs=costs)
    return {shape: {each: cycles(shape, each, unit) / HERTZ for each in rivals(shape, GUESS)} for shape in SHAPES[:6]}


@pytest.fixture(scope="module")
def times() -> Times:
    return as_if(GOLDEN_COVE)


def test_right_constants_choose_the_best_kernel_of_every_layer(times: Times) -> None:
    found = score(times, replace(GUESS, costs=GOLDEN_COVE), HERTZ)
    assert (found.regret, found.lost) == (0.0, 0.0)
    assert found.spread == pytest.approx(0, abs=1e-9)


def test_wrong_constants_lose_time(times: Times) -> None:
    found = score(times, GUESS, HERTZ)
    assert found.regret > 0.01
    assert found.lost > 0.01
    assert found.spread > 0.05


def test_the_bias_is_what_all_estimates_are_off_by(times: Times) -> None:
    assert score(times, replace(GUESS, costs=GOLDEN_COVE), HERTZ / 2).bias == pytest.approx(0.6931, abs=1e-3)


def test_the_fit_comes_nearer(times: Times) -> None:
    before, after = score(times, GUESS, HERTZ), score(times, fitted(times, GUESS, HERTZ, 60), HERTZ)
    assert after.total < before.total / 2


def test_every_part_counts() -> None:
    assert Score(0.1, 0.2, 0.2, -0.5).total == pytest.approx(0.5)


def test_a_line_for_each_layer_names_what_is_chosen_and_what_is_best(times: Times) -> None:
    lines = table(times, GUESS, HERTZ).splitlines()
    assert len(lines) == 2 + len(times)
    assert lines[2].startswith("| 512 → 512 at 7, 3x3 | ")
