"""What torch's functions, tensor methods, modules and aten ops mean in `ir.ops`: one table for torch.fx and torch.export.

A call is that of a row of the vocabulary, however it was spelled: `F.conv2d(x, w)`, `torch.ops.aten.conv2d.default`,
`operator.add`, `x.add(y)`. The row's reader gives an op and its operands, or raises `Unsupported`: then the node is opaque, and
nothing that touches it is rewritten.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from reparam_compiler.frontends.torch.call import Call, Read, Reader, Unsupported
from reparam_compiler.frontends.torch.ops.linear import LINEARS
from reparam_compiler.frontends.torch.ops.shapes import SHAPES
from reparam_compiler.frontends.torch.ops.windows import WINDOWS
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Operand, Param
from reparam_compiler.vocabulary.resolve import ROWS, by_row_name
from reparam_compiler.vocabulary.row import Form, Row


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


def _instance_norm(order: tuple[int, int, int, int], call: Call) -> Read:
    """With statistics of its own it is a batch norm. order: as above; `F.instance_norm` and aten differ."""
    no_batch = call.constant(8, "rank without batch", None)
    if call.constant(5, "use_input_stats", True):
        raise Unsupported("instance norm over the input's own statistics")
    known = call.type_of(call.first)
    if no_batch is not None and known is not None and len(known.shape) == no_batch:
        raise Unsupported("instance norm without batch axis")
    return _batch_norm(None, order, 7, call)


def _native_layer_norm(call: Call) -> Read:
    """What `run_decompositions` makes of a layer norm: (values, means, deviations)."""
    shape = tuple(call.constant(1, "normalized_shape"))
    weight, bias = call.param(2, "weight", "weight", None), call.param(3, "bias", "bias", None)
    return ops.LayerNorm(shape, float(call.constant(4, "eps"))), (call.x, weight, bias)


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


def _lerp(call: Call) -> Read:
    """a + t (b - a), by a number; by a tensor it is not linear."""
    share = float(call.constant(2, "weight"))
    return _constant_last(ops.Add((1.0 - share, share)), call.operand(0, "input"), call.operand(1, "end"))


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


def _pointwise(row: Row, call: Call) -> Read:
    return ops.Elementwise(row.name, tuple(None if a is None else float(a) for a in _parameters(row, call))), (call.x,)


def _move(row: Row, call: Call) -> Read:
    arguments = _parameters(row, call)
    if not all(isinstance(argument, int) for argument in arguments):
        raise Unsupported(f"{row.name} without its numbers")
    return ops.Move(row.name, tuple(arguments)), (call.x,)


def _parameters(row: Row, call: Call) -> list[Any]:
    """The arguments that the row knows; with others the call is another function."""
    keys = [key for key, _ in row.parameters]
    others = set(call.kwargs) - {*keys, "input"}
    if len(call.args) > 1 + len(keys) or others:
        raise Unsupported(f"{row.name} with further arguments")
    return [call.constant(i, key, default) for i, (key, default) in enumerate(row.parameters, start=1)]


def _gelu(call: Call) -> Read:
    return ops.Elementwise("gelu_tanh" if call.constant(1, "approximate", "none") == "tanh" else "gelu"), (call.x,)


def _hardtanh(call: Call) -> Read:
    low, high = float(call.constant(1, "min_val", -1.0)), float(call.constant(2, "max_val", 1.0))
    return (ops.Elementwise("relu6") if (low, high) == (0, 6) else ops.Elementwise("clamp", (low, high))), (call.x,)


def _reduce(function: Any, call: Call) -> Read:
    axes = call.constant(1, "dim", None)
    if axes is None or call.kwargs.get("dtype") is not None:
        raise Unsupported(f"{function} over everything")
    axes = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    if not axes:
        raise Unsupported(f"{function} over everything")
    keepdim = bool(call.constant(2, "keepdim", False))
    return ops.Reduce(function, tuple(sorted(call.axis(a) for a in axes)), keepdim), (call.x,)


_FORMS: dict[Form, Callable[[Row, Call], Read]] = {"pointwise": _pointwise, "move": _move}
_READERS: dict[str, Reader] = {
    **WINDOWS,
    **LINEARS,
    **SHAPES,
    "functional.batch_norm": partial(_batch_norm, 5, (3, 4, 1, 2), 7),
    "batch_norm": partial(_batch_norm, 5, (1, 2, 3, 4), 7),
    "_native_batch_norm_legit_no_training": partial(_batch_norm, None, (1, 2, 3, 4), 6),
    "functional.instance_norm": partial(_instance_norm, (3, 4, 1, 2)),
    "instance_norm": partial(_instance_norm, (1, 2, 3, 4)),
    "native_layer_norm": _native_layer_norm,
    "add": partial(_add, 1.0),
    "sub": partial(_add, -1.0),
    "rsub": _rsub,
    "lerp": _lerp,
    "neg": lambda call: (ops.Add((-1.0,)), (call.x,)),
    "mul": _mul,
    "div": _div,
    **dict.fromkeys(("identity", "contiguous", "clone", "detach", "alias", "lift_fresh_copy"), _identity),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    **dict.fromkeys(("feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "mean": partial(_reduce, "mean"),
    "sum": partial(_reduce, "sum"),
    "amax": partial(_reduce, "max"),
    "amin": partial(_reduce, "min"),
}
READERS: dict[Row, Reader] = {
    **{row: partial(_FORMS[row.form], row) for row in ROWS.values() if row.form in _FORMS},
    **by_row_name(_READERS),
}
"""For each row its reader. One whose op is a function of elements, or a move, needs none of its own."""
