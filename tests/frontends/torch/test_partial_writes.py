"""Writes to a part of a value, pruned: what is written is cut with the channels, however it was broadcast to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError
from tests.support.small_models import normal
from tests.support.spelled import Body, spelled, weight, widths_after_pruning

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")


def written(value_of: Callable[[Any, Tensor], Any]) -> Body:
    def body(n: Any, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, :, 0:1, 1:] = value_of(n, y)
        return y

    return body


def buffer(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


CUT = [
    spelled(written(lambda n, y: n.v), v=buffer(1, 16, 1, 1)),
    spelled(written(lambda n, y: n.v), v=buffer(16, 1, 1)),
    spelled(written(lambda n, y: n.v), v=buffer(2, 16, 1, 3), batch=False),
    spelled(written(lambda n, y: n.v), v=buffer(1, 1, 16, 1, 1)),
    spelled(written(lambda n, y: 2 * n.v), v=buffer(1, 16, 1, 1)),
    spelled(written(lambda n, y: n.v), v=weight(16, 1, 3)),
    spelled(written(lambda n, y: y[:, :, 3:, 1:])),
    spelled(written(lambda n, y: 0.5)),
    spelled(lambda n, y: torch.slice_scatter(y, n.v, 2, 0, 1), v=buffer(2, 16, 1, 4), batch=False),
    spelled(lambda n, y: torch.slice_scatter(y, (2 * n.v).expand(2, 16, 1, 4), 2, 0, 1), v=buffer(16, 1, 1), batch=False),
    spelled(lambda n, y: torch.slice_scatter(n.v, y[:, :, 1:3], 2, 0, 2), v=buffer(2, 16, 4, 4), batch=False),
]


@pytest.mark.parametrize("kind", ["export", "decomposed", "dynamic"])
def test_what_is_written_to_a_part_is_cut_with_the_channels(kind: str, tmp_path: Path) -> None:
    chosen = [case for case in CUT if case.batch or kind != "dynamic"]
    assert widths_after_pruning(chosen, kind, tmp_path) == [8] * len(chosen)


class Canvas(nn.Module):
    """A map written into zeros that the graph computes: no call of the model holds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        canvas = torch.zeros(2, 8, 6, 6)
        canvas[:, :, 1:5, 1:6] = self.a(x)
        return self.b(canvas)


def test_a_canvas_of_the_graph_s_own_keeps_its_channels() -> None:
    program = torch.export.export(Canvas().eval(), (normal(2, 3, 4, 5).float(),))
    with pytest.raises(InfeasiblePruneError, match="writes into what is computed from parameters"):
        reparam_compiler.prune(program, ratio=0.5, round_to=1)
