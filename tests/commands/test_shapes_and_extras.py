"""Shapes as people type them, and packages that are missing: both are found before any work."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from reparam_compiler.commands import reparam as cli
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models.io import named_shapes

pytest.importorskip("onnx")

import onnx

from tests.support.tvmc_runs import tvmc, write_onnx

HERE = "tests.commands.test_shapes_and_extras"


class Net(nn.Module):
    """A conv and its norm; a second input that need not be given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.eval()

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`N 3 H W` to `N 8 H-2 W-2`."""
        y = self.norm(self.conv(x))
        return y if bias is None else y + bias


class Two(nn.Module):
    """Two inputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Any shape, twice."""
        return x + y


class Several(nn.Module):
    """As many inputs as one likes."""

    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return sum(xs, torch.zeros(()))


def reparam(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_a_shape_without_a_name_is_that_of_the_only_input(tmp_path: Path) -> None:
    sizes = {"": (1, 3, 8, 7)}
    program = torch.export.export(nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 8, 7),))
    proto = onnx.load(write_onnx(tmp_path / "m.onnx", 1, "data:0"))
    for model, name in (
        (Net(), "x"),
        (torch.fx.symbolic_trace(Two()), None),
        (program, "input"),
        (proto, "data:0"),
        (Several(), "xs"),
    ):
        if name is None:
            with pytest.raises(
                UnsupportedModelError, match=r"found one shape without a name; the model has 2 inputs: x:\[…\] y:\["
            ):
                named_shapes(model, sizes)
        else:
            assert named_shapes(model, sizes) == {name: sizes[""]}
    assert named_shapes(Two(), {"y": (1,)}) == {"y": (1,)}


def test_every_command_takes_a_shape_without_a_name(tmp_path: Path) -> None:
    assert reparam("inspect", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]").exit_code == 0
    found = reparam("fuse", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]", "-o", tmp_path / "x.pt2")
    assert found.exit_code == 0, found.output
    assert reparam("equivalent", f"{HERE}:Net", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]").exit_code == 0
    refused = reparam("equivalent", f"{HERE}:Two", f"{HERE}:Two", "--input-shapes", "[1,3]")
    assert refused.exit_code == 3
    assert "the model has 2 inputs: x:[…] y:[…]" in refused.stderr


@pytest.mark.tvm
@pytest.mark.usefixtures("one_process")
def test_compile_takes_a_shape_without_a_name(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    done = tvmc(
        "compile", write_onnx(tmp_path / "m.onnx", "N", "data"), "--input-shapes", "[2,3,8,7]", "-o", tmp_path / "m.tar"
    )
    assert done.exit_code == 0, done.output
    assert "in data 2 3 8 7 float32" in " ".join(done.stdout.split())


def test_an_open_size_is_refused_by_its_name() -> None:
    found = reparam("inspect", f"{HERE}:Net", "--input-shapes", "[N,3,8,7]")
    assert found.exit_code == 3
    assert found.stderr.strip().endswith(
        "every size at least 1: the model is run on inputs of these shapes, so give a number for N"
    )


@pytest.mark.parametrize(
    ("missing", "words", "said"),
    [
        ("onnx_graphsurgeon", ["inspect", "{folder}/m.onnx"], "m.onnx: reading ONNX needs onnx_graphsurgeon"),
        (
            "onnxscript",
            ["fuse", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]", "-o", "{folder}/x.onnx"],
            "as ONNX needs onnxscript",
        ),
        (
            "onnxruntime",
            ["prune", f"{HERE}:Net", "--latency", "0.5", "--input-shapes", "[1,3,8,7]"],
            "--latency needs onnxruntime",
        ),
    ],
)
def test_a_missing_package_is_said_before_the_work(
    missing: str, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def working(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    write_onnx(tmp_path / "m.onnx", 1)
    monkeypatch.setitem(sys.modules, missing, None)
    for verb in ("fuse", "inspect", "prune"):
        monkeypatch.setattr(cli, verb, working)
    found = reparam(*(word.format(folder=tmp_path) for word in words))
    assert found.exit_code == 3
    (line,) = found.stderr.splitlines()
    assert said in line
    assert line.endswith(", not installed here: pip install 'reparam_compiler[onnx]'")
