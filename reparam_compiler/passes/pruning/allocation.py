"""A ratio becomes a keep count for each family, and the counts a keep mask.

    uniform        every family keeps (1 - ratio) of its channels
    a mapping      {pattern: ratio}, patterns as `ignore` has them: the last that matches a family counts; the rest has `ratio`
    global         all groups, their scores divided by their family's mean, compete; the least important go first
    sensitivity    scores are errors: what costs the least error per channel (or per multiply-add) saved goes first, so that the
                   layers that matter keep more

Widths are multiples of `round_to` channels, or stay as they were (runtimes block channels by 8: a raw width can cost more than
it saves); `round_to=1` is the exact ratio. So channels leave in *steps*, each from one width that a family may have to the next
one below, and an allocation is the first k steps of a removal order:

    uniform        in the order of the ratio at which the lower width becomes the nearer one
    global         by the mean score of the step, but no family goes below `FLOOR` of its channels
    sensitivity    by the error of the step over what it saves as widths then are, with the same floor

k is where the share of all channels that is gone is as near to the ratio as the steps allow. `uniform` first goes to the
nearest widths, and only where that misses the whole by more than a step do the families next to a tie go the other way.
Within a family the groups of the highest score stay.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from math import ceil, lcm
from numbers import Integral, Real
from types import MappingProxyType

import numpy as np

from reparam_compiler.advice import option
from reparam_compiler.core.slicing import nearest_width
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.passes.choices import ALLOCATIONS, AllocationName
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family, Keep
from reparam_compiler.passes.pruning.coupling.labels import called, why_kept
from reparam_compiler.passes.pruning.criteria.base import Scores

RatioOf = Mapping[str, float]
"""The share of channels to remove by pattern."""
FLOAT_FIRST = "prune the float model, and quantize what comes of it"
FLOOR = 0.1
"""The share of a family's channels that `global` and `sensitivity` leave at least."""
Widths = Mapping[str, int]
"""A width for each family, by name."""
NO_LEAST: Widths = MappingProxyType({})
Saving = Callable[[Mapping[str, int], Family, int], float]
"""What a family saves that goes to a width, where all families have the widths given (by name)."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One family becomes narrower: channels it had, has after, and how early this comes (the lower, the earlier)."""

    family: Family
    before: int
    after: int
    rank: float


def allocate(
    groups: ChannelGroups,
    scores: Scores,
    *,
    ratio: float = 0.0,
    allocation: AllocationName | RatioOf = "uniform",
    round_to: int = 8,
    graph: Graph | None = None,
    cumulative: bool = False,
    least: Widths = NO_LEAST,
    may_be_empty: bool = False,
) -> Allocation:
    """Which groups stay when `ratio` of the channels shall go.

    Args:
        groups: the coupling.
        scores: for each group.
        ratio: the share of channels to remove, at least 0 and below 1; with a mapping, of the families that it leaves out.
        allocation: a name (see the module), or the ratio of each family by pattern.
        round_to: widths go to multiples of this many channels.
        graph: the model; a mapping needs it for the names of its nodes.
        cumulative: the scores of `sensitivity` are errors with all lower ones of the family gone (`is_cumulative`).
        least: the widths, by family, that none may fall below.
        may_be_empty: it is no error that nothing is removed.

    Raises:
        InfeasiblePruneError: a ratio or rounding out of bounds, a pattern that names nothing that can be pruned, nothing that
            could be pruned, or nothing that was.
    """
    check_request(allocation, round_to)
    check_ratio("ratio", ratio)
    share = family_ratios(graph, groups, allocation) if isinstance(allocation, Mapping) else {}
    asked = max([ratio, *share.values()])
    if asked:
        check_free(graph, groups)
    targets: dict[str, float] = {family.name: float(family.width) for family in groups.free}
    if isinstance(allocation, Mapping) or allocation == "uniform":
        targets = {family.name: family.width * (1 - share.get(family.name, ratio)) for family in groups.free}
    if isinstance(allocation, Mapping):
        widths = nearest_widths(groups.free, targets, round_to, least)
    elif allocation == "uniform":
        widths = _balanced(groups.free, targets, round_to, least)
    else:
        steps = removal_order(groups, scores, allocation, round_to=round_to, cumulative=cumulative, least=least)
        widths = widths_after(groups.free, steps[: _nearest_count(steps, ratio * sum(family.width for family in groups.free))])
    chosen = kept(groups, scores, widths, targets, round_to, least)
    if asked and not may_be_empty and bool(chosen.keep.all()):
        reasons = [f"{name}: {note}" for name, note in chosen.notes.items()] or ["every family is at its least width"]
        raise InfeasiblePruneError(f"ratio={asked} removes no channel: {'; '.join(reasons[:5])}")
    return chosen


