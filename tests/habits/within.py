"""Modes that the caller is in, at every call of ours and of the model."""

from typing import Any

import torch
from torch import Tensor

from tests.habits.parts import habit


@habit(around=torch.inference_mode)
def called_in_inference_mode(m: Any, x: Tensor) -> Any:
    """torch.inference_mode() round the call."""
    return m.c(m.features(x))


@habit(around=lambda: torch.autocast("cpu", dtype=torch.bfloat16), exact=0.1)
def called_under_autocast(m: Any, x: Tensor) -> Any:
    """torch.autocast(dtype=bfloat16) round the call."""
    return m.c(m.features(x))
