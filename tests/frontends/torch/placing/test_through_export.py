"""A module that no tracer takes is pruned as its export shows it, and comes back as its own class where it can."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from tests.support.small_models import EXACT, normal, relative_error

X = normal(1, 3, 8, 6)
Wiring = Callable[["Net", Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")


class Net(nn.Module):
    """Its code decides by a size, which no tracer takes."""

    def __init__(self, wiring: Wiring, *, bias: bool = True) -> None:
        super().__init__()
        self.names, self.wiring = ["cat", "dog"], wiring
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=bias), nn.BatchNorm2d(16)
        self.drop, self.b = nn.Dropout(0.5), nn.Conv2d(16, 4, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x))
        y = y.relu() if y.shape[2] > 4 else y.sigmoid()
        return self.b(self.drop(self.wiring(self, y)))


def net(wiring: Wiring = lambda m, y: y, **options: Any) -> Net:
    torch.manual_seed(0)
    return Net(wiring, **options).double().eval()


def cut_by_hand(model: Net, pruned: Any) -> Net:
    """The model without the channels of `a` whose filters the pruned one does not have."""
    stays = [i for i, row in enumerate(model.a.weight) if any(torch.equal(row, kept) for kept in pruned.a.weight)]
    model = copy.deepcopy(model)
    for layer in (model.a, model.norm):
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.ndim:
                tensor.data = tensor.data[stays]
                assert getattr(layer, name).shape[0] == 8
    model.b.weight.data = model.b.weight.data[:, stays]
    return model


def test_module_comes_back_as_its_own_class_at_any_batch_and_size_and_trains() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    pruned, report = reparam_compiler.prune(model, (X,), ratio=0.5, return_report=True)
    assert type(pruned) is Net
    assert pruned.names == ["cat", "dog"]
    assert (pruned.a.out_channels, pruned.norm.num_features, pruned.b.in_channels) == (8, 8, 8)
    by_hand = cut_by_hand(model, pruned)
    for x in (X, normal(3, 3, 8, 6), normal(2, 3, 3, 5)):
        assert relative_error(by_hand(x), pruned(x)) < EXACT
    assert not torch.equal(pruned.train()(X), pruned(X))  # its dropout drops
    assert pruned.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.a.out_channels == 16
    (remark,) = report.remarks
    assert remark.endswith("cut, and exported anew: what it does in evaluation, for inputs like the example's, is proven")


def test_a_bias_that_repair_adds_is_one_of_the_layer() -> None:
    calibration = normal(16, 3, 8, 6)
    pruned = reparam_compiler.prune(net(bias=False), (X,), ratio=0.5, calibration=calibration)
    assert type(pruned) is Net
    assert pruned.b.bias is not None
    assert pruned.a.bias is None


def test_rounds_and_changes_in_place_keep_the_class() -> None:
    pruner = reparam_compiler.IterativePruner(net().train(), (X,), ratio=0.5, steps=2, round_to=1)
    models = [pruner.step(), pruner.step()]
    assert [(type(model), model.a.out_channels, model.training) for model in models] == [(Net, 12, True), (Net, 8, True)]
    model = net()
    assert reparam_compiler.prune(model, (X,), ratio=0.5, inplace=True) is model
    assert model.a.out_channels == 8


def test_layers_of_one_tensor_are_told_their_width_both() -> None:
    model = net(lambda m, y: m.a2(m.second(y)))
    model.second = nn.Conv2d(16, 16, 3, padding=1).double()
    model.a2 = nn.Conv2d(16, 16, 3, padding=1).double()
    model.a2.weight = model.second.weight
    pruned = reparam_compiler.prune(model, (X,), ratio=0.5)
    assert type(pruned) is Net
    assert pruned.a2.weight is pruned.second.weight
    assert pruned.a2.in_channels == pruned.second.out_channels == 8


def fixed_width(m: Net, y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], 16, -1).reshape(y.shape)


def fixed_sizes(m: Net, y: Tensor) -> Tensor:
    return y.view(y.shape[0], 16, y.shape[2] * y.shape[3]).view(y.shape)


def other_layer(m: Net, y: Tensor) -> Tensor:
    return y if y.shape[3] > 4 else m.other(y)


@pytest.mark.parametrize(
    ("wiring", "why"),
    [
        (fixed_width, "its code would compute reshape instead of reshape"),
        (fixed_sizes, "cut, it cannot be exported anew (RuntimeError: shape"),
        (other_layer, "other.weight is not read for inputs like the example's, and may be for others"),
    ],
)
def test_program_is_given_where_the_code_would_have_to_change_or_does_not_show_all(wiring: Wiring, why: str) -> None:
    model = net(wiring)
    if wiring is other_layer:
        model.other = nn.Conv2d(16, 16, 1).double()
    pruned, report = reparam_compiler.prune(model, (X,), ratio=0.5, return_report=True)
    assert isinstance(pruned, torch.fx.GraphModule)
    assert report.remarks[1].startswith(f"the result is a GraphModule, and no Net: {why}")
    x = normal(3, 3, 8, 6)
    assert pruned(x).shape == model(x).shape
    pruned.train().eval()


def test_a_module_that_cannot_be_cut_in_place_stays_as_it_was() -> None:
    model = net(fixed_width)
    pruned = reparam_compiler.prune(model, (X,), ratio=0.5, inplace=True)
    assert pruned is not model
    assert (model.a.out_channels, model.a.weight.shape[0]) == (16, 16)
    assert model(X).shape == (1, 4, 8, 6)
