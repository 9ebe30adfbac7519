"""What every graph keeps to, checked between passes. A breach is a defect of a pass or a frontend, never of the model."""

from reparam_compiler.errors import InvalidGraphError
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.ir.kind import OperandName
from reparam_compiler.ir.ops import Add, BatchNorm, Conv, Linear, Opaque

_PER_CHANNEL: tuple[OperandName, ...] = ("weight", "bias", "mean")
"""What a batch norm has one number a channel of, besides the variance."""


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
        _check_operands(node)
        _check_shapes(node)
    for output in graph.outputs:
        if output not in seen:
            raise InvalidGraphError(f"the output {output} is not a node of the graph")


def _check_operands(node: Node) -> None:
    """As many inputs as the op declares, and none absent that it needs; for an opaque op those of its coupling model."""
    op, inputs = node.op, node.inputs
    if isinstance(op, Opaque) and op.coupling is not None:
        inputs = inputs[: op.reads]
    if fault := op.signature.fault(inputs):
        raise InvalidGraphError(f"{node.id} ({op.name}): {fault}")


def _check_shapes(node: Node) -> None:
    op = node.op
    if isinstance(op, Conv):
        _check_conv(node, op)
    elif isinstance(op, Linear):
        _check_vector(node, "bias", _shape(node, "weight"))
    elif isinstance(op, BatchNorm):
        for name in _PER_CHANNEL:
            _check_vector(node, name, _shape(node, "var"))
    elif isinstance(op, Add) and len(op.coefficients) != len(node.inputs):
        raise InvalidGraphError(f"{node.id}: {len(node.inputs)} operands, but {len(op.coefficients)} coefficients")


def _check_conv(node: Node, op: Conv) -> None:
    weight, rank = _shape(node, "weight"), len(op.stride)
    if not len(op.padding) == len(op.dilation) == rank or (weight and len(weight) != rank + 2):
        raise InvalidGraphError(
            f"{node.id}: a conv of {rank} strides has padding {op.padding}, dilation {op.dilation}, weight {weight}"
        )
    if weight and weight[0] % op.groups:
        raise InvalidGraphError(f"{node.id}: {weight[0]} output channels do not divide into {op.groups} groups")
    _check_vector(node, "bias", weight)


def _check_vector(node: Node, name: OperandName, like: tuple[int, ...] | None) -> None:
    shape = _shape(node, name)
    if shape and like and shape != like[:1]:
        raise InvalidGraphError(f"{node.id}: its {name} has shape {shape}, expected {like[:1]}")


def _shape(node: Node, name: OperandName) -> tuple[int, ...] | None:
    operand = node.operand(name)
    return operand.shape if isinstance(operand, Param) else None
