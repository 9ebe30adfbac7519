"""Half precision, quantized and sized models: weights are rounded once, and what is not understood stays."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from tests.support.small_models import EXACT, Kind, Pieces, normal, randomised, relative_error, run, traced_as

KINDS: tuple[Kind, ...] = ("fx", "export")
X = normal(2, 4, 6, 5)
DIGITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}
"""Significant bits."""


def units_in_the_last_place(exact: Tensor, stored: Tensor) -> float:
    """The largest distance of a stored tensor from the exact one."""
    _, exponent = np.frexp(exact.detach().numpy())
    unit = np.exp2(np.maximum(exponent - DIGITS[stored.dtype], -24 if stored.dtype == torch.float16 else -133))
    return float((np.abs(exact.detach().numpy() - stored.detach().double().numpy()) / unit).max())


def block(m: Pieces, x: Tensor) -> Tensor:
    return torch.relu(m.norm(m.wide(x) + m.point(x)) + x)


def fused_tensors(kind: Kind, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    fused, report = reparam_compiler.fuse(traced_as(kind, model, (x,)), (x,), return_report=True)
    assert len(report.fusions) == 1
    assert run(fused, x).dtype == x.dtype
    return dict(fused.state_dict if kind == "export" else fused.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_fused_weight_is_rounded_once_to_the_models_dtype(dtype: torch.dtype, kind: Kind) -> None:
    model = Pieces(block).to(dtype)
    found = fused_tensors(kind, model, X.to(dtype))
    exact = fused_tensors(kind, copy.deepcopy(model).double(), X)
    for name in ("fused.weight", "fused.bias"):
        assert found[name].dtype == dtype
        assert units_in_the_last_place(exact[name], found[name]) < 0.51


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_two_dtypes_are_not_made_one(kind: Kind) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu(m.norm(m.wide(x)) + m.point(x.double()).float())

    model = Pieces(forward).float()
    model.point.double()
    x = X.float()
    fused, report = reparam_compiler.fuse(traced_as(kind, model, (x,)), (x,), return_report=True)
    assert [f.nodes[-1] for f in report.fusions] in (["norm"], ["batch_norm"])
    assert relative_error(run(model, x), run(fused, x)) < 1e-5  # float32


def fake_quantized_values(m: Pieces, x: Tensor) -> Tensor:
    y = torch.fake_quantize_per_tensor_affine(m.wide(x), 0.1, 3, -128, 127)
    return torch.relu(m.norm(y) + m.point(y))


def fake_quantized_weight(m: Pieces, x: Tensor) -> Tensor:
    weight = torch.fake_quantize_per_tensor_affine(m.wide.weight, 0.05, 0, -128, 127)
    return torch.relu(m.norm(F.conv2d(x, weight, m.wide.bias, 1, 1)))


def by_hand(m: Pieces, x: Tensor) -> Tensor:
    scale = 0.1
    return torch.relu(m.norm(torch.round(m.wide(x) / scale).clamp(-128, 127) * scale))


QUANTIZED: list[tuple[Callable[[Pieces, Tensor], Any], int]] = [
    (fake_quantized_values, 1),
    (fake_quantized_weight, 0),
    (by_hand, 1),  # the division is the conv's
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("wiring", "fusions"), QUANTIZED, ids=lambda w: getattr(w, "__name__", ""))
def test_what_is_quantized_stays_quantized(wiring: Callable[[Pieces, Tensor], Any], fusions: int, kind: Kind) -> None:
    model, x = Pieces(wiring).float(), X.float()
    given = traced_as(kind, model, (x,))
    before = [str(node.target) for node in given.graph.nodes if "quantize" in str(node.target) or "round" in str(node.target)]
    fused, report = reparam_compiler.fuse(given, (x,), return_report=True)
    assert len(report.fusions) == fusions
    assert [name for name in before if name in {str(node.target) for node in fused.graph.nodes}] == before
    assert relative_error(run(model, x), run(fused, x)) < 1e-5  # float32, and no value at a step of the quantizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_weight_is_no_constant(kind: Kind) -> None:
    given = traced_as(kind, Pieces(fake_quantized_weight).double(), (X,))
    graph = FxFrontend().read(given).graph if kind == "fx" else ExportFrontend().read(given).graph
    names = [node.op.name for node in graph if isinstance(node.op, ops.Opaque)]
    assert names == ["fake_quantize_per_tensor_affine", "conv2d"]


@pytest.mark.parametrize("weights", [True, False])
def test_quantize_and_dequantize_ops_of_an_exported_program_stay(weights: bool) -> None:
    pytest.importorskip("torch.ao.quantization.fx._decomposed")
    quantized = torch.ops.quantized_decomposed

    def forward(m: Pieces, x: Tensor) -> Tensor:
        value = m.wide.weight if weights else m.wide(x)
        stored = quantized.quantize_per_tensor.default(value, 0.05, 0, -128, 127, torch.int8)
        value = quantized.dequantize_per_tensor.default(stored, 0.05, 0, -128, 127, torch.int8)
        return torch.relu(m.norm(F.conv2d(x, value, None, 1, 1) if weights else value))

    model, x = Pieces(forward).float(), X.float()
    fused, report = reparam_compiler.fuse(traced_as("export", model, (x,)), return_report=True)
    assert not report.fusions
    assert len([node for node in fused.graph.nodes if "quantize_per_tensor" in str(node.target)]) == 2
    assert torch.equal(run(model, x), run(fused, x))


class Several(nn.Module):
    """Every kind of op that is written: a conv that pads unevenly, a transposed conv, a linear, and a conv in place of both."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.wide(x) + self.point(x)))
        x = torch.relu(F.pad(self.norm(self.wide(x)), (-1, 0, 0, 0)))
        x = torch.relu(self.up_norm(self.up(x))).permute(0, 2, 3, 1)
        return torch.relu(self.first(x) + self.second(x))


def test_a_program_with_symbolic_sizes_is_one_after_a_write() -> None:
    model = Several().double()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width", min=3)}
    program = torch.export.export(model, (X,), dynamic_shapes=(sizes,))
    fused, report = reparam_compiler.fuse(program, return_report=True)
    assert len(report.fusions) == 4
    assert fused.range_constraints == program.range_constraints
    for shape in ((2, 4, 6, 5), (3, 4, 9, 7), (1, 4, 2, 11)):
        x = normal(*shape)
        assert relative_error(run(model, x), run(fused, x)) < EXACT
    (returned,) = fused.graph.output_node().args
    assert [isinstance(size, torch.SymInt) for size in returned[0].meta["val"].shape] == [True, True, True, False]
