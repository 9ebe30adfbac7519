"""How a command ends where something is raised: one line on stderr, an exit code, and JSON where that is asked for.

An interrupt (Ctrl-C) and a closed pipe (`… | head -1`) end with 128 and the number of their signal, as a shell has it.

This module needs neither torch nor typer: `tvmc run` starts without them.
"""

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

from reparam_compiler.advice import at_command_line
from reparam_compiler.core.packages import missing_package
from reparam_compiler.errors import (
    InfeasiblePruneError,
    LoweringError,
    ReparamError,
    RewriteError,
    TvmMissingError,
    UnsupportedModelError,
    VerificationError,
    first_line,
)

EXIT_CODES: tuple[tuple[type[ReparamError], int], ...] = (
    (TvmMissingError, 5),
    (LoweringError, 4),
    (UnsupportedModelError, 3),
    (RewriteError, 6),
    (VerificationError, 7),
    (InfeasiblePruneError, 8),
    (ReparamError, 1),
)
INTERRUPTED, CLOSED = 130, 141
"""128 and the numbers of SIGINT and SIGPIPE."""
ENDS = (Exception, KeyboardInterrupt)
"""What `report` makes an exit code of."""
log = logging.getLogger("reparam_compiler")
_INTERRUPTED = threading.Event()


class ClosedOutputError(Exception):
    """Whoever read what a command prints closed the pipe."""


OF_PROCESSES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, INTERRUPTED),
    (ClosedOutputError, CLOSED),
)


def exit_code_of(raised: type[BaseException]) -> int:
    """That of a class of errors; 1 for what is none of the library's."""
    return next((code for kind, code in (*EXIT_CODES, *OF_PROCESSES) if issubclass(raised, kind)), 1)


def message(error: BaseException) -> str:
    """One line: the text of an error of the library or of the file system; of any other, where it was raised as well."""
    if isinstance(error, KeyboardInterrupt):
        return "ended by Ctrl-C; what was not written yet is as it was before"
    if isinstance(error, ClosedOutputError):
        return "what reads the output closed it before all was printed"
    if isinstance(error, ReparamError | OSError):
        return " ".join(str(error).splitlines())
    return f"{first_line(error)}, {raised_at(error)}. That was not foreseen: please report it, with what -v prints"


def raised_at(error: BaseException) -> str:
    """ "raised at file.py:12 in forward", of the innermost call."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"raised at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "raised"


def report(error: BaseException, prog: str, *, as_json: bool) -> int:
    """Say what was raised, with `-v` also from where; the exit code."""
    if isinstance(error, ModuleNotFoundError):
        error = missing_package(error) or error
    if _INTERRUPTED.is_set() and not isinstance(error, OSError):  # a search ends with Ctrl-C, and then writes its report
        error = KeyboardInterrupt()
    if isinstance(error, OSError) and _takes_nothing():
        error = ClosedOutputError() if isinstance(error, BrokenPipeError) else error
    text = message(error)
    if as_json:
        with contextlib.suppress(OSError):
            sys.stdout.write(json.dumps({"error": type(error).__name__, "message": text}) + "\n")
    log.info("raised:", exc_info=error)
    _say_of_error(f"{prog}: {type(error).__name__}: {text}\n")
    return exit_code_of(type(error))


def _say_of_error(line: str) -> None:
    """On stderr; where nobody reads that, nowhere."""
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        _to_nowhere(sys.stderr.fileno())


@contextlib.contextmanager
def interrupts_said(prog: str) -> Iterator[None]:
    """Ctrl-C ends the process, as `report` says."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise SystemExit(report(interrupt, prog, as_json="--json" in sys.argv)) from interrupt


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[None]:
    """Ctrl-C is known meanwhile, whatever becomes of it: TVM makes a RuntimeError without words of what its callbacks raise."""

    def note(*_: object) -> None:
        _INTERRUPTED.set()
        raise KeyboardInterrupt

    _INTERRUPTED.clear()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _takes_nothing() -> bool:
    """Whether nobody reads stdout, or it has no room; what is left goes nowhere then, or Python would print a traceback."""
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # it is no file: a test's
        return False
    waiting = select.poll()
    waiting.register(stdout, 0)
    try:
        sys.stdout.flush()
        if not any(event & select.POLLERR for _, event in waiting.poll(0)):
            return False
    except OSError:
        pass
    _to_nowhere(stdout)
    return True


def _to_nowhere(descriptor: int) -> None:
    """What is written there from now on is lost."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def log_lines(prog: str, verbosity: int) -> Iterator[None]:
    """Advice in flags meanwhile, the library's log lines on stderr, and Ctrl-C noted.

    verbosity: 0 for warnings, 1 also for what it does, 2 for all, -1 for errors alone.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prog}: %(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(max(logging.DEBUG, logging.WARNING - 10 * verbosity))
    log.propagate = False
    try:
        with at_command_line(), _interrupts_noted():
            yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
