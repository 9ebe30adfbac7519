"""What the source of a region gives: where its channels stand, over how many spatial axes, how many there are, and its sizes.

All four are told by the ops that read the source, or by its type, and must agree.
"""

from reparam_compiler.core.kernel import Ints, NotFusable
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, TensorType
from reparam_compiler.passes.fusion.abstract_values import NoRule, SourceLayout
from reparam_compiler.passes.fusion.regions import Region


def source_layout(graph: Graph, region: Region) -> SourceLayout:
    """The layout of a region's source; channels are last where a linear layer reads them.

    Raises:
        NoRule: the ops of the region take different axes for the channels.
        NotFusable: it is not known how many axes or channels there are, or ops disagree.
    """
    source_type = graph[region.source].type
    last = any(isinstance(node.op, ops.Linear) for node in region.nodes)
    if last and source_type is not None and len(source_type.shape) > 2 and any(map(_reads_second_axis, region.nodes)):
        raise NoRule("linear layers and ops whose channels are on the second axis meet")
    rank = _rank(region, source_type, last)
    channels = _channels(region, source_type, last)
    sizes = _spatial_sizes(source_type) if graph.sizes_are_fixed and not last else None
    return SourceLayout(channels, rank, last, None if source_type is None else len(source_type.shape), sizes)


def channels_second(graph: Graph, region: Region) -> SourceLayout:
    """The layout of a source whose channels are second, whatever the ops of the region say; raises NotFusable."""
    source_type = graph[region.source].type
    counts, ranks = _counts(region), _ranks(region)
    if source_type is not None:
        ranks = {len(source_type.shape) - 2}
        counts = {size} if len(source_type.shape) > 1 and isinstance(size := source_type.shape[1], int) else counts
    if len(ranks) != 1 or len(counts) != 1:
        raise NotFusable(f"{region.source} has an unknown number of axes or channels")
    return SourceLayout(counts.pop(), ranks.pop())


def _rank(region: Region, source_type: TensorType | None, last: bool) -> int:
    """How many spatial axes there are; none where the channels are last."""
    ranks = _ranks(region)
    if last:
        ranks.add(0)
    elif source_type is not None:
        ranks.add(len(source_type.shape) - 2)
    if len(ranks) != 1 or min(ranks) < 0:
        refusal = NoRule if last else NotFusable
        raise refusal(f"{region.source} has an unknown number of axes" if not ranks else f"axes {sorted(ranks)} meet")
    return ranks.pop()


def _channels(region: Region, source_type: TensorType | None, last: bool) -> int:
    counts = _counts(region)
    if source_type is not None and len(source_type.shape) > 1 and isinstance(size := source_type.shape[-1 if last else 1], int):
        counts.add(size)
    if len(counts) != 1:
        raise NotFusable(
            f"{region.source} has an unknown number of channels" if not counts else f"{sorted(counts)} channels meet"
        )
    return counts.pop()


def _spatial_sizes(source_type: TensorType | None) -> Ints | None:
    if source_type is None:
        return None
    sizes = tuple(size for size in source_type.shape[2:] if isinstance(size, int))
    return sizes if len(sizes) == len(source_type.shape) - 2 else None


def _ranks(region: Region) -> set[int]:
    """How many spatial axes the ops of the region slide over."""
    return {rank for node in region.nodes if (rank := node.op.spatial_rank) is not None}


def _counts(region: Region) -> set[int]:
    """How many channels the source has, told by what reads it, or reads what has as many, or a multiple."""
    times, counts = {region.source: 1}, set[int]()
    for node in region.nodes:
        read = [times[source] for source in node.sources if source in times]
        if not read:
            continue
        if count := _channels_read(node):
            counts.add(count // read[0])
        elif len(read) == len(node.inputs) and (factor := _multiple(node, read)):
            times[node.id] = factor
    return counts


def _multiple(node: Node, read: list[int]) -> int | None:
    """How many times the channels of the source a node gives, whose operands have so many times these; None where any."""
    op = node.op
    if isinstance(op, ops.Concat) and op.axis == 1:
        return sum(read)
    if isinstance(op, ops.Move) and op.name in ("pixel_unshuffle", "space_to_depth"):
        return read[0] * op.arguments[0] ** 2
    cuts = (isinstance(op, ops.Slice) and op.axis >= 2) or (isinstance(op, ops.Opaque) and bool(op.slices))
    return read[0] if cuts or op.keeps_channels else None


def _channels_read(node: Node) -> int | None:
    """How many channels a node reads, where its parameters or sizes say so."""
    op = node.op
    if isinstance(op, ops.Weighted):
        return op.channels_read(node.params[0].shape)
    if isinstance(op, ops.BatchNorm):
        return node.params[-1].shape[0]
    return sum(op.sizes) if isinstance(op, ops.Split) and op.axis == 1 else None


def _reads_second_axis(node: Node) -> bool:
    is_norm = isinstance(node.op, ops.BatchNorm) and (node.type is None or len(node.type.shape) > 2)
    return is_norm or node.op.channels_second
