"""How a command ends where something is raised: one line on stderr, an exit code, and JSON where that is asked for.

This module needs neither torch nor typer: `tvmc run` starts without them.
"""

import contextlib
import json
import logging
import sys
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
log = logging.getLogger("reparam_compiler")


def exit_code_of(raised: type[Exception]) -> int:
    """That of a class of errors; 1 for what is none of the library's."""
    return next((code for kind, code in EXIT_CODES if issubclass(raised, kind)), 1)


def message(error: Exception) -> str:
    """One line: the text of an error of the library or of the file system; of any other, where it was raised as well."""
    if isinstance(error, ReparamError | OSError):
        return " ".join(str(error).splitlines())
    return f"{first_line(error)}, {raised_at(error)}. That was not foreseen: please report it, with what -v prints"


def raised_at(error: BaseException) -> str:
    """ "raised at file.py:12 in forward", of the innermost call."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"raised at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "raised"


def report(error: Exception, prog: str, *, as_json: bool) -> int:
    """Say what was raised, with `-v` also from where; the exit code."""
    if isinstance(error, ModuleNotFoundError):
        error = missing_package(error) or error
    text = message(error)
    if as_json:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": text}) + "\n")
    log.info("raised:", exc_info=error)
    sys.stderr.write(f"{prog}: {type(error).__name__}: {text}\n")
    return exit_code_of(type(error))


@contextlib.contextmanager
def log_lines(prog: str, verbosity: int) -> Iterator[None]:
    """Advice in flags meanwhile, and the library's log lines on stderr.

    verbosity: 0 for warnings, 1 also for what it does, 2 for all, -1 for errors alone.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prog}: %(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(max(logging.DEBUG, logging.WARNING - 10 * verbosity))
    log.propagate = False
    try:
        with at_command_line():
            yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
