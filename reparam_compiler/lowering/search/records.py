"""What searches measured, kept in a folder, for whichever target.

    convs.jsonl                     a line a measured point of a conv: shape, epilogue, point, target, seconds, the rule's
    rest.jsonl                      a line a function without a recipe: by rule and from MetaSchedule's record, in the net
    database_workload.json,         MetaSchedule's own database
    database_tuning_record.json

All are appended a whole line at a time, under a lock, so that several searches may share a folder, and one that is killed
leaves at worst a torn line. A line that cannot be read is left out and said; what the others hold counts.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from reparam_compiler.core.files import alone
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backends import point_kinds
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point, Step
from reparam_compiler.lowering.search.fields import of_fields

log = logging.getLogger(__name__)
RecordT = TypeVar("RecordT")

CONVS, REST = "convs.jsonl", "rest.jsonl"
WORKLOADS, SCHEDULES = "database_workload.json", "database_tuning_record.json"
NO_RECORD = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
"""What reading a line raises that holds something else."""
Where = Literal["alone", "net"]


@dataclass(frozen=True, slots=True)
class ConvRecord:
    """One measured point.

    seconds: empty where the candidate failed, so that it is not tried again; `failure` says how.
    against: the rule's point, which was run by turns with it, and took `beside`; None where this is that point.
    where: whether the layer ran alone, with cold caches, or in a running net.
    """

    shape: ConvShape
    epilogue: tuple[Step, ...]
    point: Point
    target: str
    seconds: tuple[float, ...] = ()
    against: Point | None = None
    beside: tuple[float, ...] = ()
    where: Where = "alone"
    failure: str = ""

    @property
    def ratio(self) -> float:
        """Its least time by that of the rule's point; infinite where it failed, 1 of the rule's itself.

        What disturbs a run only ever adds to it, and both were run by turns.
        """
        if not self.seconds:
            return math.inf
        return min(self.seconds) / min(self.beside) if self.against is not None else 1.0

    @property
    def least(self) -> float:
        """The least seconds; infinite where the candidate failed."""
        return min(self.seconds, default=math.inf)


@dataclass(frozen=True, slots=True)
class RestRecord:
    """One function without a recipe, as MetaSchedule's best record has it, in a running net.

    function: its structural hash before it is scheduled. rule, found: the least seconds by the rule, and by the record.
    """

    function: int
    name: str
    target: str
    rule: float
    found: float


def prepare(folder: Path) -> None:
    """Make the folder, or mend it: MetaSchedule's files are cut at their last newlines, for TVM reads no torn line.

    Raises: LoweringError where `folder` is a file or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as refusal:
        raise LoweringError(f"{folder}: records are kept in a folder, and it cannot be made: {refusal}") from refusal
    with alone(folder / CONVS):
        for name in (WORKLOADS, SCHEDULES):
            if (path := folder / name).is_file() and (cut := cut_torn_tail(path)):
                log.warning("%s: its last line was torn; %d bytes of it are cut off", path, cut)


