"""Batch norms that no conv takes in: a difference, a product, a sum."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.layout import simplify
from tests.support.compiled_nets import seeded

pytestmark = pytest.mark.tvm


class Alone(nn.Module):
    """Norms of rank 4, 3 and 2, in front of no conv."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.other = nn.BatchNorm2d(6), nn.BatchNorm2d(6, eps=1e-2)
        self.line, self.row = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.image(x).relu(), self.other(x), self.line(x.flatten(2)), self.row(x[:, :, 0, 0])


def scripted(model: nn.Module, x: torch.Tensor) -> str:
    return str(simplify(to_relax(model.eval(), x).module)["main"].script(show_meta=False))


def test_three_operations_an_element_are_left() -> None:
    text = scripted(seeded(Alone()), torch.zeros(2, 6, 5, 4))
    assert [name for name in ("divide", "sqrt", "batch_norm") if name in text] == []
    assert [text.count(f"R.{op}(") for op in ("subtract", "multiply", "add")] == [4, 4, 4]


def test_they_compute_what_torch_does_in_float64_far_from_zero_too() -> None:
    torch.manual_seed(0)
    model, x = seeded(Alone()), torch.randn(2, 6, 5, 4)
    model.image.running_mean += 1000
    x[:1] += 1000
    results = compile(model, x).run(x)
    with torch.no_grad():
        expected = model.double()(x.double())
    for found, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(found, value.numpy(), rtol=1e-5, atol=1e-5)


def test_statistics_that_are_inputs_stay() -> None:
    class Given(nn.Module):
        def forward(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
            return nn.functional.batch_norm(x, mean, variance)

    module = simplify(to_relax(Given().eval(), (torch.zeros(2, 6, 5, 4), torch.zeros(6), torch.ones(6))).module)
    assert "divide" in module["main"].script(show_meta=False)


DOUBLE = {
    "groups": nn.GroupNorm(2, 6),
    "groups without weights": nn.GroupNorm(3, 6, affine=False),
    "instances": nn.InstanceNorm2d(6, affine=True),
    "last axis": nn.LayerNorm(4),
    "several axes": nn.LayerNorm((6, 5, 4)),
    "no shift": nn.LayerNorm((5, 4), bias=False),
}


@pytest.mark.parametrize("name", DOUBLE)
def test_norms_over_the_data_are_computed_in_float64_too(name: str) -> None:
    torch.manual_seed(0)
    model, x = DOUBLE[name].double().eval(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        np.testing.assert_allclose(compile(model, x).run(x)[0], model(x).numpy(), rtol=1e-12, atol=1e-12)
