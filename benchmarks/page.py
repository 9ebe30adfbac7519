"""What the benchmarks share: timing in turns, who measured, and a page written whole with its record beside it.

    # title                                      results/NAME.md, and the numbers in results/NAME.json
    - date, command, cpu, versions
    body

The order of the turns rotates by one each round: what a run leaves behind (caches, clock) falls on all others alike.
"""

import datetime
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

Key = TypeVar("Key")


def processor() -> str:
    """The name of the processor; of the architecture where Linux does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*packages: str) -> str:
    """The packages with the versions that are installed."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def facts(command: str, **more: str) -> dict[str, str]:
    """Today's date, the command that made a page, and what more there is to say, in this order."""
    return {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "command": command, **more}


def head(title: str, about: Mapping[str, str], *remarks: str) -> str:
    """How a page opens, its blank line included: the title, and a list of facts and remarks."""
    listed = "\n".join([*(f"- {key}: {value}" for key, value in about.items()), *(f"- {remark}" for remark in remarks)])
    return f"# {title}\n\n{listed}\n\n"


def write(output: Path, page: str, record: Any) -> None:
    """The page, and the record as JSON under the same name; each whole or not at all."""
    write_whole(output, page.encode())
    write_whole(output.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """A file by way of another name, so that a run that is cut off leaves the older one."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def interleaved(
    runs: Mapping[Key, Callable[[], object]], rounds: int, *, budget: float = math.inf, least: int = 1
) -> dict[Key, list[float]]:
    """Seconds of each run, from rounds in which all take turns in rotating order, after one to warm up.

    Args:
        runs: what is timed, by name.
        rounds: at most.
        budget: seconds after which no further round begins.
        least: rounds that there are in any case.
    """
    order, taken = list(runs), {key: list[float]() for key in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + budget
    for index in range(rounds):
        turn = index % max(1, len(order))
        for key in order[turn:] + order[:turn]:
            start = time.perf_counter()
            runs[key]()
            taken[key].append(time.perf_counter() - start)
        if index + 1 >= least and time.perf_counter() > end:
            break
    return taken
