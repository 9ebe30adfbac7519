"""How much has to go to meet a budget, and how to go there in several rounds.

    budget      share(C) = count(sliced graph) / count(whole graph) <= the share that may remain

count is of multiply-adds or of parameters, by the functions of `cost/model.py` on the sliced graph, or the caller's own
measurement of it (latency). An allocation is the first k steps of a removal order (`allocate`): k is the least that meets
all that is asked, found by bisection, for a narrower graph never counts more. Counting loads no weight. A measurement is
not exact and takes time: at most `MEASUREMENTS` are made, where the line between the two nearest ones expects the budget to
be met, and what was measured to meet it is what is given.

    schedule    linear      r i / n                        the same share of the original in each round
                geometric   1 - (1 - r)^(i / n)            the same share of what is left
                cubic       r (1 - (1 - i / n)^3)          fast while there is much to spare, then slowly

Source: Zhu and Gupta 2017, "To prune, or not to prune" (cubic).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from numbers import Real
from types import MappingProxyType
from typing import Literal

import numpy as np

from reparam_compiler.advice import ask_for_inputs, option
from reparam_compiler.cost.model import cost, work
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.passes.choices import AllocationName
from reparam_compiler.passes.pruning.allocation import (
    NO_LEAST,
    Allocation,
    RatioOf,
    Saving,
    Step,
    Widths,
    check_free,
    check_ratio,
    check_request,
    family_ratios,
    is_count,
    kept,
    nearest_widths,
    removal_order,
    widths_after,
)
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family, Keep
from reparam_compiler.passes.pruning.criteria.base import Scores

Measure = Callable[[Graph], float]
"""How long a graph takes, in any unit."""
Schedule = Literal["linear", "geometric", "cubic"]
MEASUREMENTS = 8
"""Of latency, with that of the whole graph and of the narrowest one."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The shares that may remain, each above 0 and at most 1; what is None is not limited.

    flops: of the multiply-adds of convs and linears. params: of the parameters that `cost` counts. latency: of the time that
        the caller's `measure` gives.
    """

    flops: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits:
            raise InfeasiblePruneError("the budget limits nothing; give flops=, params= or latency=")
        for name, share in limits.items():
            if not _may_remain(share):
                raise InfeasiblePruneError(f"{name}={share!r}: give the share that may remain, above 0 and at most 1")

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by name."""
        shares = {"flops": self.flops, "params": self.params, "latency": self.latency}
        return {name: share for name, share in shares.items() if share is not None}


def _may_remain(share: object) -> bool:
    return isinstance(share, Real) and 0 < float(share) <= 1


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """An allocation that meets a budget.

    shares: what remains of everything that is limited.
    """

    allocation: Allocation
    shares: Mapping[str, float]


def fit_budget(
    graph: Graph,
    groups: ChannelGroups,
    scores: Scores,
    budget: Budget,
    *,
    cut: Callable[[Keep], Graph],
    allocation: AllocationName | RatioOf = "uniform",
    round_to: int = 8,
    measure: Measure | None = None,
    cumulative: bool = False,
    least: Widths = NO_LEAST,
) -> Fit:
    """The allocation that removes the least that meets a budget.

    Args:
        graph: the model, with static sizes but for the batch's.
        groups: its coupling.
        scores: for each group; errors, for "sensitivity", which is by multiply-add saved (by parameter for a budget of these).
        budget: the shares that may remain.
        cut: from a keep mask to the sliced graph (`slice_channels.sliced`).
        allocation: in which order channels go; with a mapping the families that it names have its ratios, and the others
            go as "uniform" says.
        round_to: widths go to multiples of this many channels.
        measure: needed for a latency.
        cumulative, least: as for `allocate`.

    Raises:
        InfeasiblePruneError: the budget cannot be met, with the least that can be reached; no `measure` for a latency; a size
            that is not known; or what `allocate` refuses.
    """
    check_request(allocation, round_to)
    if budget.latency is not None and measure is None:
        raise InfeasiblePruneError(f"latency={budget.latency}: there is nothing to measure it with; give measure=")
    check_free(graph, groups)
    fixed = family_ratios(graph, groups, allocation) if isinstance(allocation, Mapping) else {}
    named = [family for family in groups.free if family.name in fixed]
    targets = {family.name: family.width * (1 - fixed[family.name]) for family in named}
    start = nearest_widths(named, targets, round_to, least)
    order = removal_order(
        groups,
        scores,
        "uniform" if isinstance(allocation, Mapping) else allocation,
        round_to=round_to,
        cumulative=cumulative,
        saving=savings(graph, groups, params=set(budget.limits) == {"params"}),
        families=[family for family in groups.free if family.name not in fixed],
        least=least,
    )
    line = _Line(graph, groups, scores, order, start, round_to, cut, measure)
    _check_reachable(line, budget, round_to)
    count = max([line.first(name, share) for name, share in budget.limits.items() if name != "latency"], default=0)
    if budget.latency is not None:
        count = max(count, line.first_measured(budget.latency, count))
    shares = {name: line.share(name, count) for name in budget.limits}
    return Fit(line.allocation(count), MappingProxyType(shares))


