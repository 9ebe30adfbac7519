"""A model that calls vmap is read in parts, and leaves no level of it behind."""

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


def is_outside() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is None


def test_its_parts_are_fused() -> None:
    model = EachByItself().eval()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert is_outside()
    assert [fusion.node for fusion in report.fusions] == ["net._1"]
    torch.testing.assert_close(fused(X), model(X))


@pytest.mark.parametrize("kind", [lambda model: model, exported, lambda model: exported(model).module()])
def test_its_channels_are_not_followed(kind: Any) -> None:
    model = kind(EachByItself().eval())
    with pytest.raises(UnsupportedModelError, match=r"within torch\.func\.vmap no layer stands for itself"):
        reparam_compiler.prune(model, (X,), ratio=0.5)
    assert is_outside()
