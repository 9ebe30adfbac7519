"""How each op passes on, ties or fixes the channels of what it reads: the table.

    conv, linear           consume the labels of their input channels, make new ones for their outputs
    transposed conv        the same, with the axes of its weight exchanged
    depthwise conv         each channel keeps its label; its filter goes with it
    group conv, norm       the same position in every group is one label, so that every group loses the same
    embedding              makes labels for what it looks up
    batch norm, constants  the params go with the channel
    add, mul, div          the labels at the same place are tied
    pool, reduce           pass on what they do not reduce over
    softmax, resize …      pass on what they do slice by slice (`ops.Slicewise`)
    reshape, concat …      run as they are on the labels (`passes/pruning/coupling/data_movement.py`)
    product, attention     the labels that are summed over are tied and end; those of rows, columns, heads pass
    norm, mean, sum …      over channels: taken over those that stay
    anything else          is not understood: what it reads and gives is fixed, and the reason is kept

An op across channels does something else once some have left. Where it only sums, that is what zeroed weights do to a linear
layer; a mean or a norm is taken over the survivors. Both are notes in the slot of an operand that no model has, `counted`: the
masked reference of pruning gets a mask there.
"""

from collections.abc import Callable
from typing import cast

import numpy as np

from reparam_compiler.core.kernel import Ints
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.passes.pruning.coupling import rules_across as across
from reparam_compiler.passes.pruning.coupling.data_movement import move
from reparam_compiler.passes.pruning.coupling.labels import (
    FIXED,
    NOTHING,
    Coupling,
    Found,
    Kind,
    Trace,
    Value,
    called,
    is_depthwise,
)

COUPLINGS: dict[type[ops.Op], Coupling[ops.Op]] = {}
"""For each kind of op how it treats labels."""


def register_coupling(*kinds: type[Kind]) -> Callable[[Coupling[Kind]], Coupling[Kind]]:
    """Registers a rule for these kinds of op; raises ValueError for a kind that has one."""

    def register(rule: Coupling[Kind]) -> Coupling[Kind]:
        for kind in kinds:
            if kind in COUPLINGS:
                raise ValueError(f"{kind.__name__} has a coupling rule already")
            COUPLINGS[kind] = cast(Coupling[ops.Op], rule)
        return rule

    return register


@register_coupling(ops.Input)
def _input(node: Node, op: ops.Input, trace: Trace) -> Found:
    trace.shape(node.id)
    return NOTHING


