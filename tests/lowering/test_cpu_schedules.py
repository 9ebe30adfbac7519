"""Functions that schedule primitives refuse keep plain loops, and compute what they should; two threads compile."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile

pytestmark = pytest.mark.tvm
INDICES = torch.tensor([2, 0, 1]).reshape(1, 3, 1).expand(3, 3, 5)
REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "topk": lambda x: torch.topk(x, 2),
    "topk between others": lambda x: torch.topk((x * 2).relu(), 2)[0].sigmoid() + 1,
    "sort": lambda x: torch.sort(x, -1, descending=True),
    "argsort": lambda x: torch.argsort(x, 1),
    "cumsum": lambda x: x.cumsum(1),
    "max": lambda x: x.max(1),
    "median": lambda x: x[:, 1:].median(1),
    "scatter": lambda x: torch.scatter(x, 1, INDICES, x[:, :3] * 2),
    "gather": lambda x: x.gather(1, INDICES),
}


class Applied(nn.Module):
    """Every function, of an input of its own."""

    def forward(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        return tuple(function(x) for function, x in zip(REFUSED.values(), inputs, strict=True))


Leaves = dict[str, list[tuple[np.ndarray, np.ndarray]]]


@pytest.fixture(scope="module")
def results() -> Leaves:
    """What a compiled model and torch compute for each function."""
    inputs = tuple(torch.randn(3, 6, 5) for _ in REFUSED)
    expected = [[value] if isinstance(value, torch.Tensor) else list(value) for value in Applied()(*inputs)]
    found = iter(compile(Applied().eval(), inputs).run(*inputs))
    return {name: [(next(found), value.numpy()) for value in values] for name, values in zip(REFUSED, expected, strict=True)}


@pytest.mark.parametrize("name", REFUSED)
def test_what_schedules_refuse_computes_what_torch_does(name: str, results: Leaves) -> None:
    for found, expected in results[name]:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_threads_compile_one_after_another() -> None:
    models = [nn.Sequential(nn.Conv2d(8, 4 + index, 3), nn.ReLU()).eval() for index in range(3)]
    x = torch.randn(1, 8, 7, 5)
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: compile(model, x).run(x)[0], models))
    for result, model in zip(found, models, strict=True):
        np.testing.assert_allclose(result, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)
