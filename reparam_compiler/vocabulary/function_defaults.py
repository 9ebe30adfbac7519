"""The attributes that a function of an ONNX model has by default, stated where it is called.

onnx's inliner forgets them: a call that leaves one out gets what the op in the body has by default, an alpha of 0.01 in place
of the function's 0.3 (findings/onnx-inliner-forgets-default-attributes.sh). So whatever inlines states them first.
"""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from reparam_compiler.vocabulary.bodies import with_inner

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto


def with_defaults_stated(model: "ModelProto") -> "ModelProto":
    """The model, each call of a function with the defaults that it leaves out; itself where none does, else a copy."""
    if not any(_left_out(model)):
        return model
    stated = type(model)()
    stated.CopyFrom(model)
    for node, defaults in list(_left_out(stated)):
        node.attribute.extend(defaults)
    return stated


def _left_out(model: "ModelProto") -> "Iterator[tuple[NodeProto, list[AttributeProto]]]":
    """The calls of functions, in graphs, bodies and functions, that leave defaults out, and these."""
    defaults = {(function.domain, function.name, function.overload): function.attribute_proto for function in model.functions}
    for node in chain(with_inner(model.graph.node), *(with_inner(function.node) for function in model.functions)):
        given = {attribute.name for attribute in node.attribute}
        own = defaults.get((node.domain, node.op_type, node.overload), ())
        if missing := [default for default in own if default.name not in given]:
            yield node, missing
