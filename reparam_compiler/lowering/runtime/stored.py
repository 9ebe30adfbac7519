"""Arrays as a file of an artifact holds them, and how they are packed for kernels. No tvm is needed to read them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reparam_compiler.errors import LoweringError

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Shaped

    Array = Shaped[np.ndarray, "..."]

Packings = Mapping[str, Callable[..., "Array"]]
ALIGNMENT = 64
"""Bytes; what kernels may assume of a tensor's address."""


@dataclass(frozen=True, slots=True)
class Packing:
    """A function that packs an array for a kernel: its name among a backend's `packings`, and its arguments.

    >>> Packing("doubled", {"by": 2}).of(np.ones(2), {"doubled": lambda array, *, by: array * by})
    array([2., 2.])
    """

    name: str
    arguments: Mapping[str, Any]

    def of(self, array: "Array", packings: Packings) -> "Array":
        """The packed array. Raises LoweringError where no such packing is known."""
        if self.name not in packings:
            raise LoweringError(
                f"found weights in the packing {self.name!r}; this version knows {', '.join(packings) or 'none'}. "
                "Upgrade reparam_compiler, or compile the model again"
            )
        return packings[self.name](array, **self.arguments)


def aligned(array: "Array") -> "Array":
    """A contiguous copy of an array at an address that kernels may assume."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy: Array = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where arrays of so many bytes begin in a file, one after the other, and where the last one ends."""
    found = [0]
    for size in sizes:
        found.append(-(-(found[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return found


def written(arrays: Sequence["Array"]) -> bytes:
    """Arrays as they lie in a file."""
    places = offsets([array.nbytes for array in arrays])
    content = bytearray(places[-1])
    for place, array in zip(places, arrays, strict=False):
        content[place : place + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).data.cast("B")
    return bytes(content)


def read_back(content: Any, shapes: Sequence[Sequence[int]], dtypes: Sequence[str]) -> list["Array"]:
    """The arrays that `written` wrote, which share the memory of `content`. Raises ValueError where it is too short."""
    if any(size < 0 for shape in shapes for size in shape):
        raise ValueError("an array has a size below 0")
    counts = [math.prod(shape) for shape in shapes]
    sizes = [count * np.dtype(dtype).itemsize for count, dtype in zip(counts, dtypes, strict=True)]
    return [
        np.frombuffer(content, dtype, count, place).reshape(shape)
        for shape, dtype, count, place in zip(shapes, dtypes, counts, offsets(sizes), strict=False)
    ]
