"""What the commands refuse: one line, one exit code for each class of error, files that are whole or absent; and help."""

import io
import json
from pathlib import Path

import pytest
import torch

from reparam_compiler.api import fusing
from reparam_compiler.commands.failing import NOTHING_FUSED
from reparam_compiler.errors import (
    InvalidGraphError,
    LoweringError,
    ReparamError,
    RewriteError,
    TvmMissingError,
    VerificationError,
)
from reparam_compiler.tvmc.failing import EXIT_CODES

pytest.importorskip("onnx")

from tests.support.loaded_packages import loaded
from tests.support.reparam_runs import FACTORY, SHAPES, error_line, reparam

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself
MANIFEST = ("-o", "{out}/x.pt2", "--manifest", "{out}/none/cut.json")


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "message"),
    [
        (["fuse", "nowhere.onnx", "-o", "x.onnx"], 3, "UnsupportedModelError", "no such file"),
        (["fuse", "{folder}/net.onnx", "-o", "{out}/x.pt2"], 3, "UnsupportedModelError", "cannot become a .pt2"),
        (["fuse", "{folder}/net.pt2", "-o", "{out}/x.txt"], 3, "UnsupportedModelError", "suffix"),
        (["fuse", FACTORY, "-o", "{out}/x.pt2"], 3, "UnsupportedModelError", "--input-shapes"),
        (["fuse", "{folder}/net.pt2", "-o", "{out}/none/x.pt2"], 1, "FileNotFoundError", "does not exist"),
        (["prune", "--ratio", "0.5", "-o", "{out}/none/x.pt2"], 1, "FileNotFoundError", "does not exist"),
        (["prune", "--ratio", "0.5", "{folder}/net.pt2", *MANIFEST], 1, "FileNotFoundError", "none/cut.json: the folder"),
        (["prune", "--ratio", "0.5", "{folder}/net.pt2", "--manifest", "{out}"], 1, "IsADirectoryError", "the name of a file"),
        (["inspect", FACTORY, "--input-shapes", "x=3"], 3, "UnsupportedModelError", "x:[1,3,224,224]"),
        (["inspect", FACTORY, "--input-shapes", "y:[3]"], 3, "UnsupportedModelError", "the inputs are x"),
        (["equivalent", FACTORY, "no.onnx", "--input-shapes", SHAPES], 3, "UnsupportedModelError", "no such file"),
        (["equivalent", FACTORY, FACTORY, "--input-shapes", "y:[3]"], 3, "UnsupportedModelError", "the inputs are x"),
        (["equivalent", FACTORY, FACTORY, "--input-shapes", "x:[1,5,4,4]"], 3, "UnsupportedModelError", "does not run"),
        (["prune", "--ratio", "0.5", FACTORY], 3, "UnsupportedModelError", "--input-shapes"),
        (["prune", "--ratio", "1.5", "{folder}/net.pt2"], 8, "InfeasiblePruneError", "1.5"),
        (["prune", "--ratio", "0.5", "{folder}/net.pt2", "--calibration", "{out}"], 3, "UnsupportedModelError", "no .npy"),
        (["prune", "--ratio", "0.5", "{folder}/net.pt2", "--calibration", "no.npz"], 3, "UnsupportedModelError", "no.npz"),
        (["prune", "--ratio", "0.5", "{folder}/net.pt2", "--ignore", "nothing*"], 8, "InfeasiblePruneError", "nothing*"),
    ],
)
def test_an_error_is_one_line_and_the_code_of_its_class(
    arguments: list[str], code: int, kind: str, message: str, folder: Path, tmp_path: Path
) -> None:
    found = reparam(*(argument.format(folder=folder, out=tmp_path) for argument in arguments))
    assert found.exit_code == code, found.output
    assert message in error_line(found, kind)
    assert found.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RewriteError("r"), 6),
        (InvalidGraphError("g"), 6),
        (VerificationError("n", 1.0, 1e-6), 7),
        (LoweringError("l"), 4),
        (TvmMissingError("t"), 5),
        (ReparamError("e"), 1),
    ],
)
def test_every_class_of_error_has_its_code(
    error: ReparamError, code: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(fusing, "fuse", failing)
    found = reparam("fuse", folder / "net.pt2", "-o", tmp_path / "x.pt2", "--json")
    assert found.exit_code == code
    assert json.loads(found.stdout) == {"error": type(error).__name__, "message": str(error)}
    error_line(found, type(error).__name__)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["fuse", "net.onnx"],
        ["equivalent", "a.onnx", "b.onnx"],
        ["prune"],
        ["prune", "net.onnx"],
        ["prune", "--layer", "half", "net.onnx"],
        ["prune", "--ratio", "0.3", "--mean", "grey", "net.onnx"],
        ["prune", "--ratio", "x"],
        ["prune", "--ratio", "0.3", "--no-fuse"],
        ["prune", "--ratio", "0.3", "--mean", "0.5"],
        ["prune", "--ratio", "0.3", "--std", "0.5"],
        ["prune", "--ratio", "0.3", "--unsafe-load"],
        ["nothing"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert reparam(*arguments).exit_code == 2


def test_a_write_that_fails_leaves_the_older_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "fused.pt2"
    target.write_bytes(b"older")

    def failing(program: object, file: io.FileIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", failing)
    found = reparam("fuse", folder / "net.pt2", "-o", target)
    assert found.exit_code == 1
    assert "disk full" in error_line(found, "OSError")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


@pytest.mark.parametrize("command", ["fuse", "prune", "inspect", "compile", "run", "tune"])
def test_help_teaches_by_example(command: str) -> None:
    found = reparam(command, "--help")
    assert found.exit_code == 0
    assert "Example" in found.stdout


def test_help_states_the_exit_codes() -> None:
    found = " ".join(reparam("--help").stdout.split())
    assert "Exit codes" in found
    assert all(f"{code} " in found for code in (NOTHING_FUSED, *dict(EXIT_CODES).values()))


def test_help_of_any_command_loads_nothing_heavy() -> None:
    assert not loaded("help") & {"torch", "numpy", "tvm", "onnx", "networkx", "sklearn"}
