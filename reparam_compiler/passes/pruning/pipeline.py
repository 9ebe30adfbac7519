"""Pruning, from what was asked to the pruned graph: rank the channels, allot them, cut, verify, repair.

    channel_groups   which channels leave together              importance, allocate, budget   which of them leave
    slice_channels   the masked and the sliced graph, compared  reconstruct                    what reads them is refitted
                                                                gain                           and whether that stays

Without calibration data nothing is repaired. With it, three qualities, from cheap to good:

    fast        rank by energy, match the moments of what is left
    standard    optimal brain on channels, fold what is lost into what is left
    high        optimal brain on channels x taps, least squares on patches
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from reparam_compiler.advice import option
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir.graph import Graph, NodeId
from reparam_compiler.passes.choices import AllocationName, Quality
from reparam_compiler.passes.pruning.allocation import (
    Allocation,
    RatioOf,
    Widths,
    allocate,
    check_free,
    check_least,
    check_request,
    ignored_nodes,
    kept,
    least_widths,
)
from reparam_compiler.passes.pruning.budget import Budget, Measure, fit_budget
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Keep, channel_groups
from reparam_compiler.passes.pruning.criteria.importance import Criterion, Loss, Scores, criterion_of, is_cumulative
from reparam_compiler.passes.pruning.criteria.importance import importance as scores_of
from reparam_compiler.passes.pruning.repair.activations import Batch
from reparam_compiler.passes.pruning.repair.gain import Gain, gain_on
from reparam_compiler.passes.pruning.repair.reconstruct import Repair, RepairName, repair
from reparam_compiler.passes.pruning.slice_channels import masked, sliced, unmasked, verify_pruned


@dataclass(frozen=True, slots=True)
class Method:
    """What is done with calibration data: how channels are ranked, and how their consumers are repaired."""

    importance: str
    repair: RepairName


QUALITIES: Mapping[Quality, Method] = {
    "fast": Method("energy", "moments"),
    "standard": Method("obs", "fold"),
    "high": Method("obs_patches", "least_squares"),
}
UNCALIBRATED = "l1"
"""How channels are ranked where there is no calibration data."""


@dataclass(frozen=True, slots=True)
class CutFamily:
    """A family that could be pruned: its native name, its width before and after, the nodes whose parameters go with it."""

    name: str
    before: int
    after: int
    members: tuple[NodeId, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class PinnedFamily:
    """A family that keeps its width: the node that needs it whole, and why."""

    name: str
    width: int
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What was asked and what was done.

    ratio: what was asked; None where a budget or the ratios of layers were.
    budget: the share that remains of each thing that was limited.
    importance, allocation, quality: in words.
    relative_error: of the pruned graph against its masked reference, in float64, before repair.
    repair: which consumers were repaired; None without calibration data, and where `gain` says that it made the outputs worse.
    gain: what repair changes in the outputs, on samples that were held out; None where there were none.
    """

    ratio: float | None
    budget: Mapping[str, float]
    importance: str
    allocation: str
    quality: str
    round_to: int
    families: tuple[CutFamily, ...]
    pinned: tuple[PinnedFamily, ...]
    relative_error: float
    repair: Repair | None = None
    gain: Gain | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PruneResult:
    """The pruned graph and its plan; `groups` and `keep` say which channels stayed."""

    graph: Graph
    plan: PrunePlan
    groups: ChannelGroups
    keep: Keep


@dataclass(frozen=True, slots=True)
class Target:
    """What a round of several is to reach, which may be nothing new: the widths of families by their names, or a ratio.

    least: the widths that no family may fall below, by those of the first round.
    """

    widths: Widths | None = None
    ratio: float = 0.0
    least: Widths = field(default_factory=dict)


