"""A measured cost model: finite, positive, quick, and of the same opinion as the usual one where things are far apart."""

import math

import pytest
import torch
from torch import Tensor, nn

from reparam_compiler import CostModel, inspect, measure_costs
from reparam_compiler.cost import measure as machine
from tests.support.catalogue_parts import conv_bn


class Sum(nn.Module):
    """relu of the sum of its branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """`N C H W`."""
        return torch.relu(sum(branch(x) for branch in self.branches))


@pytest.fixture(scope="module")
def measured() -> CostModel:
    return measure_costs()


def test_every_figure_is_finite_and_positive(measured: CostModel) -> None:
    for figure in (measured.muls_per_second, measured.bytes_per_second, measured.launch_seconds):
        assert math.isfinite(figure)
        assert figure > 0


def test_a_measurement_takes_rounds_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    runs = []
    assert machine._medians(lambda: runs.append(1), lambda: runs.append(2)) == [pytest.approx(0, abs=1.0)] * 2
    assert runs == [1, 2] * (1 + machine.FEWEST)  # in turn, after one of each that warms up
    monkeypatch.setattr(machine, "SECONDS", math.inf)
    runs.clear()
    machine._medians(lambda: runs.append(1))
    assert len(runs) == 1 + machine.MOST


def test_a_repvgg_block_is_fused_by_it(measured: CostModel) -> None:
    block = Sum(conv_bn(64, 64, 3), conv_bn(64, 64, 1), nn.BatchNorm2d(64)).eval()
    report = inspect(block, (torch.randn(1, 64, 28, 28),), cost_model=measured)
    assert (report.before.convs, report.after.convs) == (2, 1)


def test_a_dense_five_by_five_is_refused_by_it_and_fused_where_cost_does_not_count(measured: CostModel) -> None:
    dilated = nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False)
    block = Sum(conv_bn(64, 64, 3), nn.Sequential(dilated, nn.BatchNorm2d(64))).eval()  # wespeaker's RSBB
    x = (torch.randn(1, 64, 28, 28),)
    report = inspect(block, x, cost_model=measured)
    assert report.after.convs == 2
    assert any("one conv would be slower" in refusal.reason for refusal in report.refusals)
    assert inspect(block, x, cost_model=measured, policy="always").after.convs == 1
