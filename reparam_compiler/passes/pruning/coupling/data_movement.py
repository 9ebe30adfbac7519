"""Ops that only move elements, run as they are on labels: there are no index rules to get wrong.

A reshape is cut, from the right, into blocks of axes that hold as many elements before as after; only the block that carries
labels is reshaped, for the others repeat them. Every other op runs on the labels of what it reads, in which axes that
neither carry labels nor are moved along have size one.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from reparam_compiler.core.slicing import block_heads
from reparam_compiler.errors import RewriteError
from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, NodeId, Param
from reparam_compiler.passes.pruning.coupling.labels import FIXED, NOTHING, Labelled, Ties, Trace, Value, called


def move(node: Node, op: ops.Op, trace: Trace) -> Labelled:
    """The labels of what an op that moves elements gives."""
    values = _operand_values(node, op, trace)
    labelled = {value.axis for value in values if value.axis is not None}
    if not labelled:
        return NOTHING
    if isinstance(op, ops.Slice) and op.axis in labelled:
        if op.step < 1 or op.start < 0 or (op.stop or 0) < 0:
            return trace.freeze(node, f"{called(node)} runs backwards")
        labels = values[0].labels
        trace.tie(node, labels, labels[block_heads(len(labels), op.start, op.step)])
    if isinstance(op, ops.Rearrange) and labelled.intersection(op.by_number):
        return trace.freeze(node, f"{called(node)} calls channels by their numbers")
    if isinstance(op, ops.ChannelShuffle) and 1 in labelled:
        blocks = values[0].labels.reshape(op.groups, -1)
        trace.tie(node, blocks, blocks[:1])
    if op.reshapes:
        return _reshape(node, values[0], trace)
    try:
        moved = _run(node, op, values, labelled, trace)
    except RewriteError:
        return trace.freeze(node, f"{called(node)} cannot be followed at this shape")
    if isinstance(op, ops.Move):  # its channels stay channels: it is told how many of them make one
        return _settle(node, moved.numpy(), trace, labelled)  # type: ignore[union-attr]
    if isinstance(moved, tuple | list):
        return tuple(_settle(node, piece.numpy(), trace) for piece in moved)
    return _settle(node, moved.numpy(), trace)


def _run(node: Node, op: ops.Op, values: Sequence[Value], labelled: set[int], trace: Trace) -> Tensor | tuple[Tensor, ...]:
    own_axis = {op.axis} if isinstance(op, ops.AlongAxis) else set()
    whole = op.runs_whole
    tensors: dict[NodeId, Any] = {}
    for index, (operand, value) in enumerate(zip(node.inputs, values, strict=True)):
        shape = trace.shape(operand) if isinstance(operand, str) else operand.shape if isinstance(operand, Param) else ()
        sizes = [size if whole or axis in labelled | own_axis else 1 for axis, size in enumerate(shape)]
        tensors[f"operand {index}"] = _expanded(value, sizes)
    rest = trace.graph[node.id].inputs[len(node.inputs) :] if whole else ()  # numbers, and constant indices
    operands = (*tensors, *(operand if isinstance(operand, Param) else f"number {operand}" for operand in rest))
    numbers = {f"number {operand}": trace.numbers.get(operand) for operand in rest if isinstance(operand, str)}
    moved: Tensor | tuple[Tensor, ...] = evaluate_node(Node(node.id, node.op if whole else op, operands), tensors | numbers)
    return moved


def _operand_values(node: Node, op: ops.Op, trace: Trace) -> list[Value]:
    """The labels of the operands; a constant that is joined along another axis than the channels' gets labels of its own."""
    values = [trace.source(node, index) for index in range(len(node.inputs))]
    axis = next((value.axis for value in values if value.axis is not None), None)
    joins = isinstance(op, ops.Stack) or (isinstance(op, ops.Concat) and axis != op.axis)
    for index, operand in enumerate(node.inputs):
        if not isinstance(operand, Param):
            continue
        if joins and axis is not None and axis < len(operand.shape):
            values[index] = Value(axis, trace.ties.fresh(operand.shape[axis]))
        own = values[index]
        trace.use(node, index, {} if own.axis is None else {own.axis: own.labels})
    return values


