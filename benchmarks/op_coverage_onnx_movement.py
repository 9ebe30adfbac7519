"""One-op ONNX models: what moves, picks, places and makes elements."""

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, numpy_helper

from benchmarks.op_models import OneOp
from benchmarks.op_one_onnx import Constant, between, choices, held, normal, one, scalar


def cases() -> Iterator[OneOp]:
    yield from shaped()
    yield from cut()
    yield from padded()
    yield from gathered()
    yield from scattered()
    yield from made()
    yield from found()


def shaped() -> Iterator[OneOp]:
    x = normal(2, 3, 4)
    yield one("Reshape", x, held(0, -1), opset=13)
    yield one("Reshape", x, held(4, 3, 2), allowzero=1, opset=14)
    yield one("Reshape", x, opset=4, shape=[3, 8])
    yield one("Flatten", x, axis=0)
    yield one("Flatten", x, axis=-1, opset=13, note="negative")
    yield one("Transpose", x, perm=[2, 0, 1])
    yield one("Transpose", x, note="reversed")
    yield one("Squeeze", normal(1, 3, 1, 4), held(0, -2))
    yield one("Squeeze", normal(1, 3, 1, 4), opset=11, axes=[2])
    yield one("Squeeze", normal(1, 3, 1, 4), note="all")
    yield one("Unsqueeze", x, held(0, -1))
    yield one("Unsqueeze", x, opset=11, axes=[1, 3])
    yield one("Expand", normal(3, 1), held(2, 1, 4))
    yield one("Expand", x, held(1, 1), note="fewer axes")
    yield one("Tile", x, held(1, 2, 3))
    yield one("DepthToSpace", normal(1, 12, 3, 4), blocksize=2)
    yield one("DepthToSpace", normal(1, 12, 3, 4), blocksize=2, mode="CRD", note="columns first")
    yield one("SpaceToDepth", normal(1, 3, 4, 6), blocksize=2)
    yield one("Shape", x, start=1, end=-1)
    yield one("Shape", x, opset=13)
    yield one("Size", x)


def cut() -> Iterator[OneOp]:
    x = normal(4, 5, 6)
    yield one("Slice", x, held(1, 0), held(3, 4), held(0, 2), held(1, 2))
    yield one("Slice", x, held(-1, 5), held(-100, 0), held(1, 2), held(-1, -2), note="backwards")
    yield one("Slice", x, held(1, -3), held(1000, 9223372036854775807), note="no axes")
    yield one("Slice", x, opset=9, starts=[1, 0], ends=[-1, 3], axes=[0, 2])
    yield one("Slice", x, opset=1, starts=[1, 2], ends=[3, 100])
    yield one("Slice", x, held(1, dtype=np.int32), held(4, dtype=np.int32), held(1, dtype=np.int32), opset=10)
    yield one("Split", x, held(2, 3), axis=1, outputs=2)
    yield one("Split", x, axis=2, num_outputs=3, outputs=3, note="evenly")
    yield one("Split", x, axis=1, num_outputs=2, outputs=2, note="a smaller last")
    yield one("Split", x, opset=11, axis=-1, split=[1, 5], outputs=2)
    yield one("Split", x, opset=2, axis=0, outputs=2)
    yield one("Concat", x, normal(4, 2, 6, seed=1), axis=1)
    yield one("Concat", x, Constant(normal(4, 5, 1, seed=1)), x, axis=-1, opset=11)
    yield one("Concat", between(0, 9, 3, dtype=np.int64), held(1, 2), axis=0, note="int64")
    yield one("CenterCropPad", x, held(2, 9), axes=[0, 2], opset=18)
    yield one("Trilu", x)
    yield one("Trilu", x, scalar(-1, np.int64), upper=0, note="lower")
    yield one("Trilu", between(0, 9, 4, 4, dtype=np.int64), scalar(1, np.int64), note="int64")
    yield one("ReverseSequence", normal(4, 3, 2), held(4, 2, 1), batch_axis=1, time_axis=0)
    yield one("ReverseSequence", normal(3, 4, 2), held(1, 2, 4), batch_axis=0, time_axis=1, note="batch first")


def padded() -> Iterator[OneOp]:
    x = normal(1, 3, 5, 4)
    pads = (0, 0, 1, 2, 0, 0, 2, 1)
    for mode in ("constant", "reflect", "edge"):
        yield one("Pad", x, held(*pads), mode=mode, note=mode)
        yield one("Pad", x, opset=2, mode=mode, pads=list(pads), note=mode)
    yield one("Pad", x, held(*pads), mode="wrap", opset=19, note="wrap")
    yield one("Pad", x, held(*pads), scalar(1.5), note="a value")
    yield one("Pad", x, held(1, 2, 0, 1), None, held(2, -1), note="axes")
    yield one("Pad", x, held(0, 0, -1, 1, 0, 0, 0, -2), note="negative")
    yield one("Pad", x, held(0, 0, -1, 1, 0, 0, 2, -2), mode="edge", note="negative, edge")
    yield one("Pad", between(0, 9, 2, 3, dtype=np.int64), held(1, 0, 0, 2), scalar(7, np.int64), note="int64")
    yield one("Pad", normal(6), held(2, 3), mode="reflect", note="one axis")


