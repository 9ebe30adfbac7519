"""Times the zoo on a GPU, in training form and fused, beside ResNets folded by Eq. 3, as the paper's Table 4 does.

    examples a second = batch / median over rounds of (seconds of a block of calls / calls in the block)
    ratio             = examples a second of a fused RepVGG / those of its ResNet, both out of the same rounds

    python benchmarks/gpu.py                     # everything, in less than eight minutes, into benchmarks/results/
    python benchmarks/gpu.py --cpu-smoke         # the same code on tiny nets without a GPU; its numbers mean nothing

Needs torch 2.11 or newer, numpy, networkx, ml_dtypes and jaxtyping, and this source tree; nothing has to be installed.
Without a GPU it says so and exits 0. Weights and batch norms are random: speed does not depend on them. The nets of one
row of Table 4 are timed in turns within each round, so that a clock that drifts hits all of them alike. Time left over
by fast nets goes to the others; what no time was left for is listed, never left out in silence.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 4.1 and Table 4.
"""

import argparse
import copy
import datetime
import gc
import json
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the source tree is all there is

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from reparam_compiler import fuse  # noqa: E402
from reparam_compiler.zoo import REPVGG, RESNET, randomise_batch_norm  # noqa: E402

MINUTES = 7.5  # of wall-clock for everything, under the eight that one command may take
LONGEST = 2.5  # seconds for a configuration
BLOCK = 0.03  # seconds that a block of calls should last, so that the events' resolution does not matter
ROUNDS = range(5, 101)  # at least, and fewer than
WARM_UP = 3  # calls, in which cuDNN chooses its algorithms


@dataclass(frozen=True, slots=True)
class Mode:
    """How numbers are held and multiplied.

    tf32: whether float32 convs may round their inputs to 10 bits of mantissa.
    """

    dtype: torch.dtype
    tf32: bool = False
    memory_format: torch.memory_format = torch.contiguous_format


MODES = {
    "fp32": Mode(torch.float32),
    "tf32": Mode(torch.float32, tf32=True),
    "fp16-channels-last": Mode(torch.float16, memory_format=torch.channels_last),
    "fp16": Mode(torch.float16),
    "tf32-channels-last": Mode(torch.float32, tf32=True, memory_format=torch.channels_last),
}
DEFAULT_MODES = ("fp32", "tf32", "fp16-channels-last")


@dataclass(frozen=True, slots=True)
class Group:
    """Nets that are timed in turns: a RepVGG and, where the paper pairs them, a ResNet and the paper's ratio."""

    repvgg: str
    resnet: str | None = None
    paper_ratio: float | None = None

    @property
    def size(self) -> int:
        """How many nets: training form, fused, and the ResNet."""
        return 2 + (self.resnet is not None)


