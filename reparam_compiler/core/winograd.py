"""Winograd's minimal filtering: m outputs of a correlation of r taps by n = m + r - 1 multiplications.

    y[i] = sum_k g[k] d[i + k]         =   A^T [(G g) * (B^T d)]                      one axis,  F(m, r)
    Y                                  =   A_h^T [(G_h g G_w^T) * (B_h^T d B_w)] A_w  two axes,  F(m_h x m_w, r_h x r_w)

The transforms follow from n - 1 distinct points a_j and infinity, with N(x) = prod_l (x - a_l):

    A^T[i, j] = a_j^i                                   A^T[i, n-1] = [i = m-1]
    G[j, k]   = a_j^k / prod_{l != j} (a_j - a_l)       G[n-1, k]   = [k = r-1]
    B^T[j, :] = coefficients of N(x) / (x - a_j)        B^T[n-1, :] = coefficients of N(x)

They are exact fractions here, rounded once. More outputs a tile take fewer multiplications and lose more digits: the entries
grow with the number of points. Each row of B^T is scaled by a power of two, and G's row by its inverse, so that no row is much
larger than another: powers of two cost no digits.

Source: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, Eq. 5 to 8.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Float64

Row = tuple[Fraction, ...]

POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-2", "2", "-1/2", "3", "-1/3", "1/3", "-3")))
"""The order in which points are taken. With 1/2 and -2 third, F(4, 3) is three times as exact in float32 as with 2 and -2."""


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """F(m, r) along one axis.

    output: A^T `m n`. kernel: G `n r`. data: B^T `n n`.
    """

    output: 'Float64[np.ndarray, "m n"]'
    kernel: 'Float64[np.ndarray, "n r"]'
    data: 'Float64[np.ndarray, "n n"]'

    @property
    def outputs(self) -> int:
        """m, outputs of a tile."""
        return len(self.output)

    @property
    def taps(self) -> int:
        """r, taps of the kernel."""
        return int(self.kernel.shape[1])

    @property
    def size(self) -> int:
        """n, inputs of a tile and multiplications."""
        return len(self.data)


@lru_cache
def transform(outputs: int, taps: int) -> Transform:
    """F(outputs, taps); with one output or one tap, that is the correlation itself.

    Raises: ValueError where a size is below 1, or more points are needed than `POINTS` holds.
    """
    size = outputs + taps - 1
    if outputs < 1 or taps < 1 or size - 1 > len(POINTS):
        raise ValueError(f"F({outputs}, {taps}): expected sizes of 1 or more, and at most {len(POINTS) + 1} inputs a tile")
    if taps == 1:
        return Transform(np.eye(size), np.ones((size, 1)), np.eye(size))
    if outputs == 1:
        return Transform(np.ones((1, size)), np.eye(size), np.eye(size))
    points = POINTS[: size - 1]
    output = [[*(point**i for point in points), Fraction(i == outputs - 1)] for i in range(outputs)]
    kernel, data = [], []
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        scale = _power_of_two(polynomial := _from_roots(others))
        norm = math.prod((point - other for other in others), start=Fraction(1)) * scale
        kernel.append([point**k / norm for k in range(taps)])
        data.append([scale * c for c in (*polynomial, Fraction(0))])
        assert len(data[j]) == size
    kernel.append([Fraction(k == taps - 1) for k in range(taps)])
    data.append(list(_from_roots(points)))
    return Transform(*(np.array([[float(x) for x in row] for row in rows]) for rows in (output, kernel, data)))


def kernels(
    weight: 'Float64[np.ndarray, "O I kh kw"]', height: Transform, width: Transform
) -> 'Float64[np.ndarray, "nh nw O I"]':
    """G_h g G_w^T for every pair of channels."""
    by_rows = np.tensordot(height.kernel, weight, (1, 2))
    return np.tensordot(width.kernel, by_rows, (1, 3)).swapaxes(0, 1)


def phases(weight: 'Float64[np.ndarray, "O I kh kw"]', stride: tuple[int, int]) -> 'Float64[np.ndarray, "O sI rh rw"]':
    """The kernels of a strided correlation over the phases of its input, row phase by column phase, each with all of I.

    Tap r of phase q is tap r s + q of the kernel, or zero beyond its end:  y[i] = sum_q sum_r w[r s + q] x_q[i + r].
    """
    (outputs, inputs, *taps), (down, across) = weight.shape, stride
    height, width = (-(-size // step) for size, step in zip(taps, stride, strict=True))
    padded = np.zeros((outputs, inputs, height * down, width * across))
    padded[:, :, : taps[0], : taps[1]] = weight
    split = padded.reshape(outputs, inputs, height, down, width, across)
    return split.transpose(0, 3, 5, 1, 2, 4).reshape(outputs, -1, height, width)


def _from_roots(roots: Sequence[Fraction]) -> Row:
    """The coefficients of prod (x - root), the constant first."""
    coefficients: Row = (Fraction(1),)
    for root in roots:
        shifted, scaled = (Fraction(0), *coefficients), (*(-root * c for c in coefficients), Fraction(0))
        coefficients = tuple(a + b for a, b in zip(shifted, scaled, strict=True))
    return coefficients


def _power_of_two(row: Row) -> Fraction:
    """The power of two that brings the largest entry of a row nearest to 1 … 2 from above."""
    return Fraction(2) ** -math.floor(math.log2(max(abs(entry) for entry in row)))
