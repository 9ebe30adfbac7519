"""Brings ops that TVM's own passes misread into forms that they read rightly; Relax in, Relax out.

clip(x, a, b)    = min(max(x, a), b)                         ConvertLayout puts transposes round clip
leaky_relu(x)    = prelu(x), one slope for all channels      likewise
a - x            = -1 x + a,  a + x = x + a                  it takes the layout of the left side
squeeze(x)       = reshape(x)                                of a negative axis it runs out of memory, of two it fails
take(x, -1)      = take(x, n - 1)                            "fast" reads before the tensor
max_kernel(x, a) = max(x, a),  min likewise                  TVM's importer makes loops of ONNX's Clip; no pass sees through
power(x, 3)      = x x x,  power(x, 2) = x x                 a call of the C library
stack(a, b)      = concat(expand_dims(a), expand_dims(b))    ConvertLayout names the new axis as no later op knows it, and fails
sum(stack(a, b)) = a + b; so max, min, mean                  over the axis of the stack: ONNX's Sum, Max, Min, Mean as imported
dropout(x)       = (x, ones)                                 ConvertLayout fails; compiled models are evaluated, not trained
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm_ffi
from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

COMMUTATIVE = frozenset(f"relax.{name}" for name in ("add", "multiply", "maximum", "minimum"))
BOUNDS = {"maximum": (topi.maximum, relax.op.maximum), "minimum": (topi.minimum, relax.op.minimum)}
BROADCAST = COMMUTATIVE | {"relax.subtract", "relax.divide", "relax.power"}


RULES = {
    "relax.call_tir": "_kernel",
    "relax.squeeze": "_squeeze",
    "relax.take": "_take",
    "relax.index_tensor": "_index_tensor",
    "relax.clip": "_clip",
    "relax.stack": "_stack",
    "relax.nn.dropout": "_dropout",
    "relax.nn.leakyrelu": "_leaky_relu",
}


PAIRWISE: dict[str, Callable[[Any, Any], Any]] = {
    "relax.sum": relax.op.add,
    "relax.mean": relax.op.add,
    "relax.max": relax.op.maximum,
    "relax.min": relax.op.minimum,
}
"""What a reduction does to two elements; of a mean, before the division."""


def canonicalized(module: Any) -> Any:
    """The module in which each op of the table above has the form on the right."""
    module = module.clone()
    module["main"] = _Canonicalize(module).visit_expr(module["main"])
    return relax.transform.DeadCodeElimination()(module)


def op_name(expr: Any) -> str:
    """The name of the op that a Relax call calls, or nothing for any other expression."""
    return str(getattr(getattr(expr, "op", None), "name", "")) if isinstance(expr, relax.Call) else ""


@mutator
class _Canonicalize(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.module = module

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name == "relax.power" and (factors := _factors(call)):
            return self._product(call.args[0], factors)
        if name in BROADCAST and len(_sizes(call)) == 4:
            return self._broadcast(call, name)
        if name in PAIRWISE and (parts := self._stacked(call)):
            return self._pairwise(call, parts)
        return getattr(self, RULES[name])(call) if name in RULES else call

    def _fields(self, operand: Any) -> list[Any]:
        """The parts of a tuple; none where it is not made in this function."""
        bound = self._bound(operand)
        return list(bound.fields) if isinstance(bound, relax.Tuple) else []

    def _bound(self, operand: Any) -> Any:
        """What a variable stands for, where that is computed in this function; any other expression as it is."""
        return self.builder_.lookup_binding(operand) if isinstance(operand, relax.Var) else operand

    def _stack(self, call: Any) -> Any:
        parts, rank = self._fields(call.args[0]), len(_sizes(call))
        if not parts or not rank:
            return call
        axis = int(call.attrs.axis) % rank
        return relax.op.concat([self.builder_.emit(relax.op.expand_dims(part, axis)) for part in parts], axis)

    def _stacked(self, call: Any) -> list[Any]:
        """What a reduction goes over, where that is the new axis of stacked tensors alone."""
        joined = self._bound(call.args[0])
        if op_name(joined) != "relax.concat" or call.attrs.axis is None or call.attrs.keepdims:
            return []
        axis, rank = int(joined.attrs.axis), len(_sizes(joined))
        if [int(reduced) % rank for reduced in call.attrs.axis] != [axis]:
            return []
        widened = [self._bound(part) for part in self._fields(joined.args[0])]
        alone = all(
            op_name(part) == "relax.expand_dims" and [int(added) % rank for added in part.attrs.axis] == [axis]
            for part in widened
        )
        return [part.args[0] for part in widened] if alone else []

    def _pairwise(self, call: Any, parts: list[Any]) -> Any:
        name, result = op_name(call), parts[0]
        for part in parts[1:]:
            result = self.builder_.emit(PAIRWISE[name](result, part))
        if name == "relax.mean":
            result = relax.op.divide(result, _number(float(len(parts)), call.ty.dtype, 0))
        return result

    def _dropout(self, call: Any) -> Any:
        data = call.args[0]
        return relax.Tuple([data, relax.op.ones_like(data)])

    def _kernel(self, call: Any) -> Any:
        kernel, fields = call.args[0], list(call.args[1].fields)
        word = kernel.name_hint.rstrip("0123456789").rstrip("_")
        if word not in BOUNDS or len(fields) != 2 or not _is_number(fields[1]):
            return call
        emitted, op = BOUNDS[word]
        tensors = [te.placeholder(list(field.ty.shape.values), str(field.ty.dtype)) for field in fields]
        func = self.module[kernel]
        expected = te.create_prim_func([*tensors, emitted(*tensors)]).without_attr("global_symbol").with_attrs(dict(func.attrs))
        if not tvm_ffi.structural_equal(func, expected):
            return call
        return op(fields[0], _of_four_axes(fields[1]) if len(_sizes(fields[0])) == 4 else fields[1])

    def _squeeze(self, call: Any) -> Any:
        return relax.op.reshape(call.args[0], call.ty.shape)

    def _take(self, call: Any) -> Any:
        data, indices = call.args
        if call.attrs.axis is None or str(call.attrs.mode) != "fast":
            return call
        axis = int(call.attrs.axis) % len(_sizes(data))
        counted = _from_the_start(indices, _sizes(data)[axis])
        return relax.op.take(data, counted, axis, mode="fast" if isinstance(counted, GenericConst) else "wrap")

    def _index_tensor(self, call: Any) -> Any:
        data, indices = call.args
        if not isinstance(indices, relax.Tuple):
            return call
        sizes = _sizes(data)
        counted = [_from_the_start(index, size) for index, size in zip(indices.fields, sizes, strict=False)]
        return relax.op.index_tensor(data, relax.Tuple(counted))

    def _clip(self, call: Any) -> Any:
        if len(_sizes(call)) != 4:
            return call
        data = call.args[0]
        ends = ((relax.op.maximum, -math.inf), (relax.op.minimum, math.inf))
        for (op, open_end), bound in zip(ends, call.args[1:], strict=True):
            if (value := float(bound.value)) != open_end:
                data = self.builder_.emit(op(data, _number(value, call.ty.dtype)))
        return data

    def _leaky_relu(self, call: Any) -> Any:
        sizes = _sizes(call)
        if len(sizes) != 4 or not isinstance(sizes[1], int):
            return call
        slopes = np.full(sizes[1], float(call.attrs.alpha), str(call.ty.dtype))
        return relax.op.nn.prelu(call.args[0], relax.const(slopes, str(slopes.dtype)), axis=1)

    def _product(self, data: Any, factors: int) -> Any:
        square = relax.op.multiply(data, data)
        return square if factors == 2 else relax.op.multiply(self.builder_.emit(square), data)

    def _broadcast(self, call: Any, name: str) -> Any:
        left, right = map(_of_four_axes, call.args)
        if isinstance(left, GenericConst) and name in COMMUTATIVE:
            left, right = right, left
        elif isinstance(left, GenericConst) and name == "relax.subtract" and "float" in str(call.ty.dtype):
            negative = self.builder_.emit(relax.op.multiply(right, _number(-1.0, call.ty.dtype)))
            return relax.op.add(negative, left)
        return relax.Call(call.op, [left, right], call.attrs)


def _is_number(operand: Any) -> bool:
    return isinstance(operand, GenericConst) and operand.value.numpy().size == 1


def _sizes(expr: Any) -> list[Any]:
    """The shape of a tensor: numbers, and what is symbolic as it is; empty where it is not known."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None or not hasattr(ty.shape, "values"):
        return []
    return [int(size) if isinstance(size, tirx.IntImm) else size for size in ty.shape.values]


def _from_the_start(indices: Any, size: Any) -> Any:
    """Constant indices, those below zero counted from the end."""
    array = indices.value.numpy() if isinstance(indices, GenericConst) else None
    if array is None or not isinstance(size, int) or not (array < 0).any():
        return indices
    return relax.const(np.where(array < 0, array + size, array).astype(array.dtype), str(array.dtype))


def _factors(call: Any) -> int:
    """2 or 3 where a power of floats is a product of as many factors; 0 where it is none."""
    exponent = call.args[1].value.numpy() if isinstance(call.args[1], GenericConst) else None
    if exponent is None or exponent.size != 1 or "float" not in str(call.ty.dtype) or _sizes(call) != _sizes(call.args[0]):
        return 0
    return int(exponent.item()) if exponent.item() in (2, 3) else 0


def _number(value: float, dtype: Any, rank: int = 4) -> Any:
    return relax.const(np.full((1,) * rank, value, str(dtype)), str(dtype))


def _of_four_axes(operand: Any) -> Any:
    array = operand.value.numpy() if isinstance(operand, GenericConst) else None
    return operand if array is None or array.ndim else _number(array.item(), array.dtype)
