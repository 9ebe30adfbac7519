"""Rounds end where one shot does, whatever their number and schedule; one manifest is of all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

import reparam_compiler
from reparam_compiler import IterativePruner, Manifest, apply_manifest
from reparam_compiler.errors import InfeasiblePruneError, RewriteError

X = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")


def net(*widths: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for read, made in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(read, made, 3, padding=1, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 10, 1, bias=bias)).eval()


def widths_of(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)][:-1]


def in_rounds(model: nn.Module, **options: Any) -> tuple[IterativePruner, list[list[int]]]:
    pruner, widths = IterativePruner(model, (X,), **options), []
    while not pruner.finished:
        widths.append(widths_of(pruner.step()))
    return pruner, widths


@pytest.mark.parametrize("schedule", ["linear", "cubic", "geometric"])
@pytest.mark.parametrize(
    ("widths", "steps", "options"),
    [
        ((16, 32, 64), 5, {"ratio": 0.5}),
        ((24, 40, 16), 7, {"ratio": 0.3}),  # no width is half way between multiples of 8
        ((16, 16, 16), 3, {"ratio": 0.7, "round_to": 1}),
        ((32, 32), 3, {"ratio": 0.25, "allocation": {"0": 0.75}}),
        ((32, 16), 4, {"ratio": 0.75, "min_channels": 8, "max_ratio": 0.5, "round_to": 2}),
    ],
)
def test_the_last_round_has_the_widths_of_one_shot(
    widths: Sequence[int], steps: int, options: dict[str, Any], schedule: Any
) -> None:
    _, found = in_rounds(net(*widths), steps=steps, schedule=schedule, **options)
    assert found[-1] == widths_of(reparam_compiler.prune(net(*widths), (X,), **options))
    for before, after in zip([list(widths), *found], found, strict=False):
        assert all(new <= old for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("allocation", ["global", "sensitivity"])
def test_rounds_by_score_end_at_as_many_channels(allocation: Any) -> None:
    options: dict[str, Any] = {"ratio": 0.5, "allocation": allocation, "round_to": 1}
    _, found = in_rounds(net(16, 32, 24), steps=4, **options)
    assert sum(found[-1]) == sum(widths_of(reparam_compiler.prune(net(16, 32, 24), (X,), **options)))


def test_no_layer_loses_more_than_its_share_in_all_rounds() -> None:
    _, found = in_rounds(net(32, 16), steps=3, ratio=0.9, allocation="global", round_to=1, max_ratio=0.5)
    assert found[-1] == [16, 8]


def test_a_round_in_which_nothing_leaves_gives_the_model_back() -> None:
    pruner = IterativePruner(net(16), (X,), ratio=0.5, steps=4, schedule="linear")
    models = [pruner.model, *(pruner.step() for _ in range(4))]
    assert [widths_of(model) for model in models] == [[16], [16], [16], [8], [8]]
    assert models[0] is models[1] is models[2]
    assert models[3] is models[4]
    assert pruner.report is not None
    assert [(family.before, family.after) for family in pruner.report.plan.families] == [(8, 8)]


def test_rounds_in_which_nothing_can_leave_at_all_are_refused_as_one_shot_is() -> None:
    with pytest.raises(InfeasiblePruneError, match="removes no channel"):
        IterativePruner(net(8), (X,), ratio=0.2, steps=2).step()


@pytest.mark.parametrize("data", [None, DATA])
def test_one_manifest_makes_the_architecture_of_all_rounds(data: torch.Tensor | None, tmp_path: Path) -> None:
    pruner, _ = in_rounds(net(16, 24, bias=False), ratio=0.6, steps=3, round_to=1, calibration=data)
    assert pruner.report is not None
    pruner.report.manifest.save(tmp_path / "cut.json")
    made = apply_manifest(net(16, 24, bias=False), tmp_path / "cut.json", (X,))
    expected = pruner.model.state_dict()
    if data is None:  # the weights that are left are those of the model that was given
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
    made.load_state_dict(expected)
    assert torch.equal(made(DATA), pruner.model(DATA))


def test_a_model_that_was_changed_between_rounds_is_refused() -> None:
    pruner = IterativePruner(net(16, 24), (X,), ratio=0.5, steps=2, round_to=1)
    pruner.step()
    pruner.model = net(16, 24)
    with pytest.raises(RewriteError, match="0: found 16 groups of channels; expected the 12 that the last round left"):
        pruner.step()


@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
def test_a_repaired_net_is_rebuilt_from_its_manifest_and_state_dict(quality: Any, tmp_path: Path) -> None:
    model = net(16, 24, bias=False)
    options: dict[str, Any] = {"ratio": 0.5, "calibration": DATA, "quality": quality, "return_report": True}
    pruned, report = reparam_compiler.prune(model, (X,), **options)
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    report.manifest.save(tmp_path / "cut.json")
    assert set(report.manifest.added) == {"2.weight", "4.weight"}
    assert Manifest.load(tmp_path / "cut.json") == report.manifest
    made = apply_manifest(net(16, 24, bias=False), tmp_path / "cut.json", (X,))
    assert not made.get_submodule("4").bias.any()
    made.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(made(DATA), pruned(DATA))
    made.load_state_dict(apply_manifest(model.state_dict(), report.manifest))  # of the unpruned one, with zeros as biases


def test_an_exported_program_gets_the_biases_as_well() -> None:
    program = torch.export.export(net(16, bias=False), (X,))
    pruned, report = reparam_compiler.prune(program, ratio=0.5, calibration=DATA, return_report=True)
    made = apply_manifest(program, report.manifest)
    assert {name: t.shape for name, t in made.state_dict.items()} == {name: t.shape for name, t in pruned.state_dict.items()}


def test_an_onnx_model_gets_the_biases_as_well() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[n,3,4,4] x) => (float[n,10,4,4] y)
        { c = Conv(x, v) r = Relu(c) y = Conv(r, w) }"""
    model = parser.parse_model(text)
    drawn = np.random.default_rng(0)
    for name, shape in (("v", (16, 3, 1, 1)), ("w", (10, 16, 1, 1))):
        model.graph.initializer.append(numpy_helper.from_array(drawn.standard_normal(shape, np.float32), name))
    pruned, report = reparam_compiler.prune(model, ratio=0.5, calibration=DATA.numpy(), return_report=True)
    assert report.manifest.added == {"w": 10}
    made = apply_manifest(model, report.manifest)
    assert [list(t.dims) for t in made.graph.initializer] == [list(t.dims) for t in pruned.graph.initializer]
