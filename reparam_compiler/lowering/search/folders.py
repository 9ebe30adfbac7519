"""Folders of records: what is in one, several as one, and what of one others may use.

summaries   of every layer of every target that was measured: the best point, by what of the rule's time, and where
merge       the lines that another folder has not yet, MetaSchedule's by the numbers that workloads have there
exported    the winners in running nets, for the peers of the targets that they were measured for
"""

import contextlib
import datetime
import json
import logging
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.build import versions
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.search.records import (
    CONVS,
    REST,
    SCHEDULES,
    WORKLOADS,
    ConvRecord,
    Where,
    append,
    check_readable,
    conv_line,
    prepare,
    read_convs,
    read_rest,
)
from reparam_compiler.lowering.search.shared import Origin, Shared, SharedRecord
from reparam_compiler.lowering.search.winners import winners
from reparam_compiler.lowering.target import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What is known of one layer on one target.

    layer: its shape, as `ConvShape.mark`. measurements: of it, of which `failed` gave no time.
    best: the point that decides, else the fastest. ratio: its time by that of the rule's point; where: both ran.
    decides: whether `compile` takes it; None in a file of shared records, where the rule of the target says.
    """

    target: str
    layer: str
    measurements: int
    failed: int
    best: Point
    ratio: float
    where: Where
    decides: bool | None


@dataclass(frozen=True, slots=True)
class Merged:
    """What a folder gave to another. new: lines; known: those that were there."""

    folder: str
    new: int
    known: int


def summaries(folder: Path) -> list[LayerSummary]:
    """Of each target, by name, its layers in the order of their first records.

    Raises: LoweringError where the folder holds no records.
    """
    check_readable(folder)
    by_target = defaultdict[str, list[ConvRecord]](list)
    for record in read_convs(folder):
        by_target[record.target].append(record)
    return [each for target in sorted(by_target) for each in _of_target(target, by_target[target])]


def of_shared(shared: Shared) -> list[LayerSummary]:
    """The same of a file of shared records."""
    found = []
    for record in shared.records:
        target = f"{shared.origin.family} on {record.cores} core{'s' if record.cores > 1 else ''}"
        found.append(LayerSummary(target, record.shape.mark, 1, 0, record.point, record.ratio, "net", None))
    return found


def _of_target(target: str, records: Sequence[ConvRecord]) -> Iterable[LayerSummary]:
    tuning = _tuning(target)
    chosen = winners(records, target, tuning.rule) if tuning is not None else {}
    by_shape = defaultdict[ConvShape, list[ConvRecord]](list)
    for record in records:
        by_shape[record.shape].append(record)
    for shape, found in by_shape.items():
        counted = [record for record in found if record.where == "net"] or found
        ratios = {record.point: record.ratio for record in counted}
        best = chosen[shape][0] if shape in chosen else min(ratios, key=lambda point: ratios[point])
        failed = sum(not record.seconds for record in found)
        yield LayerSummary(target, shape.mark, len(found), failed, best, ratios[best], counted[0].where, shape in chosen)


def _tuning(target: str) -> Tuning[Any] | None:
    """What is searched for a target; None where this version cannot read it, or searches nothing for its kind."""
    with contextlib.suppress(LoweringError):
        return backend_for(resolve(target)).settled(measure=True).tuning()
    return None


def merge(folders: Sequence[Path], output: Path) -> list[Merged]:
    """Append to a folder what it has not yet of others, for whichever target. Lines that are no records are left out and said.

    Raises: LoweringError where one of them holds no records, or the output cannot be written.
    """
    for folder in folders:
        check_readable(folder)
    prepare(output)
    return [_merged(folder, output) for folder in folders]


def _merged(folder: Path, output: Path) -> Merged:
    convs = _added(read_convs(folder), read_convs(output), lambda each: append(output, CONVS, conv_line(each)))
    rest = _added(read_rest(folder), read_rest(output), lambda each: append(output, REST, asdict(each)))
    workloads = _whole_lines(output / WORKLOADS)
    theirs = _whole_lines(folder / WORKLOADS)
    _added(theirs, workloads, lambda each: append(output, WORKLOADS, each))
    numbers = {line: number for number, line in enumerate(map(json.dumps, _whole_lines(output / WORKLOADS)))}
    moved = [[numbers[json.dumps(theirs[number])], record] for number, record in _whole_lines(folder / SCHEDULES)]
    schedules = _added(moved, _whole_lines(output / SCHEDULES), lambda each: append(output, SCHEDULES, each))
    new = convs[0] + rest[0] + schedules[0]
    return Merged(str(folder), new, convs[1] + rest[1] + schedules[1])


def _added(lines: Sequence[Any], known: Sequence[Any], add: Callable[[Any], None]) -> tuple[int, int]:
    """How many lines were added, and how many were known."""
    there = {repr(line) for line in known}
    new = list({text: line for line in lines if (text := repr(line)) not in there}.values())
    for line in new:
        add(line)
    return len(new), len(lines) - len(new)


def _whole_lines(path: Path) -> list[Any]:
    """MetaSchedule's lines, as JSON; one that is torn at the end is left out and said.

    Raises: LoweringError where another one is, which TVM could not read either.
    """
    content = path.read_bytes() if path.is_file() else b""
    *lines, torn = content.split(b"\n")
    if torn:
        log.warning("%s: its last line is torn and is left out", path)
    try:
        return [json.loads(line) for line in lines]
    except ValueError as refusal:
        raise LoweringError(f"{path}: a line is no JSON ({refusal}); remove MetaSchedule's files from the folder") from refusal


def exported(folder: Path, family: str | None = None) -> Shared:
    """What of a folder decides for others: winners in a running net against what the rule takes first.

    Args:
        family: the name of that which is taken; None is the only one.

    Raises: LoweringError where there are no such winners, or several families and none is named.
    """
    check_readable(folder)
    in_net = [record for record in read_convs(folder) if record.where == "net"]
    found, tunings = defaultdict[str, dict[tuple[int, ConvShape], SharedRecord]](dict), dict[str, Tuning[Any]]()
    for target in sorted({record.target for record in in_net}):
        tuning = _tuning(target)
        if tuning is None or (peers := tuning.peers) is None:
            log.warning(
                "%s: records for %s are not shared: nothing is known of the targets that they would serve", folder, target
            )
            continue
        best, tunings[peers.family] = found[peers.family], tuning
        for record in _winning(in_net, target, tuning, peers.cores):
            known = best.get((record.cores, record.shape))
            if known is None or record.ratio < known.ratio:
                best[record.cores, record.shape] = record
    taken = {name: records for name, records in found.items() if records and family in (None, name)}
    if len(taken) != 1:
        names = ", ".join(name for name, records in found.items() if records)
        raise LoweringError(f"{folder}: found winners in a net for {names or 'no family'}; expected those of {family or 'one'}")
    ((name, records),) = taken.items()
    return Shared(
        _origin(name, tunings[name]), tuple(sorted(records.values(), key=lambda record: (record.cores, record.shape.mark)))
    )


def _winning(in_net: Sequence[ConvRecord], target: str, tuning: Tuning[Any], cores: int) -> Iterable[SharedRecord]:
    """The best point of each shape, by its last record."""
    for shape, points in winners(in_net, target, tuning.rule).items():
        rule = tuning.rule(shape)[0]
        last = [r for r in in_net if (r.target, r.shape, r.point, r.against) == (target, shape, points[0], rule)][-1:]
        yield from (SharedRecord(shape, record.point, rule, round(record.ratio, 4), cores) for record in last)


def _origin(family: str, tuning: Tuning[Any]) -> Origin:
    today, version = datetime.date.today().isoformat(), versions()["reparam_compiler"]
    return Origin(family, today, tuning.processor(), version, _commit(), tuning.rule_version)


def _commit() -> str:
    """Of the source tree that this package is in; nothing where it is installed."""
    tree = Path(__file__).parents[3]
    if not (tree / ".git").exists():
        return ""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""
