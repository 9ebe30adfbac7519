"""What a search measured, kept in a folder, and what `compile` makes of it.

    convs.jsonl                     one line a measured point of a conv: shape, epilogue, algorithm, target, seconds
    database_workload.json,         MetaSchedule's own database, for ops that have no recipe
    database_tuning_record.json

Both are appended a line at a time, so a killed search leaves at worst a torn last line, which is cut off when the folder
is opened to be written. A record wins over the rule where it was measured faster than the rule's first choice by more than
the noise, `MARGIN`; where that was not measured, the rule stays. An op without a recipe takes its best record.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct, Step, Tile, Winograd, candidates
from reparam_compiler.lowering.cpu.machine import VectorUnit

CONVS = "convs.jsonl"
WORKLOADS, SCHEDULES = "database_workload.json", "database_tuning_record.json"
MARGIN = 0.03


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

    Raises: LoweringError otherwise.
    """
    if not folder.is_dir() or not any((folder / name).is_file() for name in (CONVS, SCHEDULES)):
        raise LoweringError(f"{folder}: found no tuning records; expected a folder that tune() or `tvmc tune` wrote")
    return folder


class MeasuredAlgorithms:
    """The rule that prefers what was measured: `(shape, unit) -> algorithms`, for `convs_to_kernels`."""

    def __init__(self, records: Sequence[ConvRecord], target: str) -> None:
        self.by_shape: dict[ConvShape, dict[Algorithm, float]] = {}
        for record in records:
            if record.target == target:
                measured = self.by_shape.setdefault(record.shape, {})
                measured[record.algorithm] = min(record.median, measured.get(record.algorithm, math.inf))

    def __call__(self, shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
        """The measured ones that beat the rule's first, fastest first; then the rule's."""
        rule = candidates(shape, unit)
        kinds = {str(each) for each in rule}  # a record may be of another version, or written by hand
        measured = {each: seconds for each, seconds in self.by_shape.get(shape, {}).items() if str(each) in kinds}
        bound = (1 - MARGIN) * measured.get(rule[0], 0.0)
        faster = sorted((a for a in measured if measured[a] < bound), key=lambda algorithm: measured[algorithm])
        return [*faster, *rule]


def _record(line: dict[str, Any]) -> ConvRecord:
    shape: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in line["shape"].items()}
    epilogue = tuple(Step(**step) for step in line["epilogue"])
    tile, outputs = Tile(**line["algorithm"]["tile"]), line["algorithm"]["outputs"]
    algorithm = Direct(tile) if outputs is None else Winograd((int(outputs[0]), int(outputs[1])), tile)
    return ConvRecord(ConvShape(**shape), epilogue, algorithm, line["target"], tuple(line["seconds"]))
