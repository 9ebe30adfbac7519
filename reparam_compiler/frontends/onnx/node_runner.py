"""One ONNX node, run by ONNX's reference evaluator: how opaque nodes are evaluated and constants folded."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import load_op
from torch import Tensor

from reparam_compiler.vocabulary.bodies import bodies_of

FAILURES = (
    *(ArithmeticError, AttributeError, AssertionError, LookupError, MemoryError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)
"""What the reference evaluator raises for an op, a dtype or a shape that it does not take."""


def captured(node: NodeProto) -> tuple[str, ...]:
    """The values of the outer graph that the node's subgraphs read without its inputs naming them."""
    found: dict[str, None] = {}
    for body in bodies_of(node):
        found.update(dict.fromkeys(captured_by(body)))
    return tuple(name for name in found if name not in node.input)


def captured_by(body: GraphProto) -> list[str]:
    """The values of the outer graph that a body reads, in order, without repeats."""
    bound = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    bound |= {tensor.values.name for tensor in body.sparse_initializer}
    found: list[str] = []
    for node in body.node:
        found += [name for name in (*node.input, *captured(node)) if name and name not in bound]
        bound.update(node.output)
    return list(dict.fromkeys(found + [value.name for value in body.output if value.name not in bound]))


@cache
def has_body(op_type: str, opset: int) -> bool:
    """Whether the evaluator can run a type of ONNX's own domain."""
    try:
        load_op("", op_type, opset)
    except NotImplementedError:
        return False
    except (AssertionError, RuntimeError):  # a function of other types, which it makes where it has a node of it
        return True
    return True


def run_arrays(model: ModelProto, node: NodeProto, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """The outputs of a node of `model` on these arrays; raises what numpy raises."""
    values = [_declared(name, value) for name, value in feeds.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "one node", values, outputs)
    single = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version)
    return list(ReferenceEvaluator(single).run(None, dict(feeds)))


def _declared(name: str, value: Any) -> ValueInfoProto:
    """A value with its dtype, without which the evaluator makes no body for some functions (GroupNormalization)."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return helper.make_empty_tensor_value_info(name)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)


def runner(
    model: ModelProto, node: NodeProto, names: Sequence[str], arrays: Mapping[str, Any], results: int
) -> Callable[..., Any]:
    """What runs a node on torch tensors: one for each of `names`.

    arrays: the numpy dtype that the model has for a name, where it is known. Values come in a wider one, and the node is run
    in that first, a sequence as a list of them; where the evaluator does not take it (a constant in a subgraph has the model's
    own), in the model's.
    results: how many outputs there are; more than one are given as a tuple.
    """

    def run(*values: Any) -> Any:
        given = {name: value for name, value in zip(names, values, strict=True) if isinstance(value, Tensor | list)}

        def feeds(dtypes: Mapping[str, Any]) -> dict[str, Any]:
            def array(name: str, value: Any) -> Any:
                if isinstance(value, list):  # a sequence, whose type the model does not say by its name
                    return [part.numpy() for part in value]
                return value.numpy().astype(dtypes[name]) if name in dtypes else value.numpy()

            return {name: array(name, value) for name, value in given.items()}

        try:
            found = run_arrays(model, node, feeds({}))
        except FAILURES:
            found = run_arrays(model, node, feeds(arrays))
        leaves = [part for value in given.values() for part in (value if isinstance(value, list) else [value])]
        wide = next((part.dtype for part in leaves if part.is_floating_point()), torch.float64)
        tensors = tuple(_tensor(value, wide) for value in found)
        return tensors[0] if results == 1 else tensors

    return run


def _tensor(value: Any, floating: torch.dtype) -> Any:
    """A value of the evaluator's as torch has it: a tensor, a list of them for a sequence."""
    if isinstance(value, list):
        return [_tensor(part, floating) for part in value]
    array = np.asarray(value)
    if array.dtype.kind in "fV":  # V: ml_dtypes
        return torch.from_numpy(np.ascontiguousarray(array.astype(np.float64)).reshape(array.shape)).to(floating)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)) if array.dtype.kind in "iub" else value
