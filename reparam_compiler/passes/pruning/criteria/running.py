"""Runs a graph on calibration data, a batch at a time, for the criteria that look at activations or gradients.

Parameters become tensors once. What a batch makes is dropped as soon as nothing reads it any more, so that memory is one
batch's live activations, whatever the amount of data; a gradient keeps those of one batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError
from reparam_compiler.interpreter.evaluate import evaluate_node, tensor_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import read_for
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.pruning.criteria.base import Scoring
from reparam_compiler.passes.pruning.repair.activations import Batch, inputs_of
from reparam_compiler.progress import steps

Inputs = Mapping[NodeId, Tensor]
See = Callable[[NodeId, Tensor], None]
"""Gets the value of a node on a batch."""


def calibration(scoring: Scoring, criterion: str) -> Iterable[Batch]:
    """The calibration data; raises InfeasiblePruneError where there is none."""
    if scoring.batches is None:
        raise InfeasiblePruneError(
            f"importance {criterion!r} looks at what the model does with real input, and there is no calibration data; "
            f"give {in_words_of(python='calibration=', command='--calibration')}, 32 images are enough, or use 'l1'"
        )
    return scoring.batches


def batches_of(scoring: Scoring, criterion: str) -> Iterator[Inputs]:
    """The calibration data, a tensor for each model input; raises as `calibration` and `inputs_of` do."""
    return inputs_of(scoring.graph, calibration(scoring, criterion))


class Running:
    """A graph with its parameters as tensors.

    leaves: for each parameter of `trained` its tensor, which collects gradients.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype = torch.float32, trained: Sequence[Param] = ()) -> None:
        self._graph, self._dtype = graph, dtype
        self.leaves = {param: tensor_of(param, dtype).requires_grad_() for param in dict.fromkeys(trained)}
        self._tensors: dict[NodeId, Tensor] = {}
        self._bare: list[Node] = []
        names: dict[Param, NodeId] = {}
        left_out = _neither_run_nor_read(graph)
        for node in filter(lambda node: node.id not in left_out, graph):
            operands: list[Any] = []
            for operand in node.inputs:
                if isinstance(operand, Param):
                    if operand not in names:
                        names[operand] = f"parameter {len(names)}"
                        leaf = self.leaves.get(operand)
                        self._tensors[names[operand]] = tensor_of(operand, dtype) if leaf is None else leaf
                    operands.append(names[operand])
                else:
                    operands.append(operand)
            self._bare.append(replace(node, inputs=tuple(operands)))

    def outputs(self, inputs: Inputs, see: See | None = None) -> tuple[Tensor, ...]:
        """Runs a batch.

        Args:
            inputs: a tensor for each model input.
            see: gets every value that is one tensor, sources first.

        Returns:
            The graph's outputs that are tensors, in order.

        Raises:
            UnsupportedModelError: a node cannot be run outside its model.
            RewriteError: a node cannot be run on this data.
        """
        values: dict[NodeId, Any] = dict(self._tensors)
        left = {node_id: len(users) for node_id, users in self._graph.users.items()}
        for node in steps(self._bare, "running a calibration batch", len(self._bare)):
            if isinstance(node.op, ops.Input):
                values[node.id] = inputs[node.id]
            else:
                values[node.id] = evaluate_node(node, values, self._dtype)
            if see is not None and isinstance(values[node.id], Tensor):
                see(node.id, values[node.id])
            for source in set(self._graph[node.id].sources):
                left[source] -= 1
                if not left[source] and source not in self._graph.outputs:
                    del values[source]
        outputs = tuple(values[node_id] for node_id in self._graph.outputs if isinstance(values[node_id], Tensor))
        if not outputs:
            raise UnsupportedModelError("the model gives no tensor; there is nothing to take a loss of")
        return outputs


def _neither_run_nor_read(graph: Graph) -> set[NodeId]:
    """The nodes that cannot be run outside their model, and that no output is computed from: a counter of batches, say."""
    unknown: set[NodeId] = set()
    for node in graph:
        if (isinstance(node.op, ops.Opaque) and node.op.run is None) or not unknown.isdisjoint(node.sources):
            unknown.add(node.id)
    return unknown - read_for(graph, graph.outputs)


def first_not_finite(graph: Graph, batches: Iterable[Batch]) -> tuple[NodeId, int] | None:
    """The first value of the graph with NaN in it, and in which batch (from 0); where there is none, of infinite numbers."""
    running, infinite = Running(graph), None
    for number, inputs in enumerate(inputs_of(graph, batches)):
        strange: dict[NodeId, bool] = {}

        def see(node_id: NodeId, value: Tensor, strange: dict[NodeId, bool] = strange) -> None:
            if value.is_floating_point() and not value.isfinite().all():
                strange[node_id] = bool(value.isnan().any())

        with torch.no_grad():
            running.outputs(inputs, see)
        if (nan := next((node_id for node_id, has_nan in strange.items() if has_nan), None)) is not None:
            return nan, number
        if infinite is None and strange:
            infinite = next(iter(strange)), number
    return infinite


def samples_of(graph: Graph, inputs: Inputs) -> Iterator[Inputs]:
    """A batch taken apart into its samples; whole where the graph states the size of its batch, or not every input has one."""
    sizes = {len(value) if value.ndim else 0 for value in inputs.values()}
    types = [node.type for node in graph if isinstance(node.op, ops.Input)]
    stated = any(known is None or (known.shape and isinstance(known.shape[0], int)) for known in types)
    if len(sizes) != 1 or sizes <= {0, 1} or (graph.sizes_are_fixed and stated):
        yield inputs
        return
    for index in range(sizes.pop()):
        yield {node_id: value[index : index + 1] for node_id, value in inputs.items()}
