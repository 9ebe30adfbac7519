"""`reparam prune` and `cut`: calibration data in every form, what is kept on record, and the words of its options."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reparam_compiler.models.io import load_model
from reparam_compiler.passes.choices import ALLOCATIONS
from reparam_compiler.passes.pruning.criteria.importance import CRITERIA
from reparam_compiler.passes.pruning.pipeline import QUALITIES

pytest.importorskip("onnx")


from tests.support.reparam_runs import FACTORY, SHAPE, SHAPES, error_line, reparam, run_model, spec

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch warns of itself


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


PRUNE_SCALED = ("prune", "--ratio", 0.5, "--round-to", 1, "tests.commands.test_cli_prune:Scaled")


def test_pixels_are_refused_in_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.zeros((4, 3, 9, 7), np.uint8))
    found = reparam("prune", "--ratio", 0.5, FACTORY, "--input-shapes", SHAPES, "--calibration", tmp_path / "pixels.npy")
    assert found.exit_code == 3
    assert "calibration data for x is of type uint8" in error_line(found, "UnsupportedModelError")
    found = reparam("prune", "--ratio", 0.5, FACTORY, "--calibration", tmp_path / "pixels.npy")
    assert found.exit_code == 3
    error_line(found, "UnsupportedModelError")


def test_a_factory_in_training_mode_is_taken_in_evaluation_mode_with_a_line() -> None:
    spec = "tests.commands.test_cli_prune:Scaled"
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
