"""The weights of a compiled model: stored as the model has them, and as the kernels read them.

    stored --packing, by name with its arguments--> value, an argument of the library's `main`

Packed weights are up to seven times as large as stored ones, so an archive holds the stored ones, and they are packed when it
is loaded, on every core: by the same function of numpy that packed them when the model was compiled, so to the same bits. A
shared library holds them packed, to be mapped into memory as they are.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm

from reparam_compiler.lowering.cpu.machine import cores
from reparam_compiler.lowering.runtime.stored import ALIGNMENT, Packing, Packings

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.stored import Array


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One weight. stored: as the model has it. packing: none where `stored` is what kernels read. value: a tensor of that."""

    stored: "Array"
    packing: Packing | None
    value: Any

    def described(self) -> dict[str, Any]:
        """What a manifest says: `stored` and `shape` are sizes before and after packing, `dtype` and `packed` the dtypes."""
        return {
            "dtype": str(self.stored.dtype),
            "stored": list(self.stored.shape),
            "shape": [int(size) for size in self.value.shape],
            "packed": str(self.value.dtype),
            "packing": None if self.packing is None else self.packing.name,
            "arguments": {} if self.packing is None else dict(self.packing.arguments),
        }


def packed(stored: "Array", packing: Packing | None, packings: Packings) -> Weight:
    """The weight of an array that the model has; without a packing the array itself, not copied where kernels may read it."""
    if packing is not None:
        return Weight(stored, packing, tvm.runtime.tensor(packing.of(stored, packings)))
    aligned = stored.ctypes.data % ALIGNMENT == 0
    return Weight(stored, None, tvm.runtime.from_dlpack(stored) if aligned else tvm.runtime.tensor(stored))


def all_packed(stored: Sequence["Array"], packing: Sequence[Packing | None], packings: Packings) -> tuple[Weight, ...]:
    """The same for many, on every core."""
    with ThreadPoolExecutor(cores()) as pool:
        return tuple(pool.map(functools.partial(packed, packings=packings), stored, packing))