def cut_torn_tail(path: Path) -> int:
    """Cut `path` after its last newline; the bytes that were cut off."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return len(content) - whole


def read_convs(folder: Path) -> list[ConvRecord]:
    """Every record of a conv, in order; a line of the log for those that are none."""
    return _read(folder / CONVS, conv_record)


def read_rest(folder: Path) -> list[RestRecord]:
    """Every record of a function without a recipe, in order; a line of the log for those that are none."""
    return _read(folder / REST, lambda line: of_fields(RestRecord, line))


def append_conv(folder: Path, record: ConvRecord) -> None:
    """Append one record. Raises: LoweringError where the disk is full or the folder cannot be written."""
    append(folder, CONVS, conv_line(record))


def append_rest(folder: Path, record: RestRecord) -> None:
    """Append one record. Raises as `append_conv`."""
    append(folder, REST, asdict(record))


def check_readable(folder: Path) -> Path:
    """The folder, where it holds records.

    Raises: LoweringError where it holds none, or none that can be read.
    """
    if not folder.is_dir() or not any((folder / name).is_file() for name in (CONVS, SCHEDULES)):
        raise LoweringError(f"{folder}: found no tuning records; expected a folder that tune() or `tvmc tune` wrote")
    if (folder / CONVS).is_file() and not read_convs(folder) and (folder / CONVS).stat().st_size:
        raise LoweringError(f"{folder / CONVS}: found no line that is a record; remove the file, or tune anew")
    return folder


def warn_of_foreign(folder: Path, target: str, *, searched: bool) -> None:
    """A log line where none of the records decides anything for a target; it would be compiled by rule without a word.

    Args:
        target: as `describe` gives it. searched: whether anything is searched for its kind.
    """
    records = read_convs(folder)
    schedules = folder / SCHEDULES
    rest = schedules.read_bytes().count(b"\n") if schedules.is_file() else 0
    if not searched:
        log.warning("%s: 0 of %d records are for %s: nothing is measured for its kind", folder, len(records) + rest, target)
    elif records and not any(record.target == target for record in records):
        others = ", ".join(sorted({record.target for record in records}))
        log.warning(
            "%s: 0 of %d records of convs are for %s, so they decide nothing; they are for %s. Compile for that, or tune anew",
            *(folder, len(records), target, others),
        )


def conv_line(record: ConvRecord) -> dict[str, Any]:
    """A record as JSON has it."""
    against = None if record.against is None else point_line(record.against)
    return {**asdict(record), "point": point_line(record.point), "against": against}


def conv_record(line: Mapping[str, Any]) -> ConvRecord:
    """The record that `conv_line` wrote. Raises one of `NO_RECORD` where it did not."""
    if line["against"] is not None and len(line["seconds"]) != len(line["beside"]):
        raise ValueError(f"found {len(line['seconds'])} seconds beside {len(line['beside'])} of the rule's")
    if not all(0 < second < math.inf for second in (*line["seconds"], *line["beside"])):
        raise ValueError("found seconds that no run takes")
    return ConvRecord(
        shape_of(line["shape"]),
        tuple(of_fields(Step, step) for step in line["epilogue"]),
        point_of(line["point"]),
        str(line["target"]),
        tuple(map(float, line["seconds"])),
        None if line["against"] is None else point_of(line["against"]),
        tuple(map(float, line["beside"])),
        "net" if line["where"] == "net" else "alone",
        str(line["failure"]),
    )


def shape_of(line: Mapping[str, Any]) -> ConvShape:
    """A shape from what JSON has of its fields. Raises one of `NO_RECORD` where it is no conv's."""
    shape = of_fields(ConvShape, line)
    sizes = (shape.batch, shape.height, shape.width, shape.channels_in, shape.channels_out, shape.groups)
    if min(*sizes, *shape.kernel, *shape.stride, *shape.dilation) < 1 or min(shape.padding) < 0:
        raise ValueError(f"a conv has sizes from 1 on; found {shape.mark}")
    return shape


def point_line(point: Point) -> dict[str, Any]:
    """A point's knobs, with the name of its class, which says what the rest means."""
    return {"kind": type(point).__name__, **asdict(cast(Any, point))}


def point_of(line: Mapping[str, Any]) -> Point:
    """The point that `point_line` wrote. Raises one of `NO_RECORD` where it did not."""
    kind, tile = point_kinds()[line["kind"]]
    knobs = {name: value for name, value in line.items() if name != "kind"}
    point: Point = of_fields(kind, {**knobs, "tile": of_fields(tile, line["tile"])})  # type: ignore[arg-type]
    return point


def _read(path: Path, record: Callable[[dict[str, Any]], RecordT]) -> list[RecordT]:
    return records_of(path, path.read_bytes().splitlines() if path.is_file() else [], record)


def records_of(
    path: Path, lines: Iterable[bytes], record: Callable[[dict[str, Any]], RecordT], first: int = 1
) -> list[RecordT]:
    """What `record` reads of lines; a line of the log for those that are none. first: the number of the first in the file."""
    found = []
    for number, line in enumerate(lines, first):
        try:
            found.append(record(json.loads(line)))
        except NO_RECORD as refusal:
            log.warning("%s: line %d is no record (%r) and is left out", path, number, refusal)
    return found


def append(folder: Path, name: str, line: Mapping[str, Any] | Sequence[Any]) -> None:
    """Append one line to a file, whole or not at all; after one that another search left torn. Raises as `append_conv`."""
    path = folder / name
    try:
        with alone(folder / CONVS), path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            torn = end > 0 and (file.seek(end - 1), file.read(1))[1] != b"\n"
            content = memoryview(b"\n" * torn + json.dumps(line).encode() + b"\n")
            try:
                while content:  # a disk that fills up takes a part, and refuses the next
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as refusal:
        raise LoweringError(f"{path}: the record cannot be kept: {refusal}. What it held before is whole") from refusal
