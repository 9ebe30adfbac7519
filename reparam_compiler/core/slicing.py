"""Keep-index algebra: which positions of an axis stay, and what that makes of arrays, pieces, bounds and widths.

A keep mask k holds a boolean for each position of an axis. Position p that stays moves to p' = sum_{q < p} k[q], so that

    a piece [a, b)                      becomes   [sum k[:a], sum k[:b])
    a strided slice (a, b, s)           becomes   (sum k[:a - r] + r, sum k[:b], s) with r = a mod s, where from a - r on
                                                  each block of s stays or goes as a whole
    a width w, of which r shall go      becomes   the multiple of a unit u next to (1 - r) w, or w itself
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int64

Keep = Bool[np.ndarray, "C"]


def take(array: np.ndarray, keeps: Mapping[int, Keep]) -> np.ndarray:
    """The array without what is not kept, in its own dtype.

    keeps: for each axis that is cut, by its number, a mask as long as the axis. The other axes stay as they are.

    >>> take(np.arange(6).reshape(2, 3), {1: np.array([True, False, True])})
    array([[0, 2],
           [3, 5]])
    """
    for axis, keep in keeps.items():
        array = np.take(array, np.flatnonzero(keep), axis=axis)
    return array


def blank(array: np.ndarray, keeps: Mapping[int, Keep]) -> np.ndarray:
    """A copy of the array, of its shape and dtype, that is zero where an axis is not kept; `keeps` as in `take`.

    >>> blank(np.arange(6).reshape(2, 3), {1: np.array([True, False, True])})
    array([[0, 0, 2],
           [3, 0, 5]])
    """
    blanked = array.copy()
    for axis, keep in keeps.items():
        blanked[(slice(None),) * axis + (~keep,)] = 0
    return blanked


def piece_sizes(keep: Keep, sizes: Sequence[int]) -> tuple[int, ...]:
    """What is left of each of the pieces, of `sizes`, that an axis is split into."""
    edges = np.cumsum([0, *sizes])
    return tuple(int(keep[low:high].sum()) for low, high in pairwise(edges))


def bounds(keep: Keep, start: int, stop: int | None, step: int = 1) -> tuple[int, int | None]:
    """The bounds of a slice after the cut; stop None still reads to the end."""
    into_block = start % step
    return int(keep[: start - into_block].sum()) + into_block, None if stop is None else int(keep[:stop].sum())


def block_heads(length: int, start: int, step: int) -> Int64[np.ndarray, "length"]:
    """For each position the first of its block, which goes as a whole so that a strided slice stays one.

    Blocks begin at multiples of `step`, so that slices with different starts (even and odd channels) agree; those before the
    block of `start` are free.
    """
    position = np.arange(length)
    return np.where(position < start - start % step, position, position // step * step)


def nearest_width(target: float, width: int, unit: int, least: int = 0) -> int:
    """The multiple of `unit` next to `target`, from `least` to `width`, or `width` itself; the wider of two as near."""
    target = max(target, least)
    candidates = {max(unit, int(target // unit) * unit), (int(target // unit) + 1) * unit, width}
    return min((c for c in candidates if least <= c <= width), key=lambda c: (abs(c - target), -c), default=width)
