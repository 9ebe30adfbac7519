"""The commands: every kind of model in, every format out, and what people and programs read of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import Result

from reparam_compiler.commands.failing import NOTHING_FUSED
from reparam_compiler.models.io import load_model
from reparam_compiler.zoo.random_weights import randomise_batch_norm

pytest.importorskip("onnx")


from reparam_compiler.frontends.onnx import io as onnx_io
from tests.support.reparam_runs import FACTORY, SHAPE, SHAPES, net, reparam, run_model, spec

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself


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


def test_the_files_of_a_large_model_are_named_and_so_is_what_it_does_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "ONE_FILE", 0)
    target, first, second = (tmp_path / f"x.onnx{suffix}" for suffix in ("", ".data", ".1.data"))
    words = ["fuse", *spec("onnx", folder), "-o", target]
    said = reparam(*words).stdout
    assert f"written: {target}, {first}\n" in said
    assert "not read by it" not in said
    said = reparam(*words).stdout
    assert f"written: {target}, {second}\nnot read by it: {first}, of a model that it replaced; delete what no other" in said
    assert json.loads(reparam(*words, "--json").stdout)["files"] == [str(target), str(tmp_path / "x.onnx.2.data")]


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
