"""Which nodes of a large graph are shown as one until somebody opens them: modules, or blocks that repeat.

A group is named by the path of its module. Where the nodes of a model have no modules (an ONNX file whose names were lost), a
block begins at each layer with weights that all data passes, and blocks of the same ops in a row are a group of groups:

    conv relu conv relu conv relu pool      ->      [conv relu] x 3   pool
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from reparam_compiler.reporting.page import GraphView, NodeView

FEWEST = 3
"""Nodes of a group."""
REPEATED = 2
"""Blocks of the same ops in a row that are a group."""
SHOWN = 220
"""Nodes that a page shows at once before anything is opened or closed."""
_NAMED = 0.5
"""The share of nodes that must have modules."""


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that can be shown as one. parent: the group round it, "" where there is none."""

    name: str
    label: str
    parent: str
    count: int


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups of a graph, outer ones first; the groups that each node is in, outermost first; and which begin open."""

    groups: tuple[Group, ...]
    chains: Mapping[str, tuple[str, ...]]
    opened: tuple[str, ...]


def grouped(graph: GraphView) -> Grouping:
    """The groups of a graph."""
    named = sum(bool(node.path) for node in graph.nodes)
    paths = {node.id: prefixes(node.path) for node in graph.nodes} if named > _NAMED * len(graph.nodes) else _blocks(graph)
    counts = Counter(name for chain in paths.values() for name in chain)
    chains: dict[str, tuple[str, ...]] = {}
    groups: dict[str, Group] = {}
    for node_id, chain in paths.items():
        kept: list[str] = []
        size = len(graph.nodes)
        for name in chain:
            if FEWEST <= counts[name] < size:
                groups.setdefault(name, Group(name, name, kept[-1] if kept else "", counts[name]))
                kept.append(name)
                size = counts[name]
        chains[node_id] = tuple(kept)
    return Grouping(tuple(groups.values()), chains, _opened(groups, chains))


def _opened(groups: Mapping[str, Group], chains: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The groups of as many levels as can be open with `SHOWN` nodes in sight."""
    depth = 0
    while depth < max(map(len, chains.values()), default=0) and _in_sight(chains, depth + 1) <= SHOWN:
        depth += 1
    outer = {name for chain in chains.values() for name in chain[:depth]}
    return tuple(name for name in groups if name in outer)


def _in_sight(chains: Mapping[str, tuple[str, ...]], depth: int) -> int:
    """How many nodes and closed groups are seen where the first levels are open."""
    return len({chain[depth] if len(chain) > depth else f"node {node_id}" for node_id, chain in chains.items()})


def prefixes(path: str) -> tuple[str, ...]:
    """The paths of the modules round one, and its own: a.b gives a and a.b."""
    names = path.split(".") if path else []
    return tuple(".".join(names[: end + 1]) for end in range(len(names)))


def _blocks(graph: GraphView) -> dict[str, tuple[str, ...]]:
    """For each node its block, and the run of equal blocks that this is in."""
    blocks = list(_cut_at_layers(graph))
    chains: dict[str, tuple[str, ...]] = {}
    number = 0
    for _, same in groupby(blocks, key=_signature):
        run = list(same)
        names = [f"block {number + place + 1}" for place in range(len(run))]
        outer = (f"blocks {number + 1} to {number + len(run)}",) if len(run) >= REPEATED else ()
        for name, block in zip(names, run, strict=True):
            chains.update((node.id, (*outer, name)) for node in block)
        number += len(run)
    return chains


def _signature(block: Sequence[NodeView]) -> tuple[str, ...]:
    return tuple(f"{node.op} {[param.shape for param in node.params]}" for node in block)


def _cut_at_layers(graph: GraphView) -> Iterator[list[NodeView]]:
    """The nodes in blocks: one begins at a node with parameters before which a single value is alive."""
    last = {source: place for place, node in enumerate(graph.nodes) for source in node.sources}
    block: list[NodeView] = []
    alive: set[str] = set()
    for place, node in enumerate(graph.nodes):
        if block and node.params and len(alive) <= 1:
            yield block
            block = []
        block.append(node)
        alive.add(node.id)
        alive = {name for name in alive if last.get(name, -1) > place}
    if block:
        yield block
