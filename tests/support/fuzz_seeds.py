"""Small valid ONNX models that a fuzzer starts from: between them every way in which the format holds something.

"bodies"     an If, a Loop             "functions"   a call, and a call in that
"sizes"      shapes computed from sizes "wide"       branches that fuse, of half precision
...
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.support.onnx_blocks import SHAPE, dbb, repvgg
from tests.support.onnx_models import model_of, normal

NODE = helper.make_node


def _branches() -> ModelProto:
    nodes, constants = repvgg()
    return model_of(nodes, {"x": SHAPE}, ["y"], constants)


def _pooled_branch() -> ModelProto:
    nodes, constants = dbb()
    return model_of(nodes, {"x": ("N", *SHAPE[1:])}, ["y"], constants)


def _halves() -> ModelProto:
    nodes, constants = repvgg()
    return model_of(
        nodes, {"x": SHAPE}, ["y"], {k: v.astype(np.float16) for k, v in constants.items()}, dtype=TensorProto.FLOAT16
    )


def _classifier() -> ModelProto:
    """Convs of several widths, so that channels can be pruned, a head, and an elementwise tail."""
    nodes = [
        NODE("Conv", ["x", "v", "vb"], ["a"], pads=[1, 1, 1, 1], strides=[2, 1]),
        NODE("BatchNormalization", ["a", "s", "h", "m", "r"], ["n"]),
        NODE("Clip", ["n", "low", "high"], ["b"]),
        NODE("Conv", ["b", "d"], ["c"], group=8, pads=[1, 1, 1, 1]),
        NODE("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        NODE("GlobalAveragePool", ["p"], ["g"]),
        NODE("Flatten", ["g"], ["f"]),
        NODE("Gemm", ["f", "w", "wb"], ["e"], transB=1),
        NODE("Softmax", ["e"], ["y"], axis=1),
    ]
    sizes = {"v": (8, 3, 3, 3), "vb": (8,), "s": (8,), "h": (8,), "m": (8,), "d": (8, 1, 3, 3), "w": (5, 8), "wb": (5,)}
    constants = {name: normal(*shape, seed=place) for place, (name, shape) in enumerate(sizes.items())}
    constants |= {"r": abs(normal(8)) + 0.5, "low": np.float32(0).reshape(()), "high": np.float32(6).reshape(())}
    return model_of(nodes, {"x": (1, 3, 8, 7)}, ["y"], constants)


def _sizes() -> ModelProto:
    """What exporters write for `view(N, 2, -1)`, a resize, a slice and an expansion."""
    nodes = [
        NODE("Conv", ["x", "w"], ["a"]),
        NODE("Shape", ["a"], ["s"]),
        NODE("Gather", ["s", "zero"], ["n"], axis=0),
        NODE("Unsqueeze", ["n", "first"], ["n1"]),
        NODE("Concat", ["n1", "rest"], ["t"], axis=0),
        NODE("Reshape", ["a", "t"], ["b"]),
        NODE("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        NODE("Slice", ["c", "first", "ends", "axes"], ["d"]),
        NODE("MatMul", ["d", "m"], ["e"]),
        NODE("Split", ["e", "parts"], ["l", "r"], axis=2),
        NODE("Add", ["l", "r"], ["h"]),
        NODE("ConstantOfShape", ["rest"], ["k"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        NODE("ReduceMean", ["k"], ["k0"], keepdims=0),
        NODE("Pad", ["h", "pads"], ["q"], mode="constant"),
        NODE("Mul", ["q", "k0"], ["y"]),
    ]
    whole = {"zero": 0, "first": [0], "rest": [2, 12], "ends": [4], "axes": [1], "parts": [2, 2], "pads": [0, 1, 0, 0, 1, 0]}
    constants = {name: np.array(value, np.int64) for name, value in whole.items()}
    constants |= {"w": normal(4, 3, 1, 1), "m": normal(2, 4)}
    return model_of(nodes, {"x": ("N", 3, 2, 3)}, ["y"], constants)


def _bodies() -> ModelProto:
    """An If whose branches hold convs and read from outside, and a Loop."""
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [NODE("Conv", ["x", "w"], ["t0"]), NODE("BatchNormalization", ["t0", "s", "h", "h", "s"], ["t"])],
        "then", [], [value("t", TensorProto.FLOAT, [1, 4, 6, 5])],
    )  # fmt: skip
    other = helper.make_graph([NODE("Conv", ["x", "w"], ["o"])], "else", [], [value("o", TensorProto.FLOAT, [1, 4, 6, 5])])
    loop = helper.make_graph(
        [NODE("Add", ["held", "s1"], ["next"]), NODE("Identity", ["going"], ["on"])],
        "loop",
        [
            value("i", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("held", TensorProto.FLOAT, [1, 4, 6, 5]),
        ],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1, 4, 6, 5])],
    )
    nodes = [
        NODE("ReduceMax", ["x"], ["top"], keepdims=0),
        NODE("Greater", ["top", "s1"], ["q"]),
        NODE("If", ["q"], ["b"], then_branch=then, else_branch=other),
        NODE("Loop", ["three", "", "b"], ["z"], body=loop),
        NODE("Reshape", ["z", "flat"], ["y"]),
    ]
    constants = {"w": normal(4, 4, 1, 1), "s": abs(normal(4)) + 0.5, "h": abs(normal(4)) + 0.5}
    constants |= {"s1": np.float32(0.5).reshape(()), "three": np.array(3, np.int64), "flat": np.array([4, 30], np.int64)}
    return model_of(nodes, {"x": (1, 4, 6, 5)}, ["y"], constants)


def _functions() -> ModelProto:
    """A function that calls another: a conv and a norm, one inside the other."""
    own, opset = "own", [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = helper.make_function(own, "Inner", ["a", "w"], ["b"], [NODE("Conv", ["a", "w"], ["b"])], opset)
    body = [
        NODE("Inner", ["a", "w"], ["c"], domain=own),
        NODE("BatchNormalization", ["c", "s", "h", "h", "s"], ["b"]),
    ]
    outer = helper.make_function(own, "Outer", ["a", "w", "s", "h"], ["b"], body, opset)
    nodes = [NODE("Outer", ["x", "w", "s", "h"], ["b"], domain=own), NODE("Relu", ["b"], ["y"])]
    constants = {"w": normal(4, 4, 1, 1), "s": abs(normal(4)) + 0.5, "h": abs(normal(4)) + 0.5}
    model = model_of(nodes, {"x": (1, 4, 6, 5)}, ["y"], constants)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 5]))
    model.functions.extend([inner, outer])
    model.opset_import.append(opset[1])
    return model


def _quantized() -> ModelProto:
    """A conv between QuantizeLinear and DequantizeLinear, its weights stored as bytes."""
    nodes = [
        NODE("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        NODE("DequantizeLinear", ["q", "step", "zero"], ["a"]),
        NODE("DequantizeLinear", ["w", "steps", "zeros"], ["v"], axis=0),
        NODE("Conv", ["a", "v"], ["b"]),
        NODE("LeakyRelu", ["b"], ["c"], alpha=0.1),
        NODE("ConvTranspose", ["c", "u"], ["d"], strides=[2, 2]),
        NODE("Resize", ["d", "", "scales"], ["y"], mode="nearest"),
    ]
    constants = {"step": np.float32(0.1).reshape(()), "zero": np.array(3, np.uint8), "zeros": np.zeros(4, np.int8)}
    constants |= {"w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4, 1, 1), "steps": abs(normal(4)), "u": normal(4, 2, 2, 2)}
    constants |= {"scales": np.array([1, 1, 2, 2], np.float32)}
    return model_of(nodes, {"x": (1, 4, 5, 3)}, ["y"], constants)


def _constants() -> ModelProto:
    """Constant nodes of all kinds, several outputs, unnamed ones, and an old opset whose attributes were inputs later."""
    nodes = [
        NODE("Constant", [], ["w"], value=numpy_helper.from_array(normal(4, 3, 1, 1))),
        NODE("Constant", [], ["k"], value=numpy_helper.from_array(np.array([2], np.int64))),
        NODE("Conv", ["x", "w"], ["a"], auto_pad="SAME_UPPER", kernel_shape=[1, 1]),
        NODE("Split", ["a"], ["l", "r"], axis=1, split=[2, 2]),
        NODE("Pad", ["l"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        NODE("Squeeze", ["k"], ["k0"], axes=[0]),
        NODE("Cast", ["k0"], ["k1"], to=TensorProto.FLOAT),
        NODE("Dropout", ["p"], ["d", ""], ratio=0.5),
        NODE("Mul", ["d", "k1"], ["m"]),
        NODE("Upsample", ["m", "scales"], ["u"], mode="nearest"),
        NODE("ReduceSum", ["u"], ["y"], axes=[2, 3], keepdims=1),
        NODE("TopK", ["r"], ["z", "places"], axis=1, k=2),
    ]
    return model_of(nodes, {"x": (1, 3, 4, 5)}, ["y", "z"], {"scales": np.float32([1, 1, 2, 2])}, opset=9)


SEEDS: Mapping[str, Callable[[], ModelProto]] = {
    "branches": cache(_branches),
    "pooled branch": cache(_pooled_branch),
    "halves": cache(_halves),
    "classifier": cache(_classifier),
    "sizes": cache(_sizes),
    "bodies": cache(_bodies),
    "functions": cache(_functions),
    "quantized": cache(_quantized),
    "constants": cache(_constants),
}
"""Each is made once; who changes one copies it."""
