"""Types of the values of an ONNX graph, as ONNX infers them.

Shapes are inferred on a skeleton of the model in which big tensors are only declared: the weights are never copied.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from onnx import (
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    checker,
    defs,
    helper,
    numpy_helper,
)
from onnx import shape_inference as onnx_inference

from reparam_compiler.core.names import free_name
from reparam_compiler.errors import UnsupportedModelError, first_line
from reparam_compiler.frontends.onnx.shapes.sizes import SMALL
from reparam_compiler.frontends.onnx.tensors import RUN_CHECKER, Constant, element_type, is_meant_open, type_of
from reparam_compiler.ir.graph import TensorType

logger = logging.getLogger(__name__)
OLDEST_OPSET, NEWEST_OPSET = 7, 2**15
"""Of ONNX's own domain; onnx and ONNX Runtime say themselves which one is too new for them."""
OWN_DOMAIN = ("", "ai.onnx")
REFUSALS = (defs.SchemaError, checker.ValidationError, onnx_inference.InferenceError, RuntimeError, TypeError, ValueError)
"""What ONNX raises for a node, or a model, whose parts do not fit one another."""


@dataclass(frozen=True, slots=True)
class Types:
    """dtypes: of values whose rank may not be known. types: of those whose rank is."""

    dtypes: dict[str, str]
    types: dict[str, TensorType]


