"""One-op models of torch for `op_coverage.py`: each op in the settings that importers misread, beside its plain one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import op_coverage_torch_layers, op_coverage_torch_moves, op_coverage_torch_tensors
from benchmarks.op_models import OneOp

LISTS = (op_coverage_torch_tensors.cases, op_coverage_torch_moves.cases, op_coverage_torch_layers.cases)


class Called(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def models() -> list[OneOp]:
    """All of them, with fixed weights and inputs."""
    torch.manual_seed(0)
    return list(_models())


def _models() -> Iterator[OneOp]:
    for cases in LISTS:
        for name, function, *inputs in cases():
            yield OneOp(name, lambda function=function, inputs=inputs: _made(function, inputs))  # type: ignore[misc]


def _made(function: Any, inputs: Sequence[Tensor]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module = function if isinstance(function, nn.Module) else Called(function)
    return module.eval(), tuple(inputs)
