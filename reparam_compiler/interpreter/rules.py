"""What each kind of op computes, in torch: a rule a kind, by families.

    weighted     conv, transposed conv, linear, batch norm, embedding      with parameters for channels
    window       pools and padding                                         each position from those round it
    pointwise    sums, products, functions of elements, updates            each position by itself
    across       reductions, norms, products of matrices, attention        over those that the mask has a 1 for
    move         reshape, concat, slice …                                  the same elements in other places

mypy holds that no kind is left out: `apply` ends in `assert_never`.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam_compiler.core.kernel import PaddingMode, Pairs
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.vocabulary.padding import TORCH_PAD
from reparam_compiler.vocabulary.resolve import MATH

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_REDUCE: dict[str, Callable[..., Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
    "norm": lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim=keepdim),
}

_Weighted = ops.Conv | ops.ConvTranspose | ops.Linear | ops.BatchNorm | ops.Embedding
_Window = ops.AvgPool | ops.MaxPool | ops.AdaptiveAvgPool | ops.Pad
_Pointwise = ops.Add | ops.Mul | ops.Div | ops.Elementwise | ops.SliceUpdate
_Across = ops.Reduce | ops.LayerNorm | ops.GroupNorm | ops.Einsum | ops.Attention
_Join = ops.Concat | ops.Stack
_Move = (
    ops.Identity | ops.Flatten | ops.Reshape | ops.Permute | ops.Slice | ops.Split | ops.TupleGet | ops.Expand
    | ops.ChannelShuffle | ops.Move
)  # fmt: skip
_NotRun = ops.Input | ops.PerChannel | ops.Glu | ops.Slicewise | ops.Rearrange
"""Inputs have no rule, and what only models how an opaque op couples channels has none: the opaque op itself is run."""

OperandValues = Sequence[Any]
"""The values of all operands that a kind declares, None for one that is absent."""


def apply(op: ops.Op, inputs: Sequence[Any]) -> Any:
    """What an op gives for the values of its node's inputs; raises UnsupportedModelError where it cannot be run."""
    operands = op.operands.filled(inputs)
    if isinstance(op, _Move):
        return _move(op, *operands[:1])
    if isinstance(op, _Weighted):
        return _weighted(op, operands)
    if isinstance(op, _Window):
        return _window(op, *inputs)
    if isinstance(op, _Pointwise):
        return _pointwise(op, operands)
    if isinstance(op, _Across):
        return _across(op, operands)
    if isinstance(op, _Join):
        return (torch.stack if isinstance(op, ops.Stack) else torch.cat)(list(inputs), op.axis)
    if isinstance(op, ops.Opaque):
        if op.run is None:
            raise UnsupportedModelError(f"{op.target} cannot be run outside its model")
        return op.run(*inputs)
    if isinstance(op, _NotRun):
        raise UnsupportedModelError(f"the interpreter has no rule for {op.name}")
    assert_never(op)


def _weighted(op: _Weighted, operands: OperandValues) -> Tensor:
    match op:
        case ops.Conv(stride, padding, dilation, groups, mode):
            x, weight, bias = operands
            return _CONV[len(stride)](padded(x, padding, mode), weight, bias, stride, 0, dilation, groups)
        case ops.ConvTranspose():
            return _conv_transpose(op, *operands)
        case ops.Linear():
            return F.linear(*operands)
        case ops.BatchNorm(eps, training):
            x, weight, bias, mean, var = operands
            if training:
                return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        case ops.Embedding():
            return F.embedding(*operands)
        case _:
            assert_never(op)


