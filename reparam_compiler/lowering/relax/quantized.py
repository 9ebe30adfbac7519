"""Quantized tensors as arithmetic, and the layers between them as layers of integers; Relax in, Relax out.

    quantize(x, s, z)                                = astype(min(max(round(x / s) + z, least), most))
    dequantize(q, s, z)                              = (astype(q) - z) s
    quantize(max_pool2d(dequantize(q, s, z)), s, z)  = max_pool2d(q)                           moves likewise
    conv2d(dequantize(q, s, z), dequantize(w, t, v)) = s t astype(conv2d(astype(q) - z, w - v))        t: one an output channel

The sums of the conv on the right are integers, exact, and fit 32 bits. `byte_data` reads such a layer again, where kernels are
chosen: a CPU that has dot products of bytes multiplies q and w as they are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Shaped
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.epilogues import QUANTIZED, constant_of, sizes_of
from reparam_compiler.lowering.relax.folding import folded_in_numpy
from reparam_compiler.lowering.relax.moves import PERMUTE, RESHAPE

CONV, PRODUCT = "relax.nn.conv2d", "relax.matmul"
BYTEWISE = (PERMUTE, RESHAPE, "relax.nn.max_pool2d")
"""What chooses among numbers and computes none, so that it may come before their scale or after."""
OPS = ("relax.quantize", "relax.dequantize")
LARGEST = 255
"""Of what a byte less its zero point may be."""
EXACT = 2**24
"""Up to which float32 counts every integer."""


def as_arithmetic(module: Any, *, integers: bool) -> Any:
    """The module without quantize and dequantize; with `integers` the layers between them multiply integers."""
    if not any(map(_is_quantized, relax.analysis.get_var2val(module["main"]).values())):
        return module
    module = folded_in_numpy(module)  # which part of a weight a layer takes
    module["main"] = _Arithmetic(module, integers).visit_expr(module["main"])
    return relax.transform.DeadCodeElimination()(module)


def byte_layers(module: Any) -> int:
    """How many layers of `main` multiply integers that were bytes."""
    values = dict(relax.analysis.get_var2val(module["main"]).items())
    return sum(_multiplies_integers(value) and byte_data(value.args[0], values) is not None for value in values.values())


def byte_data(operand: Any, values: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """The bytes q and their zero point z where an operand of a layer is `astype(q) - z`, moved or not; nothing of any other.

    values: what the variables of the function stand for. z is None where there is none.
    """
    value = values.get(operand, operand) if isinstance(operand, relax.Var) else operand
    name = op_name(value)
    if name == "relax.astype":
        return (value.args[0], None) if str(value.args[0].ty.dtype) in QUANTIZED else None
    inner = byte_data(value.args[0], values) if name in (PERMUTE, RESHAPE, "relax.subtract") else None
    if inner is None:
        return None
    data, zero = inner
    if name != "relax.subtract":
        return relax.Call(value.op, [data, *value.args[1:]], value.attrs), zero
    return (data, value.args[1]) if zero is None and _is_one(value.args[1]) else None


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """A dequantized constant. integers: less their zero points. scale: for each element, or fewer along axes that share it."""

    integers: Int32[np.ndarray, "..."]
    scale: Shaped[np.ndarray, "..."]

    @property
    def value(self) -> Shaped[np.ndarray, "..."]:
        value: Shaped[np.ndarray, "..."] = self.integers.astype(self.scale.dtype) * self.scale
        return value

    def taken(self, places: Int[np.ndarray, "..."], axis: int) -> "_Weight":
        """Those at some places of an axis."""
        if self.scale.ndim == 0:
            return _Weight(np.take(self.integers, places, axis), self.scale)
        of_scale = places if self.scale.shape[axis] > 1 else np.zeros_like(places)
        return _Weight(np.take(self.integers, places, axis), np.take(self.scale, of_scale, axis))

    def moved(self, axes: Any) -> "_Weight":
        scale = self.scale if self.scale.ndim == 0 else np.transpose(self.scale, axes)
        return _Weight(np.transpose(self.integers, axes), scale)


@mutator
class _Arithmetic(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def __init__(self, module: Any, integers: bool) -> None:
        super().__init__(module)
        self.integers = integers
        self.values = dict(relax.analysis.get_var2val(module["main"]).items())

    def visit_call_(self, call: Any) -> Any:
        name = op_name(call)
        if name in (CONV, PRODUCT) and self.integers and (layer := self._layer(call)) is not None:
            return layer
        if _multiplies_integers(call) and self._is_of_floats(call):
            return self._in_single(self.visit_expr_post_order(call))
        if name == "relax.quantize" and (of_bytes := self._of_bytes(call)) is not None:
            return of_bytes
        call = self.visit_expr_post_order(call)
        if name == "relax.quantize":
            return self._quantized(call)
        return self._dequantized(call) if name == "relax.dequantize" else call

    def _layer(self, call: Any) -> Any:
        """A conv or dense layer of dequantized operands as one of integers; nothing where it is none."""
        data, weight = self._bound(call.args[0]), self._weight(call.args[1])
        if op_name(data) != "relax.dequantize" or weight is None or not _fits(call, weight):
            return None
        q, scale, zero = data.args
        if str(q.ty.dtype) not in QUANTIZED or not (_is_one(scale) and _is_one(zero)):
            return None
        emit = self.builder_.emit
        centred = self._centred(self.visit_expr(q), self.visit_expr(zero), "int32")
        sums = emit(relax.Call(call.op, [centred, relax.const(weight.integers)], call.attrs))
        by_weight = weight.scale if weight.scale.size == 1 else np.moveaxis(weight.scale, 0, 1 if op_name(call) == CONV else 0)
        known = constant_of(scale)
        factor = by_weight.astype(np.float64) * (1.0 if known is None else float(known.item()))
        result = relax.op.multiply(emit(relax.op.astype(sums, "float32")), relax.const(factor.astype("float32")))
        return result if known is not None else relax.op.multiply(emit(result), self._number(self.visit_expr(scale), "float32"))

    def _is_of_floats(self, call: Any) -> bool:
        """Whether a layer of integers that a model has is computed in float32: convs, but for those of bytes on a CPU."""
        weight = constant_of(call.args[1])
        of_bytes = weight is not None and byte_data(call.args[0], self.values) is not None
        if op_name(call) == CONV:
            return not (of_bytes and self.integers)
        return of_bytes and not self.integers and LARGEST * float(np.abs(weight).sum(-2).max(initial=0)) < EXACT

    def _in_single(self, call: Any) -> Any:
        floats = [self.builder_.emit(relax.op.astype(operand, "float32")) for operand in call.args]
        sums = self.builder_.emit(relax.Call(call.op, floats, call.attrs))
        return relax.op.astype(self.builder_.emit(relax.op.round(sums)), "int32")

    def _of_bytes(self, call: Any) -> Any:
        """What is quantized as it was before a move or a pool, as that of the bytes; nothing of any other."""
        move = self._bound(call.args[0])
        if op_name(move) not in BYTEWISE:
            return None
        before = self._bound(move.args[0])
        if op_name(before) != "relax.dequantize" or str(before.args[0].ty.dtype) != str(call.ty.dtype):
            return None
        for mine, other in zip(call.args[1:], before.args[1:], strict=True):
            known = constant_of(mine), constant_of(other)
            if any(each is None or each.size != 1 for each in known) or known[0].item() != known[1].item():
                return None
        return relax.Call(move.op, [self.visit_expr(before.args[0]), *move.args[1:]], move.attrs)

    def _weight(self, operand: Any) -> _Weight | None:
        """The weight that an operand is, where it is a dequantized constant, or a part of one, transposed or not."""
        value = self._bound(operand)
        if op_name(value) == PERMUTE:
            inner = self._weight(value.args[0])
            return None if inner is None else inner.moved(value.attrs.axes and [int(axis) for axis in value.attrs.axes])
        if op_name(value) == "relax.take" and value.attrs.axis is not None:
            inner, places = self._weight(value.args[0]), self._known(value.args[1])
            return None if inner is None or places is None else inner.taken(places, int(value.attrs.axis))
        if op_name(value) != "relax.dequantize" or str(value.args[0].ty.dtype) not in QUANTIZED:
            return None
        integers, scale, zero = map(self._known, value.args)
        if integers is None or scale is None or zero is None:
            return None
        axis = int(value.attrs.axis)
        less = integers.astype(np.int32) - _along(zero.astype(np.int32), axis, integers.ndim)
        return _Weight(less, _along(scale, axis, integers.ndim))

    def _quantized(self, call: Any) -> Any:
        data, scale, zero = call.args
        emit, axis, rank = self.builder_.emit, int(call.attrs.axis), len(sizes_of(call) or ())
        kind, limits = str(data.ty.dtype), np.iinfo(str(call.ty.dtype))
        value = emit(relax.op.round(emit(relax.op.divide(data, self._aligned(scale, kind, axis, rank)))))
        if not _is_zero(zero):
            value = emit(relax.op.add(value, self._aligned(zero, kind, axis, rank)))
        for op, bound in ((relax.op.maximum, limits.min), (relax.op.minimum, limits.max)):
            value = emit(op(value, relax.const(float(bound), kind)))
        return relax.op.astype(value, str(call.ty.dtype))

    def _dequantized(self, call: Any) -> Any:
        constant = self._weight(call)
        if constant is not None:
            return relax.const(constant.value)
        data, scale, zero = call.args
        axis, rank, kind = int(call.attrs.axis), len(sizes_of(call) or ()), str(call.ty.dtype)
        centred = self._centred(data, self._aligned(zero, kind, axis, rank) if not _is_zero(zero) else zero, kind)
        return relax.op.multiply(centred, self._aligned(scale, kind, axis, rank))

    def _centred(self, data: Any, zero: Any, kind: str) -> Any:
        """`astype(q) - z`."""
        number = self.builder_.emit(relax.op.astype(data, kind))
        return number if _is_zero(zero) else self.builder_.emit(relax.op.subtract(number, self._number(zero, kind)))

    def _aligned(self, operand: Any, kind: str, axis: int, rank: int) -> Any:
        """A scale or zero point in that dtype, along its axis."""
        number, sizes = self._number(operand, kind), sizes_of(operand) or ()
        if len(sizes) != 1 or sizes == (1,) or rank == 1:
            return number
        return self.builder_.emit(relax.op.reshape(number, [-1 if at == axis % rank else 1 for at in range(rank)]))

    def _number(self, operand: Any, kind: str) -> Any:
        """A scale or zero point in that dtype; of one element, without axes."""
        known = constant_of(operand)
        if known is not None:
            return relax.const(np.asarray(known.item() if known.size == 1 else known, kind))
        single = (
            operand if sizes_of(operand) == () or not _is_one(operand) else self.builder_.emit(relax.op.reshape(operand, ()))
        )
        return single if str(operand.ty.dtype) == kind else self.builder_.emit(relax.op.astype(single, kind))

    def _known(self, operand: Any) -> Any:
        """The array of a constant, or of integers cast; nothing of any other expression."""
        value = self._bound(operand)
        if op_name(value) == "relax.astype" and (known := self._known(value.args[0])) is not None and known.dtype.kind in "iu":
            return known.astype(str(value.ty.dtype))
        return constant_of(value)

    def _bound(self, operand: Any) -> Any:
        return self.values.get(operand, operand) if isinstance(operand, relax.Var) else operand


def _multiplies_integers(value: Any) -> bool:
    return op_name(value) in (CONV, PRODUCT) and str(value.ty.dtype) == "int32"


def _is_quantized(value: Any) -> bool:
    return op_name(value) in OPS or _multiplies_integers(value)


def _fits(call: Any, weight: _Weight) -> bool:
    """Whether the scale is one for each output at most, and no sum of the layer exceeds 32 bits."""
    outputs = 0 if op_name(call) == CONV else 1
    inputs = tuple(axis for axis in range(weight.integers.ndim) if axis != outputs)
    sizes = weight.scale.shape
    of_outputs = weight.scale.size == 1 or (len(sizes) == weight.integers.ndim and all(sizes[axis] == 1 for axis in inputs))
    largest = LARGEST * np.abs(weight.integers).sum(inputs, dtype=np.int64).max(initial=0)
    return weight.integers.ndim == (4 if op_name(call) == CONV else 2) and of_outputs and bool(largest < 2**31)


def _along(array: Any, axis: int, rank: int) -> Any:
    """An array of one axis along that axis of so many."""
    if array.size == 1:
        return array.reshape(())
    return array.reshape([-1 if at == axis % rank else 1 for at in range(rank)])


def _is_one(operand: Any) -> bool:
    sizes = sizes_of(operand)
    return sizes is not None and all(size == 1 for size in sizes)


def _is_zero(operand: Any) -> bool:
    known = constant_of(operand)
    return known is not None and not known.any()
