"""What a user waits for round the compiler: the start of a command, a file inspected, a report written and opened.

    python -m benchmarks.waits [--repeat 7] [-o benchmarks/results/waits.md]

By turns, each a process of its own on one thread; the nets are those of `large`, of 300 and of 2,004 nodes.

torch      `import torch` alone: what the rows below it cannot do without
opened     the report in headless Chromium, from the address to a page that hears clicks and keys; only where both are installed
"""

import argparse
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import page
from benchmarks.large import Net, write
from tests.support.browser import CHROMIUM, chromium, opened

INSPECTED, REPORTED = Net("inspected", 50, 8), Net("reported", 334, 8)
GOALS = {"reparam --help": 0.5, "inspect": 2.0, "report": 5.0, "opened": 2.0}
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds of one thing: the least, and the median of all turns."""

    name: str
    least: float
    median: float


def commands(inspected: Path, reported: Path, page_of_it: Path) -> dict[str, list[str]]:
    """What is started, by name."""
    reparam = ["-m", "reparam_compiler"]
    return {
        "python": ["-c", "pass"],
        "torch": ["-c", "import torch"],
        "torch and reparam_compiler": ["-c", "import torch, reparam_compiler"],
        "reparam --help": [*reparam, "--help"],
        "inspect": [*reparam, "inspect", str(inspected)],
        "report": [*reparam, "report", str(reported), "-o", str(page_of_it), "-q"],
    }


def started(words: Sequence[str]) -> None:
    """Runs Python once; raises CalledProcessError where that fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)


@contextmanager
def opening(shown: Path, folder: Path) -> Iterator[dict[str, Callable[[], object]]]:
    """How the report is opened, where there is a browser."""
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        yield {}
        return
    with chromium(folder) as browser:
        yield {"opened": lambda: opened(browser, shown).page.close()}


def measured(folder: Path, repeat: int) -> list[Wait]:
    """Every wait, each by turns with all others."""
    report = folder / "report.html"
    asked = commands(write(INSPECTED, folder), write(REPORTED, folder), report)
    started(asked["report"])
    with opening(report, folder / "profile") as seen:
        runs = {**{name: functools.partial(started, words) for name, words in asked.items()}, **seen}
        taken = page.interleaved(runs, repeat)
    return [Wait(name, min(seconds), statistics.median(seconds)) for name, seconds in taken.items()]


def table(found: Sequence[Wait]) -> str:
    """A row a wait, with its goal and what it is over torch's import; the package's own import behind them."""
    waits: Mapping[str, Wait] = {each.name: each for each in found}
    torch = waits["torch"]
    lines = ["| what | least (s) | median (s) | goal (s) | median over torch's |", "|---" * 5 + "|"]
    for each in found:
        goal = f"{GOALS[each.name]:g}" if each.name in GOALS else ""
        lines.append(f"| {each.name} | {each.least:.2f} | {each.median:.2f} | {goal} | {each.median / torch.median:.2f} |")
    own = waits["torch and reparam_compiler"]
    lines += ["", f"The package's own import: {own.least - torch.least:.2f} s by the least (goal 0.2)."]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="waits-") as folder:
        found = measured(Path(folder), options.repeat)
    print(table(found))
    if options.output:
        command = f"python -m benchmarks.waits --repeat {options.repeat}"
        packages = page.versions("torch", "onnx", "typer", "bokeh")
        about = page.facts(command, cpu=f"{page.processor()}, one thread", versions=packages)
        text = page.head("What a user waits for", about) + table(found)
        page.write(options.output, text, {**about, "rows": [asdict(each) for each in found]})


if __name__ == "__main__":
    main()
