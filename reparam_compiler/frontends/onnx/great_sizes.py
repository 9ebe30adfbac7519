"""Sizes that a model states and no memory holds: asked before ONNX infers shapes from them, which takes that memory.

ConstantOfShape([2**40])        makes too much
Slice(x, starts of 2**31)       its bounds are more than a tensor has axes
"""

import math
from collections.abc import Iterator, Mapping

from onnx import GraphProto, NodeProto, TensorProto

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.shapes.inference import OWN_DOMAIN
from reparam_compiler.frontends.onnx.shapes.sizes import SMALL
from reparam_compiler.frontends.onnx.tensors import MADE, RUN_CHECKER, byte_count, called, load

_MAKES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""The input of these ops that states a size, or how often one is repeated."""
_BY_AXIS = {
    "ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 3),
    "Squeeze": (1,), "Unsqueeze": (1,), "Resize": (1, 2, 3), "Upsample": (1,),
}  # fmt: skip
"""The inputs of these ops that have a number for each axis, or a few."""


def check_sizes(graph: GraphProto) -> None:
    """Raises UnsupportedModelError where a node makes more than memory holds; bodies are asked by themselves."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: held for node in graph.node if node.op_type == "Constant" and (held := _constant(node))}
    lengths = {value.name: dim.dim_value for value in graph.input for dim in value.type.tensor_type.shape.dim[:1]}
    lengths |= {name: tensor.dims[0] for name, tensor in tensors.items() if tensor.dims}
    for node in graph.node:
        if node.domain in OWN_DOMAIN:
            _check_node(node, tensors, lengths)


def _check_node(node: NodeProto, tensors: Mapping[str, TensorProto], lengths: Mapping[str, int]) -> None:
    for place, name in enumerate(node.input):
        if place in _BY_AXIS.get(node.op_type, ()) and lengths.get(name, 0) > SMALL:
            raise UnsupportedModelError(
                f"{called(node)} reads {lengths[name]} numbers for axes from {name}; no tensor has so many: {RUN_CHECKER}"
            )
        if place == _MAKES.get(node.op_type):
            count = math.prod(_numbers(tensors.get(name))) * byte_count(_repeated(node, tensors))
            if count > MADE:
                raise UnsupportedModelError(
                    f"{called(node)} makes {count} bytes, by {name}; at most {MADE} were expected: cut the model before it"
                )


def _constant(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds, where that is a tensor or a list of whole numbers."""
    given = {attribute.name: attribute for attribute in node.attribute}
    if "value_ints" in given:
        ints = given["value_ints"].ints
        return TensorProto(data_type=TensorProto.INT64, dims=[len(ints)], int64_data=ints)
    return given["value"].t if "value" in given else None


def _repeated(node: NodeProto, tensors: Mapping[str, TensorProto]) -> TensorProto:
    """What a node repeats: a tensor, or one element; of a byte where the model does not state it."""
    if node.op_type == "ConstantOfShape":
        stated = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        return TensorProto(data_type=TensorProto.FLOAT) if stated is None else stated
    held = tensors.get(node.input[0], TensorProto(data_type=TensorProto.BOOL))
    return held if node.op_type == "Tile" else TensorProto(data_type=held.data_type)


def _numbers(tensor: TensorProto | None) -> Iterator[int]:
    """The whole numbers of a tensor that are above 0."""
    if tensor is not None and tensor.data_type == TensorProto.INT64:
        yield from (int(n) for n in load(tensor).reshape(-1) if n > 0)
