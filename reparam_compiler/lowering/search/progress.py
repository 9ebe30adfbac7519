"""How far a search is, for a person and for a program."""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live

log = logging.getLogger(__name__)
SAID_EVERY = 5.0
"""Seconds between two lines of the log."""


@dataclass(frozen=True, slots=True)
class TuneStep:
    """A search after one more measurement.

    doing: the layer that was measured, or what else is done. trial, trials: of how many measurements. failed: of those so far.
    start_seconds, best_seconds: of all convs of a run, measured alone: by rule, and each at its best so far; None before the
        rule's points are known.
    seconds: since the search began. left: about how many are left.

    >>> print(TuneStep("conv_3x3_8_8_at_7x7", 30, 120, 1, 4e-3, 3.5e-3, 60.0, 180.0))
    conv_3x3_8_8_at_7x7: trial 30 of 120 (1 failed), convs 3.500 ms of 4.000 by rule, about 180 s left
    """

    doing: str
    trial: int
    trials: int
    failed: int = 0
    start_seconds: float | None = None
    best_seconds: float | None = None
    seconds: float = 0.0
    left: float | None = None

    def __str__(self) -> str:
        failed = f" ({self.failed} failed)" if self.failed else ""
        times = ""
        if self.start_seconds is not None and self.best_seconds is not None:
            times = f", convs {1e3 * self.best_seconds:.3f} ms of {1e3 * self.start_seconds:.3f} by rule"
        left = "" if self.left is None else f", about {self.left:.0f} s left"
        return f"{self.doing}: trial {self.trial} of {self.trials}{failed}{times}{left}"


Listener = Callable[[TuneStep], None]


class Clock:
    """Counts the measurements of a search, and tells its listeners.

    most_seconds: after which no measurement begins.
    """

    def __init__(self, trials: int, most_seconds: float | None, listeners: tuple[Listener, ...]) -> None:
        self.trials = trials
        self.done = 0
        self.failed = 0
        self._most = math.inf if most_seconds is None else most_seconds
        self._began = time.monotonic()
        self._known = 0
        self._listeners = listeners

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return time.monotonic() - self._began

    def over(self, share: float = 1.0) -> bool:
        """Whether that share of the time is up."""
        return self.seconds >= share * self._most

    def known(self, count: int) -> None:
        """So many measurements of an earlier search count."""
        self._known = count
        self.done += count

    def counted(self, more: int = 1, *, failed: int = 0) -> None:
        """So many more measurements were made, of which some failed."""
        self.done += more
        self.failed += failed

    def told(self, doing: str, times: tuple[float, float] | None = None) -> None:
        """Tells where the search is. times: of all convs, by rule and at their best."""
        new = self.done - self._known
        left = self.seconds * (self.trials - self.done) / new if new > 0 else None
        if left is not None and math.isfinite(self._most):
            left = min(left, self._most - self.seconds)
        start, best = times if times is not None and all(map(math.isfinite, times)) else (None, None)
        found = TuneStep(
            doing, self.done, self.trials, self.failed, start, best, self.seconds, None if left is None else max(left, 0.0)
        )
        for listener in self._listeners:
            listener(found)


@contextlib.contextmanager
def shown(wanted: bool) -> Iterator[Listener]:
    """What draws the search on a terminal, and else says it in the log now and then.

    The terminal has a stderr of its own, for `filter_stderr` holds the common one.
    """
    if not (wanted and sys.stderr is not None and sys.stderr.isatty()):
        yield _logged()
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stderr, Live(console=Console(file=stderr), transient=True) as live:
        yield lambda step: live.update(str(step))


def _logged() -> Listener:
    last = -math.inf

    def heard(step: TuneStep) -> None:
        nonlocal last
        if step.seconds - last >= SAID_EVERY:
            last = step.seconds
            log.info("%s", step)

    return heard
