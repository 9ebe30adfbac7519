"""What a search measured, kept in a folder, and what `compile` makes of it.

    tiles.jsonl                     one line a measured point of the recipe: shape, epilogue, tile, target, seconds
    database_workload.json,         MetaSchedule's own database, for ops that have no recipe
    database_tuning_record.json

Both are appended a line at a time, so a killed search leaves at worst a torn last line, which is cut off when the folder
is opened to be written. A record wins over the rule where it was measured faster than the rule's own tile by more than
the noise, `MARGIN`; where the rule's tile was not measured, the rule stays. An op without a recipe takes its best record.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.algorithms import ConvShape, Step, Tile, choose_tile
from reparam_compiler.lowering.target import VectorUnit

TILES = "tiles.jsonl"
WORKLOADS, SCHEDULES = "database_workload.json", "database_tuning_record.json"
MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class TileRecord:
    """One measured tile. `seconds` is empty where the candidate failed, so that it is not tried again."""

    shape: ConvShape
    epilogue: tuple[Step, ...]
    tile: Tile
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
    for name in (TILES, WORKLOADS, SCHEDULES):
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


def read_tiles(folder: Path) -> list[TileRecord]:
    """Every whole line of the folder's tile records, in order.

    Raises: LoweringError where a whole line is not a record.
    """
    path = folder / TILES
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    try:
        return [_record(json.loads(line)) for line in lines]
    except (ValueError, TypeError, KeyError) as refusal:
        raise LoweringError(f"{path}: found a line that is no record ({refusal}); remove it, or tune anew") from refusal


def append_tile(folder: Path, record: TileRecord) -> None:
    """Append one record as one line."""
    with (folder / TILES).open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def check_readable(folder: Path) -> Path:
    """The folder, where it holds records.

    Raises: LoweringError otherwise.
    """
    if not folder.is_dir() or not any((folder / name).is_file() for name in (TILES, SCHEDULES)):
        raise LoweringError(f"{folder}: found no tuning records; expected a folder that tune() or `tvmc tune` wrote")
    return folder


class RecordedTiles:
    """The tile rule that prefers records: `(shape, unit) -> Tile`, for `convs_to_kernels`."""

    def __init__(self, records: Sequence[TileRecord], target: str) -> None:
        self.by_shape: dict[ConvShape, dict[Tile, float]] = {}
        for record in records:
            if record.target == target:
                tiles = self.by_shape.setdefault(record.shape, {})
                tiles[record.tile] = min(record.median, tiles.get(record.tile, math.inf))

    def __call__(self, shape: ConvShape, unit: VectorUnit) -> Tile:
        rule = choose_tile(shape, unit)
        measured = self.by_shape.get(shape, {})
        if rule not in measured:
            return rule
        best = min(measured, key=lambda tile: measured[tile])
        return best if measured[best] < (1 - MARGIN) * measured[rule] else rule


def _record(line: dict[str, Any]) -> TileRecord:
    shape: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in line["shape"].items()}
    epilogue = tuple(Step(**step) for step in line["epilogue"])
    return TileRecord(ConvShape(**shape), epilogue, Tile(**line["tile"]), line["target"], tuple(line["seconds"]))
