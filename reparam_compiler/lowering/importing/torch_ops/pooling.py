"""Pooling with ceil mode, divisors and indices, and to a given size.

average     the mean of a window that TVM pads with zeros to whole windows, times window / divisor
largest     of a window, by tables of the elements in each window along each axis; with its place where that is read
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx
from tvm import relax, te, tirx

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

LAYOUT = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def _listed(given: Any, rank: int, default: Sequence[int]) -> list[int]:
    if given is None or given == []:
        return list(default)
    listed = [given] if isinstance(given, int) else list(given)
    return listed * rank if len(listed) == 1 else listed


def _batched(call: Call, rank: int) -> Any:
    """The input, with a batch of one where it has none."""
    data = call.tensor("input")
    return data if len(call.shape) == rank + 2 else call.emit(relax.op.expand_dims(data, 0))


def _unbatched(call: Call, found: Any, rank: int) -> Any:
    return found if len(call.shape) == rank + 2 else call.emit(relax.op.reshape(found, call.shape))


class _Windows:
    """The windows of a pool along each axis, as `avg_pool` and `max_pool` state them."""

    def __init__(self, call: Call, rank: int) -> None:
        self.kernel = _listed(call["kernel_size"], rank, [])
        self.stride = _listed(call["stride"], rank, self.kernel)
        self.padding = _listed(call["padding"], rank, [0] * rank)
        self.dilation = _listed(call["dilation"], rank, [1] * rank)
        self.before, self.after = call.sizes("input")[-rank:], call.shape[-rank:]

    def paddings(self) -> list[int]:
        """At the start of each axis, then at its end: as much there as the last window takes."""
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        ends = zip(self.before, self.after, self.stride, self.padding, reach, strict=True)
        return [*self.padding, *(max(0, (after - 1) * s + r - before - p) for before, after, s, p, r in ends)]

    def divisors(self, axis: int, *, counts_padding: bool) -> Any:
        """How many elements of each window count along an axis: torch's own arithmetic."""
        start = np.arange(self.after[axis]) * self.stride[axis] - self.padding[axis]
        end = np.minimum(start + self.kernel[axis], self.before[axis] + self.padding[axis])
        if counts_padding:
            return end - start
        return np.minimum(end, self.before[axis]) - np.maximum(start, 0)

    def elements(self, axis: int) -> Any:
        """The indices in each window along an axis, -1 where there is nothing."""
        start = np.arange(self.after[axis])[:, None] * self.stride[axis] - self.padding[axis]
        found = start + np.arange(self.kernel[axis]) * self.dilation[axis]
        return np.where((found >= 0) & (found < self.before[axis]), found, -1)


@instead(
    "avg_pool1d.default",
    "avg_pool2d.default",
    "avg_pool3d.default",
    tvm="leaves the divisor out; in ceil mode it counts what lies outside",
)
def _average(call: Call) -> Any:
    rank = int(str(call.node.target.__name__)[8])  # type: ignore[union-attr]
    windows, pool = _Windows(call, rank), getattr(relax.op.nn, f"avg_pool{rank}d")
    settings = {"pool_size": windows.kernel, "strides": windows.stride, "layout": LAYOUT[rank]}
    counted, divisor = bool(call["count_include_pad"]), call["divisor_override"]
    if not call["ceil_mode"] and divisor is None:
        found = pool(_batched(call, rank), padding=windows.padding, count_include_pad=counted, **settings)
        return _unbatched(call, call.emit(found), rank)
    mean = call.emit(pool(_batched(call, rank), padding=windows.paddings(), count_include_pad=True, **settings))
    whole = math.prod(windows.kernel)
    counts = [windows.divisors(axis, counts_padding=counted) for axis in range(rank)]
    factors = whole / (np.full((1,) * rank, divisor) if divisor is not None else functools.reduce(np.multiply, np.ix_(*counts)))
    factors = np.broadcast_to(factors, (1, 1, *windows.after)).astype(call.dtype)
    return _unbatched(call, call.emit(relax.op.multiply(mean, relax.const(factors, call.dtype))), rank)


