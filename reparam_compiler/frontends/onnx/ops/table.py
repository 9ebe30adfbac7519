"""What ONNX's ops mean in `ir.ops`: one table.

A reader gives an op and its operands, where operand k is always the node's own input k, or raises `Unsupported`: then the
node is opaque, and nothing that touches it is rewritten. What an op says in an attribute in one opset and in an input in a
later one (axes, sizes, bounds) must be constant either way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Literal

import numpy as np

from reparam_compiler.core.kernel import Ints, PaddingMode
from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported
from reparam_compiler.frontends.onnx.ops.scatter import scatter
from reparam_compiler.frontends.onnx.ops.windows import avg_pool, conv, conv_transpose, max_pool
from reparam_compiler.frontends.onnx.tensors import decimal, dtype_word
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Param
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.resolve import ROWS
from reparam_compiler.vocabulary.row import Form, OnnxType, Row

PAD_MODES: dict[str, PaddingMode] = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _add(coefficients: tuple[float, ...] | None, call: Call) -> Read:
    count = len(call.node.input)
    call.floating()
    return ops.Add(coefficients or (1.0,) * count), tuple(call.operand(index) for index in range(count))


def _binary(op: ops.Op, call: Call) -> Read:
    call.floating()
    return op, (call.operand(0), call.operand(1))


def _batch_norm(call: Call) -> Read:
    if call.opset < 9 and not call.attribute("spatial", 1):
        raise Unsupported("statistics for every position")
    training = bool(call.attribute("training_mode", 0)) if call.opset >= 14 else len(call.node.output) > 1
    roles = ("weight", "bias", "mean", "var")
    params = [call.param(index, role) for index, role in enumerate(roles, start=1)]
    return ops.BatchNorm(decimal(call.attribute("epsilon", 1e-5)), training), (call.x, *params)


def _gemm(call: Call) -> Read:
    if call.attribute("transA", 0):
        raise Unsupported("Gemm of a transposed input")
    alpha, beta = decimal(call.attribute("alpha", 1.0)), decimal(call.attribute("beta", 1.0))
    weight = call.param(1, "weight") if call.attribute("transB", 0) else call.transposed(1, "weight")
    bias = call.param(2, "bias") if call.has(2) else None
    if bias is not None and bias.shape != (weight.shape[0],):
        if bias.shape != (1, weight.shape[0]):
            raise Unsupported("Gemm whose bias is not one row")
        bias = _computed(bias, lambda values: values[0], bias.shape[1:])
    if alpha != 1:
        weight = _computed(weight, lambda values: alpha * values, weight.shape)
    if beta != 1 and bias is not None:
        bias = _computed(bias, lambda values: beta * values, bias.shape)
    return ops.Linear(), (call.x, weight, bias)


def _computed(param: Param, function: Callable[[np.ndarray], np.ndarray], shape: Ints) -> Param:
    return Param(param.role, param.dtype, shape, lambda: function(param.float64()))


def _matmul(call: Call) -> Read:
    call.floating()
    return ops.Linear(), (call.x, call.transposed(1, "weight"))


def _identity(call: Call) -> Read:
    return ops.Identity(), (call.x,)


def _dropout(call: Call) -> Read:
    if call.has(2) and bool(call.constant(2)):
        raise Unsupported("dropout in training mode")
    return ops.Identity(), (call.x,)


def _cast(call: Call) -> Read:
    if dtype_word(int(call.attribute("to", 0))) != call.dtype(0):
        raise Unsupported("a conversion")
    return ops.Identity(), (call.x,)


def _pointwise(row: Row, stated: OnnxType, call: Call) -> Read:
    call.floating()
    return ops.Elementwise(row.name, _arguments(stated, call)), (call.x,)


def _move(row: Row, stated: OnnxType, call: Call) -> Read:
    return ops.Move(row.name, tuple(int(argument) for argument in _arguments(stated, call))), (call.x,)


def _arguments(stated: OnnxType, call: Call) -> tuple[float, ...]:
    """What a type states for the parameters of its row; raises Unsupported where its attributes make it another op."""
    for key, default, value in stated.requires:
        if (found := call.attribute(key, default)) != value:
            raise Unsupported(f"{stated.name} whose {key} is {found}")
    arguments = [call.attribute(key, default) for key, default in stated.arguments]
    if None in arguments:
        raise Unsupported(f"{stated.name} without its numbers")
    return tuple(decimal(argument) for argument in arguments)


def _elementwise(function: str, call: Call) -> Read:
    call.floating()
    return ops.Elementwise(function), (call.x,)


def _softplus(call: Call) -> Read:
    """torch's gives x above a threshold: beyond 40, where exp(-x) is nothing beside x in float64, that is exact."""
    call.floating()
    return ops.Elementwise("softplus", (1.0, 40.0)), (call.x,)


