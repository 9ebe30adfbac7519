"""Which rules of the algebra (docs/algebra.md) a region is fused by, from the ops in it."""

from collections.abc import Sequence

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node
from reparam_compiler.reporting.page import Rule

NORM_AFTER = Rule("batch norm into the layer before it", "W′ = (γ/σ) W,  b′ = β + (γ/σ)(b − μ),  σ = √(var + ε)")
NORM_ALONE = Rule("batch norm as a 1×1 conv", "W′ = diag(γ/σ),  b′ = β − γμ/σ,  σ = √(var + ε)")
SUM = Rule("sum of branches", "K x + L x = (W_K + W_L) x + (b_K + b_L)")
IDENTITY = Rule("identity as a conv", "x = I x, its one tap at the centre")
WIDENED = Rule("smaller kernel in a larger one", "W′ = W in the centre, zeros round it")
SEQUENCE = Rule("layers in sequence", "L (K x):  W′ = W_L ∗ W_K,  b′ = b_L + W_L b_K")
CONCAT = Rule("concatenation", "(K x, L x):  W′ = the rows of both")
SCALE = Rule("scale and shift", "a (K x) + b:  W′ = a W,  b′ = a b_K + b")
POOL = Rule("average pool as a depthwise conv", "every tap 1/size")
PAD = Rule("padding before a layer", "p′ = p + pad")
PROBED = Rule("other linear ops", "W′ from the responses to impulses, b′ from that to zero")


def rules_of(graph: Graph, nodes: Sequence[str], source: str) -> tuple[Rule, ...]:
    """The rules by which these nodes, all linear in what `source` gives, are one op."""
    region = [graph[node_id] for node_id in nodes if node_id in graph.nodes]
    inside = {node.id: node for node in region}
    found = [rule for node in region for rule in _of_node(node, inside, source)]
    sizes = {node.params[0].shape[2:] for node in region if isinstance(node.op, ops.Weighted) and node.params}
    if SUM in found and len(sizes) > 1:
        found.append(WIDENED)
    return tuple(dict.fromkeys(found))


def _of_node(node: Node, inside: dict[str, Node], source: str) -> list[Rule]:
    read = [inside[name] for name in node.sources if name in inside]
    op = node.op
    if isinstance(op, ops.BatchNorm):
        return [NORM_AFTER if any(isinstance(other.op, ops.Weighted) for other in read) else NORM_ALONE]
    if isinstance(op, ops.Weighted):
        return [SEQUENCE] if any(not isinstance(other.op, ops.Pad) for other in read) else []
    if isinstance(op, ops.Add) and len(node.sources) > 1:
        return [SUM, IDENTITY] if source in node.sources else [SUM]
    if isinstance(op, ops.Add | ops.Mul | ops.Div | ops.PerChannel):
        return [SCALE]
    if isinstance(op, ops.Concat):
        return [CONCAT]
    if isinstance(op, ops.AvgPool):
        return [POOL]
    if isinstance(op, ops.Pad):
        return [PAD]
    return [] if isinstance(op, ops.Identity) else [PROBED]
