"""What memory the values of a graph take when torch runs it, measured beside the plan (`cost.model.alive_bytes`).

    measured(node) = bytes of the storages that torch has not freed once the node has run

Op by op, in float32, each value given up after its last reader. Nothing runs in place, so that an op which the plan lets write
over its input holds both. Parameters, and what a kernel takes for itself meanwhile, do not count.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from reparam_compiler.cost.model import Cost, cost
from reparam_compiler.errors import ReparamError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, NodeId, TensorType
from reparam_compiler.passes.pruning.criteria.running import Running
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

MOST_PARAMETERS, MOST_MULTIPLY_ADDS, MOST_ACTIVATION_BYTES = 10**8, 10**11, 2**30
"""Of a graph that is run for a report: half a GB of weights, some seconds, a GiB of values at once."""


def measured_bytes(graph: Graph) -> dict[NodeId, int]:
    """For each node that gives one tensor the bytes that are alive once it has run.

    Nothing where the graph is not run: sizes are not known, floats are of another dtype, a node cannot be run outside its
    model, or it is too large, here or for torch.
    """
    types = {node.id: node.type for node in graph}
    floats = {type.dtype for type in types.values() if type is not None} & FLOATING.keys()
    done = cost(graph)
    if done.activation_bytes is None or floats - {"f32"} or _too_large(done):
        return {}
    held = _Held()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            Running(graph).outputs(_Inputs(graph), held.see)
    except (ReparamError, RuntimeError, MemoryError):  # the latter two of an input that torch has no room for
        return {}
    return held.found


def _too_large(done: Cost) -> bool:
    """Whether a run would take too long, or too much memory."""
    bounds = ((done.params, MOST_PARAMETERS), (done.flops, MOST_MULTIPLY_ADDS), (done.activation_bytes, MOST_ACTIVATION_BYTES))
    return any((found or 0) > most for found, most in bounds)


class _Held:
    """The storages of the values that were seen, and for each value the bytes of those that were alive then."""

    def __init__(self) -> None:
        self.found: dict[NodeId, int] = {}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def see(self, node: NodeId, value: Tensor) -> None:
        storage = value.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._alive = {key: known for key, known in self._alive.items() if not known[0].expired()}  # type: ignore[no-untyped-call]
        self._alive[reference.cdata] = reference, storage.nbytes()
        self.found[node] = sum(size for _, size in self._alive.values())


class _Inputs(Mapping[NodeId, Tensor]):
    """Zeros for each input, made when it is asked for: nobody else holds them, so that they are freed as other values are."""

    def __init__(self, graph: Graph) -> None:
        self._types = {node.id: node.type for node in graph if isinstance(node.op, ops.Input)}

    def __getitem__(self, name: NodeId) -> Tensor:
        type = self._types[name]
        assert isinstance(type, TensorType)
        return torch.zeros(type.static_shape or (), dtype=getattr(torch, DTYPES[type.dtype].name))

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)
