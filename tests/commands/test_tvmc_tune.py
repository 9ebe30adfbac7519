"""`tvmc tune`: what it searches, and who takes its records."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler.lowering.search.pairs import Repeats
from reparam_compiler.tvmc.options import parse, target_of
from tests.support import instant_trials
from tests.support.tvmc_runs import tvmc

pytestmark = pytest.mark.tvm


def test_tuned_records_are_taken_by_compile_and_by_another_search(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = instant_trials.install(monkeypatch)
    words = ["--repeat", 2, "--number", 3, "--min-repeat-ms", 4, "--timeout", 20, "--json"]
    words += ["--report", tmp_path / "search.json"]
    done = tvmc("tune", model, "--trials", 2, "-o", tmp_path / "records", *words)
    assert done.exit_code == 0, done.output
    *steps, result = map(json.loads, done.stdout.splitlines())
    assert (result["measured"], result["failed"]) == (2, 0)
    assert steps[0]["doing"].startswith("conv")
    assert (steps[0]["trial"], steps[0]["trials"]) == (1, 2)
    assert asked == [Repeats(2, 3, 4, 20)]
    page = json.loads((tmp_path / "search.json").read_text())
    assert [task["trials"] for task in result["tasks"]] == [layer["trials"] for layer in page["search"]["layers"]]
    layer = page["search"]["layers"][0]
    assert (layer["rule_seconds"], layer["best_seconds"]) == (1e-3, 1e-3)
    assert layer["decided"].startswith("the rule: nothing was faster")
    curve = page["search"]["curve"]  # of the second trial a step is said where it is of a conv
    assert [step["trial"] for step in curve] in ([1], [1, 2])
    assert {step["best_seconds"] for step in curve} == {1e-3}
    assert tvmc("compile", model, "--tuning-records", tmp_path / "records", "-o", tmp_path / "m.tar").exit_code == 0
    words = ["tune", model, "--trials", 2, "--tuning-records", tmp_path / "records", "--json"]
    again = tvmc(*words, "-o", tmp_path / "more")
    assert json.loads(again.stdout.splitlines()[-1])["measured"] == 0
    refused = tvmc(*words, "-o", tmp_path / "more")
    assert refused.exit_code == 4
    assert "found records there already" in refused.stderr


def test_tasks_are_listed_and_chosen_by_number_or_name(model: Path, tmp_path: Path) -> None:
    listed = tvmc("tune", model, "--tasks", "list", "-o", tmp_path / "records", "--json")
    assert listed.exit_code == 0
    names = [task["name"] for task in json.loads(listed.stdout)["tasks"]]
    words = ["tune", model, "-o", tmp_path / "records", "--json", "--trials", 1]
    chosen = tvmc(*words, "--tasks", "0")
    assert [task["name"] for task in json.loads(chosen.stdout.splitlines()[-1])["tasks"]] == names[:1]
    refused = tvmc(*words, "--tasks", "no_such_kernel")
    assert refused.exit_code == 4
    assert f"one of: 0 {names[0]}" in refused.stderr


def test_the_cores_of_a_search_are_those_of_its_target() -> None:
    found = parse(["tune", "m.onnx", "-o", "records", "--num-cores", "3"])
    assert target_of(found) == {"kind": "llvm", "num-cores": 3}