def prune(
    graph: Graph,
    *,
    ratio: float | None = None,
    budget: Budget | None = None,
    target: Target | None = None,
    importance: str | Criterion | None = None,
    allocation: AllocationName | RatioOf = "uniform",
    calibration: Iterable[Batch] | None = None,
    held_out: Iterable[Batch] = (),
    quality: Quality = "standard",
    round_to: int = 8,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    ignore: Iterable[str] = (),
    measure: Measure | None = None,
    loss: Loss | None = None,
) -> PruneResult:
    """The graph without `ratio` of the channels of every family that can be cut, or as many as a budget asks for.

    Args:
        graph: node types must be known, with every size a number but the batch's.
        ratio: the share of channels to remove, at least 0 and below 1; 0 gives the same graph back.
        budget: what may remain, in place of a ratio.
        target: the same for a round of several.
        importance: a name in `importance.CRITERIA`, or a function; None is what the quality takes, and l1 without data.
        allocation: a name in `allocation.ALLOCATIONS`, or the ratio of each family by pattern.
        calibration: batches, each an array for each model input; they are gone over more than once.
        held_out: more of them, to which nothing is fitted: what repair gained is measured on them.
        quality: what is done with them (`QUALITIES`).
        round_to: widths go to the nearest multiple of it; 1 is the exact ratio.
        min_channels, max_ratio: how many channels every family keeps at least, and the largest share that it may lose.
        ignore: node ids, native names or patterns whose widths must stay.
        measure, loss: for a budget of latency, and for criteria by gradient.

    Raises:
        InfeasiblePruneError: nothing can be pruned, or the request contradicts the graph.
        UnsupportedModelError: a shape is not known.
        VerificationError: the pruned graph differs from its masked reference.
    """
    check_method(importance, allocation, quality, round_to)
    check_least(min_channels, max_ratio)
    if target is None:
        _check_amount(ratio, budget, allocation)
    if isinstance(calibration, Iterator):
        calibration = list(calibration)
    groups = channel_groups(graph, pinned=ignored_nodes(graph, ignore))
    ranked_by = importance or (UNCALIBRATED if calibration is None else QUALITIES[quality].importance)
    least = target.least if target is not None else least_widths(groups, min_channels, max_ratio)
    how = _How(allocation, round_to, is_cumulative(ranked_by), measure, least)
    wanted = target or (ratio if budget is None else budget)
    is_done = not groups.free or (target is not None and _has_widths(groups, target))
    widths = None if is_done else _widths_ahead(graph, groups, wanted, how)
    scores = _none(groups) if is_done else scores_of(graph, groups, ranked_by, batches=calibration, loss=loss, widths=widths)
    chosen, shares = _allotted(graph, groups, scores, wanted, how)
    hidden = masked(graph, groups, chosen.keep)
    pruned = sliced(graph, groups, chosen.keep)
    error = verify_pruned(hidden, pruned).relative
    done = gain = None
    if calibration is not None and not chosen.keep.all():
        repaired, done, gain = _repaired(graph, hidden, groups, chosen.keep, calibration, held_out, QUALITIES[quality].repair)
        if repaired is not None:
            pruned = sliced(unmasked(graph, hidden, repaired), groups, chosen.keep)
    plan = PrunePlan(
        ratio=ratio if target is None else target.ratio,
        budget=shares,
        importance=ranked_by if isinstance(ranked_by, str) else getattr(ranked_by, "__name__", "custom"),
        allocation=allocation if isinstance(allocation, str) else "by layer",
        quality=quality,
        round_to=round_to,
        families=tuple(
            CutFamily(f.name, f.width, chosen.widths[f.name], f.members, chosen.notes.get(f.name, "")) for f in groups.free
        ),
        pinned=tuple(PinnedFamily(f.name, f.width, f.pin.node, f.pin.reason) for f in groups.families if f.pin),
        relative_error=error,
        repair=done,
        gain=gain,
    )
    return PruneResult(pruned, plan, groups, chosen.keep)


