"""`tvmc run`: its inputs and outputs, times, benchmark and profile, with tvm and numpy alone."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering import load
from reparam_compiler.tvmc.commands import read_inputs
from tests.support.tvmc_runs import FLOAT32, expected, tvmc

pytestmark = pytest.mark.tvm


def test_compiled_onnx_runs_on_an_npz_and_writes_one(artifact: Path, inputs: Path, tmp_path: Path) -> None:
    done = tvmc("run", artifact, "--inputs", inputs, "--outputs", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected(np.load(inputs)["x"]), **FLOAT32)


def test_run_prints_times_and_the_largest_values(artifact: Path) -> None:
    words = ["--fill-mode", "ones", "--print-time", "--repeat", 3, "--number", 2, "--print-top", 2]
    found = json.loads(tvmc("run", artifact, *words, "--json").stdout)
    result = expected(np.ones((1, 3, 8, 7), "float32")).reshape(-1)
    assert [value for _, value in found["top"]["y"]] == pytest.approx(np.sort(result)[::-1][:2].tolist(), rel=1e-4)
    assert found["time_ms"]["min"] <= found["time_ms"]["median"] <= found["time_ms"]["max"]
    text = tvmc("run", artifact, "--fill-mode", "zeros", "--print-time", "--print-top", 1)
    assert text.exit_code == 0
    assert re.search(r"mean \(ms\) +median \(ms\) +max \(ms\) +min \(ms\) +std \(ms\)", text.stdout)
    assert "largest of y" in text.stdout


@pytest.mark.parametrize("instances", [1, 3])
def test_benchmark_measures_latency_and_throughput_as_callers_see_them(artifact: Path, instances: int) -> None:
    words = ["run", artifact, "--benchmark", "--duration", 0.2, "--warm-up", 0.05, "--instances", instances]
    found = json.loads(tvmc(*words, "--json").stdout)["benchmark"]
    assert found["asked"] == {"instances": instances, "duration": 0.2, "warm_up": 0.05}
    assert found["runs"] >= instances
    assert found["seconds"] >= 0.2
    assert found["throughput"] == pytest.approx(found["samples"] * found["runs"] / found["seconds"])
    latency = found["latency_ms"]
    assert list(latency) == ["min", "mean", "p50", "p90", "p95", "p99", "max"]
    assert latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    # callers wait for their runs and do nothing else, so that the sum of what they waited is about all of their time
    assert latency["mean"] * found["runs"] <= 1e3 * instances * found["seconds"]
    text = tvmc(*words).stdout
    assert re.search(r"throughput: \d+\.\d samples a second\nlatency \(ms\) +min +mean +p50 +p90 +p95 +p99 +max\n", text)
    assert ("3 at once" in text) == (instances == 3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--duration", "0"), 2, "found '0'; expected seconds, above 0"),
        (("--warm-up", "soon"), 2, "found 'soon'; expected seconds, above 0"),
        (("--instances", "0"), 2, "expected a whole number from 1"),
        (("--rpc-tracker", "127.0.0.1:1", "--rpc-key", "pi"), 4, "callers here would measure the network"),
    ],
)
def test_a_benchmark_that_measures_nothing_is_refused(artifact: Path, words: tuple[str, ...], code: int, said: str) -> None:
    found = tvmc("run", artifact, "--benchmark", *words)
    assert (found.exit_code, said in found.stderr) == (code, True), found.output


@pytest.mark.parametrize("words", [("--instances", "2"), ("--duration", "1"), ("--warm-up", "1")])
def test_an_option_of_benchmark_alone_is_wrong_usage(words: tuple[str, str]) -> None:
    found = tvmc("run", "m.tar", *words, "--json")
    assert found.exit_code == 2
    assert json.loads(found.stdout)["message"] == f"{words[0]}: found no --benchmark, which it is of; give that too"


def test_end_to_end_counts_the_copies(artifact: Path) -> None:
    found = json.loads(tvmc("run", artifact, "--end-to-end", "--repeat", 5, "--json").stdout)
    assert found["time_ms"]["min"] > 0


def test_profile_names_each_kernel_with_its_share(artifact: Path) -> None:
    found = json.loads(tvmc("run", artifact, "--profile", "--json").stdout)["profile"]
    assert any(layer["kernel"].startswith("conv_3x3_3_8") for layer in found["layers"])
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1.0)
    text = tvmc("run", artifact, "--profile").stdout
    assert "sum of kernels" in text
    assert re.search(r"peak: \d+ GFLOP/s", text)


def test_inputs_that_are_not_given_are_filled(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        torch.export.save(torch.export.export(Sum().eval(), (torch.zeros(2, 3), torch.zeros(2, 3))), tmp_path / "m.pt2")
    assert tvmc("compile", tmp_path / "m.pt2", "-o", tmp_path / "m.tar").exit_code == 0
    np.savez(tmp_path / "in.npz", a=np.full((2, 3), 4, "float32"))
    done = tvmc("run", tmp_path / "m.tar", "-i", tmp_path / "in.npz", "--fill-mode", "ones", "-o", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["output_0"], np.full((2, 3), 5, "float32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "compiled for 'cpu'"),
        (["--device", "vulkan"], "compiled for 'cpu'"),
        (["--inputs", "absent.npz"], "absent.npz: no such file; --inputs takes an .npz with an array for each input of "),
        (["--inputs", __file__], "not an .npz"),
        (["--outputs", "absent/out.npz"], "does not exist"),
    ],
)
def test_what_cannot_be_run_exits_with_four(artifact: Path, arguments: list[str], message: str) -> None:
    done = tvmc("run", artifact, *arguments)
    assert done.exit_code == 4
    assert message in done.stderr


def test_wrong_array_names_are_refused_with_both(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", z=np.zeros(3))
    done = tvmc("run", artifact, "--inputs", tmp_path / "in.npz")
    assert done.exit_code == 4
    assert "found inputs z; the model has x: float32 (1, 3, 8, 7)" in done.stderr


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_broken_npz_is_refused_with_what_it_must_hold(save: Any, artifact: Path, tmp_path: Path) -> None:
    executable = load(artifact)
    save(tmp_path / "in.npz", x=np.arange(20, dtype="float32"))
    whole = (tmp_path / "in.npz").read_bytes()
    method, data = whole.rindex(b"PK\1\2") + 10, whole.index(b"x.npy") + 40
    cut, unknown, changed = whole[:-30], bytearray(whole), bytearray(whole)
    unknown[method] = 99  # no method of compression
    changed[data] ^= 255
    for content in (cut, bytes(unknown), bytes(changed), b"", b"PK"):
        (tmp_path / "in.npz").write_bytes(content)
        with pytest.raises(LoweringError, match=r"in\.npz: not an \.npz of plain arrays .*; it must hold x: float32"):
            read_inputs(executable, str(tmp_path / "in.npz"))


def test_pickled_arrays_are_refused(artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([{"a": 1}], dtype=object))
    done = tvmc("run", artifact, "--inputs", tmp_path / "in.npz")
    assert done.exit_code == 4
    assert "plain arrays" in done.stderr


def test_failed_run_leaves_the_old_outputs(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    done = tvmc("run", artifact, "--outputs", path)
    assert done.exit_code == 1
    assert "no space left" in done.stderr
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


TVM_AND_NUMPY = """
import os, runpy, sys
for name in ("torch", "onnx", "onnxruntime", "networkx", "jaxtyping", "rich", "typer", "sklearn", "xgboost"):
    sys.modules[name] = None
