"""`reparam sweep`: a page of a model pruned by each ratio, and what is wrong with its words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from tests.support.reparam_runs import error_line, reparam

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself
HERE = "tests.commands.test_sweep_command"


def channels(model: Any) -> float:
    """What this file evaluates ONNX models by: the channels that their last conv reads."""
    return float(next(weight.dims[1] for weight in model.graph.initializer if weight.name == "last.weight"))


def raises(model: Any) -> float:
    """A caller's function that fails."""
    raise KeyError(type(model).__name__)


def test_a_sweep_is_a_section_of_the_page_of_fusing(folder: Path, tmp_path: Path) -> None:
    asked = ["sweep", folder / "net.onnx", "--ratios", "0.1,0.5", "--calibration", folder / "images.npz"]
    found = reparam(*asked, "-o", tmp_path / "sweep.json")
    assert found.exit_code == 0, found.output
    page = json.loads((tmp_path / "sweep.json").read_text())
    assert len(page["regions"]) == 1
    assert [point["ratio"] for point in page["sweep"]["points"]] == [None, 0.0, 0.1, 0.5]
    refused = page["sweep"]["points"].pop(2)
    assert refused["refused"].startswith("ratio=0.1 removes no channel")
    assert all(point["milliseconds"] > 0 for point in page["sweep"]["points"])
    assert 0 < page["sweep"]["points"][-1]["error"] < 1


def test_a_function_evaluates_every_model_and_a_terminal_shows_it(folder: Path) -> None:
    found = reparam("sweep", folder / "net.onnx", "--ratios", "0.5", "--evaluate", f"{HERE}:channels", "--no-fuse")
    assert found.exit_code == 0, found.output
    rows = [line for line in found.stdout.splitlines() if " % " in line]
    assert ["8.0000" in row for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--evaluate", "nothing.npz"], "UnsupportedModelError: nothing.npz cannot be read"),
        (["--evaluate", "nothing.npy"], "UnsupportedModelError: --evaluate: found 'nothing.npy'; expected an .npz of samples"),
        (["--evaluate", f"{HERE}:HERE"], f"UnsupportedModelError: {HERE}:HERE: found a str; expected a function"),
        (["--evaluate", f"{HERE}:missing"], f"{HERE} has no missing"),
        (["--evaluate", f"{HERE}:raises"], "calling raises(model) raised KeyError"),
        (["--calibration", "nothing.npz"], "UnsupportedModelError: nothing.npz: no such calibration file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words: list[str], said: str, folder: Path) -> None:
    found = reparam("sweep", folder / "net.onnx", "--ratios", "0.5", *words)
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--ratios", "0.9:0.1", "--calibration", "x.npz"], 2, "--ratios: found '0.9:0.1'; expected FIRST:LAST"),
        (["--ratios", "0.5"], 8, "found neither --evaluate nor --calibration; expected one of them"),
    ],
)
def test_what_words_alone_tell_comes_before_any_work(words: list[str], code: int, said: str) -> None:
    found = reparam("sweep", "no_such_file.onnx", *words, "--json")
    assert found.exit_code == code
    assert said in json.loads(found.stdout)["message"]


def test_labels_of_a_file_evaluate_too(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.load(folder / "images.npy"), labels=np.zeros(64, int))
    found = reparam("sweep", folder / "net.onnx", "--ratios", "0.5", "--evaluate", tmp_path / "test.npz")
    assert "expected a number for each class" in error_line(found, "UnsupportedModelError")
