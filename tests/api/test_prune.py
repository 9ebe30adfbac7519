"""The public pruner: ratios, budgets, rounds and manifests, on models of every kind."""

import json
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler import IterativePruner, Manifest, apply_manifest
from reparam_compiler.errors import HarmfulRepairWarning, InfeasiblePruneError, UnrepairedPruneWarning, UnsupportedModelError
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support.small_models import relative_error

X = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
CALIBRATION = torch.randn(24, 3, 16, 12, generator=torch.Generator().manual_seed(1))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            randomise_batch_norm(module)
    return model.eval()


def native(kind: str, tmp_path: Path) -> Any:
    if kind == "module":
        return net()
    if kind == "fx":
        return torch.fx.symbolic_trace(net())
    if kind == "export":
        return torch.export.export(net(), (X,))
    (tmp_path / "net.onnx").write_bytes(onnx_net())
    return str(tmp_path / "net.onnx")


@cache
def onnx_net() -> bytes:
    """The net as an ONNX file, exported once."""
    program = torch.onnx.export(net(), (X,), dynamo=True, verbose=False)
    return program.model_proto.SerializeToString()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["module", "fx", "export", "onnx"])
@pytest.mark.parametrize("limit", ["flops", "params"])
def test_a_budget_is_met_and_hardly_more(kind: str, limit: str, tmp_path: Path) -> None:
    model = native(kind, tmp_path)
    inputs = (X,) if kind in ("module", "fx") else None
    _, report = reparam_compiler.prune(model, inputs, calibration=CALIBRATION, round_to=1, return_report=True, **{limit: 0.5})
    share = report.plan.budget[limit]
    assert 0.42 < share <= 0.5
    assert report.plan.ratio is None
    assert f"{share:.1%} of the {limit} remain" in report.to_text()
    if limit == "params":
        assert report.after.params / report.before.params == pytest.approx(share)


@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
def test_every_frontend_keeps_the_same_channels(quality: Any, tmp_path: Path) -> None:
    kept = []
    for kind in ("module", "fx", "export", "onnx"):
        inputs = (X,) if kind in ("module", "fx") else None
        options: dict[str, Any] = {"ratio": 0.4, "quality": quality, "calibration": CALIBRATION, "return_report": True}
        _, report = reparam_compiler.prune(native(kind, tmp_path), inputs, **options)
        families = report.manifest.families.values()
        kept.append([sorted(tuple(indices) for indices in family.layers.values()) for family in families])
    assert all(family.after < family.before for family in families)
    assert kept[1:] == [kept[0]] * 3


