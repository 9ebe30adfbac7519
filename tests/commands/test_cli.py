"""The commands: every kind of model in, every format out, one exit code for each class of error, JSON alone on stdout."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import reparam_compiler
from reparam_compiler.commands import demo
from reparam_compiler.commands import reparam as cli
from reparam_compiler.commands.failing import NOTHING_FUSED
from reparam_compiler.errors import (
    InvalidGraphError,
    LoweringError,
    ReparamError,
    RewriteError,
    TvmMissingError,
    VerificationError,
)
from reparam_compiler.models.io import load_model, save_model
from reparam_compiler.passes.pruning.allocation import ALLOCATIONS
from reparam_compiler.passes.pruning.criteria.importance import CRITERIA
from reparam_compiler.passes.pruning.pipeline import QUALITIES
from reparam_compiler.tvmc.failing import EXIT_CODES
from reparam_compiler.zoo.random_weights import randomise_batch_norm

pytest.importorskip("onnx")

from tests.support.onnx_models import run_on

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself
SHAPE = (2, 3, 9, 7)
SHAPES = "x:[2,3,9,7]"
FACTORY = "tests.commands.test_cli:net"
MANIFEST = ("-o", "{out}/x.pt2", "--manifest", "{out}/none/cut.json")


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx (training form, by the older exporter), net.pt2, images.npz, and a folder of batches."""
    path = tmp_path_factory.mktemp("models")
    x = torch.randn(SHAPE)
    torch.export.save(torch.export.export(net(), (x,)), path / "net.pt2")
    save_model(net(), path / "net.onnx", example_inputs=(x,))
    images = np.random.default_rng(0).standard_normal((64, *SHAPE[1:])).astype("float32")
    np.savez(path / "images.npz", x=images)
    np.save(path / "images.npy", images)
    (path / "batches").mkdir()
    for number, batch in enumerate(np.split(images, 32)):
        np.save(path / "batches" / f"{number:02}.npy", batch)
    return path


