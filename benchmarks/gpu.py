"""Times nets on a GPU: every engine that could run them, the paper's Tables 1, 4, 5 and 8, training form against fused.

    python -m benchmarks.gpu                     # everything, in less than eight minutes, into benchmarks/results/
    python -m benchmarks.gpu --cpu-smoke         # the same code on tiny nets without a GPU; its numbers mean nothing

Needs torch 2.11 or newer, numpy, networkx, ml_dtypes and jaxtyping, and this source tree; nothing has to be installed. The
rows of our own compiler need tvm too (and nvcc, or NVRTC), and say so where it is missing. Without a GPU it says so and
exits 0. Weights and batch norms are random: speed does not depend on them.

The parts: `gpu_engines` (eager, max-autotune, ours), `gpu_zoo` (Tables 4 and 5), `gpu_kernel_sizes` (Table 1) and
`gpu_segmentation` (Table 8), each with a share of the time; what one leaves over goes to the next.
"""

import argparse
import datetime
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import (
    gpu_engines,
    gpu_kernel_sizes,
    gpu_segmentation,
    gpu_zoo,
    page,
)
from benchmarks.gpu_measure import MODES, Results, threads
from benchmarks.gpu_page import markdown
from benchmarks.gpu_settings import GROUPS, KernelSize, Segmentation, Settings
from reparam_compiler.zoo import REPVGG, RESNET

MINUTES = 7.5  # of wall-clock for everything, under the eight that one command may take
PARTS = {
    gpu_engines.PART: (gpu_engines.measure, 0.40),
    gpu_zoo.PART: (gpu_zoo.measure, 0.30),
    gpu_kernel_sizes.PART: (gpu_kernel_sizes.measure, 0.15),
    gpu_segmentation.PART: (gpu_segmentation.measure, 0.15),
}
"""Each part, and its share of the time."""
DEFAULT_MODES = ("fp32", "tf32", "fp16-channels-last")
SMOKE = Settings(
    torch.device("cpu"),
    GROUPS[:1],
    ("fp32",),
    (2, 1),
    32,
    MINUTES,
    kernel_size=KernelSize(8, 6, 2),
    segmentation=Segmentation(("RepVGG-A0",), 41, 1),
    longest=0.3,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="wall-clock for everything (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS), help="(%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=DEFAULT_MODES, help="(%(default)s)")
    parser.add_argument("--nets", nargs="+", choices=REPVGG, default=tuple(REPVGG), help="RepVGGs of the zoo to time (all)")
    parser.add_argument(
        "--engine-nets", nargs="+", choices=(*REPVGG, *RESNET), default=("A0",), help="nets to time on every engine (A0)"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=(128, 1), help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder (benchmarks/results)")
    parser.add_argument("--cpu-smoke", action="store_true", help="try the code on a CPU, with tiny settings")
    options = parser.parse_args(arguments)
    if not options.cpu_smoke and not torch.cuda.is_available():
        print("No GPU here: nothing measured. (--cpu-smoke tries the code without one.)")
        return 0
    settings = SMOKE
    if not options.cpu_smoke:
        groups = [group for group in GROUPS if group.repvgg in options.nets]
        settings = Settings(
            torch.device("cuda"),
            groups,
            options.modes,
            options.batches,
            224,
            options.minutes,
            options.engine_nets,
            options.parts,
        )
    started = time.perf_counter()
    with threads(1 if options.cpu_smoke else torch.get_num_threads()):
        results = measure(settings)
    write(results, settings, options.output, seconds=time.perf_counter() - started, command=arguments)
    return 0


def measure(settings: Settings) -> Results:
    """Run every part, each within its share of the time that is left."""
    torch.backends.cudnn.benchmark = True
    results, end = Results(), time.perf_counter() + 60 * settings.minutes
    waiting = sum(PARTS[part][1] for part in settings.parts)
    for part in settings.parts:
        run, share = PARTS[part]
        now = time.perf_counter()
        run(settings, results, now + (end - now) * share / waiting)
        waiting -= share
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()
    return results


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
        "tvm": installed("apache-tvm"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *given]),
        "image": f"{settings.image} x {settings.image}",
        "took": f"{seconds:.0f} s",
    }
    text = markdown(results, settings, facts)
    slug = re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"gpu-{now:%Y-%m-%d}-{slug}"
    ratios = {f"{g.repvgg} : {g.resnet}": g.paper_ratio for g in settings.groups if g.resnet is not None}
    page.write(stem.with_suffix(".md"), text, {"facts": facts, "paper_ratios": ratios, **asdict(results)})
    print(text)
    print(f"wrote {stem.name}.json and .md into {folder}")


def installed(package: str) -> str:
    """Its version, or that there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
