"""What a graph costs: parameters, theoretical FLOPs, Winograd MULs and activation memory, as the paper counts them (Table 4).

FLOPs   a multiply-add of a conv counts one: O * I/groups * |K| for each output position; the linear layer is left out
MULs    F(2x2, 3x3) needs 16 multiplications where a 3x3 conv of stride 1 has 36: one that is neither dilated nor depthwise
        counts 4/9, and so does a 6x6 conv of stride 2, which is such a conv on the phases of its source; all others in full

and how long an op takes by a roofline, which is what decides whether a fusion pays:

    seconds = max(MULs / rate, bytes / bandwidth) + launch
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.vocabulary.dtypes import DTYPES

_USUAL_BYTES = 4


def element_bytes(dtype: str) -> int:
    """The bytes of an element: of a dtype that the graph has no word for by the bits in its name, and 4 where there are none.

    >>> element_bytes("bf16"), element_bytes("complex64"), element_bytes("float8_e4m3fn"), element_bytes("string")
    (2, 8, 1, 4)
    """
    if dtype in DTYPES:
        return DTYPES[dtype].bytes
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else _USUAL_BYTES


@dataclass(frozen=True, slots=True)
class Work:
    """What one op, or several, do in one run.

    multiply_adds: of convs and linear layers. muls: the same with F(2x2, 3x3). bytes: read and written, weights too.
    launches: how many ops there are that compute.
    """

    multiply_adds: int
    muls: float
    bytes: int
    launches: int

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.multiply_adds + other.multiply_adds,
            self.muls + other.muls,
            self.bytes + other.bytes,
            self.launches + other.launches,
        )


NO_WORK = Work(0, 0.0, 0, 0)


@dataclass(frozen=True, slots=True)
class CostModel:
    """How fast a machine is; the defaults are those of an AVX2 core whose activations are mostly in a cache.

    muls_per_second, bytes_per_second, launch_seconds: as in the equation above.

    >>> CostModel(muls_per_second=2e9, launch_seconds=1e-6).seconds(Work(0, 4e6, 0, 1))
    0.002001
    """

    muls_per_second: float = 5e10
    bytes_per_second: float = 3e10
    launch_seconds: float = 5e-6

    def seconds(self, work: Work) -> float:
        """An estimate for one op."""
        moved = work.bytes / self.bytes_per_second
        return max(work.muls / self.muls_per_second, moved) + work.launches * self.launch_seconds


USUAL = CostModel()
"""A usual CPU."""


def work(op: ops.Op, params: Sequence[Param], read: int, written: int) -> Work:
    """What an op does that reads and writes so many elements; one that only names its input anew does nothing."""
    if op.takes_no_time:
        return NO_WORK
    element = element_bytes(params[0].dtype) if params else _USUAL_BYTES
    size = element * (read + written + sum(param.count for param in params))
    if not params or not isinstance(op, ops.Weighted):
        return Work(0, 0.0, size, 1)
    multiply_adds = (read if isinstance(op, ops.ConvTranspose) else written) * prod(params[0].shape[1:])
    return Work(multiply_adds, _winograd_muls(op, params[0].shape, multiply_adds), size, 1)


def _winograd_muls(op: ops.Op, weight: tuple[int, ...], multiply_adds: int) -> float:
    """The multiplications with F(2x2, 3x3) of an op that has a weight of this shape."""
    thrice = isinstance(op, ops.Conv) and op.dilation == (1, 1) and weight[2:] == tuple(3 * s for s in op.stride)
    takes_it = thrice and weight[1] > 1
    return multiply_adds * 4 / 9 if takes_it else float(multiply_adds)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a graph costs, for the shapes that it was read with.

    params: numbers in weights and biases (statistics of norms are not counted, and shared ones once).
    convs: how many there are, transposed ones too.
    flops: multiply-adds of all convs, for the whole batch; None where a shape is not known.
    winograd_muls: multiplications of the same with F(2x2, 3x3); None likewise.
    activation_bytes: the most that values alive at one time take, elementwise ops done in place where they can be (Fig. 3);
        None likewise.
    """

    params: int
    convs: int
    flops: int | None
    winograd_muls: float | None
    activation_bytes: int | None


def cost(graph: Graph) -> Cost:
    """The cost of a graph."""
    convs = [node for node in graph if isinstance(node.op, ops.Weighted) and node.op.spatial_rank is not None]
    counts = [_multiply_adds(node, graph) for node in convs]
    known = [count for count in counts if count is not None]
    whole = len(known) == len(counts)
    return Cost(
        params=sum(param.count for param in graph.param_users if param.role in ("weight", "bias")),
        convs=len(convs),
        flops=sum(known) if whole else None,
        winograd_muls=sum(
            _winograd_muls(node.op, node.params[0].shape, count) for node, count in zip(convs, known, strict=True)
        )
        if whole
        else None,
        activation_bytes=None if (alive := alive_bytes(graph)) is None else max(alive.values(), default=0),
    )


def _multiply_adds(node: Node, graph: Graph) -> int | None:
    """Of a conv, by its output; a transposed one uses each of its weights once for each position of its input."""
    counted = graph[node.sources[0]] if isinstance(node.op, ops.ConvTranspose) else node
    shape = counted.type.static_shape if counted.type is not None else None
    return None if shape is None else prod(shape) * prod(node.params[0].shape[1:])


def alive_bytes(graph: Graph) -> dict[NodeId, int] | None:
    """For each node the bytes of the values that are alive while it runs; None where a shape is not known (Fig. 3).

    A value lives from the op that makes it to the last that reads it, outputs to the end; ops that can run in place do.
    """
    sizes: dict[NodeId, int] = {}
    for node in graph:
        shape = node.type.static_shape if node.type is not None else None
        if node.type is None or shape is None:
            return None
        sizes[node.id] = prod(shape) * element_bytes(node.type.dtype)
    left = {node_id: len(readers) for node_id, readers in graph.users.items()}
    found: dict[NodeId, int] = {}
    alive = 0
    for node in graph:
        x = node.sources[0] if node.op.in_place and node.sources else None
        in_place = x is not None and left[x] == 1 and x not in graph.outputs
        alive += 0 if in_place else sizes[node.id]
        found[node.id] = alive
        for source in set(node.sources):
            left[source] -= 1
            if not left[source] and source not in graph.outputs and not in_place:
                alive -= sizes[source]
    return found
