"""Ops that slide a window over a value, and padding: convs, pools, `F.pad`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from reparam_compiler.core.kernel import Pairs
from reparam_compiler.frontends.torch.call import Call, Read, Reader, Unsupported, both, spread
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param
from reparam_compiler.vocabulary.padding import FROM_TORCH_PAD


def conv_padding(padding: Any, size: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """torch's padding, "same" and "valid" included, as (low, high) for each axis."""
    if padding == "valid":
        return ((0, 0),) * len(size)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return both(spread(padding, len(size)))


def _weights(call: Call) -> tuple[str, Param, Param | None]:
    """The operands of a conv, whose x has a batch axis; one without is another op to everybody else."""
    weight, bias = call.param(1, "weight", "weight"), call.param(2, "bias", "bias", None)
    known = call.type_of(call.first)
    if weight is None or (known is not None and len(known.shape) != len(weight.shape)):
        raise Unsupported("a conv without weight or batch axis")
    return call.x, weight, bias


def _conv(rank: int, call: Call) -> Read:
    x, weight, bias = _weights(call)
    dilation = spread(call.constant(5, "dilation", 1), rank)
    padding = conv_padding(call.constant(4, "padding", 0), weight.shape[2:], dilation)
    stride = spread(call.constant(3, "stride", 1), rank)
    return ops.Conv(stride, padding, dilation, call.constant(6, "groups", 1)), (x, weight, bias)


def _padded_conv(call: Call) -> Read:
    """`PaddedConv`, which gives its padding as pairs."""
    x, weight, bias = _weights(call)
    stride, padding, dilation, groups = call.args[3:]
    return ops.Conv(stride, padding, dilation, groups), (x, weight, bias)


def _conv_transpose(rank: int, call: Call) -> Read:
    keys = ((3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0), (7, "dilation", 1))
    stride, padding, extra, dilation = (spread(call.constant(i, key, default), rank) for i, key, default in keys)
    return ops.ConvTranspose(stride, both(padding), extra, dilation, call.constant(6, "groups", 1)), _weights(call)


def _convolution(call: Call) -> Read:
    x, weight, bias = _weights(call)
    rank = len(weight.shape) - 2
    stride, padding, dilation, extra = (spread(call.constant(i, ""), rank) for i in (3, 4, 5, 7))
    groups = call.constant(8, "groups")
    if call.constant(6, "transposed"):
        return ops.ConvTranspose(stride, both(padding), extra, dilation, groups), (x, weight, bias)
    return ops.Conv(stride, both(padding), dilation, groups), (x, weight, bias)


def _pooled(rank: int, call: Call) -> str:
    """What a pool over this many axes reads; it has a batch axis, without which the channels are another axis to us."""
    known = call.type_of(call.first)
    if known is not None and len(known.shape) != rank + 2:
        raise Unsupported("a pool without batch axis")
    return call.x


def _avg_pool(rank: int, call: Call) -> Read:
    size = spread(call.constant(1, "kernel_size"), rank)
    stride = spread(call.constant(2, "stride", None) or size, rank)
    padding = both(spread(call.constant(3, "padding", 0), rank))
    ceil_mode, include = bool(call.constant(4, "ceil_mode", False)), bool(call.constant(5, "count_include_pad", True))
    divisor = call.constant(6, "divisor_override", None)
    return ops.AvgPool(size, stride, padding, ceil_mode, include, divisor), (_pooled(rank, call),)


def _max_pool(rank: int, call: Call) -> Read:
    if call.kwargs.get("return_indices"):
        raise Unsupported("max pool with indices")
    size = spread(call.constant(1, "kernel_size"), rank)
    stride = spread(call.constant(2, "stride", None) or size, rank)
    padding, dilation = (spread(call.constant(i, key, d), rank) for i, key, d in ((3, "padding", 0), (4, "dilation", 1)))
    ceil_mode = bool(call.constant(5, "ceil_mode", False))
    return ops.MaxPool(size, stride, both(padding), dilation, ceil_mode), (_pooled(rank, call),)


def _adaptive(rank: int, call: Call) -> Read:
    size = spread(call.constant(1, "output_size"), rank)
    if any(n is None for n in size):
        raise Unsupported("adaptive pool to the input's own size")
    return ops.AdaptiveAvgPool(size), (_pooled(rank, call),)


def _constant_pad(call: Call) -> Read:
    return _padded(call, "constant", call.constant(2, "value", 0.0))


def _pad(call: Call) -> Read:
    return _padded(call, call.constant(2, "mode", "constant"), call.constant(3, "value", None))


def _padded(call: Call, mode: str, value: float | None) -> Read:
    """torch counts the pairs from the last axis."""
    amounts = list(call.constant(1, "pad"))
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    padding = ((0, 0),) * (call.rank - len(pairs)) + tuple((int(low), int(high)) for low, high in pairs)
    return ops.Pad(padding, FROM_TORCH_PAD[mode], float(value or 0.0) if mode == "constant" else 0.0), (call.x,)


WINDOWS: dict[str, Reader] = {
    **{f"conv{n}d": partial(_conv, n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": partial(_conv_transpose, n) for n in (1, 2, 3)},
    "convolution": _convolution,
    "padded_conv": _padded_conv,
    **{f"avg_pool{n}d": partial(_avg_pool, n) for n in (1, 2, 3)},
    **{f"max_pool{n}d": partial(_max_pool, n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": partial(_adaptive, n) for n in (1, 2, 3)},
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
}
"""For each function its reader."""
