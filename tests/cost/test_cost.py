"""The tool prints the paper's columns: 11 models, 33 figures, and the memory of its Fig. 3."""

import pytest
import torch
from torch import nn

from benchmarks import paper_table
from reparam_compiler.cost.model import cost
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir.graph import Graph

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
def test_fused_model_costs_what_the_paper_prints(name: str) -> None:
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


def test_without_shapes_only_parameters_and_convs_are_counted() -> None:
    graph = FxFrontend().read(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())).graph
    found = cost(graph)
    assert (found.params, found.convs) == (4 * 3 * 9 + 4, 1)
    assert found.flops is found.winograd_muls is found.activation_bytes is None