def _expanded(value: Value, shape: Iterable[int]) -> Tensor:
    """The label of each element, repeated without being copied."""
    sizes = tuple(shape)
    if value.axis is None:
        return torch.full((1,) * len(sizes), FIXED).expand(sizes)
    flat = torch.from_numpy(value.labels).reshape([-1 if axis == value.axis else 1 for axis in range(len(sizes))])
    return flat.expand(sizes)


def _reshape(node: Node, x: Value, trace: Trace) -> Value:
    if x.axis is None:
        return NOTHING
    if node.type is None:
        return trace.freeze(node, f"{called(node)} gives an unknown shape")
    before, after = trace.shape(node.sources[0]), trace.shape(node.id)
    block = next(block for block in _blocks(before, after) if x.axis in block[0])
    old, new = [before[axis] for axis in block[0]], [after[axis] for axis in block[1]]
    if np.prod(old, dtype=np.int64) != np.prod(new, dtype=np.int64):
        return trace.freeze(node, f"{called(node)} cannot be followed at this shape")
    labels = _expanded(Value(x.axis - block[0][0], x.labels), old).reshape(new).numpy()
    sizes = [after[axis] if axis in block[1] else 1 for axis in range(len(after))]
    return _settle(node, labels.reshape(sizes), trace)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Ranges of axes that hold as many elements before as after, from the right; the last one holds what is left."""
    blocks: list[tuple[range, range]] = []
    i, j = len(before), len(after)
    while i or j:
        low_i, low_j = max(i - 1, 0), max(j - 1, 0)
        size, other = int(np.prod(before[low_i:i])), int(np.prod(after[low_j:j]))
        while size != other and (low_i if size < other else low_j):
            if size < other:
                low_i -= 1
                size *= before[low_i]
            else:
                low_j -= 1
                other *= after[low_j]
        blocks.append((range(low_i, i), range(low_j, j)))
        i, j = low_i, low_j
    return blocks


def _settle(node: Node, labels: np.ndarray, trace: Trace, axes: Collection[int] | None = None) -> Value:
    """The axis along which a value can be cut, one of these, with what lies across each of its slices tied."""
    if not labels.size:
        return NOTHING
    dynamic = {axis for axis, size in enumerate(node.type.shape) if not isinstance(size, int)} if node.type else set()
    labels = labels[tuple(slice(None) if step else slice(1) for step in labels.strides)]  # a stride of 0 only repeats
    varying = [axis for axis in range(labels.ndim) if (labels != labels.take([0], axis)).any()]
    usable = [axis for axis in varying if axis not in dynamic and (axes is None or axis in axes)]
    if not usable:
        trace.pin(Value(None, labels.ravel()), node.id, f"{called(node)} leaves one channel, or moves channels to the batch")
        return NOTHING
    slices = {axis: np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1) for axis in usable}
    axis = usable[0]
    if len(varying) > 1:
        ranked = sorted(usable, key=lambda a: (_told_apart(trace.ties.roots(slices[a])), a), reverse=True)
        axis = trace.choose(node, ranked, labels)
        trace.tie(node, slices[axis], slices[axis][:, :1])
    return trace.value(node, axis, np.ascontiguousarray(slices[axis][:, 0]))


def _told_apart(slices: Int64[np.ndarray, "n m"]) -> int:
    """How many sets of slices have no label in common."""
    distinct, inverse = np.unique(slices, return_inverse=True)
    across = Ties()
    across.fresh(len(distinct))
    compact = inverse.reshape(slices.shape)
    across.tie(compact, compact[:, :1])
    return len(np.unique(across.roots(compact[:, 0])))
