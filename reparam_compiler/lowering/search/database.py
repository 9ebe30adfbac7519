"""What a search measured, kept in a folder.

    convs.jsonl                     one line a measured point of a conv: shape, epilogue, algorithm, target, seconds
    database_workload.json,         MetaSchedule's own database, for ops that have no recipe
    database_tuning_record.json

Both are appended a line at a time, so a killed search leaves at worst a torn last line, which is cut off when the folder
is opened to be written. A record of a conv counts for the target that it was measured for, by the rule of the backend
(`cpu/measured.py`); an op without a recipe takes its best record.
"""

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct, Step, Tile, Winograd

log = logging.getLogger(__name__)

CONVS = "convs.jsonl"
WORKLOADS, SCHEDULES = "database_workload.json", "database_tuning_record.json"


@dataclass(frozen=True, slots=True)
class ConvRecord:
    """One measured point. `seconds` is empty where the candidate failed, so that it is not tried again."""

    shape: ConvShape
    epilogue: tuple[Step, ...]
    algorithm: Algorithm
    target: str
    seconds: tuple[float, ...] = field(default=())

    @property
    def median(self) -> float:
        """Median seconds; infinite where the candidate failed."""
        return float(np.median(self.seconds)) if self.seconds else math.inf


def prepare(folder: Path) -> None:
    """Make the folder, or mend it: cut every file at its last newline.

    Raises: LoweringError where `folder` is a file or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as refusal:
        raise LoweringError(f"{folder}: records are kept in a folder, and it cannot be made: {refusal}") from refusal
    for name in (CONVS, WORKLOADS, SCHEDULES):
        path = folder / name
        if path.is_file():
            cut_torn_tail(path)


def cut_torn_tail(path: Path) -> int:
    """Cut `path` after its last newline; the bytes that were cut off."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return len(content) - whole


def read_convs(folder: Path) -> list[ConvRecord]:
    """Every whole line of the folder's conv records, in order.

    Raises: LoweringError where a whole line is not a record.
    """
    path = folder / CONVS
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    try:
        return [_record(json.loads(line)) for line in lines]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as refusal:
        raise LoweringError(f"{path}: found a line that is no record ({refusal}); remove it, or tune anew") from refusal


def append_conv(folder: Path, record: ConvRecord) -> None:
    """Append one record as one line."""
    with (folder / CONVS).open("a") as file:
        line = {**asdict(record), "algorithm": {"outputs": None, **asdict(record.algorithm)}}
        file.write(json.dumps(line) + "\n")


def check_readable(folder: Path) -> Path:
    """The folder, where it holds records.

    Raises: LoweringError where it holds none, or a line that is none.
    """
    if not folder.is_dir() or not any((folder / name).is_file() for name in (CONVS, SCHEDULES)):
        raise LoweringError(f"{folder}: found no tuning records; expected a folder that tune() or `tvmc tune` wrote")
    read_convs(folder)
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
            "%s: 0 of %d records of convs are for %s, so the rule decides; they are for %s. Compile for that, or tune anew",
            *(folder, len(records), target, others),
        )


def _record(line: dict[str, Any]) -> ConvRecord:
    shape: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in line["shape"].items()}
    epilogue = tuple(Step(**step) for step in line["epilogue"])
    tile, outputs = Tile(**line["algorithm"]["tile"]), line["algorithm"]["outputs"]
    block = int(line["algorithm"].get("block", 0))  # records of earlier versions have none
    algorithm = Direct(tile, block) if outputs is None else Winograd((int(outputs[0]), int(outputs[1])), tile, block)
    return ConvRecord(ConvShape(**shape), epilogue, algorithm, line["target"], tuple(line["seconds"]))
