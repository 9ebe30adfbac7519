"""Normalizations, in terms of means."""

import numpy as np
from onnx import TensorProto

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of


@instead_of("LpNormalization", tvm="does not know it")
def lp(graph: Graph, node: Node) -> str:
    """x over its norm along the axis; zeros stay zeros."""
    x, axes = node.inputs[0], graph.ints(node.attrs.get("axis", -1))
    norm = graph.emit(f"ReduceL{node.attrs.get('p', 2)}", x, axes, keepdims=1)
    zero = graph.emit("Equal", norm, graph.like(0, x))
    return graph.emit("Div", x, graph.emit("Where", zero, graph.like(1, x), norm))


@instead_of("LRN", tvm="refuses an even size, more than four axes and any dtype but float32")
def across_channels(graph: Graph, node: Node) -> str:
    """The mean of the squares of neighbouring channels, by a pool over the axis of the channels."""
    x, size, shape = node.inputs[0], node.attrs["size"], graph.shape(node.inputs[0])
    before = (size - 1) // 2
    flat = graph.emit("Reshape", graph.emit("Mul", x, x), graph.ints(shape[0], 1, shape[1], -1))
    wide = graph.emit("Pad", flat, graph.ints(0, 0, before, 0, 0, 0, size - 1 - before, 0))
    mean = graph.emit("AveragePool", wide, kernel_shape=[size, 1], strides=[1, 1])
    scaled = graph.emit("Mul", graph.emit("Reshape", mean, graph.ints(*shape)), graph.like(node.attrs.get("alpha", 1e-4), x))
    moved = graph.emit("Add", scaled, graph.like(node.attrs.get("bias", 1.0), x))
    return graph.emit("Div", x, graph.emit("Pow", moved, graph.like(node.attrs.get("beta", 0.75), x)))


@instead_of("MeanVarianceNormalization", tvm="takes the difference of two large means for the variance")
def mean_and_variance(graph: Graph, node: Node) -> str:
    """The centred input over the root of the mean of its squares, to which 1e-9 is added behind the root."""
    axes = graph.ints(*node.attrs.get("axes", (0, 2, 3)))
    _, centred, variance = _moments(graph, node.inputs[0], axes)
    deviation = graph.emit("Sqrt", variance)
    return graph.emit("Div", centred, graph.emit("Add", deviation, graph.like(1e-9, deviation)))


def _moments(graph: Graph, x: str, axes: str) -> tuple[str, str, str]:
    """The mean, the centred values, and the mean of their squares."""
    mean = graph.emit("ReduceMean", x, axes, keepdims=1)
    centred = graph.emit("Sub", x, mean)
    return mean, centred, graph.emit("ReduceMean", graph.emit("Mul", centred, centred), axes, keepdims=1)


def _normalized(graph: Graph, x: str, axes: str, epsilon: float) -> tuple[str, str, str]:
    """The normalized values, the mean, and the inverse of the deviation."""
    mean, centred, variance = _moments(graph, x, axes)
    inverse = graph.emit("Reciprocal", graph.emit("Sqrt", graph.emit("Add", variance, graph.like(epsilon, x))))
    return graph.emit("Mul", centred, inverse), mean, inverse


@instead_of("LayerNormalization", tvm="gives zeros for mean and deviation, and broadcasts no scale")
def layer_norm(graph: Graph, node: Node) -> list[str] | None:
    """In terms of means, where more than the result is asked for, or the scale is broadcast."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    axis = node.attrs.get("axis", -1) % len(shape)
    sizes = [graph.shape(name) for name in node.inputs[1:] if name]
    if node.outputs == 1 and all(size == shape[axis:] for size in sizes) and graph.dtype(x) == np.float32:
        return None
    kind = graph.types[x].tensor_type.elem_type
    stash = node.attrs.get("stash_type", TensorProto.FLOAT)
    wide = x if graph.dtype(x) == np.float64 else graph.emit("Cast", x, to=stash)
    made, mean, inverse = _normalized(graph, wide, graph.ints(*range(axis, len(shape))), node.attrs.get("epsilon", 1e-5))
    made = graph.emit("Mul", graph.emit("Cast", made, to=kind), node.inputs[1])
    return [graph.emit("Add", made, node.inputs[2]) if node.input(2) else made, mean, inverse][: node.outputs]


@instead_of("SkipLayerNormalization", domain=MICROSOFT, tvm="gives numbers of its own for all but the result")
def skip_layer_norm(graph: Graph, node: Node) -> list[str]:
    """The sum of both inputs and the bias, and its LayerNormalization."""
    total = graph.emit("Add", node.inputs[0], node.inputs[1])
    if node.input(4):
        total = graph.emit("Add", total, node.inputs[4])
    made = graph.emit_all(
        min(3, node.outputs),
        "LayerNormalization",
        total,
        *node.inputs[2:4],
        epsilon=node.attrs.get("epsilon", 1e-5),
    )
    return [*made, total][: node.outputs]


@instead_of("GroupNormalization", tvm="reads float32 alone")
def group_norm(graph: Graph, node: Node) -> str:
    """Each group as one axis, normalized; a scale and a bias for each channel."""
    x, shape, groups = node.inputs[0], graph.shape(node.inputs[0]), node.attrs["num_groups"]
    apart = graph.emit("Reshape", x, graph.ints(shape[0], groups, -1))
    made, *_ = _normalized(graph, apart, graph.ints(2), node.attrs.get("epsilon", 1e-5))
    made = graph.emit("Reshape", made, graph.ints(*shape))
    column = graph.ints(-1, *[1] * (len(shape) - 2))
    scale, bias = (graph.emit("Reshape", name, column) for name in node.inputs[1:3])
    return graph.emit("Add", graph.emit("Mul", made, scale), bias)


@instead_of("BatchNormalization", tvm="learns where it is told to train")
def batch_norm(graph: Graph, node: Node) -> list[str] | None:
    """TVM's own for inference; training is refused."""
    if node.attrs.get("training_mode", 0):
        raise node.refusal("training_mode=1", "expected a model for inference: export it with training_mode=0")
    return None


@instead_of("Gelu", "BiasGelu", "FastGelu", domain=MICROSOFT, tvm="goes by the name alone, whichever package it is of")
def gelu(graph: Graph, node: Node) -> str:
    """A bias and ONNX's own Gelu."""
    x = graph.emit("Add", *node.inputs) if len(node.inputs) == 2 and node.inputs[1] else node.inputs[0]
    return graph.emit("Gelu", x, approximate="tanh" if node.op == "FastGelu" else "none")
