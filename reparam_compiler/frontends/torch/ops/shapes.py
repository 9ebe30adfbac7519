"""Ops that move elements: concat, reshape, permute, split, slice and their like."""

from collections.abc import Callable
from typing import Any

from reparam_compiler.frontends.torch.call import Call, Read, Reader, Unsupported
from reparam_compiler.ir import ops


def _concat(call: Call) -> Read:
    values = call.raw(0, "tensors")
    if not isinstance(values, list | tuple):
        raise Unsupported("concat of a computed list")
    axis = call.constant(1, "dim", 0)
    if axis < 0:
        known = call.type_of(values[0])
        if known is None:
            raise Unsupported("concat along an axis counted from the end, of values whose shape is not known")
        axis += len(known.shape)
    return ops.Concat(axis), tuple(call.operand_of(value, "const") for value in values)


def _stack(call: Call) -> Read:
    values = call.raw(0, "tensors")
    if not isinstance(values, list | tuple):
        raise Unsupported("stack of a computed list")
    return ops.Stack(_new_axis(call, call.constant(1, "dim", 0), values[0])), tuple(call.operand_of(v, "const") for v in values)


def _unsqueeze(call: Call) -> Read:
    """A stack of one, which needs to know no sizes."""
    return ops.Stack(_new_axis(call, call.constant(1, "dim"), call.first)), (call.x,)


def _new_axis(call: Call, axis: int, value: Any) -> int:
    if axis >= 0:
        return axis
    known = call.type_of(value)
    if known is None:
        raise Unsupported(f"{call.name} along an axis counted from the end, of values whose shape is not known")
    return axis + len(known.shape) + 1


def _squeeze(call: Call) -> Read:
    """Sizes before the axes that go are kept as they are, and one after them is what is left."""
    axes = call.sizes(1, "dim")
    if not axes or any(not isinstance(axis, int) for axis in axes):
        raise Unsupported("squeeze of whatever axes are 1 long")
    gone = {call.axis(axis) for axis in axes}
    if 0 in gone or any(call.shape[axis] != 1 for axis in gone):
        raise Unsupported("squeeze of an axis that is not known to be 1 long in every run")
    first, after = min(gone), call.rank - min(gone) - len(gone)
    if after > 1:
        raise Unsupported("squeeze before more than one axis")
    return ops.Reshape((0,) * first + (-1,) * after), (call.x,)


def _flatten(call: Call) -> Read:
    start, end = call.constant(1, "start_dim", 0), call.constant(2, "end_dim", -1)
    known = call.type_of(call.first)
    if known is not None:
        start, end = (a if a >= 0 else a + len(known.shape) for a in (start, end))
    if start < 0:
        raise Unsupported("flatten from an axis counted from the end")
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
            raise Unsupported("reshape to a computed shape")
    if 0 in call.sizes(1, "shape"):
        raise Unsupported("reshape to nothing")
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
    key = "split_sizes" if call.name == "split_with_sizes" else "split_size"
    pieces, axis = call.constant(1, key), call.axis(call.constant(2, "dim", 0))
    whole = call.shape[axis]
    if isinstance(pieces, int):
        if not isinstance(whole, int):
            raise Unsupported("split of a size that is not known")
        pieces = [min(pieces, whole - at) for at in range(0, whole, pieces)]
    return ops.Split(axis, tuple(pieces)), (call.x,)


def _chunk(call: Call) -> Read:
    count, axis = call.constant(1, "chunks"), call.axis(call.constant(2, "dim", 0))
    whole = call.shape[axis]
    if not isinstance(whole, int):
        raise Unsupported("chunks of a size that is not known")
    piece = -(-whole // count)
    return ops.Split(axis, tuple(min(piece, whole - at) for at in range(0, whole, piece))), (call.x,)


def _getitem(call: Call) -> Read:
    """One slice is a slice; several are a crop, where they count from both ends and leave nothing out."""
    index = call.raw(1, "index")
    if call.type_of(call.first) is None and isinstance(index, int):
        return ops.TupleGet(index), (call.x,)
    if call.type_of(call.first) is None and isinstance(index, slice):
        raise Unsupported("a slice of what may be several tensors")
    cuts = index_cuts(index, lambda: call.rank)
    if len(cuts) == 1:
        return _one_slice(call, *cuts[0])
    padding = [(0, 0)] * call.rank
    for axis, start, stop, step in cuts:
        if step != 1 or not all(isinstance(n, int) for n in (start, stop or 0)) or start < 0 or (stop or -1) >= 0:
            raise Unsupported("slices that are not one crop")
        padding[axis] = (-start, stop or 0)
    return ops.Pad(tuple(padding)), (call.x,)


def index_cuts(index: Any, rank: Callable[[], int]) -> list[tuple[int, Any, Any, Any]]:
    """(axis, start, stop, step) for each slice of an index that is not from end to end; raises Unsupported for others."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is not Ellipsis and not isinstance(part, slice) for part in parts):
        raise Unsupported("an index that is not slices")
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (rank() - len(parts) + 1)
    cuts = ((axis, part.start or 0, part.stop, part.step or 1) for axis, part in enumerate(parts))
    found = [cut for cut in cuts if cut[1:] != (0, None, 1)]
    if not found:
        raise Unsupported("an index that takes everything")
    return found


def _narrow(call: Call) -> Read:
    start, length = call.constant(2, "start"), call.constant(3, "length")
    if start < 0:
        raise Unsupported("narrow from a place counted from the end")
    return _one_slice(call, call.axis(call.constant(1, "dim")), start, start + length, 1)


def _slice(call: Call) -> Read:
    axis = call.axis(call.constant(1, "dim", 0))
    return _one_slice(
        call, axis, *(call.constant(i, key, d) for i, key, d in ((2, "start", 0), (3, "end", None), (4, "step", 1)))
    )


def _one_slice(call: Call, axis: int, start: Any, stop: Any, step: Any) -> Read:
    start, step = start or 0, step or 1
    if not all(isinstance(n, int | None) for n in (start, stop, step)):
        raise Unsupported("a slice with computed bounds")
    whole = call.shape[axis] if call.type_of(call.first) is not None else None
    if axis != 1:  # the size may be that of one example: what counts from an end is right for every size
        return ops.Slice(axis, start, None if stop is not None and stop >= 2**62 else stop, step), (call.x,)
    if start < 0 or (stop is not None and stop < 0):
        if not isinstance(whole, int):
            raise Unsupported("a slice counted from an end that is not known")
        start, stop = (n + whole if n is not None and n < 0 else n for n in (start, stop))
    if stop is not None and stop >= (whole if isinstance(whole, int) else 2**62):
        stop = None
    return ops.Slice(axis, start, stop, step), (call.x,)


SHAPES: dict[str, Reader] = {
    "cat": _concat,
    "stack": _stack,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "chunk": _chunk,
    "getitem": _getitem,
    "slice": _slice,
    "narrow": _narrow,
}
"""For each function its reader."""
