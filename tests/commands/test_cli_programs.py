"""The commands as programs: modules that Python runs, a process of their own, and the demo."""

import importlib
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reparam_compiler
from reparam_compiler.commands import demo
from reparam_compiler.models.io import load_model

pytest.importorskip("onnx")


from tests.support.reparam_runs import reparam

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself


def python(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)


def test_the_modules_of_the_commands_cannot_shadow_the_functions() -> None:
    for name in ("fuse", "prune"):
        with pytest.raises(ImportError, match=f"from reparam_compiler import {name}"):
            importlib.import_module(f"reparam_compiler.{name}")
        assert getattr(reparam_compiler, name).__module__ in ("reparam_compiler.api.fusing", "reparam_compiler.api.pruning")


@pytest.mark.parametrize("name", ["fuse", "prune"])
def test_the_functions_are_functions_while_their_module_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"reparam_compiler.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert getattr(reparam_compiler, name).__module__ in ("reparam_compiler.api.fusing", "reparam_compiler.api.pruning")
    with pytest.raises(ImportError):  # but a worker process that imports the main module again may
        runpy.run_module(f"reparam_compiler.{name}", run_name="worker")
    runpy.run_module(f"reparam_compiler.{name}", run_name="__mp_main__")


def test_modules_run_as_programs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Python runs them in a process of their own, which the next test starts."""

    def ran(module: str, *words: object) -> Any:
        monkeypatch.setattr(sys, "argv", [module, *map(str, words), "--json"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"reparam_compiler.{module}", run_name="__main__")
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return json.loads(said.out)["report"]

    fused, small = tmp_path / "fused.onnx", tmp_path / "small.onnx"
    assert ran("fuse", folder / "net.onnx", "-o", fused)["after"]["convs"] == 2
    plan = ran("prune", "--ratio", 0.5, fused, "--calibration", folder / "images.npz", "-o", small)["plan"]
    assert plan["repair"]["samples"] == 56  # of 64: the last eighth is held out


def test_a_refused_model_is_one_line_in_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"a pickle, for all one knows")
    found = python("-m", "reparam_compiler", "fuse", tmp_path / "net.pt", "-o", tmp_path / "fused.pt2")
    assert found.returncode == 3
    assert len(found.stderr.strip().splitlines()) == 1
    assert "--unsafe-load" in found.stderr


@pytest.mark.tvm
@pytest.mark.slow
def test_the_demo_measures_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setattr(demo, "ROUNDS", 5)
    found = reparam("prune", "--ratio", 0.3, "--json", "-o", tmp_path / "small.pt2")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    steps = record["steps"]
    assert [step["engine"] for step in steps] == ["torch"] * 4 + ["TVM"] * 2
    training, fused, unrepaired, pruned, fused_tvm, pruned_tvm = (step["accuracy"] for step in steps)
    assert training == fused == fused_tvm > 0.98
    assert pruned > 0.97
    assert pruned_tvm == pruned
    assert unrepaired < 0.9
    assert all(step["milliseconds"] > 0 for step in steps)
    assert all(step["error"] is None or step["error"] < 1e-5 for step in steps)
    assert steps[3]["parameters"] < 0.7 * steps[1]["parameters"]
    assert load_model(tmp_path / "small.pt2").module()(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


@pytest.mark.slow
def test_the_demo_goes_on_where_tvm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("reparam_compiler.lowering")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(reparam_compiler, "lowering", raising=False)
    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.setattr(demo, "ROUNDS", 3)
    monkeypatch.setattr(demo, "CALIBRATION", 32)
    digits = demo.digits_split()
    few = replace(digits, test_images=digits.test_images[:32], test_labels=digits.test_labels[:32])
    monkeypatch.setattr(demo, "digits_split", lambda: few)
    found = reparam("prune", "--ratio", 0.3, "--json")
    record = json.loads(found.stdout)
    assert len(record["steps"]) == 4
    assert "pip install" in record["left_out"][0]
    assert "not compiled" in found.stderr
