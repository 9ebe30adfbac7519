"""A Graph evaluated by one interpreter, in torch, and two forms of a region compared.

This is the judge of every rewrite: the region before and after is run in float64 on inputs that no size hides behind (not
square, a few positions wider than the widest op, so that most outputs see the border). ONNX Runtime has no float64 convs,
and a model's own framework is what is being rewritten.

The same rules run data-movement ops on labels (`passes/pruning/coupling/groups.py`) and calibration data in float32.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from reparam_compiler.errors import ReparamError, RewriteError, UnsupportedModelError
from reparam_compiler.interpreter.rules import apply
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.kind import OperandName
from reparam_compiler.progress import steps
from reparam_compiler.vocabulary.dtypes import FLOATING

_BY_TORCH = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What its operations raise on operands that do not fit."""
_BY_OTHERS = (*_BY_TORCH, AssertionError, AttributeError)
"""The same of whatever runs an opaque node."""


def tensor_of(param: Param, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter as a torch tensor of its shape, on the CPU: floating and complex ones as `dtype`, all others in their own.

    >>> tensor_of(Param.of(np.ones((2, 3), np.float16), role="weight", dtype="f16")).dtype
    torch.float64
    """
    array = np.asarray(param.load())
    if param.dtype in FLOATING:
        return torch.from_numpy(np.array(array, np.float64, order="C")).to(dtype)
    if np.iscomplexobj(array):
        return torch.from_numpy(np.array(array, order="C")).to(dtype.to_complex())
    return torch.from_numpy(np.array(array, order="C"))  # a copy: those of a protobuf cannot be written to


def evaluate(
    graph: Graph,
    inputs: Mapping[NodeId, Tensor],
    *,
    wanted: Iterable[NodeId] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[NodeId, Any]:
    """Values of the graph.

    Args:
        graph: what to run.
        inputs: a tensor for each `Input` node, by id; floating ones are converted to `dtype`.
        wanted: the ids whose values are returned; the graph's outputs where it is None.
        dtype: what floating values are computed in.

    Raises:
        UnsupportedModelError: an input is missing, or an opaque node cannot be run alone.
        RewriteError: an op failed; the message names the node and the shapes that it got.
    """
    keep = set(graph.outputs if wanted is None else wanted)
    left = {node_id: len(readers) for node_id, readers in graph.users.items()}
    values: dict[NodeId, Any] = {}
    with torch.no_grad():
        for node in steps(graph, "running the graph", len(graph.nodes)):
            if isinstance(node.op, ops.Input):
                if node.id not in inputs:
                    raise UnsupportedModelError(f"no value was given for the input {node.id}; inputs given: {sorted(inputs)}")
                x = inputs[node.id]
                values[node.id] = _wide(x, dtype)
            else:
                values[node.id] = evaluate_node(node, values, dtype)
            for source in set(node.sources):
                left[source] -= 1
                if not left[source] and source not in keep:
                    del values[source]
    return {node_id: values[node_id] for node_id in keep}


def evaluate_node(node: Node, values: Mapping[NodeId, Any], dtype: torch.dtype = torch.float64) -> Any:
    """The value of one node, given those that it reads; raises as `evaluate` does.

    A check gives nothing and is not made: it holds for the dtypes that the model has, not for `dtype`.
    """
    if isinstance(node.op, ops.Opaque) and ops.Facts.CHECK in node.op.facts:
        return None
    return run_node(node, values, dtype)


def run_node(node: Node, values: Mapping[NodeId, Any], dtype: torch.dtype = torch.float64) -> Any:
    """As `evaluate_node`; a check is made, and raises RewriteError where it fails."""
    if (whole := _too_wide(node)) is not None:
        outputs = [run_node(part, values, dtype) for part in _parts(node, whole)]
        return torch.cat(outputs, 1 if node.op.channels_second else -1)
    operands: list[Any] = []
    for operand in node.inputs:
        if isinstance(operand, Param):
            operands.append(tensor_of(operand, dtype))
        else:
            operands.append(None if operand is None else values[operand])
    try:
        value = apply(node.op, operands)
    except ReparamError as error:
        raise type(error)(f"{node.id}: {error}") from error
    except _raised_by(node.op) as error:
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in operands]
        raise RewriteError(f"{node.id} ({node.op.name}) cannot be evaluated on {shapes}: {error}") from error
    if not isinstance(node.op, ops.Opaque):
        return value
    # what an op of the model's own makes or converts to is of the model's dtype
    return _pytree.tree_map_only(Tensor, lambda part: _wide(part, dtype), value)


def _raised_by(op: ops.Op) -> tuple[type[Exception], ...]:
    return _BY_OTHERS if isinstance(op, ops.Opaque) else _BY_TORCH


PART = 2**21
"""Elements of a weight that are converted at a time: as many as a cache holds."""


def _too_wide(node: Node) -> Param | None:
    """The weight of a conv or linear that is run in parts: to write all of it anew takes longer than to multiply by it once."""
    whole = isinstance(node.op, ops.Linear) or (isinstance(node.op, ops.Conv) and node.op.groups == 1)
    weight = node.operand("weight") if whole and node.has_constant_params else None
    return weight if isinstance(weight, Param) and weight.count > PART and weight.shape[0] > 1 else None


def _parts(node: Node, weight: Param) -> Iterator[Node]:
    """Nodes that give the outputs of a conv or linear one after the other."""
    bias = node.param("bias")
    whole: dict[OperandName, Param] = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    loaded = {place: np.asarray(param.load()) for place, param in whole.items()}
    rows = max(1, PART * weight.shape[0] // weight.count)
    for first in range(0, weight.shape[0], rows):
        yield node.with_operands(
            {
                place: Param.of(loaded[place][first : first + rows], role=param.role, dtype=param.dtype)
                for place, param in whole.items()
            }
        )


def _wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating value in a dtype, a complex one in that of its parts; any other as it is."""
    return x.to(dtype) if x.is_floating_point() else x.to(dtype.to_complex()) if x.is_complex() else x


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: the sources of a proof are too small for more, which then wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate_region(nodes: Sequence[Node], source: NodeId, x: Tensor) -> Tensor:
    """What the last of these nodes gives where the source holds x.

    nodes: sources before their readers; all that they read is the source, a parameter or one of them. x: of any shape that the
    region takes, in float64, which the result is of too, where it is floating. Raises as `evaluate` does.
    """
    values: dict[NodeId, Any] = {source: x}
    with torch.no_grad():
        for node in nodes:
            values[node.id] = evaluate_node(node, values)
    result: Tensor = values[nodes[-1].id]
    return result
