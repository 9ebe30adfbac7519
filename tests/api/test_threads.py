"""The public functions wait for each other, and models that other threads run meanwhile go on."""

import functools
import os
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.api.modes import outside_modes
from tests.support.every_kind import X, net

SOON = 0.2
"""Seconds in which a thread that waits for nothing has begun."""
TOO_LONG = 60
"""Seconds after which a thread that waits is taken to hang."""


class Meeting(nn.Module):
    """A net whose `forward` does something besides, once: it stands for code that runs while the net is traced."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.net = net()
        self.meanwhile = functools.cache(meanwhile)

    def forward(self, x: Tensor) -> Tensor:
        self.meanwhile()
        found: Tensor = self.net(x)
        return found


def test_a_model_that_another_thread_runs_meanwhile_gives_what_it_gives() -> None:
    served, found = net(), list[Tensor]()

    def serve() -> None:
        def run() -> None:
            with torch.no_grad():
                found.extend((served(X), model.net(X)))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(TOO_LONG)

    model = Meeting(serve).eval()
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert report.fusions
    assert len(found) == 2
    torch.testing.assert_close(fused(X), model(X))
    assert [value.equal(expected) for value, expected in zip(found, (served(X), model(X)), strict=True)] == [True, True]


def test_two_threads_that_fuse_leave_torch_as_it_was() -> None:
    call, stderr, over, inside = nn.Module.__call__, sys.stderr, threading.Event(), threading.Event()
    fused: list[nn.Module] = []

    def wait_for_the_first() -> None:
        inside.set()
        assert over.wait(TOO_LONG)

    other = Meeting(wait_for_the_first).eval()
    thread = threading.Thread(target=lambda: fused.append(reparam_compiler.fuse(other)))

    def begin_the_second() -> None:
        thread.start()
        inside.wait(SOON)

    first = reparam_compiler.fuse(Meeting(begin_the_second).eval())
    over.set()
    thread.join(TOO_LONG)
    assert nn.Module.__call__ is call
    assert sys.stderr is stderr
    torch.testing.assert_close(first(X), net()(X))
    torch.testing.assert_close(fused[0](X), net()(X))


def test_whoever_comes_second_waits() -> None:
    begun, waited = threading.Event(), list[bool]()

    def enter() -> None:
        with outside_modes():
            begun.set()

    thread = threading.Thread(target=enter)

    def begin_the_second() -> None:
        thread.start()
        waited.append(not begun.wait(SOON))

    reparam_compiler.fuse(Meeting(begin_the_second).eval())
    assert waited == [True]
    assert begun.wait(TOO_LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_process_that_was_forked_meanwhile_does_not_wait_for_its_parent() -> None:
    children: list[int] = []

    def fork() -> None:
        if (child := os.fork()) == 0:
            os._exit(0 if _gets_its_turn() else 1)
        children.append(child)

    reparam_compiler.fuse(Meeting(fork).eval())
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


def _gets_its_turn() -> bool:
    """Whether another thread of a child gets its turn, as none of the parent's works there."""
    got: list[bool] = []

    def enter() -> None:
        with outside_modes():
            got.append(True)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(TOO_LONG)
    return got == [True]
