"""A norm that stands before what averages or moves its elements goes into the layers after it, or stays for a reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.printer import to_text
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.move_norms import move_norms
from tests.support.onnx_models import exported
from tests.support.small_models import EXACT, KINDS, Kind, fuse_in_float64, normal, randomised

X = (2, 6, 4, 6)


class Head(nn.Module):
    """A norm of what no conv gives, and layers of many shapes after it."""

    def __init__(self, wiring: Callable[["Head", Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.wiring = nn.BatchNorm2d(6), wiring
        self.head, self.other, self.flat = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(36, 5)
        self.point, self.grouped = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 2, stride=2, groups=2)
        self.padded, self.mirrored = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.wiring(self, torch.relu(x)))


MOVED: dict[str, Callable[[Head, Tensor], Tensor]] = {
    "mean": lambda m, x: m.head(m.norm(x).mean((2, 3))),
    "mean that keeps its axes": lambda m, x: m.point(m.norm(x).mean((2, 3), keepdim=True)),
    "pooled and flattened": lambda m, x: m.head(F.adaptive_avg_pool2d(m.norm(x), 1).flatten(1)),
    "six positions each": lambda m, x: m.flat(F.adaptive_avg_pool2d(m.norm(x), (2, 3)).flatten(1)),
    "positions first": lambda m, x: m.flat(F.adaptive_avg_pool2d(m.norm(x), (2, 3)).permute(0, 2, 3, 1).flatten(1)),
    "two heads": lambda m, x: (lambda y: m.head(y).sin() + m.other(y))(m.norm(x).mean((2, 3))),
    "tokens": lambda m, x: m.head(m.norm(x).flatten(2).transpose(1, 2)),
    "channels last": lambda m, x: m.head(m.norm(x).permute(0, 2, 3, 1)),
    "a window that counts no padding": lambda m, x: m.grouped(F.avg_pool2d(m.norm(x), 3, 1, 1, count_include_pad=False)),
    "a border that is repeated": lambda m, x: m.mirrored(F.avg_pool2d(m.norm(x), 2, ceil_mode=True, count_include_pad=False)),
    "channels in another order": lambda m, x: m.head(F.channel_shuffle(m.norm(x), 3).mean((2, 3))),
    "a part": lambda m, x: m.flat(m.norm(x)[:, :, :2, 1:4].flatten(1)),
}
KEPT: dict[str, Callable[[Head, Tensor], Tensor]] = {
    "sum": lambda m, x: m.head(m.norm(x).sum((2, 3))),
    "largest": lambda m, x: m.head(m.norm(x).amax((2, 3))),
    "largest of a window": lambda m, x: m.grouped(F.max_pool2d(m.norm(x), 2)),
    "a window that counts padding": lambda m, x: m.grouped(F.avg_pool2d(m.norm(x), 3, 1, 1)),
    "another divisor": lambda m, x: m.head(F.avg_pool2d(m.norm(x), (4, 6), divisor_override=3).flatten(1)),
    "running sums": lambda m, x: m.head(m.norm(x).cumsum(2).mean((2, 3))),
    "zeros round it": lambda m, x: m.padded(F.adaptive_avg_pool2d(m.norm(x), 3)),
    "an activation": lambda m, x: m.head(m.norm(x).relu().mean((2, 3))),
    "another reader": lambda m, x: (lambda y: m.head(y.mean((2, 3))) + y.cos().mean((2, 3))[:, :5])(m.norm(x)),
    "over channels": lambda m, x: m.head(m.norm(x).mean(1).flatten(1)[:, :6]),
    "channels and positions in one": lambda m, x: m.head(m.norm(x)),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_norm_goes_past_what_averages_or_moves_its_elements(name: str) -> None:
    fused = fuse_in_float64(Head(MOVED[name]), normal(*X), shapes=True)
    assert fused.error < EXACT
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.model.modules())
    assert {fusion.nodes[0] for fusion in fused.report.fusions} == {"norm"}
    assert "batch_norm" not in {refusal.op for refusal in fused.report.refusals}


@pytest.mark.parametrize("name", KEPT)
def test_a_norm_stays_before_what_is_no_average(name: str) -> None:
    fused = fuse_in_float64(Head(KEPT[name]), normal(*X), shapes=True)
    assert fused.error == 0
    assert any(isinstance(module, nn.BatchNorm2d) for module in fused.model.modules())
    assert "batch_norm" in {refusal.op for refusal in fused.report.refusals}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loses_its_norm(kind: Kind) -> None:
    fused = fuse_in_float64(Head(MOVED["two heads"]), normal(*X), kind=kind, shapes=True)
    assert fused.error < EXACT
    assert [fusion.op for fusion in fused.report.fusions] == ["linear", "linear"]


def test_an_onnx_model_loses_its_norm_and_gains_no_node(tmp_path: Path) -> None:
    given = exported(Head(MOVED["six positions each"]).float(), normal(*X).float(), tmp_path, dynamo=False, dynamic=True)
    fused = reparam_compiler.fuse(given)
    kept = [node.op_type for node in given.graph.node if node.op_type != "BatchNormalization"]
    assert [node.op_type for node in fused.graph.node] == kept
    before, after = (_run(model, np.random.default_rng(0).standard_normal(X, np.float32)) for model in (given, fused))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)  # float32


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    return FxFrontend().read(fx.symbolic_trace(model.double().eval()), inputs or None).graph


@settings(max_examples=settings.default.max_examples // 8)
@given(rank=st.integers(1, 3), size=st.integers(1, 3), groups=st.sampled_from([1, 2, 3]), bias=st.booleans())
def test_averages_over_any_number_of_axes(rank: int, size: int, groups: int, bias: bool) -> None:
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](6)
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1](size)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](6, 6, size, groups=groups, bias=bias)
    model = randomised(nn.Sequential(nn.ReLU(), norm, pool, nn.Dropout(), conv, nn.Tanh()))
    fused = fuse_in_float64(model, normal(2, 6, *(5, 4, 3)[:rank]))  # sizes are not known
    assert fused.error < EXACT
    assert [fusion.nodes for fusion in fused.report.fusions] == [("_1", "_4")]


def test_the_norm_is_an_identity_and_what_stands_between_is_as_it_was() -> None:
    graph = graph_of(Head(MOVED["pooled and flattened"]), normal(*X))
    result = move_norms(graph)
    assert to_text(result.graph) == (
        "%0 = input()                                      # f64 2 6 4 6\n"
        "%1 = relu(%0)                                     # f64 2 6 4 6\n"
        "%2 = identity(%1)                                 # f64 2 6 4 6   fused from 1 nodes\n"
        "%3 = adaptive_avg_pool(%2)                        # f64 2 6 1 1   size=1\n"
        "%4 = flatten(%3)                                  # f64 2 6   start=1 end=3\n"
        "%5 = linear(%4, weight[5 6], bias[5])             # f64 2 5   fused from 1 nodes\n"
        "%6 = tanh(%5)                                     # f64 2 5\n"
        "output(%6)\n"
    )
    (fusion,) = result.fusions
    assert (fusion.nodes, fusion.source, fusion.node) == (("norm", "head"), "relu", "head")
    assert fusion.after.launches < fusion.before.launches
    assert fusion.after.bytes < fusion.before.bytes


def test_a_trace_may_be_given_other_sizes() -> None:
    """Rows of 36 are a sample each at the example's size, and mix samples at others."""
    rows = Head(lambda m, x: m.flat(m.norm(x)[:, :, :, :].reshape(-1, 36)))
    assert not move_norms(graph_of(rows, normal(2, 6, 2, 3))).fusions
    pooled = Head(lambda m, x: m.flat(F.adaptive_avg_pool2d(m.norm(x), (2, 3)).reshape(-1, 36)))
    assert move_norms(graph_of(pooled, normal(*X))).fusions


def test_without_any_shape_nothing_is_guessed() -> None:
    assert not move_norms(graph_of(Head(MOVED["mean"]))).fusions
    after_a_conv = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GELU(), Head(MOVED["mean"]))
    (fusion,) = pipeline.run(graph_of(randomised(after_a_conv))).fusions
    assert fusion.op == "linear"


def test_a_norm_in_training_mode_stays() -> None:
    model = Head(MOVED["mean"]).double()
    trace = fx.symbolic_trace(model.eval())
    trace.norm.train()
    assert not move_norms(FxFrontend().read(trace, (normal(*X),)).graph).fusions