def _hard_sigmoid(call: Call) -> Read:
    slope, offset = np.float32(call.attribute("alpha", 0.2)), np.float32(call.attribute("beta", 0.5))
    if (slope, offset) != (np.float32(1 / 6), np.float32(0.5)):
        raise Unsupported(f"HardSigmoid of slope {slope}")
    return _elementwise("hardsigmoid", call)


def _gelu(call: Call) -> Read:
    return _elementwise("gelu_tanh" if call.attribute("approximate", "none") == "tanh" else "gelu", call)


def _clip(call: Call) -> Read:
    call.floating()
    bounds: list[float | None] = []
    for index, key in enumerate(("min", "max"), start=1):
        found = call.attribute(key, None)
        found = call.constant(index) if found is None and call.has(index) else found
        bounds.append(None if found is None else decimal(float(np.asarray(found).reshape(()))))
    if bounds == [None, None]:
        return ops.Identity(), (call.x,)
    return (ops.Elementwise("relu6") if bounds == [0, 6] else ops.Elementwise("clamp", tuple(bounds))), (call.x,)


def _pad(call: Call) -> Read:
    pads = call.values(1, "pads")
    if pads is None:
        raise Unsupported("Pad without pads")
    mode = PAD_MODES[call.attribute("mode", "constant")]
    value = call.attribute("value", None)
    value = float(np.asarray(call.constant(2)).reshape(())) if value is None and call.has(2) else value or 0.0
    axes = call.values(3, "axes")
    amounts = [(0, 0)] * call.rank
    half = len(pads) // 2
    for axis, low, high in zip(range(call.rank) if axes is None else axes, pads[:half], pads[half:], strict=True):
        amounts[call.axis(axis)] = (low, high)
    if mode != "zeros" and (any(map(any, amounts[:2])) or any(n < 0 for pair in amounts for n in pair)):
        raise Unsupported(f"{mode} padding of batch or channels, or negative")
    return ops.Pad(tuple(amounts), mode, decimal(value) if mode == "zeros" else 0.0), (call.x,)


def _global_average(call: Call) -> Read:
    return ops.AdaptiveAvgPool((1,) * (call.rank - 2)), (call.x,)


def _global_max(call: Call) -> Read:
    return ops.Reduce("max", tuple(range(2, call.rank)), True), (call.x,)


def _reduce(function: Literal["mean", "sum", "max"], call: Call) -> Read:
    call.floating()
    axes = call.values(1, "axes")
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return ops.Identity(), (call.x,)
        axes = tuple(range(call.rank))
    found = tuple(sorted(call.axis(axis) for axis in axes))
    keepdim = bool(call.attribute("keepdims", 1))
    if function == "mean" and keepdim and call.rank > 2 and found == tuple(range(2, call.rank)):
        return ops.AdaptiveAvgPool((1,) * len(found)), (call.x,)  # how the dynamo exporter writes it
    return ops.Reduce(function, found, keepdim), (call.x,)


def _concat(call: Call) -> Read:
    operands = tuple(call.operand(index) for index in range(len(call.node.input)))
    return ops.Concat(call.axis(call.attribute("axis", 0))), operands


