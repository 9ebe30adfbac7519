"""An artifact runs without Python, by a C++ program of one file."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler import lowering
from tests.support.artifact_runner import FFI, TVM, build_runner, run_program

pytestmark = [pytest.mark.tvm, pytest.mark.slow]


class TwoInputs(nn.Module):
    """A conv of one input; integers and doubles of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.conv(x).relu(), y + 1, z * 2


@pytest.fixture(scope="module")
def inputs() -> list[np.ndarray]:
    source = np.random.default_rng(0)
    return [source.standard_normal((1, 3, 14, 12)).astype("float32"), np.arange(5), source.standard_normal((2, 3))]


@pytest.fixture(scope="module")
def compiled(inputs: list[np.ndarray]) -> lowering.Executable:
    return lowering.compile(TwoInputs().eval(), tuple(map(torch.from_numpy, inputs)))


@pytest.fixture(scope="module")
def library(compiled: lowering.Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "model.so"
    compiled.save(path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_runner(tmp_path_factory.mktemp("program"), "g++", TVM / "lib", FFI / "lib")


def test_the_program_computes_the_same_bits(
    program: Path, library: Path, compiled: lowering.Executable, inputs: list[np.ndarray], tmp_path: Path
) -> None:
    found = run_program([str(program)], library, inputs, compiled, tmp_path)
    for ours, expected in zip(found, compiled.run(*inputs), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_inputs_without_a_file_are_ones(
    program: Path, library: Path, compiled: lowering.Executable, inputs: list[np.ndarray], tmp_path: Path
) -> None:
    found = run_program([str(program)], library, [], compiled, tmp_path)
    for ours, expected in zip(found, compiled.run(*(np.ones_like(array) for array in inputs)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_what_does_not_fit_is_refused(program: Path, library: Path, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"1234")

    def refusal(*words: object) -> str:
        done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 4
        return done.stderr

    assert "short.bin: found 4 bytes; x takes 2016" in refusal(library, "short.bin")
    assert "cannot load the library" in refusal("absent.so")
    assert "holds no manifest" in refusal(TVM / "lib" / "libtvm_runtime.so")
    assert "absent.bin: cannot be read" in refusal(library, "absent.bin")
    assert subprocess.run([str(program)], capture_output=True, check=False).returncode == 2
