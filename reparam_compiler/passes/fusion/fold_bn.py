"""A lone conv-BN or linear-BN becomes one op (Eq. 3): "all the conv-BN sequences of the baselines are also converted".

The region is a chain of one conv and what follows it (or stands before it, where the conv does not pad): norms, scales,
identities, and padding, which goes into the conv where those of the model have a word for it. The mechanics are those of
`fuse_branches`.
"""

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node
from reparam_compiler.passes.fusion.fuse_branches import DEFAULTS, Options, PassResult, rewrite_regions
from reparam_compiler.passes.fusion.registry import linear_rule


def fold_bn(graph: Graph, options: Options = DEFAULTS) -> PassResult:
    """Rewrites every chain of one conv and the affine ops round it.

    It reports the norms that stay, the pads of convs, and layers that are not read.
    """

    def pads_a_conv(node: Node) -> bool:
        readers = graph.users[node.id]
        extends = isinstance(node.op, ops.Pad) and any(n > 0 for pair in node.op.padding for n in pair)
        return extends and len(readers) == 1 and isinstance(graph[readers[0]].op, ops.Conv)

    def is_unread(node: Node) -> bool:
        above = [graph[source].op for source in node.sources] if ops.why_opaque(node.op) else []
        return any(isinstance(op, ops.Weighted) or ops.why_opaque(op) for op in above)

    return rewrite_regions(
        graph,
        wants=lambda region: len(region.kernels) == 1 and not region.merges and any(map(_folds, region.nodes)),
        reports=lambda node: isinstance(node.op, ops.BatchNorm) or pads_a_conv(node) or is_unread(node),
        options=options,
    )


def _folds(node: Node) -> bool:
    """What a chain is worth a try for: not an identity, nor a pool, which is no conv's work."""
    moves = isinstance(node.op, ops.Move | ops.Opaque) and linear_rule(node) is not None
    return moves or isinstance(node.op, ops.BatchNorm | ops.Pad) or node.op.arithmetic
