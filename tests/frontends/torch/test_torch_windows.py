"""Transposed convs: every spelling is read, and those that torch has are written."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.base import Reading
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from tests.support.small_models import EXACT, Kind, normal, relative_error, run
from tests.support.torch_readings import TORCH_KINDS, read, value

X = {1: normal(2, 4, 5), 2: normal(2, 4, 5, 4), 3: normal(2, 4, 3, 5, 4)}
MODULES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Functional(nn.Module):
    """A transposed conv as a function."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(4, 3, *(3,) * rank)), nn.Parameter(normal(6))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.rank](x, self.weight, bias=self.bias, stride=2, padding=1, output_padding=1, groups=2)


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_modules_and_functions_are_read_as_transposed_convs(rank: int, kind: Kind) -> None:
    modules = [Functional(rank), MODULES[rank](4, 6, 3, 2, 1, 1, 2), MODULES[rank](4, 4, 2, dilation=2, bias=False)]
    for model in modules:
        graph = read(kind, model, X[rank]).graph
        op = graph[graph.outputs[0]].op
        assert isinstance(op, ops.ConvTranspose)
        assert op.groups == getattr(model, "groups", 2)
        assert relative_error(run(model.double(), X[rank]), value(graph, X[rank])) < EXACT


def test_a_transposed_convolution_of_aten_is_one() -> None:
    class Aten(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.convolution(x, weight, None, [2, 1], [1, 0], [1, 1], True, [1, 0], 1)

    weight = normal(4, 3, 3, 3)
    graph = read("fx", Aten(), X[2]).graph
    assert graph[graph.outputs[0]].op == ops.ConvTranspose((2, 1), ((1, 1), (0, 0)), (1, 0), (1, 1))


def test_a_transposed_conv_of_a_given_size_or_without_a_batch_is_opaque() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[12, 10])

    graph = read("fx", Sized(), X[2]).graph
    assert isinstance(graph[graph.outputs[0]].op, ops.Opaque)
    graph = read("export", nn.ConvTranspose2d(4, 4, 3), X[2][0]).graph
    assert isinstance(graph[graph.outputs[0]].op, ops.Opaque)
    graph = read("export", nn.Conv2d(4, 4, 3), X[2][0]).graph
    assert isinstance(graph[graph.outputs[0]].op, ops.Opaque)


WITHOUT_BATCH: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "avg_pool1d": (2, lambda x: F.avg_pool1d(x, 2)),
    "AvgPool2d": (3, nn.AvgPool2d(2)),
    "avg_pool3d": (4, lambda x: F.avg_pool3d(x, (2, 1, 1), ceil_mode=True)),
    "MaxPool1d": (2, nn.MaxPool1d(2)),
    "max_pool2d": (3, lambda x: F.max_pool2d(x, 3, 1, 1, ceil_mode=True)),
    "MaxPool3d": (4, nn.MaxPool3d((2, 1, 1))),
    "adaptive_avg_pool2d": (3, lambda x: F.adaptive_avg_pool2d(x, 2)),
    "adaptive_max_pool2d": (3, lambda x: F.adaptive_max_pool2d(x, 2)),
    "lp_pool1d": (2, lambda x: F.lp_pool1d(x, 2.0, 2)),
    "InstanceNorm1d": (2, nn.InstanceNorm1d(2)),
    "InstanceNorm2d": (3, nn.InstanceNorm2d(2)),
}


@pytest.mark.parametrize("name", WITHOUT_BATCH)
def test_a_pool_without_a_batch_moves_along_what_are_channels_elsewhere_and_pins_them(name: str) -> None:
    class Applies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = function

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x)

    rank, function = WITHOUT_BATCH[name]
    shape = (2, 4, 5, 4)[:rank]
    traced = torch.fx.symbolic_trace(Applies().eval())
    assert is_understood(FxFrontend().read(traced, (normal(3, *shape),)).graph), "the same op with a batch is understood"
    assert not is_understood(FxFrontend().read(traced, (normal(*shape),)).graph)


def is_understood(graph: Graph) -> bool:
    """Pruning knows what the last op does to channels."""
    op = graph[graph.outputs[0]].op
    return not isinstance(op, ops.Opaque) or op.coupling is not None


def rewritten(reading: Reading, op: ops.ConvTranspose, weight: Tensor, bias: Tensor | None) -> Graph:
    """The one op of a graph made another one, as a pass makes it."""
    graph = reading.graph
    sink = graph[graph.outputs[0]]
    params = [t if t is None else Param.of(t.numpy(), role=r, dtype="f64") for t, r in ((weight, "weight"), (bias, "bias"))]
    new = replace(sink, op=op, inputs=(sink.inputs[0], *params), replaces=(sink.id,))
    return graph.rewrite({sink.id: new})


@settings(max_examples=40)
@given(
    rank=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    extra=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    with_bias=st.booleans(),
)
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_new_transposed_conv_computes_what_the_graph_says(
    kind: Kind, rank: int, stride: int, padding: int, extra: int, dilation: int, groups: int, with_bias: bool
) -> None:
    extra = min(extra, max(stride, dilation) - 1)
    # what torch calls output_padding may also be cut off less at the end
    op = ops.ConvTranspose((stride,) * rank, ((padding, padding - extra),) * rank, (0,) * rank, (dilation,) * rank, groups)
    reading = read(kind, nn.ReLU(), X[rank])
    bias = normal(3 * groups, seed=3) if with_bias else None
    after = rewritten(reading, op, normal(4, 3, *(3,) * rank), bias)
    assert relative_error(value(after, X[rank]), run(reading.write(after), X[rank])) < EXACT


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("padding", [((2, 1),), ((0, 2),), ((-1, -1),)])
def test_what_torch_cannot_cut_off_is_refused_with_the_reason(kind: Kind, padding: tuple[tuple[int, int]]) -> None:
    reading = read(kind, nn.ReLU(), X[1])
    after = rewritten(reading, ops.ConvTranspose((1,), padding, (0,), (1,)), normal(4, 3, 3), None)
    with pytest.raises(RewriteError, match="cuts the same off both ends"):
        reading.write(after)


def test_a_written_transposed_conv_says_its_widths() -> None:
    reading = read("fx", nn.ConvTranspose2d(4, 6, 3, groups=2), X[2])
    graph = reading.graph
    node: Node = graph[graph.outputs[0]]
    weight, bias = node.params
    half = [replace(weight, shape=(4, 1, 3, 3), load=lambda: weight.load()[:, :1])]
    half.append(replace(bias, shape=(2,), load=lambda: np.asarray(bias.load())[:2]))
    after = graph.rewrite({node.id: replace(node, inputs=(node.inputs[0], *half))})
    model = reading.write(after)
    (module,) = [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert (module.in_channels, module.out_channels) == (4, 2)
    assert relative_error(value(after, X[2]), run(model, X[2])) < EXACT
