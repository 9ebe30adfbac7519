"""`tvmc` end to end: the commands of the old tutorial, one exit code for each kind of error, and what needs no TVM."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler.errors import TvmMissingError, VerificationError
from tests.support.tvmc_runs import FLOAT32, expected, tvmc, write_onnx

pytestmark = pytest.mark.tvm


# The commands of "Compiling and optimizing a model with TVMC" (TVM 0.19), in order, as they stand there.
TUTORIAL = r"""
tvmc compile --help
tvmc compile --target "llvm" --input-shapes "data:[1,3,224,224]" --output resnet50-v2-7-tvm.tar resnet50-v2-7.onnx
tar -xvf resnet50-v2-7-tvm.tar -C model
tvmc run --inputs imagenet_cat.npz --output predictions.npz resnet50-v2-7-tvm.tar
tvmc tune --target "llvm" --output resnet50-v2-7-autotuner_records.json resnet50-v2-7.onnx
tvmc compile --target "llvm" --tuning-records resnet50-v2-7-autotuner_records.json \
--output resnet50-v2-7-tvm_autotuned.tar resnet50-v2-7.onnx
tvmc run --inputs imagenet_cat.npz --output predictions.npz resnet50-v2-7-tvm_autotuned.tar
tvmc run --inputs imagenet_cat.npz --output predictions.npz --print-time --repeat 100 resnet50-v2-7-tvm_autotuned.tar
tvmc run --inputs imagenet_cat.npz --output predictions.npz --print-time --repeat 100 resnet50-v2-7-tvm.tar
"""


@pytest.mark.usefixtures("one_process")
def test_the_old_tutorial_s_commands_work_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "resnet50-v2-7.onnx", "N", name="data")  # the zoo's file leaves the batch open too
    data = np.random.default_rng(1).standard_normal((1, 3, 8, 7)).astype("float32")
    np.savez(tmp_path / "imagenet_cat.npz", data=data)
    (tmp_path / "model").mkdir()
    for line in TUTORIAL.replace("\\\n", "").strip().splitlines():
        program, *words = shlex.split(line.replace("224,224", "8,7"))
        if program == "tar":
            subprocess.run([program, *words], check=True, capture_output=True)
            continue
        extra = ["--trials", "1"] if words[0] == "tune" else []  # its 1000 trials take an hour
        done = tvmc(*words, *extra)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        if "--print-time" in words:
            assert "Execution time summary:" in done.stdout
        if "--output predictions.npz" in line:
            with np.load(tmp_path / "predictions.npz") as predictions:
                np.testing.assert_allclose(predictions["output_0"], expected(data), **FLOAT32)  # as its postprocess.py reads it
            (tmp_path / "predictions.npz").unlink()
    assert (tmp_path / "model" / "model.so").is_file()


def test_exit_code_tells_the_error_s_class(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tvmc("compile", model, "--no-such-option").exit_code == 2
    assert tvmc("compile", tmp_path / "absent.onnx").exit_code == 3
    assert tvmc("compile", model, "--target", "lvm").exit_code == 4
    assert tvmc("compile", model, "--tuning-records", tmp_path).exit_code == 4
    assert "does not exist; make it first" in tvmc("compile", model, "-o", tmp_path / "absent" / "m.tar").stderr
    assert tvmc("run", model).exit_code == 4

    def missing(*_: Any, **__: Any) -> None:
        raise TvmMissingError("tvm is not installed: pip install 'reparam_compiler[tvm]'")

    def differs(*_: Any, **__: Any) -> None:
        raise VerificationError("output", 1.0, 0.1)

    monkeypatch.setattr("reparam_compiler.lowering.load", missing)
    done = tvmc("run", model, "--json")
    assert done.exit_code == 5
    assert json.loads(done.stdout)["error"] == "TvmMissingError"
    monkeypatch.setattr("reparam_compiler.api.compiling.fuse_source", differs)
    assert tvmc("compile", model, "-o", tmp_path / "m.tar").exit_code == 7


def test_help_teaches_by_example() -> None:
    for command in ("compile", "run", "tune"):
        assert f"Example: tvmc {command}" in tvmc(command, "--help").stdout
    assert "Example: tvmc compile" in tvmc("--help").stdout
    assert tvmc("--version").stdout.startswith("reparam_compiler ")


@pytest.mark.parametrize("words", [["compile", "m.onnx"], ["run", "m.tar"], ["tune", "m.onnx", "-o", "records"]])
def test_a_missing_tvm_is_said_with_the_command_that_installs_it(words: list[str], tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", 1)
    script = f"import sys; sys.modules['tvm'] = None; from reparam_compiler.tvmc import main; sys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 5
    assert "pip install 'reparam_compiler[tvm]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_are_also_those_of_reparam(model: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from reparam_compiler.commands.reparam import app

    done = CliRunner().invoke(app, ["compile", "-O3", "-v", "--target=llvm", str(model), "-o", str(tmp_path / "m.tar")])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["run", str(tmp_path / "m.tar"), "--fill-mode", "ones", "--print-time"])
    assert "Execution time summary" in done.stdout
    assert CliRunner().invoke(app, ["run", str(tmp_path / "absent.tar")]).exit_code == 4
