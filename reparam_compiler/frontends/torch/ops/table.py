"""What torch's functions, tensor methods, modules and aten ops mean in `ir.ops`: one table for torch.fx and torch.export.

A call is named as the function is (`conv2d`, `add`, `flatten` …), however it was spelled: `F.conv2d(x, w)`,
`torch.ops.aten.conv2d.default`, `x.add(y)`, `operator.add`. Its reader gives an op and its operands, or raises `Unsupported`:
then the node is opaque, and nothing that touches it is rewritten.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from reparam_compiler.frontends.torch.call import Call, Read, Reader, Unsupported
from reparam_compiler.frontends.torch.ops.linear import LINEARS
from reparam_compiler.frontends.torch.ops.shapes import SHAPES
from reparam_compiler.frontends.torch.ops.windows import WINDOWS
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Operand, Param


def _batch_norm(training: int | None, order: tuple[int, int, int, int], eps: int, call: Call) -> Read:
    """order: where weight, bias, mean and var stand; functional and aten differ."""
    keys = ("weight", "bias", "running_mean", "running_var")
    roles = ("weight", "bias", "mean", "var")
    params = [call.param(i, key, role, None) for i, key, role in zip(order, keys, roles, strict=True)]
    in_training = training is not None and bool(call.constant(training, "training", False))
    if params[2] is None or params[3] is None:
        if not in_training:
            raise Unsupported("batch norm without statistics")
        raise Unsupported("batch norm over the batch's own statistics")
    return ops.BatchNorm(float(call.constant(eps, "eps", 1e-5)), in_training), (call.x, *params)


def _add(sign: float, call: Call) -> Read:
    alpha = float(call.constant(2, "alpha", 1.0))
    return _constant_last(ops.Add((1.0, sign * alpha)), call.operand(0, "input"), call.operand(1, "other"))


def _constant_last(op: ops.Add | ops.Mul, first: Operand, second: Operand) -> Read:
    """A constant operand comes second, as torch.export writes it."""
    if not isinstance(first, Param) or isinstance(second, Param):
        return op, (first, second)
    return (ops.Add(op.coefficients[::-1]) if isinstance(op, ops.Add) else op), (second, first)


def _rsub(call: Call) -> Read:
    alpha = float(call.constant(2, "alpha", 1.0))
    return _constant_last(ops.Add((1.0, -alpha)), call.operand(1, "other"), call.operand(0, "input"))


def _mul(call: Call) -> Read:
    return _constant_last(ops.Mul(), call.operand(0, "input"), call.operand(1, "other"))


def _div(call: Call) -> Read:
    if call.kwargs.get("rounding_mode") is not None:
        raise Unsupported("division that rounds")
    return ops.Div(), (call.operand(0, "input"), call.operand(1, "other"))


def _identity(call: Call) -> Read:
    if call.kwargs.get("dtype") is not None:
        raise Unsupported("a conversion")
    return ops.Identity(), (call.x,)


def _dropout(call: Call) -> Read:
    if call.constant(2, "training", call.kwargs.get("train", True)):
        raise Unsupported("dropout in training mode")
    return ops.Identity(), (call.x,)


def _elementwise(function: str, keys: Sequence[tuple[str, float | None]], call: Call) -> Read:
    arguments = tuple(call.constant(i, key, default) for i, (key, default) in enumerate(keys, start=1))
    return ops.Elementwise(function, tuple(None if a is None else float(a) for a in arguments)), (call.x,)


def _gelu(call: Call) -> Read:
    return ops.Elementwise("gelu_tanh" if call.constant(1, "approximate", "none") == "tanh" else "gelu"), (call.x,)


def _hardtanh(call: Call) -> Read:
    low, high = float(call.constant(1, "min_val", -1.0)), float(call.constant(2, "max_val", 1.0))
    return (ops.Elementwise("relu6") if (low, high) == (0, 6) else ops.Elementwise("clamp", (low, high))), (call.x,)


def _reduce(function: Any, call: Call) -> Read:
    axes = call.constant(1, "dim", call.kwargs.get("axis"))
    if axes is None or call.kwargs.get("dtype") is not None:
        raise Unsupported(f"{function} over everything")
    axes = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    if not axes:
        raise Unsupported(f"{function} over everything")
    keepdim = bool(call.constant(2, "keepdim", False))
    return ops.Reduce(function, tuple(sorted(call.axis(a) for a in axes)), keepdim), (call.x,)


def _clamp(call: Call) -> Read:
    return _elementwise("clamp", (("min", None), ("max", None)), call)


READERS: dict[str, Reader] = {
    **WINDOWS,
    **LINEARS,
    **SHAPES,
    "functional.batch_norm": partial(_batch_norm, 5, (3, 4, 1, 2), 7),
    "batch_norm": partial(_batch_norm, 5, (1, 2, 3, 4), 7),
    "_native_batch_norm_legit_no_training": partial(_batch_norm, None, (1, 2, 3, 4), 6),
    "add": partial(_add, 1.0),
    "sub": partial(_add, -1.0),
    "subtract": partial(_add, -1.0),
    "rsub": _rsub,
    "neg": lambda call: (ops.Add((-1.0,)), (call.x,)),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "truediv", "true_divide"), _div),
    **dict.fromkeys(("identity", "contiguous", "clone", "detach", "alias", "lift_fresh_copy"), _identity),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"), _dropout),
    **{
        name: partial(_elementwise, name, ())
        for name in (
            "abs",
            "exp",
            "hardsigmoid",
            "hardswish",
            "log",
            "mish",
            "relu",
            "relu6",
            "sigmoid",
            "silu",
            "sqrt",
            "tanh",
        )
    },
    "leaky_relu": partial(_elementwise, "leaky_relu", (("negative_slope", 0.01),)),
    "elu": partial(_elementwise, "elu", (("alpha", 1.0),)),
    "softplus": partial(_elementwise, "softplus", (("beta", 1.0), ("threshold", 20.0))),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "mean": partial(_reduce, "mean"),
    "sum": partial(_reduce, "sum"),
    "amax": partial(_reduce, "max"),
}
"""For each function its reader."""
