"""How fast compiled nets are on a CPU, beside the engines that one would use instead.

    python -m benchmarks.lower [-o benchmarks/results/lower-cpu.md] [--only NET …] [--seconds 10] [--quick]

Nets     fused RepVGG-A0, -B0, -B1g4 and ResNet-18 at 224 x 224, A0 pruned by 0.3, PSPNet on A0 with its dilated convs; batch 1,
         float32, random weights (`lower_subjects.py`)
Engines  the training form in ONNX Runtime; the plain net in ONNX Runtime, OpenVINO, torch (eager, channels last, inductor), MNN
         and ncnn; ours, as `compile` makes it with no search (`lower_engines.py`)
Timing   for one thread, then for two: each engine in a process of its own, all taking turns of a warming run and two counted
         ones, in rotating order; the others are stopped meanwhile. Medians and quartiles, from numpy array to numpy array.
         A0 on one thread once more while a process on another core copies memory without end
Errors   the largest difference from float64 (torch) over the largest output
Roofline where the time of A0 goes in ours, kernel by kernel inside whole runs, one thread (`lower_roofline.py`)
Dilation one 3x3 conv at equal multiply-adds

An engine that is not installed or fails is a line of the page; the others go on. `--quick` takes tiny nets, few turns, and two
threads for the first net alone.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import page
from benchmarks.lower_engines import COMPARED, MNN, ONNX_RUNTIME, OURS, TRAINING, Worker
from benchmarks.lower_report import Kernel, Results, Row, goals, named, text
from benchmarks.lower_subjects import A0, DISTURBED, QUICK, SUBJECTS, Subject, dilated_convs, prepare

THREADS = (1, 2)
FAST = (ONNX_RUNTIME, OURS)
RUNS, LEAST, MOST = 2, 5, 60
"""Counted runs of a turn; rounds."""
STREAMED = 64 * 2**20
"""Elements of eight bytes that are copied without end."""
PACKAGES = ("torch", "onnxruntime", "openvino", "MNN", "ncnn", "pnnx", "apache-tvm", "numpy")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run. seconds: of the turns of a net with one number of threads, of which there are at least `least`."""

    subjects: tuple[Subject, ...]
    seconds: float
    least: int
    quick: bool = False


def measure(settings: Settings, folder: Path) -> Results:
    """Everything, from files that are written into the folder."""
    results = Results()
    for index, subject in enumerate(settings.subjects):
        _say(f"{subject.name}: preparing")
        place = folder / f"net {index}"
        results.built[subject.name] = prepare(subject, place)
        for threads in THREADS if index == 0 or not settings.quick else THREADS[:1]:
            _say(f"{subject.name}: {named(threads)}")
            chosen = COMPARED if (subject.name, threads) == (A0, 1) or not settings.quick else FAST
            results.rows += timed(subject.name, place, threads, settings, chosen)
        if subject.name == A0 and not settings.quick:
            _say(DISTURBED)
            with streaming():
                results.rows += timed(DISTURBED, place, 1, settings, (ONNX_RUNTIME, MNN, OURS))
        if subject.name == A0 and (place / "ours.tar").exists():
            found = alone(1, "net", place / "ours.tar")
            results.kernels = tuple(Kernel(**kernel) for kernel in found["kernels"])
            results.peaks = found["peaks"]
    _say("dilated convs")
    convs = dilated_convs(folder, quick=settings.quick)
    for threads in THREADS[:1] if settings.quick else THREADS:
        times = alone(threads, "convs", 3 if settings.quick else 20, *convs.values())
        results.dilated |= {(threads, *key): found for key, found in zip(convs, times, strict=True)}
    return results


def timed(subject: str, folder: Path, threads: int, settings: Settings, engines: Sequence[str]) -> list[Row]:
    """A row for each engine that the folder has files for."""
    engines = [engine for engine in engines if engine != TRAINING or (folder / "training.onnx").exists()]
    workers = [Worker(engine, folder, threads) for engine in engines]
    taken: dict[str, list[float]] = {worker.engine: [] for worker in workers}
    try:
        running = [worker for worker in workers if worker.ready()]
        end = time.perf_counter() + settings.seconds
        for index in range(MOST if running else 0):
            turn = index % len(running)
            for worker in running[turn:] + running[:turn]:
                taken[worker.engine] += worker.turn(RUNS)
            if index + 1 >= settings.least and time.perf_counter() > end:
                break
        expected = np.load(folder / "expected.npy")
        return [_row(subject, threads, worker, taken[worker.engine], expected) for worker in workers]
    finally:
        for worker in workers:
            worker.close()


@contextmanager
def streaming() -> Iterator[None]:
    """Meanwhile a process on the last core copies more memory than any cache holds, over and over."""
    other = multiprocessing.get_context("spawn").Process(target=_stream, daemon=True)
    other.start()
    try:
        yield
    finally:
        other.kill()
        other.join()


def _stream() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    there, back = np.ones(STREAMED), np.ones(STREAMED)
    while True:
        np.copyto(there, back)


def _row(subject: str, threads: int, worker: Worker, taken: Sequence[float], expected: np.ndarray) -> Row:
    if worker.reason:
        return Row(subject, worker.engine, threads, reason=worker.reason)
    first, median, third = (1e3 * np.quantile(taken, (0.25, 0.5, 0.75))).tolist()
    error = float(np.abs(worker.output() - expected).max() / np.abs(expected).max())
    return Row(subject, worker.engine, threads, median, (first, third), error, len(taken))


def alone(threads: int, *arguments: object) -> Any:
    """What `lower_roofline.py` says, in a process with so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.lower_roofline", *map(str, arguments)],
        env={**os.environ, **dict.fromkeys(names, str(threads))},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and the goals, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[], choices=[subject.name for subject in SUBJECTS], metavar="NET")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the turns of a net with one number of threads")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    subjects = QUICK if options.quick else SUBJECTS
    chosen = tuple(subject for subject in subjects if not options.only or subject.name in options.only)
    settings = Settings(chosen, 0.0 if options.quick else options.seconds, 2 if options.quick else LEAST, options.quick)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lower-") as folder:
        results = measure(settings, Path(folder))
    given = sys.argv[1:] if arguments is None else arguments
    about = page.facts(
        " ".join(["python -m benchmarks.lower", *given]),
        cpu=f"{page.processor()}, {len(os.sched_getaffinity(0))} cores; batch 1",
        versions=_versions(),
        took=f"{time.perf_counter() - start:.0f} s",
    )
    body = text(results)
    print(body)
    if options.output:
        page.write(options.output, page.head("Compiled nets on a CPU", about) + body, record(about, results))


def record(about: Mapping[str, str], results: Results) -> dict[str, Any]:
    """All numbers, for JSON."""
    return {
        **about,
        "goals": goals(results),
        "rows": [asdict(row) for row in results.rows],
        "built": {name: found if isinstance(found, str) else asdict(found) for name, found in results.built.items()},
        "kernels": [asdict(kernel) for kernel in results.kernels],
        "peaks": results.peaks,
        "dilated": [
            {"threads": threads, "channels": channels, "dilation": dilation, "milliseconds": found}
            for (threads, channels, dilation), found in results.dilated.items()
        ],
    }


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(page.versions(package))
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # workers that are stopped must be ended too
    main()
