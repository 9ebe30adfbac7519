"""How ops that work across channels treat them: norms, products, attention (a part of the table of `rules.py`).

What leaves is left out of their sums. Where that is more than zeroed weights do to a linear layer, the labels are noted in the
slot of the operand `counted`: the masked reference gets a mask there, of those that the sums are taken over.
"""

import numpy as np

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.passes.pruning.coupling.labels import FIXED, NOTHING, Found, Labels, Trace, Value, called


def layer_norm(node: Node, op: ops.LayerNorm, trace: Trace) -> Found:
    """Passes all on; along the axes of the statistics the params go with them."""
    x, rank = trace.source(node), len(trace.shape(node.sources[0]))
    if any(isinstance(operand, str) for operand in node.inputs[1:]):
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    first = rank - len(op.shape)
    inside = x.axis is not None and x.axis >= first
    for index in (1, 2):
        trace.use(node, index, {x.axis - first: x.labels} if inside and x.axis is not None else {})
    if inside and x.axis is not None:
        trace.use(node, 3, {x.axis: x.labels})
    return x


def group_norm(node: Node, op: ops.GroupNorm, trace: Trace) -> Found:
    """Passes all on; the same position in every group is one label, unless each channel is a group."""
    x, channels = trace.source(node), trace.shape(node.sources[0])[1]
    if any(isinstance(operand, str) for operand in node.inputs[1:]):
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    for index in (1, 2):
        trace.use(node, index, {0: x.labels} if x.axis == 1 else {})
    groups = channels if op.groups is None else op.groups
    if x.axis == 1 and groups < channels:
        blocks = x.labels.reshape(groups, -1)
        trace.tie(node, blocks, blocks[:1])
    if (x.axis == 1 and groups < channels) or (x.axis or 0) > 1:
        trace.use(node, 3, {x.axis or 0: x.labels})
    return x


def einsum(node: Node, op: ops.Einsum, trace: Trace) -> Found:
    """For each letter the labels of both sides are tied; a letter that `out` has passes on, one that it lacks ends here."""
    sides = (op.a, op.b)
    values = [trace.source(node, index) for index in (0, 1)]
    passed: dict[str, Labels] = {}
    for index, (letters, value) in enumerate(zip(sides, values, strict=True)):
        if value.axis is None:
            continue
        letter = letters[value.axis]
        other, facing = sides[1 - index], values[1 - index]
        if letter in other and isinstance(node.inputs[1 - index], Param):
            trace.use(node, 1 - index, {other.index(letter): value.labels})
        elif letter in other and _spans(node, 1 - index, other.index(letter), trace):
            matches = facing.axis == other.index(letter)
            trace.tie(node, value.labels, facing.labels if matches else np.array(FIXED))
        if letter in op.out:
            passed[letter] = value.labels
        elif letter in op.a:
            trace.use(node, 2, {op.a.index(letter): value.labels})
        else:
            trace.pin(value, node.id, f"{called(node)} sums over them alone")
    along = sorted(((op.out.index(letter), labels) for letter, labels in passed.items()), key=lambda place: place[0])
    for axis, labels in along[:-1]:
        trace.pin(Value(axis, labels), node.id, f"{called(node)} gives channels along two axes")
    return trace.value(node, *along[-1]) if along else NOTHING


def _spans(node: Node, index: int, axis: int, trace: Trace) -> bool:
    """False for an axis of size 1, which is repeated."""
    operand = node.inputs[index]
    shape = operand.shape if isinstance(operand, Param) else trace.shape(operand or "")
    return shape[axis] > 1


def attention(node: Node, op: ops.Attention, trace: Trace) -> Found:
    """Labels along the width of q and k end here; those along the width of v, and along heads, pass on."""
    if any(isinstance(operand, Param) for operand in node.inputs[:3]):
        return trace.freeze(node, f"{called(node)} reads constants")
    q, k, v = (trace.source(node, index) for index in range(3))
    rank = len(trace.shape(node.sources[0]))
    width, length = rank - 1, rank - 2
    if any(value.axis == length for value in (q, k, v)):
        return trace.freeze(node, f"{called(node)} runs over the channels")
    heads = next((value for value in (q, k, v) if value.axis is not None and value.axis < length), None)
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    if bias is not None:
        _follow_bias(node, heads, rank, trace)
    if heads is not None and heads.axis is not None:
        for index, value in enumerate((q, k, v)):
            if not _spans(node, index, heads.axis, trace):
                continue
            if value.axis != heads.axis and value.axis is not None:
                trace.pin(value, node.id, f"{called(node)} meets channels along another axis")
            trace.tie(node, heads.labels, value.labels if value.axis == heads.axis else np.array(FIXED))
        return heads
    wide = next((value for value in (q, k) if value.axis == width), None)
    if wide is not None:
        for value in (q, k):
            trace.tie(node, wide.labels, value.labels if value.axis == width else np.array(FIXED))
        trace.use(node, 4, {width: wide.labels})
    return v


def _follow_bias(node: Node, heads: Value | None, rank: int, trace: Trace) -> None:
    """What is added to the products goes with the heads, where it has one for each."""
    bias, value = node.inputs[3], trace.source(node, 3)
    shape = bias.shape if isinstance(bias, Param) else trace.shape(bias or "")
    own = -1 if heads is None or heads.axis is None else heads.axis - rank + len(shape)
    spans = own >= 0 and shape[own] > 1
    if isinstance(bias, Param):
        trace.use(node, 3, {own: heads.labels} if spans and heads is not None else {})
    elif spans and heads is not None and value.axis in (None, own):
        trace.tie(node, heads.labels, value.labels if value.axis == own else np.array(FIXED))
    elif value.axis is not None:
        trace.pin(value, node.id, f"{called(node)} adds them to its products")