def _flatten(call: Call) -> Read:
    start = call.attribute("axis", 1)
    start = start if start >= 0 else start + call.rank
    if start == 1 and call.rank > 1:
        return ops.Flatten(1, call.rank - 1), (call.x,)
    if start == 0:
        return ops.Reshape((1, -1)), (call.x,)
    rows = [size for size in call.shape[:start] if isinstance(size, int)]
    if len(rows) < start:
        raise Unsupported("Flatten to a computed shape")
    return ops.Reshape((prod(rows), -1)), (call.x,)


def _reshape(call: Call) -> Read:
    """A computed size is read where it is that of the same axis of x; what leaves only the first axis is a flatten."""
    shape = _shape(call)
    if 0 in shape and call.attribute("allowzero", 0):
        raise Unsupported("Reshape to nothing")
    if shape.count(-1) > 1:
        raise Unsupported("Reshape to a shape that is not known")
    if len(shape) == 2 and _makes_rows(call, shape):
        return ops.Flatten(1, call.rank - 1), (call.x,)
    return ops.Reshape(tuple(shape)), (call.x,)


def _shape(call: Call) -> list[int]:
    """The shape that is asked for: numbers, 0 for the size of the same axis, and -1 for what depends on open sizes."""
    try:
        return [size if isinstance(size, int) else call.kept_size(size, place) for place, size in enumerate(call.sizes(1))]
    except Unsupported:
        asked, whole = call.samples(1), call.shapes(0)
        if len({len(sizes) for sizes in asked}) != 1:
            raise
    shape = []
    for place, found in enumerate(zip(*(map(int, sizes) for sizes in asked), strict=True)):
        kept = all(len(own) > place and own[place] == size for own, size in zip(whole, found, strict=True))
        shape.append(0 if kept else found[0] if len(set(found)) == 1 else -1)
    return shape


def _expand(call: Call) -> Read:
    """Expand to the shape that x has."""
    for own, asked in zip(call.shapes(0), call.samples(1), strict=True):
        if len(asked) > len(own) or any(n not in (1, size) for n, size in zip(reversed(asked), reversed(own), strict=False)):
            raise Unsupported("an expansion")
    return ops.Identity(), (call.x,)


def _makes_rows(call: Call, shape: Sequence[int]) -> bool:
    known = call.type(0)
    if known is None or len(known.shape) < 2:
        return False
    first: Dim = known.shape[0]
    rest = [size for size in known.shape[1:] if isinstance(size, int)]
    columns = prod(rest) if len(rest) == len(known.shape) - 1 else None
    keeps_batch = shape[0] == 0 or shape[0] == first
    return (keeps_batch and shape[1] in (-1, columns)) or (shape[0] == -1 and shape[1] == columns and columns != 0)


def _squeeze(call: Call) -> Read:
    axes = call.values(1, "axes")
    if axes is None:
        if any(not isinstance(size, int) for size in call.shape):
            raise Unsupported("Squeeze of sizes that are not known")
        gone = {axis for axis, size in enumerate(call.shape) if size == 1}
    else:
        gone = {call.axis(axis) for axis in axes}
    return _regrouped(call, [axis for axis in range(call.rank) if axis not in gone])


def _unsqueeze(call: Call) -> Read:
    axes = call.values(1, "axes") or ()
    rank = call.rank + len(axes)
    new = {axis if axis >= 0 else axis + rank for axis in axes}
    old = iter(range(call.rank))
    return _regrouped(call, [None if axis in new else next(old) for axis in range(rank)])


def _regrouped(call: Call, axes: Sequence[int | None]) -> Read:
    """To the sizes of these axes of x, None for a new one of size 1: by 0 in the same place, else by number, or one -1."""
    shape: list[int] = []
    for place, axis in enumerate(axes):
        size = 1 if axis is None else call.shape[axis]
        shape.append(0 if axis == place else size if isinstance(size, int) else -1)
    if shape.count(-1) > 1:
        raise Unsupported("sizes that are not known")
    return ops.Reshape(tuple(shape)), (call.x,)


