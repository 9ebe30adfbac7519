"""The weights of a compiled model: stored as the model has them, and as the kernels read them.

    stored --packing, by name with its arguments--> value, an argument of the library's `main`

Packed weights are up to seven times as large as stored ones, so an archive holds the stored ones, and they are packed when it
is loaded, on every core: by the same function of numpy that packed them when the model was compiled, so to the same bits. A
shared library holds them packed, to be mapped into memory as they are.

The variants of a model hold an array once, and once in each packing.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm

from reparam_compiler.lowering.cpu.machine import cores
from reparam_compiler.lowering.runtime.pages import Pages
from reparam_compiler.lowering.runtime.stored import ALIGNMENT, Packing, Packings

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.stored import Array


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Weight:
    """One weight.

    stored: as the model has it. packing: none where `stored` is what kernels read. shape, dtype: packed.
    value: a tensor of that; None where this machine has no use for it.
    """

    stored: "Array"
    packing: Packing | None
    shape: tuple[int, ...]
    dtype: str
    value: Any = None

    def described(self, place: int) -> dict[str, Any]:
        """What a manifest says of it. place: of its array among those that are stored."""
        return {
            "stored": place,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "packing": None if self.packing is None else self.packing.name,
            "arguments": {} if self.packing is None else dict(self.packing.arguments),
        }


def packed(stored: "Array", packing: Packing | None, packings: Packings, pages: Pages) -> Weight:
    """The weight of an array that the model has; without a packing the array itself, not copied where kernels may read it."""
    if packing is not None:
        array = packing.of(stored, packings)
        return Weight(stored, packing, array.shape, str(array.dtype), pages.tensor(array))
    aligned = stored.ctypes.data % ALIGNMENT == 0
    value = tvm.runtime.from_dlpack(stored) if aligned else tvm.runtime.tensor(stored)
    return Weight(stored, None, stored.shape, str(stored.dtype), value)


def all_packed(weights: Sequence[Weight], packings: Packings) -> tuple[Weight, ...]:
    """The same of weights that have no value yet, on every core."""
    pages = Pages()
    with ThreadPoolExecutor(cores()) as pool:
        return tuple(pool.map(lambda weight: packed(weight.stored, weight.packing, packings, pages), weights))


class Store:
    """The weights of a model's variants, each array once, and once in each packing."""

    def __init__(self) -> None:
        self._arrays: dict[Any, Array] = {}
        self._weights: dict[Any, list[Weight]] = {}
        self._pages = Pages()
        self._last: tuple[Array, Any] | None = None

    def another(self) -> "Store":
        """A store of the same arrays for kernels that pack them otherwise: those of another target."""
        made = Store()
        made._arrays = self._arrays
        return made

    def packed(self, array: "Array", packing: Packing | None, packings: Packings) -> Weight:
        """The weight of an array in a packing, made where it is not held."""
        held = self._weights.setdefault(key := self._key(array), [])
        for weight in held:
            if weight.packing == packing:
                return weight
        held.append(packed(self._arrays.setdefault(key, np.ascontiguousarray(array)), packing, packings, self._pages))
        return held[-1]

    def packings_of(self, array: "Array") -> list[Packing | None]:
        """The packings that an array is held in."""
        return [weight.packing for weight in self._weights.get(self._key(array), ())]

    def _key(self, array: "Array") -> Any:
        """That of `_key`; a layer asks how its weights are held and then packs them, and they are read for it once."""
        if self._last is None or self._last[0] is not array:
            self._last = array, _key(array)
        return self._last[1]


def _key(array: "Array") -> tuple[Any, ...]:
    """Equal for equal arrays alone."""
    return (array.shape, str(array.dtype), digest(array))


def digest(array: "Array") -> bytes:
    """Of an array's bytes: another for others."""
    return hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).data).digest()


def distinct(weights: Iterable[Weight]) -> list[Weight]:
    """Each weight once, in order."""
    return list({id(weight): weight for weight in weights}.values())