# Those with a ratio to compare come first, so that a slow machine leaves out the others.
GROUPS = (
    Group("A0", "ResNet-18", 1.33),
    Group("A1", "ResNet-34", 1.64),
    Group("A2", "ResNet-50", 1.83),
    Group("B1g4", "ResNet-101", 2.01),
    Group("B1g2", "ResNet-152", 2.66),
    *(Group(name) for name in ("B0", "B1", "B2g4", "B2", "B3g4", "B3")),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One net in one configuration.

    form: "training", "fused", or "folded" for a ResNet.
    milliseconds: of a call, median of the rounds.
    spread: third less first quartile of the rounds, over the median.
    peak_megabytes: weights, input, and the most that a call holds beside them (workspaces too); None on a CPU.
    """

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

    errors: of each fused net, max |fused - training form| / max |training form|, in fp32.
    left_out: configurations that no time was left for, or that failed, with the reason.
    """

    measurements: list[Measurement] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def rate(self, net: str | None, form: str, mode: str, batch: int) -> float | None:
        """Examples a second, where they were measured."""
        for m in self.measurements:
            if (m.net, m.form, m.mode, m.batch) == (net, form, mode, batch):
                return m.examples_per_second
        return None


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
class Settings:
    """What to run: see the command's options."""

    device: torch.device
    groups: Sequence[Group]
    modes: Sequence[str]
    batches: Sequence[int]
    image: int
    minutes: float
    longest: float = LONGEST


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="wall-clock for everything (%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=DEFAULT_MODES, help="(%(default)s)")
    parser.add_argument("--nets", nargs="+", choices=REPVGG, default=tuple(REPVGG), help="RepVGGs to time (all)")
    parser.add_argument("--batches", nargs="+", type=int, default=(128, 1), help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder (benchmarks/results)")
    parser.add_argument("--cpu-smoke", action="store_true", help="try the code on a CPU, with tiny settings")
    options = parser.parse_args(arguments)
    if not options.cpu_smoke and not torch.cuda.is_available():
        print("No GPU here: nothing measured. (--cpu-smoke tries the code without one.)")
        return 0
    if options.cpu_smoke:
        settings = Settings(torch.device("cpu"), GROUPS[:1], ("fp32",), (2, 1), 32, options.minutes, longest=0.3)
    else:
        groups = [group for group in GROUPS if group.repvgg in options.nets]
        settings = Settings(torch.device("cuda"), groups, options.modes, options.batches, 224, options.minutes)
    started = time.perf_counter()
    with threads(1 if options.cpu_smoke else torch.get_num_threads()):
        results = measure(settings)
    write(results, settings, options.output, seconds=time.perf_counter() - started, command=arguments)
    return 0


def measure(settings: Settings) -> Results:
    """Time every group in every configuration, as far as the time goes."""
    torch.backends.cudnn.benchmark = True
    results = Results()
    configurations = sum(group.size for group in settings.groups) * len(settings.modes) * len(settings.batches)
    budget = Budget(time.perf_counter() + 60 * settings.minutes, configurations, settings.longest)
    for group in settings.groups:
        plan = [(mode, batch) for batch in settings.batches for mode in settings.modes]
        if time.perf_counter() > budget.ends - 1:
            results.left_out += [f"{group.repvgg}, {mode}, batch {batch}: no time left" for mode, batch in plan]
            continue
        nets = build(group, settings, results)
        for mode, batch in plan:
            seconds = budget.take(group.size)
            name = f"{group.repvgg}, {mode}, batch {batch}"
            if seconds == 0:
                results.left_out.append(f"{name}: no time left")
                continue
            try:
                results.measurements += time_group(nets, mode, batch, settings, seconds)
            except torch.OutOfMemoryError:
                results.left_out.append(f"{name}: out of memory")
            else:
                print(*(line(m) for m in results.measurements[-group.size :]), sep="\n", flush=True)
        del nets
        gc.collect()
    return results


def build(group: Group, settings: Settings, results: Results) -> dict[tuple[str, str], nn.Module]:
    """The nets of a group by name and form, in float32, on the device; notes how far fusing moved the output."""
    torch.manual_seed(0)
    training: nn.Module = randomise_batch_norm(REPVGG[group.repvgg]()).eval()
    nets: dict[tuple[str, str], nn.Module] = {
        (group.repvgg, "training"): training,
        (group.repvgg, "fused"): fuse(training, verify=False),
    }
    if group.resnet is not None:
        nets[group.resnet, "folded"] = fuse(randomise_batch_norm(RESNET[group.resnet]()).eval(), verify=False)
    nets = {key: net.to(settings.device) for key, net in nets.items()}
    x = torch.randn(2, 3, settings.image, settings.image, device=settings.device)
    with torch.inference_mode(), precision(MODES["fp32"]):
        expected = nets[group.repvgg, "training"](x)
        error = (nets[group.repvgg, "fused"](x) - expected).abs().max() / expected.abs().max()
    results.errors[group.repvgg] = error.item()
    return nets


def time_group(
    nets: dict[tuple[str, str], nn.Module], mode: str, batch: int, settings: Settings, seconds: float
) -> list[Measurement]:
    """Time the nets in turns for about `seconds` in all, warm-up included."""
    started, chosen = time.perf_counter(), MODES[mode]
    x = torch.randn(batch, 3, settings.image, settings.image, device=settings.device, dtype=chosen.dtype)
    x = x.contiguous(memory_format=chosen.memory_format)
    with torch.inference_mode(), precision(chosen):
        calls, peaks, singles = {}, {}, {}
        for key, net in nets.items():
            cast = copy.deepcopy(net).to(dtype=chosen.dtype, memory_format=chosen.memory_format)
            calls[key] = lambda cast=cast: cast(x)
            block_seconds(calls[key], WARM_UP, settings.device)
            peaks[key] = peak_megabytes(cast, x)
            singles[key] = block_seconds(calls[key], 1, settings.device)
        repeats = {key: max(1, round(BLOCK / single)) for key, single in singles.items()}
        one_round = sum(repeats[key] * singles[key] for key in nets)
        left = seconds - (time.perf_counter() - started)
        rounds = min(max(int(left / one_round), ROUNDS.start), ROUNDS.stop - 1)
        samples: dict[tuple[str, str], list[float]] = {key: [] for key in nets}
        for turn in range(rounds):
            for key in rotated(list(nets), turn):
                samples[key].append(block_seconds(calls[key], repeats[key], settings.device) / repeats[key])
    return [summarise(key, mode, batch, samples[key], peaks[key]) for key in nets]


def rotated(keys: list[tuple[str, str]], turn: int) -> list[tuple[str, str]]:
    """The keys from the `turn`-th on, then those before it: nobody always goes first."""
    start = turn % len(keys)
    return keys[start:] + keys[:start]


def block_seconds(call: Callable[[], Tensor], times: int, device: torch.device) -> float:
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


@contextmanager
def precision(mode: Mode) -> Iterator[None]:
    """Whether float32 convs and products round to TF32 inside the block."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if mode.tf32 else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def threads(count: int) -> Iterator[None]:
    """How many threads torch uses on the CPU inside the block: one is steady on a machine that others use too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summarise(key: tuple[str, str], mode: str, batch: int, samples: list[float], peak: float | None) -> Measurement:
    """The median and spread of the rounds."""
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    return Measurement(*key, mode, batch, median * 1e3, batch / median, (high - low) / median, len(samples), peak)


def line(m: Measurement) -> str:
    """A measurement, for who watches."""
    peak = "" if m.peak_megabytes is None else f"  {m.peak_megabytes:7.0f} MB"
    spread = f"+-{100 * m.spread:.1f} %, {m.rounds} rounds"
    return f"{m.net:>10} {m.form:8} {m.mode:18} batch {m.batch:3}  {m.examples_per_second:9.1f} ex/s{peak}  {spread}"


def markdown(results: Results, settings: Settings, facts: dict[str, str]) -> str:
    """The results as a page: facts, the paper's ratios beside ours, a table for each mode and batch, what was left out."""
    modes, batches = settings.modes, settings.batches
    page = ["# RepVGG on a GPU: training form, fused, and the ResNets of the paper's Table 4", ""]
    page += [f"- {key}: {value}" for key, value in facts.items()]
    page += ["", "## Fused RepVGG : folded ResNet, examples a second", ""]
    columns = [(mode, batch) for batch in batches for mode in modes]
    heads = [f"{mode}, batch {batch}" for mode, batch in columns]
    rows = []
    for group in (group for group in settings.groups if group.resnet is not None):
        ours = [
            _ratio(results.rate(group.repvgg, "fused", *column), results.rate(group.resnet, "folded", *column))
            for column in columns
        ]
        rows.append([f"{group.repvgg} : {group.resnet}", f"{group.paper_ratio}", *ours])
    page += _table(["pair", "paper (1080Ti, fp32, batch 128)", *heads], rows)
    for mode, batch in columns:
        page += ["", f"## {mode}, batch {batch}", ""]
        rows = []
        for group in settings.groups:
            found = {m.form: m for m in results.measurements if (m.net, m.mode, m.batch) == (group.repvgg, mode, batch)}
            if found:
                before, after = found["training"], found["fused"]
                gain = _ratio(after.examples_per_second, before.examples_per_second)
                rows.append([group.repvgg, *_cells(before), *_cells(after), gain])
            rows += [
                [m.net, "", "", *_cells(m), ""]
                for m in results.measurements
                if (m.net, m.mode, m.batch) == (group.resnet, mode, batch)
            ]
        page += _table(["net", "training form, ex/s", "peak MB", "fused, ex/s", "peak MB", "gain"], rows)
    page += ["", "## Fusing moved the output by", "", "max |fused - training form| / max |training form|, fp32.", ""]
    page += _table(["net", "relative error"], [[net, f"{error:.1e}"] for net, error in results.errors.items()])
    page += ["", "## Left out", "", *([f"- {what}" for what in results.left_out] or ["Nothing."]), ""]
    return "\n".join(page)


def write(results: Results, settings: Settings, folder: Path, *, seconds: float, command: Sequence[str] | None) -> None:
    """Write a JSON and a markdown page into `folder`, each whole or not at all, and print the page."""
    chip = torch.cuda.get_device_name() if settings.device.type == "cuda" else "cpu"
    now = datetime.datetime.now(datetime.UTC)
    given = sys.argv[1:] if command is None else command
    facts = {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "chip": chip,
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()),
        "command": shlex.join(["python", "benchmarks/gpu.py", *given]),
        "image": f"{settings.image} x {settings.image}",
        "took": f"{seconds:.0f} s",
    }
    page = markdown(results, settings, facts)
    slug = re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"gpu-{now:%Y-%m-%d}-{slug}"
    ratios = {f"{g.repvgg} : {g.resnet}": g.paper_ratio for g in settings.groups if g.resnet is not None}
    found = {"facts": facts, "paper_ratios": ratios, **asdict(results)}
    for path, text in ((stem.with_suffix(".json"), json.dumps(found, indent=1)), (stem.with_suffix(".md"), page)):
        partial = path.with_name(path.name + ".part")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    print(page)
    print(f"wrote {stem.name}.json and .md into {folder}")


def _ratio(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{a / b:.2f}"


def _cells(m: Measurement) -> list[str]:
    return [f"{m.examples_per_second:.1f}", "" if m.peak_megabytes is None else f"{m.peak_megabytes:.0f}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


if __name__ == "__main__":
    sys.exit(main())
