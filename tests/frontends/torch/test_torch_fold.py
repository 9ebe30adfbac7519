"""Kernels that the model computes from parameters alone are parameters, in float64, however they are computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize

import reparam_compiler
from reparam_compiler import UnsupportedModelError
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from tests.support.small_models import EXACT, Kind, fuse_in_float64, normal, randomised, relative_error, run, traced_as

KINDS: tuple[Kind, ...] = ("fx", "export")
X = normal(2, 4, 6, 5)


class Maker(nn.Module):
    """relu( bn( conv(x, kernel made of parameters) ) + x )."""

    def __init__(self, kernel: Callable[["Maker"], Tensor]) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight, self.gain = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4))
        self.point, self.vectors = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.Parameter(torch.randn(3, 4))
        self.register_buffer("mask", torch.eye(3).expand(4, 4, 3, 3).clone())
        self.register_buffer("identity", nn.init.dirac_(torch.empty(4, 4, 3, 3)))
        self.mlp = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))
        self.softmax, self.drop, self.layer_norm = nn.Softmax(0), nn.Dropout(0.5), nn.LayerNorm(4)
        self.norm = nn.BatchNorm2d(4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(F.conv2d(x, self.kernel(self), None, 1, 1)) + x)


def mlp_gate(m: Maker) -> Tensor:
    return m.weight * torch.sigmoid(m.mlp(m.gain)).view(-1, 1, 1, 1)


def torchs_own_modules(m: Maker) -> Tensor:
    return m.weight * m.layer_norm(m.softmax(m.drop(m.gain))).view(4, 1, 1, 1)


def weight_standardisation(m: Maker) -> Tensor:
    centred = m.weight - m.weight.mean((1, 2, 3), keepdim=True)
    return m.gain.view(-1, 1, 1, 1) * centred / (m.weight.view(4, -1).std(1).view(-1, 1, 1, 1) + 1e-5)


def diracnet(m: Maker) -> Tensor:
    return m.identity * m.gain.view(4, 1, 1, 1) + F.normalize(m.weight.flatten(1)).view_as(m.weight) * m.vectors[1].view(
        -1, 1, 1, 1
    )


def einsums(m: Maker) -> Tensor:
    first = torch.einsum("oihw,o->oihw", m.weight, m.vectors[0, :])
    return first + torch.einsum("oi,ot,hw->tihw", m.point[:, :, 0, 0], m.point.squeeze(), m.mask[0, 0])


def masked(m: Maker) -> Tensor:
    return m.weight * m.mask + F.pad(m.point, [1] * 4) + m.gain.repeat(36).view(4, 4, 3, 3)


def filled_in_place(m: Maker) -> Tensor:
    kernel = torch.zeros_like(m.weight)
    kernel += 1
    return kernel.mul_(m.weight).clamp_(min=-1)


def used_many_times(m: Maker) -> Tensor:
    kernel = m.weight
    for _ in range(40):
        kernel = (kernel + kernel) / 2
    return kernel


def sized_by_another(m: Maker) -> Tensor:
    return m.weight * m.weight.new_ones(m.weight.shape[0], 1, 1, 1) * m.weight.size(2)


MAKERS = [
    mlp_gate,
    torchs_own_modules,
    weight_standardisation,
    diracnet,
    einsums,
    masked,
    filled_in_place,
    used_many_times,
    sized_by_another,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", MAKERS, ids=lambda kernel: kernel.__name__)
def test_a_kernel_made_of_parameters_is_fused(kernel: Callable[[Maker], Tensor], kind: Kind) -> None:
    fused = fuse_in_float64(Maker(kernel), X, kind=kind)
    assert fused.error < EXACT
    assert [f.weight for f in fused.report.fusions] == [(4, 4, 3, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", MAKERS, ids=lambda kernel: kernel.__name__)
def test_it_is_computed_in_float64_of_what_is_stored(kernel: Callable[[Maker], Tensor], kind: Kind) -> None:
    model = Maker(kernel).float()
    given = traced_as(kind, model, (X.float(),))
    graph = FxFrontend().read(given).graph if kind == "fx" else ExportFrontend().read(given).graph
    (weight,) = [node.params[0] for node in graph if isinstance(node.op, ops.Conv)]
    assert weight.dtype == "f32"
    exact = kernel(model.double()).detach()
    tolerance = EXACT if kind == "fx" else 1e-6  # export rounds numbers to float32 tensors where it lifts them
    assert relative_error(exact, torch.from_numpy(weight.float64())) < tolerance


def graph_of(model: nn.Module) -> Graph:
    return FxFrontend().read(fx.symbolic_trace(model.double()), (X,)).graph


def random_kernel(m: Maker) -> Tensor:
    return m.weight + torch.rand_like(m.weight)


def dropped(m: Maker) -> Tensor:
    return m.weight * m.drop(m.gain).view(-1, 1, 1, 1)


@pytest.mark.parametrize("kernel", [random_kernel, dropped])
def test_what_is_random_is_never_frozen(kernel: Callable[[Maker], Tensor]) -> None:
    model = Maker(kernel)
    model.drop.train()
    graph = graph_of(model)
    assert not [node for node in graph if isinstance(node.op, ops.Conv)]


def test_a_module_with_a_hook_is_not_folded() -> None:
    model = Maker(mlp_gate)
    model.mlp[0].register_forward_hook(lambda module, args, result: result * 2)
    assert not [node for node in graph_of(model) if isinstance(node.op, ops.Conv)]


def test_a_module_that_the_model_writes_to_is_not_folded() -> None:
    model = Maker(mlp_gate)
    trace = fx.symbolic_trace(model)
    (first,) = [node for node in trace.graph.nodes if node.target == "mlp.0"]
    with trace.graph.inserting_before(first):
        bias = trace.graph.get_attr("mlp.0.bias")
        trace.graph.call_method("add_", (bias, 1))
    trace.recompile()
    graph = FxFrontend().read(trace).graph
    assert not [node for node in graph if isinstance(node.op, ops.Conv)]


class Masked(nn.Module):
    """A parametrization of one tensor by several."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * torch.sigmoid(second)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight * 2, torch.zeros_like(weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["several originals", "weight norm", "both"])
