"""What picks, places, reorders and makes elements; what reduces along axes."""

import math

import numpy as np
from onnx import TensorProto, helper

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import instead_of

LARGEST_DETERMINANT = 4
"""Rows of a matrix whose determinant is expanded."""


@instead_of("Shape", "Size", tvm="gives a shape, which most of its converters refuse")
def shape(graph: Graph, node: Node) -> str:
    """A constant."""
    sizes = graph.shape(node.inputs[0])
    if node.op == "Size":
        return graph.constant(math.prod(sizes), np.int64)
    return graph.ints(*sizes[node.attrs.get("start", 0) : node.attrs.get("end", len(sizes))])


@instead_of("OneHot", tvm="makes every result float64 or int64")
def one_hot(graph: Graph, node: Node) -> str:
    """Where an index equals its position along the new axis, the one value, elsewhere the other."""
    depth = int(graph.required(node, 1, "depth").item())
    rank = graph.rank(node.inputs[0]) + 1
    axis = node.attrs.get("axis", -1) % rank
    index = graph.emit("Cast", node.inputs[0], to=TensorProto.INT64)
    index = graph.emit("Where", graph.emit("Less", index, graph.ints(0)), graph.emit("Add", index, graph.ints(depth)), index)
    places = graph.constant(np.arange(depth).reshape(depth, *[1] * (rank - axis - 1)))
    same = graph.emit("Equal", graph.emit("Unsqueeze", index, graph.ints(axis)), places)
    off, on = (graph.emit("Slice", node.inputs[2], graph.ints(at), graph.ints(at + 1)) for at in (0, 1))
    return graph.emit("Where", same, on, off)


@instead_of("Concat", tvm="compiles no part of no elements")
def joined(graph: Graph, node: Node) -> str | None:
    """Without the parts that are empty."""
    parts = [name for name in node.inputs if 0 not in (graph.known_shape(name) or ())]
    if len(parts) < len(node.inputs) and parts:
        return parts[0] if len(parts) == 1 else graph.emit("Concat", *parts, **node.attrs)
    return None


@instead_of("EyeLike", tvm="refuses another dtype than that of its input")
def eye(graph: Graph, node: Node) -> str:
    """A constant."""
    rows, columns = graph.shape(node.inputs[0])
    kind = helper.tensor_dtype_to_np_dtype(node.attrs["dtype"]) if "dtype" in node.attrs else graph.dtype(node.inputs[0])
    return graph.constant(np.eye(rows, columns, node.attrs.get("k", 0)), kind)


@instead_of("ReverseSequence", tvm="does not know it")
def reversed_sequences(graph: Graph, node: Node) -> str:
    """Rows of time and batch, picked in the order that the lengths give."""
    x, batch_axis, time_axis = node.inputs[0], node.attrs.get("batch_axis", 1), node.attrs.get("time_axis", 0)
    sizes = graph.shape(x)
    batch, time = sizes[batch_axis], sizes[time_axis]
    first = x if time_axis == 0 else graph.emit("Transpose", x, perm=[1, 0, *range(2, len(sizes))])
    lengths = graph.emit("Cast", node.inputs[1], to=TensorProto.INT64)
    at = graph.constant(np.arange(time)[:, None])
    turned = graph.emit("Sub", graph.emit("Sub", lengths, graph.ints(1)), at)
    at = graph.emit("Where", graph.emit("Less", at, lengths), turned, at)
    rows = graph.emit("Add", graph.emit("Mul", at, graph.ints(batch)), graph.constant(np.arange(batch)))
    flat = graph.emit("Reshape", first, graph.ints(time * batch, *sizes[2:]))
    made = graph.emit("Gather", flat, rows, axis=0)
    return made if time_axis == 0 else graph.emit("Transpose", made, perm=[1, 0, *range(2, len(sizes))])


@instead_of("Compress", tvm="gives it a size that depends on values")
def compressed(graph: Graph, node: Node) -> str:
    """A Gather at the places that a constant condition leaves."""
    where = np.flatnonzero(graph.required(node, 1, "condition"))
    if "axis" in node.attrs:
        return graph.emit("Gather", node.inputs[0], graph.ints(*where), axis=node.attrs["axis"])
    return graph.emit("Gather", graph.emit("Reshape", node.inputs[0], graph.ints(-1)), graph.ints(*where), axis=0)


@instead_of("TopK", tvm="refuses sorted=0")
def largest(graph: Graph, node: Node) -> list[str]:
    """Sorted, which is an order as good as any."""
    node.attrs.pop("sorted", None)
    return graph.keep(node)


@instead_of("NonZero", "Unique", "NonMaxSuppression", tvm="gives it a size that depends on values")
def open_ended(graph: Graph, node: Node) -> str:
    """Refused: how much it gives depends on values."""
    raise node.refusal("the size of its result depends on values", "cut the model before it, and do that part outside")


