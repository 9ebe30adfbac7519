"""How fast an artifact answers its callers, as `trtexec` and `benchmark_app` measure it.

    caller 1   warm-up | run run run run …      latency      the seconds of one run, as its caller waits for them
    caller 2   warm-up | run run run run …      throughput   the samples of all callers by the seconds from first to last

Each caller is a thread of its own; the cores of one run are divided among them. `--print-time` measures one run after another
on the device's own clock instead.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reparam_compiler.tvmc.tables import columns

if TYPE_CHECKING:
    from reparam_compiler.lowering import Executable

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Callers:
    """What is asked of an artifact: by how many callers at once, for how many seconds, after how many that are not counted."""

    instances: int = 1
    duration: float = 3.0
    warm_up: float = 0.2


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What the callers saw.

    asked: what was asked. threads: cores of each run. samples: of each run. runs: of all callers. seconds: from first to last.
    latency_ms: of a run in milliseconds: `min`, `mean`, `max`, and the percentiles as `p50` …
    """

    asked: Callers
    threads: int
    samples: int
    runs: int
    seconds: float
    latency_ms: dict[str, float]

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.samples * self.runs / self.seconds

    def record(self) -> dict[str, Any]:
        """The fields, and the throughput, for JSON."""
        return {**asdict(self), "throughput": self.throughput}

    def __str__(self) -> str:
        callers = f"{self.asked.instances} at once" if self.asked.instances > 1 else "one after another"
        head = (
            f"{self.runs} runs in {self.seconds:.2f} s, {callers}, each of {_counted(self.samples, 'sample')} on "
            f"{_counted(self.threads, 'thread')}, after {self.asked.warm_up:g} s of warm-up"
        )
        latency = columns(("latency (ms)", *self.latency_ms), [("", *(f"{value:.3f}" for value in self.latency_ms.values()))])
        return f"{head}\nthroughput: {self.throughput:.1f} samples a second\n{latency}"


def benchmark(executable: "Executable", arrays: Sequence[Any], asked: Callers) -> Benchmark:
    """Run an executable on these inputs by so many callers for so long.

    Args:
        arrays: the inputs, in order; each run takes them all.

    Raises: LoweringError as `Executable.run`.
    """
    import numpy as np

    served = executable if asked.instances == 1 else executable.clone(threads=max(1, executable.threads // asked.instances))
    with ThreadPoolExecutor(asked.instances) as callers:

        def seconds_of_runs(least: float) -> list[float]:
            return [
                taken
                for each in callers.map(lambda _: _runs(served.run, arrays, least), range(asked.instances))
                for taken in each
            ]

        seconds_of_runs(asked.warm_up)
        begun = time.perf_counter()
        latencies = 1e3 * np.asarray(seconds_of_runs(asked.duration))
        seconds = time.perf_counter() - begun
    found = {"min": latencies.min(), "mean": latencies.mean()}
    found |= {f"p{share}": np.percentile(latencies, share) for share in PERCENTILES}
    found |= {"max": latencies.max()}
    samples = next((len(array) for array, spec in zip(arrays, executable.inputs, strict=True) if spec.shape), 1)
    milliseconds = {name: float(value) for name, value in found.items()}
    return Benchmark(asked, served.threads, samples, len(latencies), seconds, milliseconds)


def _runs(run: Callable[..., Any], arrays: Sequence[Any], least: float) -> list[float]:
    """The seconds of each run of one caller, who begins runs for `least` seconds: at least one."""
    end, found = time.perf_counter() + least, list[float]()
    while not found or time.perf_counter() < end:
        begun = time.perf_counter()
        run(*arrays)
        found.append(time.perf_counter() - begun)
    return found


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
