"""The fake values of a program that was cut are those that an export of what it computes would have."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import reparam_compiler
from reparam_compiler.frontends.torch.fake_values import FakeValues
from tests.support.small_models import normal

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")


class Net(nn.Module):
    """Ops whose values follow their input, ops that are told sizes, a tuple, and a write in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.v = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.a(x)))
        y = y.reshape(-1, 8, 20).unflatten(2, (4, 5)) + torch.cat(y.split(4, 1), 1).softmax(2, dtype=torch.float64)
        y = y.clone().float()
        y[:, :, 0:1] = self.v
        return self.b(y).permute(0, 2, 3, 1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_value_of_a_cut_program_has_the_shape_and_dtype_of_what_is_computed(dynamic: bool) -> None:
    x = normal(2, 3, 4, 5).float()
    shapes = ({0: Dim("batch")},) if dynamic else None
    program = torch.export.export(Net().eval(), (x,), dynamic_shapes=shapes)
    pruned = reparam_compiler.prune(program, ratio=0.5, round_to=1)
    computed: dict[str, tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]] = {}
    first = 1 if dynamic else 0

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                computed[n.name] = value.dtype, tuple(value.shape)[first:], value.stride()[first:]
            return value

    tensors = {**pruned.state_dict, **pruned.constants}
    stored = [tensors[spec.target] for spec in pruned.graph_signature.input_specs if spec.target]
    Run(pruned.graph_module).run(*stored, x)
    found = {node.name: node.meta["val"] for node in pruned.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    sizes = {name: (tuple(map(int, value.shape[first:])), value.stride()[first:]) for name, value in found.items()}
    assert {name: (value.dtype, *sizes[name]) for name, value in found.items()} == computed
    assert computed["conv2d"][1][-3:] == (4, 4, 5)


def test_a_new_call_has_the_value_that_it_would_be_exported_with() -> None:
    program = torch.export.export(Net().eval(), (normal(2, 3, 4, 5).float(),))
    values = FakeValues(program.graph, program.graph_module)
    last = program.graph.output_node().args[0][0]
    with program.graph.inserting_before(program.graph.output_node()):
        call = program.graph.call_function(torch.ops.aten.sum.dim_IntList, (last, [1]))
    assert tuple(values.of_call(call).shape) == (2, 5, 4)
    stored = values.of_parameter(nn.Parameter(torch.zeros(3, 2)))
    assert (tuple(stored.shape), stored.requires_grad) == ((3, 2), True)
