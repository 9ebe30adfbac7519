"""How `tvmc` ends: a factory in training mode, what was verified, JSON for every error, how much is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from tests.support.tvmc_runs import tvmc

pytestmark = pytest.mark.tvm
SPEC = f"{__name__}:Net"
SHAPES = ("--input-shapes", "x:[1,3,6,5]")


class Net(nn.Module):
    """A conv and its norm; in training mode, as a class is when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W` to `N 8 H-2 W-2`."""
        return torch.relu(self.norm(self.conv(x)))


@pytest.mark.usefixtures("one_process")
def test_a_factory_in_training_mode_is_compiled_in_evaluation_mode_and_verified(tmp_path: Path) -> None:
    done = tvmc("compile", SPEC, *SHAPES, "-o", tmp_path / "m.tar", "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"tvmc: {SPEC} came in training mode; it is taken in evaluation mode\n"
    record = json.loads(done.stdout)
    assert record["verified"] is True
    assert record["verification"].startswith("one run gives what the model gives in torch, float32")
    assert len([kernel for kernel in record["kernels"] if kernel["flops"]]) == 1
    plain = tvmc("compile", SPEC, *SHAPES, "-o", tmp_path / "m.tar", "--no-verify", "-q")
    assert plain.stdout.endswith("not verified: it was not asked for\n")
    assert plain.stderr == ""


def test_what_was_not_foreseen_is_one_line_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("reparam_compiler.tvmc.model.compile", failing)
    done = tvmc("compile", SPEC, *SHAPES, "--json", "-q")
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    assert record["error"] == "IndexError"
    assert done.stderr == f"tvmc: IndexError: {record['message']}\n"
    assert "Traceback" in tvmc("compile", SPEC, *SHAPES, "-v").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compile"], "the following arguments are required: MODEL"),
        (["tune", "m.onnx", "-o", "records", "--tuner", "ga", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["compile", "m.onnx", "--mixed-precision"], "is not accepted: the arithmetic is that of the model"),
    ],
)
def test_wrong_usage_is_json_too(words: list[str], said: str) -> None:
    done = tvmc(*words, "--json")
    assert done.exit_code == 2
    record = json.loads(done.stdout)
    assert record["error"] == "UsageError"
    assert said in record["message"]
    assert said in done.stderr
    assert tvmc(*words).stdout == ""