def _transpose(call: Call) -> Read:
    return ops.Permute(tuple(call.attribute("perm", None) or reversed(range(call.rank)))), (call.x,)


def _slice(call: Call) -> Read:
    """Along one axis a slice; along several, without steps, a crop."""
    starts, stops = call.values(1, "starts"), call.values(2, "ends")
    if starts is None or stops is None:
        raise Unsupported("a slice without bounds")
    axes = call.values(3, "axes") or tuple(range(len(starts)))
    steps = call.values(4, "steps") or (1,) * len(starts)
    cuts: list[ops.Slice] = []
    crop = [(0, 0)] * call.rank
    for start, stop, axis, step in zip(starts, stops, map(call.axis, axes), steps, strict=True):
        if step < 1:
            raise Unsupported("a slice that runs backwards")
        size = call.shape[axis]
        if isinstance(size, int):
            start, stop = (min(max(n + size if n < 0 else n, 0), size) for n in (start, stop))
        elif start < 0:
            raise Unsupported("a slice counted from an end that is not known")
        to_end = stop == size or stop >= 2**31 - 1
        if start or step > 1 or not to_end:
            cuts.append(ops.Slice(axis, start, None if to_end else stop, step))
            high = 0 if to_end else stop - size if isinstance(size, int) else stop
            crop[axis] = (-start, high)
    if len(cuts) < 2 and all(cut.stop is None or cut.stop >= 0 for cut in cuts):
        return (cuts[0] if cuts else ops.Identity()), (call.x,)
    if any(cut.step > 1 or high > 0 for cut in cuts for _, high in [crop[cut.axis]]):
        raise Unsupported("a slice along several axes, with steps or to a place that is not known from the end")
    if any(isinstance(size, int) and size + low + high <= 0 for size, (low, high) in zip(call.shape, crop, strict=True)):
        raise Unsupported("a slice that leaves nothing")
    return ops.Pad(tuple(crop)), (call.x,)


def _split(call: Call) -> Read:
    axis, count = call.axis(call.attribute("axis", 0)), len(call.node.output)
    sizes = call.values(1, "split")
    if sizes is None:
        whole = call.shape[axis]
        if not isinstance(whole, int):
            raise Unsupported("a split of a size that is not known")
        piece = -(-whole // count)
        sizes = tuple(max(min(piece, whole - at), 0) for at in range(0, piece * count, piece))
    return ops.Split(axis, sizes), (call.x,)


_FORMS: dict[Form, Callable[[Row, OnnxType, Call], Read]] = {"pointwise": _pointwise, "move": _move}
READERS: dict[str, Callable[[Call], Read]] = {
    **{t.name: partial(_FORMS[row.form], row, t) for row in ROWS.values() if row.form in _FORMS for t in row.onnx},
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "BatchNormalization": _batch_norm,
    "Add": partial(_add, (1.0, 1.0)),
    "Sub": partial(_add, (1.0, -1.0)),
    "Neg": partial(_add, (-1.0,)),
    "Sum": partial(_add, None),
    "Mul": partial(_binary, ops.Mul()),
    "Div": partial(_binary, ops.Div()),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Softplus": _softplus,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Clip": _clip,
    "Pad": _pad,
    "AveragePool": avg_pool,
    "MaxPool": max_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "ReduceMean": partial(_reduce, "mean"),
    "ReduceSum": partial(_reduce, "sum"),
    "ReduceMax": partial(_reduce, "max"),
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "ScatterND": scatter,
    "Split": _split,
}
"""For each op of ONNX's own domain its reader. One that is a function of elements, or a move, needs none of its own."""

NOT_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Ops of constants that stay ops: a quantized model keeps its integers."""

RANDOM = frozenset(stated.name for row in ROWS.values() if Facts.RANDOM in row.facts for stated in row.onnx)
"""Ops that may give something else each time."""
