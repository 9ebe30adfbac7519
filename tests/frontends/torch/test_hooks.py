"""A module that does more than the forward of its class is none of that class, wherever that is asked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from reparam_compiler.frontends.torch.constant_folding import is_pure
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.frontends.torch.hooks import does_more_than_forward, written_class
from reparam_compiler.frontends.torch.ops.modules import called_module
from reparam_compiler.ir import ops
from reparam_compiler.models import opening

X = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def nothing(*given: Any) -> None:
    """A hook that leaves everything as it is."""


def own_forward(module: nn.Module) -> None:
    module.forward = lambda x: x


ADDED: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda module: module.register_forward_hook(nothing),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(nothing),
    "backward hook": lambda module: module.register_full_backward_hook(nothing),
    "backward pre-hook": lambda module: module.register_full_backward_pre_hook(nothing),
    "forward of its own": own_forward,
}


@pytest.mark.parametrize("name", ADDED)
def test_a_module_with_a_hook_is_asked_by_one_rule_whether_it_is_read_folded_or_traced(name: str) -> None:
    module = nn.Conv2d(3, 4, 1).eval()
    row = called_module(module).row
    assert row is not None
    assert row.name == "conv2d"
    assert is_pure(module)
    assert not does_more_than_forward(module)
    ADDED[name](module)
    assert does_more_than_forward(module)
    assert called_module(module).row is None
    assert not is_pure(module)
    assert (opening.open(module).trace is None) == (name == "forward of its own")


def test_a_conv_with_a_backward_pre_hook_is_kept_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    graph_module = fx.symbolic_trace(model)
    graph_module.get_submodule("0").register_full_backward_pre_hook(nothing)
    graph = FxFrontend().read(graph_module, (X,)).graph
    assert [type(node.op) for node in graph] == [ops.Input, ops.Opaque, ops.BatchNorm]


def test_a_call_of_its_own_is_more_than_forward_but_for_that_of_a_graph_module() -> None:
    class Doubled(nn.Conv2d):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * self.forward(x)

    assert does_more_than_forward(Doubled(3, 4, 1))
    assert not does_more_than_forward(fx.symbolic_trace(nn.Conv2d(3, 4, 1)))


def test_a_parametrized_module_is_of_the_class_that_its_author_named() -> None:
    module = parametrizations.weight_norm(nn.Conv2d(3, 4, 1)).eval()
    assert type(module) is not nn.Conv2d
    assert written_class(module) is nn.Conv2d
    assert written_class(nn.ReLU()) is nn.ReLU
    assert not does_more_than_forward(module)
    assert is_pure(module)
