"""What every graph keeps to, checked between passes. A breach is a defect of a pass or a frontend, never of the model."""

from reparam_compiler.errors import InvalidGraphError
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.ir.ops import Add, BatchNorm, Conv, Linear


def check(graph: Graph) -> None:
    """Raises InvalidGraphError for the first node that breaks an invariant, with what was found and what was expected."""
    seen: set[str] = set()
    for node_id, node in graph.nodes.items():
        if node.id != node_id:
            raise InvalidGraphError(f"{node_id}: the node under this id calls itself {node.id}")
        for source in node.sources:
            if source not in seen:
                raise InvalidGraphError(f"{node.id} reads {source}, which does not come before it in the graph")
        seen.add(node_id)
        _check_shapes(node)
    for output in graph.outputs:
        if output not in seen:
            raise InvalidGraphError(f"the output {output} is not a node of the graph")


def _check_shapes(node: Node) -> None:
    match node.op:
        case Conv(stride, padding, dilation, groups):
            weight = _shape(node, 1)
            rank = len(stride)
            if not len(padding) == len(dilation) == rank or (weight and len(weight) != rank + 2):
                raise InvalidGraphError(
                    f"{node.id}: a conv of {rank} strides has padding {padding}, dilation {dilation}, weight {weight}"
                )
            if weight and weight[0] % groups:
                raise InvalidGraphError(f"{node.id}: {weight[0]} output channels do not divide into {groups} groups")
            _check_vector(node, 2, weight)
        case Linear():
            _check_vector(node, 2, _shape(node, 1))
        case BatchNorm():
            for index in (1, 2, 3):
                _check_vector(node, index, _shape(node, 4))
        case Add(coefficients):
            if len(coefficients) != len(node.inputs):
                raise InvalidGraphError(f"{node.id}: {len(node.inputs)} operands, but {len(coefficients)} coefficients")
        case _:
            pass


def _check_vector(node: Node, index: int, like: tuple[int, ...] | None) -> None:
    shape = _shape(node, index)
    if shape and like and shape != like[:1]:
        raise InvalidGraphError(f"{node.id}: input {index} has shape {shape}, expected {like[:1]}")


def _shape(node: Node, index: int) -> tuple[int, ...] | None:
    operand = node.inputs[index] if index < len(node.inputs) else None
    return operand.shape if isinstance(operand, Param) else None