artifact, folder, *cases = sys.argv[1:]
for index, words in enumerate(cases):
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, f"{index}.{name}"), os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["tvmc", "run", artifact, *words.split()]
    try:
        runpy.run_module("reparam_compiler.tvmc", run_name="__main__")
    except SystemExit as ended:
        print(f"exit {ended.code}", flush=True)
"""
SHOWN = ("--print-time", "--benchmark --duration 0.05 --warm-up 0.01 --instances 2", "--print-top 3", "--profile", "--json")


@pytest.fixture(scope="module")
def shown(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What `tvmc run` writes to stdout and stderr with each of the options, in one process that has tvm and numpy alone."""
    folder = tmp_path_factory.mktemp("shown")
    command = [sys.executable, "-c", TVM_AND_NUMPY, str(artifact), str(folder), *SHOWN]
    subprocess.run(command, check=True, env={**os.environ, "COLUMNS": "80"})
    files = ((folder / f"{index}.out", folder / f"{index}.err") for index in range(len(SHOWN)))
    return {words: (out.read_text(), err.read_text()) for words, (out, err) in zip(SHOWN, files, strict=True)}


@pytest.mark.parametrize("words", SHOWN)
def test_run_needs_tvm_and_numpy_alone_and_is_quiet_on_stderr(shown: dict[str, tuple[str, str]], words: str) -> None:
    stdout, stderr = shown[words]
    assert stderr == ""
    found, _, code = stdout.rpartition("exit ")
    assert code == "0\n"
    assert "y: float32" in found or json.loads(found)
