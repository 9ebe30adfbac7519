"""A function of one tensor as a model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Called(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)
