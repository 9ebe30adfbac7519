"""How the weights of a conv lie in memory for its kernel: done when it is compiled, and again when an artifact is loaded.

    O kh kw Ig -> G, O/G -> tiles of nr -> [G tiles, kh, kw, Ig, nr]        columns: zero channels up to nr
    O kh kw Ig -> [e, G tiles, q, Ig, nr]                                   winograd: transformed in float64, rounded once
    C kh kw 1  -> [kh, kw, C']                                              channels: zero channels up to the vector
    O kh kw Ig -> [G tiles, kh, kw, Ig / 4, nr, 4]                          words: bytes, zero channels up to whole words and nr

An artifact holds weights as the model does, with the name and the arguments of a packing (`runtime/weights.py`). So a packing
takes numbers alone, needs numpy alone, and gives the same bits on every machine of one kind.

Kernels compute float16 in float32 (`relax/single.py`), so the weights of a half-precision model come here as float32 that are
float16 too; those of a quantized one come as float32 that are bytes, where a CPU has no dot products of bytes. They are stored
as what they are, and widening them is part of the packing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reparam_compiler.core import winograd
from reparam_compiler.lowering.runtime.stored import Packing

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Shaped

    Weights = Shaped[np.ndarray, "..."]


WORD = 4
"""Bytes that an instruction multiplies and adds up."""


def pack_columns(weight: "Weights", *, groups: int, columns: int) -> "Weights":
    """`O kh kw Ig` -> `[G tiles, kh, kw, Ig, nr]`, contiguous, the channels of each group padded with zeros."""
    outputs, *taps = weight.shape
    tiles = -(-outputs // groups // columns)
    grouped = weight.reshape(groups, outputs // groups, *taps)
    padded = np.pad(grouped, [(0, 0), (0, tiles * columns - outputs // groups), (0, 0), (0, 0), (0, 0)])
    split = padded.reshape(groups * tiles, columns, *taps)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1))


def pack_words(weight: "Weights", *, groups: int, columns: int) -> "Weights":
    """`O kh kw Ig` -> `[G tiles, kh, kw, Ig / 4, nr, 4]`: padded with zeros to whole words of inputs and to nr outputs."""
    whole = np.pad(weight, [(0, 0), (0, 0), (0, 0), (0, -weight.shape[-1] % WORD)])
    tiles, height, width, inputs, outputs = (packed := pack_columns(whole, groups=groups, columns=columns)).shape
    return np.ascontiguousarray(packed.reshape(tiles, height, width, inputs // WORD, WORD, outputs).swapaxes(-1, -2))


def pack_channels(weight: "Weights", *, columns: int) -> "Weights":
    """`C kh kw 1` -> `[kh, kw, C']`, padded with zeros to `columns` channels."""
    by_tap = weight[..., 0].transpose(1, 2, 0)
    return np.ascontiguousarray(np.pad(by_tap, [(0, 0), (0, 0), (0, columns - len(weight))]))


def pack_winograd(weight: "Weights", *, groups: int, columns: int, outputs: Sequence[int], stride: Sequence[int]) -> "Weights":
    """`O kh kw Ig` -> `[e, G tiles, q, Ig, nr]`: transformed in float64, rounded once, zero channels up to nr.

    outputs: m_h, m_w of a tile. stride: of the conv, whose phases `q` are.
    """
    channels, *taps, inputs = weight.shape
    down, across = stride
    height, width = (
        winograd.transform(m, -(-size // step)) for m, size, step in zip(outputs, taps, (down, across), strict=True)
    )
    by_phase = winograd.phases(weight.astype(np.float64).transpose(0, 3, 1, 2), (down, across))
    points, tiles = height.size * width.size, -(-channels // groups // columns)
    transformed = winograd.kernels(by_phase, height, width).reshape(points, groups, channels // groups, -1)
    padded = np.pad(transformed, [(0, 0), (0, 0), (0, tiles * columns - channels // groups), (0, 0)])
    split = padded.reshape(points, groups * tiles, columns, math.prod(stride), inputs)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2).astype(weight.dtype))


def of_narrow(pack: Callable[..., "Weights"]) -> Callable[..., "Weights"]:
    """The same packing of weights that are stored in a narrower dtype, for kernels of float32."""
    return lambda weight, **arguments: pack(weight.astype(np.float32), **arguments)


NARROW = {"byte_": np.int8, "half_": np.float16}
"""By what stands before the name of a packing: the dtypes of weights that it widens, the narrowest first."""
PACK: dict[str, Callable[..., "Weights"]] = {"columns": pack_columns, "channels": pack_channels, "winograd": pack_winograd}
WIDENING = {prefix + name: of_narrow(pack) for prefix in NARROW for name, pack in PACK.items()}
PACKINGS: Mapping[str, Callable[..., "Weights"]] = {**PACK, "words": pack_words, **WIDENING}
"""By the name that an artifact keeps: what a name means never changes, and another packing gets another name."""


def narrowed(weight: "Weights", packing: Packing) -> tuple["Weights", Packing]:
    """A weight and its packing as an artifact holds them: float32 as bytes or as float16 where that is the same numbers."""
    for prefix, dtype in NARROW.items():
        one_tells_of_most = weight[:1], weight
        if weight.dtype == np.float32 and all(_holds(dtype, some) for some in one_tells_of_most):
            return weight.astype(dtype), Packing(prefix + packing.name, packing.arguments)
    return weight, packing


def widened(packing: Packing) -> Packing:
    """The packing of float32 that one of any dtype is."""
    prefix = next((prefix for prefix in NARROW if packing.name.startswith(prefix)), "")
    return Packing(packing.name.removeprefix(prefix), packing.arguments)


def _holds(dtype: Any, weight: "Weights") -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array_equal(weight.astype(dtype), weight)