def multiply_adds(graph: Graph) -> int:
    """Of all convs and linears, by `cost.work`, a size of the batch that is not known counting as one.

    Raises InfeasiblePruneError where another size of an op that counts is not known.
    """
    return sum(_node_multiply_adds(node, graph) for node in graph)


def schedule(ratio: float, steps: int, kind: Schedule = "linear") -> tuple[float, ...]:
    """The share of the original channels that is gone after each of so many rounds; after the last it is `ratio`.

    Raises InfeasiblePruneError for a ratio outside [0, 1), no round, or a kind that does not exist.
    """
    check_ratio("ratio", ratio)
    if not is_count(steps):
        raise InfeasiblePruneError(f"steps={steps!r}: give the number of rounds, a whole one, at least 1")
    if kind not in _CURVES:
        raise InfeasiblePruneError(f"kind={kind!r}: choose one of {', '.join(map(repr, _CURVES))}")
    return (*(_CURVES[kind](ratio, i / steps) for i in range(1, steps)), ratio)


_CURVES: Mapping[Schedule, Callable[[float, float], float]] = MappingProxyType(
    {
        "linear": lambda ratio, t: ratio * t,
        "geometric": lambda ratio, t: 1 - (1 - ratio) ** t,
        "cubic": lambda ratio, t: ratio * (1 - (1 - t) ** 3),
    }
)


