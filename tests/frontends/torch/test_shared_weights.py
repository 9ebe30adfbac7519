"""A plain module is traced without a second copy of its large weights, and what is made of it has its own all the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.frontends.torch.tracing.modules import traced
from reparam_compiler.frontends.torch.wide import LARGE
from tests.support.small_models import normal, randomised, same_state, state_of

WIDTH = 512
X = normal(1, 4, 3, 2).float()


class Wide(nn.Module):
    """Branches that become one conv, a conv that stays, a linear layer that trains alone; all of LARGE weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, WIDTH, 1), nn.BatchNorm2d(WIDTH)
        self.branches = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)])
        self.last, self.head = nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.last(torch.relu(sum(branch(x) for branch in self.branches)))


def wide() -> nn.Module:
    return randomised(Wide()).float()


def storages(module: nn.Module) -> dict[int, int]:
    """The bytes of each piece of memory that parameters stand in, by where it is."""
    return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}


def own_bytes(module: nn.Module, other: nn.Module) -> int:
    """The bytes of a module's parameters that are none of another's."""
    return sum(size for place, size in storages(module).items() if place not in storages(other))


def test_the_copy_that_is_traced_holds_no_large_weight() -> None:
    model = wide()
    assert all(p.numel() >= LARGE for p in model.parameters() if p.ndim > 1 and p.shape[1] == WIDTH)
    trace = traced(model, (X,), copy=True)
    assert 0 < own_bytes(trace.module, model) < sum(storages(model).values()) / 50


@pytest.mark.parametrize("verb", ["fuse", "prune"])
@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
def test_what_is_made_shares_nothing_with_the_callers_model(verb: str) -> None:
    model = wide()
    before = state_of(model)
    made: Any = reparam_compiler.fuse(model, (X,)) if verb == "fuse" else reparam_compiler.prune(model, (X,), ratio=0.5)
    assert own_bytes(made, model) == sum(storages(made).values())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1)
    assert same_state(before, state_of(model))


class Watched(nn.Module):
    """A weight that a list holds too, and one of a layer whose hook writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.decayed = [self.first.weight]
        self.second.register_forward_pre_hook(halved)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def halved(layer: Any, _: Any) -> None:
    layer.weight.data.mul_(0.5)


def test_what_may_be_written_to_stays_a_copy() -> None:
    model = Watched().eval()
    trace = traced(model, None, copy=True)
    assert trace.shared == frozenset()
    assert not storages(trace.module).keys() & storages(model).keys()


def test_a_trace_of_the_model_itself_shares_all_of_it() -> None:
    model = wide()
    assert storages(traced(model, (X,), copy=False).module) == storages(model)
