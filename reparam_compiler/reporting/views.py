"""Graphs as a page shows them: each node in words and numbers, with the module that it is of.

The module of a node is told by the name of its first parameter, or by the path in its own id as torch's exporters write it; a
node without either (a sum, an activation) is of the module that the value it reads was made in last.
"""

from collections import Counter
from math import prod

import numpy as np

from reparam_compiler.cost.model import Work, alive_bytes, work
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.printer import type_text
from reparam_compiler.passes.fusion.fuse_branches import op_text
from reparam_compiler.reporting.memory import measured_bytes
from reparam_compiler.reporting.page import GraphView, Layer, NodeView, OpCount, Parameter, Range, Region

_SHOWN = 100_000_000
"""Elements of a parameter that are read for their range; a larger one has none."""


def view_of(graph: Graph) -> GraphView:
    """The graph for a page."""
    alive = alive_bytes(graph) or {}
    measured = measured_bytes(graph)
    paths = module_paths(graph)
    nodes = tuple(
        NodeView(
            node.id,
            kind_of(node.op),
            op_text(node.op),
            type_text(node.type),
            paths[node.id],
            tuple(dict.fromkeys(node.sources)),
            tuple(Parameter(param.role, param.shape, param.dtype, param.origin or "") for param in node.params),
            alive.get(node.id),
            measured.get(node.id),
        )
        for node in graph
    )
    return GraphView(nodes, graph.outputs)


def kind_of(op: ops.Op) -> str:
    """What an op is called in a count of ops.

    >>> kind_of(ops.Input())
    'input'
    """
    return op.name.split(" ")[0]


def module_paths(graph: Graph) -> dict[NodeId, str]:
    """For each node the dotted name of the module that it is of; "" for one that nothing tells of."""
    found: dict[NodeId, str] = {}
    for node in graph:
        if (own := _own_path(node)) is not None:
            found[node.id] = own
            continue
        last = max(node.sources, key=graph.position.__getitem__, default=None)
        path = found[last] if last is not None else ""
        found[node.id] = path.rpartition(".")[0] if last is not None and graph[last].params else path
    return found


def _own_path(node: Node) -> str | None:
    if node.id.startswith("/"):
        return _joined(node.id.split("/")[1:-1])
    origins = [param.origin for param in node.params if param.origin and "::" not in param.origin]
    return origins[0].rpartition(".")[0] if origins and "." in origins[0] else None


def _joined(names: list[str]) -> str:
    """The path of nested names, each of which may repeat those before it: layer1, layer1.0, conv1 is layer1.0.conv1."""
    path = ""
    for name in names:
        path = name if name == path or name.startswith(f"{path}.") else f"{path}.{name}".lstrip(".")
    return path


def op_counts(before: Graph, after: Graph | None) -> tuple[OpCount, ...]:
    """How many nodes of each kind, the most frequent first."""
    counts = [Counter(kind_of(node.op) for node in graph) for graph in (before, after) if graph is not None]
    kinds = sorted(set().union(*counts), key=lambda kind: (-counts[0][kind], kind))
    return tuple(OpCount(kind, counts[0][kind], counts[1][kind] if after is not None else None) for kind in kinds)


def layers_of(graph: Graph, regions: tuple[Region, ...]) -> tuple[Layer, ...]:
    """The nodes of a graph that compute something; the range of a fused weight is that of its region."""
    ranges = {region.node: (region.weight, region.weight_range) for region in regions}
    return tuple(_layer(node, graph, ranges) for node in graph if not node.op.takes_no_time)


def bytes_moved(graph: Graph) -> int:
    """What all nodes read and write in one run, weights too."""
    return sum(_work(node, graph).bytes for node in graph)


def _work(node: Node, graph: Graph) -> Work:
    return work(node.op, node.params, sum(_elements(graph[name]) for name in node.sources), _elements(node))


def _layer(node: Node, graph: Graph, ranges: dict[NodeId, tuple[tuple[int, ...], Range]]) -> Layer:
    done = _work(node, graph)
    weight = node.params[0] if node.params and isinstance(node.op, ops.Weighted) else None
    known = ranges.get(node.id)
    spread = None if weight is None else known[1] if known is not None and known[0] == weight.shape else _range(weight)
    return Layer(
        node.id,
        kind_of(node.op),
        weight.shape if weight is not None else (),
        type_text(node.type),
        done.multiply_adds,
        done.bytes,
        spread,
    )


def _elements(node: Node) -> int:
    """The elements of a value; 0 where they are not known."""
    shape = node.type.static_shape if node.type is not None else None
    return 0 if shape is None else prod(shape)


def _range(param: Param) -> Range | None:
    """The least and the largest element of a parameter; None where there is none, or they are not finite."""
    if not 0 < param.count <= _SHOWN:
        return None
    array = np.asarray(param.load())
    low, high = float(array.min()), float(array.max())
    return (low, high) if np.isfinite([low, high]).all() else None
