"""Functions of each element."""

import functools
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of

LARGEST_POWER = 16
"""Of an integer exponent that becomes products."""


@instead_of("Pow", tvm="refuses an exponent of another dtype, and integers")
def power(graph: Graph, node: Node) -> str:
    """A small whole exponent as products, one of another dtype cast, integers by way of float64, whose fraction goes."""
    base, exponent = node.inputs
    known, number = graph.constants.get(exponent), graph.types[base].tensor_type.elem_type
    if known is not None and known.size == 1 and float(known.item()).is_integer() and 1 <= known.item() <= LARGEST_POWER:
        return _broadcast_like(graph, _product(graph, base, int(known.item())), known.shape)
    kind = number if graph.dtype(base).kind == "f" else TensorProto.DOUBLE
    made = graph.keep(Node("Pow", [graph.emit("Cast", name, to=kind) for name in (base, exponent)], name=node.name))[0]
    if kind == number:
        return made
    is_whole = graph.dtype(exponent).kind in "iu"  # then only the pow of some machines has a fraction
    return graph.emit("Cast", graph.emit("Round", made) if is_whole else made, to=number)


def _broadcast_like(graph: Graph, name: str, shape: Sequence[int]) -> str:
    """A value with as many axes at least as that shape of ones has."""
    return graph.emit("Expand", name, graph.ints(*shape)) if len(shape) > graph.rank(name) else name


def _product(graph: Graph, base: str, exponent: int) -> str:
    if exponent == 1:
        return base
    half = _product(graph, base, exponent // 2)
    square = graph.emit("Mul", half, half)
    return graph.emit("Mul", square, base) if exponent % 2 else square


@instead_of(
    "Sum", "Max", "Min", "Mean", tvm="copies the operands into one tensor and reduces that, and loses a NaN of the first"
)
def of_several(graph: Graph, node: Node) -> str:
    """Two at a time; an operand against a constant number is a Clip."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    if node.op in ("Sum", "Mean"):
        total = functools.reduce(functools.partial(graph.emit, "Add"), node.inputs)
        return total if node.op == "Sum" else graph.emit("Div", total, graph.like(len(node.inputs), total))
    return functools.reduce(functools.partial(_extreme, graph, node.op), node.inputs)


def _extreme(graph: Graph, op: str, a: str, b: str) -> str:
    for one, other in ((a, b), (b, a)):
        known = graph.constants.get(other)
        if known is not None and known.size == 1 and known.ndim <= graph.rank(one) and not np.isnan(known).any():
            bound = graph.constant(known.reshape(()))
            return graph.emit("Clip", one, *([bound] if op == "Max" else ["", bound]))
    first = graph.emit("GreaterOrEqual" if op == "Max" else "LessOrEqual", a, b)
    if graph.dtype(a).kind == "f":
        first = graph.emit("Or", first, graph.emit("IsNaN", a))
    return graph.emit("Where", first, a, b)


@instead_of("And", "Or", "Xor", tvm="mixes bits and bytes in one vector where one operand alone is computed beside it")
def logical(graph: Graph, node: Node) -> str:
    """Counted: both, one at least, one alone."""
    total = graph.emit("Add", *(graph.emit("Cast", name, to=TensorProto.INT32) for name in node.inputs))
    count = graph.constant(2 if node.op == "And" else 1, np.int32)
    return graph.emit("GreaterOrEqual" if node.op == "Or" else "Equal", total, count)


@instead_of("Sinh", "Cosh", tvm="has no kernel for it in float32")
def hyperbolic(graph: Graph, node: Node) -> str:
    """(exp(x) - exp(-x)) / 2, and the sum."""
    x = node.inputs[0]
    rising, falling = graph.emit("Exp", x), graph.emit("Exp", graph.emit("Neg", x))
    return graph.emit("Mul", graph.emit("Sub" if node.op == "Sinh" else "Add", rising, falling), graph.like(0.5, x))


@instead_of("IsInf", tvm="counts both infinities, whichever is asked for")
def infinite(graph: Graph, node: Node) -> str | None:
    """One of them by comparison."""
    x, low, high = node.inputs[0], node.attrs.get("detect_negative", 1), node.attrs.get("detect_positive", 1)
    if low and high:
        return None
    if not low and not high:
        return graph.emit("And", graph.emit("IsNaN", x), graph.constant(False))
    return graph.emit("Equal", x, graph.like(np.inf if high else -np.inf, x))


@instead_of("Dropout", tvm="gives a mask of its own dtype, and drops where it is told to train")
def dropout(graph: Graph, node: Node) -> list[str]:
    """The input itself; a mask of ones."""
    if node.input(2) and bool(graph.required(node, 2, "training_mode")):
        raise node.refusal("training_mode=True", "expected a model for inference: export it with training_mode=False")
    x = node.inputs[0]
    return [x] if node.outputs == 1 else [x, graph.constant(np.full(graph.shape(x), node.attrs.get("mask", True)))]


@instead_of("Elu", tvm="takes float32 alone")
def elu(graph: Graph, node: Node) -> str:
    """x where it is positive, else alpha * (exp(x) - 1)."""
    x = node.inputs[0]
    below = graph.emit("Sub", graph.emit("Exp", graph.emit("Clip", x, "", graph.like(0, x))), graph.like(1, x))
    scaled = graph.emit("Mul", below, graph.like(node.attrs.get("alpha", 1.0), x))
    return graph.emit("Where", graph.emit("Less", x, graph.like(0, x)), scaled, x)


@instead_of("Selu", tvm="takes float32 alone")
def selu(graph: Graph, node: Node) -> str:
    """gamma times an Elu."""
    alpha, gamma = node.attrs.get("alpha", 1.67326319217681884765625), node.attrs.get("gamma", 1.05070102214813232421875)
    return graph.emit("Mul", graph.emit("Elu", node.inputs[0], alpha=alpha), graph.like(gamma, node.inputs[0]))


@instead_of("Celu", tvm="does not know it")
def celu(graph: Graph, node: Node) -> str:
    """alpha times the Elu of x / alpha."""
    x, alpha = node.inputs[0], node.attrs.get("alpha", 1.0)
    return graph.emit("Mul", graph.emit("Elu", graph.emit("Div", x, graph.like(alpha, x))), graph.like(alpha, x))


@instead_of("Swish", tvm="does not know it")
@instead_of("QuickGelu", domain=MICROSOFT, tvm="does not know it")
def swish(graph: Graph, node: Node) -> str:
    """x * sigmoid(alpha * x)."""
    x, alpha = node.inputs[0], node.attrs.get("alpha", 1.0 if node.op == "Swish" else 1.702)
    scaled = x if alpha == 1 else graph.emit("Mul", x, graph.like(alpha, x))
    return graph.emit("Mul", x, graph.emit("Sigmoid", scaled))


@instead_of("ThresholdedRelu", tvm="takes float32 alone")
def thresholded(graph: Graph, node: Node) -> str:
    """x where it is above alpha, else 0."""
    x = node.inputs[0]
    above = graph.emit("Greater", x, graph.like(node.attrs.get("alpha", 1.0), x))
    return graph.emit("Where", above, x, graph.like(0, x))
