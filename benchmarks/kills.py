"""A search that is killed at random moments, and a folder that holds what it should not: nothing is lost, and each is said.

    python -m benchmarks.kills [--kills 50] [--seconds S] [--trials 6] [--seed 0] [-o benchmarks/results/kills.md]
    python -m benchmarks.kills --of writers [--kills 50] [--interrupts 24] [--seconds S] [--seed 0] [-o …/kills-writers.md]

`tvmc tune` searches a small net (two convs and a pooling) again and again in one folder, each time for a few trials more.

Moments   half of them anywhere in the time that a whole run takes, half at a write: as soon as a file of the folder grew
Killed    by turns the search alone, and with it all processes that it started
Scenes    then two searches at once; lines of another target, of another version, torn ones; a disk without room

After each, the records that were there are read again, no line but a last one is torn, the next search starts from their count,
and the net compiled with the folder computes what ONNX Runtime does. It ends with 1 where that is not so. What is asked of
commands that write (`fuse`, `prune`, `compile`), `kills_writers` says.
"""

import argparse
import json
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import kills_writers, page
from benchmarks.kills_subject import ELSEWHERE, Subject, is_json
from reparam_compiler.lowering.search.records import CONVS, SCHEDULES, append, conv_line, read_convs

ROOM = 4 << 20
"""Bytes that the folder holds before its disk is full: more than any library of the net has, which is written too."""


@dataclass(frozen=True, slots=True)
class Kill:
    """What one left.

    seconds: after which it came. at_a_write, group: as `Moments`, `Killed` above say.
    new: records since the one before. lost: that were there, and are not read any more. torn: lines that are none, of which
        `inside` are not the last ones of their files.
    went_on: whether the search had started from what was there; None where it was killed before it said so.
    right: whether the net computes what it should. left: temporary folders. alive: processes, some seconds later.
    """

    seconds: float
    at_a_write: bool
    group: bool
    new: int
    lost: int
    torn: int
    inside: int
    went_on: bool | None
    right: bool
    left: int
    alive: bool

    @property
    def sound(self) -> bool:
        return not self.lost and not self.inside and self.went_on is not False and self.right


@dataclass(frozen=True, slots=True)
class Scene:
    """What else may befall a folder. said: by the search, a line each."""

    name: str
    sound: bool
    said: list[str]


def whole_run(subject: Subject) -> tuple[float, float]:
    """Seconds to the first measurement of a search that nobody disturbs, and to its end."""
    began, size = time.monotonic(), subject.size()
    with subject.tuning(subject.counted() + subject.trials, rest=False) as run:
        while subject.size() == size and run.code() is None:
            time.sleep(0.05)
        first = time.monotonic() - began
        code, said = run.ended(), run.lines()
    if code:
        raise SystemExit("\n".join(said))
    return first, time.monotonic() - began


def kills(subject: Subject, count: int, seed: int, seconds: float = math.inf) -> Iterator[Kill]:
    """So many, one after the other; a search that had ended before its moment is no kill, and another one starts."""
    chance = random.Random(seed)
    began = time.monotonic()
    first, whole = whole_run(subject)
    done = 0
    while done < count and time.monotonic() < began + seconds:
        at_a_write, group, rest = done % 2 == 1, chance.random() < 0.5, done % 5 == 0
        until = first + chance.random() * (whole - first)
        found = killed(subject, until, chance.randrange(subject.trials) if at_a_write else None, group=group, rest=rest)
        if found is not None:
            done += 1
            yield found


def killed(subject: Subject, until: float, writes: int | None, *, group: bool, rest: bool) -> Kill | None:
    """One search killed; None where it had ended before. writes: those of this search after which it is, instead of `until`."""
    before, counted, (torn, inside) = subject.records(), subject.counted(), subject.torn()
    with subject.tuning(counted + subject.trials, rest=rest) as run:
        seconds = run.waited(subject.size, until, writes)
        if run.code() is not None:
            return None
        alive = run.killed(group=group)
        steps = [json.loads(line) for line in run.lines() if line.startswith("{") and is_json(line.encode())]
    after, (torn_after, inside_after) = subject.records(), subject.torn()
    return Kill(
        round(seconds, 1),
        writes is not None,
        group,
        new=sum((after - before).values()),
        lost=sum((before - after).values()),
        torn=torn_after - torn,
        inside=max(0, inside_after - inside - torn),
        went_on=steps[0]["trial"] >= counted if steps else None,
        right=subject.right(),
        left=subject.left(),
        alive=alive,
    )


def two_at_once(subject: Subject) -> Scene:
    """Two searches in one folder."""
    before, trials = subject.records(), subject.counted() + subject.trials
    with subject.tuning(trials) as one, subject.tuning(trials) as other:
        codes = [run.ended() for run in (one, other)]
        lines = [*one.said(), *other.said()]
    lost = before - subject.records()
    new = subject.counted() - trials + subject.trials
    grown = f"both ended with {codes}, {new} new records together, {sum(lost.values())} lost"
    return Scene("two searches at once", codes == [0, 0] and not lost and subject.right(), [grown, *lines])


def foreign_lines(subject: Subject) -> Scene:
    """A record of another target, one of another version, and a torn one."""
    first = read_convs(subject.folder)[0]
    append(subject.folder, CONVS, conv_line(replace(first, target=ELSEWHERE)))
    append(subject.folder, CONVS, {**conv_line(first), "point": {"kind": "Strassen", "tile": {"rows": 2}}})
    with (subject.folder / CONVS).open("a") as file:
        file.write('{"shape": {"batch": 1, "hei')
    return _went_on(subject, "a record of another target, one of another version, a torn line", "is no record")


