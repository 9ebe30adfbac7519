"""The `reparam` command on a net of two branches: run in this process, and what it said."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from typer.testing import CliRunner, Result

from reparam_compiler.commands import reparam as cli
from reparam_compiler.models.io import load_model
from reparam_compiler.zoo.random_weights import randomise_batch_norm

SHAPE = (2, 3, 9, 7)
SHAPES = "x:[2,3,9,7]"
FACTORY = "tests.support.reparam_runs:net"


class Net(nn.Module):
    """Two branches and their batch norms, then a layer that can spare channels, and one that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(3, 16, 1, bias=False)
        self.wide_bn, self.narrow_bn = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W` to `N 4 H-2 W-2`."""
        branches = self.wide_bn(self.wide(x)) + self.narrow_bn(self.narrow(x))
        return self.last(torch.relu(branches))


def net() -> nn.Module:
    """What the factory spec names; the working folder is on the path of a test run."""
    torch.manual_seed(0)
    return randomise_batch_norm(Net()).eval()


def reparam(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def spec(kind: str, folder: Path) -> list[object]:
    return [FACTORY, "--input-shapes", SHAPES] if kind == "factory" else [folder / f"net.{kind}"]


def run_model(path: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    model = load_model(path)
    if path.suffix == ".pt2":
        result: np.ndarray[Any, Any] = model.module()(x).detach().numpy()
        return result
    from tests.support.onnx_models import run_on  # onnx may not be installed

    return run_on(path, x)[0]


def error_line(found: Result, kind: str) -> str:
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith(f"reparam: {kind}: ")
    assert isinstance(found.exception, SystemExit)
    return line
