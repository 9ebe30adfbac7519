"""Softmax and layer norm over the last axis, a row at a time, by vectors; after the first time a row is read from near.

    softmax      peak = max x;  e = exp(x - peak);  out = e / sum e
    layer norm   m = sum x / n;  v = sum (x - m)^2 / n;  out = (x - m) / sqrt(v + epsilon) g + b

The variance is taken about the mean: the mean of the squares less the square of the mean loses what the two have in common.
What a row has beyond whole vectors is one shorter vector.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Op
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from reparam_compiler.lowering.conv import elementary
from reparam_compiler.lowering.cpu.machine import SMALL, VectorUnit
from reparam_compiler.lowering.relax.epilogues import sizes_of

DTYPE = "float32"


def row_legalizations(unit: VectorUnit) -> dict[str, Callable[[Any, Any], Any]]:
    """For `relax.transform.LegalizeOps`: of float32, over the last axis; TVM's own elsewhere."""

    def softmax(builder: Any, call: Any) -> Any:
        rows = _rows(call, [call.attrs.axis])
        if rows is None:
            return Op.get("relax.nn.softmax").get_attr("FLegalize")(builder, call)
        return _called(builder, call, rows, [], lambda *places: _softmax(unit, *places))

    def layer_norm(builder: Any, call: Any) -> Any:
        rows = _rows(call, call.attrs.axes)
        if rows is None or not (call.attrs.scale and call.attrs.center):
            return Op.get("relax.nn.layer_norm").get_attr("FLegalize")(builder, call)
        epsilon = float(call.attrs.epsilon)
        return _called(builder, call, rows, call.args[1:], lambda *places: _layer_norm(unit, epsilon, *places))

    return {"relax.nn.softmax": softmax, "relax.nn.layer_norm": layer_norm}


def _rows(call: Any, axes: Sequence[Any]) -> tuple[int, int] | None:
    """How many rows there are and how long, where the axes are the last one."""
    sizes = sizes_of(call)
    if not sizes or 0 in sizes or str(call.ty.dtype) != DTYPE or [int(axis) % len(sizes) for axis in axes] != [len(sizes) - 1]:
        return None
    return math.prod(sizes[:-1]), sizes[-1]


def _called(builder: Any, call: Any, rows: tuple[int, int], others: Sequence[Any], write: Callable[..., None]) -> Any:
    """The call of a kernel that reads and writes rows."""
    name = call.op.name.rpartition(".")[2]

    def kernel(*tensors: Any) -> Any:
        return te.extern([rows], list(tensors), lambda inputs, outputs: written(*inputs, *outputs), name=name, dtype=DTYPE)

    def written(*buffers: Any) -> Any:
        with IRBuilder() as statements:
            with (T.parallel if math.prod(rows) >= SMALL else T.serial)(0, rows[0]) as row:
                write(*buffers, row)
            return statements.get()

    data = builder.emit(relax.op.reshape(call.args[0], rows))
    result = builder.emit(builder.call_te(kernel, data, *others, primfunc_name_hint=name))
    return relax.op.reshape(result, call.ty.shape)


def _softmax(unit: VectorUnit, x: Any, out: Any, row: Any) -> None:
    width, lanes = int(x.shape[1]), unit.lanes(DTYPE)
    peak = _reduced(width, lanes, -math.inf, tirx.max, lambda at: x[row, at])
    _by_vectors(width, lanes, lambda at, _: T.buffer_store(out, elementary.exp(x[row, at] - peak), [row, at]))
    total = _reduced(width, lanes, 0.0, operator.add, lambda at: out[row, at])
    _by_vectors(width, lanes, lambda at, _: T.buffer_store(out, out[row, at] / total, [row, at]))


def _layer_norm(unit: VectorUnit, epsilon: float, x: Any, scale: Any, shift: Any, out: Any, row: Any) -> None:
    width, lanes = int(x.shape[1]), unit.lanes(DTYPE)
    count = tirx.const(width, DTYPE)
    mean = _reduced(width, lanes, 0.0, operator.add, lambda at: x[row, at], lambda total: total / count)

    def square(at: Any) -> Any:
        return (x[row, at] - mean) * (x[row, at] - mean)

    def inverse(total: Any) -> Any:
        return tirx.const(1, DTYPE) / tirx.sqrt(total / count + tirx.const(epsilon, DTYPE))

    factor = _reduced(width, lanes, 0.0, operator.add, square, inverse)

    def normal(at: Any, _: Any) -> None:
        T.buffer_store(out, (x[row, at] - mean) * factor * scale[at] + shift[at], [row, at])

    _by_vectors(width, lanes, normal)


def _reduced(
    width: int,
    lanes: int,
    start: float,
    combine: Callable[[Any, Any], Any],
    element: Callable[[Any], Any],
    then: Callable[[Any], Any] = lambda total: total,
) -> Any:
    """A function of the reduction of a row's elements, kept in a register: lane by lane, then over the lanes."""
    partial, total = (T.alloc_buffer((size,), DTYPE, scope="local", layout=None) for size in (lanes, 1))
    with T.vectorized(0, lanes) as lane:
        T.buffer_store(partial, tirx.const(start, DTYPE), [lane])
    _by_vectors(width, lanes, lambda at, lane: T.buffer_store(partial, combine(partial[lane], element(at)), [lane]))
    T.buffer_store(total, partial[0], [0])
    with T.unroll(1, lanes) as lane:
        T.buffer_store(total, combine(total[0], partial[lane]), [0])
    T.buffer_store(total, then(total[0]), [0])
    return total[0]


def _by_vectors(width: int, lanes: int, body: Callable[[Any, Any], None]) -> None:
    """The body for every position of a row and its lane."""
    if width >= lanes:
        with T.serial(0, width // lanes) as vector, T.vectorized(0, lanes) as lane:
            body(vector * lanes + lane, lane)
    if rest := width % lanes:
        with T.vectorized(0, rest) as lane:
            body(width - rest + lane, lane)