def gathered() -> Iterator[OneOp]:
    x = normal(4, 5, 6)
    yield one("Gather", x, between(-4, 4, 2, 3, dtype=np.int64))
    yield one("Gather", x, held(0, -1, 2, dtype=np.int32), axis=-1, opset=11)
    yield one("Gather", x, scalar(-1, np.int64), axis=1, note="one index")
    yield one("Gather", Constant(x), between(0, 4, 3, dtype=np.int64), note="a table")
    yield one("GatherElements", x, between(-5, 5, 4, 2, 6, dtype=np.int64), axis=1)
    yield one("GatherElements", x, between(0, 4, 2, 3, 6, dtype=np.int32), axis=0, opset=11)
    yield one("GatherND", x, np.array([[0, 1], [-1, 2], [3, -5]], np.int64))
    yield one("GatherND", x, np.array([[[0, 1, 2]], [[3, 4, 5]]], np.int64), opset=11)
    yield one("GatherND", x, between(0, 5, 4, 3, 1, dtype=np.int64), batch_dims=1, note="batch")
    yield one("Compress", x, held(1, 0, 1, 0, dtype=bool), axis=0)
    yield one("Compress", x, held(0, 1, 1, dtype=bool), note="flat")
    yield one("OneHot", between(-3, 5, 2, 3, dtype=np.int64), scalar(5, np.int64), held(0, 1, dtype=np.float32))
    yield one("OneHot", between(0, 5, 4, dtype=np.int64), scalar(5, np.int64), held(2, 7), axis=0, note="int64")
    yield one("OneHot", between(0, 5, 4, dtype=np.int32), scalar(5, np.int32), held(2, 7, dtype=np.float32), note="int32")


def scattered() -> Iterator[OneOp]:
    x, rows = normal(3, 4, 5), np.array([[0, 3], [2, 1], [3, 0]], np.int64)[:, :, None].repeat(5, 2)
    updates = normal(3, 2, 5, seed=1)
    yield one("ScatterElements", x, rows, updates, axis=1, opset=11)
    yield one("ScatterElements", x, rows - 4, updates, axis=1, note="negative")
    twice = np.array([[0, 0], [2, 2], [1, 1]], np.int64)[:, :, None].repeat(5, 2)
    for reduction in ("add", "mul", "max", "min"):
        yield one("ScatterElements", x, twice, updates, axis=1, reduction=reduction, note=reduction)
    yield one("ScatterElements", x, rows[:2, :, :3], updates[:2, :, :3], axis=1, note="part of the axes")
    yield one("Scatter", x, rows, updates, axis=1, opset=9)
    places, blocks = np.array([[0, 1], [2, -1]], np.int64), normal(2, 5, seed=2)
    yield one("ScatterND", x, places, blocks, opset=11)
    same = np.array([[0, 1], [0, 1]], np.int64)
    for reduction in ("add", "mul", "max", "min"):
        yield one("ScatterND", x, same, blocks, reduction=reduction, note=reduction)
    yield one("ScatterND", x, np.array([[1]], np.int64), normal(1, 4, 5, seed=3), note="rows")
    yield one("TensorScatter", normal(2, 1, 6, 3), normal(2, 1, 2, 3, seed=1), np.array([1, 3], np.int64), opset=24)


def made() -> Iterator[OneOp]:
    value = numpy_helper.from_array(np.array([2.5], np.float32))
    yield one("ConstantOfShape", held(2, 3), value=value)
    yield one("ConstantOfShape", held(2, 3), note="zeros")
    yield one("EyeLike", normal(3, 4), k=1)
    yield one("EyeLike", normal(3, 4), dtype=TensorProto.INT64, note="int64")
    yield one("Range", scalar(1), scalar(7), scalar(1.5))
    yield one("Range", scalar(9, np.int64), scalar(1, np.int64), scalar(-3, np.int64), note="int64")
    yield one("Constant", value=value)
    yield one("Constant", value_ints=[1, 2, 3], note="ints")
    for op in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        yield one(op, scalar(10, np.int64), opset=17)


def found() -> Iterator[OneOp]:
    """Ops whose outputs have sizes that depend on values, and a few that depend on nothing but luck."""
    yield one("NonZero", choices(3, 4))
    yield one("Unique", between(0, 5, 9, dtype=np.int64))
    boxes, scores = between(0, 1, 1, 6, 4), between(0, 1, 1, 2, 6)
    yield one("NonMaxSuppression", boxes, scores, scalar(3, np.int64), scalar(0.5), scalar(0.1), opset=11)
