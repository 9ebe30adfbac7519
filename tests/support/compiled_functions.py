"""Functions of torch, compiled side by side in one module and compared with torch: one compilation for a family of ops."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from reparam_compiler import lowering

Functions = Mapping[str, Callable[..., Any]]


class SideBySide(nn.Module):
    """All functions of the same inputs."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = dict(functions)

    def forward(self, *inputs: Tensor) -> dict[str, Any]:
        return {name: function(*inputs) for name, function in self.functions.items()}


def differing(functions: Functions, *inputs: Tensor, rtol: float = 1e-4) -> list[str]:
    """What the compiled functions give otherwise than torch: in value, shape or dtype; nothing where all are equal."""
    module = SideBySide(functions).eval()
    executable = lowering.compile(module, inputs)
    expected, _ = _pytree.tree_flatten_with_path(module(*inputs))
    found = executable.run(*inputs)
    assert len(found) == len(expected)
    wrong = []
    for (path, wanted), array in zip(expected, found, strict=True):
        other, name = torch.from_numpy(np.array(array)), _pytree.keystr(path)
        if (other.dtype, other.shape) != (wanted.dtype, wanted.shape):
            wrong.append(f"{name}: {other.dtype} {tuple(other.shape)}, expected {wanted.dtype} {tuple(wanted.shape)}")
        elif not torch.allclose(other, wanted, rtol, atol=1e-5, equal_nan=True):
            wrong.append(f"{name}: {other.flatten()[:5]}, expected {wanted.flatten()[:5]}")
    return wrong