def savings(graph: Graph, groups: ChannelGroups, *, params: bool = False) -> Saving:
    """What a step of a family saves while the others have the widths given: multiply-adds, or parameters.

    A conv or linear costs (outputs) x (inputs) x a constant, and each side is a sum of families' channels, since all groups
    of a family stand at it equally often.
    """
    table = [entry for node in graph if (entry := _Product.of(node, graph, groups, params)) is not None]
    at: dict[str, list[_Product]] = {}
    for entry in table:
        for name in entry.outputs.keys() | entry.inputs.keys():
            at.setdefault(name, []).append(entry)

    def saved(widths: Mapping[str, int], family: Family, after: int) -> float:
        narrower = {**widths, family.name: after}
        return sum(entry.count(widths) - entry.count(narrower) for entry in at.get(family.name, ()))

    return saved


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A conv or linear: each side a constant and, for each family, channels here for each of its own channels."""

    scale: float
    outputs: Mapping[str, float]
    inputs: Mapping[str, float]
    outputs_fixed: float
    inputs_fixed: float

    @staticmethod
    def of(node: Node, graph: Graph, groups: ChannelGroups, params: bool) -> "_Product | None":
        axes = groups.along(node, "weight") if isinstance(node.op, ops.Weighted) else {}
        if not node.params or not axes:
            return None
        weight = node.params[0]
        whole = float(weight.count if params else _node_multiply_adds(node, graph))
        sides = [_share_of(groups, axes.get(axis, np.zeros(weight.shape[axis], np.int64))) for axis in (0, 1)]
        return _Product(whole / (weight.shape[0] * weight.shape[1]), sides[0][0], sides[1][0], sides[0][1], sides[1][1])

    def count(self, widths: Mapping[str, int]) -> float:
        outputs = self.outputs_fixed + sum(often * widths[name] for name, often in self.outputs.items())
        inputs = self.inputs_fixed + sum(often * widths[name] for name, often in self.inputs.items())
        return self.scale * outputs * inputs


def _share_of(groups: ChannelGroups, labels: np.ndarray) -> tuple[dict[str, float], float]:
    """For each free family how many of these channels belong to one of its own, and how many belong to none."""
    standing = np.bincount(groups.number[labels], minlength=groups.count)
    counts = {family: int(standing[family.groups].sum()) for family in groups.free}
    often = {family.name: count / family.width for family, count in counts.items() if count}
    return often, float(len(labels) - sum(counts.values()))


class _Line:
    """The allocations of a removal order, by how many steps are done, and what each of them counts."""

    def __init__(
        self,
        graph: Graph,
        groups: ChannelGroups,
        scores: Scores,
        order: tuple[Step, ...],
        start: Mapping[str, int],
        round_to: int,
        cut: Callable[[Keep], Graph],
        measure: Measure | None,
    ) -> None:
        self._graph, self._groups, self._scores, self._order = graph, groups, scores, order
        self._start, self._round_to, self._cut, self._measure = start, round_to, cut, measure
        self.measurements = 0
        self.last = len(order)
        self._whole: dict[str, float] = {}
        self.share = cache(self._share)

    def allocation(self, count: int) -> Allocation:
        widths = widths_after(self._groups.free, self._order[:count]) | dict(self._start)
        return kept(self._groups, self._scores, widths, {}, self._round_to)

    def first(self, name: str, limit: float) -> int:
        """The least count that meets a limit; the last one is known to."""
        low, high = -1, self.last
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.share(name, middle) <= limit else (middle, high)
        return high

    def first_measured(self, limit: float, least: int) -> int:
        """A count that was measured to meet the limit, as low as the measurements that are left can tell."""
        low, high = least, self.last
        if self.share("latency", low) <= limit:
            return low
        while self.measurements < MEASUREMENTS and high - low > 1:
            middle = self._expected(low, high, limit)
            low, high = (low, middle) if self.share("latency", middle) <= limit else (middle, high)
        return high

    def _expected(self, low: int, high: int, limit: float) -> int:
        """Where the line between two measurements, over multiply-adds, meets the limit; inside of both ends."""
        slow, fast = self.share("latency", low), self.share("latency", high)
        wide, narrow = self.share("flops", low), self.share("flops", high)
        part = min(max((slow - limit) / (slow - fast), 0.1), 0.9) if slow > fast else 0.5
        aim = wide + part * (narrow - wide)
        return min(max(self.first("flops", aim), low + 1), high - 1)

    def _share(self, name: str, count: int) -> float:
        keep = self.allocation(count).keep
        if bool(keep.all()):
            return 1.0  # of itself: two measurements of one model may differ by a half on a busy machine
        if name not in self._whole:
            self._whole[name] = self._count(name, self._graph)
        return self._count(name, self._cut(keep)) / (self._whole[name] or 1.0)

    def _count(self, name: str, graph: Graph) -> float:
        if name == "flops":
            return float(multiply_adds(graph))
        if name == "params":
            return float(cost(graph).params)
        if self._measure is None:
            raise InfeasiblePruneError("a latency needs measure=")
        self.measurements += 1
        return self._measure(graph)


def _check_reachable(line: _Line, budget: Budget, round_to: int) -> None:
    short = [
        f"{name}={limit}: at least {line.share(name, line.last):.3g} remains"
        for name, limit in budget.limits.items()
        if line.share(name, line.last) > limit
    ]
    if short:
        raise InfeasiblePruneError(
            f"the budget cannot be met: {'; '.join(short)} with every family at its least width. "
            f"Ask for no less, ignore fewer layers, or lower {option('round_to', round_to)} and what every layer keeps"
        )


def _node_multiply_adds(node: Node, graph: Graph) -> int:
    params = node.params
    if not params or not isinstance(node.op, ops.Weighted):
        return 0
    return work(node.op, params, _elements(node.sources[0], graph), _elements(node.id, graph)).multiply_adds


def _elements(node_id: NodeId, graph: Graph) -> int:
    known = graph[node_id].type
    if known is None or any(not isinstance(size, int) for size in known.shape[1:]):
        found = "is not known" if known is None else f"is {' x '.join(map(str, known.shape))}"
        raise InfeasiblePruneError(f"{node_id}: the shape {found}, and multiply-adds cannot be counted; {ask_for_inputs()}")
    return prod(size if isinstance(size, int) else 1 for size in known.shape)