def _conv_transpose(op: ops.ConvTranspose, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All of the output, which is then cut, or extended by the bias, at both ends: torch's own padding is symmetric."""
    rank = len(op.stride)
    y = _CONV_TRANSPOSE[rank](x, weight, bias, op.stride, 0, 0, op.groups, op.dilation)
    amounts = [(-low, extra - high) for (low, high), extra in zip(op.padding, op.output_padding, strict=True)]
    cut = F.pad(y, _torch_padding(amounts))
    if bias is None or all(high <= 0 for _, high in amounts):
        return cut
    inside = F.pad(torch.ones_like(y[:1, :1]), _torch_padding(amounts))
    return cut + (1 - inside) * bias.reshape(-1, *(1,) * rank)


def _window(op: _Window, x: Tensor) -> Tensor:
    match op:
        case ops.AdaptiveAvgPool(size):
            return _ADAPTIVE[len(size)](x, size)
        case ops.AvgPool(size, stride, padding, ceil_mode, count_include_pad, divisor):
            rank = len(size)
            if any(low != high for low, high in padding) and (count_include_pad or divisor):
                x, padding = F.pad(x, _torch_padding(padding)), ((0, 0),) * rank
            extra = (divisor,) if rank > 1 else ()
            return _AVG_POOL[rank](x, size, stride, _symmetric(op, padding), ceil_mode, count_include_pad, *extra)
        case ops.MaxPool(size, stride, padding, dilation, ceil_mode):
            if any(low != high for low, high in padding):
                x, padding = F.pad(x, _torch_padding(padding), value=-torch.inf), ((0, 0),) * len(size)
            return _MAX_POOL[len(size)](x, size, stride, _symmetric(op, padding), dilation, ceil_mode)
        case ops.Pad(padding, "zeros", value):
            return F.pad(x, _torch_padding(padding), "constant", value)
        case ops.Pad(padding, mode):
            return _extended(x, padding, mode)
        case _:
            assert_never(op)


def _extended(x: Tensor, padding: Pairs, mode: PaddingMode) -> Tensor:
    """x padded by its own elements, an axis at a time: torch knows how for the last ones of three to five axes alone."""
    for axis, (low, high) in enumerate(padding):
        if low or high:
            lines = x.movedim(axis, -1)
            rows = F.pad(lines.reshape(1, -1, lines.shape[-1]), (low, high), TORCH_PAD[mode])
            x = rows.reshape(*lines.shape[:-1], rows.shape[-1]).movedim(-1, axis)
    return x


def _symmetric(op: ops.Op, padding: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    if any(low != high for low, high in padding):
        raise UnsupportedModelError(f"{op.name} with asymmetric padding {padding} that is not counted has no torch form")
    return tuple(low for low, _ in padding)


def padded(x: Tensor, padding: Pairs, mode: PaddingMode) -> Tensor:
    """x with its last axes extended as a conv extends them."""
    return F.pad(x, _torch_padding(padding), TORCH_PAD[mode]) if any(map(any, padding)) else x


def _torch_padding(padding: Sequence[tuple[int, int]]) -> list[int]:
    """torch.nn.functional.pad counts from the last axis."""
    return [amount for pair in reversed(padding) for amount in pair]


def _pointwise(op: _Pointwise, operands: OperandValues) -> Tensor:
    match op:
        case ops.Add(coefficients):
            total: Tensor = reduce(torch.add, (v if c == 1 else c * v for c, v in zip(coefficients, operands, strict=True)))
            return total
        case ops.Mul():
            return torch.mul(*operands)
        case ops.Div():
            return torch.div(*operands)
        case ops.Elementwise(function, arguments):
            return MATH[function](*operands, *arguments)
        case ops.SliceUpdate(cuts):
            return _updated(cuts, *operands)
        case _:
            assert_never(op)


def _updated(cuts: Sequence[tuple[int, int, int | None]], x: Tensor, value: Tensor) -> Tensor:
    index = [slice(None)] * x.ndim
    for axis, start, stop in cuts:
        index[axis] = slice(start, stop)
    written = x.clone()
    written[tuple(index)] = value
    return written


def _move(op: _Move, x: Any) -> Any:
    match op:
        case ops.Identity():
            return x
        case ops.Flatten(start, end):
            return torch.flatten(x, start, end)
        case ops.Reshape(shape):
            return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])
        case ops.Permute(axes):
            return x.permute(axes)
        case ops.Slice(axis, start, stop, step):
            return x[(slice(None),) * axis + (slice(start, stop, step),)]
        case ops.Split(axis, sizes):
            return torch.split(x, list(sizes), axis)
        case ops.TupleGet(index):
            return x[index]
        case ops.Expand(shape):
            return x.expand(shape)
        case ops.Move(function, arguments):
            return MATH[function](x, *arguments)
        case ops.ChannelShuffle(groups):
            return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
        case _:
            assert_never(op)


def _across(op: _Across, operands: OperandValues) -> Tensor:
    """Over those that the mask has a 1 for, where there is one."""
    match op:
        case ops.Reduce(function, axes, keepdim):
            x, mask = operands
            return _reduced(function, x, mask, axes, keepdim)
        case ops.LayerNorm():
            return _layer_norm(op, *operands)
        case ops.GroupNorm():
            return _group_norm(op, *operands)
        case ops.Einsum(a, b, out):
            left, right, mask = operands
            return torch.einsum(f"{a},{b}->{out}", _zeroed(left, mask), right)
        case ops.Attention(scale, _, causal):
            q, k, v, bias, mask = operands
            return _attention(_zeroed(q, mask), k, v, bias, scale, causal)
        case _:
            assert_never(op)


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with zeros in place of what does not count."""
    return x if mask is None else torch.where(mask > 0, x, 0.0)


def _reduced(function: str, x: Tensor, mask: Tensor | None, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Mean, sum, largest, least or norm of those that count."""
    if function in ("max", "min"):
        left_out = -torch.inf if function == "max" else torch.inf
        x = x if mask is None else torch.where(mask > 0, x, left_out)
        return _REDUCE[function](x, axes, keepdim=keepdim)
    x = _zeroed(x, mask)
    reduced = _REDUCE[function](x, axes, keepdim=keepdim)
    return reduced / mask.mean() if mask is not None and function == "mean" else reduced


def _layer_norm(op: ops.LayerNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    y = _standardised(x, mask, tuple(range(x.ndim - len(op.shape), x.ndim)), op.eps, op.centred)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _group_norm(op: ops.GroupNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    blocks = (x.shape[0], x.shape[1] if op.groups is None else op.groups, -1)
    mask = None if mask is None else mask.expand_as(x).reshape(blocks)
    y = _standardised(x.reshape(blocks), mask, (2,), op.eps, centred=True).reshape(x.shape)
    along = (-1, *(1,) * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(along)
    return y if bias is None else y + bias.reshape(along)


def _standardised(x: Tensor, mask: Tensor | None, axes: tuple[int, ...], eps: float, centred: bool) -> Tensor:
    """(x - mean) / sqrt(var + eps) with the statistics of those that count, along these axes."""
    where = torch.ones((), dtype=x.dtype) if mask is None else mask.expand_as(x).to(x.dtype)
    share = where.expand_as(x).mean(axes, keepdim=True)
    if centred:
        seen = x if mask is None else torch.where(where > 0, x, 0.0)
        x = x - seen.mean(axes, keepdim=True) / share
    square = x**2 if mask is None else torch.where(where > 0, x, 0.0) ** 2
    return x / torch.sqrt(square.mean(axes, keepdim=True) / share + eps)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, causal: bool) -> Tensor:
    scores = scale * (q @ k.transpose(-1, -2))
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return torch.softmax(scores, -1) @ v
