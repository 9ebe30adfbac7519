"""Quantized ops by their definition: dequantized, computed, quantized again; `relax/quantized.py` finds the bytes."""

import numpy as np
from onnx import TensorProto, helper

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of

BYTES = (TensorProto.INT8, TensorProto.UINT8)
EXACT = 1 << 24
"""Up to which float32 counts every integer."""


def _along(graph: Graph, name: str, rank: int, axis: int) -> str:
    """A scale or a zero point of one axis, laid along that axis."""
    if graph.rank(name) != 1 or rank == 1:
        return name
    return graph.emit("Reshape", name, graph.ints(*[1] * (axis % rank), -1, *[1] * (rank - axis % rank - 1)))


def _of_blocks(graph: Graph, name: str, axis: int, block: int, size: int) -> str:
    """A scale or a zero point of each block of an axis, repeated for each element."""
    return graph.emit("Gather", name, graph.constant(np.arange(size) // block), axis=axis)


def _shaped(graph: Graph, node: Node, name: str) -> str:
    x, axis = node.inputs[0], node.attrs.get("axis", 1)
    rank, block = graph.rank(x), node.attrs.get("block_size", 0)
    return _of_blocks(graph, name, axis % rank, block, graph.shape(x)[axis]) if block else _along(graph, name, rank, axis)


@instead_of("DequantizeLinear", tvm="knows no blocks")
def dequantized(graph: Graph, node: Node) -> str | None:
    """(x - zero point) * scale; of bytes as TVM has it, which `relax/quantized.py` reads."""
    x, scale = node.inputs[0], node.inputs[1]
    if _is_plain(graph, node, x, scale):
        return None
    kind = node.attrs.get("output_dtype", 0) or graph.types[scale].tensor_type.elem_type
    exact = TensorProto.FLOAT if graph.dtype(x).itemsize < 4 else TensorProto.INT32
    number = graph.emit("Cast", x, to=exact)
    if node.input(2) and not _is_zero(graph, node.inputs[2]):
        number = graph.emit("Sub", number, graph.emit("Cast", _shaped(graph, node, node.inputs[2]), to=exact))
    return graph.emit("Mul", graph.emit("Cast", number, to=kind), graph.emit("Cast", _shaped(graph, node, scale), to=kind))


def _is_zero(graph: Graph, name: str) -> bool:
    return name in graph.constants and not np.any(graph.constants[name])


def _is_plain(graph: Graph, node: Node, quantized: str, scale: str) -> bool:
    """Whether bytes stand for float32, by one scale or one for each index of an axis."""
    kinds = [graph.types[name].tensor_type.elem_type for name in (quantized, scale)]
    return kinds[0] in BYTES and kinds[1] == TensorProto.FLOAT and not node.attrs.get("block_size", 0)


@instead_of("QuantizeLinear", tvm="knows no blocks")
def quantized(graph: Graph, node: Node) -> str | None:
    """x / scale, rounded to even, moved by the zero point, and held within the range of the dtype; to bytes as TVM has it."""
    x, scale = node.inputs[0], node.inputs[1]
    kind = node.attrs.get("output_dtype", 0)
    if node.input(2):
        kind = graph.types[node.inputs[2]].tensor_type.elem_type
    kind = kind or TensorProto.UINT8
    if kind not in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16):
        raise node.refusal(f"quantized to {TensorProto.DataType.Name(kind)}", "expected integers of 8 or 16 bits")
    if (
        node.input(2)
        and graph.types[x].tensor_type.elem_type == TensorProto.FLOAT
        and _is_plain(graph, node, node.inputs[2], scale)
    ):
        return None
    number = graph.emit("Round", graph.emit("Div", x, graph.emit("CastLike", _shaped(graph, node, scale), x)))
    zero = graph.emit("CastLike", _shaped(graph, node, node.inputs[2]), x) if node.input(2) else ""
    return _held(graph, number, zero, kind)


def _held(graph: Graph, number: str, zero: str, kind: int) -> str:
    """A rounded number, moved by a zero point and cast, held within the range of the dtype."""
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
    moved = graph.emit("Add", number, zero) if zero and not _is_zero(graph, zero) else number
    clipped = graph.emit("Clip", moved, graph.like(float(limits.min), moved), graph.like(float(limits.max), moved))
    return graph.emit("Cast", graph.emit("Cast", clipped, to=TensorProto.INT32), to=kind)


@instead_of("DynamicQuantizeLinear", tvm="divides by a scale of zero where all elements are zero")
def dynamically_quantized(graph: Graph, node: Node) -> list[str]:
    """Scale and zero point from the least and the largest element."""
    x, zero = node.inputs[0], graph.constant(0, np.float32)
    least = graph.emit("Min", graph.emit("ReduceMin", x, keepdims=0), zero)
    most = graph.emit("Max", graph.emit("ReduceMax", x, keepdims=0), zero)
    span = graph.emit("Sub", most, least)
    scale = graph.emit("Div", span, graph.constant(255, np.float32))
    scale = graph.emit("Where", graph.emit("Equal", span, zero), graph.constant(1, np.float32), scale)
    point = graph.emit("QuantizeLinear", graph.emit("Neg", least), scale, graph.constant(0, np.uint8))
    return [graph.emit("QuantizeLinear", x, scale, point), scale, point]


def _centred(graph: Graph, node: Node, value: int, point: int, kind: int, axis: int | None) -> str:
    """An integer operand less its zero point, along an axis where that has one."""
    name = node.inputs[value]
    if name in graph.constants and (not node.input(point) or node.inputs[point] in graph.constants):
        known = graph.constants[node.inputs[point]].astype(np.int32) if node.input(point) else np.zeros((), np.int32)
        shape = [1] * graph.rank(name)
        if axis is not None and known.size > 1:
            shape[axis] = -1
        kept = graph.constants[name].astype(np.int32) - known.reshape(shape)
        return graph.constant(kept.astype(helper.tensor_dtype_to_np_dtype(kind)), name=name)
    number = graph.emit("Cast", name, to=kind)
    if not node.input(point) or _is_zero(graph, node.inputs[point]):
        return number
    zero = graph.emit("Cast", node.inputs[point], to=kind)
    return graph.emit("Sub", number, zero if axis is None else _along(graph, zero, graph.rank(name), axis))


@instead_of("ConvInteger", tvm="does not know it")
def integer_conv(graph: Graph, node: Node) -> str:
    """A Conv of 32-bit integers, which ONNX has no schema of and TVM takes."""
    x, weight = _centred(graph, node, 0, 2, TensorProto.INT32, None), _centred(graph, node, 1, 3, TensorProto.INT32, 0)
    return graph.keep(Node("Conv", [x, weight], node.attrs, 1, node.name), like=node)[0]


@instead_of("MatMulInteger", tvm="computes it by an unscheduled kernel")
def integer_product(graph: Graph, node: Node) -> str:
    """A MatMul of 32-bit integers by known weights, any other in float32 where that counts them exactly."""
    rank = graph.rank(node.inputs[0])
    weight = _centred(graph, node, 1, 3, TensorProto.INT32, -1)
    if node.inputs[1] in graph.constants and graph.rank(weight) == 2:
        return graph.emit("MatMul", _centred(graph, node, 0, 2, TensorProto.INT32, max(0, rank - 2)), weight)
    kind = TensorProto.FLOAT if _largest(graph, node, weight) < EXACT else TensorProto.INT32
    rows = _centred(graph, node, 0, 2, kind, max(0, rank - 2))
    return graph.emit("Cast", graph.emit("MatMul", rows, graph.emit("Cast", weight, to=kind)), to=TensorProto.INT32)


def _largest(graph: Graph, node: Node, weight: str) -> float:
    """What no sum of a product exceeds: by the weights where they are known, else by the sizes."""
    each = float(256 ** graph.dtype(node.inputs[0]).itemsize)
    if weight in graph.constants:
        known = np.abs(graph.constants[weight].astype(np.float64))
        return each * float(known.sum(-2 if known.ndim > 1 else 0).max())
    return each * float(256 ** graph.dtype(node.inputs[1]).itemsize) * graph.shape(node.inputs[0])[-1]


@instead_of("QLinearConv", tvm="does not know it")
def quantized_conv(graph: Graph, node: Node) -> str:
    """A Conv of dequantized operands, quantized."""
    inputs = [graph.emit("DequantizeLinear", *node.inputs[:3]), graph.emit("DequantizeLinear", *node.inputs[3:6], axis=0)]
    if node.input(8):
        scale = graph.emit("Mul", node.inputs[1], node.inputs[4])
        inputs.append(graph.emit("Mul", graph.emit("Cast", node.inputs[8], to=TensorProto.FLOAT), scale))
    return graph.emit("QuantizeLinear", graph.emit("Conv", *inputs, **node.attrs), node.inputs[6], node.inputs[7])


@instead_of("QLinearMatMul", tvm="does not know it")
def quantized_product(graph: Graph, node: Node) -> str:
    """A MatMul of dequantized operands, quantized."""
    rank = graph.rank(node.inputs[0])
    a = graph.emit("DequantizeLinear", *node.inputs[:3], axis=max(0, rank - 2))
    b = graph.emit("DequantizeLinear", *node.inputs[3:6], axis=-1)
    return graph.emit("QuantizeLinear", graph.emit("MatMul", a, b), node.inputs[6], node.inputs[7])


@instead_of("QGemm", domain=MICROSOFT, tvm="does not know it")
def quantized_dense(graph: Graph, node: Node) -> str:
    """A Gemm of dequantized operands, quantized where an output scale is given."""
    weight = graph.emit("DequantizeLinear", *node.inputs[3:6], axis=0 if node.attrs.get("transB", 0) else 1)
    inputs = [graph.emit("DequantizeLinear", *node.inputs[:3]), weight]
    if node.input(6):
        scale = graph.emit(
            "Mul", node.inputs[1], graph.emit("Mul", node.inputs[4], graph.like(node.attrs.get("alpha", 1.0), weight))
        )
        inputs.append(graph.emit("Mul", graph.emit("Cast", node.inputs[6], to=TensorProto.FLOAT), scale))
    made = graph.emit("Gemm", *inputs, **node.attrs)
    return graph.emit("QuantizeLinear", made, *node.inputs[7:9]) if node.input(7) else made


@instead_of("QLinearAdd", "QLinearMul", domain=MICROSOFT, tvm="does not know it")
def quantized_binary(graph: Graph, node: Node) -> str:
    """Both dequantized, added or multiplied, quantized."""
    a, b = (graph.emit("DequantizeLinear", *node.inputs[start : start + 3]) for start in (0, 3))
    return graph.emit("QuantizeLinear", graph.emit(node.op.removeprefix("QLinear"), a, b), node.inputs[6], node.input(7))


@instead_of("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT, tvm="does not know it")
def quantized_function(graph: Graph, node: Node) -> str:
    """Dequantized, the function, quantized."""
    x = graph.emit("DequantizeLinear", *node.inputs[:3])
    made = graph.emit(node.op.removeprefix("QLinear"), x, **node.attrs)
    return graph.emit("QuantizeLinear", made, node.inputs[3], node.input(4))


@instead_of("QLinearGlobalAveragePool", domain=MICROSOFT, tvm="does not know it")
def quantized_mean(graph: Graph, node: Node) -> str:
    """Dequantized, the mean of each channel, quantized."""
    if node.attrs.get("channels_last", 0):
        raise node.refusal("channels_last has no rule")
    x = graph.emit("DequantizeLinear", *node.inputs[:3])
    return graph.emit("QuantizeLinear", graph.emit("GlobalAveragePool", x), node.inputs[3], node.input(4))