@instead_of("TensorScatter", tvm="does not know it")
def written_cache(graph: Graph, node: Node) -> str:
    """Each position of the cache takes the update that belongs there, where one does."""
    past, update = node.inputs[:2]
    axis, sizes = node.attrs.get("axis", -2) % graph.rank(past), graph.shape(past)
    count, length = graph.shape(update)[axis], sizes[axis]
    start = node.input(2) or graph.constant(np.zeros(sizes[0], np.int64))
    at = graph.emit("Sub", graph.constant(np.arange(length)), graph.emit("Reshape", start, graph.ints(sizes[0], 1)))
    if node.attrs.get("mode", "linear") == "circular":
        at = graph.emit("Mod", at, graph.ints(length))
    given = graph.emit("And", graph.emit("GreaterOrEqual", at, graph.ints(0)), graph.emit("Less", at, graph.ints(count)))
    held = graph.emit("Clip", at, graph.constant(0, np.int64), graph.constant(count - 1, np.int64))
    along = [sizes[0], *[1] * (axis - 1), length, *[1] * (len(sizes) - axis - 1)]
    index = graph.emit("Expand", graph.emit("Reshape", held, graph.ints(*along)), graph.ints(*sizes))
    taken = graph.emit("GatherElements", update, index, axis=axis)
    return graph.emit("Where", graph.emit("Reshape", given, graph.ints(*along)), taken, past)


@instead_of("CumProd", tvm="does not know it")
def running_product(graph: Graph, node: Node) -> str:
    """Slices along the axis, multiplied one after the other."""
    x = node.inputs[0]
    axis = int(graph.required(node, 1, "axis").item()) % graph.rank(x)
    count = graph.shape(x)[axis]
    parts = graph.emit_all(count, "Split", x, axis=axis, num_outputs=count) if count > 1 else [x]
    parts = parts[::-1] if node.attrs.get("reverse", 0) else parts
    made = [parts[0]]
    for part in parts[1:]:
        made.append(graph.emit("Mul", made[-1], part))
    if node.attrs.get("exclusive", 0):
        made = [graph.constant(np.ones(graph.shape(parts[0])), graph.dtype(x)), *made[:-1]]
    made = made[::-1] if node.attrs.get("reverse", 0) else made
    return graph.emit("Concat", *made, axis=axis)


@instead_of("ReduceMax", "ReduceMin", tvm="has no least value of booleans")
def reduced_flags(graph: Graph, node: Node) -> str | None:
    """Of booleans, by way of int32."""
    if graph.dtype(node.inputs[0]).kind != "b":
        return None
    number = graph.emit("Cast", node.inputs[0], to=TensorProto.INT32)
    return graph.emit("Cast", graph.emit(node.op, number, *node.inputs[1:], **node.attrs), to=TensorProto.BOOL)


@instead_of("ReduceMean", tvm="makes integers int64")
def mean_of_integers(graph: Graph, node: Node) -> str | None:
    """The sum over the count, without its fraction."""
    if graph.dtype(node.inputs[0]).kind not in "iu":
        return None
    total = graph.emit("ReduceSum", *node.inputs, **node.attrs)
    count = math.prod(graph.shape(node.inputs[0])) // max(1, math.prod(graph.shape(total)))
    return graph.emit("Div", total, graph.like(max(1, count), total))


@instead_of("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", tvm="gives the input itself where there are no axes")
def reduced_along_none(graph: Graph, node: Node) -> str | None:
    """Along no axes what it makes of each element."""
    x, axes = node.inputs[0], node.input(1)
    if not node.attrs.get("noop_with_empty_axes", 0) or (axes and graph.shape(axes) != (0,)):
        return None
    if node.op == "ReduceSumSquare":
        return graph.emit("Mul", x, x)
    return graph.emit("Log" if node.op == "ReduceLogSum" else "Abs", x)


@instead_of("Det", tvm="does not know it")
def determinant(graph: Graph, node: Node) -> str:
    """Expanded by the first row, where the matrix is small."""
    *batch, size, _ = graph.shape(node.inputs[0])
    if size > LARGEST_DETERMINANT:
        raise node.refusal(f"the determinant of {size} x {size}", f"expected at most {LARGEST_DETERMINANT} rows")
    flat = graph.emit("Reshape", node.inputs[0], graph.ints(*batch, size * size))
    cells = [graph.emit("Gather", flat, graph.constant(at, np.int64), axis=len(batch)) for at in range(size * size)]
    return _expanded(graph, [cells[row * size : (row + 1) * size] for row in range(size)])


def _expanded(graph: Graph, rows: list[list[str]]) -> str:
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, cell in enumerate(rows[0]):
        minor = _expanded(graph, [row[:column] + row[column + 1 :] for row in rows[1:]])
        terms.append((column % 2, graph.emit("Mul", cell, minor)))
    total = terms[0][1]
    for negative, term in terms[1:]:
        total = graph.emit("Sub" if negative else "Add", total, term)
    return total
