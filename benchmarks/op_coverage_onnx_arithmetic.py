"""One-op ONNX models: functions of each element, comparisons, reductions, products, quantization."""

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from benchmarks.op_models import OneOp
from benchmarks.op_one_onnx import MICROSOFT, Constant, between, choices, held, normal, one, scalar, weights

PLAIN = ("Abs", "Atan", "Asinh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Identity", "Neg", "Relu", "Round", "Sigmoid")
PLAIN += ("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid")
PLAIN += ("HardSwish", "Mish", "ThresholdedRelu", "Shrink")
REDUCED = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def cases() -> Iterator[OneOp]:
    yield from unary()
    yield from binary()
    yield from compared()
    yield from casts()
    yield from reductions()
    yield from products()
    yield from quantized()


def unary() -> Iterator[OneOp]:
    x = normal(2, 3, 5) * 3
    for op in PLAIN:
        yield one(op, x)
    for op in ("Acos", "Asin", "Atanh"):
        yield one(op, between(-0.95, 0.95, 2, 3, 5))
    for op in ("Log", "Sqrt", "Reciprocal"):
        yield one(op, between(0.1, 5, 2, 3, 5))
    yield one("Acosh", between(1.1, 5, 2, 3, 5))
    for op in ("Abs", "Neg", "Relu", "Sign"):
        yield one(op, between(-9, 9, 2, 5, dtype=np.int32), note="int32")
    for op in ("Sigmoid", "Tanh", "Exp"):
        yield one(op, x.astype(np.float64), opset=20, note="float64")
    yield one("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.49], np.float32), note="ties")
    yield one("Elu", x * 20, alpha=0.3, note="large")
    yield one("Elu", x, alpha=-0.5, note="alpha negative")
    yield one("Selu", x, alpha=-1.5, gamma=2.0, note="alpha negative")
    yield one("Selu", x, opset=6, alpha=2.0, gamma=0.5)
    yield one("Celu", x, alpha=2.0, opset=12, note="alpha")
    yield one("LeakyRelu", x, alpha=0.3, opset=6)
    yield one("LeakyRelu", x, alpha=1.5, note="alpha above 1")
    yield one("HardSigmoid", x, alpha=0.5, beta=0.1, opset=6)
    yield one("ThresholdedRelu", x, alpha=0.4, opset=10)
    yield one("Shrink", x, lambd=0.8, bias=0.3, note="bias")
    yield one("Gelu", x, opset=20)
    yield one("Gelu", x, opset=20, approximate="tanh", note="tanh")
    yield one("Swish", x, opset=24)
    yield one("Swish", x, opset=24, alpha=0.5, note="alpha")
    yield one("PRelu", normal(2, 3, 4, 5), weights(3, 1, 1))
    yield one("PRelu", normal(2, 3, 4, 5), weights(5), note="last axis")
    yield one("PRelu", normal(2, 3, 4, 5), weights(2, 3, 4, 5), note="each element")
    yield one("PRelu", normal(2, 3, 4, 5), weights(1), note="one")
    yield one("PRelu", normal(2, 3, 4, 5), weights(3, 1, 5), opset=9)
    special = np.array([1, -np.inf, np.inf, np.nan, 0], np.float32)
    yield one("IsInf", special, opset=10)
    yield one("IsInf", special, opset=10, detect_negative=0, note="positive")
    yield one("IsInf", special, opset=10, detect_positive=0, note="negative")
    yield one("IsNaN", special, opset=13)
    yield one("Not", choices(2, 5))
    yield one("BitwiseNot", between(-9, 9, 2, 5, dtype=np.int32))
    yield one("Clip", x, opset=6, min=-1.0, max=2.0)
    yield one("Clip", x, scalar(-1), scalar(2), opset=11)
    yield one("Clip", x, None, scalar(0.5), note="max alone")
    yield one("Clip", x, scalar(0.5), note="min alone")
    yield one("Clip", x, note="no bounds")
    yield one("Clip", between(-9, 9, 2, 5, dtype=np.int64), scalar(-2, np.int64), scalar(3, np.int64), note="int64")
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        yield one(op, normal(2, 3, 4), axis=1)
        yield one(op, normal(2, 3, 4), opset=11)
        yield one(op, normal(2, 3, 4), opset=11, axis=2, note="last axis")
    for op in ("Gelu", "QuickGelu"):
        yield one(op, x, domain=MICROSOFT)
    yield one("FastGelu", x, weights(5), domain=MICROSOFT)
    yield one("BiasGelu", x, weights(5), domain=MICROSOFT)
    yield one("Dropout", x, opset=10, outputs=2)
    yield one("Dropout", x, scalar(0.3), opset=13, outputs=2)


def binary() -> Iterator[OneOp]:
    a, b = normal(2, 3, 4, 5), normal(3, 1, 5, seed=1)
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"):
        yield one(op, a, b)
    for op in ("Add", "Sub", "Mul", "Div"):
        whole = between(1, 9, 3, 1, 5, dtype=np.int32) * np.where(choices(3, 1, 5), 1, -1).astype(np.int32)
        yield one(op, between(-50, 50, 2, 3, 4, 5, dtype=np.int32), whole, note="int32")
    yield one("Div", between(-50, 50, 2, 5, dtype=np.int64), scalar(4, np.int64), note="int64 by a constant")
    yield one("Div", between(0, 50, 2, 5, dtype=np.uint8), scalar(4, np.uint8), note="uint8")
    for op in ("Max", "Min", "Sum", "Mean"):
        yield one(op, a, b, weights(5), note="three")
        yield one(op, a, opset=8, note="one")
        yield one(op, a, normal(2, 3, 4, 5, seed=2), opset=6)
    yield one("Max", a, scalar(0), note="0")
    yield one("Min", between(-9, 9, 2, 5, dtype=np.int64), scalar(3, np.int64), note="int64")
    yield one("Max", np.array([np.nan, 1, 2], np.float32), np.array([0, np.nan, 3], np.float32), note="nan")
    positive = between(0.2, 3, 2, 3, 4)
    yield one("Pow", positive, normal(4, seed=1))
    yield one("Pow", normal(2, 3, 4), scalar(2), note="square")
    yield one("Pow", normal(2, 3, 4), scalar(3), note="cube")
    yield one("Pow", normal(2, 3, 4), scalar(-2), note="reciprocal square")
    yield one("Pow", positive, scalar(0.5), note="root")
    yield one("Pow", normal(2, 3, 4), scalar(3, np.int64), note="an int")
    yield one("Pow", normal(2, 3, 4), between(0, 4, 2, 3, 4, dtype=np.int32), note="ints computed")
    yield one("Pow", between(-5, 5, 2, 3, dtype=np.int32), scalar(3, np.int32), note="int32")
    yield one("Pow", between(-5, 5, 2, 3, dtype=np.int64), between(0, 4, 2, 3, dtype=np.int64), note="int64 computed")
    yield one("Pow", positive, scalar(2), opset=7)
    yield one("Pow", np.array([-2, -2, -2, 3, -1], np.float32), np.array([2, 3, -1, 0.5, 0], np.float32), note="any signs")
    yield one("Pow", np.array([[-2], [3]], np.float32), held(2, 3, -1, 0, dtype=np.float32), note="constants")
    low, high = between(-9, 9, 2, 5, dtype=np.int32), np.array([2, -3, 4, -5, 6], np.int32)
    yield one("Mod", low, high)
    yield one("Mod", low, high, fmod=1, note="fmod, int32")
    yield one("Mod", normal(2, 5) * 9, between(0.5, 2, 5) * np.array([1, -1, 1, -1, 1], np.float32), fmod=1, note="fmod")


def compared() -> Iterator[OneOp]:
    a, b = between(0, 4, 2, 3, 4, dtype=np.int32), between(0, 4, 3, 1, dtype=np.int32, seed=1)
    for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
        yield one(op, a, b)
        yield one(op, a.astype(np.float32), scalar(2), note="float32")
    for op in ("And", "Or", "Xor"):
        yield one(op, choices(2, 3, 4), choices(3, 1, seed=1))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield one(op, a, b)
    for direction in ("LEFT", "RIGHT"):
        yield one("BitShift", a.astype(np.uint8), b.astype(np.uint8), direction=direction, note=direction.lower())
    yield one("Where", choices(2, 1, 4), normal(2, 3, 4), normal(3, 1, seed=1))
    yield one("Where", choices(3, 4), between(0, 9, 3, 4, dtype=np.int64), scalar(5, np.int64), note="int64")


def casts() -> Iterator[OneOp]:
    x = normal(2, 5) * 5
    for kind in ("INT32", "INT64", "FLOAT16", "DOUBLE", "BOOL", "UINT8", "INT8"):
        yield one("Cast", np.abs(x) if kind == "UINT8" else x, to=TensorProto.DataType.Value(kind), note=kind.lower())
    yield one("Cast", choices(2, 5), to=TensorProto.FLOAT, note="of bool")
    yield one("Cast", between(-300, 300, 2, 5, dtype=np.int32), to=TensorProto.FLOAT, note="of int32")
    yield one("CastLike", x, scalar(0, np.int32), opset=15)
    yield one("CastLike", between(-9, 9, 2, 5, dtype=np.int64), normal(1), note="of int64")


def reductions() -> Iterator[OneOp]:
    x = between(0.2, 2, 2, 3, 4, 5)
    for op in REDUCED:
        yield one(f"Reduce{op}", x, held(1, 2))
        yield one(f"Reduce{op}", x, opset=11, axes=[-1, 1], keepdims=0)
    for op in ("Max", "Mean", "Sum", "LogSumExp", "Prod"):
        yield one(f"Reduce{op}", x, opset=13 if op != "Sum" else 11, note="all")
    yield one("ReduceSum", x, held(), noop_with_empty_axes=1, note="none")
    yield one("ReduceSum", x, held(), keepdims=0, note="empty axes")
    yield one("ReduceLogSumExp", x * 100, held(2), keepdims=0, note="large")
    for op in ("Sum", "Max", "Prod", "L1", "SumSquare"):
        yield one(f"Reduce{op}", between(-5, 5, 2, 3, 4, dtype=np.int32), held(1), note="int32")
    yield one("ReduceMax", choices(2, 3, 4), held(1), opset=20, note="bool")
    yield one("ReduceMin", between(0, 9, 2, 3, 4, dtype=np.uint8), held(1), note="uint8")
    for op in ("ArgMax", "ArgMin"):
        ties = between(0, 3, 2, 6, 4).round()
        yield one(op, ties, axis=1)
        yield one(op, ties, axis=1, keepdims=0, select_last_index=1, note="last")
        yield one(op, ties, opset=11, axis=-1)
    for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
        note = " ".join(word for word, on in (("exclusive", exclusive), ("reverse", reverse)) if on)
        yield one("CumSum", x, scalar(2, np.int64), opset=14, exclusive=exclusive, reverse=reverse, note=note)
    yield one("CumSum", between(0, 9, 3, 4, dtype=np.int32), scalar(-1, np.int64), note="int32")
    yield one("CumProd", x, scalar(1, np.int64), opset=26)
    yield one("TopK", normal(3, 7), held(3), outputs=2, opset=11)
    yield one("TopK", normal(3, 7), held(3), outputs=2, largest=0, axis=0, note="smallest, first axis")
    yield one("TopK", normal(3, 7), held(2), outputs=2, opset=10)
    yield one("TopK", normal(3, 7), outputs=2, opset=9, k=2, axis=0)
    yield one("TopK", between(-9, 9, 3, 1, dtype=np.int64), held(1), outputs=2, axis=0, note="int64")
    yield one("TopK", normal(3, 7), held(7), outputs=2, sorted=1, note="all")
    yield one("LpNormalization", normal(2, 3, 4), axis=1)
    yield one("LpNormalization", normal(2, 3, 4), p=1, note="p 1")
    yield one("Det", normal(2, 3, 3))


def products() -> Iterator[OneOp]:
    yield one("MatMul", normal(3, 4), normal(4, 5, seed=1))
    yield one("MatMul", normal(2, 1, 3, 4), normal(5, 4, 2, seed=1), note="batches")
    yield one("MatMul", normal(4), normal(2, 4, 3, seed=1), note="a vector")
    yield one("MatMul", normal(2, 3, 4), weights(4), note="by a vector")
    yield one("MatMul", between(-9, 9, 3, 4, dtype=np.int32), between(-9, 9, 4, 5, dtype=np.int32), note="int32")
    yield one("Gemm", normal(3, 4), weights(4, 5), weights(5))
    yield one(
        "Gemm", normal(4, 3), weights(5, 4), weights(3, 1), alpha=0.5, beta=2.0, transA=1, transB=1, note="all attributes"
    )
    yield one("Gemm", normal(3, 4), weights(4, 5), note="no C")
    for equation, shapes in {
        "bij,bjk->bik": ((2, 3, 4), (2, 4, 5)),
        "ij->ji": ((3, 4),),
        "bhqd,bhkd->bhqk": ((1, 2, 3, 4), (1, 2, 5, 4)),
        "...ij,...jk": ((2, 3, 4), (2, 4, 5)),
        "ij->": ((3, 4),),
        "ii->i": ((4, 4),),
        "i,j->ij": ((3,), (4,)),
    }.items():
        yield one("Einsum", *(normal(*shape, seed=seed) for seed, shape in enumerate(shapes)), equation=equation, note=equation)
    yield one("FusedMatMul", normal(4, 3), weights(4, 5), domain=MICROSOFT, transA=1, alpha=0.5)
    yield one("FusedGemm", normal(3, 4), weights(4, 5), weights(5), domain=MICROSOFT, activation="Relu")


def quantized() -> Iterator[OneOp]:
    """Weights of seven bits: with eight ONNX Runtime saturates sums where the machine has no instructions for them."""
    x, scale, zero = normal(2, 3, 4) * 3, scalar(0.05), scalar(120, np.uint8)
    yield one("QuantizeLinear", x, scale, zero, opset=10)
    yield one("QuantizeLinear", x, scale, opset=13, note="no zero point")
    yield one("QuantizeLinear", x, held(0.05, 0.1, 0.02, dtype=np.float32), held(0, 3, -5, dtype=np.int8), axis=1, note="axis")
    yield one("QuantizeLinear", np.array([-0.75, -0.25, 0.25, 0.75, 1.25], np.float32), scalar(0.5), note="ties")
    bytes_ = between(0, 256, 2, 3, 4, dtype=np.uint8)
    yield one("DequantizeLinear", bytes_, scale, zero, opset=10)
    each = held(0.05, 0.1, 0.02, dtype=np.float32), held(7, 3, 200, dtype=np.uint8)
    yield one("DequantizeLinear", bytes_, *each, axis=1, note="axis")
    yield one("DequantizeLinear", between(-900, 900, 2, 3, dtype=np.int32), scale, note="int32")
    yield one("DequantizeLinear", bytes_, Constant(between(0.01, 0.1, 2, 3, 2)), opset=21, axis=2, block_size=2, note="blocks")
    yield one("DynamicQuantizeLinear", x, opset=11, outputs=3)
    a, b = (
        between(0, 256, 3, 4, dtype=np.uint8),
        Constant(between(-64, 64, 4, 5, dtype=np.int8)),
    )
    yield one("MatMulInteger", a, b, scalar(120, np.uint8), scalar(3, np.int8), opset=10)
    yield one("MatMulInteger", a, b, note="no zero points")
    made = (scalar(0.5), scalar(128, np.uint8))
    yield one("QLinearMatMul", a, scale, zero, b, scalar(0.02), scalar(0, np.int8), *made, opset=10)
    image, kernel = between(0, 256, 1, 3, 7, 6, dtype=np.uint8), between(-64, 64, 4, 3, 3, 3, dtype=np.int8)
    yield one("ConvInteger", image, Constant(kernel.view(np.uint8)), scalar(120, np.uint8), scalar(128, np.uint8), opset=10)
    yield one("ConvInteger", image, Constant(kernel.view(np.uint8)), pads=[1, 1, 1, 1], strides=[2, 2], note="pads")
    conv = (image, scale, zero, Constant(kernel), scalar(0.02), scalar(0, np.int8), *made)
    yield one("QLinearConv", *conv, opset=10, pads=[1, 1, 1, 1])
    each = Constant(between(0.01, 0.05, 4))
    bias = Constant(between(-900, 900, 4, dtype=np.int32))
    yield one("QLinearConv", *conv[:4], each, held(0, 0, 0, 0, dtype=np.int8), *made, bias, note="a scale a channel")
    other = between(0, 256, 2, 3, 4, dtype=np.uint8, seed=1)
    for op in ("QLinearAdd", "QLinearMul"):
        yield one(op, bytes_, scale, zero, other, scalar(0.03), scalar(90, np.uint8), *made, domain=MICROSOFT)
