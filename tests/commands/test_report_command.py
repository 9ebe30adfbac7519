"""`reparam report` and `--report`: a page of every kind of model, as a file of every kind."""

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from tests.support.reparam_runs import FACTORY, SHAPES, error_line, reparam, spec

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself


@pytest.mark.parametrize("kind", ["onnx", "pt2", "factory"])
def test_a_report_tells_what_fuses_in_every_kind_of_model(kind: str, folder: Path, tmp_path: Path) -> None:
    found = reparam("report", *spec(kind, folder), "-o", tmp_path / "net.json")
    assert found.exit_code == 0, found.output
    page = json.loads((tmp_path / "net.json").read_text())
    assert page["title"] == "net"
    assert len(page["regions"]) == 1
    assert len(page["made"]["hashes"]) == (1 if kind == "factory" else 2)
    assert any("whole model differs by" in line for line in page["accuracy"])


def test_a_report_without_a_file_is_printed(folder: Path) -> None:
    found = reparam("report", folder / "net.onnx")
    assert found.exit_code == 0, found.output
    assert "1 fused" in found.stdout


def test_two_models_are_compared(folder: Path, tmp_path: Path) -> None:
    found = reparam("fuse", folder / "net.pt2", "-o", tmp_path / "fused.onnx")
    assert found.exit_code == 0, found.output
    asked = ["report", folder / "net.pt2", "--after", tmp_path / "fused.onnx", "--json"]
    page = json.loads(reparam(*asked, "--input-shapes", SHAPES).stdout)
    assert [(op["before"], op["after"]) for op in page["ops"] if op["op"] == "conv"] == [(3, 2)]
    assert page["accuracy"][0].startswith("equal")
    assert json.loads(reparam(*asked).stdout)["accuracy"] == ["not compared: give --input-shapes"]


def test_fuse_writes_a_report_beside_its_result(folder: Path, tmp_path: Path) -> None:
    found = reparam("fuse", folder / "net.onnx", "-o", tmp_path / "fused.onnx", "--report", tmp_path / "fused.txt")
    assert found.exit_code == 0, found.output
    assert "1 fused" in (tmp_path / "fused.txt").read_text(encoding="utf-8")


def test_prune_writes_a_report_of_fusing_and_pruning(folder: Path, tmp_path: Path) -> None:
    data = ["--ratio", 0.5, "--calibration", folder / "images.npz"]
    found = reparam("prune", FACTORY, "--input-shapes", SHAPES, *data, "--report", tmp_path / "cut.json")
    assert found.exit_code == 0, found.output
    page = json.loads((tmp_path / "cut.json").read_text())
    assert len(page["regions"]) == 1
    assert [(family["before"], family["after"]) for family in page["families"] if not family["pinned"]] == [(16, 8)]


def test_what_a_report_cannot_be_written_as_is_said_before_any_work(folder: Path, tmp_path: Path) -> None:
    for command in (["report", "-o"], ["fuse", "-o", tmp_path / "fused.onnx", "--report"]):
        found = reparam(command[0], folder / "net.onnx", *command[1:], tmp_path / "net.pdf")
        assert "expected .html, .json, .txt" in error_line(found, "UnsupportedModelError")
    assert list(tmp_path.iterdir()) == []


def test_the_demonstration_has_no_report(tmp_path: Path) -> None:
    found = reparam("prune", "--ratio", 0.3, "--report", tmp_path / "net.json")
    assert found.exit_code == 2
    assert "--report" in found.stderr
