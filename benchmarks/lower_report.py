"""What `lower.py` concludes from its numbers: tables, the roofline, and the goals with their verdicts."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.lower_engines import COMPARED, MNN, NCNN, ONNX_RUNTIME, OURS, PEERS
from benchmarks.lower_subjects import A0, DISTURBED, PRUNED, Built

THREADS_GAIN, PRUNED_GAIN, DILATION_COST, ERROR = 1.7, 2.0, 1.2, 1e-5
"""The goals: of two threads, of pruning by 0.3, of a dilated conv, and the relative error of A0."""
SPEED_UP = {A0: {ONNX_RUNTIME: 1.8, MNN: 1.4, NCNN: 1.0}, DISTURBED: {ONNX_RUNTIME: 1.6, MNN: 1.25}}
"""How many times as fast as its peers A0 shall be."""
AHEAD_OF_ALL = ("RepVGG-B0", "RepVGG-B1g4")


@dataclass(frozen=True, slots=True)
class Row:
    """A net in an engine: median and quartiles in milliseconds, error, counted runs; or the reason why there is nothing."""

    subject: str
    engine: str
    threads: int
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    relative_error: float | None = None
    runs: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in a run of A0. flops: of the direct form; 0 where unknown. weights, activations: bytes read and written."""

    kernel: str
    algorithm: str
    seconds: float
    flops: int
    weights: int
    activations: int


@dataclass(slots=True)
class Results:
    """All that was found. peaks: FLOP/s and bytes a second. dilated: milliseconds by threads, channels and dilation."""

    rows: list[Row] = field(default_factory=list)
    built: dict[str, Built | str] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = ()
    peaks: Mapping[str, float] = field(default_factory=dict)
    dilated: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def time(self, subject: str, engine: str, threads: int) -> float | None:
        """Milliseconds, where they were measured."""
        wanted = subject, engine, threads
        return next((row.milliseconds for row in self.rows if (row.subject, row.engine, row.threads) == wanted), None)

    def error(self, subject: str, engine: str) -> float | None:
        """The worst over the numbers of threads."""
        found = [row.relative_error for row in self.rows if (row.subject, row.engine) == (subject, engine)]
        return max((error for error in found if error is not None), default=None)

    @property
    def threads(self) -> list[int]:
        """The numbers of threads that there are rows for."""
        return sorted({row.threads for row in self.rows})


def text(results: Results) -> str:
    """The body of the page."""
    parts = [f"## Goals\n\n{_list(goals(results))}"]
    parts += [f"## Milliseconds, {named(threads)}\n\n{_times(results, threads)}" for threads in results.threads]
    parts.append(f"## Relative errors\n\n{_errors(results)}")
    parts.append(f"## How ours was built\n\n{_built(results)}")
    parts.append(f"## What each algorithm was chosen for\n\n{_list(_chosen(results))}")
    if results.kernels:
        parts.append(f"## Roofline of {A0}, one thread\n\n{_roofline(results)}")
    if results.dilated:
        parts.append(f"## One 3x3 conv, dilated, in ours\n\n{_dilated(results)}")
    missing = [f"{row.subject}, {row.engine}, {named(row.threads)}: none: {row.reason}" for row in results.rows if row.reason]
    parts.append(f"## Left out\n\n{_list(missing or ['nothing'])}")
    return "\n".join(parts)


def named(threads: int) -> str:
    """So many threads, in words."""
    return "one thread" if threads == 1 else f"{threads} threads"


def goals(results: Results) -> list[str]:
    """What the goals ask for, beside what was found."""
    return [*_speed_goals(results), *_other_goals(results)]


def _speed_goals(results: Results) -> Iterator[str]:
    for subject, peers in SPEED_UP.items():
        counts = results.threads[:1] if subject == DISTURBED else results.threads
        for threads, (peer, factor) in itertools.product(counts, peers.items()):
            found = _ratio(results.time(subject, peer, threads), results.time(subject, OURS, threads))
            yield _verdict(f"{subject}, {named(threads)}, times as fast as {peer}", found, factor)
    for subject in AHEAD_OF_ALL:
        for threads in results.threads:
            times = [t for peer in PEERS if (t := results.time(subject, peer, threads)) is not None]
            found = _ratio(min(times, default=None), results.time(subject, OURS, threads))
            yield _verdict(f"{subject}, {named(threads)}, times as fast as the best of {len(times)} peers", found, 1.0)


def _other_goals(results: Results) -> Iterator[str]:
    yield _verdict(f"{A0}, relative error", results.error(A0, OURS), ERROR, most=True)
    found = _ratio(results.time(A0, OURS, 1), results.time(A0, OURS, 2))
    yield _verdict(f"{A0}, two threads, times as fast as one", found, THREADS_GAIN)
    for pruned, threads in itertools.product(PRUNED, results.threads):
        found = _ratio(results.time(A0, OURS, threads), results.time(pruned, OURS, threads))
        yield _verdict(f"{pruned}, {named(threads)}, times as fast as {A0}", found, PRUNED_GAIN)
    costs = [
        found / results.dilated[threads, channels, 1]
        for (threads, channels, dilation), found in results.dilated.items()
        if dilation > 1 and (threads, channels, 1) in results.dilated
    ]
    yield _verdict("a dilated conv, worst, times as long as the plain one", max(costs, default=None), DILATION_COST, most=True)


