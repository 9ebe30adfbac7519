"""Every spelling of an op is read as the same op, and what has no exact form is opaque."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.frontends.torch.called import resolve
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from tests.support.small_models import EXACT, normal, relative_error, traced_as

X = normal(2, 4, 7, 6)


class Holder(nn.Module):
    """A model of one function, with tensors for it to read."""

    def __init__(self, function: Callable[["Holder", Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(normal(4, 4, 3, 3)), nn.Parameter(normal(4))
        self.register_buffer("mean", normal(4, seed=1))
        self.register_buffer("var", normal(4, seed=2).abs() + 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def graph_of(function: Callable[[Holder, Tensor], Any], kind: str, *, shapes: bool = True) -> Graph:
    given = traced_as(kind, Holder(function), (X,))  # type: ignore[arg-type]
    return FxFrontend().read(given, (X,) if shapes else None).graph if kind == "fx" else ExportFrontend().read(given).graph


def last_op(graph: Graph) -> ops.Op:
    return graph[graph.outputs[0]].op


CONV = ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
SPELLINGS: list[tuple[ops.Op, Callable[[Holder, Tensor], Tensor]]] = [
    (CONV, lambda m, x: F.conv2d(x, m.weight, m.bias, 1, 1)),
    (CONV, lambda m, x: F.conv2d(input=x, weight=m.weight, padding="same")),
    (CONV, lambda m, x: torch.conv2d(x, m.weight, padding=(1, 1))),
    (CONV, lambda m, x: torch.convolution(x, m.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    (ops.Conv((2, 1), ((0, 0), (0, 0)), (1, 2)), lambda m, x: F.conv2d(x, m.weight, None, (2, 1), "valid", (1, 2))),
    (ops.Add((1.0, 1.0)), lambda m, x: x + x),
    (ops.Add((1.0, 1.0)), lambda m, x: torch.add(x, other=x)),
    (ops.Add((1.0, 1.0)), lambda m, x: x.add(x)),
    (ops.Add((1.0, 1.0)), lambda m, x: 2 + x),
    (ops.Add((1.0, 3.0)), lambda m, x: torch.add(x, x, alpha=3)),
    (ops.Add((1.0, -1.0)), lambda m, x: x - 1),
    (ops.Add((-1.0, 1.0)), lambda m, x: 1 - x),
    (ops.Add((1.0, -2.0)), lambda m, x: torch.sub(x, x, alpha=2)),
    (ops.Add((0.75, 0.25)), lambda m, x: torch.lerp(x, end=x, weight=0.25)),
    (ops.Add((0.25, 0.75)), lambda m, x: x.clone().lerp_(torch.ones((), dtype=x.dtype), 0.75)),
    (ops.Add((-1.0,)), lambda m, x: -x),
    (ops.Mul(), lambda m, x: x * m.bias.view(-1, 1, 1)),
    (ops.Mul(), lambda m, x: 2 * x),
    (ops.Mul(), lambda m, x: torch.multiply(x, x)),
    (ops.Div(), lambda m, x: x / 2),
    (ops.Div(), lambda m, x: torch.true_divide(x, x)),
    (ops.BatchNorm(1e-3), lambda m, x: F.batch_norm(x, m.mean, m.var, m.bias, None, False, 0.1, 1e-3)),
    (ops.BatchNorm(), lambda m, x: F.batch_norm(x, weight=m.bias, running_var=m.var, running_mean=m.mean)),
    (ops.BatchNorm(0.5), lambda m, x: torch.batch_norm(x, m.bias, None, m.mean, m.var, False, 0.1, 0.5, True)),
    (ops.Input(), lambda m, x: F.dropout(x, 0.5, m.training)),
    (ops.Input(), lambda m, x: x.contiguous()),
    (ops.Input(), lambda m, x: x.detach().clone()),
    (ops.Add((1.0, 1.0)), lambda m, x: x.clone().add_(1)),
    (ops.Elementwise("relu"), lambda m, x: F.relu(x, inplace=False)),
    (ops.Elementwise("relu"), lambda m, x: torch.relu(x)),
    (ops.Elementwise("clamp", (0.0, 1.0)), lambda m, x: x.clamp(0, 1)),
    (ops.Elementwise("clamp", (None, 1.0)), lambda m, x: torch.clamp(x, max=1)),
    (ops.Elementwise("leaky_relu", (0.2,)), lambda m, x: F.leaky_relu(x, 0.2)),
    (ops.Elementwise("gelu_tanh"), lambda m, x: F.gelu(x, approximate="tanh")),
    (ops.Elementwise("relu6"), lambda m, x: F.hardtanh(x, 0.0, 6.0)),
    (ops.Concat(1), lambda m, x: torch.cat([x, x], dim=-3)),
    (ops.Concat(0), lambda m, x: torch.cat((x, x))),
    (ops.Flatten(1, 3), lambda m, x: torch.flatten(x, 1)),
    (ops.Flatten(1, 3), lambda m, x: x.flatten(1, -1)),
    (ops.Reshape((2, -1, 6)), lambda m, x: x.reshape(2, -1, 6)),
    (ops.Permute((0, 3, 2, 1)), lambda m, x: x.transpose(1, -1)),
    (ops.Permute((0, 2, 3, 1)), lambda m, x: x.permute(0, 2, 3, 1)),
    (ops.Reduce("mean", (2, 3), True), lambda m, x: x.mean((-1, -2), keepdim=True)),
    (ops.Reduce("sum", (1,), False), lambda m, x: torch.sum(x, 1)),
    (ops.AvgPool((3, 3), (3, 3), ((1, 1), (1, 1))), lambda m, x: F.avg_pool2d(x, 3, padding=1)),
    (ops.AvgPool((2, 2), (1, 1), ((0, 0), (0, 0)), False, True, 3), lambda m, x: F.avg_pool2d(x, 2, 1, divisor_override=3)),
    (ops.AdaptiveAvgPool((1, 1)), lambda m, x: F.adaptive_avg_pool2d(x, 1)),
    (ops.MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)), lambda m, x: F.max_pool2d(x, 2)),
    (ops.Pad(((0, 0), (0, 0), (2, 0), (1, -1))), lambda m, x: F.pad(x, (1, -1, 2, 0))),
    (ops.Pad(((0, 0), (0, 0), (0, 0), (1, 1)), "reflect"), lambda m, x: F.pad(x, (1, 1, 0, 0), mode="reflect")),
    (ops.Slice(2, 1, None), lambda m, x: x[:, :, 1:]),
    (ops.Slice(3, 0, -1), lambda m, x: x[:, :, :, :-1]),
    (ops.Slice(3, 0, -1), lambda m, x: x[..., :-1]),
    (ops.Slice(1, 0, 3), lambda m, x: x[:, :-1]),
    (ops.Slice(1, 1, None), lambda m, x: x[:, -3:]),
    (ops.Slice(2, -2, None), lambda m, x: x[..., -2:, :]),
    (ops.Slice(2, 1, 4), lambda m, x: x.narrow(2, 1, 3)),
    (ops.Slice(2, 0, None, 2), lambda m, x: x[:, :, ::2]),
    (ops.Stack(0), lambda m, x: torch.stack([x, x])),
    (ops.Stack(4), lambda m, x: torch.stack((x, x, x), dim=-1)),
    (ops.Stack(1), lambda m, x: torch.stack([x, m.weight[:2, :, :1, :1].expand(2, 4, 7, 6)], 1)),
    (ops.Stack(1), lambda m, x: x.unsqueeze(1)),
    (ops.Stack(4), lambda m, x: torch.unsqueeze(x, dim=-1)),
    (ops.Reshape((0, 0)), lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3))),
    (ops.Reshape((0, 0, 0)), lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1)),
    (ops.Reshape((0, 0, -1)), lambda m, x: F.adaptive_avg_pool2d(x, (1, 3)).squeeze(2)),
    (ops.Reduce("sum", (0,), False), lambda m, x: torch.stack([x, x]).sum(0)),
    (ops.Reduce("mean", (1,), True), lambda m, x: torch.mean(x, dim=1, keepdim=True)),
]


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize(("op", "function"), SPELLINGS)
def test_every_spelling_is_read_as_the_op_and_gives_its_values(
    op: ops.Op, function: Callable[[Holder, Tensor], Tensor], kind: str
) -> None:
    graph = graph_of(function, kind)
    assert last_op(graph) == op
    with torch.no_grad():
        expected = function(Holder(function), X)
    (source,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
    assert relative_error(expected, evaluate(graph, {source: X})[graph.outputs[0]]) < EXACT


OPAQUE: list[Callable[[Holder, Tensor], Any]] = [
    lambda m, x: F.conv_transpose2d(x, x[:, :, :2, :2].mean(0, keepdim=True).expand(4, 4, 2, 2)),
    lambda m, x: F.conv2d(x, torch.sigmoid(x[:, :, :3, :3].mean(0, keepdim=True)).expand(4, 4, 3, 3)),
    lambda m, x: F.instance_norm(x),
    lambda m, x: F.batch_norm(x, None, None, training=True),
    lambda m, x: torch.div(x, 2, rounding_mode="floor"),
    lambda m, x: torch.add(x, x.shape[2] * 1.0),
    lambda m, x: x[:, None],
    lambda m, x: x[:, 0],
    lambda m, x: x.sum(),
    lambda m, x: torch.stack(x.unbind(1)),
    lambda m, x: x.unbind(1)[2],
    lambda m, x: x.select(1, -1),
    lambda m, x: x.squeeze(),
    lambda m, x: x[:, :, ::2, ::2],
    lambda m, x: x[:, :, 1:3, 1:3],
    lambda m, x: x[..., -2:, -2:],
    lambda m, x: x[:1].squeeze(0),
    lambda m, x: x.narrow(1, -2, 1),
    lambda m, x: x.sum(()),
    lambda m, x: x.unsqueeze(-1),
    lambda m, x: F.layer_norm(x, (6,)),
    lambda m, x: torch.maximum(x, x * 2),
]


@pytest.mark.parametrize("function", OPAQUE)
def test_what_has_no_exact_form_is_opaque_and_still_runs(function: Callable[[Holder, Tensor], Any]) -> None:
    graph = graph_of(function, "fx", shapes=False)
    assert any(isinstance(node.op, ops.Opaque) for node in graph)
    if "size" not in str(fx.symbolic_trace(Holder(function)).graph) and "shape" not in str(graph.nodes):
        (source,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
        expected = function(Holder(function), X)
        assert relative_error(expected.detach(), evaluate(graph, {source: X})[graph.outputs[0]]) < EXACT


def test_slices_along_several_axes_are_one_crop() -> None:
    """Export writes a call for each axis; an fx trace has one."""
    crop = ops.Pad(((0, 0), (0, 0), (-1, -2), (-2, 0)))
    for function in (lambda m, x: x[:, :, 1:-2, 2:], lambda m, x: x[..., 1:-2, 2:]):
        graph = graph_of(function, "fx")
        assert last_op(graph) == crop
        (source,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
        assert torch.equal(evaluate(graph, {source: X})[graph.outputs[0]], X[:, :, 1:-2, 2:])


def test_sizes_taken_from_the_value_are_no_shapes() -> None:
    flat = graph_of(lambda m, x: x.view(x.size(0), -1), "fx")
    assert last_op(flat) == ops.Flatten(1, 3)
    kept = graph_of(lambda m, x: x.reshape(x.shape[0], x.shape[1], -1), "fx")
    assert last_op(kept) == ops.Reshape((0, 0, -1))
    other = graph_of(lambda m, x: x.reshape(x.shape[1], x.shape[0], -1), "fx")
    assert isinstance(last_op(other), ops.Opaque)


def test_parameters_keep_their_names_and_roles() -> None:
    graph = graph_of(lambda m, x: F.batch_norm(F.conv2d(x, m.weight, m.bias), m.mean, m.var), "export")
    conv, norm = [node for node in graph if node.params]
    assert [(p.role, p.origin, p.shape) for p in conv.params] == [("weight", "weight", (4, 4, 3, 3)), ("bias", "bias", (4,))]
    assert [(p.role, p.origin) for p in norm.params] == [("mean", "mean"), ("var", "var")]


@pytest.mark.parametrize("kind", ["fx", "export"])
def test_a_tensor_read_in_two_places_is_one_parameter(kind: str) -> None:
    graph = graph_of(lambda m, x: F.conv2d(F.conv2d(x, m.weight), m.weight), kind)
    assert len(graph.param_users) == 1


@pytest.mark.parametrize("kind", ["fx", "export"])
def test_a_weight_computed_from_weights_is_a_parameter_in_float64(kind: str) -> None:
    def function(m: Holder, x: Tensor) -> Tensor:
        return F.conv2d(x, m.weight / m.weight.square().sum((1, 2, 3), keepdim=True) + m.weight * 0.1)

    given = traced_as(kind, Holder(function).float(), (X.float(),))  # type: ignore[arg-type]
    graph = FxFrontend().read(given).graph if kind == "fx" else ExportFrontend().read(given).graph
    (param,) = graph.param_users
    stored = Holder(function).float().weight.detach().double()
    exact = stored / stored.square().sum((1, 2, 3), keepdim=True) + stored * torch.tensor(0.1, dtype=torch.float64)
    assert param.dtype == "f32"
    assert relative_error(exact, torch.from_numpy(param.float64())) < 1e-7  # 0.1 is rounded where export lifts it


def test_in_place_operators_are_known() -> None:
    x = fx.Graph().placeholder("x")
    graph = x.graph

    def called(node: fx.Node) -> tuple[str, bool]:
        resolved = resolve(node, nn.Module())
        return resolved.name, resolved.writes

    for target, name in ((operator.iadd, "add"), (operator.imul, "mul"), (operator.ipow, "pow"), (operator.iand, "and")):
        assert called(graph.call_function(target, (x, x))) == (name, True)
    assert called(graph.call_function(operator.and_, (x, x))) == ("and", False)
    assert called(graph.call_method("add_", (x, x))) == ("add", True)
    assert called(graph.call_method("__add__", (x, x))) == ("__add__", False)
    assert called(graph.call_function(F.relu, (x, True))) == ("relu", True)
    assert called(graph.call_function(F.relu, (x, False))) == ("relu", False)
    assert called(graph.call_function(F.relu, (x,), {"inplace": True})) == ("relu", True)
    assert called(graph.call_function(operator.index, (x,))) == ("index", False)


def test_a_parametrization_in_training_mode_is_not_read() -> None:
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
    model = nn.Sequential(conv).double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert isinstance(last_op(FxFrontend().read(fx.symbolic_trace(model)).graph), ops.Opaque)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert last_op(FxFrontend().read(fx.symbolic_trace(model.eval())).graph) == ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
