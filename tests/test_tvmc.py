"""`tvmc` end to end: the commands of the old tutorial, outputs whole or not at all, one exit code for each kind of error."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx
from onnx import helper, numpy_helper

from reparam_compiler.errors import TvmMissingError
from reparam_compiler.tvmc import _shapes, app

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
WEIGHT = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype("float32")


def tvmc(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def factory() -> nn.Module:
    """What `package.module:factory` names; the working directory is on the path of a test run."""
    net = nn.Conv2d(3, 8, 3, bias=False)
    net.weight.data.copy_(torch.from_numpy(WEIGHT))
    return net.eval()


def expected(x: np.ndarray) -> np.ndarray:
    return nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(WEIGHT)).numpy()


def write_onnx(path: Path, batch: int | str) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 7])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 8, 6, 5])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(tmp_path_factory.mktemp("model") / "m.onnx", 1)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    path = model.parent / "module.tar"
    done = tvmc("compile", model, "--target", "llvm -mcpu=x86-64-v3 -num-cores 2", "--output", path)
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(1).standard_normal((1, 3, 8, 7)).astype("float32"))
    return tmp_path / "in.npz"


def test_compiled_onnx_runs_on_an_npz_and_writes_one(artifact: Path, inputs: Path, tmp_path: Path) -> None:
    done = tvmc("run", artifact, "--inputs", inputs, "--outputs", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected(np.load(inputs)["x"]), **FLOAT32)


def test_compile_prints_one_json_object(model: Path, tmp_path: Path) -> None:
    done = tvmc("compile", model, "-o", tmp_path / "m.tar", "--json")
    found = json.loads(done.stdout)
    assert found["inputs"] == [{"name": "x", "shape": [1, 3, 8, 7], "dtype": "float32"}]
    assert found["bytes"] == (tmp_path / "m.tar").stat().st_size
    assert found["target"]["kind"] == "llvm"


def test_pt2_is_compiled(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        torch.export.save(torch.export.export(factory(), (torch.zeros(1, 3, 8, 7),)), tmp_path / "m.pt2")
    done = tvmc("compile", tmp_path / "m.pt2", "-o", tmp_path / "m.tar")
    assert done.exit_code == 0, done.output


def test_factory_is_compiled_with_the_shapes_of_the_command_line(tmp_path: Path) -> None:
    done = tvmc("compile", f"{__name__}:factory", "--input-shapes", "input:[2,3,8,7]", "-o", tmp_path / "m.tar", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["inputs"][0]["shape"] == [2, 3, 8, 7]


def test_open_batch_is_refused_with_the_flag_that_fixes_it(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "open.onnx", "N")
    refused = tvmc("compile", path, "-o", tmp_path / "m.tar")
    assert refused.exit_code == 4
    assert "--input-shapes 'x:[1,3,8,7]'" in refused.stderr
    assert not (tmp_path / "m.tar").exists()
    assert tvmc("compile", path, "-o", tmp_path / "m.tar", "--input-shapes", "x:[1,3,8,7]").exit_code == 0


def test_run_prints_times_and_the_largest_values(artifact: Path) -> None:
    done = tvmc(
        "run", artifact, "--fill-mode", "ones", "--print-time", "--repeat", 3, "--number", 2, "--print-top", 2, "--json"
    )
    found = json.loads(done.stdout)
    result = expected(np.ones((1, 3, 8, 7), "float32")).reshape(-1)
    assert [value for _, value in found["top"]["y"]] == pytest.approx(np.sort(result)[::-1][:2].tolist(), rel=1e-4)
    assert found["time_ms"]["min"] <= found["time_ms"]["median"] <= found["time_ms"]["max"]
    text = tvmc("run", artifact, "--fill-mode", "zeros", "--print-time", "--print-top", 1)
    assert text.exit_code == 0
    assert "median" in text.stdout
    assert "largest of y" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fill-mode", "sevens"], "found 'sevens'; expected random, ones or zeros"),
        (["--device", "cuda"], "compiled for 'cpu'"),
        (["--inputs", "absent.npz"], r"absent.npz: no such file; --inputs takes an .npz with x: float32"),
        (["--inputs", __file__], "not an .npz"),
        (["--outputs", "absent/out.npz"], "does not exist"),
    ],
)
def test_bad_run_options_exit_with_four(artifact: Path, arguments: list[str], message: str) -> None:
    done = tvmc("run", artifact, *arguments)
    assert done.exit_code == 4
    assert message in done.stderr


def test_wrong_array_names_are_refused_with_both(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", z=np.zeros(3))
    done = tvmc("run", artifact, "--inputs", tmp_path / "in.npz")
    assert done.exit_code == 4
    assert "found inputs z; expected all" in done.stderr


def test_pickled_arrays_are_refused(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([{"a": 1}], dtype=object))
    done = tvmc("run", artifact, "--inputs", tmp_path / "in.npz")
    assert done.exit_code == 4
    assert "plain arrays" in done.stderr


def test_exit_code_tells_the_error_s_class(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tvmc("compile", model, "--no-such-option").exit_code == 2
    assert tvmc("compile", model, "--output-format", "so").exit_code == 2
    assert tvmc("compile", model, "--input-shapes", "x=1,3").exit_code == 2
    assert tvmc("compile", tmp_path / "absent.onnx").exit_code == 3
    assert tvmc("compile", model, "--target", "lvm").exit_code == 4
    assert tvmc("compile", model, "--tuning-records", tmp_path).exit_code == 4
    assert tvmc("run", model).exit_code == 4

    def missing(*_: Any, **__: Any) -> None:
        raise TvmMissingError("tvm is not installed: pip install 'reparam_compiler[tvm]'")

    monkeypatch.setattr("reparam_compiler.lowering.load", missing)
    done = tvmc("run", model, "--json")
    assert done.exit_code == 5
    assert json.loads(done.stdout)["error"] == "TvmMissingError"


def test_failed_run_leaves_the_old_outputs(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert tvmc("run", artifact, "--outputs", path).exit_code != 0
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


def test_shapes_are_read_as_the_old_tvmc_wrote_them() -> None:
    assert _shapes("x:[1,3,224,224]") == {"x": (1, 3, 224, 224)}
    assert _shapes("in:0:[1, 3] mask:[7],s:[]") == {"in:0": (1, 3), "mask": (7,), "s": ()}
    assert _shapes(None) is None


def test_help_teaches_by_example() -> None:
    for command in ("compile", "run", "tune"):
        assert f"Example: tvmc {command}" in " ".join(tvmc(command, "--help").stdout.split())
    assert "Example: tvmc compile" in " ".join(tvmc("--help").stdout.split())


def test_tuned_records_are_taken_by_compile(model: Path, tmp_path: Path) -> None:
    done = tvmc("tune", model, "--trials", 2, "-o", tmp_path / "records", "--repeat", 1, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["measured"] == 2
    assert tvmc("compile", model, "--tuning-records", tmp_path / "records", "-o", tmp_path / "m.tar").exit_code == 0


def test_console_script_is_quiet_on_stderr(artifact: Path) -> None:
    command = [sys.executable, "-m", "reparam_compiler.tvmc", "run", str(artifact), "--print-time"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"})
    assert done.stderr == ""
    assert "milliseconds" in done.stdout
