"""Reductions: largest and smallest, products, variances, and which of equals comes first."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

UNKNOWN = "does not know it"


def _axes(call: Call) -> list[int] | None:
    """The axes that are reduced; None for all."""
    dims = call["dim"]
    listed = [dims] if isinstance(dims, int) else list(dims or [])
    return listed or None


def _ordered(call: Call) -> Any:
    """The input, bools as int8: TVM has no order of bools."""
    return call.tensor("input", "int8" if call.given_dtype("input") == "bool" else None)


def _extreme(op: Callable[..., Any]) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        found = call.emit(op(_ordered(call), _axes(call), bool(call["keepdim"])))
        return relax.op.astype(found, call.dtype) if call.dtype == "bool" else found

    return convert


instead("amax.default", "max.default", tvm=UNKNOWN)(_extreme(relax.op.max))
instead("amin.default", "min.default", tvm=UNKNOWN)(_extreme(relax.op.min))


def _extreme_and_place(value: Callable[..., Any], place: Callable[..., Any]) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        data, axis, kept = _ordered(call), call["dim"], bool(call["keepdim"])
        values = call.emit(relax.op.astype(value(data, [axis], kept), call.dtype))
        return relax.Tuple([values, call.emit(place(data, axis, kept))])

    return convert


instead("max.dim", tvm="takes the values of topk, which does not say which of equals comes first")(
    _extreme_and_place(relax.op.max, relax.op.argmax)
)
instead("min.dim", tvm=UNKNOWN)(_extreme_and_place(relax.op.min, relax.op.argmin))


@instead("any.default", "any.dim", "any.dims", tvm="gives the largest number, not whether one is true")
def _any(call: Call) -> Any:
    flags = call.emit(relax.op.astype(call.tensor("input", "bool"), "int8"))
    return relax.op.astype(relax.op.max(flags, _axes(call), bool(call["keepdim"])), call.dtype)


@instead("all.default", "all.dim", "all.dims", tvm=UNKNOWN)
def _all(call: Call) -> Any:
    flags = call.emit(relax.op.astype(call.tensor("input", "bool"), "int8"))
    return relax.op.astype(relax.op.min(flags, _axes(call), bool(call["keepdim"])), call.dtype)


@instead("prod.default", "prod.dim_int", tvm="does not know it along an axis, and multiplies integers in their own dtype")
def _product(call: Call) -> Any:
    return relax.op.prod(call.tensor("input", call.dtype), _axes(call), bool(call["keepdim"]))


@instead("mean.default", "mean.dim", tvm="divides integers as integers")
def _mean(call: Call) -> Any:
    return relax.op.mean(call.tensor("input", call.dtype), _axes(call), bool(call["keepdim"]))


@instead("var.correction", tvm="reads its axes where they are given by position alone")
def _variance(call: Call) -> Any:
    return _variance_of(call)


def _variance_of(call: Call) -> Any:
    sizes, axes = call.sizes("input"), _axes(call)
    count = math.prod(sizes if axes is None else [sizes[axis] for axis in axes])
    correction = 1 if call["correction"] is None else call["correction"]
    variance = call.emit(relax.op.variance(call.tensor("input"), axes, bool(call["keepdim"])))
    if correction == 0:
        return variance
    factor = np.divide(count, max(0.0, count - correction)) if count > correction else math.nan
    return call.emit(relax.op.multiply(variance, relax.const(float(factor), call.dtype)))


@instead("var_mean.correction", tvm=UNKNOWN)
def _variance_and_mean(call: Call) -> Any:
    mean = call.emit(relax.op.mean(call.tensor("input"), _axes(call), bool(call["keepdim"])))
    return relax.Tuple([_variance_of(call), mean])


@instead("linalg_vector_norm.default", tvm="of order 0 it divides by zero; integers stay integers")
def _norm(call: Call) -> Any:
    axes, kept, order = _axes(call), bool(call["keepdim"]), float(call["ord"])
    size = call.emit(relax.op.abs(call.tensor("input", call.dtype)))
    if math.isinf(order):
        return (relax.op.max if order > 0 else relax.op.min)(size, axes, kept)
    if order == 0:
        there = relax.op.not_equal(size, relax.const(0, call.dtype))
        return relax.op.sum(relax.op.astype(there, call.dtype), axes, kept)
    if order == 1:
        return relax.op.sum(size, axes, kept)
    if order == 2:
        return relax.op.sqrt(relax.op.sum(relax.op.multiply(size, size), axes, kept))
    total = relax.op.sum(relax.op.power(size, relax.const(order, call.dtype)), axes, kept)
    return relax.op.power(total, relax.const(1 / order, call.dtype))
