"""Models of one ONNX op, and what the rewrites of `lowering/importing/onnx_ops` make of them, run in ONNX Runtime."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from tests.support.onnx_models import run

Inputs = Mapping[str, np.ndarray]


def one_op(
    op: str,
    inputs: Inputs,
    constants: Inputs | None = None,
    *,
    order: str = "",
    opset: int = 18,
    outputs: int = 1,
    domain: str = "",
    **attrs: Any,
) -> ModelProto:
    """A model of one node named "node". order: the names of its inputs, a space apart, - for one left out; else as given."""
    held = constants or {}
    names = ["" if name == "-" else name for name in order.split()] or [*inputs, *held]
    made = [f"out{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, made, "node", domain=domain, **attrs)],
        "graph",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in made],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rewritten(model: ModelProto, inputs: Inputs) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """What TVM is given of the model, and what that is run on: the inputs, and the weights that it takes as inputs."""
    from reparam_compiler.lowering.importing.onnx_ops.prepare import prepared

    made = prepared(model, {name: value.shape for name, value in inputs.items()})
    for node in made.model.graph.node:
        node.ClearField("name")  # those of a rule share the name of the node that they stand for, which ONNX Runtime refuses
    names = [value.name for value in made.model.graph.input]
    weights = dict(zip(names[len(inputs) :], made.weights, strict=True))
    return made.model, dict(inputs) | weights


def run_rewritten(model: ModelProto, inputs: Inputs) -> list[np.ndarray]:
    """The outputs of what TVM is given, from ONNX Runtime."""
    return run(*rewritten(model, inputs))


def ops_of(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
