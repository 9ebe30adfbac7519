"""A model that calls vmap or jvp is read in parts, and leaves no level of it behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from tests.support.every_kind import X, exported, net


class EachByItself(nn.Module):
    """The net on each sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.func.vmap(lambda sample: self.net(sample[None])[0])(x)
        return found


class Slope(nn.Module):
    """The net, and how fast the tangents of what it gives would move."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        found: Tensor = torch.func.jvp(torch.tanh, (y,), (torch.ones_like(y),))[1]
        return y + found


def is_outside() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is None and torch.autograd.forward_ad._current_level == -1


@pytest.mark.parametrize("kind", [EachByItself, Slope])
def test_its_parts_are_fused(kind: type[nn.Module]) -> None:
    model = kind().eval()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert is_outside()
    assert [fusion.node for fusion in report.fusions] == ["net._1"]
    torch.testing.assert_close(fused(X), model(X))


KINDS = [exported, lambda model: exported(model).module()]


@pytest.mark.parametrize("kind", [lambda model: model, *KINDS])
def test_its_channels_are_not_followed(kind: Any) -> None:
    model = kind(EachByItself().eval())
    with pytest.raises(UnsupportedModelError, match=r"within torch\.func\.vmap no layer stands for itself"):
        reparam_compiler.prune(model, (X,), ratio=0.5)
    assert is_outside()


@pytest.mark.parametrize("verb", [reparam_compiler.fuse, reparam_compiler.prune])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_within_a_derivative_is_changed(kind: Any, verb: Any) -> None:
    model = kind(Slope().eval())
    with pytest.raises(
        UnsupportedModelError, match=r"within torch\.func\.jvp no layer stands for itself; take the derivative of"
    ):
        verb(model, (X,))
    assert is_outside()
