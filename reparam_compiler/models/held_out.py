"""A part of calibration data that nothing is fitted to: what repair gained is measured on it.

Of every batch of eight samples or more the last eighth is held out; of batches that are smaller, or must not be cut, every
eighth one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from reparam_compiler.models.calibration import Batches
from reparam_compiler.models.fitting import Batch

EIGHTH = 8


def parts(data: Batches) -> tuple[Iterable[Batch], Iterable[Batch]]:
    """What is fitted to, and what is held out, which may be nothing; both can be gone over again and again."""
    return _Part(data, is_held_out=False), _Part(data, is_held_out=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    data: Batches
    is_held_out: bool

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.data):
            lengths = {len(array) if array.ndim else 0 for array in batch}
            length = lengths.pop() if len(lengths) == 1 and self.data.exact is None else 0
            first = length - length // EIGHTH
            if length >= EIGHTH:
                yield tuple(array[first:] if self.is_held_out else array[:first] for array in batch)
            elif self.is_held_out == (number % EIGHTH == EIGHTH - 1):
                yield batch
