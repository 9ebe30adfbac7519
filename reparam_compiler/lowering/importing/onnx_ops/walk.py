"""The nodes of a graph, one after the other, each by its rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.importing.onnx_ops.graph import OWN, Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.opsets import upgraded


def walk(graph: Graph, source: GraphProto, names: dict[str, str], opset: int) -> None:
    """Every node by its rule; `names` gets the name of each of its outputs in the new graph."""
    for proto in source.node:
        node = _node(proto, names)
        if proto.op_type == "If" and proto.domain in OWN:
            made = _branched(graph, node, names, opset)
        else:
            if any(hasattr(value, "node") for value in node.attrs.values()):
                raise node.refusal("a loop over a graph is not compiled", "unroll it, or cut the model before it")
            made = _converted(graph, node, opset)
        names.update({output: name for output, name in zip(proto.output, made, strict=False) if output})


def _converted(graph: Graph, node: Node, opset: int) -> list[str]:
    if node.op == "Constant" and not node.domain:
        return [_constant(graph, node)]
    if node.domain and not graph.has_rule(node):
        raise node.refusal("an op of that package has no rule here", "rewrite it in ONNX's own ops, or cut the model before it")
    with graph.at(node):
        return graph.add(upgraded(graph, node, opset))


def _node(proto: NodeProto, names: Mapping[str, str]) -> Node:
    domain = "" if proto.domain in OWN else proto.domain
    name = proto.name or next(iter(proto.output), "") or proto.op_type
    inputs = []
    for value in proto.input:
        if value not in names:
            raise LoweringError(f"{name} ({proto.op_type}): it reads {value}, which no node makes; repair the model")
        inputs.append(names[value])
    outputs = len(proto.output)
    while outputs > 1 and not proto.output[outputs - 1]:
        outputs -= 1
    return Node(proto.op_type, inputs, {a.name: _attribute(a) for a in proto.attribute}, outputs, name, domain)


def _attribute(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return [entry.decode() if isinstance(entry, bytes) else entry for entry in value]


def _constant(graph: Graph, node: Node) -> str:
    """The value of a Constant, in whichever of its attributes that is."""
    (kind, value), *_ = node.attrs.items()
    if kind == "value":
        return graph.constant(numpy_helper.to_array(value), name=node.name)
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if kind not in dtypes:
        raise node.refusal(f"a constant given as {kind} is not compiled", "expected a dense tensor of numbers")
    return graph.constant(value, dtypes[kind], name=node.name)


def _branched(graph: Graph, node: Node, names: dict[str, str], opset: int) -> list[str]:
    """The branch that a known condition takes, or both and a choice between what they give, where that has one shape."""
    known = graph.constants.get(node.input(0))
    branches = node.attrs["then_branch"], node.attrs["else_branch"]
    if known is not None:
        return _branch(graph, branches[0] if bool(known) else branches[1], names, opset)
    both = [_branch(graph, branch, names, opset) for branch in branches]
    for yes, no in zip(*both, strict=True):
        if graph.known_shape(yes) is None or graph.known_shape(yes) != graph.known_shape(no):
            raise node.refusal("which branch is taken, and so the shape of a result, depends on values")
    return [graph.emit("Where", node.input(0), yes, no) for yes, no in zip(*both, strict=True)]


def _branch(graph: Graph, branch: GraphProto, names: Mapping[str, str], opset: int) -> list[str]:
    inner = dict(names)
    for tensor in branch.initializer:
        inner[tensor.name] = graph.constant(numpy_helper.to_array(tensor), name=tensor.name)
    walk(graph, branch, inner, opset)
    return [inner[value.name] for value in branch.output]
