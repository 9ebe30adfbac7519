"""How far long work is, and about how long it takes: said after five seconds, and every five seconds from then on.

    logging       a line at INFO of the logger "reparam_compiler.progress"
    `heard_by`    for one who draws: the commands' line on a terminal

Work says nothing where it is short.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

QUIET = 5.0
"""Seconds of work before it is spoken of, and between two times."""
logger = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far some work is.

    work: what is done, in words. done, total: of its steps. seconds: that it took so far.
    """

    work: str
    done: int
    total: int
    seconds: float

    @property
    def left(self) -> float:
        """About how many seconds are left, if the other steps take as long as those that are done."""
        return self.seconds * (self.total - self.done) / self.done

    def __str__(self) -> str:
        """A line without its end.

        >>> str(Progress("repairing", 30, 120, 10.0))
        'repairing: 30 of 120, about 30 s left'
        """
        return f"{self.work}: {self.done} of {self.total}, about {self.left:.0f} s left"


Listener = Callable[[Progress], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tells a function of the progress of what runs meanwhile, beside the log."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def steps(items: Iterable[Item], work: str, total: int) -> Iterator[Item]:
    """The items, with word of how far their user is.

    Args:
        items: what is worked on, one by one.
        work: what is done with them, in words: "repairing".
        total: how many there are.
    """
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said >= QUIET:
            said = now
            found = Progress(work, done, total, now - start)
            logger.info("%s", found)
            if (listener := _LISTENER.get()) is not None:
                listener(found)
        yield item
