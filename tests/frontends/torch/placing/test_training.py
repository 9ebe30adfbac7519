"""What a module does where it trains is no part of its trace: it keeps its class if that cannot read what was cut."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from tests.support.small_models import normal

X = normal(2, 3, 8, 8).float()


class Net(nn.Module):
    """A second head, which `second` says when to call."""

    second = "never"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.drop, self.head, self.aux = nn.Dropout(0.1), nn.Conv2d(16, 5, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor, target: Any = None) -> Any:
        x = self.drop(self.body(self.stem(x).relu()).relu())
        if self.training and self.second == "training":
            return self.head(x), self.aux(x)
        if self.training and self.second == "loss":
            return float(self.aux(x).mean())
        return self.head(x)


class Trained(Net):
    second = "training"


class Loss(Net):
    second = "loss"


def pruned(model: nn.Module) -> tuple[nn.Module, Any]:
    with pytest.warns(reparam_compiler.errors.UnrepairedPruneWarning):
        result, report = reparam_compiler.prune(model.eval(), (X,), ratio=0.5, round_to=1, return_report=True)
    assert not any(part.training for part in [*result.modules(), *model.modules()])
    assert not result.train()(X).isnan().any()
    return result.eval(), report


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Trained, "where it trains it reads aux.weight, for values whose channels may have been cut"),
        (Loss, "what it does with aux.weight where it trains cannot be traced (x is asked for its value"),
    ],
)
def test_a_head_that_is_called_in_training_alone_makes_a_graph_module(kind: type[Net], why: str) -> None:
    result, report = pruned(kind())
    assert isinstance(result, torch.fx.GraphModule)
    assert report.remarks[-1].startswith(f"the result is a GraphModule, and no {kind.__name__}: {why}")


def test_a_layer_that_nothing_calls_keeps_no_class_away() -> None:
    result, report = pruned(Net())
    assert type(result) is Net
    assert report.remarks == ()


def test_fusing_cuts_nothing() -> None:
    model = Trained()
    model.body = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    result = reparam_compiler.fuse(model.eval(), (X,))
    assert type(result) is Trained
    assert [part.shape for part in result.train()(X)] == [(2, 5, 4, 4)] * 2
