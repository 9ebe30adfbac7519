"""One stable printer, for golden tests and for people.

Values are numbered in order and parameters named by role, so that two frontends that read the same model print the same.
"""

from reparam_compiler.ir.attributes import attributes
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType
from reparam_compiler.ir.ops import BatchNorm

COLUMN = 50


def to_text(graph: Graph) -> str:
    """The graph, a line a node: `%1 = conv(%0, weight[16 16 3 3])  # f32 2 16 9 7   pad=1`."""
    names = {node_id: f"%{index}" for index, node_id in enumerate(graph.nodes)}
    lines = [_line(node, names) for node in graph]
    return "\n".join([*lines, f"output({', '.join(names[node_id] for node_id in graph.outputs)})", ""])


def type_text(value: TensorType | None) -> str:
    """`f32 2 16 9 7`; `?` stands for a size that is not known."""
    if value is None:
        return ""
    return " ".join([value.dtype, *("?" if size is None else str(size) for size in value.shape)])


def _line(node: Node, names: dict[NodeId, str]) -> str:
    operands = [_operand(operand, names, node) for operand in node.inputs]
    while operands and operands[-1] == "none":
        operands.pop()
    call = f"{names[node.id]} = {node.op.name}({', '.join(operands)})"
    remarks = [
        type_text(node.type),
        " ".join(f"{key}={value}" for key, value in attributes(node.op).items()),
        f"fused from {len(node.replaces)} nodes" if node.replaces else "",
    ]
    comment = "   ".join(remark for remark in remarks if remark)
    return f"{call:<{COLUMN}}# {comment}" if comment else call


def _operand(operand: Operand, names: dict[NodeId, str], node: Node) -> str:
    if operand is None:
        return "none"
    if isinstance(operand, Param):
        shape = "" if isinstance(node.op, BatchNorm) else f"[{' '.join(map(str, operand.shape))}]"
        return f"{operand.role}{shape}"
    return names[operand]
