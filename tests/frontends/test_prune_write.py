"""What pruning changes comes back in torch models: widths, repaired biases, and weights that had no name of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import reparam_compiler
from reparam_compiler._api import frontend_for
from reparam_compiler.equivalence import difference, evaluate
from reparam_compiler.ir import ops
from reparam_compiler.passes import prune_channels

FLOAT32 = 1e-5  # relative, of outputs in float32 against the graph in float64
pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class ComputedWeights(nn.Module):
    """A parametrized conv, and one whose weight is computed in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, bias=False)
        parametrize.register_parametrization(self.first, "weight", Doubled())
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3))
        self.scale = nn.Parameter(torch.randn(16))
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(F.conv2d(torch.relu(self.first(x)), self.weight * 0.1))
        return self.last(self.scale.exp().reshape(1, -1, 1, 1) * inner)


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_computed_from_parameters_are_pruned_and_the_callers_stay(kind: str, calibrated: bool) -> None:
    torch.manual_seed(0)
    model, x = ComputedWeights().eval(), torch.randn(2, 3, 12, 11)
    native = torch.fx.symbolic_trace(model) if kind == "fx" else torch.export.export(model, (x,))
    before = model(x)
    pruned = reparam_compiler.prune(native, (x,), ratio=0.5, calibration=x if calibrated else None)
    found = (pruned if kind == "fx" else pruned.module())(x)
    graph = frontend_for(native).read(native, (x,)).graph
    data = [(x,)] if calibrated else None
    expected_graph = prune_channels.prune(graph, ratio=0.5, calibration=data).graph
    source = next(node.id for node in graph if isinstance(node.op, ops.Input))
    (expected,) = evaluate(expected_graph, {source: x}).values()
    assert difference(expected, found).relative <= FLOAT32
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert parametrize.is_parametrized(model.first, "weight")


def test_exported_program_keeps_an_input_that_is_named_as_a_builtin() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()  # its exported input is called `input`
    x = torch.randn(2, 3, 8, 7)
    program = torch.export.export(model, (x,))
    fused = reparam_compiler.fuse(program)
    assert fused.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert difference(model(x), fused.module()(x)).relative <= FLOAT32


def test_module_of_an_exported_program_keeps_it_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 7)
    module = torch.export.export(model, (x,)).module()
    fused = reparam_compiler.fuse(module, (x,))
    assert difference(model(x), fused(x)).relative <= FLOAT32
    assert sum(isinstance(part, nn.Conv2d) for part in fused.modules()) == 1
