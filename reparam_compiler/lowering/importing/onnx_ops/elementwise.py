"""Functions of each element."""

import functools
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of

LARGEST_POWER = 16
"""Of an integer exponent that becomes products."""


@instead_of("Div", tvm="rounds quotients of integers down, where ONNX rounds towards zero")
def division(graph: Graph, node: Node) -> str | None:
    """Of integers: the absolute values divided, and the sign put back."""
    a, b = node.inputs
    kind = graph.dtype(a).kind
    if kind not in "iu":
        return None
    if kind == "u":
        return graph.keep(node)[0]
    quotient = graph.keep(Node("Div", [graph.emit("Abs", a), graph.emit("Abs", b)], {}, 1, node.name))[0]
    return graph.emit("Mul", quotient, graph.emit("Mul", graph.emit("Sign", a), graph.emit("Sign", b)))


@instead_of("Mod", tvm="has no remainder of floats, and keeps one kind of remainder for all nodes")
def remainder(graph: Graph, node: Node) -> str | None:
    """With fmod=1 the sign is the dividend's: a - b * trunc(a / b)."""
    a, b = node.inputs
    floating = graph.dtype(a).kind == "f"
    if not node.attrs.get("fmod", 0) and not floating:
        return None
    if not floating:
        return graph.emit("Sub", a, graph.emit("Mul", b, graph.emit("Div", a, b)))
    size, by = graph.emit("Abs", a), graph.emit("Abs", b)
    left = graph.emit("Sub", size, graph.emit("Mul", by, graph.emit("Floor", graph.emit("Div", size, by))))
    left = graph.emit("Where", graph.emit("Less", left, graph.like(0, a)), graph.emit("Add", left, by), left)
    left = graph.emit("Where", graph.emit("GreaterOrEqual", left, by), graph.emit("Sub", left, by), left)
    return graph.emit("Where", graph.emit("Less", a, graph.like(0, a)), graph.emit("Neg", left), left)


@instead_of("Pow", tvm="refuses an exponent of another dtype, and loses the sign of a negative base")
def power(graph: Graph, node: Node) -> str | None:
    """A small whole exponent as products, one of another dtype cast, integers by way of float64."""
    base, exponent = node.inputs
    kind, known = graph.dtype(base), graph.constants.get(exponent)
    if known is not None and known.size == 1 and float(known.item()).is_integer() and 1 <= known.item() <= LARGEST_POWER:
        result = _product(graph, base, int(known.item()))
        return _broadcast_like(graph, result, known.shape)
    if kind.kind != "f":
        wide = [graph.emit("Cast", name, to=TensorProto.DOUBLE) for name in (base, exponent)]
        return graph.emit("Cast", graph.emit("Round", _power(graph, *wide)), to=_number(graph, base))
    return _power(graph, base, graph.emit("Cast", exponent, to=_number(graph, base)))


def _number(graph: Graph, name: str) -> int:
    return graph.types[name].tensor_type.elem_type


def _broadcast_like(graph: Graph, name: str, shape: Sequence[int]) -> str:
    """A value with as many axes at least as that shape of ones has."""
    return graph.emit("Expand", name, graph.ints(*shape)) if len(shape) > graph.rank(name) else name


def _product(graph: Graph, base: str, exponent: int) -> str:
    if exponent == 1:
        return base
    half = _product(graph, base, exponent // 2)
    square = graph.emit("Mul", half, half)
    return graph.emit("Mul", square, base) if exponent % 2 else square


def _power(graph: Graph, base: str, exponent: str) -> str:
    """Of floats of one dtype: of the absolute value, negative where base is and the exponent is odd, NaN where it is broken."""
    known = graph.constants.get(exponent)
    if known is not None and _is_fraction(known):
        return graph.keep(Node("Pow", [base, exponent]))[0]
    size = graph.keep(Node("Pow", [graph.emit("Abs", base), exponent]))[0]
    half = graph.emit("Mul", exponent, graph.like(0.5, base))
    odd = graph.emit("Not", graph.emit("Equal", half, graph.emit("Floor", half)))
    negative = graph.emit("Less", base, graph.like(0, base))
    whole = graph.emit("Equal", exponent, graph.emit("Floor", exponent))
    signed = graph.emit("Where", odd, graph.emit("Neg", size), size)
    return graph.emit("Where", negative, graph.emit("Where", whole, signed, graph.like(np.nan, base)), size)


def _is_fraction(exponent: np.ndarray) -> bool:
    return bool(np.all(exponent != np.floor(exponent)))


@instead_of("Sum", "Max", "Min", "Mean", tvm="stacks the operands and reduces them, which its layout pass cannot move")
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


@instead_of("And", "Or", "Xor", tvm="mixes bits and bytes in one vector where an operand is computed beside it")
def logical(graph: Graph, node: Node) -> str:
    """Counted: both, one at least, one alone."""
    total = graph.emit("Add", *(graph.emit("Cast", name, to=TensorProto.INT32) for name in node.inputs))
    count = graph.constant(2 if node.op == "And" else 1, np.int32)
    return graph.emit("GreaterOrEqual" if node.op == "Or" else "Equal", total, count)


@instead_of("Sinh", "Cosh", tvm="has no kernel for it")
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


@instead_of("Dropout", tvm="leaves a pair behind that its layout pass cannot read")
def dropout(graph: Graph, node: Node) -> list[str]:
    """The input itself; a mask of ones."""
    if bool(graph.constants.get(node.input(2), np.zeros(()))):
        raise node.refusal("training_mode=True", "expected a model for inference: export it with training_mode=False")
    x = node.inputs[0]
    return [x] if node.outputs == 1 else [x, graph.constant(np.full(graph.shape(x), node.attrs.get("mask", True)))]


@instead_of("Elu", tvm="computes it in float32, and overflows exp")
def elu(graph: Graph, node: Node) -> str:
    """x where it is positive, else alpha * (exp(x) - 1)."""
    x = node.inputs[0]
    below = graph.emit("Sub", graph.emit("Exp", graph.emit("Clip", x, "", graph.like(0, x))), graph.like(1, x))
    scaled = graph.emit("Mul", below, graph.like(node.attrs.get("alpha", 1.0), x))
    return graph.emit("Where", graph.emit("Less", x, graph.like(0, x)), scaled, x)


@instead_of("Selu", tvm="is off where the parameters are negative, and computes it in float32")
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


@instead_of("ThresholdedRelu", tvm="compares and multiplies in float32")
def thresholded(graph: Graph, node: Node) -> str:
    """x where it is above alpha, else 0."""
    x = node.inputs[0]
    above = graph.emit("Greater", x, graph.like(node.attrs.get("alpha", 1.0), x))
    return graph.emit("Where", above, x, graph.like(0, x))
