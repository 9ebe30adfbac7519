"""A model pruned by each of several ratios: what each costs, how good it is, and what cannot be had."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reparam_compiler import fuse
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError
from reparam_compiler.models.labelled import Labelled
from reparam_compiler.models.opening import open
from reparam_compiler.reporting import sweeping
from reparam_compiler.reporting.page import Sweep
from reparam_compiler.reporting.sweeping import MOST, Score, ratios_of, sweep
from tests.support.reparam_runs import SHAPE, net

IMAGES = np.random.default_rng(0).standard_normal((64, *SHAPE[1:])).astype("float32")


def swept(ratios: Sequence[float], score: Score | None = None, **options: Any) -> Sweep:
    x = (torch.zeros(SHAPE),)
    return sweep(net(), fuse(net(), x), x, ratios, score, **options)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without ONNX Runtime."""

    def missing(*_: object) -> None:
        raise UnsupportedModelError("timing needs onnxruntime, not installed here")

    monkeypatch.setattr(sweeping, "check_installed", missing)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 5))
def test_a_range_has_its_first_and_every_step_up_to_its_last(first: int, more: int, step: int) -> None:
    """In twentieths: no step is lost to rounding."""
    last = min(first + more, 19)
    if first > last:
        return
    found = ratios_of(f"{first / 20}:{last / 20}:{step / 20}")
    assert found == tuple(round(number / 20, 9) for number in range(first, last + 1, step))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected FIRST:LAST"),
        ("a:b", "expected FIRST:LAST"),
        ("0.5:0.1", "expected FIRST:LAST"),
        ("0.1:0.9:0", "expected FIRST:LAST"),
        ("0.1:0.9:-0.1", "expected FIRST:LAST"),
        ("0.1:0.2:0.1:0.3", "expected FIRST:LAST"),
        ("0.1:nan", "expected FIRST:LAST"),
        ("0.1,0.2:0.3", "expected FIRST:LAST"),
        ("0.1:1.0", "10 ratios"),
        ("-0.1", "1 ratios"),
        ("0:0.9:1e-9", f"at most {MOST} of them"),
    ],
)
def test_what_is_no_range_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ratios_of(text)


def test_more_channels_removed_cost_less_and_err_more(untimed: None) -> None:
    found = swept((0.25, 0.5, 0.75), calibration=IMAGES, round_to=4)
    came, whole, *cut = found.points
    assert [point.ratio for point in found.points] == [None, 0.0, 0.25, 0.5, 0.75]
    for name in ("multiply_adds", "bytes", "parameters"):
        values = [getattr(point, name) for point in (came, whole, *cut)]
        assert values == sorted(values, reverse=True)
    errors = [point.error or 0.0 for point in (whole, *cut)]
    assert errors == sorted(errors)
    assert all((point.error or 0) <= 1.05 * (point.unrepaired_error or 0) for point in cut)
    assert (came.error, whole.error, found.samples) == (None, 0.0, 8)


def test_without_onnx_runtime_there_are_no_times_and_it_says_why(untimed: None) -> None:
    found = swept((0.5,), calibration=IMAGES)
    assert found.untimed == "timing needs onnxruntime, not installed here"
    assert all(point.milliseconds is None for point in found.points)


def test_a_score_is_asked_of_every_model(untimed: None) -> None:
    seen: list[nn.Module] = []

    def channels(model: nn.Module) -> int:
        seen.append(model)
        return model.get_parameter("last.weight").shape[1]

    found = swept((0.5,), Score("channels", channels))
    assert [point.score for point in found.points] == [16, 16, 8]
    assert found.scored_by == "channels"
    assert len(set(map(id, seen))) == 3


@pytest.mark.parametrize("given", [None, float("nan"), "0.9", [1.0]])
def test_a_score_that_is_no_number_is_refused(given: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"mine: found .*; expected a finite number"):
        Score("mine", lambda _: given)(net())


def test_a_ratio_that_cannot_be_had_is_a_point_that_says_why(untimed: None) -> None:
    found = swept((0.1, 0.5), Score("one", lambda _: 1))
    assert [point.refused.partition(":")[0] for point in found.points] == ["", "", "ratio=0.1 removes no channel", ""]
    assert found.points[2].multiply_adds is None


def test_where_no_ratio_can_be_had_it_is_refused_as_prune_refuses_it(untimed: None) -> None:
    with pytest.raises(InfeasiblePruneError):
        swept((0.5,), Score("one", lambda _: 1), ignore="*")


def test_nothing_to_judge_by_is_refused_before_any_work() -> None:
    with pytest.raises(InfeasiblePruneError, match="neither --evaluate nor --calibration"):
        sweep(None, None, None, (0.5,))


def test_where_nothing_is_to_be_removed_the_unpruned_model_stands_alone(untimed: None) -> None:
    assert [(point.ratio, point.error) for point in swept((0.0,), calibration=IMAGES).points] == [(None, None), (0.0, 0.0)]


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_some_models_are_open_at_once_and_the_first_is_timed_beside_all(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from reparam_compiler.frontends.onnx import timing

    opened: list[int] = []

    def run_of(path: Path, _: object) -> Any:
        opened.append(int(path.name))
        return path.name

    monkeypatch.setattr(timing, "TOGETHER", 3)
    monkeypatch.setattr(timing, "_run_of", run_of)
    monkeypatch.setattr(timing, "_seconds", lambda run: float(run))
    assert timing.least_milliseconds([Path(str(place)) for place in range(count)], []) == [
        1e3 * place for place in range(count)
    ]
    assert [place for place in opened if place] == list(range(1, count))
    assert opened.count(0) == {1: 1, 2: 1, 4: 1, 9: 3}[count]


def test_too_few_samples_to_hold_one_out_are_refused(untimed: None) -> None:
    with pytest.raises(InfeasiblePruneError, match="give eight or more, or --evaluate"):
        swept((0.5,), calibration=IMAGES[:4])


class Sign(nn.Module):
    """Tells 0 where the sum of a sample is positive, else 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3` to `N 2`."""
        total = x.sum(1, keepdim=True)
        return torch.cat([total, -total], 1)


def test_accuracy_is_the_share_of_the_samples_whose_class_is_told(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((600, 3)).astype("float32")
    labels = (x.sum(1) <= 0).astype("int64")
    labels[:150] = 1 - labels[:150]
    np.savez(tmp_path / "test.npz", labels=labels, x=x)
    found = Labelled.of(tmp_path / "test.npz").accuracy(open(Sign().eval(), (torch.zeros(1, 3),)))
    assert found == 0.75


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((4, 3))}, "found x; expected the samples, and an array labels"),
        ({"labels": np.zeros(4, int)}, "found labels; expected the samples"),
        ({"x": np.zeros((4, 3)), "labels": np.zeros(3, int)}, "beside arrays of 4 samples"),
        ({"x": np.zeros((4, 3)), "labels": np.zeros(4)}, "dtype float64"),
        ({"x": np.zeros((4, 3)), "labels": np.zeros((4, 2), int)}, r"shape \[4, 2\]"),
    ],
)
def test_a_file_without_a_class_for_each_sample_is_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises(UnsupportedModelError, match=said):
        Labelled.of(tmp_path / "test.npz")


def test_outputs_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=IMAGES, labels=np.zeros(64, int))
    with pytest.raises(UnsupportedModelError, match="a number for each class"):
        Labelled.of(tmp_path / "test.npz").accuracy(open(net(), (torch.zeros(SHAPE),)))
