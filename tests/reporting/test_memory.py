"""The memory that torch holds while it runs a graph, beside what is planned."""

import pytest
import torch
from torch import nn

from reparam_compiler import fuse
from reparam_compiler.cost.model import alive_bytes
from reparam_compiler.models.opening import open
from reparam_compiler.reporting import memory
from reparam_compiler.reporting.memory import measured_bytes
from tests.support.pages import fused_page

SIZE = 2 * 8 * 6 * 5 * 4
"""Bytes of a value."""


class Branches(nn.Module):
    """Two convs of one value, and a conv of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 8 H W`."""
        return self.last(self.wide(x) + self.narrow(x))


def graph_of(model: nn.Module, size: tuple[int, ...] = (2, 8, 6, 5)) -> memory.Graph:
    return open(model.eval(), (torch.zeros(size),)).graph


def test_a_plain_model_holds_two_values_and_one_with_branches_three() -> None:
    before = measured_bytes(graph_of(Branches()))
    assert max(before.values()) == 3 * SIZE
    after = measured_bytes(graph_of(fuse(Branches().eval(), policy="always")))
    assert max(after.values()) == 2 * SIZE


def test_where_nothing_runs_in_place_it_is_the_plan() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 16, 1), nn.MaxPool2d(2), nn.Conv2d(16, 2, 1)))
    assert measured_bytes(graph) == alive_bytes(graph)


def test_a_view_of_a_value_takes_nothing_more() -> None:
    graph = graph_of(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 30)), nn.Flatten()))
    assert set(measured_bytes(graph).values()) == {SIZE}


def test_random_numbers_of_the_caller_stay_as_they_were() -> None:
    graph, state = graph_of(Branches()), torch.random.get_rng_state()
    measured_bytes(graph)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["MOST_PARAMETERS", "MOST_MULTIPLY_ADDS", "MOST_ACTIVATION_BYTES"])
def test_a_graph_that_is_too_large_is_not_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(Branches())
    monkeypatch.setattr(memory, name, 10)
    assert measured_bytes(graph) == {}


def test_a_graph_that_torch_has_no_room_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    graph = graph_of(Branches())
    monkeypatch.setattr(torch, "zeros", full)
    assert measured_bytes(graph) == {}


def test_a_graph_of_halves_or_without_sizes_is_not_run() -> None:
    assert measured_bytes(open(Branches().eval()).graph) == {}
    assert measured_bytes(open(Branches().half().eval(), (torch.zeros(2, 8, 6, 5).half(),)).graph) == {}


def test_a_page_has_the_most_that_was_held() -> None:
    page = fused_page()
    (figure,) = [figure for figure in page.figures if figure.name == "measured in torch"]
    assert figure.before == max(node.measured or 0 for node in page.before.nodes)
    assert figure.after is not None
    assert figure.after < figure.before