@register_coupling(ops.Conv)
def _conv(node: Node, op: ops.Conv, trace: Trace) -> Found:
    weight = node.inputs[1]
    if not isinstance(weight, Param) or any(isinstance(operand, str) for operand in node.inputs[2:]):
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    out, into = weight.shape[:2]
    read = trace.along(trace.source(node), 1, into * op.groups)
    if read is None:
        return trace.freeze(node, f"{called(node)} slides along the channels")
    if is_depthwise(op, weight):
        made = read
        if out != op.groups:
            made = trace.ties.fresh(out)
            trace.tie(node, made, np.repeat(read, out // op.groups))
        trace.use(node, 1, {0: made})
    else:
        blocks = read.reshape(op.groups, into)
        trace.tie(node, blocks, blocks[:1])
        made = trace.ties.fresh(out)
        trace.tie(node, made.reshape(op.groups, -1), made[: out // op.groups])
        trace.use(node, 1, {0: made, 1: blocks[0]})
    trace.use(node, 2, {0: made})
    return trace.value(node, 1, made)


@register_coupling(ops.ConvTranspose)
def _conv_transpose(node: Node, op: ops.ConvTranspose, trace: Trace) -> Found:
    weight = node.inputs[1]
    if not isinstance(weight, Param) or any(isinstance(operand, str) for operand in node.inputs[2:]):
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    into, out = weight.shape[0], weight.shape[1]
    read = trace.along(trace.source(node), 1, into)
    if read is None:
        return trace.freeze(node, f"{called(node)} slides along the channels")
    if op.groups > 1 and into == op.groups:  # each channel makes its own
        made = read
        if out > 1:
            made = trace.ties.fresh(out * into)
            trace.tie(node, made, np.repeat(read, out))
        trace.use(node, 1, {0: read})
    else:
        blocks = read.reshape(op.groups, -1)
        trace.tie(node, blocks, blocks[:1])
        made = trace.ties.fresh(out * op.groups)
        trace.tie(node, made.reshape(op.groups, -1), made[:out])
        trace.use(node, 1, {0: read, 1: made[:out]})
    trace.use(node, 2, {0: made})
    return trace.value(node, 1, made)


@register_coupling(ops.Linear)
def _linear(node: Node, op: ops.Linear, trace: Trace) -> Found:
    weight, x = node.inputs[1], trace.source(node)
    if not isinstance(weight, Param) or any(isinstance(operand, str) for operand in node.inputs[2:]):
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    last = len(trace.shape(node.sources[0])) - 1
    read = trace.along(x, last, weight.shape[1])
    if read is None:  # it mixes another axis than the one that may be cut
        trace.use(node, 1, {})
        trace.use(node, 2, {})
        return x
    made = trace.ties.fresh(weight.shape[0])
    trace.use(node, 1, {0: made, 1: read})
    trace.use(node, 2, {0: made})
    return trace.value(node, last, made)


@register_coupling(ops.BatchNorm)
def _batch_norm(node: Node, op: ops.BatchNorm, trace: Trace) -> Found:
    x = trace.source(node)
    if any(isinstance(operand, str) for operand in node.inputs[1:]):
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    if x.axis not in (None, 1) and op.training:
        return trace.freeze(node, f"{called(node)} takes its statistics over them")
    for index in range(1, len(node.inputs)):
        trace.use(node, index, {0: x.labels} if x.axis == 1 else {})
    return x


@register_coupling(ops.Add, ops.Mul, ops.Div)
def _add(node: Node, op: ops.Op, trace: Trace) -> Found:
    return _broadcast(node, trace)


def _broadcast(node: Node, trace: Trace, axes: Ints | None = None) -> Found:
    """One of the operands with labels says along which axis; the others follow, are the same for all, or pin it.

    axes: those along which the op goes slice by slice; all of them where it is None.
    """
    shapes = [trace.shape(o) if isinstance(o, str) else o.shape if isinstance(o, Param) else () for o in node.inputs]
    rank = max(map(len, shapes))
    values = [trace.source(node, index) for index in range(len(node.inputs))]
    placed = [(v.axis + rank - len(shape), v) for v, shape in zip(values, shapes, strict=True) if v.axis is not None]
    if not placed:
        return trace.freeze(node, f"{called(node)} joins constants")

    def fits(axis: int) -> bool:
        """Whether all that carries no labels along this axis is the same for all of it."""
        own = [axis - rank + len(shape) for shape in shapes]
        spans = (place >= 0 and shape[place] > 1 for place, shape in zip(own, shapes, strict=True))
        carry = (value.axis == place or isinstance(o, Param) for value, place, o in zip(values, own, node.inputs, strict=True))
        return all(carries or not span for span, carries in zip(spans, carry, strict=True))

    axis, best = max(placed, key=lambda p: (not trace.is_loose(p[1].labels), fits(p[0]), len(p[1].labels)))
    labels = best.labels
    for other, value in placed:
        if other != axis:
            trace.pin(value, node.id, f"{called(node)} joins channels of different axes")
    if axes is not None and axis not in axes:
        return trace.freeze(node, f"{called(node)} runs over the channels")
    for index, (operand, shape, value) in enumerate(zip(node.inputs, shapes, values, strict=True)):
        own = axis - rank + len(shape)
        spans = own >= 0 and shape[own] > 1
        if isinstance(operand, Param):
            trace.use(node, index, {own: labels} if spans else {})
        elif value.axis == own:
            trace.tie(node, labels, value.labels)
        elif spans:
            trace.tie(node, labels, np.array(FIXED))
    return Value(axis, labels)


@register_coupling(ops.Elementwise)
def _elementwise(node: Node, op: ops.Elementwise, trace: Trace) -> Found:
    return trace.source(node)


@register_coupling(ops.AvgPool, ops.MaxPool, ops.AdaptiveAvgPool)
def _pool(node: Node, op: ops.Op, trace: Trace) -> Found:
    x = trace.source(node)
    return x if x.axis in (None, 1) else trace.freeze(node, f"{called(node)} slides along the channels")


@register_coupling(ops.Pad)
def _pad(node: Node, op: ops.Pad, trace: Trace) -> Found:
    x = trace.source(node)
    if x.axis is None or op.padding[x.axis] == (0, 0):
        return x
    low, high = op.padding[x.axis]
    if op.mode != "zeros" or low < 0 or high < 0:
        return trace.freeze(node, f"{called(node)} crops the channels, or repeats them")
    return Value(x.axis, np.pad(x.labels, (low, high), constant_values=FIXED))


@register_coupling(ops.Reduce)
def _reduce(node: Node, op: ops.Reduce, trace: Trace) -> Found:
    x = trace.source(node)
    if x.axis is None:
        return x
    if x.axis in op.axes:
        trace.use(node, 1, {x.axis: x.labels})
        return NOTHING
    return Value(x.axis if op.keepdim else x.axis - sum(axis < x.axis for axis in op.axes), x.labels)


@register_coupling(ops.TupleGet)
def _item(node: Node, op: ops.TupleGet, trace: Trace) -> Found:
    """All results of one op have the same labels (a pool and its indices), where they are not pieces."""
    found = trace.values[node.sources[0]]
    return found[op.index] if isinstance(found, tuple) else found


register_coupling(
    ops.Identity,
    ops.Concat,
    ops.Stack,
    ops.Flatten,
    ops.Reshape,
    ops.Permute,
    ops.Slice,
    ops.Split,
    ops.Move,
    ops.Rearrange,
    ops.ChannelShuffle,
)(move)


@register_coupling(ops.Slicewise)
def _slicewise(node: Node, op: ops.Slicewise, trace: Trace) -> Found:
    return _broadcast(node, trace, op.axes)


@register_coupling(ops.PerChannel)
def _per_channel(node: Node, op: ops.PerChannel, trace: Trace) -> Found:
    x = trace.source(node)
    for index, operand in enumerate(node.inputs[1:], start=1):
        if isinstance(operand, str):
            return trace.freeze(node, f"a parameter of {called(node)} is computed")
        spans = x.axis == 1 and isinstance(operand, Param) and operand.count > 1
        trace.use(node, index, {0: x.labels} if spans else {})
    return x


@register_coupling(ops.Glu)
def _gate(node: Node, op: ops.Glu, trace: Trace) -> Found:
    x = trace.source(node)
    if x.axis != op.axis:
        return x
    first, second = x.labels.reshape(2, -1)
    trace.tie(node, first, second)
    return trace.value(node, op.axis, first)


@register_coupling(ops.Expand)
def _expand(node: Node, op: ops.Expand, trace: Trace) -> Found:
    """Along an axis that is repeated to the width of another value, the labels are those of that one."""
    operand = node.inputs[0]
    if isinstance(operand, Param):
        return _expand_constant(node, operand, op, trace)
    x, shape = trace.source(node), trace.shape(node.sources[0])
    new = len(op.shape) - len(shape)
    if len(node.inputs) > 1:
        other = trace.source(node, 1)
        if other.axis is not None and x.axis is None and (other.axis < new or shape[other.axis - new] == 1):
            return other
    if x.axis is not None:
        return Value(x.axis + new, x.labels)
    repeated = [a for a, size in enumerate(op.shape) if a and size > 1 and (a < new or shape[a - new] == 1)]
    return trace.value(node, repeated[0], trace.loose(op.shape[repeated[0]])) if len(repeated) == 1 and not new else NOTHING


def _expand_constant(node: Node, operand: Param, op: ops.Expand, trace: Trace) -> Found:
    """A constant (a class token) gets labels along the only axis that it has."""
    long = [axis for axis, size in enumerate(operand.shape) if size > 1]
    if len(long) != 1:
        trace.use(node, 0, {})
        return NOTHING
    made = trace.ties.fresh(operand.shape[long[0]])
    trace.use(node, 0, {long[0]: made})
    return trace.value(node, long[0] + len(op.shape) - len(operand.shape), made)


@register_coupling(ops.Embedding)
def _embedding(node: Node, op: ops.Embedding, trace: Trace) -> Found:
    weight = node.inputs[1]
    if not isinstance(weight, Param) or trace.source(node).axis is not None or node.type is None:
        return trace.freeze(node, f"{called(node)} looks up what is computed")
    made = trace.ties.fresh(weight.shape[1])
    trace.use(node, 1, {1: made})
    return trace.value(node, len(node.type.shape) - 1, made)


@register_coupling(ops.SliceUpdate)
def _assign(node: Node, op: ops.SliceUpdate, trace: Trace) -> Found:
    """What is written goes with what it is written into, where it is written from end to end of the channels."""
    labelled = {value.axis for value in (trace.source(node, 0), trace.source(node, 1)) if value.axis is not None}
    if labelled.intersection(axis for axis, _, _ in op.cuts):
        return trace.freeze(node, f"{called(node)} writes to channels by their numbers")
    return _broadcast(node, trace)


register_coupling(ops.LayerNorm)(across.layer_norm)
register_coupling(ops.GroupNorm)(across.group_norm)
register_coupling(ops.Einsum)(across.einsum)
register_coupling(ops.Attention)(across.attention)
