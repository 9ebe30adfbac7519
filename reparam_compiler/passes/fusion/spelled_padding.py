"""Padding that is spelled in slices, indices and writes, found by where the elements of its source come out.

A decomposed program has no op that reflects, repeats or wraps a border:

    index(x, [1, 0, 1, 2 … n - 1, n - 2])                                    reflect; replicate and circular likewise
    slice_update(slice_update(empty, x), x[-1:] …)                           circular, an end of an axis at a time
    concat(x[-1:], x, x[:1])                                                 the same, as people write it

What moves elements along spatial axes, and does nothing else, is run on a source whose elements are all different. If each one
comes out where a `Pad` puts it, on every size that the model may have, the ops stand for that `Pad`. Whoever uses it proves it.
"""

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from reparam_compiler.core.drawn import is_drawn
from reparam_compiler.core.kernel import Ints, PaddingMode
from reparam_compiler.errors import ReparamError
from reparam_compiler.interpreter.evaluate import evaluate_region
from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import read_for
from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.regions import Region

_OPEN = ((7, 9, 8), (12, 10, 11), (23, 24, 25))
"""Sizes that are tried where a model has no fixed ones."""
_WIDEST = 64
"""Positions that padding adds to an axis; more is no padding of a conv."""
_MODES: tuple[PaddingMode, ...] = ("reflect", "replicate", "circular")


def with_pads(graph: Graph, region: Region, data_independent: Set[NodeId], layout: SourceLayout) -> Region | None:
    """The region with a `Pad` in place of what spells one; None where nothing does."""
    if layout.last or layout.rank < 1:
        return None
    pads = {spelled.sink: pad for spelled in _spelled(region, data_independent) if (pad := _as_pad(graph, spelled, layout))}
    if not pads:
        return None
    return Region(region.source, region.sink, _needed([pads.get(node.id, node) for node in region.nodes], region.sink))


@dataclass(frozen=True, slots=True)
class _Spelled:
    """Nodes that move elements of one value, in order; the last is the sink."""

    source: NodeId
    sink: NodeId
    nodes: tuple[Node, ...]


def _spelled(region: Region, data_independent: Set[NodeId]) -> Iterator[_Spelled]:
    """What moves elements of one value of a region, up to where something else reads them."""
    entries: dict[NodeId, set[NodeId]] = {}
    for node in region.nodes:
        if node.id not in data_independent and _moves(node):
            computed = [source for source in node.sources if source not in data_independent]
            entries[node.id] = set[NodeId]().union(*(entries.get(source, {source}) for source in computed))
    for node in region.nodes:
        further = any(node.id in other.sources for other in region.nodes if other.id in entries)
        if len(entries.get(node.id, ())) == 1 and not further:
            (source,) = entries[node.id]
            inside = {n.id for n in region.nodes if n.id in data_independent or entries.get(n.id) == {source}}
            nodes = _needed([n for n in region.nodes if n.id in inside], node.id)
            alone = {source, *(n.id for n in nodes)}.issuperset(read for n in nodes for read in n.sources)
            if alone and any(not isinstance(n.op, ops.Slice) for n in nodes):
                yield _Spelled(source, node.id, nodes)


def _moves(node: Node) -> bool:
    op = node.op
    if isinstance(op, ops.Slice | ops.Concat):
        return op.axis >= 2
    return isinstance(op, ops.SliceUpdate | ops.Identity | ops.Opaque)


def _needed(nodes: Sequence[Node], sink: NodeId) -> tuple[Node, ...]:
    """Those of the nodes that the sink depends on."""
    read = read_for(nodes, [sink])
    return tuple(node for node in nodes if node.id in read)


def _as_pad(graph: Graph, spelled: _Spelled, layout: SourceLayout) -> Node | None:
    """The pad that some nodes are on every size that they run on."""
    fitting: list[set[ops.Pad]] = []
    for shape in filter(is_drawn, _shapes(graph, spelled.source, layout)):
        x = torch.arange(1.0, 1.0 + prod(shape), dtype=torch.float64).reshape(shape)
        with suppress(ReparamError):  # other sizes than those that a constant is for
            y: object = evaluate_region(spelled.nodes, spelled.source, x)
            fitting.append(_pads(x, y) if isinstance(y, Tensor) else set())  # what splits gives several
    if len(fitting) < (1 if _fixed_shape(graph, spelled.source) else 2):
        return None
    common = set.intersection(*fitting)
    pad = min(common, key=lambda op: _MODES.index(op.mode), default=None)
    return None if pad is None else Node(spelled.sink, pad, (spelled.source,), graph[spelled.sink].type)


def _shapes(graph: Graph, source: NodeId, layout: SourceLayout) -> list[Ints]:
    """Shapes of a value that the model may have: its own, or several where some size is open."""
    if fixed := _fixed_shape(graph, source):
        return [fixed]
    known = graph[source].type
    shape = known.shape if known is not None else (None, layout.channels, *[None] * layout.rank)
    shape = shape if graph.sizes_are_fixed else (None, shape[1], *[None] * layout.rank)
    return [
        tuple(size if isinstance(size, int) else other for size, other in zip(shape, (2, 1, *others), strict=False))
        for others in _OPEN
    ]


def _fixed_shape(graph: Graph, source: NodeId) -> Ints | None:
    known = graph[source].type
    return known.static_shape if known is not None and graph.sizes_are_fixed else None


def _pads(x: Tensor, y: Tensor) -> set[ops.Pad]:
    """The pads that give y for x, whose elements are all different."""
    if y.ndim != x.ndim or y.shape[:2] != x.shape[:2]:
        return set()
    growth = [after - before for after, before in zip(y.shape[2:], x.shape[2:], strict=True)]
    found = set[ops.Pad]()
    for place in torch.nonzero(y[0, 0] == x[0, 0].flatten()[0]).tolist():
        pairs = tuple((low, more - low) for low, more in zip(place, growth, strict=True))
        if all(0 <= low <= _WIDEST and 0 <= high <= _WIDEST for low, high in pairs):
            candidates = (ops.Pad(((0, 0), (0, 0), *pairs), mode) for mode in _MODES)
            found |= {op for op in candidates if _gives(op, x, y)}
    return found


def _gives(op: ops.Pad, x: Tensor, y: Tensor) -> bool:
    with suppress(ReparamError):  # more than such a border can hold
        return torch.equal(evaluate_region([Node("pad", op, ("x",))], "x", x), y)
    return False
