"""Any number of samples by kernels of a few sizes: split, run piece by piece, joined again.

    15 samples, compiled for 1 and 8        8, 1, 1, 1, 1, 1, 1, 1
    15 samples, compiled for 4 and 8        8, 4, 4: the last of them three samples, and the third once more

It is right where no sample has a part in another's outputs, which is found out when a model is compiled. An input without
axes is given to every piece as it is. No tvm is needed here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.description import TensorSpec

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array


NOISE = 0.05
"""By how much a batch must be slower a sample than a smaller one to be left out: a measurement of less says nothing."""


def checked_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """The sizes that are asked for, ascending, each once.

    >>> checked_batches([8, 1, 8])
    (1, 8)

    Raises: LoweringError where there is none, or one is no whole number from 1.
    """
    found = tuple(batches) if isinstance(batches, list | tuple) else ()
    if not found or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in found):
        raise LoweringError(f"batches: found {batches!r}; expected whole numbers from 1, such as (1, 8)")
    return tuple(sorted(set(found)))


def pieces(samples: int, batches: Sequence[int]) -> list[int]:
    """The sizes that so many samples are run in, the largest first; the last may hold more than are left.

    >>> pieces(15, (4, 8)), pieces(0, (4, 8))
    ([8, 4, 4], [])
    """
    found: list[int] = []
    for size in sorted(batches, reverse=True):
        count, samples = divmod(samples, size)
        found += [size] * count
    return [*found, min(batches)] if samples else found


def worth_their_size(seconds: Mapping[int, float | None]) -> tuple[int, ...]:
    """The batches that are not slower a sample than a smaller one, ascending; those that nobody measured too.

    >>> worth_their_size({1: 0.006, 8: 0.060}), worth_their_size({1: 0.006, 8: 0.040}), worth_their_size({1: None, 8: 0.060})
    ((1,), (1, 8), (1, 8))
    """
    found: list[int] = []
    fastest = math.inf
    for batch, taken in sorted(seconds.items()):
        each = fastest if taken is None else taken / batch
        if each <= (1 + NOISE) * fastest:
            found.append(batch)
        fastest = min(fastest, each)
    return tuple(found)


def batch_of(specs: Sequence[TensorSpec]) -> int:
    """How many samples these inputs are of: the first size of each that has axes."""
    return next((spec.shape[0] for spec in specs if spec.shape), 1)


def of_samples(specs: Sequence[TensorSpec], samples: int) -> list[TensorSpec]:
    """The same inputs with so many samples."""
    return [replace(spec, shape=(samples, *spec.shape[1:])[: len(spec.shape)]) for spec in specs]


def samples_in(arrays: Sequence["Array"], specs: Sequence[TensorSpec]) -> int:
    """How many samples the arrays hold. Raises: LoweringError where their sizes are not those of the inputs."""
    counts: dict[str, int] = {}
    for array, spec in zip(arrays, specs, strict=True):
        if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
            expected = f"(n, {', '.join(map(str, spec.shape[1:]))}) of any n" if spec.shape else "()"
            raise LoweringError(f"{spec.name}: found shape {array.shape}; expected {expected}")
        if spec.shape:
            counts[spec.name] = len(array)
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} in {name}" for name, count in counts.items())
        raise LoweringError(f"run: found {found}; expected as many samples in every input")
    return next(iter(counts.values()), 1)


def split(arrays: Sequence["Array"], samples: int, batches: Sequence[int]) -> Iterator[tuple[int, list["Array"]]]:
    """The batch and the inputs of each piece, in order."""
    start = 0
    for size in pieces(samples, batches):
        yield size, [_rows(array, start, size) for array in arrays]
        start += size


def joined(found: Sequence[list["Array"]], samples: int, outputs: Sequence[TensorSpec], batch: int) -> list["Array"]:
    """The outputs of all samples from those of the pieces.

    Args:
        outputs, batch: what one piece gives, and of how many samples.
    """
    if not found:
        return [np.empty((0, *spec.shape[1:]), spec.dtype) for spec in outputs]
    rows = [samples * spec.shape[0] // batch for spec in outputs]
    whole = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*found, strict=True)]
    return [array if len(array) == count else array[:count].copy() for array, count in zip(whole, rows, strict=True)]


def _rows(array: "Array", start: int, size: int) -> "Array":
    """So many rows of an array; its last one again where it ends before."""
    if not array.ndim:
        return array
    part = array[start : start + size]
    return part if len(part) == size else np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