def _verdict(what: str, found: float | None, wanted: float, *, most: bool = False) -> str:
    if found is None:
        return f"goal: {what}: not measured; wanted {_number(wanted)}"
    met = found <= wanted if most else found >= wanted
    asked = f"wanted {'at most' if most else 'at least'} {_number(wanted)}"
    return f"goal: {what}: {_number(found)}; {asked}: {'met' if met else 'not met'}"


def _number(value: float) -> str:
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.2f}"


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n"


def _subjects(results: Results) -> list[str]:
    return list(dict.fromkeys(row.subject for row in results.rows))


def _times(results: Results, threads: int) -> str:
    rows = []
    for subject in _subjects(results):
        found = {engine: results.time(subject, engine, threads) for engine in COMPARED}
        cells = ["none" if taken is None else f"{taken:.2f}" for taken in found.values()]
        over = _ratio(found[ONNX_RUNTIME], found[OURS])
        best = _ratio(min((taken for peer in PEERS if (taken := found[peer]) is not None), default=None), found[OURS])
        rows.append([subject, *cells, *("" if ratio is None else f"{ratio:.2f}x" for ratio in (over, best))])
    return _table(["net", *COMPARED, f"ours over {ONNX_RUNTIME}", "over the best peer"], rows)


def _errors(results: Results) -> str:
    rows = []
    for subject in _subjects(results):
        found = [results.error(subject, engine) for engine in COMPARED]
        rows.append([subject, *("none" if error is None else f"{error:.1e}" for error in found)])
    return _table(["net", *COMPARED], rows)


def _built(results: Results) -> str:
    rows = [
        [name, found, "", ""]
        if isinstance(found, str)
        else [name, f"{found.seconds:.1f}", f"{found.bytes / 2**20:.1f}", found.algorithms()]
        for name, found in results.built.items()
    ]
    return _table(["net", "seconds", "artifact, MiB", "kernels by algorithm"], rows)


def _chosen(results: Results) -> Iterator[str]:
    """The kernels of each recipe, by net and algorithm."""
    for subject, found in results.built.items():
        if isinstance(found, str):
            continue
        for algorithm in sorted({algorithm for _, algorithm in found.kernels} - {"general"}):
            yield f"{subject}, {algorithm}: {', '.join(name for name, chosen in found.kernels if chosen == algorithm)}"


def _roofline(results: Results) -> str:
    peak, bandwidth = results.peaks["flops"], results.peaks["bytes"]
    rows = []
    for kernel in results.kernels:
        moved = kernel.weights + kernel.activations
        speed = kernel.flops / kernel.seconds
        rows.append(
            [
                kernel.kernel,
                kernel.algorithm,
                f"{kernel.seconds * 1e6:.0f}",
                f"{speed / 1e9:.1f}" if kernel.flops else "",
                f"{kernel.weights / 2**20:.2f}",
                f"{kernel.activations / 2**20:.2f}",
                f"{speed / peak:.0%}" if kernel.flops else "",
                f"{moved / kernel.seconds / bandwidth:.0%}",
            ]
        )
    total = sum(kernel.seconds for kernel in results.kernels)
    flops = sum(kernel.flops for kernel in results.kernels)
    whole = results.time(A0, OURS, 1)
    closing = (
        f"Sum of the kernels: {total * 1e3:.2f} ms, {flops / total / 1e9:.1f} GFLOP/s; a whole run: "
        f"{'not measured' if whole is None else f'{whole:.2f} ms'}. Measured peaks of a core: {peak / 1e9:.0f} GFLOP/s, "
        f"{bandwidth / 1e9:.1f} GB/s from memory. FLOPs are counted as the direct form's: Winograd may go beyond the peak; "
        "what lies in a cache goes beyond the bandwidth.\n"
    )
    heads = ["kernel", "algorithm", "us", "GFLOP/s", "weights, MiB", "activations, MiB", "of peak FLOP/s", "of peak GB/s"]
    return f"{_table(heads, rows)}\n{closing}"


def _dilated(results: Results) -> str:
    dilations = sorted({dilation for _, _, dilation in results.dilated})
    rows = []
    for threads, channels in dict.fromkeys((threads, channels) for threads, channels, _ in results.dilated):
        times = [results.dilated.get((threads, channels, dilation)) for dilation in dilations]
        plain = times[0]
        cells = ["none" if taken is None else f"{taken:.2f}" for taken in times]
        costs = ["" if (cost := _ratio(taken, plain)) is None else f"{cost:.2f}x" for taken in times[1:]]
        rows.append([str(channels), str(threads), *cells, *costs])
    heads = [f"dilation {dilation}, ms" for dilation in dilations]
    return _table(["channels", "threads", *heads, *(f"{dilation} over 1" for dilation in dilations[1:])], rows)
