"""What torch's functions, tensor methods, modules and aten ops mean in `ir.ops`: one table for torch.fx and torch.export.

A call is named as the function is (`conv2d`, `add`, `flatten` …), however it was spelled: `F.conv2d(x, w)`,
`torch.ops.aten.conv2d.default`, `x.add(y)`, `operator.add`. Its reader gives an op and its operands, or raises `Unread`:
then the node is opaque, and nothing that touches it is rewritten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from reparam_compiler.core.kernel import PaddingMode, Pairs
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Operand, Param, TensorType

Read = tuple[ops.Op, tuple[Operand, ...]]


class Unread(Exception):
    """This call has no exact form in `ir.ops`."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as a tracer wrote it.

    operand_of: the graph's operand for an argument (a traced value, a parameter, a number), given its role.
    type_of: the type of a traced argument, where it is known.
    size_of: for an argument that is the size of a traced value, that value and the axis.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operand_of: Callable[[Any, str], Operand]
    type_of: Callable[[Any], TensorType | None]
    size_of: Callable[[Any], tuple[Any, int] | None]

    def raw(self, index: int, key: str, default: Any = ...) -> Any:
        """The argument, as it stands."""
        value = self.args[index] if index < len(self.args) else self.kwargs.get(key, default)
        if value is ...:
            raise Unread(f"{self.name} without {key}")
        return value

    def constant(self, index: int, key: str, default: Any = ...) -> Any:
        """The argument, which must be plain numbers or words."""
        value = self.raw(index, key, default)
        parts = value if isinstance(value, list | tuple) else (value,)
        if any(not isinstance(part, int | float | str | bool | type(None)) for part in parts):
            raise Unread(f"{self.name}: {key} is computed")
        return value

    def sizes(self, index: int, key: str) -> tuple[Any, ...]:
        """Sizes or axes that stand in a list or one after the other: `x.view(2, 3)`, `x.view((2, 3))`."""
        value = self.raw(index, key)
        return tuple(value) if isinstance(value, list | tuple) else tuple(self.args[index:])

    def operand(self, index: int, key: str, default: Any = ...) -> Operand:
        """The argument as an operand."""
        return self.operand_of(self.raw(index, key, default), "const")

    def param(self, index: int, key: str, role: str, default: Any = ...) -> Param | None:
        """The argument, which must be a parameter or absent."""
        found = self.operand_of(self.raw(index, key, default), role)
        if isinstance(found, str):
            raise Unread(f"{self.name}: {key} is computed")
        return found

    @property
    def x(self) -> Operand:
        """The first argument, which must be computed in the graph."""
        found = self.operand_of(self.first, "const")
        if not isinstance(found, str):
            raise Unread(f"{self.name} of a constant")
        return found

    @property
    def first(self) -> Any:
        """The first argument, as it stands."""
        return self.args[0] if self.args else self.kwargs.get("input", self.kwargs.get("self"))

    @property
    def rank(self) -> int:
        """The number of axes of the first argument."""
        return len(self.shape)

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape of the first argument."""
        known = self.type_of(self.first)
        if known is None:
            raise Unread(f"{self.name}: the shape is not known")
        return known.shape

    def axis(self, value: int) -> int:
        """An axis, counted from the front."""
        return value if value >= 0 else value + self.rank


def spread(value: Any, rank: int) -> tuple[int, ...]:
    """A number, or one for each axis, as a tuple."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * rank if len(values) == 1 else values


