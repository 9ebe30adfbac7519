"""stderr without the lines of TVM's C++ side that say nothing to a user; what anything else writes passes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from reparam_compiler.core.locks import ProcessLock

NOISE = (
    b"Scope Saving:",
    b"Scope Loaded:",
    b"BlockBuilder destroyed with remaining blocks",
    b"Unable to detect CUDA version",
    b"The thread affinity cannot be set",
    b"Fast mode segfaults when there are out-of-bounds indices",
    b"Unknown pragma pragma_scope",
    b"Unknown schedule rule",
    b"  s_tir.meta_schedule.",  # and for which targets the rule is unknown, a line each
)
STDERR = ProcessLock()
"""Held while stderr is redirected: the descriptor is the process's, and two threads that swap it would leave it swapped."""


@contextlib.contextmanager
def filter_stderr() -> Iterator[None]:
    """Drop the lines that TVM's C++ side prints on stderr while it saves and loads a module ("Scope Saving: …").

    They come from the library's own logger at warning level, below Python; what anything else writes passes.
    """
    os_stderr = 2
    with STDERR.held(), tempfile.TemporaryFile() as caught:
        try:
            saved = os.dup(os_stderr)
        except OSError:  # no stderr at all: nothing to quiet
            yield
            return
        try:
            os.dup2(caught.fileno(), os_stderr)
            yield
        finally:
            os.dup2(saved, os_stderr)
            os.close(saved)
            caught.seek(0)
            kept = [line for line in caught.read().splitlines(keepends=True) if not _is_noise(line)]
            if kept:
                os.write(os_stderr, b"".join(kept))


def _is_noise(line: bytes) -> bool:
    return not line.strip() or any(mark in line for mark in NOISE)