def kept(
    groups: ChannelGroups,
    scores: Scores,
    widths: Widths,
    targets: Mapping[str, float],
    round_to: int,
    least: Widths = NO_LEAST,
) -> Allocation:
    """The allocation of these widths, with a note for each family that kept its width although `targets` asked for less."""
    keep = np.ones(groups.count, np.bool_)
    notes = {}
    for family in groups.free:
        width, target = widths[family.name], targets.get(family.name, family.width)
        order = np.argsort(scores[family.groups], kind="stable")
        keep[family.groups[order[: len(order) - width // family.positions]]] = False
        if width == family.width and target < family.width:
            notes[family.name] = (
                f"{width} channels is as near to {target:.1f} as a multiple of {lcm(family.positions, round_to)} comes; "
                f"{option('round_to', 1)} is exact"
                if target >= least.get(family.name, 0)
                else f"{target:.1f} of {width} channels is less than the {least[family.name]} that are to stay"
            )
    return Allocation(keep, dict(widths), notes)


def removal_order(
    groups: ChannelGroups,
    scores: Scores,
    allocation: AllocationName,
    *,
    round_to: int = 8,
    cumulative: bool = False,
    saving: Saving | None = None,
    families: Sequence[Family] | None = None,
    least: Widths = NO_LEAST,
) -> tuple[Step, ...]:
    """The steps in which channels leave, the first first; any number of them is an allocation.

    Args:
        groups, scores, allocation, round_to, cumulative, least: as for `allocate`.
        saving: what `sensitivity` divides the error of a step by; None counts channels.
        families: those that take part; None for all that are free.
    """
    free = groups.free if families is None else families
    if allocation == "sensitivity":
        return _least_error_first(free, scores, round_to, cumulative, saving or _channels, least)
    steps: list[Step] = []
    for family in free:
        own = np.sort(scores[family.groups])
        mean = float(np.abs(own).mean()) or 1.0
        for before, after in _descent(family, round_to, FLOOR if allocation == "global" else 0.0, least):
            low, high = ((family.width - width) // family.positions for width in (before, after))
            uniform = 1 - (before + after) / 2 / family.width
            steps.append(
                Step(family, before, after, uniform if allocation == "uniform" else float(own[low:high].mean()) / mean)
            )
    return tuple(sorted(steps, key=lambda step: step.rank))


def widths_after(families: Sequence[Family], steps: Iterable[Step]) -> dict[str, int]:
    """The width of each of these families when so many steps are done."""
    widths = {family.name: family.width for family in families}
    for step in steps:
        widths[step.family.name] = step.after
    return widths


def nearest_widths(
    families: Sequence[Family], targets: Mapping[str, float], round_to: int, least: Widths = NO_LEAST
) -> dict[str, int]:
    """For each family the width next to its target that it may have; one that shall lose nothing stays."""
    return {
        family.name: nearest_width(
            targets[family.name], family.width, lcm(family.positions, round_to), least.get(family.name, 0)
        )
        if targets[family.name] < family.width
        else family.width
        for family in families
    }


def least_widths(groups: ChannelGroups, min_channels: int, max_ratio: float) -> dict[str, int]:
    """For each free family the channels that must stay: so many at least, and all but the largest share that may go."""
    return {f.name: min(f.width, max(min_channels, ceil(f.width * (1 - max_ratio) - 1e-9))) for f in groups.free}


def check_least(min_channels: object, max_ratio: object) -> None:
    """Raises InfeasiblePruneError for a number of channels below 1, or for what is no share of them."""
    if not is_count(min_channels):
        raise InfeasiblePruneError(
            f"{option('min_channels', min_channels)}: give how many channels every layer keeps, at least 1"
        )
    if not isinstance(max_ratio, Real) or not 0 < float(max_ratio) <= 1:
        raise InfeasiblePruneError(
            f"{option('max_ratio', max_ratio)}: give the largest share that a layer may lose, above 0 and at most 1"
        )


def check_request(allocation: object, round_to: object) -> None:
    """Raises InfeasiblePruneError for a rounding below 1, an allocation that does not exist, or a ratio out of bounds."""
    if not is_count(round_to):
        raise InfeasiblePruneError(
            f"{option('round_to', round_to)}: give a number of channels, a whole one, 1 for the exact ratio"
        )
    if isinstance(allocation, Mapping):
        for pattern, ratio in allocation.items():
            if not isinstance(pattern, str):
                raise InfeasiblePruneError(f"allocation: found {pattern!r}; expected names or patterns of layers")
            check_ratio(f"allocation[{pattern!r}]", ratio)
    elif not isinstance(allocation, str) or allocation not in ALLOCATIONS:
        known = ", ".join(map(repr, ALLOCATIONS))
        raise InfeasiblePruneError(
            f"{option('allocation', allocation)}: choose one of {known}, or give a mapping of patterns to ratios"
        )


def is_count(number: object) -> bool:
    """True for a whole number from 1 on, numpy's too; 8.0 is none."""
    return isinstance(number, Integral) and int(number) >= 1


def check_ratio(name: str, ratio: object) -> None:
    """Raises InfeasiblePruneError for what is no share of channels to remove; `name` is the option that has it."""
    if not isinstance(ratio, Real) or not 0 <= float(ratio) < 1:
        raise InfeasiblePruneError(f"{name}={ratio!r}: give the share of channels to remove, at least 0 and below 1")


def _balanced(families: Sequence[Family], targets: Mapping[str, float], round_to: int, least: Widths) -> dict[str, int]:
    """The nearest widths; while the whole is off by more than a step, the family next to a tie goes to its other neighbour."""
    widths = nearest_widths(families, targets, round_to, least)
    off = sum(widths.values()) - sum(targets.values())  # above 0: too many are left
    moves: list[tuple[float, int, str, int]] = []
    for number, family in enumerate(families):
        width, target = widths[family.name], targets[family.name]
        choices = {family.width, *(after for _, after in _descent(family, round_to, FLOOR, least))}
        beyond = [c for c in choices if (c < target < width if off > 0 else c > target > width)]
        if beyond:
            other = max(beyond) if off > 0 else min(beyond)
            moves.append((abs(other - target) - abs(width - target), number, family.name, other))
    for _, _, name, other in sorted(moves):
        change = other - widths[name]
        if abs(off) > abs(change) and (change < 0) == (off > 0):
            widths[name] = other
            off += change
    return widths


def _descent(family: Family, round_to: int, floor: float, least: Widths) -> list[tuple[int, int]]:
    """The widths that a family may have, from one to the next."""
    unit = lcm(family.positions, round_to)
    lowest = max(unit, ceil(floor * len(family.groups)) * family.positions, least.get(family.name, 0))
    widths = [family.width, *range((family.width - 1) // unit * unit, lowest - 1, -unit)]
    return list(pairwise(widths))


def _nearest_count(steps: Sequence[Step], wanted: float) -> int:
    """After how many steps the number of channels that are gone is next to what is wanted; fewer where two are as near."""
    gone = np.cumsum([0, *(step.before - step.after for step in steps)])
    return int(np.abs(gone - wanted).argmin())


def _channels(widths: Mapping[str, int], family: Family, after: int) -> float:
    return float(widths[family.name] - after)


def _least_error_first(
    families: Sequence[Family], scores: Scores, round_to: int, cumulative: bool, saving: Saving, least: Widths
) -> tuple[Step, ...]:
    """Greedy: the next step of each family waits with its price; prices that widths have changed since are asked again."""
    ahead: dict[str, list[tuple[int, int, float]]] = {}
    for family in families:
        own = np.sort(scores[family.groups])
        error = np.concatenate([[0.0], own if cumulative else np.cumsum(own)])
        ahead[family.name] = [
            (
                before,
                after,
                float(error[(family.width - after) // family.positions] - error[(family.width - before) // family.positions]),
            )
            for before, after in reversed(_descent(family, round_to, FLOOR, least))
        ]
    widths = {family.name: family.width for family in families}

    def price(family: Family) -> float:
        _, after, error = ahead[family.name][-1]
        return error / max(saving(widths, family, after), 1e-30)

    waiting = [(price(family), index) for index, family in enumerate(families) if ahead[family.name]]
    heapq.heapify(waiting)
    steps: list[Step] = []
    while waiting:
        _, index = heapq.heappop(waiting)
        family = families[index]
        now = price(family)
        if waiting and now > waiting[0][0]:  # it saves less than it did when it was put in: others have become narrower
            heapq.heappush(waiting, (now, index))
            continue
        before, after, _ = ahead[family.name].pop()
        steps.append(Step(family, before, after, now))
        widths[family.name] = after
        if ahead[family.name]:
            heapq.heappush(waiting, (price(family), index))
    return tuple(steps)


def family_ratios(graph: Graph | None, groups: ChannelGroups, allocation: RatioOf) -> dict[str, float]:
    """The ratio of each family that a pattern names: those whose channels stand in what its nodes give, as for `ignore`.

    Raises:
        InfeasiblePruneError: a pattern that matches no node, or with a ratio above 0 no family that can be cut.
    """
    if graph is None:
        raise InfeasiblePruneError("allocation by pattern needs the graph, for the names of its nodes; give graph=")
    ratios: dict[str, float] = {}
    for pattern, ratio in allocation.items():
        nodes = matching(graph, pattern, "allocation")
        numbers = _numbers_at(groups, nodes)
        hits = [family for family in groups.families if np.isin(family.groups, numbers).any()]
        free = [family for family in hits if family.pin is None]
        if ratio and not free:
            why = "; ".join(f"{family.name}: {family.pin.reason}" for family in hits[:5] if family.pin)
            raise InfeasiblePruneError(
                f"allocation: {pattern!r} names no layer whose channels can be cut. {why or 'It makes none.'}"
            )
        ratios |= {family.name: ratio for family in free}
    return ratios


def _numbers_at(groups: ChannelGroups, nodes: Iterable[NodeId]) -> np.ndarray:
    """The groups whose channels stand in the values of these nodes."""
    labelled = [groups.values[node] for node in nodes]
    values = [value for item in labelled for value in (item if isinstance(item, tuple) else (item,))]
    return groups.number[np.concatenate([value.labels for value in values])] if values else np.zeros(0, np.int64)


def ignored_nodes(graph: Graph, patterns: Iterable[str]) -> dict[NodeId, str]:
    """The nodes that the caller wants left alone, with the reason for the report.

    Args:
        graph: the model.
        patterns: node ids, native names of parameters or of the modules that hold them, or fnmatch patterns of these. The name
            of a module stands for all in it.

    Raises:
        InfeasiblePruneError: a pattern that matches nothing; the message lists names like it.
    """
    ignored: dict[NodeId, str] = {}
    for pattern in patterns:
        for node_id in matching(graph, pattern, "ignore"):
            ignored.setdefault(node_id, f"ignore asks for it ({pattern})")
    return ignored


def matching(graph: Graph, pattern: str, option: str) -> dict[NodeId, None]:
    """The nodes that a pattern matches, in order; raises InfeasiblePruneError where there is none. `option` is what has it."""
    names = {node.id: _names(node) for node in graph if not isinstance(node.op, ops.Input)}
    hits = [node_id for node_id, own in names.items() if any(_matches(name, pattern) for name in own)]
    if not hits:
        known = sorted(set().union(*names.values()))
        near = get_close_matches(pattern, known, n=5, cutoff=0.4) or known[:5]
        raise InfeasiblePruneError(f"{option}: {pattern!r} matches no node; names like it: {', '.join(near)}")
    return dict.fromkeys(hits)


def _names(node: Node) -> set[str]:
    origins = {param.origin for param in node.params if param.origin}
    return {node.id, *node.replaces, *origins, *(origin.rpartition(".")[0] for origin in origins if "." in origin)}


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def check_free(graph: Graph | None, groups: ChannelGroups) -> None:
    """Raises InfeasiblePruneError where no family can be cut, with what pins each."""
    if not groups.free:
        raise InfeasiblePruneError(f"no channel can be removed: {_pins_text(graph, groups)}")


def _pins_text(graph: Graph | None, groups: ChannelGroups) -> str:
    """What pins the families, for an error, and what layers that are in none are opaque for."""
    reasons = [f"{family.name}: {family.pin.reason}" for family in groups.families if family.pin]
    causes = {why: f"{called(node)} {why}" for node in reversed([*(graph or ())]) if (why := why_kept(node))}
    reasons += [text for why, text in causes.items() if not any(reason.endswith(why) for reason in reasons)]
    advice = f"; {FLOAT_FIRST}" if any(reason.endswith((ops.QUANTIZED, ops.ON_QUANTIZED)) for reason in reasons) else ""
    if not reasons:
        return "the model has no conv or linear, called on a batch, whose channels another one reads"
    more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
    return "; ".join(reasons[:8]) + more + advice
