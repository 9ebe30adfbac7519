"""Pruning in rounds, between which the caller trains.

What a round is to reach is reckoned from the widths of the model as it was given: after the last round every layer has the
width that `prune` would give it in one shot, whatever the number of rounds and the schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
from torch import nn

from reparam_compiler.api.modes import outside_modes
from reparam_compiler.api.options import PruneOptions, RoundKeywords, made
from reparam_compiler.api.pruning import cut, opened, report_of, warn_of
from reparam_compiler.api.report import PruneReport
from reparam_compiler.api.writing import write_pruned
from reparam_compiler.errors import InfeasiblePruneError, RewriteError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.calibration import again
from reparam_compiler.passes.pruning.allocation import allocate, ignored_nodes, least_widths
from reparam_compiler.passes.pruning.budget import Schedule
from reparam_compiler.passes.pruning.budget import schedule as ratios_of
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Keep, channel_groups
from reparam_compiler.passes.pruning.manifest import Manifest
from reparam_compiler.passes.pruning.pipeline import PruneResult, Target


class IterativePruner:
    """Prunes a module in rounds, each a little narrower, between which the caller trains it.

        pruner = IterativePruner(model, (x,), ratio=0.7, steps=4, schedule="cubic", calibration=images)
        while not pruner.finished:
            train(pruner.step())

    model: as it is now, an ordinary module in the mode that it was given in.
    report: of the last round. Its manifest is of all rounds up to there: it makes the architecture of `model` of the module
        that was given, or of another checkpoint of it.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any] | None = None,
        *,
        ratio: float,
        steps: int,
        schedule: Schedule = "linear",
        verify: bool = True,
        **options: Unpack[RoundKeywords],
    ) -> None:
        """Prunes nothing yet.

        Args:
            model, example_inputs: as for `prune`.
            ratio: the share of channels that is gone after the last round.
            steps: how many rounds.
            schedule: how the share grows (`passes/pruning/budget.py`).
            verify, options: what else `prune` takes, in every round.

        Raises:
            InfeasiblePruneError: an option makes no sense. What the model and the data lack is raised by `step`.
        """
        if amount := [name for name in ("flops", "params", "latency", "measure") if name in options]:
            raise TypeError(f"IterativePruner() got an unexpected keyword argument {amount[0]!r}; it takes a ratio")
        settings = made(PruneOptions, "IterativePruner", options)
        ignored = settings.ignored(model)  # a module of this model is none of the next round's
        data = None if settings.calibration is None else again(settings.calibration)
        self.model: nn.Module = model
        self.report: PruneReport | None = None
        self._inputs, self._verify = example_inputs, verify
        self._options = replace(settings, calibration=data, ignore=ignored)
        self._ratios, self._schedule = ratios_of(ratio, steps, schedule), schedule
        self._done, self._start = 0, _Start.none()

    @property
    def finished(self) -> bool:
        """True after the last round."""
        return self._done == len(self._ratios)

    def step(self) -> nn.Module:
        """One round; the same model where no width changes in it.

        Raises:
            InfeasiblePruneError: after the last round; or nothing can be removed in all of them.
            ReparamError: what else `prune` raises.
        """
        if self.finished:
            raise InfeasiblePruneError("the last round has been made; start another IterativePruner to go on")
        modes = _modes(self.model)
        try:
            self.model.eval()
            with outside_modes():
                pruned = self._round()
        finally:
            _set_modes(self.model, modes)
        self._done += 1
        if pruned is not self.model:
            self.model = pruned.train(modes[""])
            _set_modes(self.model, modes)
        return self.model

    def _round(self) -> nn.Module:
        source, options = opened(self.model, self._inputs, self._options, copy=True)
        before = source.graph
        if not self._done:
            self._start = _Start.of(before, options, self._ratios, self._schedule)
        result = cut(source, options, self._start.target(self._done, before))
        warn_of(result, before)
        pruned = self.model if result.keep.all() else write_pruned(source, result.graph, inplace=False, verify=self._verify)
        self._start = self._start.after(result)
        whole = replace(result, groups=self._start.groups, keep=self._start.keep)
        self.report = report_of(source, result, Manifest.of(self._start.graph, whole))
        return pruned


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """The model as it was given, and what became of it.

    graph, groups: of the first round.
    keep: which of these groups are still there.
    widths: for each round the width of every family after it; None for an allocation that looks at scores, which has `ratios`.
    least: the width that no family may fall below.
    """

    graph: Graph
    groups: ChannelGroups
    keep: Keep
    widths: tuple[Mapping[str, int], ...] | None
    ratios: tuple[float, ...]
    least: Mapping[str, int]

    @staticmethod
    def none() -> "_Start":
        """Before the first round."""
        graph = Graph.of((), ())
        return _Start(graph, channel_groups(graph), np.ones(1, np.bool_), (), (), {})

    @staticmethod
    def of(graph: Graph, options: PruneOptions, ratios: Sequence[float], schedule: Schedule) -> "_Start":
        """The widths of all rounds; raises InfeasiblePruneError where nothing leaves in any of them."""
        groups = channel_groups(graph, pinned=ignored_nodes(graph, options.ignore))  # type: ignore[arg-type]
        nothing, lowest = np.ones(groups.count, np.bool_), least_widths(groups, options.min_channels, options.max_ratio)
        if isinstance(options.allocation, str) and options.allocation != "uniform":
            return _Start(graph, groups, nothing, None, tuple(ratios), lowest)
        widths: list[Mapping[str, int]] = []
        for number in reversed(range(len(ratios))):  # no round goes below the last one
            chosen = allocate(
                groups,
                np.zeros(groups.count),
                ratio=ratios[number],
                allocation=_at(options, number, len(ratios), schedule),
                round_to=options.round_to,
                graph=graph,
                least=lowest,
                may_be_empty=number < len(ratios) - 1,
            )
            least = widths[0] if widths else {}
            widths.insert(0, {name: max(width, least.get(name, 0)) for name, width in chosen.widths.items()})
        return _Start(graph, groups, nothing, tuple(widths), tuple(ratios), lowest)

    def target(self, number: int, graph: Graph) -> Target:
        """What a round is to reach, on the graph as it is before it."""
        if self.widths is not None:
            return Target(self.widths[number], self.ratios[number])
        whole = sum(family.width for family in self.groups.free)
        left = sum(family.positions * int(self.keep[family.groups].sum()) for family in self.groups.free)
        return Target(ratio=max(0.0, 1 - (1 - self.ratios[number]) * whole / max(left, 1)), least=self.least)

    def after(self, result: PruneResult) -> "_Start":
        """With what a round kept.

        Raises RewriteError where the channels of a family are not those that are left of it: training changes no architecture.
        """
        keep, now = self.keep.copy(), {family.name: family for family in result.groups.families}
        for family in self.groups.free:
            left = family.groups[keep[family.groups]]
            found = now.get(family.name)
            if found is None or len(found.groups) != len(left):
                raise RewriteError(
                    f"{family.name}: found {0 if found is None else len(found.groups)} groups of channels; expected the "
                    f"{len(left)} that the last round left; start another IterativePruner with the model as it is now"
                )
            keep[left] = result.keep[found.groups]
        return replace(self, keep=keep)


def _at(options: PruneOptions, number: int, rounds: int, schedule: Schedule) -> Any:
    """The allocation of a round: ratios of layers grow as the other one does."""
    if not isinstance(options.allocation, Mapping):
        return options.allocation
    return {pattern: ratios_of(ratio, rounds, schedule)[number] for pattern, ratio in options.allocation.items()}


def _modes(model: nn.Module) -> dict[str, bool]:
    """For each module, by its name, whether it is in training mode; a frozen norm in a model that trains is not."""
    return {name: module.training for name, module in model.named_modules(remove_duplicate=False)}


def _set_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    for name, module in model.named_modules(remove_duplicate=False):
        module.training = modes.get(name, module.training)
