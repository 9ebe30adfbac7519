"""Memory for weights in pages of 2 MiB, where the system has such: a run reads all weights once, and in pages of 4 KiB it would
look up a page every 64 lines of them.

    Pages().tensor(array)  -->  a tensor of the same elements, at the next place of a mapping that tensors share

Linux keeps them where it is asked to ("madvise") or always; elsewhere the pages are what they are, and nothing else changes.
"""

import contextlib
import math
import mmap
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm

from reparam_compiler.lowering.runtime.stored import ALIGNMENT

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.stored import Array

PAGE = 2 << 20
MAPPING = 16 * PAGE
"""Bytes that are mapped at once; they take no memory until they are written to."""


class Pages:
    """Places tensors one after the other; any number of threads may ask at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mapping = np.empty(0, np.uint8)
        self._used = 0

    def tensor(self, array: "Array") -> Any:
        """A tensor that holds a copy of the array; it keeps its mapping alive."""
        place = self._reserved(array.nbytes).view(array.dtype)[: array.size].reshape(array.shape)
        place[...] = array
        return tvm.runtime.from_dlpack(place)

    def _reserved(self, size: int) -> "Array":
        """The next so many bytes, a multiple of the alignment."""
        size = math.ceil(size / ALIGNMENT) * ALIGNMENT
        with self._lock:
            if self._used + size > self._mapping.nbytes:
                self._mapping, self._used = _mapped(max(size, MAPPING)), 0
            start = self._used
            self._used += size
            return self._mapping[start : self._used]


def _mapped(size: int) -> "Array":
    """So many bytes at the start of a page."""
    memory = mmap.mmap(-1, size + PAGE)
    with contextlib.suppress(AttributeError, OSError):  # no such system, or none of its kernels
        memory.madvise(mmap.MADV_HUGEPAGE)
    content = np.frombuffer(memory, np.uint8)
    start = -content.ctypes.data % PAGE
    return content[start : start + size]
