"""ScatterND whose indices are a box: how exporters write `y[:, :, 0:1, :] = v`.

    y[index[i, j, …]] = v[i, j, …]   with   index[i, j, …] = (start_0 + i, start_1 + j, …)

is an assignment to the part of y from `start` on, as long as the indices reach. The indices may be computed from sizes.
"""

from collections.abc import Sequence

import numpy as np

from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported
from reparam_compiler.frontends.onnx.ops.registry import reads
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Operand, Param

LARGEST_VALUE = 2**20
"""Elements of an assigned constant that is looked at."""

Range = tuple[int, int, int]
"""The start and the stop of what is written along an axis, and the size of that axis."""


@reads("ScatterND")
def scatter(call: Call) -> Read:
    """ScatterND that overwrites one box."""
    if call.attribute("reduction", "none") != "none":
        raise Unsupported("a scatter that combines values")
    boxes = [_box(index, shape) for index, shape in zip(call.samples(1), call.tried_shapes(0), strict=True)]
    if len({len(box) for box in boxes}) != 1:
        raise Unsupported("a scatter to what depends on sizes")
    given = call.shapes.samples(call.node.input[2])
    shapes = call.shapes.shapes(call.node.input[2]) if given is None else [sample.shape for sample in given]
    for box, shape, whole in zip(boxes, shapes or (), call.tried_shapes(0), strict=False):
        if shape != (*(stop - start for start, stop, _ in box), *whole[len(box) :]):
            raise Unsupported("a scatter of fewer values than places")
    cuts = []
    for axis, ranges in enumerate(zip(*boxes, strict=True)):
        if all(start == 0 and stop == size for start, stop, size in ranges):
            continue
        start, stop = _start(ranges), _stop(ranges)
        cuts.append((axis, start, stop))
    return ops.SliceUpdate(tuple(cuts)), (call.x, _value(call))


def _box(index: np.ndarray, shape: tuple[int, ...]) -> list[Range]:
    """What the indices write to along each axis that they name; raises Unsupported where that is no box."""
    count = index.shape[-1] if index.ndim else 0
    if not count or index.ndim != count + 1 or not index.size:
        raise Unsupported("a scatter to scattered places")
    ranges = []
    for axis in range(count):
        places = index[..., axis]
        places = np.where(places < 0, places + shape[axis], places)
        start, extent = int(places.flat[0]), places.shape[axis]
        along = np.arange(start, start + extent).reshape([-1 if k == axis else 1 for k in range(count)])
        if not (places == along).all():
            raise Unsupported("a scatter to scattered places")
        ranges.append((start, start + extent, shape[axis]))
    return ranges


def written_box(op: ops.SliceUpdate, shape: Sequence[int]) -> list[range]:
    """The places along each axis of a value of this shape that an assignment writes to.

    >>> written_box(ops.SliceUpdate(((1, -2, None),)), (2, 5))
    [range(0, 2), range(3, 5)]
    """
    cuts = {axis: slice(start, stop) for axis, start, stop in op.cuts}
    return [range(*cuts.get(axis, slice(None)).indices(size)) for axis, size in enumerate(shape)]


def _start(ranges: Sequence[Range]) -> int:
    """Counted from the end that is nearer, if that is the same in all sizes."""
    start, _, size = ranges[0]
    front, back = {r[0] for r in ranges}, {r[0] - r[2] for r in ranges}
    if len(front) == 1 and (len(back) > 1 or start <= size - start):
        return start
    if len(back) > 1:
        raise Unsupported("a scatter to a place that depends on sizes")
    return start - size


def _stop(ranges: Sequence[Range]) -> int | None:
    _, stop, size = ranges[0]
    front, back = {r[1] for r in ranges}, {r[1] - r[2] for r in ranges}
    if back == {0}:
        return None
    if len(front) == 1 and (len(back) > 1 or stop <= size - stop):
        return stop
    if len(back) > 1:
        raise Unsupported("a scatter to a place that depends on sizes")
    return stop - size


def _value(call: Call) -> Operand:
    """What is assigned; of a constant that is the same all along an axis, whatever its size, one element along it."""
    samples = call.shapes.samples(call.node.input[2])
    dtype = call.dtype(2)
    if samples is None or dtype is None or max(sample.size for sample in samples) > LARGEST_VALUE:
        return call.operand(2)
    short = list(samples)
    for axis in range(samples[0].ndim):
        if all((sample == sample.take([0], axis)).all() for sample in samples):
            short = [sample.take([0], axis) for sample in short]
    if any(not np.array_equal(short[0], other) for other in short[1:]):
        return call.operand(2)
    return Param.of(short[0], role="const", dtype=dtype)
