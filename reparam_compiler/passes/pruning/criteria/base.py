"""What a criterion of importance is, and what all of them read.

    criterion    Scoring -> a score for each group; the least important go first
    filter       the slice, along the output axis, of a conv or linear that a group runs through
    reader       a conv or linear that mixes the channels of a group: it loses the input slices that read them

The groups of a family stand in the same places equally often, so that all that belongs to a group is a row of one matrix.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family
from reparam_compiler.passes.pruning.coupling.labels import Labels, coupling_model, reads_channels
from reparam_compiler.passes.pruning.repair.activations import Batch

Scores = Float64[np.ndarray, "G"]
"""A score for each group number; what stands at 0, for what is fixed, is not read."""

Loss = Callable[[Tensor | tuple[Tensor, ...]], Tensor]
"""From the output of a model, or a tuple of its outputs where it has several, to a scalar."""


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """What a criterion sees.

    graph, groups: the model and its coupling.
    seed: for criteria that draw.
    batches: calibration data, an array for each model input, or one array alone; None where there is none. A criterion may go
        over them more than once.
    loss: what gradients are taken of; None is `gradient.default_loss`.
    widths: of each family, by name, after pruning, where the scores do not decide them: what stays then needs no order.
    """

    graph: Graph
    groups: ChannelGroups
    seed: int = 0
    batches: Iterable[Batch] | None = None
    loss: Loss | None = None
    widths: Mapping[str, int] | None = None

    def leaving(self, family: Family) -> int:
        """How many groups of a family leave; all of them where that is not known."""
        return len(family.groups) - (0 if self.widths is None else self.widths[family.name] // family.positions)


Criterion = Callable[[Scoring], Scores]
CRITERIA: dict[str, Criterion] = {}
"""The criteria by name."""
_CUMULATIVE: list[Criterion] = []


def register_criterion(name: str, *, cumulative: bool = False) -> Callable[[Criterion], Criterion]:
    """Registers a criterion under a name, for `prune(importance=...)`.

        @register_criterion("later ones")                # the channels that come first go first
        def later_ones(scoring: Scoring) -> Scores:
            return np.arange(scoring.groups.count, dtype=np.float64)

    >>> @register_criterion("the last channels go first")
    ... def position(scoring):
    ...     return -np.arange(scoring.groups.count, dtype=np.float64)

    Args:
        name: what callers say.
        cumulative: the score of a group is the error when it *and all of its family that score less* are gone, not its own.

    Raises:
        ValueError: the name is taken.
    """

    def register(criterion: Criterion) -> Criterion:
        if name in CRITERIA:
            raise ValueError(f"the criterion {name} is registered already")
        CRITERIA[name] = criterion
        if cumulative:
            _CUMULATIVE.append(criterion)
        return criterion

    return register


def is_cumulative(criterion: str | Criterion) -> bool:
    """True for a criterion that was registered as cumulative."""
    chosen = CRITERIA.get(criterion) if isinstance(criterion, str) else criterion
    return any(chosen is known for known in _CUMULATIVE)


def stands(node: Node, index: int, axis: int, axes: Iterable[int]) -> Literal["filters", "read", "made"]:
    """What an axis of a parameter is to the channels along it: it makes them, reads them, or is otherwise a part of them.

    Args:
        node, index: the input of the node that the parameter is.
        axis: which axis.
        axes: all axes of it that carry labels. The input axis of a depthwise conv carries none.
    """
    op = coupling_model(node)[0]
    if op.operands.name(index) != "weight" or not isinstance(op, ops.Weighted | ops.Embedding):
        return "made"
    return "read" if isinstance(op, ops.Weighted) and axis == op.input_axis and reads_channels(node, axes) else "filters"


@dataclass(frozen=True, slots=True, eq=False)
class Filters:
    """The filters of a conv, a linear or an embedding: its weight, the axis of its outputs, and the labels along it."""

    weight: Param
    axis: int
    labels: Labels

    def rows(self) -> Float64[np.ndarray, "O D"]:
        """Loads them, a filter a row."""
        return self._in_rows(self.weight.float64())

    def stored_rows(self) -> np.ndarray:
        """The same in the dtype that they are stored in, which may be views of the model's own."""
        return self._in_rows(np.asarray(self.weight.load()))

    def _in_rows(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, self.axis, 0).reshape(len(self.labels), -1)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A conv or linear that mixes channels.

    node: the conv or linear. weight: its weight.
    source: what it reads, whose channels stand along `axis`.
    numbers: the group of each of these channels, 0 for one that is fixed.
    """

    node: Node
    weight: Param
    source: NodeId
    axis: int
    numbers: Int64[np.ndarray, "R"]

    def slices(self) -> Float64[np.ndarray, "B O C K"]:
        """Loads the weight: blocks (groups of a conv), outputs and inputs of a block, taps.

        The taps of a transposed conv go to different places of its output: they count as outputs.
        """
        array = self.weight.float64()
        blocks = self.node.op.blocks if isinstance(self.node.op, ops.Weighted) else 1
        if isinstance(self.node.op, ops.ConvTranspose):
            return np.moveaxis(array.reshape(blocks, len(array) // blocks, -1), 1, 2)[..., None]
        return array.reshape(blocks, len(array) // blocks, array.shape[1], -1)


def readers(graph: Graph, groups: ChannelGroups) -> tuple[Reader, ...]:
    """The convs and linears that mix channels which could be removed, in the order of the graph."""
    consumers = []
    for node in graph:
        weight = node.operand("weight") if isinstance(node.op, ops.Weighted) else None
        if not isinstance(weight, Param) or not reads_channels(node, groups.along(node, "weight")):
            continue
        value = groups.value(node.sources[0])
        if value.axis is not None and value.labels.any():
            axis = 1 if node.op.channels_second else -1
            consumers.append(Reader(node, weight, node.sources[0], axis, groups.number[value.labels]))
    return tuple(consumers)


def filters(scoring: Scoring) -> Iterator[Filters]:
    """The filters of all convs, linears and embeddings; those of a weight that is shared once."""
    seen: set[Param] = set()
    for node, index, weight, axes in scoring.groups.params(scoring.graph):
        if weight in seen:
            continue
        for axis, labels in axes.items():
            if stands(node, index, axis, axes) == "filters":
                seen.add(weight)
                yield Filters(weight, axis, labels)


def family_filters(scoring: Scoring) -> Iterator[tuple[Family, Float64[np.ndarray, "F D"]]]:
    """For each family that can be cut all its filters, a row for each of its groups."""
    every = list(filters(scoring))
    for family in scoring.groups.free:
        rows = [
            own.rows()[places].reshape(len(family.groups), -1)
            for own in every
            if (places := places_of(family, scoring.groups.number[own.labels])).size
        ]
        if rows:
            yield family, np.concatenate(rows, 1)


def places_of(family: Family, numbers: Int64[np.ndarray, "C"]) -> Int64[np.ndarray, "F P"]:
    """Where each group of a family stands among channels of these group numbers, in order."""
    order = np.argsort(numbers, kind="stable")
    own = order[np.isin(numbers[order], family.groups)]
    rank = np.argsort(np.argsort(family.groups))  # the numbers of a family need not be sorted
    return own.reshape(len(family.groups), -1)[rank] if own.size else own.reshape(len(family.groups), 0)


def summed(scoring: Scoring, values_of: Iterable[tuple[Labels, Float64[np.ndarray, "O"]]]) -> Scores:
    """For each group the sum of what stands at its labels."""
    scores = np.zeros(scoring.groups.count)
    for labels, values in values_of:
        np.add.at(scores, scoring.groups.number[labels], values)
    return scores
