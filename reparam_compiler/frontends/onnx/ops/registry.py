"""The ONNX columns of the vocabulary: readers and coupling models, attached to the types of ONNX's own domain.

    @reads("Conv")
    def conv(call: Call) -> Read: ...

A type must stand in a row (`vocabulary.resolve.by_onnx`). A function of each element needs nothing but its row, nor does an op
that moves elements: they are read by what the row says of the type's attributes. Types of other domains have no row.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from reparam_compiler.frontends import coupling
from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported
from reparam_compiler.frontends.onnx.tensors import decimal
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import TensorType
from reparam_compiler.vocabulary.resolve import ROWS, by_onnx
from reparam_compiler.vocabulary.row import OnnxType, Row
from reparam_compiler.vocabulary.structured import REDUCTIONS as REDUCTION_ROWS

Coupled = tuple[ops.Op, int]
"""A coupling model, and how many inputs it reads: the first ones of the node."""
Reader = Callable[[Call], Read]
CouplingModel = Callable[[Call, TensorType | None], Coupled]
Function = TypeVar("Function")
READERS: dict[str, Reader] = {}
"""For each type with a reader of its own the reader: it gives an op and its operands, or raises `Unsupported`."""
COUPLING_MODELS: dict[str, CouplingModel] = {}
"""For each type with a coupling model of its own the function that gives it, of the call and the type of its result."""


REDUCTIONS: Mapping[str, ops.Reduction] = {
    of_type.name: function for name, function in REDUCTION_ROWS.items() for of_type in ROWS[name].onnx
}
"""For each type that reduces along axes what it makes of the elements there."""


def reads(*types: str) -> Callable[[Reader], Reader]:
    """Attaches a reader to types; raises ValueError for a type without a row, or with a reader."""
    return partial(_attached, READERS, types)


def couples(*types: str) -> Callable[[CouplingModel], CouplingModel]:
    """Attaches a coupling model to types; raises ValueError for a type without a row, or with a coupling model."""
    return partial(_attached, COUPLING_MODELS, types)


def _attached(column: dict[str, Function], types: tuple[str, ...], function: Function) -> Function:
    for name in types:
        if by_onnx(name) is None:
            raise ValueError(f"{name}: no row of the vocabulary has this type")
        if name in column:
            raise ValueError(f"{name} has one already: {column[name]}")
        column[name] = function
    return function


def read(call: Call) -> Read:
    """The op of a node of ONNX's own domain, and its operands; raises Unsupported for one without an exact form."""
    kind = call.node.op_type
    if kind in READERS:
        return READERS[kind](call)
    row, of_type = by_onnx(kind) or (None, None)
    if row is None or of_type is None or row.form not in ("pointwise", "move"):
        raise Unsupported(kind)
    return _pointwise(row, of_type, call) if row.form == "pointwise" else _moved(row, of_type, call)


def coupling_model(call: Call, result: TensorType | None) -> Coupled:
    """What pruning sees in a node of ONNX's own domain that stays opaque; raises Unsupported where that is nothing."""
    kind = call.node.op_type
    if kind in COUPLING_MODELS:
        return COUPLING_MODELS[kind](call, result)
    row, _ = by_onnx(kind) or (None, None)
    if row is None or row.form is None:
        raise Unsupported(kind)
    if row.form in ("move", "rearranged"):
        return ops.Rearrange(), 1
    if row.form == "resampled":
        return ops.Slicewise((0, 1)), 1
    if row.form == "recast":
        return slicewise(result, 1)
    return slicewise(result, len(call.node.input))


def slicewise(result: TensorType | None, reads: int) -> Coupled:
    """A function of the elements at the same place."""
    return coupling.elementwise(coupling.shape_of(result)), reads


def _pointwise(row: Row, of_type: OnnxType, call: Call) -> Read:
    call.floating()
    return ops.Elementwise(row.name, _arguments(of_type, call)), (call.x,)


def _moved(row: Row, of_type: OnnxType, call: Call) -> Read:
    return ops.Move(row.name, tuple(int(n) for n in _arguments(of_type, call))), (call.x,)


def _arguments(of_type: OnnxType, call: Call) -> tuple[float, ...]:
    """What a type states for the parameters of its row; raises Unsupported where its attributes make it another op."""
    for key, default, needed in of_type.requires:
        value = call.attribute(key, default)
        if (np.float32(value) != np.float32(needed)) if isinstance(needed, float) else value != needed:
            raise Unsupported(f"{of_type.name} whose {key} is {value}")
    arguments = [call.attribute(key, default) for key, default in of_type.arguments]
    if None in arguments:
        raise Unsupported(f"{of_type.name} without its numbers")
    return tuple(map(decimal, arguments))
