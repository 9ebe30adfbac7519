"""Functions that schedule primitives refuse keep plain loops; two threads compile; a failure says whose it may be."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import CompileOptions, compile

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
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", REFUSED)
def test_what_schedules_refuse_computes_what_torch_does(name: str) -> None:
    x = torch.randn(3, 6, 5)
    expected = REFUSED[name](x)
    found = compile(Applied(REFUSED[name]).eval(), x).run(x)
    wanted = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    for result, value in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, value.numpy(), rtol=1e-5, atol=1e-6)


def test_threads_compile_one_after_another() -> None:
    models = [nn.Sequential(nn.Conv2d(8, 4 + index, 3), nn.ReLU()).eval() for index in range(3)]
    x = torch.randn(1, 8, 7, 5)
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: compile(model, x).run(x)[0], models))
    for result, model in zip(found, models, strict=True):
        np.testing.assert_allclose(result, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_the_advice_blames_no_one_wrongly() -> None:
    assert "limit of TVM or a defect of this package" in CompileOptions().advice
    assert "should compile" not in CompileOptions().advice