def test_a_leaf_whose_weight_has_several_originals_is_fused(how: str, kind: Kind) -> None:
    conv, point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    for layer in (conv, point):
        if how != "weight norm":
            parametrize.register_parametrization(layer, "weight", Masked())
        if how != "several originals":
            parametrizations.weight_norm(layer, "bias" if how == "both" else "weight")
        for tensor in layer.parameters():
            nn.init.normal_(tensor)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.point, self.norm = conv, point, nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x) + self.point(x)))

    fused = fuse_in_float64(randomised(Net()), X, kind=kind)
    assert fused.error < EXACT
    assert [f.weight for f in fused.report.fusions] == [(4, 4, 3, 3)]


def test_a_constant_that_was_written_to_is_read_as_it_was_before() -> None:
    def forward(m: nn.Module, x: Tensor) -> Any:
        kernel = torch.zeros_like(m.weight)  # type: ignore[arg-type]
        kernel.add_(m.weight)  # type: ignore[arg-type]
        first = F.conv2d(x, kernel)
        kernel.mul_(2)
        return torch.relu(first) + torch.relu(F.conv2d(x, kernel))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = forward(self, x)
            return result

    model = Net().double()
    graph = graph_of(model)
    assert len([node for node in graph if isinstance(node.op, ops.Conv)]) == 2
    assert relative_error(run(model, X), evaluate(graph, {"x": X})[graph.outputs[0]]) < EXACT


def test_a_call_of_parameters_that_fails_is_named() -> None:
    """In a program that was damaged or written by hand: torch exports none, and an fx module is run before it is read."""
    program = traced_as("export", Maker(mlp_gate), [X])
    failing = next(node for node in program.graph.nodes if "sigmoid" in node.name)
    failing.args = (*failing.args, 4)
    words = r"^sigmoid: found a call of sigmoid on parameters alone that fails: RuntimeError: .*[^.]\. Expected one that runs"
    with pytest.raises(UnsupportedModelError, match=words):
        reparam_compiler.fuse(program, (X,))
