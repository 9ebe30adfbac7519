"""By how much the outputs of a compiled model may differ from what they should be, from their numbers alone.

tolerance max |expected|            of floating outputs; of whole numbers nothing
tolerance (max - min)               of a saturated one, whose elements are all within the tolerance of each other
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.checking.tolerances import MARGIN


def bound_of(value: Tensor, tolerance: float, eps: float) -> float:
    """By how much an output may differ: nothing for whole numbers."""
    numbers = numbers_of(value)
    if kind_of_numbers(value) in ("integer", "bool") or not len(numbers):
        return 0.0
    largest, spread = float(numbers.abs().max()), float(numbers.max() - numbers.min())
    saturated = len(numbers) > 1 and spread <= tolerance * largest
    return max(tolerance * spread, MARGIN * eps * largest) if saturated else tolerance * largest


def nudged(value: Any, seed: int, eps: float) -> Any:
    """An input whose elements are moved by a step of their rounding or not at all; what is not floating as it is."""
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return value
    noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = (tensor.double() * (1 + eps * (2 * noise - 1).round())).to(tensor.dtype)
    return moved.numpy() if isinstance(value, np.ndarray) else moved


def numbers_of(value: Tensor) -> Tensor:
    """The finite elements of an output, in float64; the parts of complex ones."""
    flat = torch.view_as_real(value.to(torch.complex128)) if value.is_complex() else value.double()
    return flat[flat.isfinite()]


def largest_of(value: Tensor) -> float:
    """The largest absolute value of an output's finite numbers; 0 without any."""
    return float(numbers_of(value).abs().max()) if len(numbers_of(value)) else 0.0


def kind_of_numbers(tensor: Tensor) -> str:
    """What its elements are: floating, bool, complex or integer."""
    if tensor.is_floating_point():
        return "floating"
    return "bool" if tensor.dtype is torch.bool else "complex" if tensor.is_complex() else "integer"
