"""The pruning benchmarks run on small settings, and what they conclude follows from the numbers."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    from benchmarks import prune_accuracy

    return prune_accuracy


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    pytest.importorskip("onnxruntime")
    from benchmarks import prune_speed

    return prune_speed


def cells(module: ModuleType, **accuracies: tuple[float | str, ...]) -> list:
    """Cells of RepVGG on digits at 0.5, all methods; those not named have one accuracy of 1 %."""
    methods = (*module.QUALITIES, module.L1, *module.CRITERIA, module.PIPELINE)
    found = [module.Cell("digits", "RepVGG", name, 0.5, accuracies.get(name, (1.0,))) for name in methods]
    return [module.Cell("digits", "RepVGG", module.UNPRUNED, 0.0, accuracies.get("unpruned", (99.0,))), *found]


def test_a_quick_run_writes_page_and_json_with_the_command(
    accuracy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # no weights of earlier runs
    output = tmp_path / "accuracy.md"
    accuracy.main(["--quick", "--only", "RepVGG", "-o", str(output)])
    record, page = json.loads(output.with_suffix(".json").read_text()), output.read_text()
    assert "python -m benchmarks.prune_accuracy --quick --only RepVGG" in page
    methods = {accuracy.UNPRUNED, accuracy.L1, accuracy.PIPELINE, *accuracy.QUALITIES, *accuracy.CRITERIA}
    assert {row["method"] for row in record["results"]} == methods
    assert all(0 <= value <= 100 for row in record["results"] for value in row["accuracies"])
    assert list(tmp_path.glob("*.part")) == []


def test_a_run_of_some_nets_leaves_what_earlier_ones_found_of_others(
    accuracy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy.page, "versions", lambda *_: "those that are installed")  # the peer need not be
    output = tmp_path / "accuracy.md"
    others = [replace(cell, net="ResNet", accuracies=(12.0,)) for cell in cells(accuracy)]
    accuracy._write(output, [*cells(accuracy), *others], [], (0,), "the first")
    for high in (50.0, 60.0):
        accuracy._write(output, cells(accuracy, high=(high,)), [], (1,), "the next")
    record, page = json.loads(output.with_suffix(".json").read_text()), output.read_text()
    assert [run["command"] for run in record["earlier"]] == ["the first"]
    assert {row["net"] for row in record["earlier"][0]["results"]} == {"ResNet"}
    assert page.index("| high | 60.0 (60.0) |") < page.index("command: the first") < page.index("| high | 12.0 (12.0) |")
    assert page.count("## ") == 2


def test_the_goals_verdict_follows_from_the_mean_over_the_seeds(accuracy: ModuleType) -> None:
    met, later = accuracy.goals(cells(accuracy, unpruned=(99.0, 98.0), high=(98.5, 98.0)))
    assert met == "RepVGG, digits, high at 0.5: 0.25 points lost, 0.50 in the worst seed; goal 0.3: met"
    assert "at 0.7: not measured" in later
    missed, _ = accuracy.goals(cells(accuracy, unpruned=(99.0, 98.0), high=(98.0, 98.0)))
    assert missed.endswith("0.50 points lost, 1.00 in the worst seed; goal 0.3: not met")


def test_a_method_that_failed_is_listed_and_never_the_best(accuracy: ModuleType) -> None:
    found = cells(accuracy, high=("VerificationError: no",), Taylor=("KeyError: x", 99.0), FPGM=(17.0, 12.0), fast=(0.0,))
    page = accuracy.table(found)
    assert "| high | failed |" in page
    assert "| fast | 0.0 (0.0) |" in page
    assert "| peer, best criterion | 14.5 (12.0) FPGM |" in page
    assert accuracy.failures(found) == [
        "RepVGG, digits, high at 0.5: VerificationError: no",
        "RepVGG, digits, Taylor at 0.5: KeyError: x",
    ]
    assert "not measured" in accuracy.goals(found)[0]


def test_what_a_method_raises_ends_up_in_its_cell(accuracy: ModuleType) -> None:
    def make() -> torch.nn.Module:
        raise KeyError("conv1")

    assert accuracy._tried(make, accuracy.data_of("digits", 0, 8)) == "KeyError: 'conv1'"


@pytest.mark.parametrize("seed", [0, 2])
def test_pairs_are_tested_on_digits_that_were_never_trained_on(accuracy: ModuleType, seed: int) -> None:
    def halves(images: torch.Tensor) -> set[bytes]:
        return {half.numpy().tobytes() for image in images for half in image.split(16, dim=2)}

    alone, data = accuracy.data_of("digits", seed, 8), accuracy.data_of("pairs", seed, 32)
    trained = halves(alone.digits)
    assert halves(data.digits) == trained
    assert halves(data.seen) <= trained
    assert halves(data.test) <= halves(alone.test)
    assert len(alone.test) == 719
    names = {image.numpy().tobytes(): int(label) for image, label in zip(alone.test, alone.test_labels, strict=True)}
    left, right = (names[half.numpy().tobytes()] for half in data.test[0].split(16, dim=2))
    assert int(data.test_labels[0]) == 10 * left + right


def test_seeds_split_differently(accuracy: ModuleType) -> None:
    first, second = (accuracy.data_of("digits", seed, 8).test_labels for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("net", ["RepVGG", "ResNet", "dense"])
def test_every_net_takes_both_tasks(accuracy: ModuleType, net: str) -> None:
    for width, classes in ((16, 10), (32, 100)):
        assert accuracy.NETS[net](classes, 4).eval()(torch.zeros(2, 1, 16, width)).shape == (2, classes)


def test_the_hessian_is_the_mean_square_and_not_the_square_of_the_mean(accuracy: ModuleType) -> None:
    data = accuracy.data_of("digits", 0, 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    taylor, hessian = (accuracy.gradients(model, data, criterion)["1.bias"] for criterion in ("Taylor", "Hessian"))
    singles = model(data.seen).softmax(1) - torch.nn.functional.one_hot(data.seen_labels, 10)  # of cross entropy by the bias
    torch.testing.assert_close(taylor, singles.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hessian, (singles**2).mean(0), rtol=1e-4, atol=1e-6)
    assert accuracy.gradients(model, data, "L1") == {}


@pytest.mark.tvm
def test_a_quick_speed_run_times_every_form_in_both_engines(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tvm")
    # A budget of latency exports eight models: seconds, and what is measured on a busy machine may not be within reach.
    monkeypatch.setattr(speed, "FORMS", {form: how for form, how in speed.FORMS.items() if "latency" not in how})
    output = tmp_path / "speed.md"
    speed.main(["--quick", "-o", str(output)])
    record = json.loads(output.with_suffix(".json").read_text())
    forms = {speed.UNPRUNED, *speed.FORMS}
    assert {(row["form"], row["engine"]) for row in record["rows"]} == {(f, e) for f in forms for e in ("ONNX Runtime", "TVM")}
    assert all(row["relative_error"] < 1e-4 for row in record["rows"])  # float32
    assert record["goal"] in output.read_text()


@pytest.mark.parametrize(("speed_up", "verdict"), [(2.0, "met"), (1.99, "not met")])
def test_the_speed_goal_is_of_rounded_widths_in_onnx_runtime(speed: ModuleType, speed_up: float, verdict: str) -> None:
    def row(form: str, engine: str, times: float) -> object:
        return speed.Row(form, engine, 50, 0.5, 1.0, (1.0, 1.0), times, 0.0)

    rows = [row(speed.ROUNDED, "TVM", 9.0), row("ratio 0.3, exact", "ONNX Runtime", 9.0)]
    found = speed.goal([*rows, row(speed.ROUNDED, "ONNX Runtime", speed_up)])
    assert found.endswith(f"half of them: {verdict}")


def test_no_form_always_goes_first(speed: ModuleType) -> None:
    called: list[str] = []
    runs = {(name, "x"): (lambda name=name: called.append(name) or np.zeros(1)) for name in "abc"}
    taken = speed.interleaved(runs, 3)
    assert called == [*"abc", *"abc", *"bca", *"cab"]  # the first round warms up
    assert {key: len(times) for key, times in taken.items()} == dict.fromkeys(runs, 3)
