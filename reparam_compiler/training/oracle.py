"""Tries in training which filters the next layers miss least, and lets them go while the rest makes up for it.

For a set M of the channels of a family, with x what a consumer reads and y(x) what it gives, the damage of M is

    t(M) = mean over consumers of |y(x) - y(x without M)|^2 / |y(x)|^2

In every training step each family tries one random half of the channels that it has left. The score of a channel is the mean
damage of the halves that it was in. After `rounds` steps the half of lowest scores is tried by itself for `trials` steps, then
the half of that, and so on (binary search), until one does no more damage than the threshold: it leaves, and the search begins
again. A family is finished when a single channel does too much. What has left is zero for all its consumers from then on, in
the forward pass that the caller trains.

What is simpler than the paper: damage is measured where consumers read, by running them once more, rather than by a second path
through norm and activation to the next conv; each family measures against the net as it is, the others' removals included, at
the same batches; and the search halves after a fixed number of steps.

Source: Ding et al. 2019, "Approximated Oracle Filter Pruning for Destructive CNN Width Optimization".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.passes.pruning.allocation import FLOOR
from reparam_compiler.passes.pruning.coupling.groups import Family, Keep
from reparam_compiler.passes.pruning.criteria.base import Reader, readers
from reparam_compiler.training.coupled import Coupled

_CONSUMERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class ApproximatedOracle:
    """Attach it to a module (`with ApproximatedOracle(coupled) as oracle:`), train as usual, and cut by `oracle.keep`.

    Forward passes with gradients enabled are counted; in others only the masks hold. What has left stays masked until the
    `with` ends; then the module is whole again, and its graph, read anew and cut by `oracle.keep`, is what was trained.

    left_out: families whose consumers are not modules (`nn.ConvNd`, `nn.Linear`), and why they are not tried.
    """

    def __init__(
        self, coupled: Coupled, *, threshold: float = 0.01, rounds: int = 100, trials: int = 10, seed: int = 0
    ) -> None:
        """Plans the search.

        Args:
            coupled: the model.
            threshold: the damage, a share of the squared norm of what the consumers give, that a set may do when it leaves.
            rounds: steps for the scores: a few times the channels of the widest family.
            trials: steps for each set that is tried by itself.
            seed: of the masks.

        Raises:
            InfeasiblePruneError: a threshold or number of rounds out of bounds, or no family that can be tried.
        """
        if not threshold > 0 or rounds < 1 or trials < 1:
            raise InfeasiblePruneError(
                f"threshold={threshold}, rounds={rounds}, trials={trials}: give a threshold above 0, and at least one of each"
            )
        self._coupled, self._random = coupled, np.random.default_rng(seed)
        self._consumers: list[_Consumer] = []
        self._searches: dict[str, _Search] = {}
        self._handles: list[RemovableHandle] = []
        left_out = self._plan(threshold, rounds, trials)
        self.left_out: Mapping[str, str] = MappingProxyType(left_out)
        if not self._searches:
            raise InfeasiblePruneError(f"no family can be tried: {'; '.join(left_out.values()) or 'none can be cut'}")

    def __enter__(self) -> "ApproximatedOracle":
        module = self._coupled.module
        self._handles = [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)]
        for consumer in self._consumers:
            self._handles += [
                consumer.module.register_forward_pre_hook(consumer.without_the_gone),
                consumer.module.register_forward_hook(consumer.measure),
            ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def keep(self) -> Keep:
        """The groups that are still there."""
        keep = np.ones(self._coupled.groups.count, np.bool_)
        for search in self._searches.values():
            keep[search.family.groups[~search.alive]] = False
        return keep

    @property
    def scores(self) -> Mapping[str, Float64[np.ndarray, "F"]]:
        """For each family the mean damage of the sets that each of its groups was in; infinite for one that was in none yet."""
        return MappingProxyType({name: search.scores() for name, search in self._searches.items()})

    @property
    def finished(self) -> bool:
        """True when no family can lose anything more."""
        return all(search.finished for search in self._searches.values())

    def _plan(self, threshold: float, rounds: int, trials: int) -> dict[str, str]:
        """Sets up a search for each family that has consumers to measure at; the others, with the reason."""
        consumers = readers(self._coupled.graph, self._coupled.groups)
        left_out: dict[str, str] = {}
        measured: dict[int, _Consumer] = {}
        for family in self._coupled.groups.free:
            own = [reader for reader in consumers if np.isin(reader.numbers, family.groups).any()]
            modules = [self._module(reader) for reader in own]
            if not own or None in modules:
                missing = next((reader.node.id for reader, module in zip(own, modules, strict=True) if module is None), "")
                left_out[family.name] = (
                    f"{family.name}: {f'{missing} is no conv or linear module' if missing else 'no conv reads it'}"
                )
                continue
            search = self._searches[family.name] = _Search(family, threshold, rounds, trials)
            for reader, module in zip(own, modules, strict=True):
                if module is not None:
                    consumer = measured.setdefault(
                        id(module), _Consumer(module, reader.numbers, -1 if reader.axis == -1 else 1)
                    )
                    consumer.searches.append(search)
        self._consumers = list(measured.values())
        return left_out

    def _module(self, reader: Reader) -> nn.Module | None:
        """The module whose weight it is, where that is what computes it."""
        path = (reader.weight.origin or "").rpartition(".")[0]
        module = dict(self._coupled.module.named_modules()).get(path)
        return module if isinstance(module, _CONSUMERS) else None

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        for search in self._searches.values():
            search.draw(self._random if torch.is_grad_enabled() else None)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for search in self._searches.values():
            search.settle()


@dataclass(slots=True, eq=False)
class _Search:
    """The state of one family.

    alive: which groups are left. trial: the set that is tried in this step. suspects: the set that binary search looks at.
    """

    family: Family
    threshold: float
    rounds: int
    trials: int
    finished: bool = False
    alive: Bool[np.ndarray, "F"] = field(init=False)
    trial: Bool[np.ndarray, "F"] | None = None
    suspects: Bool[np.ndarray, "F"] | None = None
    _damages: list[float] = field(default_factory=list)
    _tried: list[float] = field(default_factory=list)
    _sums: Float64[np.ndarray, "F"] = field(init=False)
    _counts: Int64[np.ndarray, "F"] = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.family.groups)
        self.alive = np.ones(size, np.bool_)
        self._sums, self._counts = np.zeros(size), np.zeros(size, np.int64)

    def scores(self) -> Float64[np.ndarray, "F"]:
        return np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), np.inf)

    def draw(self, random: np.random.Generator | None) -> None:
        """Chooses what this step tries; nothing without a generator."""
        self._damages, self.trial = [], None
        if random is None or self.finished:
            return
        if self.suspects is not None:
            self.trial = self.suspects
            return
        left = np.flatnonzero(self.alive)
        self.trial = np.zeros(len(self.alive), np.bool_)
        self.trial[random.choice(left, size=max(1, len(left) // 2), replace=False)] = True

    def note(self, damage: float) -> None:
        """The damage at one consumer."""
        self._damages.append(damage)

    def settle(self) -> None:
        """Ends a step: the damage counts, and after enough of them the search goes on."""
        if self.trial is None or not self._damages:
            return
        damage = float(np.mean(self._damages))
        self._tried.append(damage)
        if self.suspects is None:
            self._sums[self.trial] += damage
            self._counts[self.trial] += 1
        if len(self._tried) < (self.rounds if self.suspects is None else self.trials):
            return
        mean, self._tried = float(np.mean(self._tried)), []
        if self.suspects is None:
            self._suspect(self.alive)
        elif mean <= self.threshold:
            self.alive &= ~self.suspects
            self._sums[:], self._counts[:] = 0, 0
            self.suspects = None
            self.finished = self._most() == 0
        else:
            self._suspect(self.suspects)

    def _suspect(self, among: Bool[np.ndarray, "F"]) -> None:
        """The half of lowest scores, no more than may leave; the family is finished where that is nothing."""
        chosen = np.flatnonzero(among)
        size = min(len(chosen) // 2, self._most())
        self.finished = size == 0
        self.suspects = np.zeros(len(self.alive), np.bool_)
        self.suspects[chosen[np.argsort(self.scores()[chosen], kind="stable")[:size]]] = True

    def _most(self) -> int:
        return int(self.alive.sum()) - max(1, ceil(FLOOR * len(self.alive)))


@dataclass(slots=True, eq=False)
class _Consumer:
    """A module that reads channels of families: groups of its input channels along an axis."""

    module: nn.Module
    numbers: Int64[np.ndarray, "C"]
    axis: int
    searches: list[_Search] = field(default_factory=list)

    def without_the_gone(self, module: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...] | None:
        gone = np.concatenate([search.family.groups[~search.alive] for search in self.searches])
        return (self._without(inputs[0], gone), *inputs[1:]) if len(gone) else None

    def measure(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        trials = [search for search in self.searches if search.trial is not None]
        with torch.no_grad():
            whole = float((output**2).sum())
            for search in trials:
                masked = self._without(inputs[0], search.family.groups[search.trial])
                apart = float(((output - type(module).forward(module, masked)) ** 2).sum())
                search.note(apart / whole if whole else 0.0)

    def _without(self, x: Tensor, groups: Int64[np.ndarray, "R"]) -> Tensor:
        stays = torch.from_numpy(~np.isin(self.numbers, groups)).to(x)
        return x * (stays if self.axis == -1 else stays.reshape(-1, *(1,) * (x.ndim - 2)))
