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
layer; a mean or a norm is taken over the survivors. Both are notes in the slot of an operand that no model has, `mask`: the
masked reference of pruning gets a mask there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from reparam_compiler.core.kernel import Ints
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Operand, Param
from reparam_compiler.passes.pruning.coupling import rules_across as across
from reparam_compiler.passes.pruning.coupling.data_movement import move
from reparam_compiler.passes.pruning.coupling.labels import (
    FIXED,
    NOTHING,
    Coupling,
    Kind,
    Labelled,
    Trace,
    Value,
    called,
)

COUPLINGS: dict[type[ops.Kind], Coupling[ops.Op]] = {}
"""For each kind of op how it treats labels."""


def coupling_rule(*kinds: type[Kind]) -> Callable[[Coupling[Kind]], Coupling[Kind]]:
    """Registers a rule for these kinds of op; raises ValueError for a kind that has one."""

    def register(rule: Coupling[Kind]) -> Coupling[Kind]:
        for kind in kinds:
            if kind in COUPLINGS:
                raise ValueError(f"{kind.__name__} has a coupling rule already")
            COUPLINGS[kind] = cast(Coupling[ops.Op], rule)
        return rule

    return register


@coupling_rule(ops.Input)
def _input(node: Node, op: ops.Input, trace: Trace) -> Labelled:
    trace.shape(node.id)
    return NOTHING


