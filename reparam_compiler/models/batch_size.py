"""How many samples a model takes at a time: as many as one likes, or those of its export alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.vocabulary.dtypes import FLOATING

_CLOSE = 1e-3
"""Of the largest output: what float32 may make of the same samples in another batch."""
_NO_BATCH = ops.Facts.CHECK | ops.Facts.ARGUMENT


def fixed_batch(graph: Graph) -> int | None:
    """The samples that a model must be run on at a time; None where any number will do.

    A model that was exported for a batch of one often holds `reshape(x, (1, 64, -1))`, and then another batch does not go
    through, or its samples are mixed up. Where an op, or a constant of that many samples, may do that, the graph is run on
    random samples, the stated number of them, one more, and all together: what it gives for all must be what it gives for each
    of both.
    """
    inputs = [node for node in graph if isinstance(node.op, ops.Input)]
    sizes = {None if node.type is None else node.type.shape[0] for node in inputs if node.type is None or node.type.shape}
    size = sizes.pop() if len(sizes) == 1 else None
    if not isinstance(size, int) or not any(_may_state(node.op) or _holds_samples(node, size) for node in graph):
        return None
    every = {node.id: _random(node, size + 1, seed) for seed, node in enumerate(inputs)}
    try:
        stated = _outputs(graph, {key: value[:size] if value.ndim else value for key, value in every.items()})
    except Exception:  # noqa: BLE001 - an op that is opaque runs the model's own code; outside its model it raises what it likes
        return size if graph.sizes_are_fixed else None
    try:
        one = _outputs(graph, {key: value[size:] if value.ndim else value for key, value in every.items()})
        together = _outputs(graph, every)
    except Exception:  # noqa: BLE001 - as above
        return size
    return None if all(map(_side_by_side, together, stated, one)) else size


def _may_state(op: ops.Op) -> bool:
    """True for an op that may give the first axis a size of its own, or another axis its place."""
    if isinstance(op, ops.Opaque):
        return not op.facts & _NO_BATCH
    return isinstance(op, ops.Reshape | ops.Expand) and op.shape[:1] != (0,)


def _holds_samples(node: Node, size: int) -> bool:
    """True for an op that reads a constant of as many samples as its value has."""
    rank = None if node.type is None else len(node.type.shape)
    constants = [] if isinstance(node.op, ops.Weighted) else node.params
    return any(len(param.shape) == rank and param.shape[0] == size for param in constants)


def _random(node: Node, samples: int, seed: int) -> Tensor:
    """Samples for an input, a number for one without axes; sizes that are not known are small."""
    known = node.type
    sizes = () if known is None else known.shape
    shape = [samples, *(size if isinstance(size, int) else 2 for size in sizes[1:])] if known is None or sizes else []
    drawn = np.random.default_rng(seed)
    if known is None or known.dtype in FLOATING:
        return torch.from_numpy(drawn.standard_normal(shape, dtype=np.float32))
    whole = torch.from_numpy(np.asarray(drawn.integers(0, 2, shape)))
    return whole.bool() if known.dtype == "bool" else whole


def _outputs(graph: Graph, inputs: dict[NodeId, Tensor]) -> Sequence[Tensor]:
    values = evaluate(graph, inputs, dtype=torch.float32)
    return [values[node_id] for node_id in graph.outputs if isinstance(values[node_id], Tensor)]


def _side_by_side(together: Tensor, first: Tensor, second: Tensor) -> bool:
    """True where a value is two others, one after the other along some axis."""
    if not first.ndim == second.ndim == together.ndim:
        return False
    axes = [axis for axis, size in enumerate(together.shape) if size != first.shape[axis]]
    if len(axes) != 1 or _without(first, axes[0]) != _without(second, axes[0]):
        return False
    expected = torch.cat([first, second], axes[0])
    if expected.shape != together.shape:
        return False
    finite = expected[expected.isfinite()]
    room = _CLOSE * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(together.double(), expected.double(), rtol=0.0, atol=room, equal_nan=True)


def _without(value: Tensor, axis: int) -> tuple[int, ...]:
    """The sizes along all other axes."""
    return (*value.shape[:axis], *value.shape[axis + 1 :])
