"""A model is compiled here for aarch64 Linux, linked by Debian's cross compiler, and run under qemu."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import tvm
import tvm_ffi

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from tests.support.artifact_runner import build_runner, run_program
from tests.support.tvmc_runs import tvmc, write_onnx

pytestmark = [pytest.mark.tvm, pytest.mark.slow]

COMPILER = "aarch64-linux-gnu-g++"
QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
TARGET = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76 -num-cores 1"
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
ELF_MACHINE_AARCH64 = 183


class Net(nn.Module):
    """Every kind of conv that has a recipe, pooling and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24),
            nn.Conv2d(24, 20, 3, padding=2, dilation=2, groups=2),
            nn.Conv2d(20, 37, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(37, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.head(nn.functional.max_pool2d(y, 2).mean((2, 3)))


@pytest.fixture(scope="module")
def compiled() -> lowering.Executable:
    torch.manual_seed(0)
    return lowering.compile(Net().eval(), torch.zeros(1, 3, 37, 30), target=TARGET)


@pytest.fixture(scope="module")
def library(compiled: lowering.Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed (Debian: g++-aarch64-linux-gnu)")
    path = tmp_path_factory.mktemp("library") / "model.so"
    compiled.save(path, compiler=COMPILER)
    return path


@pytest.fixture(scope="module")
def aarch64_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The libraries of the same versions of tvm and tvm_ffi, for aarch64, from the package index."""
    folder = tmp_path_factory.mktemp("wheels")
    wanted = [f"apache-tvm=={tvm.__version__}", f"apache-tvm-ffi=={tvm_ffi.__version__}"]
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 24)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *platforms, "-d", str(folder)]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the aarch64 wheels cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if "/lib/lib" in name])
    return folder


def test_the_library_is_for_the_other_machine_and_is_refused_here(library: Path, compiled: lowering.Executable) -> None:
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == ELF_MACHINE_AARCH64
    with pytest.raises(LoweringError, match="it is aarch64, and this machine is"):
        lowering.load(library)
    with pytest.raises(LoweringError, match="it is aarch64, and this machine is"):
        compiled.run(torch.zeros(1, 3, 37, 30))


def test_the_command_line_crosses_too(tmp_path: Path) -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed (Debian: g++-aarch64-linux-gnu)")
    words = ["compile", write_onnx(tmp_path / "m.onnx", 1), "-o", tmp_path / "m.tar", "--target", TARGET]
    refused = tvmc(*words)
    assert refused.exit_code == 4
    assert "--cross-compiler aarch64-linux-gnu-g++" in refused.stderr
    done = tvmc(*words, "--cross-compiler", COMPILER, "--cross-compiler-options", "-Wl,-s -Wl,--build-id")
    assert done.exit_code == 0, done.output
    assert "this machine is" in tvmc("run", tmp_path / "m.tar").stderr


def test_linking_without_a_cross_compiler_says_which_one_to_name(compiled: lowering.Executable, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"save\(compiler='aarch64-linux-gnu-g"):
        compiled.save(tmp_path / "m.so")


def test_the_other_machine_computes_what_torch_does(
    library: Path, compiled: lowering.Executable, aarch64_wheels: Path, tmp_path: Path
) -> None:
    if shutil.which(QEMU[0]) is None:
        pytest.skip(f"{QEMU[0]} is not installed (Debian: qemu-user)")
    program = build_runner(tmp_path, COMPILER, aarch64_wheels / "tvm" / "lib", aarch64_wheels / "tvm_ffi" / "lib")
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 3, 37, 30)
    (found,) = run_program([*QEMU, str(program)], library, [x.numpy()], compiled, tmp_path)
    np.testing.assert_allclose(found, net(x).detach().numpy(), **FLOAT32)
