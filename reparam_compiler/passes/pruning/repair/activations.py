"""The activations of two networks that share their nodes, on calibration data, for as long as a node is still to read them.

    before    in the original network
    now       in the network pruned and repaired so far; the same tensors where nothing has changed yet

Both are run once, a node after the other, each over all batches. What is alive at one time may be more than fits in memory;
beyond a budget, values lie in temporary files that are mapped into memory, so that the size of the data does not matter.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from reparam_compiler.errors import InfeasiblePruneError, InvalidGraphError
from reparam_compiler.interpreter.evaluate import evaluate_node, tensor_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param

Array = Tensor | np.ndarray
Batch = Sequence[Array] | Array
"""An array for each model input, in order; one array alone for a model of one input."""
Activation = Any
"""A value on one batch: a tensor, the pieces of a split, or what a model computes from sizes."""
BUDGET = 2**30
"""Bytes of activations that are held in memory."""


class Activations:
    """Runs a graph and a changed copy of it side by side, node by node.

    samples: how many the calibration data holds.

    Raises:
        InfeasiblePruneError: there is no batch, or one has not an array for each input.
    """

    def __init__(
        self, graph: Graph, batches: Iterable[Batch], *, dtype: torch.dtype = torch.float32, budget: int = BUDGET
    ) -> None:
        self._dtype, self._room = dtype, budget
        self._left = {node_id: len(readers) for node_id, readers in graph.users.items()}
        self._before = self._inputs(graph, batches)
        self._now = dict(self._before)
        self._batches = range(len(next(iter(self._before.values()))))
        self.samples = sum(samples_in(values) for values in zip(*self._before.values(), strict=True))

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._before

    def before(self, node_id: NodeId) -> Iterator[Tensor]:
        """A value of the original network, batch by batch; raises InvalidGraphError where it is several tensors."""
        return (_one(node_id, value) for value in self._before[node_id])

    def now(self, node_id: NodeId) -> Iterator[Tensor]:
        """A value of the changed network, likewise."""
        return (_one(node_id, value) for value in self._now[node_id])

    def preview(self, node: Node) -> Iterator[Tensor]:
        """What a node would give now, likewise."""
        for batch in self._batches:
            yield _one(node.id, evaluate_node(node, {s: self._now[s][batch] for s in node.sources}, self._dtype))

    def same(self, node: Node) -> bool:
        """True where all that a node reads is still what it was."""
        return all(self._now.get(source) is self._before.get(source) for source in node.sources)

    def run_before(self, node: Node) -> None:
        """Runs a node of the original network; after an opaque op that cannot be run nothing is known."""
        if all(source in self for source in node.sources) and not (isinstance(node.op, ops.Opaque) and node.op.run is None):
            self._before[node.id] = self._run(node, self._before)

    def run_now(self, before: Node, now: Node) -> None:
        """Runs the changed node, after `run_before`, and lets go of what is not read any more."""
        if before.id in self:
            unchanged = before is now and self.same(before)
            self._now[now.id] = self._before[now.id] if unchanged else self._run(now, self._now)
        for source in set(before.sources):
            self._left[source] -= 1
            if not self._left[source]:
                self._drop(source)
        if not self._left[before.id]:
            self._drop(before.id)

    def _drop(self, node_id: NodeId) -> None:
        values = {id(v): v for kept in (self._before, self._now) for v in kept.pop(node_id, ())}
        self._room += sum(map(_bytes, values.values()))

    def _run(self, node: Node, values: Mapping[NodeId, list[Activation]]) -> list[Activation]:
        """The node on every batch, its parameters loaded once."""
        names = {f"operand {i}": tensor_of(p, self._dtype) for i, p in enumerate(node.inputs) if isinstance(p, Param)}
        operands = tuple(f"operand {i}" if isinstance(p, Param) else p for i, p in enumerate(node.inputs))
        bare = replace(node, inputs=operands)
        return [
            self._held(evaluate_node(bare, names | {s: values[s][b] for s in node.sources}, self._dtype)) for b in self._batches
        ]

    def _held(self, value: Activation) -> Activation:
        """The value, in memory while there is room, else in a file."""
        self._room -= _bytes(value)
        if self._room >= 0:
            return value
        return _pytree.tree_map_only(Tensor, _on_disk, value)

    def _inputs(self, graph: Graph, batches: Iterable[Batch]) -> dict[NodeId, list[Activation]]:
        values: dict[NodeId, list[Activation]] = {}
        for batch in inputs_of(graph, batches, self._dtype):
            for node_id, tensor in batch.items():
                values.setdefault(node_id, []).append(self._held(tensor))
        return values


def inputs_of(graph: Graph, batches: Iterable[Batch], dtype: torch.dtype = torch.float32) -> Iterator[dict[NodeId, Tensor]]:
    """Calibration data batch by batch, a tensor for each model input; floating ones in `dtype`.

    Raises InfeasiblePruneError where there is no batch, or one has not an array for each input.
    """
    inputs = [node.id for node in graph if isinstance(node.op, ops.Input)]
    empty = True
    for number, batch in enumerate(batches):
        empty = False
        arrays = (batch,) if isinstance(batch, Tensor | np.ndarray) else tuple(batch)
        if len(arrays) != len(inputs):
            raise InfeasiblePruneError(
                f"calibration: batch {number} has {len(arrays)} arrays, the model {len(inputs)} inputs "
                f"({', '.join(inputs)}); give a tuple with one array for each input"
            )
        yield {node_id: _tensor(array, dtype) for node_id, array in zip(inputs, arrays, strict=True)}
    if empty or not inputs:
        raise InfeasiblePruneError("calibration: the data holds no batch; give at least one, 32 images are enough")


def samples_in(batch: Iterable[Tensor]) -> int:
    """How many samples a batch of all model inputs holds; an input that is a number, or shorter, is one for all of them."""
    return max(len(value) if value.ndim else 1 for value in batch)


def _tensor(array: Array, dtype: torch.dtype) -> Tensor:
    tensor = (array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))).detach().cpu()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _one(node_id: NodeId, value: Activation) -> Tensor:
    if isinstance(value, Tensor):
        return value
    given = "several tensors" if isinstance(value, tuple) else f"the number {value!r}"
    raise InvalidGraphError(f"{node_id} gives {given}, but a conv or linear reads it as one")


def _bytes(value: Activation) -> int:
    return sum(part.element_size() * part.numel() for part in _pytree.tree_leaves(value) if isinstance(part, Tensor))


def _on_disk(value: Tensor) -> Tensor:
    """A copy that lives in a file without a name: it goes when the tensor does."""
    if not value.numel():
        return value
    with NamedTemporaryFile() as file:
        mapped = torch.from_file(file.name, shared=True, size=math.prod(value.shape), dtype=value.dtype)
    mapped.copy_(value.reshape(-1))
    return mapped.reshape(value.shape)
