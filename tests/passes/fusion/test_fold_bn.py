"""What remains of a conv and the affine ops round it is one op (Eq. 3), and what cannot be folded says why."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.windows import ConvPadding
from reparam_compiler.passes.fusion.fold_bn import fold_bn
from tests.support.small_models import EXACT, KINDS, Kind, Pieces, fuse_in_float64, normal, randomised

Wiring = Callable[[Pieces, Tensor], Tensor]


@settings(max_examples=settings.default.max_examples // 4)
@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    size=st.integers(1, 3),
    padding=st.integers(0, 1),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    stride=st.integers(1, 2),
    affine=st.booleans(),
    bias=st.booleans(),
)
def test_a_conv_and_its_norm_are_one_conv(
    rank: int, groups: int, size: int, padding: int, mode: str, stride: int, affine: bool, bias: bool
) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    layer = conv(4, 8, size, stride, padding, groups=groups, bias=bias, padding_mode=mode)
    model = randomised(nn.Sequential(layer, norm(8, affine=affine, eps=0.1), nn.ReLU()))
    fused = fuse_in_float64(model, normal(2, 4, *(7, 6, 5)[:rank]))
    assert fused.error < EXACT
    assert [f.nodes for f in fused.report.fusions] == [("_0", "_1")]


@settings(max_examples=settings.default.max_examples // 16)
@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    size=st.integers(1, 4),
    cut=st.integers(0, 2),
    stride=st.integers(1, 2),
    extra=st.integers(0, 1),
    bias=st.booleans(),
)
def test_a_transposed_conv_and_its_norm_are_one_op_of_the_same_price(
    rank: int, groups: int, size: int, cut: int, stride: int, extra: int, bias: bool
) -> None:
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    layer = conv(4, 6, size, stride, min(cut, size - 1), extra * (stride > 1), groups, bias)
    model = randomised(nn.Sequential(layer, norm(6), nn.ReLU()))
    fused = fuse_in_float64(model, normal(2, 4, *(5, 3, 4)[:rank]), shapes=True)
    assert fused.error < EXACT
    (fusion,) = fused.report.fusions
    assert fusion.after.multiply_adds <= fusion.before.multiply_adds


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_and_its_norm_are_one_linear(kind: Kind) -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
    fused = fuse_in_float64(model, normal(5, 6), kind=kind, shapes=True)
    assert fused.error < EXACT
    (fusion,) = fused.report.fusions
    assert (fusion.op, fusion.weight) == ("linear", (4, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wiring", "count"),
    [
        (lambda m, x: torch.relu(m.norm(m.wide(x)) * 2 + 1), 4),
        (lambda m, x: torch.relu(m.wide(x) / 3), 2),
        (lambda m, x: torch.relu(m.point(m.norm(x))), 2),
        (lambda m, x: torch.relu(m.point(2 - x)), 2),
        (lambda m, x: torch.relu(m.norm(nn.functional.dropout(m.wide(x), 0.5, m.training))), 2),
    ],
)
def test_affine_ops_round_a_conv_go_into_it(wiring: Wiring, count: int, kind: Kind) -> None:
    fused = fuse_in_float64(Pieces(wiring), normal(2, 4, 6, 5), kind=kind, shapes=True)
    assert fused.error < EXACT
    assert [len(f.nodes) for f in fused.report.fusions] == [count]


@pytest.mark.parametrize(
    ("wiring", "reason"),
    [
        (lambda m, x: m.wide(m.norm(x)), "pads over an inner bias with another value than that bias at wide"),
        (lambda m, x: m.norm(torch.relu(x)), "relu (relu) is not linear"),
        (lambda m, x: m.norm(x), "x (input) is not linear"),
        (lambda m, x: (lambda y: m.norm(y) * torch.sigmoid(y))(m.wide(x)), "wide is also read by sigmoid"),
    ],
)
def test_a_norm_that_stays_says_why(wiring: Wiring, reason: str) -> None:
    fused = fuse_in_float64(Pieces(wiring), normal(2, 4, 6, 5))
    assert fused.error == 0
    assert not fused.report.fusions
    assert fused.reasons == [reason]


def test_a_norm_on_an_unpadded_conv_goes_in_from_the_front() -> None:
    model = randomised(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()))
    fused = fuse_in_float64(model, normal(2, 4, 9, 8))
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_a_norm_without_a_shift_goes_in_through_zero_padding() -> None:
    model = randomised(nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()))
    model[0].running_mean.zero_()
    fused = fuse_in_float64(model, normal(2, 4, 9, 8))
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_without_shapes_a_linear_is_not_known_to_have_two_axes() -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    _, report = reparam_compiler.fuse(fx.symbolic_trace(model), return_report=True)
    assert report.refusals[0].reason == "batch norm over an axis that is not that of the channels at _1"


def test_a_norm_over_the_second_of_three_axes_is_not_folded_into_a_linear() -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    fused = fuse_in_float64(model, normal(2, 4, 6), shapes=True)
    assert fused.error == 0
    assert not fused.report.fusions


class LinearNorm(nn.Module):
    """LeViT's: a norm over the last axis of tokens, whose other axes are one for as long as it takes."""

    def __init__(self, back: str) -> None:
        super().__init__()
        self.linear, self.norm, self.back = nn.Linear(6, 4), nn.BatchNorm1d(4), back

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        flat = self.norm(y.flatten(0, 1))
        return torch.relu(
            flat.reshape_as(y) if self.back == "reshape_as" else flat.view(-1, 6 if self.back == "wrong" else 3, 4)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back", ["reshape_as", "view", "wrong"])
def test_a_norm_over_flattened_tokens_goes_into_their_linear_where_the_tokens_come_back(back: str, kind: Kind) -> None:
    fused = fuse_in_float64(randomised(LinearNorm(back)), normal(2, 3, 6), kind=kind, shapes=True)
    assert fused.error < EXACT
    exact = back == "reshape_as" or (back == "view" and kind == "export")  # a trace may be given other sizes
    assert len(fused.report.fusions) == exact


def test_a_conv_with_nothing_round_it_is_the_same_object() -> None:
    graph = FxFrontend().read(fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))).graph
    assert fold_bn(graph).graph is graph


