"""What a search is asked for, and what it gives."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend, Tuning
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR
from reparam_compiler.lowering.rpc.address import Rpc
from reparam_compiler.lowering.runtime.linking import check_linker
from reparam_compiler.lowering.search.pairs import Repeats
from reparam_compiler.lowering.search.records import prepare
from reparam_compiler.lowering.target import TargetLike, describe, resolve


@dataclass(frozen=True, slots=True)
class TunedTask:
    """One kernel.

    trials: how many of its points are on record. best_seconds: the best of them, alone; infinite without any.
    count: its calls in a run. rule_seconds: of the rule's point, alone; None before it is known, and for what has no recipe.
    taken: the algorithm that `compile` takes by these records; decided: what decided that, in words. "" without measurements.
    """

    name: str
    trials: int
    best_seconds: float
    count: int = 1
    rule_seconds: float | None = None
    taken: str = ""
    decided: str = ""


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a search did. `measured` is new, `total` includes what the folder held before.

    >>> TuneResult(measured=2, total=5, tasks=(TunedTask("conv_1x1", trials=5, best_seconds=1e-5),)).tasks[0].best_seconds
    1e-05

    failed: of the new measurements, those that gave no time; the folder says why.
    rule_seconds, net_seconds: of a run of the net by rule, and with what was found, run by turns; None where the search was
        ended before.
    interrupted: whether it was ended by Ctrl-C.
    """

    measured: int
    total: int
    tasks: tuple[TunedTask, ...]
    failed: int = 0
    rule_seconds: float | None = None
    net_seconds: float | None = None
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How long a search goes on, and how it measures.

    trials: measurements in all, those that the folder holds for this model included; 0 measures nothing, and lists the tasks.
    tasks: which kernels: their numbers in the list, as "2" or "0-3", or parts of their names; all where none are named.
    early_stopping: new measurements in a row without a gain, after which it ends.
    max_seconds: after which no measurement begins.
    repeat: measurements of a candidate, of which the least counts. number: runs in a row for each; min_repeat_ms: or as many
        as take so long. timeout: seconds that all of it may take, and as many again to build it.
    parallel: candidates that are built at once; None is one a core.
    max_error: the relative error that an algorithm may have on a layer's weights.
    """

    trials: int = 256
    early_stopping: int | None = None
    max_seconds: float | None = None
    repeat: int = 5
    number: int = 1
    min_repeat_ms: int = 0
    timeout: float = 30.0
    parallel: int | None = None
    tasks: tuple[str, ...] = ()
    max_error: float = MAX_ERROR

    @property
    def repeats(self) -> Repeats:
        """How a candidate is measured."""
        return Repeats(self.repeat, self.number, self.min_repeat_ms, self.timeout)

    def check(self) -> None:
        """Raises LoweringError where a number is too small."""
        if self.trials < 0:
            raise LoweringError(f"tune: found trials={self.trials}; expected 0 or more")
        counts = {name: getattr(self, name) for name in ("repeat", "number", "early_stopping", "parallel")}
        given = {name: value for name, value in counts.items() if value is not None}
        if any(value < 1 for value in given.values()):
            found = ", ".join(f"{name}={value}" for name, value in given.items())
            raise LoweringError(f"tune: found {found}; expected 1 or more of each")
        if self.min_repeat_ms < 0:
            raise LoweringError(f"tune: found min_repeat_ms={self.min_repeat_ms}; expected 0 or more")
        for name in ("timeout", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise LoweringError(f"tune: found {name}={value}; expected more than 0 seconds")


def selected(names: Sequence[str], wanted: Sequence[str]) -> list[bool]:
    """Which of the tasks of these names are wanted; see `SearchOptions.tasks`.

    >>> selected(["conv_3x3", "conv_1x1", "softmax"], ["0", "soft"])
    [True, False, True]

    Raises: LoweringError where a word means none of them.
    """
    found = [not wanted] * len(names)
    for word in wanted:
        first, dash, last = word.partition("-")
        by_number = first.isdigit() and (not dash or last.isdigit())
        numbers = range(int(first), int(last if dash else first) + 1) if by_number else range(0)
        chosen = [number in numbers or (not by_number and word in name) for number, name in enumerate(names)]
        if not any(chosen):
            every = ", ".join(f"{number} {name}" for number, name in enumerate(names))
            raise LoweringError(f"tune: found the task {word!r}; expected the number or a part of the name of one of: {every}")
        found = [one or other for one, other in zip(found, chosen, strict=True)]
    return found


@dataclass(frozen=True, slots=True)
class Search:
    """A search that can be made: for which target, of what, how, into which folder, and on which devices far away, if any."""

    backend: Backend
    tuning: Tuning[Any]
    folder: Path
    options: SearchOptions
    rpc: Rpc | None = None


def check_search(
    target: TargetLike, database: str | os.PathLike[str], options: SearchOptions, rpc: Rpc | None = None
) -> Search:
    """What `tune` is asked for, where it can be done; asked before a model is fused, which may take minutes. Makes the folder.

    Raises: LoweringError where `target` cannot be read, is of a kind that nothing is searched for, or not this machine's
    without `rpc`; nothing here links code for it; a number is too small; or `database` cannot be a folder.
    """
    backend = backend_for(resolve(target)).settled(measure=True)
    if (tuning := backend.tuning()) is None:
        raise LoweringError(
            f"tune: found target {describe(backend.target)}; nothing is searched for its kind, whose kernels are chosen by rule"
        )
    if rpc is not None:
        rpc.check()
        check_linker(rpc.compiler, describe(backend.target))
    elif reason := backend.unrunnable_here():
        raise LoweringError(
            f"tune: found target {describe(backend.target)}; candidates are run here, and {reason}; "
            "name devices that run them (rpc)"
        )
    options.check()
    prepare(Path(database))
    return Search(backend, tuning, Path(database), options, rpc)
