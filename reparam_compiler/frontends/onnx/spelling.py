"""A node of the model in its own spelling: the numbers that it states, where values have other sizes now.

Pruning changes widths. A node that states one (`Reshape` to 2 400, `Slice` from -8) keeps its op type, its inputs and its
attributes, and gets other numbers where it states a width that changed. A node whose numbers are right stays as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from onnx import NodeProto

from reparam_compiler.core.kernel import Ints
from reparam_compiler.frontends.onnx.call import Call, Unsupported
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Node, TensorType

Numbers = Mapping[str, Ints | int | None]
"""What a node shall state under a key; None takes the attribute away."""
INPUTS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "Reshape": {"shape": (1, 5)},
    "Expand": {"shape": (1, 8)},
    "Slice": {"starts": (1, 10), "ends": (2, 10)},
    "Split": {"split": (1, 13)},
    "Resize": {"sizes": (3, 11)},
}
"""For each op type the keys that are inputs: which one, and from which opset on; before it they are attributes."""
STATED: Mapping[type[ops.Op], frozenset[str]] = {
    ops.Conv: frozenset({"groups"}),
    ops.ConvTranspose: frozenset({"groups"}),
    ops.Reshape: frozenset({"shape"}),
    ops.Expand: frozenset({"shape"}),
    ops.Split: frozenset({"sizes"}),
    ops.Slice: frozenset({"start", "stop"}),
}
"""The fields of an op that a node of the model can state anew."""
_TO_THE_END = 2**31 - 1
"""A stop beyond every size, which fits both int32 and int64."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node as it was and as it shall be.

    native: the model's node. call: the same as its reader sees it.
    x: the type of its first input, as it shall be.
    """

    before: Node
    after: Node
    native: NodeProto
    call: Call
    x: TensorType | None

    def said(self, index: int, key: str) -> Ints | None:
        """The integers that the node states, or None where it computes them or states none."""
        try:
            return self.call.values(index, key)
        except Unsupported:
            return None

    def changed(self, place: int) -> Dim:
        """The size of an axis of the result where it is another one than before; None where it is not."""
        was, now = self.before.type, self.after.type
        if was is None or now is None or not place < len(was.shape) == len(now.shape) or was.shape[place] == now.shape[place]:
            return None
        return now.shape[place]


def is_stated_anew(was: ops.Op, now: ops.Op) -> bool:
    """True where the model's own node can do what it shall do now: only numbers differ that it states."""
    if was == now:
        return True
    if isinstance(was, ops.Opaque) and isinstance(now, ops.Opaque) and (was.target, was.run) != (now.target, now.run):
        return False
    before, after = ops.understood(was), ops.understood(now)
    if type(before) is not type(after):
        return False
    free = STATED.get(type(before), frozenset())
    return all(getattr(before, f.name) == getattr(after, f.name) for f in fields(before) if f.name not in free)


def numbers(place: Place) -> Numbers:
    """What the node must state otherwise; empty where it can stay as it is."""
    rule = _RULES.get(place.native.op_type)
    return {} if rule is None else rule(place)


def _group(place: Place) -> Numbers:
    was, now = place.before.op, place.after.op
    if not isinstance(now, ops.Conv | ops.ConvTranspose) or was == now:
        return {}
    return {"group": now.groups}


def _reshape(place: Place) -> Numbers:
    """Sizes that changed are written as numbers; 0 and -1 come out right by themselves."""
    op = ops.understood(place.after.op)
    if not isinstance(op, ops.Flatten | ops.Reshape):
        return {}
    said = place.said(1, "shape")
    if said is not None and place.after.type is not None:
        return _where_changed(place, said, 0, "shape", free=(0, -1))
    if said is None and _comes_out_right(place, 0):
        return {}
    shape = op.shape if isinstance(op, ops.Reshape) else (0, -1)
    return {} if said == shape else {"shape": shape, "allowzero": None}


