"""What was done and what was not, for people and for machines."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import reparam_compiler
from reparam_compiler.api.report import FuseReport, WholeModel, cost_lines, merged, prefixed
from reparam_compiler.cost.model import Cost, Work
from reparam_compiler.interpreter.difference import Difference
from reparam_compiler.passes.fusion.fuse_branches import Fusion, Refusal
from tests.support.every_kind import DATA, X, as_onnx, net

BEFORE = Cost(12_345_678, 3, 2_000_000_000, 1.5e9, 3 * 2**20)
AFTER = Cost(8_300_000, 1, 1_000_000_000, 0.5e9, 2**20)
FUSION = Fusion(
    nodes=("a", "b"),
    source="x",
    node="b",
    op="conv pad=1",
    weight=(4, 3, 3, 3),
    weight_range=(-0.75, 1.5),
    shape="f32 1 4 5 5",
    error=Difference(1e-12, 2e-13),
    before=Work(3_000_000, 2_500_000.0, 40_000, 2),
    after=Work(2_700_000, 1_200_000.0, 30_000, 1),
)
REFUSAL = Refusal("c", "add", "relu (relu) is not linear")


def report(**changes: object) -> FuseReport:
    given = {"kind": "torch.fx", "fusions": (FUSION,), "refusals": (REFUSAL,), "before": BEFORE, "after": AFTER}
    return FuseReport(**(given | changes))  # type: ignore[arg-type]


def test_the_text_of_a_report() -> None:
    whole = WholeModel("torch, float64, example inputs", Difference(1e-9, 1e-10))
    assert report(whole_model=whole, remarks=("a remark",)).to_text() == (
        "torch.fx: 1 fused, 1 refused\n"
        "  convs         3 -> 1\n"
        "  params        12.346 M -> 8.300 M\n"
        "  FLOPs         2.000 G -> 1.000 G\n"
        "  Winograd MULs 1.500 G -> 0.500 G\n"
        "  activations   3.00 MiB -> 1.00 MiB\n"
        "  fused    b: 2 nodes -> conv pad=1; weight 4x3x3x3 in [-0.75, 1.5], f32 1 4 5 5, "
        "3 -> 2.7 M multiply-adds, 0.04 -> 0.03 MB moved, error 1.0e-12\n"
        "  refused  c (add): relu (relu) is not linear\n"
        "a remark\n"
        "every fused region proven in float64: differs by at most 2.0e-13 (relative)\n"
        "the whole model differs by 1e-09 (1.0e-10 relative): torch, float64, example inputs"
    )


def test_a_report_closes_with_what_is_known_of_its_exactness() -> None:
    assert report(remarks=("a remark",)).closing() == report().to_text().splitlines()[-2:]
    assert report(fusions=()).closing() == report(fusions=()).to_text().splitlines()[-1:]


def test_what_is_not_known_is_left_out_of_the_costs() -> None:
    unknown = Cost(1_000_000, 1, None, None, None)
    assert cost_lines(unknown, unknown) == ["  convs         1 -> 1", "  params        1.000 M -> 1.000 M"]


def test_a_whole_that_was_not_compared_says_how_to_have_it_compared() -> None:
    reason = "pass example inputs to have that done"
    assert report(not_compared=reason).to_text().endswith(f"the whole model was not compared: {reason}")


def test_regions_that_were_not_proven_are_called_so() -> None:
    found = report(fusions=(replace(FUSION, error=None, shape=""),))
    assert found.max_error is None
    assert "the fused regions were not proven (verify=False)" in found.to_text()
    assert "weight 4x3x3x3 in [-0.75, 1.5], shape unknown, 3 -> 2.7 M multiply-adds" in found.to_text()


def test_the_largest_error_is_the_relative_one() -> None:
    other = replace(FUSION, error=Difference(1e-15, 1e-9))
    assert report(fusions=(FUSION, other)).max_error == Difference(1e-15, 1e-9)


def test_json_round_trips() -> None:
    found = json.loads(report().to_json())
    assert found["fusions"][0]["nodes"] == ["a", "b"]
    assert found["refusals"] == [{"node": "c", "op": "add", "reason": "relu (relu) is not linear"}]
    assert (found["before"]["params"], found["after"]["convs"], found["whole_model"]) == (12_345_678, 1, None)


def test_reports_of_parts_carry_their_paths_and_add_up() -> None:
    parts = [prefixed(report(), "backbone"), prefixed(report(), "head.0")]
    whole = merged("nn.Module Detector, in parts", parts, ["a remark"])
    assert [fusion.nodes for fusion in whole.fusions] == [("backbone.a", "backbone.b"), ("head.0.a", "head.0.b")]
    assert [refusal.node for refusal in whole.refusals] == ["backbone.c", "head.0.c"]
    assert (whole.before.params, whole.after.convs, whole.before.flops) == (2 * 12_345_678, 2, None)
    assert whole.remarks == ("a remark",)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: reparam_compiler.fuse(net(), return_report=True)[1], "pass example inputs to have that done"),
        (lambda: reparam_compiler.fuse(net(), (X,), verify=False, return_report=True)[1], "verify=False"),
        (lambda: reparam_compiler.fuse(nn.ReLU().eval(), (X,), return_report=True)[1], "nothing was fused"),
        (lambda: reparam_compiler.fuse(as_onnx(net()), verify=False, return_report=True)[1], "verify=False"),
        (lambda: reparam_compiler.fuse(Branching().eval(), return_report=True)[1], "pass example inputs to have that done"),
        (lambda: reparam_compiler.inspect(net(), (X,)), "nothing was written"),
        (lambda: reparam_compiler.inspect(Branching().eval(), (X,)), "nothing was written"),
    ],
)
def test_the_reason_why_the_whole_was_not_compared_is_the_true_one(made: Any, said: str) -> None:
    report = made()
    assert report.whole_model is None
    assert report.to_text().endswith(f"the whole model was not compared: {said}")


def test_an_export_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reparam_compiler.inspect(Branching().eval(), (X,))
    assert capfd.readouterr().err == ""


def test_the_json_of_a_prune_report_has_all_but_the_manifest() -> None:
    _, report = reparam_compiler.prune(net(), (X,), ratio=0.5, calibration=DATA, return_report=True)
    found = json.loads(report.to_json())
    assert set(found) == {"kind", "plan", "before", "after", "remarks"}
    assert found["plan"]["families"][0]["after"] == 16
