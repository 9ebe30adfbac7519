"""Numbers that a model computes from the sizes of its values (`x.shape[1] // heads`), and what becomes of them after a cut.

They are run, not analysed: on tensors whose elements take no memory, once with the sizes as they are and once with others. A
number that comes out otherwise depends on a size that has changed.
"""

from collections.abc import Iterable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from reparam_compiler.errors import ReparamError
from reparam_compiler.interpreter.evaluate import run_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Graph, Node, NodeId
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.dtypes import FLOATING

Shapes = Mapping[NodeId, tuple[Dim, ...]]
BATCH = 2
"""What a size that is not known counts as."""
_GIVES_NUMBERS = Facts.SIZE_QUERY | Facts.ARGUMENT
_FAILURES = (ReparamError, ArithmeticError, AssertionError, AttributeError, LookupError)


def numbers_of(graph: Graph) -> tuple[NodeId, ...]:
    """The nodes that compute numbers from sizes (`x.shape[1] // 8`) and flags, and those that only check, in order."""
    numbers: dict[NodeId, None] = {}
    for node in graph:
        facts = node.op.facts if isinstance(node.op, ops.Opaque) else Facts.NONE
        if not (node.sources or Facts.ARGUMENT in facts):
            continue
        checks = Facts.CHECK in facts and node.type is None and not graph.users[node.id]
        if facts & _GIVES_NUMBERS or checks or (_is_small(node) and all(source in numbers for source in node.sources)):
            numbers[node.id] = None
    return tuple(numbers)


def _is_small(node: Node) -> bool:
    """True for a number and for a list of integers; False for a mask or a position embedding."""
    return node.type is None or len(node.type.shape) == 0 or (node.type.dtype not in FLOATING and len(node.type.shape) == 1)


def number_values(graph: Graph, shapes: Shapes = MappingProxyType({})) -> dict[NodeId, Any]:
    """The value of each number; an object that equals no other where it cannot be computed.

    shapes: of values that have others than their types say.
    """
    values: dict[NodeId, Any] = {}
    for node_id in numbers_of(graph):
        node = graph[node_id]
        try:
            read = {source: values[source] if source in values else _hollow(graph, source, shapes) for source in node.sources}
            values[node_id] = run_node(node, read)
        except _FAILURES:
            values[node_id] = object()
    return values


def stale_numbers(graph: Graph, shapes: Shapes) -> frozenset[NodeId]:
    """The numbers that have another value when these values have these shapes."""
    before, after = number_values(graph), number_values(graph, shapes)
    return frozenset(node_id for node_id, value in before.items() if not _same(value, after[node_id]))


def asked(graph: Graph, number: NodeId) -> Iterable[NodeId]:
    """The values whose sizes a number is computed from."""
    numbers, waiting, values = set(numbers_of(graph)), [number], dict[NodeId, None]()
    while waiting:
        for source in graph[waiting.pop()].sources:
            if source in numbers:
                waiting.append(source)
            else:
                values[source] = None
    return values


def _hollow(graph: Graph, node_id: NodeId, shapes: Shapes) -> Tensor:
    """Zeros of the value's shape, which share one number in memory; raises OverflowError where torch cannot count them."""
    value_type = graph[node_id].type
    shape = shapes.get(node_id, value_type.shape if value_type else ())
    sizes = [size if isinstance(size, int) else BATCH for size in shape]
    if prod(sizes) > torch.iinfo(torch.int64).max:
        raise OverflowError(f"{node_id}: found the shape {sizes}, expected fewer than 2**63 elements")
    return torch.zeros(()).expand(sizes)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b)
