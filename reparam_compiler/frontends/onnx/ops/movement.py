"""Ops that move elements: joins, shapes, slices and paddings."""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported
from reparam_compiler.frontends.onnx.ops.registry import reads
from reparam_compiler.frontends.onnx.tensors import decimal
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim
from reparam_compiler.vocabulary.padding import FROM_ONNX_PAD


@reads("Pad")
def pad(call: Call) -> Read:
    """By constant amounts; those of batch and channels by zeros alone."""
    pads = call.values(1, "pads")
    if pads is None:
        raise Unsupported("Pad without pads")
    if (mode := FROM_ONNX_PAD.get(stated := call.attribute("mode", "constant"))) is None:
        raise Unsupported(f"padding by {stated}")
    value = call.attribute("value", None)
    value = float(np.asarray(call.constant(2)).reshape(())) if value is None and call.has(2) else value or 0.0
    axes = call.values(3, "axes")
    amounts = [(0, 0)] * call.rank
    half = len(pads) // 2
    for axis, low, high in zip(range(call.rank) if axes is None else axes, pads[:half], pads[half:], strict=True):
        amounts[call.axis(axis)] = (low, high)
    if mode != "zeros" and (any(map(any, amounts[:2])) or any(n < 0 for pair in amounts for n in pair)):
        raise Unsupported(f"{mode} padding of batch or channels, or negative")
    return ops.Pad(tuple(amounts), mode, decimal(value) if mode == "zeros" else 0.0), (call.x,)


@reads("Concat")
def concat(call: Call) -> Read:
    """Along one axis."""
    operands = tuple(call.operand(index) for index in range(len(call.node.input)))
    return ops.Concat(call.axis(call.attribute("axis", 0))), operands


@reads("Flatten")
def flatten(call: Call) -> Read:
    """To rows of all axes from the given one on."""
    start = call.attribute("axis", 1)
    start = start if start >= 0 else start + call.rank
    if start == 1 and call.rank > 1:
        return ops.Flatten(1, call.rank - 1), (call.x,)
    if start == 0:
        return ops.Reshape((1, -1)), (call.x,)
    rows = [size for size in call.shape[:start] if isinstance(size, int)]
    if len(rows) < start:
        raise Unsupported("Flatten to a computed shape")
    return ops.Reshape((prod(rows), -1)), (call.x,)


@reads("Reshape")
def reshape(call: Call) -> Read:
    """A computed size is read where it is that of the same axis of x; what leaves only the first axis is a flatten."""
    shape = _shape(call)
    if 0 in shape and call.attribute("allowzero", 0):
        raise Unsupported("Reshape to nothing")
    if shape.count(-1) > 1:
        raise Unsupported("Reshape to a shape that is not known")
    if len(shape) == 2 and _makes_rows(call, shape):
        return ops.Flatten(1, call.rank - 1), (call.x,)
    return ops.Reshape(tuple(shape)), (call.x,)


def _shape(call: Call) -> list[int]:
    """The shape that is asked for: numbers, 0 for the size of the same axis, and -1 for what depends on open sizes."""
    try:
        return [size if isinstance(size, int) else call.kept_size(size, place) for place, size in enumerate(call.sizes(1))]
    except Unsupported:
        asked, whole = call.samples(1), call.tried_shapes(0)
        if len({len(sizes) for sizes in asked}) != 1:
            raise
    shape = []
    for place, found in enumerate(zip(*(map(int, sizes) for sizes in asked), strict=True)):
        kept = all(len(own) > place and own[place] == size for own, size in zip(whole, found, strict=True))
        shape.append(0 if kept else found[0] if len(set(found)) == 1 else -1)
    return shape


def _makes_rows(call: Call, shape: Sequence[int]) -> bool:
    known = call.type(0)
    if known is None or len(known.shape) < 2:
        return False
    first: Dim = known.shape[0]
    rest = [size for size in known.shape[1:] if isinstance(size, int)]
    columns = prod(rest) if len(rest) == len(known.shape) - 1 else None
    keeps_batch = shape[0] == 0 or shape[0] == first
    return (keeps_batch and shape[1] in (-1, columns)) or (shape[0] == -1 and shape[1] == columns and columns != 0)


@reads("Expand")
def expand(call: Call) -> Read:
    """Expand to the shape that x has."""
    for own, asked in zip(call.tried_shapes(0), call.samples(1), strict=True):
        if len(asked) > len(own) or any(n not in (1, size) for n, size in zip(reversed(asked), reversed(own), strict=False)):
            raise Unsupported("an expansion")
    return ops.Identity(), (call.x,)


