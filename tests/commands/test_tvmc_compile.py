"""`tvmc compile`: what it takes, what it writes and prints, and the passes that it shows."""

import json
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from tests.support.opencl_device import needs_opencl
from tests.support.tvmc_runs import FLOAT32, WEIGHT, expected, tvmc, write_onnx

pytestmark = pytest.mark.tvm


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


def test_a_failure_under_pass_settings_names_them(model: Path, tmp_path: Path) -> None:
    refused = tvmc("compile", model, "-o", tmp_path / "m.tar", "--disabled-pass", "LegalizeOps,CallTIRRewrite,LowerAllocTensor")
    assert refused.exit_code == 4
    assert "without disabled passes and pass settings" in refused.stderr
