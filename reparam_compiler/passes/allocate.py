"""A ratio becomes a keep count for each family, and the counts a keep mask.

    uniform    every family keeps (1 - ratio) of its channels
    global     all groups, their scores divided by their family's mean, compete; the least go until `ratio` of all channels
               is gone. A family keeps at least a tenth of its channels, so that none vanishes

Widths go to the nearest multiple of `round_to` (runtimes block channels by 8: a raw width can cost more than it saves), or
stay as they were where that is nearest; `round_to=1` is the exact ratio. Within a family the groups of the highest score stay.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import ceil, lcm
from typing import Literal

import numpy as np

from reparam_compiler.core.slicing import nearest_width
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.passes.channel_groups import ChannelGroups, Family, Keep
from reparam_compiler.passes.importance import Scores

AllocationName = Literal["uniform", "global"]
FLOOR = 0.1
"""The share of a family's channels that `global` leaves at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """What stays.

    keep: for each group number whether it stays.
    widths: for each free family, by name, its width after.
    notes: for families that were left as they were although a ratio was asked, why.
    """

    keep: Keep
    widths: Mapping[str, int]
    notes: Mapping[str, str]


def allocate(
    groups: ChannelGroups, scores: Scores, *, ratio: float, allocation: AllocationName = "uniform", round_to: int = 8
) -> Allocation:
    """Which groups stay when `ratio` of the channels shall go.

    Args:
        groups: the coupling.
        scores: for each group.
        ratio: the share of channels to remove, at least 0 and below 1.
        allocation: whether every family loses the same share, or the least important channels of the whole model go.
        round_to: widths go to the nearest multiple of this many channels.

    Raises:
        InfeasiblePruneError: a ratio or rounding out of bounds, nothing that could be pruned, or nothing that was.
    """
    if not 0 <= ratio < 1:
        raise InfeasiblePruneError(f"ratio={ratio}: give the share of channels to remove, at least 0 and below 1")
    if round_to < 1:
        raise InfeasiblePruneError(f"round_to={round_to}: give a number of channels, 1 for the exact ratio")
    if allocation not in ("uniform", "global"):
        raise InfeasiblePruneError(f"allocation={allocation!r}: choose 'uniform' or 'global'")
    if ratio and not groups.free:
        raise InfeasiblePruneError(f"no channel can be removed: {_pins_text(groups)}")
    targets = _global(groups, scores, ratio) if allocation == "global" else _uniform(groups, ratio)
    keep = np.ones(groups.count, np.bool_)
    widths, notes = {}, {}
    for family in groups.free:
        target = targets[family.name]
        width = nearest_width(target, family.width, lcm(family.positions, round_to)) if ratio else family.width
        order = np.argsort(scores[family.groups], kind="stable")
        keep[family.groups[order[: len(order) - width // family.positions]]] = False
        widths[family.name] = width
        if width == family.width and target < family.width:
            unit = lcm(family.positions, round_to)
            notes[family.name] = (
                f"{width} channels is as near to {target:.1f} as a multiple of {unit} comes; round_to=1 is exact"
            )
    if ratio and bool(keep.all()):
        reasons = [f"{name}: {note}" for name, note in notes.items()] or ["every family is at its least width"]
        raise InfeasiblePruneError(f"ratio={ratio} removes no channel: {'; '.join(reasons[:5])}")
    return Allocation(keep, widths, notes)


def _uniform(groups: ChannelGroups, ratio: float) -> dict[str, float]:
    return {family.name: family.width * (1 - ratio) for family in groups.free}


def _global(groups: ChannelGroups, scores: Scores, ratio: float) -> dict[str, float]:
    """Channels that each family keeps when the least of all go first."""
    left = {family.name: len(family.groups) for family in groups.free}
    floor = {family.name: max(1, ceil(FLOOR * len(family.groups))) for family in groups.free}
    candidates: list[tuple[float, Family]] = []
    for family in groups.free:
        own = scores[family.groups]
        mean = float(np.abs(own).mean())
        candidates += [(score, family) for score in (own / mean if mean else own).tolist()]
    to_remove = ratio * sum(family.width for family in groups.free)
    for _, family in sorted(candidates, key=lambda pair: pair[0]):
        if to_remove < family.positions / 2:
            break
        if left[family.name] > floor[family.name]:
            left[family.name] -= 1
            to_remove -= family.positions
    return {family.name: float(left[family.name] * family.positions) for family in groups.free}


def ignored_nodes(graph: Graph, patterns: Iterable[str]) -> dict[NodeId, str]:
    """The nodes that the caller wants left alone, with the reason for the report.

    Args:
        graph: the model.
        patterns: node ids, native names of parameters or of the modules that hold them, or fnmatch patterns of these. The name
            of a module stands for all in it.

    Raises:
        InfeasiblePruneError: a pattern that matches nothing; the message lists names like it.
    """
    names = {node.id: _names(node) for node in graph if not isinstance(node.op, ops.Input)}
    found: dict[NodeId, str] = {}
    for pattern in patterns:
        hits = [node_id for node_id, own in names.items() if any(_matches(name, pattern) for name in own)]
        if not hits:
            known = sorted(set().union(*names.values()))
            near = get_close_matches(pattern, known, n=5, cutoff=0.4) or known[:5]
            raise InfeasiblePruneError(f"ignore: {pattern!r} matches no node; names like it: {', '.join(near)}")
        found |= {node_id: f"ignore asks for it ({pattern})" for node_id in hits if node_id not in found}
    return found


def _names(node: Node) -> set[str]:
    origins = {param.origin for param in node.params if param.origin}
    return {node.id, *node.replaces, *origins, *(origin.rpartition(".")[0] for origin in origins if "." in origin)}


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _pins_text(groups: ChannelGroups) -> str:
    pins = [f"{family.name}: {family.pin.reason}" for family in groups.families if family.pin]
    more = f"; and {len(pins) - 8} more" if len(pins) > 8 else ""
    return ("; ".join(pins[:8]) + more) if pins else "the model has no conv or linear whose channels another one reads"