class PadConv(nn.Module):
    """A pad and the conv that reads it."""

    def __init__(self, pad: nn.Module, **conv: Any) -> None:
        super().__init__()
        self.pad, self.conv = pad, nn.Conv2d(4, 6, 3, **conv)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(self.pad(x)))


@pytest.mark.parametrize(
    ("pad", "conv", "taken"),
    [
        (nn.ZeroPad2d(1), {"stride": 2}, {"fx", "export", "onnx"}),
        (nn.ConstantPad2d((2, 2, 1, 1), 0.0), {"padding": 1, "groups": 2}, {"fx", "export", "onnx"}),
        (nn.ZeroPad2d((0, 1, 0, 1)), {"stride": 2}, {"onnx"}),
        (nn.ReflectionPad2d(2), {}, {"fx"}),
        (nn.ReplicationPad2d((1, 1, 2, 2)), {}, {"fx"}),
        (nn.ReflectionPad2d((1, 2, 1, 1)), {}, set()),
        (nn.ZeroPad2d((-1, 1, 0, 0)), {}, set()),
        (nn.ConstantPad2d(1, 2.0), {}, set()),
        (nn.ReflectionPad2d(1), {"padding": 1}, set()),
        (nn.ZeroPad2d(1), {"padding": 1, "padding_mode": "circular"}, set()),
    ],
)
def test_a_pad_goes_into_its_conv_where_the_conv_of_the_model_has_a_word_for_it(
    pad: nn.Module, conv: dict[str, Any], taken: set[str]
) -> None:
    model, x = PadConv(pad, **conv), normal(2, 4, 8, 7)
    for kind in ("fx", "export"):
        fused = fuse_in_float64(model, x, kind=kind, shapes=True)  # type: ignore[arg-type]
        assert fused.error < EXACT
        assert len(fused.report.fusions) == (kind in taken)
        assert len(fused.report.refusals) == (kind not in taken)
    uneven = fold_bn(replace(read(model, x), conv_padding=ConvPadding(("zeros",))))  # as ONNX has it
    assert len(uneven.fusions) == ("onnx" in taken)


def read(model: nn.Module, x: Tensor) -> Graph:
    return FxFrontend().read(fx.symbolic_trace(copy.deepcopy(model).double().eval()), (x,)).graph


@pytest.mark.parametrize(
    ("pad", "conv", "reason"),
    [
        (nn.ReflectionPad2d(1), {}, "a conv of this kind of model has no reflect padding"),
        (nn.ZeroPad2d((0, 1, 0, 1)), {}, "a conv of this kind of model pads both ends of an axis alike"),
        (nn.ZeroPad2d((-1, 1, 0, 0)), {}, "a conv of this kind of model cannot crop"),
        (nn.ConstantPad2d(1, 2.0), {}, "pad pads with 2, and a conv with zeros"),
        (nn.ReflectionPad2d(1), {"padding": 1}, "pads axis 0 of what an op with reflect padding gave at conv"),
    ],
)
def test_a_pad_that_stays_says_why(pad: nn.Module, conv: dict[str, Any], reason: str) -> None:
    graph = replace(read(PadConv(pad, **conv), normal(2, 4, 8, 7)), conv_padding=ConvPadding(("zeros",), uneven=False))
    (refusal,) = fold_bn(graph).refusals
    assert (refusal.node, refusal.reason) == ("pad", reason)


def test_a_pad_that_has_other_readers_or_no_conv_after_it_is_no_matter_for_a_report() -> None:
    graph = read(nn.Sequential(nn.ReflectionPad2d(1), nn.MaxPool2d(2)), normal(2, 4, 8, 7))
    assert fold_bn(graph).graph is graph
    assert not fold_bn(graph).refusals
