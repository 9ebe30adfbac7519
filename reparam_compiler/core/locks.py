"""Locks for what is the whole process's: TVM's state, stderr, what a tracer puts in the place of torch's own functions."""

import contextlib
import os
import threading
from collections.abc import Iterator


class ProcessLock:
    """A lock that its holder may take again, and that is free in a child that was forked, whoever held it in the parent.

    >>> lock = ProcessLock()
    >>> with lock.held(), lock.held():
    ...     "twice"
    'twice'
    """

    def __init__(self) -> None:
        self._make()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._make)

    def _make(self) -> None:
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it: one thread at a time does."""
        with self._lock:  # gives back the one that was taken, though there be another since
            yield
