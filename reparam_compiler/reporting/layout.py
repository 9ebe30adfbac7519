"""Where nodes stand: in rows from inputs to outputs, by igraph's layered layout (Sugiyama), which also bends long edges.

Two graphs of one model share their rows, so that what became of a region stands beside it. A row whose nodes are all folded
away takes no height on the page: there, nothing is laid out anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from reparam_compiler.reporting.page import GraphView, Region

_ROUNDS = 24
"""Of crossing reduction."""
Point = tuple[float, int]
"""A column and a row."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge between two places of nodes in their graph, and the points that it passes."""

    source: int
    target: int
    bends: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """For each node, in order, its column and its row; and the edges."""

    columns: tuple[float, ...]
    rows: tuple[int, ...]
    edges: tuple[Edge, ...]


def side_by_side(before: GraphView, after: GraphView | None, regions: Sequence[Region]) -> list[Layout]:
    """The layouts of a model before and after, or of the one that there is."""
    rows = _rows(before, {})
    if after is None:
        return [_laid_out(before, rows)]
    middle = {
        region.node: median_low([rows[name] for name in region.nodes if name in rows])
        for region in regions
        if any(name in rows for name in region.nodes)
    }
    return [_laid_out(before, rows), _laid_out(after, _rows(after, rows | middle))]


def _rows(graph: GraphView, known: Mapping[str, int]) -> dict[str, int]:
    """The row of each node: the known one, or that behind all it reads; what reads nothing stands before its first reader."""
    rows: dict[str, int] = {}
    for node in graph.nodes:
        behind = max((rows[source] + 1 for source in node.sources), default=0)
        rows[node.id] = max(behind, known.get(node.id, 0))
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for source in node.sources:
            readers[source] = min(readers.get(source, rows[node.id]), rows[node.id])
    late = {node.id: readers[node.id] - 1 for node in graph.nodes if not node.sources and node.id in readers}
    return rows | {name: max(row, 0) for name, row in late.items() if name not in known}


def _laid_out(graph: GraphView, rows: Mapping[str, int]) -> Layout:
    """Each connected part by itself, side by side: igraph 1.0 crashes where it is given several and their layers."""
    import igraph

    place = {node.id: index for index, node in enumerate(graph.nodes)}
    pairs = [(place[source], place[node.id]) for node in graph.nodes for source in node.sources]
    layers = [rows[node.id] for node in graph.nodes]
    whole = igraph.Graph(len(layers), pairs, directed=True)
    columns, bends, right = [0.0] * len(layers), dict[tuple[int, int], tuple[Point, ...]](), 0.0
    for part in map(sorted, whole.connected_components(mode="weak")):
        own = whole.induced_subgraph(part)
        first = min(layers[index] for index in part)
        found = own.layout_sugiyama(layers=[layers[index] - first for index in part], maxiter=_ROUNDS)
        for index, (x, _) in zip(part, found.coords, strict=True):
            columns[index] = x + right
        for edge, points in zip(own.es, found.edge_routing, strict=True):
            bends[part[edge.source], part[edge.target]] = tuple((round(x + right, 2), round(y) + first) for x, y in points)
        right = max(columns[index] for index in part) + 1
    edges = (Edge(*pair, bends[pair]) for pair in pairs)
    return Layout(tuple(_apart(columns, layers)), tuple(layers), tuple(edges))


def _apart(columns: Sequence[float], rows: Sequence[int]) -> list[float]:
    """The columns, moved as little as need be for the nodes of a row to stand one apart: igraph aligns some at a half."""
    moved = list(columns)
    in_row: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        in_row.setdefault(row, []).append(place)
    for places in in_row.values():
        ordered = sorted(places, key=lambda place: columns[place])
        for place, column in zip(ordered, separated([columns[place] for place in ordered]), strict=True):
            moved[place] = round(column, 2)
    return moved


def separated(columns: Sequence[float]) -> list[float]:
    """The numbers nearest to these, in the mean of squares, of which each is at least one above the last: isotonic regression.

    >>> separated([0.0, 0.5, 4.0])
    [-0.25, 0.75, 4.0]
    """
    pools: list[tuple[float, int]] = []  # the mean and the count of numbers that touch
    for place, column in enumerate(columns):
        mean, count = column - place, 1
        while pools and pools[-1][0] > mean:
            other, more = pools.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        pools.append((mean, count))
    flat = [mean for mean, count in pools for _ in range(count)]
    return [mean + place for place, mean in enumerate(flat)]