def conv_padding(padding: Any, size: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """torch's padding, "same" and "valid" included, as (low, high) for each axis."""
    if padding == "valid":
        return ((0, 0),) * len(size)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return both(spread(padding, len(size)))


def both(padding: Sequence[int]) -> Pairs:
    """Symmetric padding as pairs."""
    return tuple((amount, amount) for amount in padding)


def _conv(rank: int, call: Call) -> Read:
    weight, bias = call.param(1, "weight", "weight"), call.param(2, "bias", "bias", None)
    if weight is None:
        raise Unread("a conv without weight")
    dilation = spread(call.constant(5, "dilation", 1), rank)
    padding = conv_padding(call.constant(4, "padding", 0), weight.shape[2:], dilation)
    stride = spread(call.constant(3, "stride", 1), rank)
    return ops.Conv(stride, padding, dilation, call.constant(6, "groups", 1)), (call.x, weight, bias)


def _convolution(call: Call) -> Read:
    weight, bias = call.param(1, "weight", "weight"), call.param(2, "bias", "bias", None)
    if weight is None or call.constant(6, "transposed"):
        raise Unread("a transposed convolution")
    rank = len(weight.shape) - 2
    stride, padding, dilation = (spread(call.constant(i, ""), rank) for i in (3, 4, 5))
    return ops.Conv(stride, both(padding), dilation, call.constant(8, "groups")), (call.x, weight, bias)


def _linear(call: Call) -> Read:
    return ops.Linear(), (call.x, call.param(1, "weight", "weight"), call.param(2, "bias", "bias", None))


def _batch_norm(training: int | None, order: tuple[int, int, int, int], eps: int, call: Call) -> Read:
    """order: where weight, bias, mean and var stand; functional and aten differ."""
    keys = ("weight", "bias", "running_mean", "running_var")
    roles = ("weight", "bias", "mean", "var")
    params = [call.param(i, key, role, None) for i, key, role in zip(order, keys, roles, strict=True)]
    in_training = training is not None and bool(call.constant(training, "training", False))
    if params[2] is None or params[3] is None:
        if not in_training:
            raise Unread("batch norm without statistics")
        raise Unread("batch norm over the batch's own statistics")
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
        raise Unread("division that rounds")
    return ops.Div(), (call.operand(0, "input"), call.operand(1, "other"))


def _identity(call: Call) -> Read:
    if call.kwargs.get("dtype") is not None:
        raise Unread("a conversion")
    return ops.Identity(), (call.x,)


def _dropout(call: Call) -> Read:
    if call.constant(2, "training", call.kwargs.get("train", True)):
        raise Unread("dropout in training mode")
    return ops.Identity(), (call.x,)


def _elementwise(function: str, keys: Sequence[tuple[str, float | None]], call: Call) -> Read:
    arguments = tuple(call.constant(i, key, default) for i, (key, default) in enumerate(keys, start=1))
    return ops.Elementwise(function, tuple(None if a is None else float(a) for a in arguments)), (call.x,)


def _gelu(call: Call) -> Read:
    return ops.Elementwise("gelu_tanh" if call.constant(1, "approximate", "none") == "tanh" else "gelu"), (call.x,)


def _hardtanh(call: Call) -> Read:
    low, high = float(call.constant(1, "min_val", -1.0)), float(call.constant(2, "max_val", 1.0))
    return (ops.Elementwise("relu6") if (low, high) == (0, 6) else ops.Elementwise("clamp", (low, high))), (call.x,)


def _avg_pool(rank: int, call: Call) -> Read:
    size = spread(call.constant(1, "kernel_size"), rank)
    stride = spread(call.constant(2, "stride", None) or size, rank)
    padding = both(spread(call.constant(3, "padding", 0), rank))
    ceil_mode, include = bool(call.constant(4, "ceil_mode", False)), bool(call.constant(5, "count_include_pad", True))
    divisor = call.constant(6, "divisor_override", None)
    return ops.AvgPool(size, stride, padding, ceil_mode, include, divisor), (call.x,)


def _max_pool(rank: int, call: Call) -> Read:
    if call.kwargs.get("return_indices"):
        raise Unread("max pool with indices")
    size = spread(call.constant(1, "kernel_size"), rank)
    stride = spread(call.constant(2, "stride", None) or size, rank)
    padding, dilation = (spread(call.constant(i, key, d), rank) for i, key, d in ((3, "padding", 0), (4, "dilation", 1)))
    return ops.MaxPool(size, stride, both(padding), dilation, bool(call.constant(5, "ceil_mode", False))), (call.x,)


def _adaptive(rank: int, call: Call) -> Read:
    size = spread(call.constant(1, "output_size"), rank)
    if any(n is None for n in size):
        raise Unread("adaptive pool to the input's own size")
    return ops.AdaptiveAvgPool(size), (call.x,)


def _reduce(function: Any, call: Call) -> Read:
    axes = call.constant(1, "dim", call.kwargs.get("axis"))
    if axes is None or call.kwargs.get("dtype") is not None:
        raise Unread(f"{function} over everything")
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    keepdim = bool(call.constant(2, "keepdim", False))
    return ops.Reduce(function, tuple(sorted(call.axis(a) for a in axes)), keepdim), (call.x,)


def _concat(call: Call) -> Read:
    values = call.raw(0, "tensors")
    if not isinstance(values, list | tuple):
        raise Unread("concat of a computed list")
    axis = call.constant(1, "dim", 0)
    if axis < 0:
        known = call.type_of(values[0])
        if known is None:
            raise Unread("concat along an axis counted from the end, of values whose shape is not known")
        axis += len(known.shape)
    return ops.Concat(axis), tuple(call.operand_of(value, "const") for value in values)


def _flatten(call: Call) -> Read:
    start, end = call.constant(1, "start_dim", 0), call.constant(2, "end_dim", -1)
    known = call.type_of(call.first)
    if known is not None:
        start, end = (a if a >= 0 else a + len(known.shape) for a in (start, end))
    if start < 0:
        raise Unread("flatten from an axis counted from the end")
    return ops.Flatten(start, end), (call.x,)


def _reshape(call: Call) -> Read:
    """A size that is computed is read where it is the size of the same axis of x: `x.view(x.size(0), -1)`."""
    shape: list[int] = []
    for place, size in enumerate(call.sizes(1, "shape")):
        if isinstance(size, int):
            shape.append(size)
        elif call.size_of(size) == (call.first, place):
            shape.append(0)
        else:
            raise Unread("reshape to a computed shape")
    if 0 in call.sizes(1, "shape"):
        raise Unread("reshape to nothing")
    if shape == [0, -1]:
        return ops.Flatten(1, call.rank - 1 if call.type_of(call.first) else -1), (call.x,)
    return ops.Reshape(tuple(shape)), (call.x,)


def _permute(call: Call) -> Read:
    return ops.Permute(tuple(call.axis(a) for a in call.sizes(1, "dims"))), (call.x,)


def _transpose(call: Call) -> Read:
    axes = list(range(call.rank))
    a, b = call.axis(call.constant(1, "dim0")), call.axis(call.constant(2, "dim1"))
    axes[a], axes[b] = axes[b], axes[a]
    return ops.Permute(tuple(axes)), (call.x,)


def _constant_pad(call: Call) -> Read:
    return _padded(call, "constant", call.constant(2, "value", 0.0))


def _pad(call: Call) -> Read:
    return _padded(call, call.constant(2, "mode", "constant"), call.constant(3, "value", None))


def _padded(call: Call, mode: str, value: float | None) -> Read:
    """torch counts the pairs from the last axis."""
    amounts = list(call.constant(1, "pad"))
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    padding = ((0, 0),) * (call.rank - len(pairs)) + tuple((int(low), int(high)) for low, high in pairs)
    modes: dict[str, PaddingMode] = {
        "constant": "zeros",
        "reflect": "reflect",
        "replicate": "replicate",
        "circular": "circular",
    }
    return ops.Pad(padding, modes[mode], float(value or 0.0) if mode == "constant" else 0.0), (call.x,)


def _split(call: Call) -> Read:
    pieces, axis = call.constant(1, "split_size"), call.axis(call.constant(2, "dim", 0))
    whole = call.shape[axis]
    if isinstance(pieces, int):
        if not isinstance(whole, int):
            raise Unread("split of a size that is not known")
        pieces = [min(pieces, whole - at) for at in range(0, whole, pieces)]
    return ops.Split(axis, tuple(pieces)), (call.x,)


def _chunk(call: Call) -> Read:
    count, axis = call.constant(1, "chunks"), call.axis(call.constant(2, "dim", 0))
    whole = call.shape[axis]
    if not isinstance(whole, int):
        raise Unread("chunks of a size that is not known")
    piece = -(-whole // count)
    return ops.Split(axis, tuple(min(piece, whole - at) for at in range(0, whole, piece))), (call.x,)


def _getitem(call: Call) -> Read:
    index = call.raw(1, "index")
    if call.type_of(call.first) is None and isinstance(index, int):
        return ops.Item(index), (call.x,)
    parts = index if isinstance(index, tuple) else (index,)
    cuts = [(axis, part) for axis, part in enumerate(parts) if part != slice(None)]
    if len(cuts) != 1 or not isinstance(cuts[0][1], slice) or Ellipsis in parts:
        raise Unread("an index that is not one slice")
    axis, cut = cuts[0]
    return _one_slice(call, axis, cut.start, cut.stop, cut.step)


def _slice(call: Call) -> Read:
    axis = call.axis(call.constant(1, "dim", 0))
    return _one_slice(
        call, axis, *(call.constant(i, key, d) for i, key, d in ((2, "start", 0), (3, "end", None), (4, "step", 1)))
    )


def _one_slice(call: Call, axis: int, start: Any, stop: Any, step: Any) -> Read:
    start, step = start or 0, step or 1
    if not all(isinstance(n, int | None) for n in (start, stop, step)):
        raise Unread("a slice with computed bounds")
    whole = call.shape[axis] if call.type_of(call.first) is not None else None
    if start < 0 or (stop is not None and stop < 0):
        if not isinstance(whole, int):
            raise Unread("a slice counted from an end that is not known")
        start, stop = (n + whole if n is not None and n < 0 else n for n in (start, stop))
    if stop is not None and stop >= (whole if isinstance(whole, int) else 2**62):
        stop = None
    return ops.Slice(axis, start, stop, step), (call.x,)


def _clamp(call: Call) -> Read:
    return _elementwise("clamp", (("min", None), ("max", None)), call)


Reader = Callable[[Call], Read]

READERS: dict[str, Reader] = {
    **{f"conv{n}d": partial(_conv, n) for n in (1, 2, 3)},
    "convolution": _convolution,
    "linear": _linear,
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
    **{f"avg_pool{n}d": partial(_avg_pool, n) for n in (1, 2, 3)},
    **{f"max_pool{n}d": partial(_max_pool, n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": partial(_adaptive, n) for n in (1, 2, 3)},
    "mean": partial(_reduce, "mean"),
    "sum": partial(_reduce, "sum"),
    "amax": partial(_reduce, "max"),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "chunk": _chunk,
    "getitem": _getitem,
    "slice": _slice,
}
"""For each function its reader."""