def _repaired(
    graph: Graph,
    hidden: Graph,
    groups: ChannelGroups,
    keep: Keep,
    calibration: Iterable[Batch],
    held_out: Iterable[Batch],
    how: RepairName,
) -> tuple[Graph | None, Repair | None, Gain | None]:
    """The masked graph repaired, what was done, and what it gains; the first two are None where that is a loss."""
    repaired, done = repair(graph, hidden, groups, keep, calibration, how=how)
    gain = gain_on(graph, hidden, repaired, held_out)
    return (None, None, gain) if gain is not None and gain.is_worse else (repaired, done, gain)


def check_method(importance: object, allocation: object, quality: object, round_to: object) -> None:
    """Raises InfeasiblePruneError for a name that there is not, or a ratio or a rounding out of bounds."""
    if not isinstance(quality, str) or quality not in QUALITIES:
        raise InfeasiblePruneError(f"{option('quality', quality)}: choose one of {', '.join(QUALITIES)}")
    if importance is not None:
        criterion_of(importance)
    check_request(allocation, round_to)


def check_prunable(graph: Graph, ignore: Iterable[str]) -> None:
    """As `check_free`, before any data is run."""
    check_free(graph, channel_groups(graph, pinned=ignored_nodes(graph, ignore)))


def _check_amount(ratio: float | None, budget: Budget | None, allocation: AllocationName | RatioOf) -> None:
    if budget is not None and ratio is not None:
        raise InfeasiblePruneError(f"ratio={ratio} and a budget say how much to remove; give one of them")
    if ratio is None and budget is None and isinstance(allocation, str):
        raise InfeasiblePruneError("nothing says how much to remove; give a ratio, a budget, or an allocation {layer: ratio}")


def _has_widths(groups: ChannelGroups, target: Target) -> bool:
    return target.widths is not None and all(f.width <= target.widths.get(f.name, f.width) for f in groups.free)


@dataclass(frozen=True, slots=True)
class _How:
    """Options of an allocation, as in `prune`; cumulative: what the scores are (`is_cumulative`)."""

    allocation: AllocationName | RatioOf
    round_to: int
    cumulative: bool
    measure: Measure | None
    least: Widths


def _none(groups: ChannelGroups) -> Scores:
    """Scores where none is asked for."""
    return np.zeros(groups.count)


Wanted = float | Budget | Target | None


def _widths_ahead(graph: Graph, groups: ChannelGroups, wanted: Wanted, how: _How) -> Widths | None:
    """The widths after pruning where no score decides them, so that what cannot be done is said before channels are ranked."""
    decided = isinstance(wanted, Target) and wanted.widths is not None
    by_score = isinstance(wanted, Budget) or how.allocation in ("global", "sensitivity")
    if by_score and not decided:
        return None
    return _allotted(graph, groups, _none(groups), wanted, how)[0].widths


def _allotted(
    graph: Graph, groups: ChannelGroups, scores: Scores, wanted: Wanted, how: _How
) -> tuple[Allocation, Mapping[str, float]]:
    """What stays, and the share that remains of each thing that a budget limits."""
    if isinstance(wanted, Target) and wanted.widths is not None:
        widths = {f.name: min(f.width, wanted.widths.get(f.name, f.width)) for f in groups.free}
        return kept(groups, scores, widths, {}, how.round_to), {}
    if not isinstance(wanted, Budget):
        chosen = allocate(
            groups,
            scores,
            ratio=wanted.ratio if isinstance(wanted, Target) else wanted or 0.0,
            allocation=how.allocation,
            round_to=how.round_to,
            graph=graph,
            cumulative=how.cumulative,
            least=how.least,
            may_be_empty=isinstance(wanted, Target),
        )
        return chosen, {}
    fit = fit_budget(
        graph,
        groups,
        scores,
        wanted,
        cut=lambda keep: sliced(graph, groups, keep),
        allocation=how.allocation,
        round_to=how.round_to,
        measure=how.measure,
        cumulative=how.cumulative,
        least=how.least,
    )
    return fit.allocation, dict(fit.shares)