def infer_types(model: ModelProto, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> Types:
    """What is known of the model's values, or would be if its inputs had these shapes.

    What the file says of its outputs stands where inference finds nothing else, and no shapes are given: some files state a
    wrong rank.
    """
    skeleton = _skeleton(model)
    named = _symbols(skeleton)
    _give_sizes(skeleton, shapes)
    stated = {value.name: known for value in skeleton.graph.output if (known := type_of(value.type)[1])}
    for value in skeleton.graph.output:
        if value.name in stated:
            value.type.tensor_type.ClearField("shape")
    try:
        skeleton = onnx_inference.infer_shapes(skeleton, data_prop=True)
    except MemoryError as error:
        raise UnsupportedModelError("the model states sizes that no memory holds; write it again, or cut it") from error
    except REFUSALS as error:
        logger.warning("shapes cannot be inferred, so only those in the file are known: %s", error)
    for value in _values(skeleton):
        if (axes := len(value.type.tensor_type.shape.dim)) > SMALL:
            raise UnsupportedModelError(f"{value.name} has {axes} axes; no tensor has so many: {RUN_CHECKER}")
    found = {value.name: type_of(value.type) for value in _values(skeleton)}
    types = {name: _named(known, named) for name, (_, known) in found.items() if known}
    if not shapes:
        types.update({name: _stated(_named(known, named), types.get(name)) for name, known in stated.items()})
    return Types({name: dtype for name, (dtype, _) in found.items() if dtype}, types)


def _give_sizes(skeleton: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives the inputs these shapes. What the file calls a size would then hide its number from inference: the names go."""
    for value in skeleton.graph.input:
        if value.name in shapes and len(value.type.tensor_type.shape.dim) == len(shapes[value.name]):
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    for value in (*skeleton.graph.output, *skeleton.graph.value_info) if shapes else ():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()


def _values(model: ModelProto) -> Iterator[ValueInfoProto]:
    """All values that have a type, inputs last."""
    yield from (*model.graph.value_info, *model.graph.output, *model.graph.input)


def _stated(known: TensorType, found: TensorType | None) -> TensorType:
    """The type that a file states, with the numbers that were found; what was found, where that has another rank."""
    if found is None:
        return known
    if len(found.shape) != len(known.shape):
        return found
    sizes = zip(known.shape, found.shape, strict=True)
    return TensorType(known.dtype, tuple(size if isinstance(size, int) or own is None else own for own, size in sizes))


def refusal_of(model: ModelProto, node: NodeProto, inputs: Mapping[str, TensorType | Constant]) -> str | None:
    """What ONNX says against a node on inputs of these types; None where it takes it."""
    try:
        _inferred(model, node, inputs)
    except REFUSALS as error:
        return first_line(error)
    return None


def infer_outputs(model: ModelProto, node: NodeProto, inputs: Mapping[str, TensorType | Constant]) -> dict[str, TensorType]:
    """The types of a node's outputs that ONNX infers from these types, and from the elements of small integer constants."""
    if _may_start_in_padding(node):
        return {}
    try:
        found = _inferred(model, node, inputs)
    except (*REFUSALS, UnsupportedModelError):
        return {}
    symbols = {size for known in inputs.values() for size in known.shape if isinstance(size, str)}
    return {name: _named(known, symbols) for name, proto in found.items() if (known := type_of(proto)[1])}


def _inferred(model: ModelProto, node: NodeProto, inputs: Mapping[str, TensorType | Constant]) -> dict[str, TypeProto]:
    types = {name: helper.make_tensor_type_proto(element_type(known.dtype), known.shape) for name, known in inputs.items()}
    data = {
        name: numpy_helper.from_array(np.asarray(known.load()), name)
        for name, known in inputs.items()
        if isinstance(known, Constant) and known.dtype in ("i64", "i32") and math.prod(known.shape) <= SMALL
    }
    schema = defs.get_schema(node.op_type, opset_of(model), "")
    opsets = list(model.opset_import)
    return onnx_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets, ir_version=model.ir_version)


def _named(known: TensorType, symbols: set[str]) -> TensorType:
    """The type without the sizes whose names inference made up."""
    return TensorType(known.dtype, tuple(None if isinstance(n, str) and n not in symbols else n for n in known.shape))


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own domain.

    Raises UnsupportedModelError for one that is too old or too new, where there are two, and where there is none.
    """
    found = opset_among(model.opset_import, "the model")
    if found is None:
        raise UnsupportedModelError(f"the model's opset is missing, at least {OLDEST_OPSET} was expected; {RUN_CHECKER}")
    return found


def opset_among(imports: Iterable[OperatorSetIdProto], who: str) -> int | None:
    """The version of ONNX's own domain that a model, or a function, imports; None where it imports none.

    The domain has two names, and what imports both takes the version of "", as ONNX's checker does.
    Raises UnsupportedModelError for a version that is too old or too new, and where there are two of one name.
    """
    by_name: dict[str, set[int]] = {name: set() for name in OWN_DOMAIN}
    for entry in imports:
        by_name.get(entry.domain, set()).add(entry.version)
    versions = sorted(next(filter(None, by_name.values()), ()))
    if not versions:
        return None
    if len(versions) > 1:
        raise UnsupportedModelError(f"{who} imports the opsets {versions} of ONNX; expected one: {RUN_CHECKER}")
    if not OLDEST_OPSET <= versions[0] <= NEWEST_OPSET:
        raise UnsupportedModelError(
            f"{who}'s opset is {versions[0]}, at least {OLDEST_OPSET} was expected and at most {NEWEST_OPSET}; "
            "convert it with onnx.version_converter"
        )
    return versions[0]


def _symbols(model: ModelProto) -> set[str]:
    """The sizes that the file names; inference makes up others."""
    return {dim.dim_param for value in _values(model) for dim in value.type.tensor_type.shape.dim}


def _skeleton(model: ModelProto) -> ModelProto:
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    _open_sizes(skeleton)
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if _is_small(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for node in model.graph.node:
        tensor = node.attribute[0].t if node.op_type == "Constant" and len(node.attribute) == 1 else TensorProto()
        if _may_start_in_padding(node):  # a slice of no known bounds gives the dtype and the rank only
            sizes = f"{node.output[0]}.sizes"
            rank = 2 + next(len(attribute.ints) for attribute in node.attribute if attribute.name == "kernel_shape")
            graph.input.append(helper.make_tensor_value_info(sizes, TensorProto.INT64, [rank]))
            graph.node.append(helper.make_node("Slice", [node.input[0], sizes, sizes], node.output[:1]))
        elif _is_small(tensor):
            graph.node.append(node)
        else:
            graph.input.append(helper.make_tensor_value_info(node.output[0], tensor.data_type, list(tensor.dims)))
    return skeleton


def _open_sizes(skeleton: ModelProto) -> None:
    """Sizes of 0 and -1, by which exporters mean open ones, become that: an input's has a name, others are inferred anew."""
    graph = skeleton.graph
    named = _symbols(skeleton)
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if is_meant_open(dim):
                dim.dim_param = free_name("N" if axis == 0 else f"{value.name}.{axis}", named)
                named.add(dim.dim_param)
    for value in (*graph.output, *graph.value_info):
        for dim in filter(is_meant_open, value.type.tensor_type.shape.dim):
            dim.Clear()


def _may_start_in_padding(node: NodeProto) -> bool:
    """Whether a pool's last window may start in its upper padding.

    Runtimes leave that window out, and so does ONNX from opset 22 on; the sizes it infers for older ones are too large by one.
    """
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type not in ("AveragePool", "MaxPool") or node.domain not in OWN_DOMAIN or not given.get("ceil_mode"):
        return False
    size = given.get("kernel_shape", ())
    ones, zeros = [1] * len(size), [0] * 2 * len(size)
    upper = given.get("pads", zeros)[len(size) :]
    sides = zip(size, given.get("strides", ones), given.get("dilations", ones), upper, strict=False)
    return any(s + high > d * (k - 1) + 1 for k, s, d, high in sides)


def _is_small(tensor: TensorProto) -> bool:
    count = 1
    for size in tensor.dims:
        count *= size
    return count <= SMALL
