"""The nodes of a model that is written: calls that give tuples, of which the graph has the first element."""

import operator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.frontends.torch.called import is_read_by_its_first, tuple_behind
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.native import InPlace, NativeNodes
from reparam_compiler.ir import ops
from tests.support.small_models import normal
from tests.support.spelled import spelled, weight, widths_after_pruning
from tests.support.torch_readings import value

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
aten = torch.ops.aten


def layer_norm(*taken: int) -> tuple[fx.Graph, fx.Node, list[fx.Node]]:
    """A graph of a layer norm of which these elements are read."""
    graph = fx.Graph()
    norm = graph.call_function(aten.native_layer_norm.default, (graph.placeholder("x"), [4], None, None, 1e-5))
    return graph, norm, [graph.call_function(operator.getitem, (norm, index)) for index in taken]


def test_the_first_element_of_a_tuple_is_the_call_where_nothing_else_is_read() -> None:
    _, norm, (first,) = layer_norm(0)
    assert is_read_by_its_first(norm)
    assert tuple_behind(first) is norm
    assert tuple_behind(norm) is None
    nodes = NativeNodes({"norm": norm, "y": first}, InPlace({}, {}))
    assert nodes.call("y") is norm
    assert nodes["y"] is first
    _, norm, (first, _) = layer_norm(0, 1)
    assert not is_read_by_its_first(norm)
    assert tuple_behind(first) is None


class Normed(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.norm = nn.Conv2d(3, 8, 1), nn.Linear(8, 4), norm or nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).mean((2, 3))))


def test_a_decomposed_layer_norm_is_read_pruned_and_written_back(tmp_path: Path) -> None:
    model, x = Normed().double().eval(), normal(2, 3, 4, 5)
    program = torch.export.export(model, (x,)).run_decompositions()
    graph = ExportFrontend().read(program).graph
    assert [node.op for node in graph if isinstance(node.op, ops.LayerNorm)] == [ops.LayerNorm((8,), 1e-5)]
    torch.testing.assert_close(value(graph, x), model(x))
    pruned = reparam_compiler.prune(program, (x,), ratio=0.5, round_to=1)
    (norm,) = [node for node in pruned.graph.nodes if node.target is aten.native_layer_norm.default]
    assert norm.args[1] == [4]
    pruned.run_decompositions()
    spellings = [
        spelled(lambda n, y: F.layer_norm(y, (16, 4, 4), 2 * n.w), w=weight(16, 4, 4)),
        spelled(lambda n, y: F.layer_norm(y.mean((2, 3)), (16,))),
        spelled(lambda n, y: F.layer_norm(y, (4, 4), n.w), w=weight(4, 4)),
    ]
    assert widths_after_pruning(spellings, "decomposed", tmp_path) == [8, 8, 8]


class Weighed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (8,), x.mean(0))


def test_a_tuple_with_a_computed_weight_stays_opaque() -> None:
    model, x = Normed(Weighed()).double().eval(), normal(2, 3, 4, 5)
    program = torch.export.export(model, (x,)).run_decompositions()
    graph = ExportFrontend().read(program).graph
    assert [node.op.name for node in graph if isinstance(node.op, ops.Opaque)][-2:] == ["native_layer_norm", "getitem"]
    torch.testing.assert_close(value(graph, x), model(x))


class OfBothElements(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y, mean, _ = torch.native_layer_norm(x, (8,), None, None, 1e-5)
        return y + mean


def test_a_tuple_of_which_more_is_read_is_no_layer_norm() -> None:
    model, x = Normed(OfBothElements()).double().eval(), normal(2, 3, 4, 5)
    graph = ExportFrontend().read(torch.export.export(model, (x,))).graph
    assert not [node for node in graph if isinstance(node.op, ops.LayerNorm)]
    torch.testing.assert_close(value(graph, x), model(x))
