"""How the weights of a conv lie in memory for its GPU kernel: done when it is compiled, and again when an artifact is loaded.

    O kh kw Ig -> [pieces G, K'/pieces, O']        zero rows and columns up to whole tiles       gemm
    O kh kw Ig -> [pieces e G, I'/pieces, O']      transformed in float64, rounded once          winograd_gemm
    O kh kw Ig -> [kh, kw, Ig, O]                                                                grouped

A packing takes numbers alone, needs numpy alone, and gives the same bits on every machine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reparam_compiler.core import winograd

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Shaped

    Weights = Shaped[np.ndarray, "..."]


def pack_gemm(weight: "Weights", *, groups: int, columns: int, depth: int, pieces: int) -> "Weights":
    """`O kh kw Ig` -> `[pieces G, K'/pieces, O']`, contiguous, padded with zeros to whole tiles of `columns` and `depth`."""
    outputs, *taps = weight.shape
    k = int(np.prod(taps))
    grouped = weight.reshape(groups, outputs // groups, k).transpose(0, 2, 1)
    padded = np.pad(grouped, [(0, 0), (0, -k % (depth * pieces)), (0, -(outputs // groups) % columns)])
    by_piece = padded.reshape(groups, pieces, -1, padded.shape[-1]).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(by_piece.reshape(pieces * groups, -1, padded.shape[-1]))


def pack_winograd_gemm(
    weight: "Weights", *, groups: int, outputs: Sequence[int], columns: int, depth: int, pieces: int
) -> "Weights":
    """`O kh kw Ig` -> what `pack_gemm` makes of the transformed weight: of n^2 G groups. outputs: m_h, m_w of a tile."""
    height, width = (winograd.transform(m, taps) for m, taps in zip(outputs, weight.shape[1:3], strict=True))
    by_point = winograd.kernels(weight.astype(np.float64).transpose(0, 3, 1, 2), height, width)
    flat = by_point.reshape(-1, 1, 1, weight.shape[-1]).astype(weight.dtype)
    points = height.size * width.size
    return pack_gemm(flat, groups=points * groups, columns=columns, depth=depth, pieces=pieces)


def pack_grouped(weight: "Weights") -> "Weights":
    """`O kh kw Ig` -> `[kh, kw, Ig, O]`, contiguous."""
    return np.ascontiguousarray(weight.transpose(1, 2, 3, 0))


PACKINGS: Mapping[str, Callable[..., "Weights"]] = {
    "gemm": pack_gemm,
    "winograd_gemm": pack_winograd_gemm,
    "grouped": pack_grouped,
}
"""By the name that an artifact keeps: what a name means never changes, and another packing gets another name."""
