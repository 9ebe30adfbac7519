"""What the parts of the GPU benchmark share: how numbers are held, how long things may take, and timing in turns.

    examples a second = batch / median over rounds of (seconds of a block of calls / calls in the block)

What is compared is timed in turns within each round, so that a clock that drifts hits all alike. Time left over by fast
configurations goes to the others; what no time was left for, or what failed, is listed with its reason.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

BLOCK = 0.03  # seconds that a block of calls should last, so that the events' resolution does not matter
ROUNDS = range(5, 101)  # at least, and fewer than
WARM_UP = 3  # calls, in which cuDNN chooses its algorithms
LONGEST = 2.5  # seconds that one configuration is timed

Key = tuple[str, str]  # a net's name, and its form or engine


@dataclass(frozen=True, slots=True)
class Mode:
    """How numbers are held and multiplied.

    tf32: whether float32 convs may round their inputs to 10 bits of mantissa.
    """

    dtype: torch.dtype
    tf32: bool = False
    memory_format: torch.memory_format = torch.contiguous_format


LAST = torch.channels_last
MODES = {
    "fp32": Mode(torch.float32),
    "tf32": Mode(torch.float32, tf32=True),
    "fp16": Mode(torch.float16),
    "fp32-channels-last": Mode(torch.float32, memory_format=LAST),
    "tf32-channels-last": Mode(torch.float32, tf32=True, memory_format=LAST),
    "fp16-channels-last": Mode(torch.float16, memory_format=LAST),
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One net in one configuration.

    part: of the benchmark, "engines", "zoo" …
    form: of the net or the engine: "training form", "fused", "folded", "ours" …
    milliseconds: of a call, median of the rounds.
    spread: third less first quartile of the rounds, over the median.
    peak_megabytes: weights, input, and the most that a call holds beside them (workspaces too); None where it is not known.
    """

    part: str
    net: str
    form: str
    mode: str
    batch: int
    milliseconds: float
    examples_per_second: float
    spread: float
    rounds: int
    peak_megabytes: float | None


@dataclass(slots=True)
class Results:
    """All that a run finds out.

    errors: by net and form, the largest relative difference from what it is compared with.
    left_out: configurations that no time was left for, or that failed, with the reason.
    """

    measurements: list[Measurement] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def find(self, part: str, net: str | None, form: str, mode: str, batch: int) -> Measurement | None:
        """That measurement, where it was made."""
        wanted = (part, net, form, mode, batch)
        return next((m for m in self.measurements if (m.part, m.net, m.form, m.mode, m.batch) == wanted), None)


@dataclass(slots=True)
class Budget:
    """Shares the time that is left among the configurations that are left."""

    ends: float
    configurations: int
    longest: float = LONGEST

    def take(self, count: int) -> float:
        """Seconds for `count` configurations together; 0 where the time is up."""
        left = max(0.0, self.ends - time.perf_counter())
        share = min(self.longest, left / max(1, self.configurations))
        self.configurations -= count
        return share * count if left > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """What is timed: the call, and the peak that it holds in megabytes, where it is known."""

    run: Callable[[], object]
    peak_megabytes: float | None = None


def time_calls(
    part: str, calls: Mapping[Key, Call], mode: str, batch: int, seconds: float, device: torch.device
) -> list[Measurement]:
    """Time the calls in turns for about `seconds` in all, warm-up included."""
    started, singles = time.perf_counter(), {}
    for key, call in calls.items():
        block_seconds(call.run, WARM_UP, device)
        singles[key] = block_seconds(call.run, 1, device)
    repeats = {key: max(1, round(BLOCK / single)) for key, single in singles.items()}
    one_round = sum(repeats[key] * singles[key] for key in calls)
    left = seconds - (time.perf_counter() - started)
    rounds = min(max(int(left / one_round), ROUNDS.start), ROUNDS.stop - 1)
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(rounds):
        for key in rotated(list(calls), turn):
            samples[key].append(block_seconds(calls[key].run, repeats[key], device) / repeats[key])
    return [summarise(part, key, mode, batch, samples[key], calls[key].peak_megabytes) for key in calls]


def rotated(keys: list[Key], turn: int) -> list[Key]:
    """The keys from the `turn`-th on, then those before it: nobody always goes first."""
    start = turn % len(keys)
    return keys[start:] + keys[:start]


def block_seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds that `times` calls take together, by CUDA events where there is a GPU."""
    if device.type != "cuda":
        begun = time.perf_counter()
        for _ in range(times):
            call()
        return time.perf_counter() - begun
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_megabytes(net: nn.Module, x: Tensor) -> float | None:
    """Weights, input, and the most that one call holds beside them; other nets on the device do not count."""
    if x.device.type != "cuda":
        return None
    held = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers(), x))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    net(x)
    torch.cuda.synchronize()
    return (held + torch.cuda.max_memory_allocated() - before) / 1e6


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|."""
    difference = (found.to(expected.device).double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max()).item()


@contextmanager
def precision(mode: Mode) -> Iterator[None]:
    """Whether float32 convs and products round to TF32 inside the block.

    By the older of torch's two kinds of switches: where the newer disagree with them, torch.export and inductor refuse.
    """
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = mode.tf32
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


@contextmanager
def threads(count: int) -> Iterator[None]:
    """How many threads torch uses on the CPU inside the block: one is steady on a machine that others use too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summarise(part: str, key: Key, mode: str, batch: int, samples: Sequence[float], peak: float | None) -> Measurement:
    """The median and spread of the rounds."""
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    return Measurement(part, *key, mode, batch, median * 1e3, batch / median, (high - low) / median, len(samples), peak)


def line(m: Measurement) -> str:
    """A measurement, for who watches."""
    peak = "" if m.peak_megabytes is None else f"  {m.peak_megabytes:7.0f} MB"
    spread = f"+-{100 * m.spread:.1f} %, {m.rounds} rounds"
    return f"{m.net:>16} {m.form:13} {m.mode:18} batch {m.batch:3}  {m.examples_per_second:9.1f} ex/s{peak}  {spread}"


def report(measurements: Sequence[Measurement]) -> None:
    """Print measurements as they come."""
    print(*(line(m) for m in measurements), sep="\n", flush=True)
