"""Functions of each element that TVM does not know, knows on some dtypes alone, or computes with a loss of digits.

The C library has them all, for the host and for CUDA; half precision goes by float32.
"""

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from reparam_compiler.lowering.importing.torch_ops.arithmetic import is_floating
from reparam_compiler.lowering.importing.torch_ops.table import Call, instead, number

UNKNOWN = "does not know it"


def _library(name: str) -> Callable[..., Any]:
    """A function of the C library: `expm1f` of float32, `expm1` of float64."""

    def function(*values: Any) -> Any:
        dtype = str(values[0].ty)
        wide = "float64" if dtype == "float64" else "float32"
        called = name if wide == "float64" else f"{name}f"
        return tirx.call_pure_extern(wide, called, *(value.astype(wide) for value in values)).astype(dtype)

    return function


def _of_library(name: str, *operands: str) -> Callable[[Call], Any]:
    return lambda call: call.elements(_library(name), *(call.tensor(operand, call.dtype) for operand in operands or ("input",)))


instead("sinh.default", tvm="has no code for it on a CPU")(_of_library("sinh"))
instead("cosh.default", tvm="has no code for it on a CPU")(_of_library("cosh"))
instead("expm1.default", tvm="exp(x) - 1, which loses all digits of a small x")(_of_library("expm1"))
instead("log1p.default", tvm="log(x + 1), which loses all digits of a small x")(_of_library("log1p"))
for _name, _function in (("erfc", "erfc"), ("exp2", "exp2"), ("lgamma", "lgamma")):
    instead(f"{_name}.default", tvm=UNKNOWN)(_of_library(_function))
for _name in ("hypot.default", "copysign.Tensor", "copysign.Scalar"):
    instead(_name, tvm=UNKNOWN)(_of_library(_name.partition(".")[0], "input", "other"))
instead("fmax.default", tvm=UNKNOWN)(_of_library("fmax", "input", "other"))
instead("fmin.default", tvm=UNKNOWN)(_of_library("fmin", "input", "other"))


@instead("signbit.default", tvm=UNKNOWN)
def _signbit(call: Call) -> Any:
    sign = _library("copysign")
    return call.elements(
        lambda x: sign(number(1, x), x) < number(0, x) if is_floating(str(x.ty)) else x < number(0, x), call.tensor("input")
    )


_FLOATING = {
    **{
        name: getattr(relax.op, name) for name in ("exp", "sigmoid", "tanh", "sin", "cos", "tan", "log", "sqrt", "rsqrt", "erf")
    },
    **{name: getattr(relax.op, name) for name in ("asin", "acos", "atan", "asinh", "acosh", "atanh")},
    "log2": lambda x: relax.op.divide(relax.op.log(x), relax.const(math.log(2), x.ty.dtype)),
    "log10": lambda x: relax.op.divide(relax.op.log(x), relax.const(math.log(10), x.ty.dtype)),
}


def _floating(op: Callable[[Any], Any]) -> Callable[[Call], Any]:
    return lambda call: op(call.tensor("input", call.dtype))


for _name, _op in _FLOATING.items():
    instead(f"{_name}.default", tvm="refuses integers")(_floating(_op))


@instead("elu.default", tvm="leaves both scales out, which are what makes it SELU")
def _elu(call: Call) -> Any:
    """scale (max(x, 0) - alpha max(1 - e^(input_scale x), 0))."""
    x, scale = call.tensor("input"), call["scale"]

    def times(factor: float, value: Any) -> Any:
        return value if factor == 1 else call.emit(relax.op.multiply(value, relax.const(factor, call.dtype)))

    below = relax.op.subtract(relax.const(1, call.dtype), relax.op.exp(times(call["input_scale"], x)))
    return relax.op.add(times(-call["alpha"] * scale, relax.op.nn.relu(below)), times(scale, relax.op.nn.relu(x)))


@instead("reciprocal.default", tvm="divides integers as integers")
def _reciprocal(call: Call) -> Any:
    return relax.op.divide(relax.const(1, call.dtype), call.tensor("input", call.dtype))


def _unchanged_if_whole(op: Callable[[Any], Any]) -> Callable[[Call], Any]:
    return lambda call: op(call.tensor("input")) if is_floating(call.dtype) else call.tensor("input")


for _name in ("floor", "ceil", "trunc", "round"):
    instead(f"{_name}.default", tvm="refuses integers")(_unchanged_if_whole(getattr(relax.op, _name)))


@instead("clamp.default", "clamp_min.default", "clamp_max.default", tvm="gives the bounds the dtype of the tensor")
def _clamped(call: Call) -> Any:
    x = call.tensor("input", call.dtype)
    if is_floating(call.dtype):
        least = -math.inf if call["min"] is None else call["min"]
        return relax.op.clip(x, least, math.inf if call["max"] is None else call["max"])
    for op, bound in ((relax.op.maximum, call["min"]), (relax.op.minimum, call["max"])):
        x = x if bound is None else call.emit(op(x, relax.const(bound, call.dtype)))
    return x


@instead("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor", tvm="gives the bounds the dtype of the tensor")
def _clamped_by_tensors(call: Call) -> Any:
    x = call.tensor("input", call.dtype)
    for op, bound in ((relax.op.maximum, "min"), (relax.op.minimum, "max")):
        x = x if call[bound] is None else call.emit(op(x, call.tensor(bound, call.dtype)))
    return x