def torn_schedules(subject: Subject) -> Scene:
    """A torn line in MetaSchedule's file, which TVM cannot read."""
    with (subject.folder / SCHEDULES).open("a") as file:
        file.write("[0, [[")
    return _went_on(subject, "a torn line of MetaSchedule's", "are cut off")


def _went_on(subject: Subject, name: str, words: str) -> Scene:
    before, counted = subject.records(), subject.counted()
    with subject.tuning(counted + subject.trials) as run:
        code, lines = run.ended(), run.said()
    kept = not before - subject.records() and subject.counted() > counted
    return Scene(name, code == 0 and kept and any(words in line for line in lines) and subject.right(), lines)


def full_disk(subject: Subject) -> Scene:
    """No room for the next record: a limit to the size of a file, which the records reached."""
    with (subject.folder / CONVS).open("a") as file:
        line = json.dumps(conv_line(replace(read_convs(subject.folder)[0], target=ELSEWHERE))) + "\n"
        file.write(line * (ROOM // len(line)))
    before, (torn, _) = subject.records(), subject.torn()
    with subject.tuning(subject.counted() + subject.trials, room=(subject.folder / CONVS).stat().st_size + 20) as run:
        code, lines = run.ended(), run.said()
    kept = subject.records() == before and subject.torn()[0] == torn
    refused = any("the record cannot be kept" in line for line in lines)
    return Scene("a full disk", code == 4 and kept and refused and subject.right(), [f"ended with {code}", *lines])


SCENES: Sequence[Callable[[Subject], Scene]] = (two_at_once, foreign_lines, torn_schedules, full_disk)


def written(found: Sequence[Kill], scenes: Sequence[Scene], left: int) -> str:
    """The body of the page."""
    groups = {
        "anywhere": [kill for kill in found if not kill.at_a_write],
        "at a write": [kill for kill in found if kill.at_a_write],
        "all": found,
    }
    columns = ["kills", "of the whole group", "new records", "lost", "torn lines", "torn inside", "went on", "wrong output"]
    lines = [f"| moment | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, some in groups.items():
        known = [kill for kill in some if kill.went_on is not None]
        cells = (
            *(len(some), sum(kill.group for kill in some)),
            *(sum(getattr(kill, field) for kill in some) for field in ("new", "lost", "torn", "inside")),
            *(f"{sum(map(bool, (kill.went_on for kill in known)))} of {len(known)}", sum(not kill.right for kill in some)),
        )
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    most = max((kill.left for kill in found), default=0)
    lines += [
        "",
        f"Temporary folders after a kill: {most} at most, the next search removes them; {left} after the last search. "
        f"Kills after which a process of the search lived on: {sum(kill.alive for kill in found)}.",
    ]
    for scene in scenes:
        lines += ["", f"## {scene.name}: {'sound' if scene.sound else 'NOT SOUND'}", ""]
        lines += ["```", *(line for line in scene.said), "```"]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Kills, plays the scenes, and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=("search", "writers"), default="search")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--interrupts", type=int, default=24, help="of writers: Ctrl-C")
    parser.add_argument("--trials", type=int, default=6, help="of each search")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which none begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="kills-") as work:
        return {"search": _search, "writers": _writers}[arguments.of](arguments, Path(work))


def _search(arguments: argparse.Namespace, work: Path) -> int:
    subject, found = Subject(work, arguments.trials), list[Kill]()
    for kill in kills(subject, arguments.kills, arguments.seed, arguments.seconds):
        found.append(kill)
        print(f"{len(found)}: {kill}", flush=True)
    scenes = [scene(subject) for scene in SCENES]
    record = {"kills": [asdict(kill) for kill in found], "scenes": [asdict(scene) for scene in scenes]}
    asked = f"--kills {arguments.kills} --seconds {arguments.seconds:g} --trials {arguments.trials} --seed {arguments.seed}"
    _say(arguments.output, "A search, killed", asked, written(found, scenes, subject.left()), record)
    return int(not all(each.sound for each in (*found, *scenes)))


def _writers(arguments: argparse.Namespace, work: Path) -> int:
    found = list[kills_writers.Ended]()
    asked = (arguments.kills, arguments.interrupts, arguments.seed, arguments.seconds)
    for end in kills_writers.ends(kills_writers.Desk(work), *asked):
        found.append(end)
        print(f"{len(found)}: {end}", flush=True)
    how = f"--of writers --kills {arguments.kills} --interrupts {arguments.interrupts} --seconds {arguments.seconds:g}"
    how += f" --seed {arguments.seed}"
    body = kills_writers.written(found)
    _say(arguments.output, "Commands that write, killed and interrupted", how, body, {"ends": [asdict(end) for end in found]})
    return int(not all(end.sound for end in found))


def _say(output: Path | None, title: str, asked: str, text: str, record: dict[str, Any]) -> None:
    print(text)
    if output:
        about = page.facts(
            f"python -m benchmarks.kills {asked} -o {output}",
            cpu=page.processor(),
            versions=page.versions("apache-tvm", "numpy"),
        )
        page.write(output, page.head(title, about) + text, {"about": about, **record})


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what the searches say is on the page
    sys.exit(main())
