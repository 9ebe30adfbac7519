"""A model that was written and read again has other names for its nodes: they are told apart by what they compute from what."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from reparam_compiler.ir.graph import Graph, Node, NodeId


def names_in(graph: Graph, other: Graph) -> dict[NodeId, NodeId]:
    """For each node of a graph the id that it has in another reading of the same model; its own where none is like it.

    A node is like another where ops and shapes of parameters are equal and what they read is. Of several the first is taken.
    """
    free: defaultdict[object, list[NodeId]] = defaultdict(list)
    for node in reversed(tuple(other)):
        free[_key(node, {})].append(node.id)
    names: dict[NodeId, NodeId] = {}
    taken: set[NodeId] = set()
    for node in graph:
        like = free.get(_key(node, names))
        names[node.id] = like.pop() if like else node.id
        taken.add(names[node.id])
    return names if len(taken) == len(names) else {node_id: node_id for node_id in names}


def _key(node: Node, names: Mapping[NodeId, NodeId]) -> object:
    sources = tuple(names.get(source, source) for source in node.sources)
    return type(node.op), node.op.name, sources, tuple(param.shape for param in node.params)


def renamed(graph: Graph, names: Mapping[NodeId, NodeId]) -> Graph:
    """The graph with other ids for its nodes."""

    def of(node: Node) -> Node:
        inputs = tuple(names.get(operand, operand) if isinstance(operand, str) else operand for operand in node.inputs)
        return replace(node, id=names.get(node.id, node.id), inputs=inputs)

    made = Graph.of(map(of, graph), (names.get(output, output) for output in graph.outputs))
    return replace(graph, nodes=made.nodes, outputs=made.outputs)
