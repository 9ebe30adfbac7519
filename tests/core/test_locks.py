"""A lock is one thread's at a time, and nobody's in a child that was forked."""

import os
import threading

import pytest

from reparam_compiler.core.locks import ProcessLock

TOO_LONG = 20
"""Seconds after which a thread that waits is taken to hang."""


def taken_elsewhere(lock: ProcessLock, seconds: float) -> bool:
    """Whether another thread gets the lock within so many seconds."""
    got = threading.Event()

    def take() -> None:
        with lock.held():
            got.set()

    threading.Thread(target=take, daemon=True).start()
    return got.wait(seconds)


def test_one_thread_at_a_time_holds_it() -> None:
    lock = ProcessLock()
    with lock.held(), lock.held():
        assert not taken_elsewhere(lock, 0.2)
    assert taken_elsewhere(lock, TOO_LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_it_is_free_in_a_child_and_still_held_in_the_parent() -> None:
    lock = ProcessLock()
    with lock.held():
        if (child := os.fork()) == 0:
            os._exit(0 if taken_elsewhere(lock, TOO_LONG) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not taken_elsewhere(lock, 0.2)
