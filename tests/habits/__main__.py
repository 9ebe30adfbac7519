"""`python -m tests.habits`: runs the ring, keeps what comes of it and writes docs/habits.md.

What was kept is run again, unless `--missing` asks for the cells alone that were not run yet. Results are kept as they come.
"""

import argparse
import logging
import sys
import time

import torch
import torch.fx.config

from tests.habits import groups  # noqa: F401 - the habits register themselves
from tests.habits.kinds import KINDS
from tests.habits.parts import HABITS
from tests.habits.ring import VERBS, cells, sample
from tests.habits.table import Cells, read, write
from tests.support import quick_decompositions

KEPT_EVERY = 10
"""Habits between two times that what was found is written."""


def main() -> int:
    """The exit status: 1 where a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.habits", description=__doc__)
    parser.add_argument("habits", nargs="*", help="names of habits or of their groups; all where none is given")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--verb", action="append", choices=[*VERBS])
    parser.add_argument("--sample", action="store_true", help="only what `make test` runs")
    parser.add_argument("--missing", action="store_true", help="only what was not run yet")
    parser.add_argument("--failed", action="store_true", help="only what failed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.fx.config.do_not_emit_stack_traces = True
    quick_decompositions.install()
    logging.disable(logging.CRITICAL)
    kept, end = read(), time.monotonic() + given.seconds
    for kind in given.kind or KINDS:
        for place, (name, habit) in enumerate(HABITS.items()):
            chosen = not given.habits or {name, habit.group} & {*given.habits}
            verbs = [verb for verb in given.verb or VERBS if _is_wanted((name, kind, verb), kept, given)]
            if chosen and verbs and time.monotonic() < end:
                kept |= {(name, kind, verb): found for verb, found in cells(habit, kind, verbs).items()}
            if place % KEPT_EVERY == 0:
                write(kept)
        write(kept)
    failed = [key for key, outcome in kept.items() if outcome.word == "failed"]
    sys.stdout.write(f"{len(kept)} cells, {len(failed)} failed\n")
    return 1 if failed else 0


def _is_wanted(key: tuple[str, str, str], kept: Cells, given: argparse.Namespace) -> bool:
    name, kind, verb = key
    sampled, verbs = sample(name)
    if given.sample and not (kind == sampled and verb in verbs):
        return False
    if given.failed:
        return key in kept and kept[key].word == "failed"
    return not (given.missing and key in kept)


if __name__ == "__main__":
    sys.exit(main())