class Rounded(nn.Module):
    """Activations in half precision, and back: an exported program checks their dtypes. A number among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.last(torch.relu(self.first(x)).half().float()), x.shape[2] // 2


@pytest.mark.parametrize("kind", ["fx", "export", "decomposed"])
@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
def test_calibration_goes_through_checks_of_dtypes_and_numbers(kind: str, quality: Any) -> None:
    model: Any = torch.fx.symbolic_trace(Rounded().eval()) if kind == "fx" else torch.export.export(Rounded().eval(), (X,))
    model = model.run_decompositions() if kind == "decomposed" else model
    assert kind == "fx" or any("assert" in node.name for node in model.graph.nodes)
    options: dict[str, Any] = {
        "ratio": 0.5,
        "round_to": 1,
        "quality": quality,
        "calibration": CALIBRATION,
        "return_report": True,
    }
    pruned, report = reparam_compiler.prune(model, (X,) if kind == "fx" else None, **options)
    assert [family.after for family in report.manifest.families.values()] == [4]
    assert (pruned if kind == "fx" else pruned.module())(X)[1] == 8


def test_a_budget_of_latency_is_measured_by_what_it_is_given() -> None:
    widths: list[int] = []

    def measure(model: nn.Module) -> float:
        widths.append(model.get_submodule("0").out_channels)
        return float(widths[-1])

    _, report = reparam_compiler.prune(net(), (X,), latency=0.5, measure=measure, calibration=CALIBRATION, return_report=True)
    assert report.plan.budget["latency"] <= 0.5
    assert len(widths) <= 8
    assert min(widths) <= 16


def test_a_budget_of_latency_is_measured_in_onnx_runtime() -> None:
    model = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1)).eval()
    x = torch.randn(1, 3, 32, 32)
    _, report = reparam_compiler.prune(model, (x,), latency=0.8, calibration=torch.randn(8, 3, 32, 32), return_report=True)
    assert report.plan.budget["latency"] <= 0.8
    assert report.after.params < report.before.params


def test_layers_have_ratios_of_their_own() -> None:
    pruned, report = reparam_compiler.prune(
        net(), (X,), allocation={"0": 0.5, "3": 0.25}, calibration=CALIBRATION, return_report=True
    )
    assert pruned.get_submodule("0").out_channels == 16
    assert pruned.get_submodule("3").out_channels == 36 or pruned.get_submodule("3").out_channels == 40
    assert report.plan.allocation == "by layer"


@pytest.mark.parametrize("how", [{"ratio": 0.9}, {"params": 0.12}, {"ratio": 0.9, "allocation": "global"}])
def test_every_layer_keeps_what_it_is_to_keep(how: dict[str, Any]) -> None:
    options: dict[str, Any] = {"calibration": CALIBRATION, "round_to": 1, "return_report": True} | how
    _, report = reparam_compiler.prune(net(), (X,), min_channels=12, max_ratio=0.75, **options)
    assert {family.before: family.after for family in report.plan.families} == {32: 12, 48: 12}


def test_layers_of_a_class_keep_their_width() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.Linear(16 * 192, 24), nn.ReLU(), nn.Linear(24, 8)).eval()
    with pytest.warns(UnrepairedPruneWarning):
        _, report = reparam_compiler.prune(model, (X,), ratio=0.5, ignore=[nn.Conv2d], return_report=True)
    assert [(family.name, family.after < 24) for family in report.plan.families] == [("2", True)]
    assert report.plan.pinned[0].reason == "ignore asks for it (0)"
    with pytest.raises(InfeasiblePruneError, match="the class ReLU, of which is none of the model's modules with weights"):
        reparam_compiler.prune(model, (X,), ratio=0.5, ignore=nn.ReLU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says how much"),
        ({"ratio": 0.3, "min_channels": 0}, "min_channels=0"),
        ({"ratio": 0.3, "min_channels": 2.5}, "min_channels=2.5"),
        ({"ratio": 0.3, "max_ratio": 0}, "max_ratio=0"),
        ({"ratio": 0.3, "max_ratio": 1.5}, "max_ratio=1.5"),
        ({"ratio": 0.3, "flops": 0.5}, "give one of them"),
        ({"flops": 1.5}, "above 0 and at most 1"),
        ({"ratio": 0.3, "quality": "best"}, "fast, standard, high"),
        ({"ratio": 0.3, "importance": "obs"}, "calibration"),
        ({"ratio": 0.3, "importance": "beauty"}, "choose one of"),
        ({"params": 0.001}, "least"),
        ({"ratio": 0.5, "loss": torch.sum}, "loss: importance 'l1' takes none"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=message):
        reparam_compiler.prune(net(), (X,), **options)


def test_without_data_a_warning_says_what_that_costs() -> None:
    with pytest.warns(UnrepairedPruneWarning, match="no calibration data"):
        _, report = reparam_compiler.prune(net(), (X,), ratio=0.5, return_report=True)
    assert report.plan.importance == "l1"


@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
def test_with_data_there_is_no_warning(quality: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = reparam_compiler.prune(
            net(),
            (X,),
            ratio=0.5,
            quality=quality,
            calibration=CALIBRATION,
            return_report=True,  # type: ignore[call-overload]
        )
    assert report.plan.quality == quality


def frozen_norm() -> nn.Sequential:
    """In training mode, but for a norm whose statistics are to stay."""
    model = net().train()
    model[1].eval()
    return model


def test_a_round_leaves_each_module_in_the_mode_that_the_caller_set() -> None:
    model = frozen_norm()
    modes = [module.training for module in model.modules()]
    pruner = IterativePruner(model, (X,), ratio=0.5, steps=2, calibration=CALIBRATION, round_to=1)
    for _ in range(2):
        pruned = pruner.step()
        assert [name for name, module in pruned.named_modules() if not module.training] == ["1"]
    assert [module.training for module in model.modules()] == modes
    broken = IterativePruner(model, (X,), ratio=0.5, steps=2, calibration=CALIBRATION[:, :, :3], round_to=1)
    with pytest.raises(UnsupportedModelError):
        broken.step()
    assert [module.training for module in model.modules()] == modes


def test_rounds_share_the_batches_of_a_generator() -> None:
    pruner = IterativePruner(net(), (X,), ratio=0.5, steps=2, calibration=iter(CALIBRATION.split(12)), round_to=1)
    assert [pruner.step().get_submodule("3").out_channels for _ in range(2)] == [36, 24]
    assert pruner.report is not None
    assert pruner.report.plan.repair is not None
    assert pruner.report.plan.repair.samples == 22
    assert pruner.report.plan.gain is not None
    assert pruner.report.plan.gain.samples == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"foo": 1}, TypeError, "unexpected keyword argument 'foo'"),
        ({"inplace": True}, TypeError, "unexpected keyword argument 'inplace'"),
        ({"return_report": True}, TypeError, "unexpected keyword argument 'return_report'"),
        ({"flops": 0.5}, TypeError, "'flops'; it takes a ratio"),
        ({"measure": len}, TypeError, "'measure'; it takes a ratio"),
        ({"importance": "beauty"}, InfeasiblePruneError, "importance 'beauty' is not known"),
        ({"quality": "best"}, InfeasiblePruneError, "fast, standard, high"),
        ({"mean": 0.5}, InfeasiblePruneError, "mean=0.5 says what is done with calibration data"),
        ({"steps": 1.5}, InfeasiblePruneError, "steps=1.5"),
        ({"ratio": "0.5"}, InfeasiblePruneError, "ratio='0.5'"),
    ],
)
def test_options_of_rounds_are_checked_before_the_first_one(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        IterativePruner(net(), (X,), **({"ratio": 0.5, "steps": 2} | options))


@pytest.mark.parametrize("kind", ["module", "fx", "export", "onnx"])
def test_a_manifest_cuts_another_checkpoint_alike(kind: str, tmp_path: Path) -> None:
    model = native(kind, tmp_path)
    inputs = (X,) if kind in ("module", "fx") else None
    with pytest.warns(UnrepairedPruneWarning):
        pruned, report = reparam_compiler.prune(model, inputs, ratio=0.5, return_report=True)
    report.manifest.save(tmp_path / "cut.json")
    again = apply_manifest(model, tmp_path / "cut.json", inputs)
    if kind == "onnx":
        assert again.SerializeToString() == pruned.SerializeToString()
        return
    run = pruned.module() if kind == "export" else pruned
    run_again = again.module() if kind == "export" else again
    with torch.no_grad():
        assert torch.equal(run(X), run_again(X))
    assert Manifest.load(tmp_path / "cut.json") == report.manifest


def test_a_state_dict_is_cut_for_the_pruned_model() -> None:
    with pytest.warns(UnrepairedPruneWarning):
        pruned, report = reparam_compiler.prune(net(), (X,), ratio=0.5, return_report=True)
    pruned.load_state_dict(apply_manifest(net(1).state_dict(), report.manifest), strict=True)
    with pytest.warns(UnrepairedPruneWarning):
        reparam_compiler.prune(net(1), (X,), ratio=0.5)
    other = apply_manifest(net(1), report.manifest, (X,))
    with torch.no_grad():
        assert torch.equal(pruned(X), other(X))


def test_rounds_end_at_the_ratio_and_leave_a_model_that_trains() -> None:
    pruner = IterativePruner(net().train(), (X,), ratio=0.5, steps=2, calibration=CALIBRATION, round_to=1)
    widths = []
    while not pruner.finished:
        model = pruner.step()
        assert model.training
        widths.append(model.get_submodule("3").out_channels)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model(X).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert widths == [36, 24]
    assert pruner.report is not None
    with pytest.raises(InfeasiblePruneError, match="last round"):
        pruner.step()


def test_a_round_that_fails_can_be_made_again() -> None:
    pruner = IterativePruner(net().train(), (X,), ratio=0.5, steps=2, calibration=CALIBRATION[:, :, :3], round_to=1)
    with pytest.raises(UnsupportedModelError, match="expected"):
        pruner.step()
    assert pruner.model.training
    pruner._options = replace(pruner._options, calibration=CALIBRATION)
    widths = [pruner.step().get_submodule("3").out_channels for _ in range(2)]
    assert widths == [36, 24]


def test_what_repair_adds_to_a_frozen_model_is_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3, bias=False)).eval().requires_grad_(False)
    pruned = reparam_compiler.prune(model, (X,), ratio=0.5, calibration=CALIBRATION)
    assert pruned.get_submodule("2").bias is not None
    assert not any(parameter.requires_grad for parameter in pruned.parameters())


def test_the_caller_s_model_is_not_touched() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reparam_compiler.prune(model, (X,), ratio=0.5, calibration=CALIBRATION, quality="high")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


def test_the_report_says_what_repair_gained_on_samples_that_were_held_out() -> None:
    model = net()
    pruned, report = reparam_compiler.prune(model, (X,), ratio=0.5, calibration=CALIBRATION, return_report=True)
    gain = report.plan.gain
    assert gain is not None
    held_out = CALIBRATION[21:]
    assert gain.samples == 3
    with torch.no_grad():
        expected = model(held_out)
        off = float((pruned(held_out) - expected).norm() / expected.norm())
    assert gain.after == pytest.approx(off, rel=1e-3)
    assert gain.after < gain.before
    assert (
        f"on 3 held-out samples the outputs are off by {gain.before:.1%} before repair, by {off:.1%} after" in report.to_text()
    )
    assert json.loads(report.to_json())["plan"]["gain"]["samples"] == 3


def test_a_repair_that_does_harm_is_left_out() -> None:
    model = net()
    held_out = torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(2))
    fitted = torch.linspace(0, 1e-3, 12).expand(21, 3, 16, 12)  # nothing of which is like what is held out
    with pytest.warns(HarmfulRepairWarning, match="on 3 held-out samples .* and it was left out"):
        pruned, report = reparam_compiler.prune(
            model, (X,), ratio=0.5, calibration=torch.cat([fitted, held_out]), importance="l1", return_report=True
        )
    gain = report.plan.gain
    assert gain is not None
    assert gain.is_worse
    assert report.plan.repair is None
    assert f"not repaired: on 3 held-out samples the outputs are off by {gain.before:.1%}, with repair by" in report.to_text()
    with pytest.warns(UnrepairedPruneWarning):
        unrepaired = reparam_compiler.prune(model, (X,), ratio=0.5, importance="l1")
    assert all(torch.equal(tensor, pruned.state_dict()[name]) for name, tensor in unrepaired.state_dict().items())


def test_repair_brings_the_model_nearer() -> None:
    model = net()
    with pytest.warns(UnrepairedPruneWarning):
        cut = reparam_compiler.prune(model, (X,), ratio=0.5)
    x = torch.randn(16, 3, 16, 12)

    def error(other: nn.Module) -> float:
        with torch.no_grad():
            return float((other(x) - model(x)).square().mean())

    mended = [reparam_compiler.prune(model, (X,), ratio=0.5, calibration=CALIBRATION, quality=q) for q in ("standard", "high")]
    assert error(mended[0]) < 0.5 * error(cut)
    assert error(mended[1]) < 0.5 * error(cut)
    assert relative_error(model(x), mended[1](x)) < 1


def test_a_model_that_cannot_be_traced_whole_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if float(x.sum()) > 0 else self.conv(-x)

    with pytest.raises(UnsupportedModelError, match="cannot be traced as a whole"):
        reparam_compiler.prune(Odd().eval(), ratio=0.5)