@coupling_rule(ops.Conv)
def _conv(node: Node, op: ops.Conv, trace: Trace) -> Labelled:
    weight = node.operand("weight")
    if not isinstance(weight, Param) or not node.has_constant_params:
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    out, into = weight.shape[:2]
    read = trace.along(trace.source(node), 1, into * op.groups)
    if read is None:
        return trace.freeze(node, f"{called(node)} slides along the channels")
    if op.is_depthwise(weight.shape):
        made = read
        if out != op.groups:
            made = trace.ties.fresh(out)
            trace.tie(node, made, np.repeat(read, out // op.groups))
        trace.use(node, "weight", {0: made})
    else:
        blocks = read.reshape(op.groups, into)
        trace.tie(node, blocks, blocks[:1])
        made = trace.ties.fresh(out)
        trace.tie(node, made.reshape(op.groups, -1), made[: out // op.groups])
        trace.use(node, "weight", {0: made, 1: blocks[0]})
    trace.use(node, "bias", {0: made})
    return trace.value(node, 1, made)


@coupling_rule(ops.ConvTranspose)
def _conv_transpose(node: Node, op: ops.ConvTranspose, trace: Trace) -> Labelled:
    weight = node.operand("weight")
    if not isinstance(weight, Param) or not node.has_constant_params:
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    into, out = weight.shape[0], weight.shape[1]
    read = trace.along(trace.source(node), 1, into)
    if read is None:
        return trace.freeze(node, f"{called(node)} slides along the channels")
    if op.is_depthwise(weight.shape):  # each channel makes its own
        made = read
        if out > 1:
            made = trace.ties.fresh(out * into)
            trace.tie(node, made, np.repeat(read, out))
        trace.use(node, "weight", {0: read})
    else:
        blocks = read.reshape(op.groups, -1)
        trace.tie(node, blocks, blocks[:1])
        made = trace.ties.fresh(out * op.groups)
        trace.tie(node, made.reshape(op.groups, -1), made[:out])
        trace.use(node, "weight", {0: read, 1: made[:out]})
    trace.use(node, "bias", {0: made})
    return trace.value(node, 1, made)


@coupling_rule(ops.Linear)
def _linear(node: Node, op: ops.Linear, trace: Trace) -> Labelled:
    weight, x = node.operand("weight"), trace.source(node)
    if not isinstance(weight, Param) or not node.has_constant_params:
        return trace.freeze(node, f"the weight or bias of {called(node)} is computed")
    last = len(trace.shape(node.sources[0])) - 1
    read = trace.along(x, last, weight.shape[1])
    if read is None:  # it mixes another axis than the one that may be cut
        trace.use(node, "weight", {})
        trace.use(node, "bias", {})
        return x
    made = trace.ties.fresh(weight.shape[0])
    trace.use(node, "weight", {0: made, 1: read})
    trace.use(node, "bias", {0: made})
    return trace.value(node, last, made)


@coupling_rule(ops.BatchNorm)
def _batch_norm(node: Node, op: ops.BatchNorm, trace: Trace) -> Labelled:
    x = trace.source(node)
    if not node.has_constant_params:
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    if x.axis not in (None, 1) and op.training:
        return trace.freeze(node, f"{called(node)} takes its statistics over them")
    for index in range(1, len(node.inputs)):
        trace.use(node, index, {0: x.labels} if x.axis == 1 else {})
    return x


@coupling_rule(ops.Add, ops.Mul, ops.Div)
def _add(node: Node, op: ops.Op, trace: Trace) -> Labelled:
    return _broadcast(node, trace)


@dataclass(frozen=True, slots=True, eq=False)
class _Aligned:
    """One of the operands of a broadcast, with its axes counted as those of the result.

    index: which input it is. shape: its own. value: its labels.
    lead: how many axes of the result come before its first one.
    """

    index: int
    operand: Operand
    shape: Ints
    value: Value
    lead: int

    @property
    def axis(self) -> int | None:
        """The axis of the result that its labels stand along."""
        return None if self.value.axis is None else self.value.axis + self.lead

    def spans(self, axis: int) -> bool:
        """True where it has more than one position along an axis of the result."""
        own = axis - self.lead
        return 0 <= own < len(self.shape) and self.shape[own] > 1

    def follows(self, axis: int) -> bool:
        """True where it can go with labels along an axis: it has them there, is constant, or is the same for all of it."""
        return self.axis == axis or isinstance(self.operand, Param) or not self.spans(axis)


def _aligned(node: Node, trace: Trace) -> list[_Aligned]:
    """The operands of a node that broadcasts."""
    shapes = [trace.shape(o) if isinstance(o, str) else o.shape if isinstance(o, Param) else () for o in node.inputs]
    rank = max(map(len, shapes))
    return [
        _Aligned(index, operand, shape, trace.source(node, index), rank - len(shape))
        for index, (operand, shape) in enumerate(zip(node.inputs, shapes, strict=True))
    ]


def _broadcast(node: Node, trace: Trace, axes: Ints | None = None) -> Labelled:
    """One of the operands with labels says along which axis; the others follow, are the same for all, or pin it.

    axes: those along which the op goes slice by slice; all of them where it is None.
    """
    operands = _aligned(node, trace)
    placed = [(operand.axis, operand.value) for operand in operands if operand.axis is not None]
    if not placed:
        return trace.freeze(node, f"{called(node)} joins constants")

    def preference(place: tuple[int, Value]) -> tuple[bool, bool, int]:
        axis, value = place
        return not trace.is_loose(value.labels), all(operand.follows(axis) for operand in operands), len(value.labels)

    axis, leader = max(placed, key=preference)
    for other, value in placed:
        if other != axis:
            trace.pin(value, node.id, f"{called(node)} joins channels of different axes")
    if axes is not None and axis not in axes:
        return trace.freeze(node, f"{called(node)} runs over the channels")
    for operand in operands:
        if isinstance(operand.operand, Param):
            trace.use(node, operand.index, {axis - operand.lead: leader.labels} if operand.spans(axis) else {})
        elif operand.axis == axis:
            trace.tie(node, leader.labels, operand.value.labels)
        elif operand.spans(axis):
            trace.tie(node, leader.labels, np.array(FIXED))
    return Value(axis, leader.labels)


@coupling_rule(ops.Elementwise)
def _elementwise(node: Node, op: ops.Elementwise, trace: Trace) -> Labelled:
    return trace.source(node)


@coupling_rule(ops.AvgPool, ops.MaxPool, ops.AdaptiveAvgPool)
def _pool(node: Node, op: ops.Op, trace: Trace) -> Labelled:
    x = trace.source(node)
    return x if x.axis in (None, 1) else trace.freeze(node, f"{called(node)} slides along the channels")


@coupling_rule(ops.Pad)
def _pad(node: Node, op: ops.Pad, trace: Trace) -> Labelled:
    x = trace.source(node)
    if x.axis is None or op.padding[x.axis] == (0, 0):
        return x
    low, high = op.padding[x.axis]
    if op.mode != "zeros" or low < 0 or high < 0:
        return trace.freeze(node, f"{called(node)} crops the channels, or repeats them")
    return Value(x.axis, np.pad(x.labels, (low, high), constant_values=FIXED))


@coupling_rule(ops.Reduce)
def _reduce(node: Node, op: ops.Reduce, trace: Trace) -> Labelled:
    x = trace.source(node)
    if x.axis is None:
        return x
    if x.axis in op.axes:
        trace.use(node, "mask", {x.axis: x.labels})
        return NOTHING
    return Value(x.axis if op.keepdim else x.axis - sum(axis < x.axis for axis in op.axes), x.labels)


@coupling_rule(ops.TupleGet)
def _tuple_get(node: Node, op: ops.TupleGet, trace: Trace) -> Labelled:
    """All results of one op have the same labels (a pool and its indices), where they are not pieces."""
    pieces = trace.values[node.sources[0]]
    return pieces[op.index] if isinstance(pieces, tuple) else pieces


@coupling_rule(ops.Slicewise)
def _slicewise(node: Node, op: ops.Slicewise, trace: Trace) -> Labelled:
    return _broadcast(node, trace, op.axes)


@coupling_rule(ops.PerChannel)
def _per_channel(node: Node, op: ops.PerChannel, trace: Trace) -> Labelled:
    x = trace.source(node)
    for index, operand in enumerate(node.inputs[1:], start=1):
        if isinstance(operand, str):
            return trace.freeze(node, f"a parameter of {called(node)} is computed")
        spans = x.axis == 1 and isinstance(operand, Param) and operand.count > 1
        trace.use(node, index, {0: x.labels} if spans else {})
    return x


@coupling_rule(ops.Glu)
def _glu(node: Node, op: ops.Glu, trace: Trace) -> Labelled:
    x = trace.source(node)
    if x.axis != op.axis:
        return x
    first, second = x.labels.reshape(2, -1)
    trace.tie(node, first, second)
    return trace.value(node, op.axis, first)


@coupling_rule(ops.Expand)
def _expand(node: Node, op: ops.Expand, trace: Trace) -> Labelled:
    """Labels pass; an axis that is repeated to the width of another value gets the labels of that value."""
    operand = node.operand("x")
    if isinstance(operand, Param):
        return _expand_constant(node, operand, op, trace)
    x, shape = trace.source(node), trace.shape(node.sources[0])
    new = len(op.shape) - len(shape)
    if node.operand("like") is not None:
        other = trace.source(node, "like")
        if other.axis is not None and x.axis is None and (other.axis < new or shape[other.axis - new] == 1):
            return other
    if x.axis is not None:
        return Value(x.axis + new, x.labels)
    repeated = [a for a, size in enumerate(op.shape) if a and size > 1 and (a < new or shape[a - new] == 1)]
    return trace.value(node, repeated[0], trace.loose(op.shape[repeated[0]])) if len(repeated) == 1 and not new else NOTHING


def _expand_constant(node: Node, operand: Param, op: ops.Expand, trace: Trace) -> Labelled:
    """A constant (a class token) gets labels along the only axis that it has."""
    long = [axis for axis, size in enumerate(operand.shape) if size > 1]
    if len(long) != 1:
        trace.use(node, "x", {})
        return NOTHING
    made = trace.ties.fresh(operand.shape[long[0]])
    trace.use(node, "x", {long[0]: made})
    return trace.value(node, long[0] + len(op.shape) - len(operand.shape), made)


@coupling_rule(ops.Embedding)
def _embedding(node: Node, op: ops.Embedding, trace: Trace) -> Labelled:
    weight = node.operand("weight")
    if not isinstance(weight, Param) or trace.source(node).axis is not None or node.type is None:
        return trace.freeze(node, f"{called(node)} looks up what is computed")
    made = trace.ties.fresh(weight.shape[1])
    trace.use(node, "weight", {1: made})
    return trace.value(node, len(node.type.shape) - 1, made)


@coupling_rule(ops.SliceUpdate)
def _slice_update(node: Node, op: ops.SliceUpdate, trace: Trace) -> Labelled:
    """Ties what is written to what it is written into, where it is written from end to end of the channels."""
    base = node.operand("x")
    if isinstance(base, Param) and base.origin is None:
        return trace.freeze(node, f"{called(node)} writes into what is computed from parameters")
    labelled = {value.axis for value in (trace.source(node, "x"), trace.source(node, "value")) if value.axis is not None}
    if labelled.intersection(axis for axis, _, _ in op.cuts):
        return trace.freeze(node, f"{called(node)} writes to channels by their numbers")
    return _broadcast(node, trace)


coupling_rule(ops.LayerNorm)(across.layer_norm)
coupling_rule(ops.GroupNorm)(across.group_norm)
coupling_rule(ops.Einsum)(across.einsum)
coupling_rule(ops.Attention)(across.attention)
coupling_rule(*(kind for kind in ops.KINDS if kind.moves_data and kind not in COUPLINGS))(
    move
)  # but for those with a rule of their own