@reads("Squeeze")
def squeeze(call: Call) -> Read:
    """Without axes of size 1."""
    axes = call.values(1, "axes")
    if axes is None:
        if any(not isinstance(size, int) for size in call.shape):
            raise Unsupported("Squeeze of sizes that are not known")
        gone = {axis for axis, size in enumerate(call.shape) if size == 1}
    else:
        gone = {call.axis(axis) for axis in axes}
    return _regrouped(call, [axis for axis in range(call.rank) if axis not in gone])


@reads("Unsqueeze")
def unsqueeze(call: Call) -> Read:
    """With new axes of size 1."""
    axes = call.values(1, "axes") or ()
    rank = call.rank + len(axes)
    new = {axis if axis >= 0 else axis + rank for axis in axes}
    if len(new) < len(axes) or not new <= set(range(rank)):
        raise Unsupported(f"an Unsqueeze to the axes {list(axes)} of {rank}")
    old = iter(range(call.rank))
    return _regrouped(call, [None if axis in new else next(old) for axis in range(rank)])


def _regrouped(call: Call, axes: Sequence[int | None]) -> Read:
    """To the sizes of these axes of x, None for a new one of size 1: by 0 in the same place, else by number, or one -1."""
    shape: list[int] = []
    for place, axis in enumerate(axes):
        size = 1 if axis is None else call.shape[axis]
        shape.append(0 if axis == place else size if isinstance(size, int) else -1)
    if shape.count(-1) > 1:
        raise Unsupported("sizes that are not known")
    return ops.Reshape(tuple(shape)), (call.x,)


@reads("Transpose")
def transpose(call: Call) -> Read:
    """Axes in another order; reversed where none is stated."""
    return ops.Permute(tuple(call.attribute("perm", None) or reversed(range(call.rank)))), (call.x,)


@reads("Slice")
def slices(call: Call) -> Read:
    """Along one axis a slice; along several, without steps, a crop."""
    cuts = list(_cuts(call))
    sizes = call.shape
    if len(cuts) < 2 and all(cut.stop is None or cut.stop >= 0 for cut in cuts):
        return (cuts[0] if cuts else ops.Identity()), (call.x,)
    crop = [(0, 0)] * call.rank
    for cut in cuts:
        size = sizes[cut.axis]
        high = 0 if cut.stop is None else cut.stop - size if isinstance(size, int) else cut.stop
        if cut.step > 1 or high > 0:
            raise Unsupported("a slice along several axes, with steps or to a place that is not known from the end")
        if isinstance(size, int) and size - cut.start + high <= 0:
            raise Unsupported("a slice that leaves nothing")
        crop[cut.axis] = (-cut.start, high)
    return ops.Pad(tuple(crop)), (call.x,)


def _cuts(call: Call) -> Iterator[ops.Slice]:
    """The slice along each axis that is cut: bounds counted from the front, and None for a stop at the end."""
    starts, stops = call.values(1, "starts"), call.values(2, "ends")
    if starts is None or stops is None:
        raise Unsupported("a slice without bounds")
    axes = call.values(3, "axes") or tuple(range(len(starts)))
    steps = call.values(4, "steps") or (1,) * len(starts)
    for start, stop, axis, step in zip(starts, stops, map(call.axis, axes), steps, strict=True):
        if step < 1:
            raise Unsupported("a slice that runs backwards")
        size = call.shape[axis]
        if isinstance(size, int):
            start, stop = (min(max(n + size if n < 0 else n, 0), size) for n in (start, stop))
        elif start < 0:
            raise Unsupported("a slice counted from an end that is not known")
        to_end = stop == size or stop >= 2**31 - 1
        if start or step > 1 or not to_end:
            yield ops.Slice(axis, start, None if to_end else stop, step)


@reads("Split")
def split(call: Call) -> Read:
    """Along one axis, into pieces as stated or equal ones."""
    axis, count = call.axis(call.attribute("axis", 0)), len(call.node.output)
    sizes = call.values(1, "split")
    if sizes is None:
        whole = call.shape[axis]
        if not isinstance(whole, int):
            raise Unsupported("a split of a size that is not known")
        piece = -(-whole // count)
        sizes = tuple(max(min(piece, whole - at), 0) for at in range(0, piece * count, piece))
    return ops.Split(axis, sizes), (call.x,)
