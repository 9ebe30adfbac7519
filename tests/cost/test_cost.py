"""The tool prints the paper's columns: 11 models, 33 figures, and the memory of its Fig. 3."""

from math import prod

import pytest
import torch
from torch import nn

from benchmarks import paper_table
from reparam_compiler.cost.model import cost, element_bytes, work
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, TensorType

PAPER = {  # RepVGG, CVPR 2021, Table 4: params (M), FLOPs (G), Winograd MULs (G)
    "A0": ("8.30", "1.4", "0.7"),
    "A1": ("12.78", "2.4", "1.3"),
    "A2": ("25.49", "5.1", "2.7"),
    "B0": ("14.33", "3.1", "1.6"),
    "B1": ("51.82", "11.8", "5.9"),
    "B1g2": ("41.36", "8.8", "4.6"),
    "B1g4": ("36.12", "7.3", "3.9"),
    "B2": ("80.31", "18.4", "9.1"),
    "B2g4": ("55.77", "11.3", "6.0"),
    "B3": ("110.96", "26.2", "12.9"),
    "B3g4": ("75.62", "16.1", "8.4"),
}
HEAVY = ("B2", "B2g4", "B3", "B3g4")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in PAPER])
def test_fused_model_costs_what_the_paper_prints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cost goes by shapes alone: no weights are drawn."""
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda weight, *_, **__: weight)
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda weight, *_, **__: nn.init.zeros_(weight))
    assert paper_table.as_printed(paper_table.fused_cost(name)) == PAPER[name]


def graph_of(model: nn.Module, *shape: int) -> Graph:
    return FxFrontend().read(torch.fx.symbolic_trace(model.eval()), (torch.zeros(shape),)).graph


def test_shared_weights_count_once_and_statistics_not_at_all() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    graph = graph_of(nn.Sequential(conv, nn.BatchNorm2d(4), conv), 1, 4, 5, 6)
    assert cost(graph).params == 4 * 4 * 9 + 4 + 2 * 4
    assert cost(graph).flops == 2 * 4 * 4 * 9 * 5 * 6


def test_only_three_by_three_convs_of_stride_one_take_winograd() -> None:
    for conv, share in ((nn.Conv2d(2, 4, 3), 4 / 9), (nn.Conv2d(2, 4, 3, stride=2), 1), (nn.Conv2d(2, 4, 1), 1)):
        found = cost(graph_of(conv, 1, 2, 9, 8))
        assert found.winograd_muls == pytest.approx(share * (found.flops or 0))


def test_a_residual_block_holds_its_input_and_a_plain_one_frees_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.second(self.first(x))

    plain = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    one = 8 * 6 * 5 * 4  # bytes of one activation
    assert cost(graph_of(plain, 1, 8, 6, 5)).activation_bytes == 2 * one
    assert cost(graph_of(Residual(), 1, 8, 6, 5)).activation_bytes == 3 * one


def test_an_output_stays_alive_though_an_op_in_place_reads_it() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = True

        def forward(self, x: torch.Tensor) -> object:
            y = torch.relu(x)
            z = torch.relu(y)
            return (y, z) if self.both else z

    one = 8 * 6 * 5 * 4
    assert cost(graph_of(Both(), 1, 8, 6, 5)).activation_bytes == 2 * one
    alone = Both()
    alone.both = False
    assert cost(graph_of(alone, 1, 8, 6, 5)).activation_bytes == one


def test_work_and_cost_count_winograd_alike_and_not_for_depthwise_or_dilated_convs() -> None:
    for conv, share in (
        (nn.Conv2d(4, 4, 3, groups=2), 4 / 9),
        (nn.Conv2d(4, 4, 3, groups=4), 1),
        (nn.Conv2d(4, 4, 3, dilation=2), 1),
    ):
        graph = graph_of(conv, 1, 4, 9, 8)
        node, found = graph[graph.outputs[0]], cost(graph)
        assert node.type is not None
        assert found.winograd_muls == pytest.approx(share * (found.flops or 0))
        assert work(node.op, node.params, 4 * 9 * 8, prod(node.type.static_shape or ())).muls == found.winograd_muls


@pytest.mark.parametrize(
    ("dtype", "size"), [("bool", 1), ("f16", 2), ("complex128", 16), ("float8_e5m2", 1), ("INT4", 1), ("", 4)]
)
def test_an_element_has_the_bytes_of_its_dtype_known_or_not(dtype: str, size: int) -> None:
    assert element_bytes(dtype) == size
    op = Node("y", ops.Elementwise("relu"), ("x",), TensorType(dtype, (3, 2)))
    graph = Graph.of([Node("x", ops.Input(), (), TensorType(dtype, (3, 2))), op], ["x", "y"])
    assert cost(graph).activation_bytes == 2 * 6 * size


def test_without_shapes_only_parameters_and_convs_are_counted() -> None:
    graph = FxFrontend().read(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())).graph
    found = cost(graph)
    assert (found.params, found.convs) == (4 * 3 * 9 + 4, 1)
    assert found.flops is found.winograd_muls is found.activation_bytes is None
