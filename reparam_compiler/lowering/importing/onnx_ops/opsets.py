"""Old forms of ONNX's ops in the form of opset 21: what was an attribute becomes an input, what was implied is said.

Squeeze-1 (axes=[1])          -> Squeeze(x, [1])
Softmax-11 (axis=1)           -> Reshape, Softmax over the last axis, Reshape
Add-6 (broadcast=1, axis=1)   -> Reshape of the second operand, Add
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node

Upgrade = Callable[[Graph, Node], Node]
SELU_1 = {"alpha": 1.6732, "gamma": 1.0507}
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def upgraded(graph: Graph, node: Node, opset: int) -> Node:
    """The same call in the form of opset 21; the node itself where that is its form."""
    if node.domain:
        return node
    for below, upgrade in UPGRADES.get(node.op, ()):
        if opset < below:
            node = upgrade(graph, node)
    return node


def _inputs_from(*names: tuple[str, Any, Any]) -> Upgrade:
    """Attributes that became inputs, in order: (name, dtype, default); a dtype of None is that of the first input."""

    def upgrade(graph: Graph, node: Node) -> Node:
        for name, dtype, default in names:
            value = node.attrs.pop(name, default)
            kind = dtype if dtype is not None or value is None else graph.dtype(node.inputs[0])
            node.inputs.append("" if value is None else graph.constant(value, kind))
        return node

    return upgrade


def _broadcast(graph: Graph, node: Node) -> Node:
    """Before opset 7 the second operand was laid on the first one from `axis` on, where `broadcast` was set."""
    axis = node.attrs.pop("axis", None)
    if node.attrs.pop("broadcast", 0) and axis is not None:
        rank, own = graph.rank(node.inputs[0]), graph.shape(node.inputs[1])
        missing = rank - axis % rank - len(own)
        node.inputs[1] = graph.emit("Reshape", node.inputs[1], graph.ints(*own, *[1] * missing))
    return node


def _without(*names: str) -> Upgrade:
    def upgrade(graph: Graph, node: Node) -> Node:
        for name in names:
            node.attrs.pop(name, None)
        return node

    return upgrade


def _as(op: str) -> Upgrade:
    def upgrade(graph: Graph, node: Node) -> Node:
        node.op = op
        return node

    return upgrade


def _default(name: str, value: Any) -> Upgrade:
    def upgrade(graph: Graph, node: Node) -> Node:
        node.attrs.setdefault(name, value)
        return node

    return upgrade


def _flattened(graph: Graph, node: Node) -> Node:
    """Before opset 13 the axes from `axis` on were one, over which Softmax and its kin went."""
    shape = graph.shape(node.inputs[0])
    axis = node.attrs.pop("axis", 1) % max(1, len(shape))
    rows = math.prod(shape[:axis])
    flat = graph.emit("Reshape", node.inputs[0], graph.ints(rows, math.prod(shape[axis:])))
    made = graph.emit(node.op, flat, axis=1)
    return Node("Reshape", [made, graph.ints(*shape)], name=node.name)


def _cast(graph: Graph, node: Node) -> Node:
    """Cast-1 names the dtype in words."""
    if isinstance(node.attrs["to"], str):
        node.attrs["to"] = TensorProto.DataType.Value(node.attrs["to"])
    return node


def _slice(graph: Graph, node: Node) -> Node:
    starts, ends = node.attrs.pop("starts"), node.attrs.pop("ends")
    axes = node.attrs.pop("axes", range(len(starts)))
    node.inputs += [graph.ints(*starts), graph.ints(*ends), graph.ints(*axes)]
    return node


def _split(graph: Graph, node: Node) -> Node:
    sizes = node.attrs.pop("split", None)
    if sizes:
        node.inputs = [node.inputs[0], graph.ints(*sizes)]
    return node


def _split_evenly(graph: Graph, node: Node) -> Node:
    if not node.input(1):
        node.attrs["num_outputs"] = node.outputs
    return node


def _pad(graph: Graph, node: Node) -> Node:
    pads, value = node.attrs.pop("pads", node.attrs.pop("paddings", None)), node.attrs.pop("value", 0.0)
    node.inputs += [graph.ints(*pads), graph.like(value, node.inputs[0])]
    return node


def _dropout(graph: Graph, node: Node) -> Node:
    node.attrs = {"mask": False}  # what ONNX Runtime gives where nothing is dropped; since opset 12 it is True
    return node


def _batch_norm(graph: Graph, node: Node) -> Node:
    if node.attrs.pop("spatial", 1) == 0:
        raise node.refusal("spatial=0: a mean and a variance for each element", "expected one for each channel")
    for name in ("consumed_inputs", "is_test"):
        node.attrs.pop(name, None)
    node.outputs = 1  # what a running statistic becomes, was the third output on, and has no meaning where nothing is learned
    return node


def _scales(graph: Graph, node: Node) -> Node:
    """Upsample-7 has its scales as an attribute, Upsample-1 those of height and width."""
    if "scales" in node.attrs:
        scales = node.attrs.pop("scales")
    else:
        scales = [1.0, 1.0, node.attrs.pop("height_scale"), node.attrs.pop("width_scale")]
    node.inputs.append(graph.constant(scales, np.float32))
    if node.attrs.get("mode") == "bilinear":
        node.attrs["mode"] = "linear"
    return node


def _resize(graph: Graph, node: Node) -> Node:
    """Resize-10 and Upsample-9 know scales alone, from the origin of the axes; ONNX Runtime rounds up where they shrink."""
    attrs = {"mode": node.attrs.get("mode", "nearest"), "coordinate_transformation_mode": "asymmetric"}
    attrs["nearest_mode"] = "of opset 10"
    return Node("Resize", [node.inputs[0], "", node.inputs[1]], attrs, 1, node.name)


def _tile(graph: Graph, node: Node) -> Node:
    """Tile-1 repeats along one axis."""
    repeats = [1] * graph.rank(node.inputs[0])
    axis = int(graph.required(node, 2, "axis").item())
    repeats[axis] = int(graph.required(node, 1, "number of tiles").item())
    return Node("Tile", [node.inputs[0], graph.ints(*repeats)], {}, 1, node.name)


def _reshape(graph: Graph, node: Node) -> Node:
    node.inputs.append(graph.ints(*node.attrs.pop("shape")))
    node.attrs.pop("consumed_inputs", None)
    return node


def _slope(graph: Graph, node: Node) -> Node:
    """Before opset 7 a slope of one axis went along the channels."""
    slope, rank = node.inputs[1], graph.rank(node.inputs[0])
    if graph.rank(slope) == 1 and rank > 2:
        node.inputs[1] = graph.emit("Reshape", slope, graph.ints(-1, *[1] * (rank - 2)))
    return node


def _group_norm(graph: Graph, node: Node) -> Node:
    """GroupNormalization-18 has a scale and a bias for each group, not for each channel."""
    channels, groups = graph.shape(node.inputs[0])[1], node.attrs["num_groups"]
    for index in (1, 2):
        column = graph.emit("Reshape", node.inputs[index], graph.ints(groups, 1))
        wide = graph.emit("Expand", column, graph.ints(groups, channels // groups))
        node.inputs[index] = graph.emit("Reshape", wide, graph.ints(channels))
    return node


def _dft(graph: Graph, node: Node) -> Node:
    node.inputs = [node.inputs[0], node.input(1), graph.constant(node.attrs.pop("axis", 1), np.int64)]
    return node


def _k(graph: Graph, node: Node) -> Node:
    node.inputs.append(graph.ints(node.attrs.pop("k")))
    return node


def _gemm(graph: Graph, node: Node) -> Node:
    node.attrs.pop("broadcast", None)
    return node


def _selu(graph: Graph, node: Node) -> Node:
    node.attrs = SELU_1 | node.attrs
    return node


_AXES = _inputs_from(("axes", np.int64, None))
_CONSUMED = ((6, _without("consumed_inputs")),)
_UNARY = (
    "Abs",
    "Ceil",
    "Elu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "LeakyRelu",
    "Log",
    "Neg",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sqrt",
)
_OTHERS = ("InstanceNormalization", "Max", "Mean", "Min", "Sum", "Tanh")
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Less", "Greater")
UPGRADES: dict[str, tuple[tuple[int, Upgrade], ...]] = {
    **dict.fromkeys(_BINARY, ((7, _broadcast), (7, _without("consumed_inputs")))),
    **dict.fromkeys((*_UNARY, *_OTHERS), _CONSUMED),
    **{f"Reduce{op}": ((18 if op != "Sum" else 13, _AXES),) for op in REDUCTIONS},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), ((13, _flattened),)),
    "BatchNormalization": ((14, _batch_norm),),
    "Cast": ((6, _cast),),
    "Clip": ((6, _without("consumed_inputs")), (11, _inputs_from(("min", None, None), ("max", None, None)))),
    "Concat": ((4, _default("axis", 1)),),
    "DFT": ((20, _dft),),
    "Dropout": ((12, _dropout),),
    "Gemm": ((7, _gemm),),
    "GroupNormalization": ((21, _group_norm),),
    "Pad": ((11, _pad),),
    "PRelu": ((7, _slope), (7, _without("consumed_inputs"))),
    "Reshape": ((5, _reshape),),
    "Resize": ((11, _resize),),
    "RoiAlign": ((16, _default("coordinate_transformation_mode", "output_half_pixel")),),
    "Scatter": ((11, _as("ScatterElements")),),
    "Selu": ((6, _selu), (6, _without("consumed_inputs"))),
    "Slice": ((10, _slice),),
    "Split": ((13, _split), (18, _split_evenly)),
    "Squeeze": ((13, _AXES),),
    "Tile": ((6, _tile),),
    "TopK": ((10, _k),),
    "Unsqueeze": ((13, _AXES),),
    "Upsample": ((9, _scales), (10, _resize)),
}
"""By op: (the first opset that has the form, how the form before it becomes that)."""
