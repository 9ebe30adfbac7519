"""networkx views of a graph: its edges, dominators, and the nodes between two values."""

from collections.abc import Iterable, Set

import networkx as nx

from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.ir.ops import Facts, Opaque

ENTRY = "(entry)"
"""A virtual node that feeds every node without sources, so that dominators are defined; no real id has parentheses first."""
_ASKS_FOR_SIZES = Facts.SIZE_QUERY | Facts.SIZES_ALONE


def dataflow(graph: Graph) -> "nx.DiGraph[NodeId]":
    """The nodes, with an edge from each value to each of its readers. Parameters do not count."""
    view: nx.DiGraph[NodeId] = nx.DiGraph()
    view.add_nodes_from(graph.nodes)
    view.add_edges_from((source, node.id) for node in graph for source in node.sources)
    return view


def immediate_dominators(graph: Graph, constants: Set[NodeId] = frozenset()) -> dict[NodeId, NodeId]:
    """For each id the last value that everything reaching it has passed; `ENTRY` where there is none.

    constants: values without sources that count as parameters do: nothing enters the graph by them, and they are left out.
    """
    view = dataflow(graph)
    view.add_node(ENTRY)  # of a graph without nodes too
    view.add_edges_from((ENTRY, node.id) for node in graph if not node.sources and node.id not in constants)
    return {node: above for node, above in nx.immediate_dominators(view, ENTRY).items() if node != ENTRY and above is not None}


def between(graph: Graph, source: NodeId, sink: NodeId) -> list[NodeId]:
    """The ids on the paths from `source`, which dominates `sink` and is left out, to `sink`; sources first."""
    found: set[NodeId] = set()
    stack = [sink]
    while stack:
        node_id = stack.pop()
        if node_id == source or node_id in found:
            continue
        found.add(node_id)
        stack.extend(graph[node_id].sources)
    return sorted(found, key=graph.position.__getitem__)


def read_for(nodes: Iterable[Node], wanted: Iterable[NodeId]) -> frozenset[NodeId]:
    """The ids of all that these values are computed from, and their own; of a graph, or of nodes in its order."""
    read = set(wanted)
    for node in reversed(tuple(nodes)):
        if node.id in read:
            read.update(node.sources)
    return frozenset(read)


def data_independent_nodes(graph: Graph) -> frozenset[NodeId]:
    """The ids whose values depend on the sizes of the model's inputs and not on their elements."""
    found: set[NodeId] = set()
    for node in graph:
        facts = node.op.facts if isinstance(node.op, Opaque) else Facts.NONE
        follows = node.sources and Facts.RANDOM not in facts and all(source in found for source in node.sources)
        if facts & _ASKS_FOR_SIZES or follows:
            found.add(node.id)
    return frozenset(found)


def dead_nodes(graph: Graph, data_independent: Set[NodeId]) -> frozenset[NodeId]:
    """The ids that no output depends on: what is left of views that were written through, of shapes that were folded.

    An opaque node that nothing reads may have an effect (an assertion), so that what it reads is alive; one that looks at sizes
    only has none.
    """
    alive = set(graph.outputs)
    for node in reversed(tuple(graph)):
        acts = isinstance(node.op, Opaque) and not graph.users[node.id] and node.id not in data_independent
        if acts or node.id in alive:
            alive.update((node.id, *node.sources))
    return frozenset(graph.nodes.keys() - alive)
