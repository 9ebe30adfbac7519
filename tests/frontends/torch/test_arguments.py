"""Arguments by place, by torch's own names and by numpy's, read and written back where they stand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.frontends.torch.arguments import argument, by_own_words, set_argument
from reparam_compiler.ir import ops
from tests.support.small_models import normal
from tests.support.spelled import halves, spelled, weight, widths_after_pruning
from tests.support.torch_readings import read, value

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")


def call(*args: Any, **kwargs: Any) -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph.call_function(torch.narrow, (x, *args), kwargs)


def test_an_argument_is_found_by_its_place_and_by_each_of_its_names() -> None:
    assert argument(call(1, 8), 2, "start") == 8
    assert argument(call(dim=1), 1, "dim") == argument(call(axis=1), 1, "dim") == 1
    assert argument(call(), 1, "dim") is None
    assert by_own_words({"axis": 1, "keepdims": True, "x1": 2, "x2": 3}) == {"dim": 1, "keepdim": True, "input": 2, "other": 3}


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (call(0), (1,), {}),
        (call(), (1,), {}),
        (call(dim=0), (), {"dim": 1}),
        (call(axis=0), (), {"axis": 1}),
        (call(axis=0, start=2), (), {"axis": 1, "start": 2}),
    ],
)
def test_an_argument_is_exchanged_where_it_stands(given: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    set_argument(given, 1, "dim", value=1)
    assert given.args[1:] == args
    assert given.kwargs == kwargs


class Joined(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.join = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.a(x), self.b(x))


AS_NUMPY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: torch.stack((a, b), 1).sum(1, keepdims=True),
    "mean": lambda a, b: (a + b).mean(axis=(2, 3), keepdims=True),
    "stack": lambda a, b: torch.stack((a, b), axis=2).sum(0),
    "cat": lambda a, b: torch.cat((a, b), axis=1),
    "narrow": lambda a, b: torch.narrow(a, axis=1, start=2, length=3) + b[:, :3],
    "chunk": lambda a, b: a.chunk(2, axis=1)[1] + b[:, :4],
    "first": lambda a, b: torch.mul(x1=torch.abs(x=a), x2=b) + torch.add(a=a, other=b),
    "squeeze": lambda a, b: torch.unsqueeze(a + b, axis=2).squeeze(axis=2),
}


@pytest.mark.parametrize("name", AS_NUMPY)
def test_numpy_s_words_are_read_as_torch_s(name: str) -> None:
    x = normal(2, 3, 6, 7)
    model = Joined(AS_NUMPY[name]).double().eval()
    torch.testing.assert_close(value(read("fx", model, x).graph, x), model(x))
    fused = reparam_compiler.fuse(fx.symbolic_trace(model), verify=False)
    torch.testing.assert_close(fused(x), model(x))


CUT = [
    spelled(lambda n, y: torch.cat((y, -y), axis=1)),
    spelled(lambda n, y: halves(y.chunk(2, axis=1))),
    spelled(lambda n, y: halves(torch.split(y, 8, dim=1))),
    spelled(lambda n, y: halves([torch.narrow(y, axis=1, start=0, length=8), y.narrow(axis=1, start=8, length=8)])),
    spelled(lambda n, y: torch.stack((y, -y), axis=2).amax(axis=2)),
    spelled(lambda n, y: y.mean(axis=(2, 3), keepdims=True)),
    spelled(lambda n, y: y.unflatten(dim=1, sizes=(4, 4)).mean(axis=2)),
    spelled(lambda n, y: y.softmax(axis=2) + torch.softmax(y, axis=3)),
    spelled(lambda n, y: y.select(axis=2, index=1)),
    spelled(lambda n, y: y.unbind(axis=2)[0]),
    spelled(lambda n, y: torch.index_select(y, axis=2, index=n.table), table=lambda: torch.tensor([0, 2])),
    spelled(lambda n, y: y.repeat_interleave(2, axis=1)),
    spelled(lambda n, y: y.cumsum(axis=2) + y.std(axis=2, keepdims=True)),
    spelled(lambda n, y: torch.linalg.vector_norm(y, axis=(2, 3), keepdims=True)),
    spelled(lambda n, y: torch.slice_scatter(y, 2 * n.w, axis=2, start=0, end=1), w=weight(2, 16, 1, 4)),
    spelled(lambda n, y: y.mean((2, 3), keepdim=True).expand_as(other=y) * y),
    spelled(lambda n, y: torch.matmul(other=y, input=2 * n.w), w=weight(4, 4)),
    spelled(lambda n, y: torch.prelu(weight=2 * n.w, input=y - 1), w=weight(16)),
    spelled(lambda n, y: torch.maximum(other=y, x1=2 * n.w), w=weight(16, 1, 1)),
    spelled(lambda n, y: y.flip(2, 3)),
]
KEPT = [
    spelled(lambda n, y: y.select(axis=1, index=3).unsqueeze(axis=1) + y),
    spelled(lambda n, y: y.softmax(axis=1)),
    spelled(lambda n, y: y.flip(3, 1)),
    spelled(lambda n, y: y.repeat_interleave(2, 1, output_size=32)),
    spelled(lambda n, y: y.squeeze()),
    spelled(lambda n, y: y.squeeze(1)),
]


def test_calls_with_numpy_s_words_are_pruned_and_written_back(tmp_path: Path) -> None:
    widths = widths_after_pruning([*CUT, *KEPT], "fx", tmp_path)
    assert widths == [8] * len(CUT) + [16] * len(KEPT)


def test_a_registered_rule_gets_the_arguments_by_torch_s_names() -> None:
    graph = read("fx", Joined(lambda a, b: torch.sort(a + b, axis=1)[0]), normal(2, 3, 6, 7)).graph
    (sort,) = [node.op for node in graph if isinstance(node.op, ops.Opaque) and node.op.name == "sort"]
    assert sort.arguments["dim"] == 1
