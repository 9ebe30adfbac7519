"""`tvmc` end to end: the commands of the old tutorial, outputs whole or not at all, one exit code for each kind of error."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler.errors import LoweringError, TvmMissingError, VerificationError
from reparam_compiler.lowering import load
from reparam_compiler.lowering.cpu.machine import native
from reparam_compiler.lowering.search.pairs import Repeats
from reparam_compiler.tvmc.commands import read_inputs
from reparam_compiler.tvmc.options import parse, target_of
from tests.support import instant_trials
from tests.support.opencl_device import needs_opencl
from tests.support.tvmc_runs import WEIGHT, tvmc, write_onnx

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def factory() -> nn.Module:
    """What `package.module:factory` names; the working directory is on the path of a test run."""
    net = nn.Conv2d(3, 8, 3, bias=False)
    net.weight.data.copy_(torch.from_numpy(WEIGHT))
    return net.eval()


def two_branches() -> nn.Module:
    """A block that fusing makes one conv of."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.point = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norms[0](self.dense(x)) + self.norms[1](self.point(x)))

    return Block().eval()


def wide_conv() -> nn.Module:
    """A conv for which Winograd's form pays."""
    return nn.Conv2d(64, 64, 3, padding=1).eval()


def expected(x: np.ndarray) -> np.ndarray:
    return nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(WEIGHT)).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(tmp_path_factory.mktemp("model") / "m.onnx", 1)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    path = model.parent / "module.tar"
    target = f"llvm -mcpu={native()['mcpu']} -num-cores 2"  # of another machine a line would say what is left unused
    done = tvmc("compile", model, "--target", target, "--output", path)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(1).standard_normal((1, 3, 8, 7)).astype("float32"))
    return tmp_path / "in.npz"


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


def test_compile_says_which_algorithms_were_chosen_within_the_bound(tmp_path: Path) -> None:
    words = ["compile", f"{__name__}:wide_conv", "--input-shapes", "input:[1,64,28,28]", "-o", tmp_path / "m.tar"]
    words += ["--target", "llvm -mcpu=x86-64-v3"]
    assert re.search(r"^conv_3x3_64_64_at_28x28 +winograd \dx\d +57\.8 +\d\.\de-\d+$", tvmc(*words).stdout, re.MULTILINE)
    assert "winograd" not in tvmc(*words, "--max-error", 0).stdout
    assert "max_error: found -1.0" in tvmc(*words, "--max-error", -1).stderr


def test_a_shared_library_is_written_by_its_name_and_runs(model: Path, inputs: Path, tmp_path: Path) -> None:
    assert tvmc("compile", model, "-o", tmp_path / "m.so").exit_code == 0
    assert (tmp_path / "m.so").read_bytes()[:4] == b"\x7fELF"
    done = tvmc("run", tmp_path / "m.so", "-i", inputs, "-o", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected(np.load(inputs)["x"]), **FLOAT32)


@pytest.mark.parametrize(
    ("output_format", "name", "is_archive"),
    [("so", "m.tar", True), ("so", "m", False), ("tar", "m", True), ("tar", "m.so", True)],
)
def test_output_format_keeps_the_old_archives(
    model: Path, tmp_path: Path, output_format: str, name: str, is_archive: bool
) -> None:
    done = tvmc("compile", model, "-f", output_format, "-o", tmp_path / name)
    assert done.exit_code == 0, done.output
    assert tarfile.is_tarfile(tmp_path / name) == is_archive
    assert ("archive with the library in it" in done.stderr) == (output_format == "so" and is_archive)
    assert tvmc("run", tmp_path / name).exit_code == 0


