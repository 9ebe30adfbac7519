"""A model as TVM reads it rightly: of one opset, every size known, weights as inputs of their own.

ModelProto, shapes --walk--> Graph --model--> ModelProto for `from_onnx`, and the arrays to bind
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, helper, inliner, numpy_helper

from reparam_compiler.lowering.importing.onnx_ops.graph import OPSET, OWN, Graph
from reparam_compiler.lowering.importing.onnx_ops.rules import RULES
from reparam_compiler.lowering.importing.onnx_ops.walk import walk
from reparam_compiler.vocabulary.function_defaults import with_defaults_stated

BOUND = 1024
"""Elements of a constant above which it is an input of what TVM imports, bound afterwards: it is not copied into a model."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """model: what TVM imports. weights: the values of its last inputs, in their order."""

    model: ModelProto
    weights: tuple[np.ndarray, ...]


def prepared(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> Prepared:
    """A copy of the model for inputs of these shapes, rewritten by the rules; the model itself is not touched.

    Raises: LoweringError where an op is misread by TVM and no rule mends it, named with its node.
    """
    declared = max((entry.version for entry in model.opset_import if entry.domain in OWN), default=1)
    graph = Graph(max(declared, OPSET), RULES)
    names: dict[str, str] = {"": ""}
    for tensor in model.graph.initializer:
        names[tensor.name] = graph.constant(numpy_helper.to_array(tensor), name=tensor.name)
    inputs = [value for value in model.graph.input if value.name not in names]
    for value in inputs:
        names[value.name] = graph.fresh(value.name)
        kind = value.type.tensor_type.elem_type
        graph.types[names[value.name]] = helper.make_tensor_type_proto(kind, tuple(shapes[value.name]))
    walk(graph, _inlined(model), names, declared)
    outputs = [value.name for value in model.graph.output]
    return _written(graph, [value.name for value in inputs], outputs, names, model.ir_version)


def _inlined(model: ModelProto) -> GraphProto:
    """The nodes, with the model's own functions in place of their calls."""
    if not model.functions:
        return model.graph
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    skeleton.graph.name = model.graph.name
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.input.extend(model.graph.input)
    skeleton.graph.output.extend(model.graph.output)
    return inliner.inline_local_functions(with_defaults_stated(skeleton), convert_version=True).graph


def _written(graph: Graph, inputs: list[str], outputs: list[str], names: Mapping[str, str], ir_version: int) -> Prepared:
    """The nodes that an output needs, as a model."""
    nodes = []
    for index, name in enumerate(outputs):
        nodes.append(helper.make_node("Identity", [names[name]], [f"{name}:out{index}"]))
    needed = {name for node in nodes for name in node.input}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    used = [name for name in graph.constants if name in needed]
    weights = [name for name in used if graph.constants[name].size > BOUND]
    small = [numpy_helper.from_array(graph.constants[name], name) for name in used if name not in set(weights)]
    made = helper.make_graph(
        [*reversed(kept), *nodes],
        "prepared",
        [helper.make_value_info(name, graph.types[name]) for name in (*inputs, *weights)],
        [helper.make_empty_tensor_value_info(node.output[0]) for node in nodes],
        small,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=max(ir_version, 10))
    return Prepared(model, tuple(graph.constants[name] for name in weights))
