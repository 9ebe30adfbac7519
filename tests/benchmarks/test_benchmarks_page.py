"""What the benchmarks share: turns in rotating order, facts, and pages that are written whole."""

import json
from pathlib import Path

import pytest

from benchmarks import page


def test_a_page_opens_with_its_title_its_facts_and_its_remarks() -> None:
    found = page.head("Speed", {"date": "today", "cpu": "one"}, "ratio 0.3")
    assert found == "# Speed\n\n- date: today\n- cpu: one\n- ratio 0.3\n\n"


def test_facts_begin_with_date_and_command() -> None:
    found = page.facts("python -m benchmarks.x", cpu="one", versions=page.versions("numpy", "torch"))
    assert list(found) == ["date", "command", "cpu", "versions"]
    assert found["versions"].startswith("numpy ")
    assert ", torch " in found["versions"]


def test_the_processor_has_a_name_where_linux_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert page.processor() == "riscv64"


def test_page_and_record_are_written_beside_each_other(tmp_path: Path) -> None:
    page.write(tmp_path / "speed.md", "# Speed\n", {"rows": [1.5]})
    assert (tmp_path / "speed.md").read_text() == "# Speed\n"
    assert json.loads((tmp_path / "speed.json").read_text()) == {"rows": [1.5]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]


def test_a_write_that_fails_leaves_the_older_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speed.md"
    path.write_text("older")
    whole = Path.write_bytes

    def cut_off(self: Path, content: bytes) -> int:
        whole(self, content[:3])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(OSError, match="disk full"):
        page.write(path, "# newer", {})
    assert path.read_text() == "older"


def test_no_run_always_goes_first() -> None:
    called: list[str] = []
    taken = page.interleaved({name: (lambda name=name: called.append(name)) for name in "abc"}, 3)
    assert called == [*"abc", *"abc", *"bca", *"cab"]  # the first round warms up
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_budget_ends_the_rounds_but_leaves_the_least() -> None:
    assert len(page.interleaved({"a": lambda: None}, 9, budget=-1.0, least=4)["a"]) == 4
    assert page.interleaved({}, 2) == {}
