"""What `fuse` holds at most of RepVGG-B3 at 224 x 224, over the bytes of the model's weights.

    python -m benchmarks.fuse_memory [--model B3] [-o benchmarks/results/fuse-memory.md]

Each row is a process of its own, in which a small model was fused before. `above the model` is the most that was held, less
what the process held with the model made; what `fuse` gives is about 0.9 of that. `in all` counts the model as well. The
figures are Linux's, from `/proc/self/status` (VmHWM, VmRSS). CPU seconds are on one thread.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import reparam_compiler
from benchmarks import page
from benchmarks.fuse import SIZE, repvgg
from benchmarks.fuse_measure import byte_count, forget_peak, status, warm_up
from benchmarks.fuse_zoo import boxed

WAYS: dict[str, tuple[Callable[[torch.nn.Module], Any], dict[str, Any], bool]] = {
    "torch.fx, verify=False": (torch.fx.symbolic_trace, {"verify": False}, True),
    "torch.fx, regions proven": (torch.fx.symbolic_trace, {}, False),
    "torch.fx, regions proven, whole model compared": (torch.fx.symbolic_trace, {}, True),
    "module, verify=False": (lambda model: model, {"verify": False}, True),
    "module, regions proven, whole model compared": (lambda model: model, {}, True),
}
"""For each row how the model is given, the options, and whether example inputs are."""


@dataclass(frozen=True, slots=True)
class Held:
    """Of one way to fuse: the most that was held, over the weights; CPU seconds."""

    above_the_model: float
    in_all: float
    seconds: float


def measure(name: str, way: str) -> Held:
    """In this process, which should have done nothing else."""
    warm_up()
    given, options, with_inputs = WAYS[way]
    base = status("VmRSS")
    model, inputs = repvgg(name, SIZE)
    subject, weights = given(model), byte_count(model)
    before = status("VmRSS")
    forget_peak()
    start = time.process_time()
    reparam_compiler.fuse(subject, inputs if with_inputs else None, **options)
    seconds, peak = time.process_time() - start, status("VmHWM")
    return Held((peak - before) / weights, (peak - base) / weights, seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="B3")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    rows = {way: boxed(functools.partial(measure, options.model), way) for way in WAYS}
    lines = [f"| RepVGG-{options.model} | above the model | in all | CPU s |", "|---|---|---|---|"]
    for way, held in rows.items():
        cells = [held, "", ""] if isinstance(held, str) else [f"{held.above_the_model:.2f}x", f"{held.in_all:.2f}x"]
        lines.append(f"| {' | '.join([way, *cells, *([] if isinstance(held, str) else [f'{held.seconds:.1f}'])])} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if options.output:
        command = f"python -m benchmarks.fuse_memory --model {options.model} -o {options.output}"
        about = page.facts(command, cpu=f"{page.processor()}, one thread", versions=page.versions("torch", "numpy"))
        record = {way: held if isinstance(held, str) else asdict(held) for way, held in rows.items()}
        page.write(options.output, page.head("What fuse holds", about) + table, {**about, "rows": record})


if __name__ == "__main__":
    main()
