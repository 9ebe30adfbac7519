"""Elements written by indices: all by `scatter_elements`, which TVM computes rightly.

scatter_add(x, axis, i, s)     = scatter_elements(x, i, s, axis, "add")        s cut to the size of i
x[i, j, …] = v                 = scatter_elements(x.flat, flat(i, j, …), v.flat)
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from reparam_compiler.lowering.importing.torch_ops.arithmetic import is_floating
from reparam_compiler.lowering.importing.torch_ops.indexing import Places, is_mask
from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

REDUCTIONS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}
"""TVM's words for torch's."""
UNKNOWN = "does not know it"


def _cut(call: Call, values: Any, sizes: Sequence[int]) -> Any:
    """The values that stand beside an index: torch takes more of them than it reads."""
    given = [int(size) for size in values.ty.shape.values]
    if given == list(sizes):
        return values
    axes = list(range(len(given)))
    return call.emit(relax.op.strided_slice(values, axes, [0] * len(axes), list(sizes)))


def _updates(call: Call, index: Any) -> Any:
    """What is written at an index: a tensor, or a number."""
    sizes = [int(size) for size in index.ty.shape.values]
    if call["src"] is not None:
        return _cut(call, call.tensor("src", call.dtype), sizes)
    return call.emit(relax.op.broadcast_to(relax.const(call["value"], call.dtype), sizes))


@instead("scatter.src", "scatter.value", tvm="takes no more values than indices")
def _scattered(call: Call) -> Any:
    index = call.tensor("index")
    return relax.op.scatter_elements(call.tensor("input"), index, _updates(call, index), call["dim"])


@instead("scatter_add.default", tvm=UNKNOWN)
def _added(call: Call) -> Any:
    index = call.tensor("index")
    return relax.op.scatter_elements(call.tensor("input"), index, _updates(call, index), call["dim"], "add")


@instead("scatter_reduce.two", "scatter.reduce", "scatter.value_reduce", tvm=UNKNOWN)
def _reduced(call: Call) -> Any:
    index = call.tensor("index")
    return _gathered_up(call, index, _updates(call, index))


@instead("index_reduce.default", tvm=UNKNOWN)
def _reduced_by_rows(call: Call) -> Any:
    axis, source = call["dim"] % len(call.shape), call.tensor("source", call.dtype)
    sizes = call.sizes("source")
    column = [-1 if place == axis else 1 for place in range(len(sizes))]
    index = call.emit(relax.op.broadcast_to(relax.op.reshape(call.tensor("index"), column), sizes))
    return _gathered_up(call, index, source)


def _gathered_up(call: Call, index: Any, updates: Any) -> Any:
    """What `reduce` makes of the values at each place, and of what stood there, where that counts."""
    data, axis, how = call.tensor("input"), call["dim"] % len(call.shape), str(call["reduce"])
    counts_itself = call["include_self"] is not False
    if how == "mean":
        return _mean(call, data, index, updates, counts_itself=counts_itself)
    if not counts_itself:
        neutral = relax.const(_neutral(how, call.dtype), call.dtype)
        blank = call.emit(relax.op.broadcast_to(neutral, updates.ty.shape))
        data = call.emit(relax.op.scatter_elements(data, index, blank, axis))
    return relax.op.scatter_elements(data, index, updates, axis, REDUCTIONS[how])


def _neutral(how: str, dtype: str) -> float:
    """What changes nothing in a reduction."""
    if how in ("sum", "add", "prod", "multiply"):
        return 0 if REDUCTIONS[how] == "add" else 1
    if is_floating(dtype):
        return -math.inf if how == "amax" else math.inf
    return int((tirx.min_value if how == "amax" else tirx.max_value)(dtype).value)


def _mean(call: Call, data: Any, index: Any, updates: Any, *, counts_itself: bool) -> Any:
    """Sums over counts; a place that nothing is written to keeps what stands there."""
    axis = call["dim"] % len(call.shape)
    ones = call.emit(relax.op.ones_like(updates))
    counts = call.emit(relax.op.scatter_elements(call.emit(relax.op.zeros_like(data)), index, ones, axis, "add"))
    there = call.emit(relax.op.greater(counts, relax.const(0, call.dtype)))
    if counts_itself:
        counts = call.emit(relax.op.add(counts, relax.const(1, call.dtype)))
    else:
        data = call.emit(relax.op.where(there, relax.op.zeros_like(data), data))
        counts = call.emit(relax.op.maximum(counts, relax.const(1, call.dtype)))
    total = call.emit(relax.op.scatter_elements(data, index, updates, axis, "add"))
    return (relax.op.divide if is_floating(call.dtype) else relax.op.floor_divide)(total, counts)


@instead("index_put.default", "index_put_.default", tvm="takes as many indices as axes, and no masks")
def _put(call: Call) -> Any:
    data, shape = call.tensor("input"), call.shape
    given = list(call["indices"])
    values = call.tensor("values", call.dtype)
    if any(index is not None and is_mask(index) for index in given):
        return _put_by_mask(call, given, values)
    places = Places(call, given, shape)
    flat = places.flat(call)
    size = math.prod(places.shape)
    values = call.emit(relax.op.reshape(call.emit(relax.op.broadcast_to(values, places.shape)), [size]))
    line = call.emit(relax.op.reshape(data, [math.prod(shape)]))
    how = "add" if call["accumulate"] else "update"
    written = call.emit(relax.op.scatter_elements(line, call.emit(relax.op.reshape(flat, [size])), values, 0, how))
    return relax.op.reshape(written, shape)


def _put_by_mask(call: Call, given: Sequence[Any], values: Any) -> Any:
    """One value wherever a sole mask of the leading axes is set."""
    mask = given[0]
    if len(given) > 1 or mask is None or math.prod(int(size) for size in values.ty.shape.values) != 1 or call["accumulate"]:
        raise call.refusal("a mask that picks where several values go", "write by torch.where, or by indices of a fixed number")
    sizes = call.sizes_of(mask)
    rank = len(call.shape)
    wide = call.emit(relax.op.reshape(call.value(mask, "bool"), [*sizes, *[1] * (rank - len(sizes))]))
    return relax.op.where(wide, call.emit(relax.op.reshape(values, [1] * rank)), call.tensor("input"))


@instead("masked_scatter.default", tvm=UNKNOWN)
def _filled_in_order(call: Call) -> Any:
    """The n-th place where the mask is set takes the n-th value."""
    values = call.emit(relax.op.flatten(call.tensor("source", call.dtype)))
    mask = call.emit(relax.op.broadcast_to(call.tensor("mask", "bool"), call.shape))
    count = call.emit(relax.op.cumsum(relax.op.flatten(mask), 0, "int64"))
    last = relax.const(int(values.ty.shape.values[0]) - 1, "int64")
    order = call.emit(relax.op.minimum(relax.op.maximum(count - relax.const(1, "int64"), relax.const(0, "int64")), last))
    taken = call.emit(relax.op.reshape(relax.op.take(values, order, 0), call.shape))
    return relax.op.where(mask, taken, call.tensor("input"))


@instead("diagonal_scatter.default", tvm=UNKNOWN)
def _diagonal(call: Call) -> Any:
    shape, offset = call.shape, call["offset"]
    first, second = (call[name] % len(shape) for name in ("dim1", "dim2"))

    def compute(data: Any, source: Any) -> Any:
        def value(*at: Any) -> Any:
            others = [index for axis, index in enumerate(at) if axis not in (first, second)]
            along = at[first] if offset >= 0 else at[second]
            return tirx.if_then_else(at[second] - at[first] == offset, source(*others, along), data(*at))

        return te.compute(shape, value)

    return call.loops(compute, call.tensor("input"), call.tensor("src", call.dtype))


@instead("_embedding_bag.default", "_embedding_bag_forward_only.default", tvm=UNKNOWN)
def _bags(call: Call) -> Any:
    """Sums or means of rows: a bag takes those from its offset to that of the next."""
    sums, means = (call["mode"] or 0) == 0, call["mode"] == 1
    if not (sums or means) or (call["padding_idx"] or -1) >= 0:
        found = "a padding index" if sums or means else "the largest of each bag"
        raise call.refusal(found, "compute it by an Embedding and a sum, mean or amax over its rows")
    places = relax.const(np.arange(call.sizes("indices")[0]), "int64")
    after = call.emit(relax.op.bucketize(places, call.tensor("offsets", "int64"), right=True))
    rows = call.emit(relax.op.take(call.tensor("weight"), call.tensor("indices"), 0))
    if call["per_sample_weights"] is not None:
        rows = call.emit(relax.op.multiply(rows, relax.op.expand_dims(call.tensor("per_sample_weights"), 1)))
    bag = call.emit(relax.op.expand_dims(relax.op.subtract(after, relax.const(1, "int64")), 1))
    bag = call.emit(relax.op.broadcast_to(bag, rows.ty.shape))
    blank = call.emit(relax.op.zeros(call.shape, call.dtype))
    total = call.emit(relax.op.scatter_elements(blank, bag, rows, 0, "add"))
    if means:
        count = call.emit(relax.op.scatter_elements(blank, bag, relax.op.ones_like(rows), 0, "add"))
        total = call.emit(relax.op.divide(total, relax.op.maximum(count, relax.const(1, call.dtype))))
    return relax.Tuple([total] * 4)
