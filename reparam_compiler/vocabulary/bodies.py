"""The graphs within the nodes of an ONNX model."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def bodies_of(node: "NodeProto") -> "Iterator[GraphProto]":
    """The graphs in the attributes of a node: of an If, a Loop, a Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def with_inner(nodes: "Iterable[NodeProto]") -> "Iterator[NodeProto]":
    """The nodes, each before those of its bodies."""
    for node in nodes:
        yield node
        for body in bodies_of(node):
            yield from with_inner(body.node)
