"""The benchmark of waits starts what it says, by turns, and its table has goals and what torch's import is of each."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from subprocess import CalledProcessError

import pytest

pytest.importorskip("onnx")

from benchmarks import waits
from benchmarks.large import Net
from benchmarks.waits import Wait, started, table


def test_every_command_is_started_on_a_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[Sequence[str]] = []
    monkeypatch.setattr(waits, "INSPECTED", Net("inspected", 1, 4))
    monkeypatch.setattr(waits, "REPORTED", Net("reported", 2, 4))
    monkeypatch.setattr(waits, "started", run.append)
    monkeypatch.setattr(waits, "opening", lambda *_: nullcontext({"opened": lambda: None}))
    found = waits.measured(tmp_path, 1)
    assert [each.name for each in found] == [*waits.commands(Path(), Path(), Path()), "opened"]
    assert all(0 <= each.least <= each.median for each in found)
    files = {word for words in run for word in words if word.endswith(".onnx")}
    assert {Path(word).name for word in files} == {"inspected.onnx", "reported.onnx"}
    assert all(Path(word).is_file() for word in files)


def test_the_nets_have_the_nodes_that_the_goals_are_for() -> None:
    assert (waits.INSPECTED.nodes, waits.REPORTED.nodes) == (300, 2004)


def test_what_fails_is_no_wait() -> None:
    started(["-c", "pass"])
    with pytest.raises(CalledProcessError):
        started(["-c", "raise SystemExit(3)"])


def test_the_table_has_goals_and_the_packages_own_import() -> None:
    text = table([Wait("torch", 1.0, 1.25), Wait("torch and reparam_compiler", 1.125, 1.5), Wait("inspect", 1.75, 2.5)])
    assert "| inspect | 1.75 | 2.50 | 2 | 2.00 |" in text
    assert "| torch | 1.00 | 1.25 |  | 1.00 |" in text
    assert "own import: 0.12 s" in text