def reparam(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def python(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)


def spec(kind: str, folder: Path) -> list[object]:
    return [FACTORY, "--input-shapes", SHAPES] if kind == "factory" else [folder / f"net.{kind}"]


def run_model(path: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    model = load_model(path)
    if path.suffix == ".pt2":
        result: np.ndarray[Any, Any] = model.module()(x).detach().numpy()
        return result
    return run_on(path, x)[0]


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", "onnx"), ("pt2", "pt2"), ("pt2", "onnx"), ("factory", "pt2")])
def test_fuse_writes_a_model_that_computes_the_same(kind: str, suffix: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / f"fused.{suffix}"
    found = reparam("fuse", *spec(kind, folder), "-o", target)
    assert found.exit_code == 0, found.output
    assert "written: " in found.stdout
    x = torch.randn(SHAPE)
    expected = net()(x).detach().numpy()
    np.testing.assert_allclose(run_model(target, x), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("kind", ["onnx", "pt2", "factory"])
def test_inspect_tells_what_would_fuse_as_json(kind: str, folder: Path) -> None:
    found = reparam("inspect", *spec(kind, folder), "--json")
    report = json.loads(found.stdout)["report"]
    assert found.exit_code == 0
    assert report["before"]["convs"] == 3
    assert report["after"]["convs"] == 2
    assert len(report["fusions"]) == 1


def test_inspect_tells_people_what_stays_and_why() -> None:
    found = reparam("inspect", "tests.commands.test_cli:refused_net", "--input-shapes", "input:[1,3,5,4]")
    assert found.exit_code == 0, found.output
    assert "0 fused" in found.stdout
    assert "1 refused" in found.stdout


def refused_net() -> nn.Module:
    """A batch norm that nothing can take."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()


def dense_net() -> nn.Module:
    """A 3x3 and a dilated one: as one conv a dense 5x5, which is exact, and slower."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near = nn.Conv2d(64, 64, 3, padding=1)
            self.far = nn.Conv2d(64, 64, 3, padding=2, dilation=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.near(x) + self.far(x))

    torch.manual_seed(0)
    return Sum().eval()


DENSE = ("tests.commands.test_cli:dense_net", "--input-shapes", "x:[1,64,28,28]")


def words(found: Result) -> str:
    """What was printed, without the frames of tables."""
    return " ".join(found.stdout.replace("│", " ").split())


def test_what_would_be_slower_is_refused_with_both_costs_and_fused_on_request() -> None:
    report = json.loads(reparam("inspect", *DENSE, "--json").stdout)["report"]
    assert report["fusions"] == []
    assert any("one conv would be slower" in refusal["reason"] for refusal in report["refusals"])
    always = json.loads(reparam("inspect", *DENSE, "--policy", "always", "--json").stdout)
    assert always["options"] == {"policy": "always", "keep_bn": False, "cost_model": None}
    (fusion,) = always["report"]["fusions"]
    assert fusion["weight"] == [64, 64, 5, 5]
    assert fusion["after"]["multiply_adds"] > fusion["before"]["multiply_adds"]
    assert fusion["after"]["bytes"] < fusion["before"]["bytes"]
    low, high = fusion["weight_range"]
    assert -1 < low < 0 < high < 1


def test_people_read_costs_and_weight_ranges_of_what_is_fused_and_reasons_of_what_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    refused = words(reparam("inspect", *DENSE))
    assert "one conv would be slower: 8.028e+07 multiply-adds" in refused
    assert "instead of 5.78e+07" in refused
    fused = words(reparam("inspect", *DENSE, "--policy", "always"))
    assert "57.8 -> 80.28" in fused  # millions: twice 64 * 64 * 9 * 784, and 64 * 64 * 25 * 784
    assert "-0.0" in fused
    assert " … 0.0" in fused
    assert "FLOPs 0.058 G 0.080 G" in fused  # as the report's text has them


def test_keep_bn_leaves_the_norm_that_ends_a_block(tmp_path: Path) -> None:
    kept = tmp_path / "kept.pt2"
    found = reparam("fuse", "tests.commands.test_cli:normed_net", *NORMED, "--keep-bn", "-o", kept, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["options"]["keep_bn"] is True
    calls = [str(node.target) for node in load_model(kept).graph.nodes]
    assert sum("conv2d" in call for call in calls) == 1
    assert sum("batch_norm" in call for call in calls) == 1
    gone = reparam("fuse", "tests.commands.test_cli:normed_net", *NORMED, "-o", kept)
    assert gone.exit_code == 0, gone.output
    assert not any("batch_norm" in str(node.target) for node in load_model(kept).graph.nodes)


NORMED = ("--input-shapes", "x:[2,3,9,7]")


def normed_net() -> nn.Module:
    """Two convs, their sum, and its norm."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(self.wide(x) + self.narrow(x)))

    torch.manual_seed(0)
    return randomise_batch_norm(Normed()).eval()


@pytest.mark.parametrize("command", ["inspect", "fuse"])
def test_a_measured_cost_model_is_printed_with_what_it_decided(command: str, tmp_path: Path) -> None:
    output = ["-o", tmp_path / "x.pt2"] if command == "fuse" else []
    found = reparam(command, *DENSE, "--measure-costs", "--json", *output)
    assert found.exit_code == (NOTHING_FUSED if command == "fuse" else 0), found.output
    record = json.loads(found.stdout)
    assert set(record["options"]["cost_model"]) == {"muls_per_second", "bytes_per_second", "launch_seconds"}
    assert all(figure > 0 for figure in record["options"]["cost_model"].values())
    assert record["report"]["fusions"] == []


def test_an_unknown_policy_is_wrong_usage() -> None:
    assert reparam("inspect", *DENSE, "--policy", "never").exit_code == 2


def test_a_fused_model_is_equivalent_to_its_training_form(folder: Path, tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    assert reparam("fuse", folder / "net.onnx", "-o", fused).exit_code == 0
    found = reparam("equivalent", FACTORY, fused, "--input-shapes", SHAPES)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("equal: nothing but rounding\n")
    record = json.loads(reparam("equivalent", fused, folder / "net.pt2", "--input-shapes", SHAPES, "--json").stdout)
    assert record["equivalence"]["equal"] is True
    assert record["equivalence"]["dtype"] == "float64"
    assert (record["a"], record["b"]) == (str(fused), str(folder / "net.pt2"))


def other_net() -> nn.Module:
    """As `net`, but for the eps of one norm, which conversion scripts like to forget; and its input has another name."""

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.net.wide_bn.eps = 1e-3

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.net(image)

    return Renamed().eval()


@pytest.mark.parametrize("name", ["x", "image"])
def test_models_that_differ_end_with_7_and_say_where(name: str) -> None:
    arguments = ("equivalent", FACTORY, "tests.commands.test_cli:other_net", "--input-shapes", f"{name}:[2,3,9,7]")
    found = reparam(*arguments)
    assert found.exit_code == 7
    assert found.stdout.startswith("not equal: more than rounding\n")
    assert found.stderr == ""
    record = json.loads(reparam(*arguments, "--json").stdout)["equivalence"]
    assert record["equal"] is False
    assert record["relative"] > record["tolerance"] > record["rounding"]
    assert reparam(*arguments, "--tolerance", 0.1).exit_code == 0


@pytest.mark.parametrize("kind", ["onnx", "pt2", "factory"])
@pytest.mark.parametrize("data", ["images.npz", "images.npy", "batches"])
def test_prune_repairs_from_any_calibration_data(kind: str, data: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / ("small.onnx" if kind == "onnx" else "small.pt2")
    found = reparam("prune", "--ratio", 0.5, *spec(kind, folder), "--calibration", folder / data, "-o", target, "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["fusions"]["after"]["convs"] == 2
    assert [family["after"] for family in record["report"]["plan"]["families"]] == [8]
    assert record["report"]["plan"]["repair"]["samples"] == 56
    assert run_model(target, torch.randn(SHAPE)).shape == (2, 4, 7, 5)


def test_prune_takes_shapes_from_the_calibration_data(folder: Path) -> None:
    found = reparam("prune", "--ratio", 0.5, FACTORY, "--calibration", folder / "images.npy")
    assert found.exit_code == 0, found.output
    assert "nothing written" in found.stdout


class Scaled(nn.Module):
    """Two inputs, in an order that is not that of the alphabet; in training mode, as most factories give a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.norm, self.last = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """`N 3 H W` and `N 4 1 1` to `N 4 H-2 W-2`."""
        return self.last(torch.relu(self.norm(self.wide(x)))) * by


def test_arrays_of_a_file_are_the_inputs_of_their_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    by, x = random.standard_normal((8, 4, 1, 1)), random.standard_normal((8, 3, 9, 7))  # float64, as numpy makes them
    np.savez(tmp_path / "data.npz", by=by, label=by, x=x)
    found = reparam(*PRUNE_SCALED, "--calibration", tmp_path / "data.npz", "-o", tmp_path / "small.pt2")
    assert found.exit_code == 0, found.output
    assert load_model(tmp_path / "small.pt2").module()(torch.zeros(1, 3, 9, 7), torch.zeros(1, 4, 1, 1)).shape == (1, 4, 7, 5)
    np.savez(tmp_path / "data.npz", by=by, pixels=x)
    found = reparam(*PRUNE_SCALED, "--calibration", tmp_path / "data.npz")
    assert found.exit_code == 3
    assert "no shape for x; the inputs are x, by" in found.stderr


PRUNE_SCALED = ("prune", "--ratio", 0.5, "--round-to", 1, "tests.commands.test_cli:Scaled")


def test_pixels_are_refused_in_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.zeros((4, 3, 9, 7), np.uint8))
    found = reparam("prune", "--ratio", 0.5, FACTORY, "--input-shapes", SHAPES, "--calibration", tmp_path / "pixels.npy")
    assert found.exit_code == 3
    assert "calibration data for x is of type uint8" in error_line(found, "UnsupportedModelError")
    found = reparam("prune", "--ratio", 0.5, FACTORY, "--calibration", tmp_path / "pixels.npy")
    assert found.exit_code == 3
    error_line(found, "UnsupportedModelError")


def test_a_factory_in_training_mode_is_taken_in_evaluation_mode_with_a_line() -> None:
    spec = "tests.commands.test_cli:Scaled"
    found = reparam("inspect", spec, "--input-shapes", "x:[1,3,9,7] by:[1,4,1,1]", "--json")
    assert found.stderr.splitlines()[0] == f"reparam: {spec} came in training mode; it is taken in evaluation mode"
    assert len(json.loads(found.stdout)["report"]["fusions"]) == 1
    assert reparam("inspect", FACTORY, "--input-shapes", SHAPES).stderr == ""


def test_prune_without_calibration_says_what_that_costs(folder: Path) -> None:
    found = reparam(
        "prune", "--ratio", 0.5, folder / "net.pt2", "--round-to", 1, "--importance", "l2", "--allocation", "global"
    )
    assert found.exit_code == 0, found.output
    assert "not repaired" in " ".join(found.stdout.split())


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_cut_is_saved_and_made_again_on_another_checkpoint(kind: str, folder: Path, tmp_path: Path) -> None:
    small, cut, again = (tmp_path / name for name in (f"small.{kind}", "cut.json", f"again.{kind}"))
    model = folder / f"net.{kind}"
    found = reparam("prune", "--ratio", 0.5, model, "-o", small, "--manifest", cut)
    assert found.exit_code == 0, found.output
    found = reparam("cut", model, cut, "-o", again)
    assert found.exit_code == 0, found.output
    x = torch.randn(SHAPE)
    torch.testing.assert_close(run_model(small, x), run_model(again, x))
    found = reparam("cut", small, cut, "-o", again)
    assert found.exit_code == 8
    assert "pruned already" in found.stderr


def test_budgets_layers_and_qualities_are_options(folder: Path) -> None:
    data = ("--calibration", folder / "images.npy", "--round-to", 1, "--json")
    found = reparam("prune", "--flops", 0.6, "--quality", "high", folder / "net.pt2", *data)
    assert found.exit_code == 0, found.output
    plan = json.loads(found.stdout)["report"]["plan"]
    assert plan["budget"]["flops"] <= 0.6
    assert (plan["quality"], plan["importance"], plan["repair"]["how"]) == ("high", "obs_patches", "least_squares")
    (name,) = (family["name"] for family in plan["families"])
    found = reparam("prune", "--layer", f"{name}=0.25", folder / "net.pt2", *data)
    assert found.exit_code == 0, found.output
    assert [family["after"] for family in json.loads(found.stdout)["report"]["plan"]["families"]] == [12]


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("--importance", CRITERIA),
        ("--quality", QUALITIES),
        ("--allocation", ALLOCATIONS),
        ("--policy", ("cost", "always")),
    ],
)
def test_an_option_takes_the_words_of_the_library_s_table_and_no_other(option: str, known: Iterable[str]) -> None:
    words = ("inspect", FACTORY) if option == "--policy" else ("prune", "--ratio", 0.5, "absent.onnx")
    refused = reparam(*words, option, "nonsense")
    assert refused.exit_code == 2
    assert f"found 'nonsense'; expected one of {', '.join(known)}" in " ".join(re.sub("[│╭╮╰╯─]", " ", refused.stderr).split())
    for word in known:
        assert reparam(*words, option, word).exit_code != 2


def test_no_fuse_prunes_the_branches_together(folder: Path) -> None:
    found = reparam("prune", "--ratio", 0.5, folder / "net.pt2", "--no-fuse", "--json")
    record = json.loads(found.stdout)
    assert record["fusions"] is None
    assert record["report"]["after"]["convs"] == 3


def error_line(found: Result, kind: str) -> str:
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith(f"reparam: {kind}: ")
    assert isinstance(found.exception, SystemExit)
    return line


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

    monkeypatch.setattr(cli, "fuse", failing)
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

    def failing(program: object, path: Path) -> None:
        path.write_bytes(b"half")
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


def test_help_loads_neither_tvm_nor_onnx() -> None:
    script = "import sys, reparam_compiler.commands.reparam; print({'tvm', 'onnx', 'sklearn'} & set(sys.modules))"
    assert python("-c", script).stdout.strip() == "set()"


def test_the_modules_of_the_commands_cannot_shadow_the_functions() -> None:
    for name in ("fuse", "prune"):
        with pytest.raises(ImportError, match=f"from reparam_compiler import {name}"):
            importlib.import_module(f"reparam_compiler.{name}")
        assert getattr(reparam_compiler, name).__module__ in ("reparam_compiler.api.fusing", "reparam_compiler.api.pruning")


@pytest.mark.parametrize("name", ["fuse", "prune"])
def test_the_functions_are_functions_while_their_module_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"reparam_compiler.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert getattr(reparam_compiler, name).__module__ in ("reparam_compiler.api.fusing", "reparam_compiler.api.pruning")
    with pytest.raises(ImportError):  # but a worker process that imports the main module again may
        runpy.run_module(f"reparam_compiler.{name}", run_name="worker")
    runpy.run_module(f"reparam_compiler.{name}", run_name="__mp_main__")


def test_modules_run_as_programs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in a process of its own, the other as Python runs it there."""
    monkeypatch.setattr(sys, "argv", ["fuse", str(folder / "net.onnx"), "-o", str(tmp_path / "fused.onnx"), "--json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("reparam_compiler.fuse", run_name="__main__")
    fused = capsys.readouterr()
    assert ended.value.code == 0
    assert json.loads(fused.out)["report"]["after"]["convs"] == 2, fused.err
    small = ["--calibration", folder / "images.npz", "-o", tmp_path / "small.onnx", "--json"]
    pruned = python("-m", "reparam_compiler.prune", "--ratio", 0.5, tmp_path / "fused.onnx", *small)
    assert json.loads(pruned.stdout)["report"]["plan"]["repair"]["samples"] == 56, (
        pruned.stderr
    )  # of 64: the last eighth is held out
    assert "Traceback" not in fused.err + pruned.stderr


def test_a_refused_model_is_one_line_in_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"a pickle, for all one knows")
    found = python("-m", "reparam_compiler", "fuse", tmp_path / "net.pt", "-o", tmp_path / "fused.pt2")
    assert found.returncode == 3
    assert len(found.stderr.strip().splitlines()) == 1
    assert "--unsafe-load" in found.stderr


@pytest.mark.tvm
@pytest.mark.slow
def test_the_demo_measures_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setattr(demo, "ROUNDS", 5)
    found = reparam("prune", "--ratio", 0.3, "--json", "-o", tmp_path / "small.pt2")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    steps = record["steps"]
    assert [step["engine"] for step in steps] == ["torch"] * 4 + ["TVM"] * 2
    training, fused, unrepaired, pruned, fused_tvm, pruned_tvm = (step["accuracy"] for step in steps)
    assert training == fused == fused_tvm > 0.98
    assert pruned > 0.97
    assert pruned_tvm == pruned
    assert unrepaired < 0.9
    assert all(step["milliseconds"] > 0 for step in steps)
    assert all(step["error"] is None or step["error"] < 1e-5 for step in steps)
    assert steps[3]["parameters"] < 0.7 * steps[1]["parameters"]
    assert load_model(tmp_path / "small.pt2").module()(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


@pytest.mark.slow
def test_the_demo_goes_on_where_tvm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("reparam_compiler.lowering")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(reparam_compiler, "lowering", raising=False)
    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.setattr(demo, "ROUNDS", 3)
    monkeypatch.setattr(demo, "CALIBRATION", 32)
    digits = demo.digits_split()
    few = replace(digits, test_images=digits.test_images[:32], test_labels=digits.test_labels[:32])
    monkeypatch.setattr(demo, "digits_split", lambda: few)
    found = reparam("prune", "--ratio", 0.3, "--json")
    record = json.loads(found.stdout)
    assert len(record["steps"]) == 4
    assert "pip install" in record["left_out"][0]
    assert "not compiled" in found.stderr
