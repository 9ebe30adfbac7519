"""What the public functions refuse, what they leave alone, and what `inspect` and the report say of it."""

import contextlib
import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import reparam_compiler
from reparam_compiler import UnsupportedModelError, VerificationError
from reparam_compiler.core import affine
from reparam_compiler.passes.fusion import fuse_branches, registry
from reparam_compiler.passes.fusion import linear_rules as rules
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from tests.support.branch_blocks import block
from tests.support.small_models import (
    EXACT,
    KINDS,
    Kind,
    Pieces,
    fuse_in_float64,
    normal,
    relative_error,
    same_state,
    state_of,
    traced_as,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_training_mode_is_refused_with_what_to_do(kind: Kind) -> None:
    model, x = block("repvgg")
    model.train()
    warned = pytest.warns(
        reparam_compiler.TrainingModeWarning, match=r"\d+ norms are in training mode .*call model.eval\(\) before fuse\(\)"
    )
    with contextlib.nullcontext() if kind == "export" else warned:
        fused, report = reparam_compiler.fuse(traced_as(kind, model, (x,)), return_report=True)
    assert not report.fusions
    assert any("training=True; call model.eval() before fuse()" in refusal.reason for refusal in report.refusals)
    results = []
    for given in (model, fused):
        module = given.module() if isinstance(given, ExportedProgram) else copy.deepcopy(given)
        results.append(module(x).detach())
    assert relative_error(*results) < EXACT


def test_a_norm_without_statistics_is_left_alone() -> None:
    model = Pieces(lambda m, x: m.norm(m.wide(x)))
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    fused = fuse_in_float64(model, normal(2, 4, 6, 5))
    assert fused.error < EXACT
    assert not fused.report.fusions


@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_reads_is_left_with_its_weights(kind: Kind) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        m.norm(m.point(m.wide(x)).movedim(1, -1).movedim(-1, 1)).roll(1)
        return torch.relu(x + x)

    assert fuse_in_float64(Pieces(forward), normal(2, 4, 6, 5), kind=kind, shapes=True).error == 0


def test_a_failed_proof_leaves_the_region_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(node: Any, reads: SourceLayout) -> Any:
        right = rules.batch_norm(node, reads)
        return affine.diagonal(right.weight.reshape(-1), right.bias + 1e-6, reads.rank)

    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    registry.register_linear("batch_norm", override=True)(wrong)
    for kind in KINDS:
        model, x = block("repvgg")
        fused = fuse_in_float64(model, x, kind=kind)
        assert fused.error == 0
        assert not fused.report.fusions
        assert "the proof failed: both forms differ by 2e-06" in fused.report.to_text()


def test_a_whole_model_that_is_off_raises_and_leaves_the_caller_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(node: Any, reads: SourceLayout) -> Any:
        right = rules.batch_norm(node, reads)
        return affine.diagonal(right.weight.reshape(-1) * 1.001, right.bias, reads.rank)

    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    monkeypatch.setattr(fuse_branches, "TOLERANCE", 1.0)
    registry.register_linear("batch_norm", override=True)(wrong)
    model, x = block("repvgg")
    given = traced_as("fx", model, (x,))
    state, code = state_of(given), given.code
    with pytest.raises(VerificationError, match="output: the rewritten model differs by") as caught:
        reparam_compiler.fuse(given, (x,), inplace=True)
    assert caught.value.max_abs_err > caught.value.tolerance > 0
    assert given.code == code
    assert same_state(state, given.state_dict())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3), r"found a torch\.Tensor; expected an fx\.GraphModule"),
        ("model.pt", r"found the path model\.pt; expected one that ends in \.onnx"),
        (None, r"found a builtins\.NoneType"),
    ],
)
def test_what_is_no_model_is_refused_with_what_was_expected(given: object, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        reparam_compiler.fuse(given)


def test_example_inputs_that_the_model_does_not_take_are_named() -> None:
    model, x = block("repvgg")
    with pytest.raises(UnsupportedModelError, match=r"does not run on inputs of shapes \[\(2, 3, 9, 7\)\]"):
        reparam_compiler.fuse(traced_as("fx", model, (x,)), (normal(2, 3, 9, 7),))


# inspect, and the report


def test_inspect_tells_what_fuse_would_do_and_writes_nothing() -> None:
    model, x = block("repvgg")
    for kind in KINDS:
        given = traced_as(kind, model, (x,))
        before = str(given)
        report = reparam_compiler.inspect(given, (x,))
        assert [len(fusion.nodes) for fusion in report.fusions] == [7]
        assert str(given) == before
        assert report.whole_model is None


def test_the_report_as_json_has_every_field() -> None:
    model, x = block("relu_in_branches")
    report = fuse_in_float64(model, x, shapes=True).report
    found = json.loads(report.to_json())
    assert set(found) == {"kind", "fusions", "refusals", "before", "after", "whole_model", "remarks", "not_compared"}
    assert [refusal["op"] for refusal in found["refusals"]] == ["add", "add", "batch_norm"]
    assert found["before"]["convs"] == found["after"]["convs"] == 2
    assert found["fusions"][0]["error"]["relative"] < EXACT


def test_the_report_as_text_reads_so() -> None:
    model, x = block("repvgg")
    text = fuse_in_float64(model.float(), x, shapes=True).report.to_text()
    head = text.splitlines()[:6]
    assert head[:3] == ["torch.fx: 1 fused, 0 refused", "  convs         2 -> 1", "  params        0.001 M -> 0.001 M"]
    assert [line.split()[0] for line in head[3:]] == ["FLOPs", "Winograd", "activations"]
    assert "  fused    add_1: 7 nodes -> conv pad=1; weight 8x8x3x3 in [" in text
    assert "], f64 2 8 9 7, 0.08064 -> 0.07258 M multiply-adds, " in text
    assert "every fused region proven in float64: differs by at most" in text
    assert text.splitlines()[-1].startswith("the whole model differs by")