def test_pt2_is_compiled(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        torch.export.save(torch.export.export(factory(), (torch.zeros(1, 3, 8, 7),)), tmp_path / "m.pt2")
    done = tvmc("compile", tmp_path / "m.pt2", "-o", tmp_path / "m.tar", "--model-format", "pytorch")
    assert done.exit_code == 0, done.output


def test_factory_is_compiled_with_the_shapes_of_the_command_line(tmp_path: Path) -> None:
    done = tvmc("compile", f"{__name__}:factory", "--input-shapes", "input:[2,3,8,7]", "-o", tmp_path / "m.tar", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["inputs"][0]["shape"] == [2, 3, 8, 7]


def test_models_are_fused_unless_told_not_to_be(tmp_path: Path) -> None:
    words = ["compile", f"{__name__}:two_branches", "--input-shapes", "x:[1,4,6,5]", "-o", tmp_path / "m.tar", "--json"]

    def convs(*more: str) -> int:
        found = json.loads(tvmc(*words, *more).stdout)
        return sum(kernel["name"].startswith("conv_") for kernel in found["kernels"])

    assert (convs(), convs("--no-fuse")) == (1, 2)


def test_open_batch_is_taken_as_one_and_said(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "open.onnx", "N")
    done = tvmc("compile", path, "-o", tmp_path / "m.tar", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["inputs"][0]["shape"] == [1, 3, 8, 7]
    assert "the model leaves the batch open; 1 is taken. For 8: --input-shapes 'x:[8,3,8,7]'" in done.stderr
    named = tvmc("compile", path, "-o", tmp_path / "m.tar", "--json", "--input-shapes", "x:[3,3,8,7]")
    assert json.loads(named.stdout)["inputs"][0]["shape"] == [3, 3, 8, 7]
    assert named.stderr == ""


def test_other_open_sizes_are_refused_with_the_flag_that_fixes_them(tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(write_onnx(tmp_path / "open.onnx", "N"))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(proto, tmp_path / "open.onnx")
    refused = tvmc("compile", tmp_path / "open.onnx", "-o", tmp_path / "m.tar")
    assert refused.exit_code == 4
    assert "--input-shapes 'x:[1,3,1,7]'" in refused.stderr
    assert not (tmp_path / "m.tar").exists()


def test_a_module_without_shapes_is_told_the_flag(tmp_path: Path) -> None:
    refused = tvmc("compile", f"{__name__}:factory", "-o", tmp_path / "m.tar")
    assert refused.exit_code == 4
    assert "--input-shapes 'x:[1,3,224,224]'" in refused.stderr


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


@needs_opencl
def test_opencl_is_compiled_and_run_on_its_device_by_either_name(model: Path, inputs: Path, tmp_path: Path) -> None:
    archive, written = tmp_path / "m.tar", tmp_path / "out.npz"
    made = tvmc("compile", model, "--target", "opencl", "--target-opencl-max_threads_per_block", "256", "-o", archive)
    assert made.exit_code == 0, made.output
    assert "verified: one run gives what the model gives" in made.stdout
    assert '"max_threads_per_block": 256' in made.stdout
    ran = tvmc("run", archive, "--device", "cl", "-i", inputs, "-o", written, "--profile", "--print-time")
    assert ran.exit_code == 0, ran.output
    assert "implicit GEMM" in ran.stdout
    with np.load(inputs) as given, np.load(written) as found:
        np.testing.assert_allclose(found["output_0"], expected(given["x"]), rtol=1e-4, atol=1e-5)
    assert tvmc("run", archive, "--device", "opencl").exit_code == 0
    assert "this artifact was compiled for 'opencl'" in tvmc("run", archive, "--device", "cuda").stderr


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


@pytest.mark.parametrize("formats", ["relax,tir,ll,asm", "relay"])
def test_dumped_code_is_written_beside_the_output(model: Path, tmp_path: Path, formats: str) -> None:
    done = tvmc("compile", model, "-o", tmp_path / "m.tar", "--dump-code", formats)
    assert done.exit_code == 0, done.output
    wanted = formats.replace("relay", "relax").split(",")
    assert {path.name for path in tmp_path.iterdir()} == {"m.tar", *(f"m.tar.{name}" for name in wanted)}
    assert "R.nn.conv2d" in (tmp_path / "m.tar.relax").read_text()
    assert ("TVM has no relay any more" in done.stderr) == (formats == "relay")


def test_unknown_dumps_and_those_of_another_target_are_refused(model: Path, tmp_path: Path) -> None:
    assert "expected some of relax, tir, ll, asm, cu" in tvmc("compile", model, "--dump-code", "py").stderr
    refused = tvmc("compile", model, "-o", tmp_path / "m.tar", "--dump-code", "cu")
    assert refused.exit_code == 4
    assert "this target has none" in refused.stderr
    assert not (tmp_path / "m.tar").exists()


def test_passes_are_shown_and_configured(model: Path, tmp_path: Path) -> None:
    words = ["compile", model, "-o", tmp_path / "m.tar", "--opt-level", 2, "--pass-config", "tirx.disable_vectorize=1"]
    done = tvmc(*words, "--print-pass-times", "--print-ir-before", "[LegalizeOps]", "--print-ir-after", "LegalizeOps,Nonesuch")
    assert done.exit_code == 0, done.output
    assert re.search(r"\d+\.\d\d ms  LegalizeOps", done.stdout)
    assert "# before LegalizeOps" in done.stdout
    assert "# after LegalizeOps" in done.stdout
    assert "pass Nonesuch did not run" in done.stderr


def test_a_disabled_pass_does_not_run(model: Path, tmp_path: Path) -> None:
    words = ["compile", model, "-o", tmp_path / "m.tar", "--print-pass-times", "--disabled-pass", "DispatchSampling"]
    done = tvmc(*words)
    assert done.exit_code == 0, done.output
    assert "DispatchSortScan" in done.stdout
    assert "DispatchSampling" not in done.stdout


def test_unknown_pass_settings_are_refused_with_near_ones(model: Path) -> None:
    refused = tvmc("compile", model, "--pass-config", "tirx.disable_vectorise=1")
    assert refused.exit_code == 4
    assert "tirx.disable_vectorize" in refused.stderr
    assert "expected name=value" in tvmc("compile", model, "--pass-config", "tirx.disable_vectorize").stderr
    assert "expects a value of type" in tvmc("compile", model, "--pass-config", "tirx.disable_vectorize=perhaps").stderr


def test_help_teaches_by_example() -> None:
    for command in ("compile", "run", "tune"):
        assert f"Example: tvmc {command}" in tvmc(command, "--help").stdout
    assert "Example: tvmc compile" in tvmc("--help").stdout
    assert tvmc("--version").stdout.startswith("reparam_compiler ")


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


def test_a_failure_under_pass_settings_names_them(model: Path, tmp_path: Path) -> None:
    refused = tvmc("compile", model, "-o", tmp_path / "m.tar", "--disabled-pass", "LegalizeOps,CallTIRRewrite,LowerAllocTensor")
    assert refused.exit_code == 4
    assert "without disabled passes and pass settings" in refused.stderr


@pytest.mark.parametrize("words", [["compile", "m.onnx"], ["run", "m.tar"], ["tune", "m.onnx", "-o", "records"]])
def test_a_missing_tvm_is_said_with_the_command_that_installs_it(words: list[str], tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", 1)
    script = f"import sys; sys.modules['tvm'] = None; from reparam_compiler.tvmc import main; sys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 5
    assert "pip install 'reparam_compiler[tvm]'" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_the_commands_are_also_those_of_reparam(model: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from reparam_compiler.commands.reparam import app

    done = CliRunner().invoke(app, ["compile", "-O3", "-v", "--target=llvm", str(model), "-o", str(tmp_path / "m.tar")])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["run", str(tmp_path / "m.tar"), "--fill-mode", "ones", "--print-time"])
    assert "Execution time summary" in done.stdout
    assert CliRunner().invoke(app, ["run", str(tmp_path / "absent.tar")]).exit_code == 4
