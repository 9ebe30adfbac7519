"""Weights brought near before they are needed: while a GEMM multiplies by one panel, it asks for the next.

    for panel                                     K x nr weights, read once from memory and then from cache
        for row tile, part of k
            prefetch some lines of panel + 1      spread evenly, so that memory works all the time
            for k in part:  sums[mr, nr] += …

Without it the first row tile of each panel waits for memory, and memory waits while the others multiply. In the innermost loop
a prefetch would keep LLVM from holding the sums in registers: it may touch any memory.
"""

import math
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx

from reparam_compiler.lowering.cpu.machine import VectorUnit

LINE = 64  # bytes of a cache line
READ, SECOND_LEVEL, DATA = 0, 2, 1  # llvm.prefetch: for reading, into the second level, as data
MOST_LINES = 32  # a part: more would wait for one another
PART = 4  # steps of the innermost loop, at most


def part_of(steps: int) -> int:
    """How many of so many steps the innermost loop has: the largest divisor up to `PART`."""
    return max(size for size in range(1, PART + 1) if steps % size == 0)


def with_next_panel(
    func: Any, unit: VectorUnit, weights: str, panel: Any, elements: int, loops: Sequence[tuple[Any, int]]
) -> Any:
    """A scheduled PrimFunc with prefetches of the next panel in the last of the `loops`; as it is where weights stay in cache.

    weights: the name of the parameter that holds panels of so many `elements`, one after the other.
    panel: the index of the panel that is being read, in loop variables of the PrimFunc.
    loops: variables and extents of those between a panel's and the innermost, outermost first.
    """
    buffer = next(param for param in func.params if param.name == weights)
    per_line = LINE // (unit.bytes // unit.lanes(str(buffer.dtype)))
    steps, panel_lines = math.prod(extent for _, extent in loops), -(-elements // per_line)
    lines, turns = -(-panel_lines // steps), max(steps // panel_lines, 1)
    if lines > MOST_LINES or LINE // per_line * math.prod(map(int, buffer.shape)) <= unit.l2_bytes // 2:
        return func
    step: Any = 0
    for variable, extent in loops:
        step = step * extent + variable
    start = (panel + 1) * elements + step // turns * lines * per_line

    def with_prefetches(loop: Any) -> Any:
        if not loop.loop_var.same_as(loops[-1][0]):
            return loop
        calls = [tirx.Evaluate(_prefetch(buffer, start + line * per_line)) for line in range(lines)]
        body = tirx.SeqStmt([*calls, loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    return tvm_ffi.structural_map(func, (tirx.For, with_prefetches))


def _prefetch(buffer: Any, offset: Any) -> Any:
    first = [0] * (len(buffer.shape) - 1)
    address = tirx.address_of(tirx.BufferLoad(buffer, [*first, offset]))
    return tirx.call_intrin("void", "tirx.prefetch", address, READ, SECOND_LEVEL, DATA)
