"""What an ONNX model computes inside its nodes: the bodies of If, Loop and Scan, and functions.

A body is fused as a model of its own: the values that it reads from around it are that model's inputs, and the initializers
its constants. The body goes back in its place; initializers around it that nobody reads any more are dropped.

A function gets its weights as inputs, so nothing in it can be fused or cut where it is. It is inlined if that lets something be
fused, and always where channels are to be followed by no rule of a caller's.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, inliner

from reparam_compiler.core.names import free_name
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.node_runner import captured_by
from reparam_compiler.frontends.onnx.shapes.inference import OWN_DOMAIN, infer_types
from reparam_compiler.frontends.onnx.tensors import element_type
from reparam_compiler.frontends.onnx.writer import names_of, readers_of
from reparam_compiler.ir.graph import TensorType
from reparam_compiler.passes.pruning.coupling.registry import COUPLING_RULES
from reparam_compiler.vocabulary.function_defaults import with_defaults_stated

logger = logging.getLogger(__name__)
Report = TypeVar("Report")
_BODY_IR_VERSION = 4
"""The first in which an initializer need not be an input."""
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
_FEW = 16
"""Functions that are tried one by one."""


def has_bodies(model: ModelProto) -> bool:
    """True where a node of the model has a body."""
    return any(True for _ in _bodies(model.graph))


def _bodies(graph: GraphProto) -> Iterator[tuple[str, GraphProto]]:
    """The bodies of a graph's nodes, not those within them, and what a report calls them."""
    for node in graph.node:
        for attribute in node.attribute:
            called = f"{node.name or next(filter(None, node.output), node.op_type)}.{attribute.name}"
            if attribute.type == AttributeProto.GRAPH:
                yield called, attribute.g
            for place, body in enumerate(attribute.graphs):
                yield f"{called}.{place}", body


def fuse_bodies(model: ModelProto, fuse: Callable[[ModelProto], Report]) -> tuple[dict[str, Report], list[str]]:
    """Fuses every body, in place.

    Args:
        model: what is changed.
        fuse: fuses a model in place, bodies and all; its report is handed on.

    Returns:
        The reports by path ("branch.then_branch"), and why other bodies were left as they were.
    """
    graph = model.graph
    if not has_bodies(model):
        return {}, []
    read_before = readers_of(graph)
    around = _Around.of(model)
    reports: dict[str, Report] = {}
    remarks: list[str] = []
    for path, body in _bodies(graph):
        part, captured = around.model_of(body)
        before = names_of(part.graph)
        try:
            reports[path] = fuse(part)
        except UnsupportedModelError as error:
            remarks.append(f"{path} was left as it was: {error}")
            continue
        _put_back(part.graph, body, captured, before, around.names)
    _drop_unread(graph, read_before)
    return reports, remarks


@dataclass(frozen=True, slots=True)
class _Around:
    """What a body sees: the constants by name, the types of other values, and all names of the model."""

    model: ModelProto
    constants: Mapping[str, TensorProto]
    types: Mapping[str, TensorType]
    names: set[str]

    @staticmethod
    def of(model: ModelProto) -> "_Around":
        graph = model.graph
        given = {value.name for value in graph.input}
        constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in given or model.ir_version < 4}
        for node in graph.node:
            tensor = _constant(node)
            if tensor is not None:
                constants[node.output[0]] = tensor
        names = names_of(graph) | {node.name for node in graph.node}
        return _Around(model, constants, infer_types(model).types, names)

    def model_of(self, body: GraphProto) -> tuple[ModelProto, set[str]]:
        """A model of a body, and the names of what it reads from around it."""
        part = ModelProto(ir_version=max(self.model.ir_version, _BODY_IR_VERSION), opset_import=self.model.opset_import)
        part.functions.extend(self.model.functions)
        part.graph.CopyFrom(body)
        captured = captured_by(body)
        for name in captured:
            if name in self.constants:
                tensor = part.graph.initializer.add()
                tensor.CopyFrom(self.constants[name])
                tensor.name = name
            else:
                part.graph.input.append(self._value(name))
        return part, set(captured)

    def _value(self, name: str) -> ValueInfoProto:
        known = self.types.get(name)
        if known is None:
            return helper.make_empty_tensor_value_info(name)
        return helper.make_tensor_value_info(name, element_type(known.dtype), known.shape)


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node."""
    if node.op_type != "Constant" or node.domain not in OWN_DOMAIN or len(node.attribute) != 1:
        return None
    return node.attribute[0].t if node.attribute[0].name == "value" else None


def _put_back(fused: GraphProto, body: GraphProto, captured: set[str], before: set[str], taken: set[str]) -> None:
    """Writes a fused body over the original one; new names become names that the whole model does not have yet."""
    kept = [tensor for tensor in fused.initializer if tensor.name not in captured]
    inputs = [value for value in fused.input if value.name not in captured]
    del fused.initializer[:], fused.input[:]
    fused.initializer.extend(kept)
    fused.input.extend(inputs)
    renamed: dict[str, str] = {}
    for name in sorted(names_of(fused) - before):
        renamed[name] = free_name(name, taken)
        taken.add(renamed[name])
    _rename(fused, {old: new for old, new in renamed.items() if old != new})
    body.CopyFrom(fused)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    if not names:
        return
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = names.get(name, name)
    for _, body in _bodies(graph):
        _rename(body, names)


def _drop_unread(graph: GraphProto, read_before: set[str]) -> None:
    """Removes the initializers and Constant nodes that only what is gone did read."""
    unread = read_before - readers_of(graph) - {value.name for value in graph.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in unread:
            del graph.initializer[index]
    for index in reversed(range(len(graph.node))):
        if _constant(graph.node[index]) is not None and graph.node[index].output[0] in unread:
            del graph.node[index]
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in unread:
            del graph.value_info[index]


def with_functions_inlined(model: ModelProto, count: Callable[[ModelProto], int]) -> ModelProto | None:
    """A copy in which those functions are inlined that let more be fused; None where none does.

    Args:
        model: what is read.
        count: how many fusions a model gives.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    linear = [key for key, function in functions.items() if any(node.op_type in _LINEAR for node in function.node)]
    if not linear:
        return None
    stated = with_defaults_stated(model)
    try:
        best = inliner.inline_selected_functions(stated, linear)
    except RuntimeError as error:
        logger.info("no function is inlined: %s", error)  # one of another opset than the model's
        return None
    most = count(best)
    if most <= count(model):
        return None
    for key in linear if len(linear) <= _FEW else ():
        fewer = [other for other in linear if other != key]
        candidate = inliner.inline_selected_functions(stated, fewer) if fewer else model
        if fewer and count(candidate) >= most:
            linear, best = fewer, candidate
    return best


def without_functions(model: ModelProto) -> ModelProto:
    """A copy of the model with its functions inlined, as far as onnx inlines them; the model itself where there are none.

    Those that a caller registered a coupling rule for stay.
    """
    keys = [(function.domain, function.name) for function in model.functions]
    followed = [key for key in keys if "::".join(key) not in COUPLING_RULES]
    if not followed:
        return model
    try:
        return inliner.inline_selected_functions(with_defaults_stated(model), followed)
    except RuntimeError as error:
        logger.info("no function is inlined: %s", error)  # as above
        return model
