"""Products with a matrix are linears, read and written, on any number of axes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param
from tests.support.small_models import EXACT, Kind, normal, relative_error, run, traced_as
from tests.support.torch_readings import TORCH_KINDS, read, value


class Matrices(nn.Module):
    """A model of one function, with matrices for it to read."""

    def __init__(self, function: Callable[["Matrices", Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.into, self.out = nn.Parameter(normal(4, 5, seed=1)), nn.Parameter(normal(5, 4, seed=2))
        self.bias, self.vector = nn.Parameter(normal(5, seed=3)), nn.Parameter(normal(4, seed=4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


ANY_RANK: list[Callable[[Matrices, Tensor], Tensor]] = [
    lambda m, x: x @ m.into,
    lambda m, x: x @ m.out.t(),
    lambda m, x: x @ m.out.T,
    lambda m, x: torch.matmul(x, m.into),
    lambda m, x: torch.matmul(input=x, other=m.into),
    lambda m, x: x.matmul(m.into * 2),
    lambda m, x: F.linear(x, m.out, m.bias),
    lambda m, x: F.linear(x, m.into.t()),
]
MATRICES_ONLY: list[Callable[[Matrices, Tensor], Tensor]] = [
    lambda m, x: torch.mm(x, m.into),
    lambda m, x: x.mm(m.into),
    lambda m, x: torch.mm(x, mat2=m.into),
    lambda m, x: torch.addmm(m.bias, x, m.into),
    lambda m, x: torch.addmm(m.bias, x, m.into, beta=3, alpha=0.5),
    lambda m, x: torch.addmm(m.bias.view(1, 5), x, m.into),
    lambda m, x: torch.addmm(m.bias[:1], x, m.into, beta=0.1),
]
CASES = [(f, shape) for f in ANY_RANK for shape in ((3, 4), (2, 3, 4), (2, 3, 2, 4))] + [(f, (3, 4)) for f in MATRICES_ONLY]


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize(("function", "shape"), CASES)
def test_every_product_with_a_matrix_is_a_linear(
    function: Callable[[Matrices, Tensor], Tensor], shape: tuple[int, ...], kind: Kind
) -> None:
    model, x = Matrices(function), normal(*shape)
    graph = read(kind, model, x).graph
    last = graph[graph.outputs[0]]
    assert last.op == ops.Linear()
    assert last.params[0].shape == (5, 4)
    assert relative_error(run(model, x), value(graph, x)) < EXACT


@pytest.mark.parametrize("decompositions", [{}, None])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_a_decomposed_linear_is_still_one(shape: tuple[int, ...], decompositions: dict[Any, Any] | None) -> None:
    model, x = nn.Linear(4, 5).double(), normal(*shape)
    graph = ExportFrontend().read(traced_as("export", model, (x,)).run_decompositions(decompositions)).graph
    assert [node.params[0].shape for node in graph if isinstance(node.op, ops.Linear)] == [(5, 4)]
    assert relative_error(run(model, x), value(graph, x)) < EXACT


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.out @ x,
        lambda m, x: x @ m.vector,
        lambda m, x: x @ x.t(),
        lambda m, x: torch.addmm(x[:, :1], x, m.into),
        lambda m, x: torch.addmm(x[:, :1], m.out[:4], m.into[:, :4]),
        lambda m, x: torch.addmm(m.bias[:4].view(4, 1), x, m.into),
        lambda m, x: F.linear(x, m.vector),
    ],
)
def test_other_products_are_opaque_and_still_run(function: Callable[[Matrices, Tensor], Tensor], kind: Kind) -> None:
    model, x = Matrices(function), normal(4, 4)
    graph = read(kind, model, x).graph
    assert isinstance(graph[graph.outputs[0]].op, ops.Opaque)
    assert relative_error(run(model, x), value(graph, x)) < EXACT


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize(("function", "shape"), CASES)
def test_a_new_linear_takes_the_place_of_a_product(
    function: Callable[[Matrices, Tensor], Tensor], shape: tuple[int, ...], kind: Kind
) -> None:
    model, x = Matrices(lambda m, x: torch.relu(function(m, x))), normal(*shape)
    reading = read(kind, model, x)
    (old,) = [node for node in reading.graph if isinstance(node.op, ops.Linear)]
    weight, bias = normal(5, 4, seed=7), normal(5, seed=8)
    params = (Param.of(t.numpy(), role=role, dtype="f64") for t, role in ((weight, "weight"), (bias, "bias")))
    after = reading.graph.rewrite({old.id: replace(old, inputs=(old.inputs[0], *params), replaces=(old.id,))})
    assert relative_error(torch.relu(F.linear(x, weight, bias)), run(reading.write(after), x)) < EXACT


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize(("function", "shape"), CASES)
def test_a_product_with_other_parameters_is_written_as_a_linear(
    function: Callable[[Matrices, Tensor], Tensor], shape: tuple[int, ...], kind: Kind
) -> None:
    model, x = Matrices(lambda m, x: torch.relu(function(m, x))), normal(*shape)
    reading = read(kind, model, x)
    (old,) = [node for node in reading.graph if isinstance(node.op, ops.Linear)]
    narrow = [replace(p, shape=(3, *p.shape[1:]), load=lambda p=p: p.load()[:3]) for p in old.params]
    after = reading.graph.rewrite({old.id: replace(old, inputs=(old.inputs[0], *narrow))})
    before = run(model, x)
    assert relative_error(before[..., :3], run(reading.write(after), x)) < EXACT
    assert torch.equal(run(model, x), before)
