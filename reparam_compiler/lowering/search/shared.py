"""Records that are shared: of a family of targets the points that beat the rule's in a running net.

    tune -> a folder, every measurement of one machine  --`folders.exported`-->  one file, what decides

    shipped/sapphirerapids-512.jsonl.gz     first where it is from, then a line a layer: shape, point, the rule's, ratio, cores

The package ships such files, and `compile` takes what they say where nothing else was measured. A record decides for a layer of
the same shape where

- the target is of the family, has vectors of the same width, and as many cores or fewer (`Peers.serves`);
- the rule still takes what the point was measured against: a rule that became better is not held back by an old record.
"""

import functools
import gzip
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reparam_compiler.core.files import UNREADABLE, written_whole
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Peers
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.search.fields import of_fields
from reparam_compiler.lowering.search.records import NO_RECORD, point_line, point_of, records_of, shape_of

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("shipped")
SUFFIX = ".jsonl.gz"
FORMAT = 1
LARGEST = 2**24
"""Bytes of a file once it is unpacked: what is shipped has some thousands."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where records are from.

    family: of the targets that they serve. date: when they were taken together, as "2026-11-30".
    machine: the name of its CPU; "" where they were taken together on another. by: the version of this package.
    commit: of its source; "" where that is not known. rule: the version of what the rule counts.
    """

    family: str
    date: str
    machine: str
    by: str
    commit: str
    rule: int


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """One layer's winner. against: the rule's point. ratio: its time by that one's, in a running net. cores: of that run."""

    shape: ConvShape
    point: Point
    against: Point
    ratio: float
    cores: int


@dataclass(frozen=True, slots=True)
class Shared:
    """The records of one file."""

    origin: Origin
    records: tuple[SharedRecord, ...]

    def for_cores(self, cores: int) -> dict[ConvShape, SharedRecord]:
        """Those that serve so many cores; of several of a shape that of the fewest."""
        fitting = [record for record in self.records if Peers(self.origin.family, record.cores).serves(cores)]
        return {record.shape: record for record in sorted(fitting, key=lambda record: -record.cores)}


class Shipped:
    """What shared records decide for the layers of one target, and for how many they did."""

    def __init__(
        self, family: str, records: Mapping[ConvShape, SharedRecord], tried: Iterable[tuple[ConvShape, Point]] = ()
    ) -> None:
        """tried: what was measured for this target itself, which counts more."""
        self._family, self._records, self._tried = family, records, frozenset(tried)
        self._asked: dict[ConvShape, bool] = {}

    def points(self, shape: ConvShape, rule: Point) -> tuple[Point, ...]:
        """The point that beat the rule's, where `rule` is what that takes first."""
        record = self._records.get(shape)
        decides = record is not None and record.against == rule and (shape, record.point) not in self._tried
        self._asked[shape] = decides
        return (record.point,) if record is not None and decides else ()

    def __str__(self) -> str:
        return f"shipped records {self._family}: {sum(self._asked.values())} of {len(self._asked)} layers"


@functools.cache
def of_family(family: str) -> Shared | None:
    """What the package ships for a family; None where it ships nothing, or its file cannot be read, which is said."""
    path = SHIPPED / f"{family}{SUFFIX}"
    if not path.is_file():
        return None
    try:
        return read_shared(path)
    except LoweringError as refusal:
        log.warning("%s. The rule decides", refusal)
        return None


def shipped(peers: Peers) -> Mapping[ConvShape, SharedRecord]:
    """What the package ships for such targets."""
    shared = of_family(peers.family)
    return {} if shared is None else shared.for_cores(peers.cores)


def won_elsewhere(peers: Peers) -> dict[ConvShape, Point]:
    """What a search for such targets begins with: what won on any number of cores, on as many as theirs before others."""
    shared = of_family(peers.family)
    found = {} if shared is None else {record.shape: record.point for record in shared.records}
    return found | {shape: record.point for shape, record in shipped(peers).items()}


def read_shared(path: Path) -> Shared:
    """The records of a file; a line of the log for each of its lines that is none.

    Raises: LoweringError where the file cannot be read, or does not say where its records are from.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"they take more than {LARGEST} bytes once they are unpacked")
        first, *lines = content.splitlines()
        origin = _origin(json.loads(first))
    except (*UNREADABLE, *NO_RECORD) as refusal:
        raise LoweringError(
            f"{path}: found no shared records ({refusal}); expected a file of `reparam records export`"
        ) from None
    return Shared(origin, tuple(records_of(path, lines, _record, first=2)))


def write_shared(path: Path, shared: Shared) -> None:
    """Write what `read_shared` reads, whole or not at all: the same bytes for the same records."""
    lines = [{"format": FORMAT, **asdict(shared.origin)}, *map(_line, shared.records)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    with written_whole(path) as part:
        part.write_bytes(gzip.compress(text.encode(), mtime=0))


def _origin(line: dict[str, Any]) -> Origin:
    """The first line. Raises one of `NO_RECORD` where it is of another format."""
    if (found := line.pop("format")) != FORMAT:
        raise ValueError(f"their format is {found!r}, and this version reads {FORMAT}")
    return of_fields(Origin, line)


def _line(record: SharedRecord) -> dict[str, Any]:
    return {**asdict(record), "point": point_line(record.point), "against": point_line(record.against)}


def _record(line: dict[str, Any]) -> SharedRecord:
    parts = {"shape": shape_of(line["shape"]), "point": point_of(line["point"]), "against": point_of(line["against"])}
    record = of_fields(SharedRecord, {**line, **parts})
    if not (0 < record.ratio < math.inf and record.cores > 0):
        raise ValueError(f"found the ratio {record.ratio} on {record.cores} cores")
    return record
