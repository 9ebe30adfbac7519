"""How far two values are apart.

    floating        max |found - expected|, in float64, over max |expected|
    complex         the same of real and imaginary parts, each by itself
    whole, bool     max |found - expected|, exactly, and not over anything: rounding moves none of them

A floating value beside a whole one is compared in float64. bfloat16 and the like are exact there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two values are apart.

    max_abs: the largest absolute difference of two elements, in the units of the values.
    relative: that over the largest absolute value expected. Of whole numbers and truth values `max_abs` itself, which is 1 at
        least where they differ: no tolerance for rounding forgives that.
    """

    max_abs: float
    relative: float


EXACT = Difference(0.0, 0.0)
_INFINITE = float("inf")
_UNLIKE = Difference(_INFINITE, _INFINITE)


def difference(expected: Tensor, found: Tensor) -> Difference:
    """The difference of two tensors of any dtypes; infinite where shapes or the places of NaN or infinities are not the same.

    >>> difference(torch.tensor([1 + 1j]), torch.tensor([1 + 5j]))
    Difference(max_abs=4.0, relative=4.0)
    >>> difference(torch.tensor([2**60 + 1]), torch.tensor([2**60]))
    Difference(max_abs=1.0, relative=1.0)
    """
    if expected.shape != found.shape:
        return _UNLIKE
    if not expected.numel():
        return EXACT
    apart = float(distances(expected, found).max())
    if apart == _INFINITE:
        return _UNLIKE
    if apart == 0 or (_is_whole(expected) and _is_whole(found)):
        return Difference(apart, apart)
    sizes = _parts(expected).abs()
    largest = float(sizes[sizes.isfinite()].max()) if bool(sizes.isfinite().any()) else 0.0
    return Difference(apart, apart / largest if largest else _INFINITE)


def tells(expected: Iterable[Tensor]) -> bool:
    """Whether equality with these says anything: what makes NaN or infinities of every number may be any function.

    >>> tells([torch.tensor([float("nan"), 1.0])]), tells([torch.tensor([float("nan"), float("inf")])])
    (True, False)
    """
    return any(bool(value.isfinite().any()) for value in expected)


def distances(expected: Tensor, found: Tensor) -> Tensor:
    """For each element how far two tensors of one shape are apart, in float64; infinite where one alone is NaN or infinite.

    Of a complex number the larger of the distances of its parts. Of whole numbers it is rounded, but not to 0.
    """
    if _is_whole(expected) and _is_whole(found):
        (high, low), (other_high, other_low) = _halves(expected), _halves(found)
        return torch.from_numpy(np.asarray(np.abs((high - other_high) * 2.0**32 + (low - other_low))))
    if expected.is_complex() or found.is_complex():
        expected, found = expected.to(torch.complex128), found.to(torch.complex128)
    a, b = _parts(expected), _parts(found)
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=_INFINITE, posinf=_INFINITE))
    return apart.amax(-1) if expected.is_complex() else apart


def _is_whole(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex()


def _parts(x: Tensor) -> Tensor:
    """The elements in float64; a last axis has the real and the imaginary part of complex ones."""
    x = x.detach()
    return torch.view_as_real(x.to(torch.complex128)) if x.is_complex() else x.double()


def _halves(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`high`, `low` with x = 2**32 high + low, in float64: each is exact there, where x has up to 64 bits."""
    array = np.asarray(x.detach().cpu().numpy())
    wide = array if array.dtype == np.uint64 else array.astype(np.int64)
    return (wide >> 32).astype(np.float64), (wide & 0xFFFFFFFF).astype(np.float64)
