"""How ops that work across channels treat them: norms, products, attention (a part of the table of `rules.py`).

What leaves is left out of their sums. Where that is more than zeroed weights do to a linear layer, the labels are noted in the
slot of the operand `mask`: the masked reference gets a mask there, of those that the sums are taken over.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.ir.kind import OperandName
from reparam_compiler.passes.pruning.coupling.labels import FIXED, NOTHING, Labelled, Labels, Trace, Value, called

_PARAMS: tuple[OperandName, ...] = ("weight", "bias")
_QKV: tuple[OperandName, ...] = ("q", "k", "v")


def layer_norm(node: Node, op: ops.LayerNorm, trace: Trace) -> Labelled:
    """Passes all on; along the axes of the statistics the params go with them."""
    x, rank = trace.source(node), len(trace.shape(node.sources[0]))
    if not node.has_constant_params:
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    inside = x.axis is not None and x.axis >= rank - len(op.shape)
    for name in _PARAMS:
        param = node.param(name)
        own = -1 if x.axis is None or param is None else x.axis - rank + len(param.shape)
        spans = inside and own >= 0 and param is not None and param.shape[own] != 1  # ONNX broadcasts shorter ones
        trace.use(node, name, {own: x.labels} if spans else {})
    if inside and x.axis is not None:
        trace.use(node, "mask", {x.axis: x.labels})
    return x


def group_norm(node: Node, op: ops.GroupNorm, trace: Trace) -> Labelled:
    """Passes all on; the same position in every group is one label, unless each channel is a group."""
    x, channels = trace.source(node), trace.shape(node.sources[0])[1]
    if not node.has_constant_params:
        return trace.freeze(node, f"a parameter of {called(node)} is computed")
    for name in _PARAMS:
        trace.use(node, name, {0: x.labels} if x.axis == 1 else {})
    groups = channels if op.groups is None else op.groups
    if x.axis == 1 and groups < channels:
        blocks = x.labels.reshape(groups, -1)
        trace.tie(node, blocks, blocks[:1])
    if (x.axis == 1 and groups < channels) or (x.axis or 0) > 1:
        trace.use(node, "mask", {x.axis or 0: x.labels})
    return x


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One of the two factors of a product: which operand it is, a letter for each of its axes, its labels."""

    name: OperandName
    letters: str
    value: Value


def einsum(node: Node, op: ops.Einsum, trace: Trace) -> Labelled:
    """For each letter the labels of both sides are tied; a letter that `out` has passes on, one that it lacks ends here."""
    a, b = _Side("a", op.a, trace.source(node, "a")), _Side("b", op.b, trace.source(node, "b"))
    passed: dict[str, Labels] = {}
    for side, other in ((a, b), (b, a)):
        if side.value.axis is None:
            continue
        letter, labels = side.letters[side.value.axis], side.value.labels
        if letter in other.letters:
            _tie_to(node, other, letter, labels, trace)
        if letter in op.out:
            passed[letter] = labels
        elif letter in op.a:
            trace.use(node, "mask", {op.a.index(letter): labels})
        else:
            trace.pin(side.value, node.id, f"{called(node)} sums over them alone")
    along = sorted(((op.out.index(letter), labels) for letter, labels in passed.items()), key=lambda place: place[0])
    for axis, labels in along[:-1]:
        trace.pin(Value(axis, labels), node.id, f"{called(node)} gives channels along two axes")
    return trace.value(node, *along[-1]) if along else NOTHING


def _tie_to(node: Node, side: _Side, letter: str, labels: Labels, trace: Trace) -> None:
    """Ties labels to those that the side has along the axis of this letter; a constant side goes with them."""
    axis = side.letters.index(letter)
    if isinstance(node.operand(side.name), Param):
        trace.use(node, side.name, {axis: labels})
    elif _spans(node, side.name, axis, trace):
        trace.tie(node, labels, side.value.labels if side.value.axis == axis else np.array(FIXED))


def _spans(node: Node, name: OperandName, axis: int, trace: Trace) -> bool:
    """False for an axis of size 1, which is repeated."""
    operand = node.operand(name)
    shape = operand.shape if isinstance(operand, Param) else trace.shape(operand or "")
    return shape[axis] > 1


def attention(node: Node, op: ops.Attention, trace: Trace) -> Labelled:
    """Labels along the width of q and k end here; those along the width of v, and along heads, pass on."""
    if any(isinstance(node.operand(name), Param) for name in _QKV):
        return trace.freeze(node, f"{called(node)} reads constants")
    values = {name: trace.source(node, name) for name in _QKV}
    rank = len(trace.shape(node.sources[0]))
    width, length = rank - 1, rank - 2
    if any(value.axis == length for value in values.values()):
        return trace.freeze(node, f"{called(node)} runs over the channels")
    heads = next((value for value in values.values() if value.axis is not None and value.axis < length), None)
    if node.operand("bias") is not None:
        _follow_bias(node, heads, rank, trace)
    if heads is not None and heads.axis is not None:
        return _along_heads(node, heads, heads.axis, values, trace)
    return _along_width(node, width, values, trace)


def _along_heads(node: Node, heads: Value, axis: int, values: Mapping[OperandName, Value], trace: Trace) -> Value:
    """q, k and v lose the same heads."""
    for name, value in values.items():
        if not _spans(node, name, axis, trace):
            continue
        if value.axis != axis and value.axis is not None:
            trace.pin(value, node.id, f"{called(node)} meets channels along another axis")
        trace.tie(node, heads.labels, value.labels if value.axis == axis else np.array(FIXED))
    return heads


def _along_width(node: Node, width: int, values: Mapping[OperandName, Value], trace: Trace) -> Value:
    """q and k lose the same places of their width, over which the products sum; v keeps its own."""
    factors = (values["q"], values["k"])
    wide = next((value for value in factors if value.axis == width), None)
    if wide is not None:
        for value in factors:
            trace.tie(node, wide.labels, value.labels if value.axis == width else np.array(FIXED))
        trace.use(node, "mask", {width: wide.labels})
    return values["v"]


def _follow_bias(node: Node, heads: Value | None, rank: int, trace: Trace) -> None:
    """What is added to the products goes with the heads, where it has one for each."""
    bias, value = node.operand("bias"), trace.source(node, "bias")
    shape = bias.shape if isinstance(bias, Param) else trace.shape(bias or "")
    own = -1 if heads is None or heads.axis is None else heads.axis - rank + len(shape)
    spans = own >= 0 and shape[own] > 1
    if isinstance(bias, Param):
        trace.use(node, "bias", {own: heads.labels} if spans and heads is not None else {})
    elif spans and heads is not None and value.axis in (None, own):
        trace.tie(node, heads.labels, value.labels if value.axis == own else np.array(FIXED))
    elif value.axis is not None:
        trace.pin(value, node.id, f"{called(node)} adds them to its products")
