"""The attributes of an op as the printer and the reports show them."""

from collections.abc import Sequence
from dataclasses import fields

from reparam_compiler.ir.kind import Kind
from reparam_compiler.ir.ops import Elementwise, Move, Op, Opaque, Reduce


def attributes(op: Op) -> dict[str, object]:
    """The attributes of an op that differ from their defaults, as the printer shows them."""
    shown: dict[str, object] = {}
    for attribute in fields(op):
        name, value = attribute.name, getattr(op, attribute.name)
        if name in _SILENT.get(type(op), ()) or value == attribute.default or value in _PLAIN.get(name, ()):
            continue
        shown[_SHORT.get(name, name)] = _compact(value)
    return shown


def _compact(value: object) -> object:
    """((1, 1), (1, 1)) and (1, 1) read 1; ((0, 0), (1, 1)) reads 0,1; ((0, 1), (0, 1)) reads 0:1."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        parts = [str(_compact(part)) for part in value]
        if isinstance(value[0], tuple):
            parts = [part.replace(",", ":") for part in parts]
        return parts[0] if len(set(parts)) == 1 else ",".join(parts)
    return value


_SHORT = {"padding": "pad"}
_PLAIN: dict[str, tuple[object, ...]] = {
    "stride": ((1,), (1, 1), (1, 1, 1), ()),
    "output_padding": ((0,), (0, 0), (0, 0, 0), ()),
    "dilation": ((1,), (1, 1), (1, 1, 1), ()),
    "padding": (((0, 0),), ((0, 0), (0, 0)), ((0, 0), (0, 0), (0, 0)), ()),
    "coefficients": ((1.0, -1.0), *((1.0,) * n for n in range(1, 33))),
}
_SILENT: dict[type[Kind], tuple[str, ...]] = {
    Elementwise: ("function",),
    Reduce: ("function",),
    Move: ("function",),
    Opaque: ("target", "run", "coupling", "reads", "facts", "arguments"),
}