_MAX_POOLS = [name for rank in (1, 2, 3) for name in (f"max_pool{rank}d.default", f"max_pool{rank}d_with_indices.default")]


@instead(*_MAX_POOLS, tvm="gives zeros for the indices; takes an empty stride for one of 1")
def _largest(call: Call) -> Any:
    name = str(call.node.target.__name__)  # type: ignore[union-attr]
    rank = int(name[8])
    windows, pool = _Windows(call, rank), getattr(relax.op.nn, f"max_pool{rank}d")
    settings = {"pool_size": windows.kernel, "strides": windows.stride, "dilation": windows.dilation, "layout": LAYOUT[rank]}
    padding = windows.paddings() if call["ceil_mode"] else windows.padding
    values = _unbatched(call, call.emit(pool(_batched(call, rank), padding=padding, **settings)), rank)
    if "with_indices" not in name:
        return values
    return _with_places(call, values, [windows.elements(axis) for axis in range(rank)])


def _is_read(node: fx.Node, result: int) -> bool:
    """Whether a result of a node is read, or the node in another way than result by result."""
    return any(user.target is not operator.getitem or user.args[1] == result for user in node.users)


@instead("adaptive_max_pool2d.default", "adaptive_max_pool3d.default", tvm="does not know it")
def _largest_to_size(call: Call) -> Any:
    rank = 2 if "2d" in str(call.node.target.__name__) else 3  # type: ignore[union-attr]
    before, after = call.sizes("input")[-rank:], call.shape[-rank:]
    tables = [_covered(*sizes) for sizes in zip(before, after, strict=True)]
    return _with_places(call, _largest_of(call, tables), tables)


def _covered(before: int, after: int) -> Any:
    """The elements that each of `after` windows covers, whole or in part; -1 behind them."""
    starts = [index * before // after for index in range(after)]
    ends = [-(-(index + 1) * before // after) for index in range(after)]
    taps = np.arange(max(end - start for start, end in zip(starts, ends, strict=True)))
    found = np.array(starts)[:, None] + taps
    return np.where(found < np.array(ends)[:, None], found, -1)


def _largest_of(call: Call, tables: Sequence[Any]) -> Any:
    """The largest element of each window."""
    outer = len(call.shape) - len(tables)
    first = [relax.const(np.where(table < 0, table[:, :1], table).astype("int32"), "int32") for table in tables]

    def compute(data: Any, *elements: Any) -> Any:
        taps = [te.reduce_axis((0, table.shape[1]), f"k{axis}") for axis, table in enumerate(tables)]

        def read(at: Sequence[Any]) -> Any:
            return data[(*at[:outer], *(elements[axis][at[outer + axis], k] for axis, k in enumerate(taps)))]

        return te.compute(call.shape, lambda *at: te.max(read(at), axis=taps), name="largest")

    return call.loops(compute, call.tensor("input"), *first)


def _with_places(call: Call, values: Any, tables: Sequence[Any]) -> Any:
    """The values, and where each stands in the flattened axes, the first of equals; nothing where no one asks."""
    if not _is_read(call.node, 1):
        return relax.Tuple([values, values])
    before, outer = call.sizes("input")[-len(tables) :], len(call.shape) - len(tables)

    def compute(data: Any, values: Any, *elements: Any) -> Any:
        taps = [te.reduce_axis((0, table.shape[1]), f"k{axis}") for axis, table in enumerate(tables)]

        def place(at: Sequence[Any]) -> Any:
            found = [elements[axis][at[outer + axis], k].astype("int64") for axis, k in enumerate(taps)]
            flat = functools.reduce(lambda place, axis: place * before[axis] + found[axis], range(1, len(taps)), found[0])
            read = data[(*at[:outer], *(tirx.max(index, 0) for index in found))]
            here = tirx.all(*(index >= 0 for index in found), read == values[at])
            return tirx.Select(here, flat, tirx.max_value("int64"))

        return te.compute(call.shape, lambda *at: te.min(place(at), axis=taps), name="places")

    tensors = (relax.const(table.astype("int32"), "int32") for table in tables)
    return relax.Tuple([values, call.loops(compute, call.tensor("input"), values, *tensors)])