def _expand(place: Place) -> Numbers:
    """An Expand by numbers: 1, which keeps a size, where x has it already."""
    op = ops.understood(place.after.op)
    if not isinstance(op, ops.Expand | ops.Identity):
        return {}
    rank = len(place.after.type.shape) if place.after.type is not None else 0
    said = place.said(1, "shape")
    if said is not None and rank:
        return _where_changed(place, said, rank - len(said), "shape", free=(1,))
    if said is None and _comes_out_right(place, rank):
        return {}
    if isinstance(op, ops.Identity):
        return {"shape": (1,) * max(rank, 1)}
    own = (1,) * (len(op.shape) - len(place.x.shape)) + place.x.shape if place.x is not None else ()
    if own and op.shape[0] == -1 and own[0] == 1:  # to an open batch, and no other size is said (`coupling_models`)
        return {}
    return {"shape": tuple(1 if size == -1 or size == have else size for size, have in zip(op.shape, own, strict=True))}


def _where_changed(place: Place, said: Ints, first: int, key: str, *, free: Ints) -> Numbers:
    """The numbers said for the axes from `first` on, with those of sizes that changed; `free` ones state no size."""
    sizes = [place.changed(first + axis) for axis in range(len(said))]
    now = tuple(size if isinstance(size, int) and n not in free else n for n, size in zip(said, sizes, strict=True))
    return {} if now == said else {key: now}


def _comes_out_right(place: Place, rank: int) -> bool:
    """True for a computed shape that is made of numbers and sizes none of which stands where the result's size changed."""
    sizes = place.call.shapes.sizes(place.native.input[1])
    if sizes is None or place.after.type is None:
        return False
    first = max(rank - len(sizes), 0)
    return all(size == -1 or place.changed(first + axis) is None for axis, size in enumerate(sizes))


def _slice(place: Place) -> Numbers:
    """Bounds that read as something else beside the size that the axis has now are written anew."""
    op, starts, ends = place.after.op, place.said(1, "starts"), place.said(2, "ends")
    if not isinstance(op, ops.Slice | ops.Pad | ops.Identity) or starts is None or ends is None:
        return {}
    axes = place.said(3, "axes") or tuple(range(len(starts)))
    wanted = _bounds(op)
    new_starts, new_ends = list(starts), list(ends)
    for k, axis in enumerate(axes):
        axis = axis if axis >= 0 or place.x is None else axis + len(place.x.shape)
        size = place.x.shape[axis] if place.x is not None else None
        start, stop = wanted.get(axis, (0, None))
        if _clamped(starts[k], ends[k], size) != _clamped(start, _TO_THE_END if stop is None else stop, size):
            new_starts[k], new_ends[k] = start, _TO_THE_END if stop is None else stop
    found = {"starts": (starts, tuple(new_starts)), "ends": (ends, tuple(new_ends))}
    return {key: now for key, (was, now) in found.items() if was != now}


def _bounds(op: ops.Slice | ops.Pad | ops.Identity) -> dict[int, tuple[int, int | None]]:
    """For each axis that is cut its start and its stop; None is the end."""
    match op:
        case ops.Slice(axis, start, stop, _):
            return {axis: (start, stop)}
        case ops.Pad(padding):
            return {axis: (-low, high or None) for axis, (low, high) in enumerate(padding) if low or high}
        case _:
            return {}


def _clamped(start: int, stop: int, size: Dim) -> tuple[int, int]:
    """What a slice reads of an axis of this size."""
    if not isinstance(size, int):
        return start, min(stop, _TO_THE_END)
    low, high = (min(max(n + size if n < 0 else n, 0), size) for n in (start, stop))
    return low, high


def _split(place: Place) -> Numbers:
    """Pieces that are as many and as long as those that the node makes by itself are not stated."""
    op = place.after.op
    if not isinstance(op, ops.Split) or op.sizes == (said := place.said(1, "split")):
        return {}
    whole, count = sum(op.sizes), len(op.sizes)
    piece = -(-whole // count)
    if said is None and op.sizes == tuple(max(min(piece, whole - at), 0) for at in range(0, piece * count, piece)):
        return {}
    return {"split": op.sizes, "num_outputs": None}


def _resize(place: Place) -> Numbers:
    said = place.said(3, "sizes") if place.call.has(3) else None
    if said is None or place.after.type is None or not isinstance(place.after.op, ops.Opaque):
        return {}
    return _where_changed(place, said, 0, "sizes", free=())


_RULES: Mapping[str, Callable[[Place], Numbers]] = {
    "Conv": _group,
    "ConvTranspose": _group,
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Resize": _resize,
}
"""For each op type that can state a width what it must state now."""
