"""How far two values are apart."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two values are apart: the largest absolute difference, and that over the largest absolute value expected."""

    max_abs: float
    relative: float


EXACT = Difference(0.0, 0.0)


def difference(expected: Tensor, found: Tensor) -> Difference:
    """The difference of two tensors; infinite where shapes or the places of NaN or infinities are not the same."""
    if expected.shape != found.shape:
        return Difference(float("inf"), float("inf"))
    if not expected.numel():
        return EXACT
    a, b = expected.detach().double(), found.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool((~same & ~(a - b).isfinite()).any()):
        return Difference(float("inf"), float("inf"))
    apart = float(torch.where(same, 0.0, (a - b).abs()).max())
    finite = a[a.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return Difference(apart, apart / largest if largest else (0.0 if apart == 0 else float("inf")))
