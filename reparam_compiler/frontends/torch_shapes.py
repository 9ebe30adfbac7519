"""Ops that move elements: concat, reshape, permute, split, slice and their like."""

from typing import Any

from reparam_compiler.frontends.torch_call import Call, Read, Reader, Unread
from reparam_compiler.ir import ops


def _concat(call: Call) -> Read:
    values = call.raw(0, "tensors")
    if not isinstance(values, list | tuple):
        raise Unread("concat of a computed list")
    axis = call.constant(1, "dim", 0)
    if axis < 0:
        known = call.type_of(values[0])
        if known is None:
            raise Unread("concat along an axis counted from the end, of values whose shape is not known")
        axis += len(known.shape)
    return ops.Concat(axis), tuple(call.operand_of(value, "const") for value in values)


def _flatten(call: Call) -> Read:
    start, end = call.constant(1, "start_dim", 0), call.constant(2, "end_dim", -1)
    known = call.type_of(call.first)
    if known is not None:
        start, end = (a if a >= 0 else a + len(known.shape) for a in (start, end))
    if start < 0:
        raise Unread("flatten from an axis counted from the end")
    return ops.Flatten(start, end), (call.x,)


def _reshape(call: Call) -> Read:
    """A size that is computed is read where it is the size of the same axis of x: `x.view(x.size(0), -1)`."""
    shape: list[int] = []
    for place, size in enumerate(call.sizes(1, "shape")):
        if isinstance(size, int):
            shape.append(size)
        elif call.size_of(size) == (call.first, place):
            shape.append(0)
        else:
            raise Unread("reshape to a computed shape")
    if 0 in call.sizes(1, "shape"):
        raise Unread("reshape to nothing")
    if shape == [0, -1]:
        return ops.Flatten(1, call.rank - 1 if call.type_of(call.first) else -1), (call.x,)
    return ops.Reshape(tuple(shape)), (call.x,)


def _permute(call: Call) -> Read:
    return ops.Permute(tuple(call.axis(a) for a in call.sizes(1, "dims"))), (call.x,)


def _transpose(call: Call) -> Read:
    axes = list(range(call.rank))
    a, b = call.axis(call.constant(1, "dim0")), call.axis(call.constant(2, "dim1"))
    axes[a], axes[b] = axes[b], axes[a]
    return ops.Permute(tuple(axes)), (call.x,)


def _split(call: Call) -> Read:
    pieces, axis = call.constant(1, "split_size"), call.axis(call.constant(2, "dim", 0))
    whole = call.shape[axis]
    if isinstance(pieces, int):
        if not isinstance(whole, int):
            raise Unread("split of a size that is not known")
        pieces = [min(pieces, whole - at) for at in range(0, whole, pieces)]
    return ops.Split(axis, tuple(pieces)), (call.x,)


def _chunk(call: Call) -> Read:
    count, axis = call.constant(1, "chunks"), call.axis(call.constant(2, "dim", 0))
    whole = call.shape[axis]
    if not isinstance(whole, int):
        raise Unread("chunks of a size that is not known")
    piece = -(-whole // count)
    return ops.Split(axis, tuple(min(piece, whole - at) for at in range(0, whole, piece))), (call.x,)


def _getitem(call: Call) -> Read:
    index = call.raw(1, "index")
    if call.type_of(call.first) is None and isinstance(index, int):
        return ops.Item(index), (call.x,)
    parts = index if isinstance(index, tuple) else (index,)
    cuts = [(axis, part) for axis, part in enumerate(parts) if part != slice(None)]
    if len(cuts) != 1 or not isinstance(cuts[0][1], slice) or Ellipsis in parts:
        raise Unread("an index that is not one slice")
    axis, cut = cuts[0]
    return _one_slice(call, axis, cut.start, cut.stop, cut.step)


def _slice(call: Call) -> Read:
    axis = call.axis(call.constant(1, "dim", 0))
    return _one_slice(
        call, axis, *(call.constant(i, key, d) for i, key, d in ((2, "start", 0), (3, "end", None), (4, "step", 1)))
    )


def _one_slice(call: Call, axis: int, start: Any, stop: Any, step: Any) -> Read:
    start, step = start or 0, step or 1
    if not all(isinstance(n, int | None) for n in (start, stop, step)):
        raise Unread("a slice with computed bounds")
    whole = call.shape[axis] if call.type_of(call.first) is not None else None
    if start < 0 or (stop is not None and stop < 0):
        if not isinstance(whole, int):
            raise Unread("a slice counted from an end that is not known")
        start, stop = (n + whole if n is not None and n < 0 else n for n in (start, stop))
    if stop is not None and stop >= (whole if isinstance(whole, int) else 2**62):
        stop = None
    return ops.Slice(axis, start, stop, step), (call.x,)


SHAPES: dict[str, Reader] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "chunk": _chunk,
    "getitem": _getitem,
    "slice": _slice,
}
"""For each function its reader."""
