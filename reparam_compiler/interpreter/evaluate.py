"""A Graph evaluated by one interpreter, in torch, and two forms of a region compared.

This is the judge of every rewrite: the region before and after is run in float64 on inputs that no size hides behind (not
square, a few positions wider than the widest op, so that most outputs see the border). ONNX Runtime has no float64 convs,
and a model's own framework is what is being rewritten.

The same rules run data-movement ops on labels (`passes/pruning/coupling/groups.py`) and calibration data in float32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from reparam_compiler.core.kernel import PaddingMode, Pairs
from reparam_compiler.errors import ReparamError, RewriteError, UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.vocabulary.dtypes import FLOATING
from reparam_compiler.vocabulary.resolve import MATH

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_REDUCE: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}
_PAD_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def tensor_of(param: Param, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter as a torch tensor: floating ones in `dtype`, all others as they are."""
    array = np.asarray(param.load())
    if param.dtype in FLOATING:
        return torch.from_numpy(np.array(array, np.float64, order="C")).to(dtype)
    return torch.from_numpy(np.array(array, order="C"))  # a copy: those of a protobuf cannot be written to


def evaluate(
    graph: Graph,
    inputs: Mapping[NodeId, Tensor],
    *,
    wanted: Iterable[NodeId] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[NodeId, Any]:
    """Values of the graph.

    Args:
        graph: what to run.
        inputs: a tensor for each `Input` node, by id; floating ones are converted to `dtype`.
        wanted: the ids whose values are returned; the graph's outputs where it is None.
        dtype: what floating values are computed in.

    Raises:
        UnsupportedModelError: an input is missing, or an opaque node cannot be run alone.
        RewriteError: an op failed; the message names the node and the shapes that it got.
    """
    keep = set(graph.outputs if wanted is None else wanted)
    left = {node_id: len(readers) for node_id, readers in graph.users.items()}
    values: dict[NodeId, Any] = {}
    with torch.no_grad():
        for node in graph:
            if isinstance(node.op, ops.Input):
                if node.id not in inputs:
                    raise UnsupportedModelError(f"no value was given for the input {node.id}; inputs given: {sorted(inputs)}")
                given = inputs[node.id]
                values[node.id] = given.to(dtype) if given.is_floating_point() else given
            else:
                values[node.id] = evaluate_node(node, values, dtype)
            for source in set(node.sources):
                left[source] -= 1
                if not left[source] and source not in keep:
                    del values[source]
    return {node_id: values[node_id] for node_id in keep}


def evaluate_node(node: Node, values: Mapping[NodeId, Any], dtype: torch.dtype = torch.float64) -> Any:
    """The value of one node, given those that it reads; raises as `evaluate` does."""
    operands: list[Any] = []
    for operand in node.inputs:
        if isinstance(operand, Param):
            operands.append(tensor_of(operand, dtype))
        else:
            operands.append(None if operand is None else values[operand])
    try:
        found = _apply(node.op, operands)
    except ReparamError as error:
        raise type(error)(f"{node.id}: {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in operands]
        raise RewriteError(f"{node.id} ({node.op.name}) cannot be evaluated on {shapes}: {error}") from error
    if not isinstance(node.op, ops.Opaque):
        return found
    # what an op of the model's own makes or converts to is of the model's dtype
    return _pytree.tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, found)


def _apply(op: ops.Op, operands: list[Any]) -> Any:
    match op:
        case ops.Conv(stride, padding, dilation, groups, mode):
            x, weight, bias = _three(operands)
            x = padded(x, padding, mode)
            return _CONV[len(stride)](x, weight, bias, stride, 0, dilation, groups)
        case ops.ConvTranspose():
            return _conv_transpose(op, *_three(operands))
        case ops.Linear():
            return F.linear(*_three(operands))
        case ops.BatchNorm(eps, training):
            x, weight, bias, mean, var = operands
            if training:
                return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        case ops.Add(coefficients):
            return reduce(torch.add, (v if c == 1 else c * v for c, v in zip(coefficients, operands, strict=True)))
        case ops.Mul():
            return torch.mul(*operands)
        case ops.Div():
            return torch.div(*operands)
        case ops.Elementwise(function, arguments):
            return MATH[function](*operands, *arguments)
        case ops.Pad(padding, mode, value):
            fill = {"value": value} if mode == "zeros" else {}
            shown = padding if mode == "zeros" else padding[2:]
            return F.pad(operands[0], _torch_padding(shown), _PAD_MODE[mode], **fill)
        case ops.AvgPool() | ops.MaxPool() | ops.AdaptiveAvgPool():
            return _pool(op, operands[0])
        case ops.Reduce() | ops.LayerNorm() | ops.GroupNorm() | ops.Einsum() | ops.Attention():
            return _across(op, operands)
        case ops.Embedding():
            return F.embedding(*operands)
        case ops.SliceUpdate(cuts):
            return _assign(cuts, *operands)
        case ops.Opaque(target, run):
            if run is None:
                raise UnsupportedModelError(f"{target} cannot be run outside its model")
            return run(*operands)
        case _:
            return _move(op, operands)


def _move(op: ops.Op, operands: list[Any]) -> Any:
    """The ops that only move elements."""
    x = operands[0]
    match op:
        case ops.Identity():
            return x
        case ops.Concat(axis):
            return torch.cat(operands, axis)
        case ops.Stack(axis):
            return torch.stack(operands, axis)
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
            raise UnsupportedModelError(f"the interpreter has no rule for {op.name}")


def _across(op: ops.Op, operands: list[Any]) -> Tensor:
    """The ops that work across channels: over those that `counted` has a 1 for, where it is given."""
    x: Tensor = operands[0]
    place = op.mask or 0
    mask: Tensor | None = operands[place] if place < len(operands) else None
    match op:
        case ops.Reduce(function, axes, keepdim):
            return _reduce(function, x, mask, axes, keepdim)
        case ops.LayerNorm(shape, eps, centred):
            weight, bias = _weight_and_bias(operands)
            y = _standardised(x, mask, tuple(range(x.ndim - len(shape), x.ndim)), eps, centred)
            y = y if weight is None else y * weight
            return y if bias is None else y + bias
        case ops.GroupNorm(groups, eps):
            weight, bias = _weight_and_bias(operands)
            blocks = (x.shape[0], x.shape[1] if groups is None else groups, -1)
            mask = None if mask is None else mask.expand_as(x).reshape(blocks)
            y = _standardised(x.reshape(blocks), mask, (2,), eps, centred=True).reshape(x.shape)
            along = (-1, *(1,) * (x.ndim - 2))
            y = y if weight is None else y * weight.reshape(along)
            return y if bias is None else y + bias.reshape(along)
        case ops.Einsum(a, b, out):
            x = x if mask is None else torch.where(mask > 0, x, 0.0)
            return torch.einsum(f"{a},{b}->{out}", x, operands[1])
        case ops.Attention(scale, _, causal):
            q = x if mask is None else torch.where(mask > 0, x, 0.0)
            return _attention(q, operands[1], operands[2], operands[3] if len(operands) > 3 else None, scale, causal)
        case _:
            raise UnsupportedModelError(f"{op.name} does not work across channels")


def _reduce(function: str, x: Tensor, mask: Tensor | None, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Mean, sum, largest, least or norm of those that count."""
    if function in ("max", "min"):
        left_out = -torch.inf if function == "max" else torch.inf
        x = x if mask is None else torch.where(mask > 0, x, left_out)
        extreme: Tensor = _REDUCE[function](x, axes, keepdim=keepdim)
        return extreme
    x = x if mask is None else torch.where(mask > 0, x, 0.0)
    if function == "norm":
        length: Tensor = torch.linalg.vector_norm(x, 2, axes, keepdim=keepdim)
        return length
    found: Tensor = _REDUCE[function](x, axes, keepdim=keepdim)
    return found / mask.mean() if mask is not None and function == "mean" else found


def _standardised(x: Tensor, mask: Tensor | None, axes: tuple[int, ...], eps: float, centred: bool) -> Tensor:
    """(x - mean) / sqrt(var + eps) with the statistics of those that count, along these axes."""
    where = torch.ones((), dtype=x.dtype) if mask is None else mask.expand_as(x).to(x.dtype)
    seen = x if mask is None else torch.where(where > 0, x, 0.0)
    share = where.expand_as(x).mean(axes, keepdim=True)
    if centred:
        x = x - seen.mean(axes, keepdim=True) / share
    square = x**2 if mask is None else torch.where(where > 0, x, 0.0) ** 2
    return x / torch.sqrt(square.mean(axes, keepdim=True) / share + eps)


def _weight_and_bias(operands: list[Any]) -> tuple[Tensor | None, Tensor | None]:
    weight, bias, *_ = *operands[1:], None, None
    return weight, bias


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, causal: bool) -> Tensor:
    scores = scale * (q @ k.transpose(-1, -2))
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return torch.softmax(scores, -1) @ v


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


def _assign(cuts: Sequence[tuple[int, int, int | None]], x: Tensor, value: Tensor) -> Tensor:
    index = [slice(None)] * x.ndim
    for axis, start, stop in cuts:
        index[axis] = slice(start, stop)
    written = x.clone()
    written[tuple(index)] = value
    return written


def _pool(op: ops.Op, x: Tensor) -> Tensor:
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
        case _:
            raise UnsupportedModelError(f"{op.name} is not a pool")


def _symmetric(op: ops.Op, padding: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    if any(low != high for low, high in padding):
        raise UnsupportedModelError(f"{op.name} with asymmetric padding {padding} that is not counted has no torch form")
    return tuple(low for low, _ in padding)


def _three(operands: list[Any]) -> tuple[Any, Any, Any]:
    x, weight, *bias = operands
    return x, weight, bias[0] if bias else None


def padded(x: Tensor, padding: Pairs, mode: PaddingMode) -> Tensor:
    """x with its last axes extended as a conv extends them."""
    return F.pad(x, _torch_padding(padding), _PAD_MODE[mode]) if any(map(any, padding)) else x


def _torch_padding(padding: Sequence[tuple[int, int]]) -> list[int]:
    """torch.nn.functional.pad counts from the last axis."""
    return [amount for pair in reversed(padding) for amount in pair]


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: the sources of a proof are too small for more, which then wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate_region(nodes: Sequence[Node], source: NodeId, x: Tensor) -> Tensor:
    """What the last of these nodes gives, in float64, where the source holds x; raises as `evaluate` does."""
    values: dict[NodeId, Any] = {source: x}
    with torch.no_grad():
        for node in nodes:
            values[node.id] = evaluate_node(node, values)
    result: Tensor = values[nodes[-1].id]
    return result
