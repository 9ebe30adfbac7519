"""Arithmetic, linear layers, batch norm and functions of elements whose attributes need a word."""

from collections.abc import Callable

import numpy as np

from reparam_compiler.core.kernel import Ints
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported
from reparam_compiler.frontends.onnx.ops.registry import REDUCTIONS, reads
from reparam_compiler.frontends.onnx.tensors import RUN_CHECKER, called, decimal, dtype_word
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param

COEFFICIENTS = {"Add": (1.0, 1.0), "Sub": (1.0, -1.0), "Neg": (-1.0,)}


@reads("Add", "Sub", "Neg", "Sum")
def add(call: Call) -> Read:
    """A sum of floating values; a Sum has as many as it likes."""
    count = len(call.node.input)
    call.floating()
    coefficients = COEFFICIENTS.get(call.node.op_type, (1.0,) * count)
    return ops.Add(coefficients), tuple(call.operand(index) for index in range(count))


@reads("Mul", "Div")
def multiply(call: Call) -> Read:
    """A product or a quotient of floating values."""
    call.floating()
    return (ops.Mul() if call.node.op_type == "Mul" else ops.Div()), (call.operand(0), call.operand(1))


@reads("BatchNormalization")
def batch_norm(call: Call) -> Read:
    """With constant statistics; in training mode it is no affine function."""
    if call.opset < 9 and not call.attribute("spatial", 1):
        raise Unsupported("statistics for every position")
    training = bool(call.attribute("training_mode", 0)) if call.opset >= 14 else len(call.node.output) > 1
    roles = ("weight", "bias", "mean", "var")
    params = [call.param(index, role) for index, role in enumerate(roles, start=1)]
    if len(shapes := {param.shape for param in params}) > 1:
        raise UnsupportedModelError(
            f"{called(call.node)}: found parameters of the shapes {sorted(shapes)}; expected one for all: {RUN_CHECKER}"
        )
    return ops.BatchNorm(decimal(call.attribute("epsilon", 1e-5)), training), (call.x, *params)


@reads("Gemm")
def gemm(call: Call) -> Read:
    """A linear layer of floating values, its factors folded into the weight and the bias."""
    call.floating()
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


@reads("MatMul")
def matmul(call: Call) -> Read:
    """A product with a constant matrix."""
    call.floating()
    return ops.Linear(), (call.x, call.transposed(1, "weight"))


@reads("Identity")
def identity(call: Call) -> Read:
    """The same value."""
    return ops.Identity(), (call.x,)


@reads("Dropout")
def dropout(call: Call) -> Read:
    """The same value, in evaluation."""
    if call.has(2) and bool(call.constant(2)):
        raise Unsupported("dropout in training mode")
    return ops.Identity(), (call.x,)


@reads("Cast")
def cast(call: Call) -> Read:
    """The same value, where the dtype stays."""
    if dtype_word(int(call.attribute("to", 0))) != call.dtype(0):
        raise Unsupported("a conversion")
    return ops.Identity(), (call.x,)


@reads("Softplus")
def softplus(call: Call) -> Read:
    """torch's gives x above a threshold: beyond 40, where exp(-x) is nothing beside x in float64, that is exact."""
    call.floating()
    return ops.Elementwise("softplus", (1.0, 40.0)), (call.x,)


@reads("Gelu")
def gelu(call: Call) -> Read:
    """Exact, or by tanh."""
    call.floating()
    return ops.Elementwise("gelu_tanh" if call.attribute("approximate", "none") == "tanh" else "gelu"), (call.x,)


@reads("Clip")
def clip(call: Call) -> Read:
    """By constant bounds."""
    call.floating()
    bounds: list[float | None] = []
    for index, key in enumerate(("min", "max"), start=1):
        found = call.attribute(key, None)
        found = call.constant(index) if found is None and call.has(index) else found
        bounds.append(None if found is None else decimal(float(np.asarray(found).reshape(()))))
    if bounds == [None, None]:
        return ops.Identity(), (call.x,)
    return (ops.Elementwise("relu6") if bounds == [0, 6] else ops.Elementwise("clamp", tuple(bounds))), (call.x,)


@reads("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def reduce(call: Call) -> Read:
    """A mean, a sum, the largest or the least over constant axes."""
    function = REDUCTIONS[call.node.op_type]
    call.floating()
    axes = call.values(1, "axes")
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return ops.Identity(), (call.x,)
        axes = tuple(range(call.rank))
    found = tuple(sorted(call.axis(axis) for axis in axes))
    keepdim = bool(call.attribute("keepdims", 1))
    if function == "mean" and keepdim and call.rank > 3 and found == tuple(range(2, call.rank)):
        return ops.AdaptiveAvgPool((1,) * len(found)), (call.x,)  # how the dynamo exporter writes it
    return ops.Reduce(function, found, keepdim), (call.x,)
