"""Transposes and reshapes that move nothing are left out; those that move something stay, and compute what they did."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.relax.moves import without_idle_moves

pytestmark = pytest.mark.tvm
Function = Callable[[torch.Tensor], torch.Tensor]
CASES: dict[str, tuple[Function, int]] = {
    "there and back": (lambda y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 0),
    "twice": (lambda y: y.permute(0, 2, 1, 3).permute(0, 1, 3, 2), 1),
    "an axis of one": (lambda y: y[:, :, :1].permute(0, 2, 1, 3), 0),
    "there, merged, split, back": (lambda y: y.transpose(1, 3).reshape(2, -1).reshape(2, 4, 5, 3).transpose(1, 3), 0),
    "rows of pixels": (lambda y: y.flatten(2).transpose(1, 2), 1),
    "a transpose that is read as rows": (lambda y: y.transpose(2, 3).reshape(2, -1), 1),
    "reshapes alone": (lambda y: y.reshape(2, -1).reshape(2, 15, 4), 0),
}


class Applied(nn.Module):
    def __init__(self, *functions: Function) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(x * 2) + 1 for function in self.functions)


@pytest.mark.parametrize("name", CASES)
def test_what_moves_nothing_is_left_out(name: str) -> None:
    function, left = CASES[name]
    module = without_idle_moves(simplify(to_relax(Applied(function).eval(), torch.zeros(2, 3, 5, 4)).module))
    assert channels_last(module)["main"].script(show_meta=False).count("permute_dims") == left


def test_they_compute_what_torch_does() -> None:
    model, x = Applied(*(function for function, _ in CASES.values())).eval(), torch.randn(2, 3, 5, 4)
    for found, expected in zip(compile(model, x).run(x), model(x), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())


class Tokens(nn.Module):
    """A conv whose pixels become rows, as an embedding of patches does; a norm of channels between convs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.dense = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 6)
        self.next = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.embed(x)
        normed = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.dense(y.flatten(2).transpose(1, 2)), self.next(normed)


def test_between_a_conv_and_rows_nothing_is_transposed() -> None:
    model, x = Tokens().eval(), torch.randn(1, 3, 8, 6)
    text = channels_last(simplify(to_relax(model, x).module))["main"].script(show_meta=False)
    assert text.count("permute_dims") == 2
    for found, expected in zip(compile(model, x).run(x), model(x), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
