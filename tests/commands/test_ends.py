"""How commands end: nothing unfused under the name of a fused model, one line for what a caller's code raises, JSON always."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import Result

from reparam_compiler.api import fusing
from reparam_compiler.commands.failing import NOTHING_FUSED
from tests.support.reparam_runs import reparam

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself
HERE = "tests.commands.test_ends"
SHAPES = ("--input-shapes", "x:[1,3,6,5]")
VERBS: tuple[tuple[str, ...], ...] = (("fuse", "-o", "{out}/x.pt2"), ("inspect",), ("prune", "--ratio", "0.5"))


class Net(nn.Module):
    """Two branches and the norm of their sum; in training mode, as a class is when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W` to `N 4 H W`."""
        return self.last(torch.relu(self.norm(self.wide(x) + self.narrow(x))))


class Reshaped(Net):
    """Takes no other size than `N 3 4 4`: what it does with one fails in code that was traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 4 4` to `N 16 4`."""
        return super().forward(x).view(-1, 16, 4)


class Norm(nn.Module):
    """A norm that nothing can take."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W`."""
        return torch.relu(self.norm(x))


class Plain(nn.Module):
    """Nothing that could be fused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return torch.relu(x)


def raising() -> nn.Module:
    """A factory that looks for weights where there are none."""
    raise KeyError("weights")


def needs_a_width(width: int) -> nn.Module:
    """A factory that cannot be called as it stands."""
    return nn.Conv2d(3, width, 1)


def run(verb: tuple[str, ...], out: Path, *arguments: object) -> Result:
    return reparam(*(word.format(out=out) for word in verb), *arguments)


@pytest.mark.parametrize(("name", "why"), [("Norm", "for the reasons that are listed"), ("Plain", "no branches or norms")])
def test_where_nothing_fuses_nothing_is_written_and_the_exit_code_says_so(name: str, why: str, tmp_path: Path) -> None:
    target = tmp_path / "x.pt2"
    found = reparam("fuse", f"{HERE}:{name}", *SHAPES, "-o", target, "--json")
    assert found.exit_code == NOTHING_FUSED == 9
    record = json.loads(found.stdout)
    assert (record["output"], record["error"]) == (None, "NothingFused")
    assert why in record["message"]
    assert found.stderr.splitlines()[-1] == f"reparam: {record['message']}"
    assert not target.exists()


def test_a_factory_in_training_mode_is_fused_and_written(tmp_path: Path) -> None:
    found = reparam("fuse", f"{HERE}:Net", *SHAPES, "-o", tmp_path / "x.pt2")
    assert found.exit_code == 0
    assert found.stderr == f"reparam: {HERE}:Net came in training mode; it is taken in evaluation mode\n"
    assert (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: str(verb[0]))
@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ("x:[1,5,4,4]", "does not run on inputs of shapes [(1, 5, 4, 4)]: Given groups=1, weight of size"),
        ("x:[3,4]", "does not run on inputs of shapes [(3, 4)]: Expected 3D"),
        ("x:[1,3,6,5]", "does not run on inputs of shapes [(1, 3, 6, 5)]: shape '[-1, 16, 4]' is invalid"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_one_line(
    verb: tuple[str, ...], shapes: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = run(verb, tmp_path, f"{HERE}:Reshaped", "--input-shapes", shapes)
    assert found.exit_code == 3
    mode, line = found.stderr.splitlines()
    assert mode.endswith("it is taken in evaluation mode")
    assert said in line
    assert capfd.readouterr().err == ""  # torch.fx prints a page of what it traced


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (f"{HERE}:raising", "calling raising() raised KeyError: 'weights' ("),
        (f"{HERE}:needs_a_width", "calling needs_a_width() raised TypeError: needs_a_width() missing 1 required"),
        ("broken:net", "importing broken raised ZeroDivisionError: division by zero ("),
        ("needs:net", "there is no module no_such_package; install it"),
    ],
)
def test_what_a_factory_raises_is_one_line_and_its_place(
    spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("net = 1 / 0\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = reparam("inspect", spec, "--json")
    assert found.exit_code == 3
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"reparam: UnsupportedModelError: {spec}: {said}")
    assert json.loads(found.stdout)["message"] in line
    assert "Traceback" in reparam("inspect", spec, "-v").stderr


def test_what_was_not_foreseen_is_one_line_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range\nand more")

    monkeypatch.setattr(fusing, "inspect", failing)
    found = reparam("inspect", f"{HERE}:Net", "--json", "-q")
    assert found.exit_code == 1
    record = json.loads(found.stdout)
    assert record["error"] == "IndexError"
    assert record["message"].startswith("list index out of range, raised at ")
    assert "please report it, with what -v prints" in record["message"]
    assert found.stderr == f"reparam: IndexError: {record['message']}\n"


@pytest.mark.parametrize(
    "arguments", [["fuse", "net.onnx"], ["inspect", "net.onnx", "--policy", "never"], ["prune", "net.onnx"], ["cut", "a.onnx"]]
)
def test_wrong_usage_is_json_too(arguments: list[str]) -> None:
    found = reparam(*arguments, "--json")
    assert found.exit_code == 2
    assert json.loads(found.stdout)["error"] == "UsageError"
    assert reparam(*arguments).stdout == ""


def test_quiet_prints_nothing_but_what_json_asks_for() -> None:
    found = reparam("inspect", f"{HERE}:Net", "-q")
    assert (found.exit_code, found.output) == (0, "")
    found = reparam("inspect", f"{HERE}:Net", "-q", "--json")
    assert len(json.loads(found.stdout)["report"]["fusions"]) == 1
    assert found.stderr == ""


def test_verbose_says_what_each_pass_did() -> None:
    assert "reparam: fuse_branches: 1 rewritten" in reparam("inspect", f"{HERE}:Net", "-v").stderr


def test_the_versions_are_printed() -> None:
    found = reparam("--version")
    assert found.exit_code == 0
    assert found.stdout.startswith("reparam_compiler ")
    assert f"torch {torch.__version__.partition('+')[0]}" in found.stdout
