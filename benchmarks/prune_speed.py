"""What pruned widths are worth in time: fused RepVGG-A0 at 224 x 224, batch 1, one thread, in ONNX Runtime and TVM.

    python -m benchmarks.prune_speed [--repeat 40] [-o benchmarks/results/prune-speed.md] [--quick]

Forms   the fused net as it is; a ratio of 0.3 with exact widths (`round_to=1`), in multiples of 8, the default, and of 16; half
        the time, as ONNX Runtime takes it on this machine (`latency=0.5`), in multiples of 8. By L1 and unrepaired: the weights
        are random, and only the time is looked at.
Timing  all forms in both engines take turns in one run, in an order that rotates by one each round; medians. Speed-up is that
        over the unpruned net in the same engine. Errors are against the same form in float64 (torch), relative to the largest
        output.

`--quick` takes two layers and few rounds: to see that it works; its numbers mean nothing.
"""

import argparse
import os
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import reparam_compiler
from benchmarks import page, torch_runs
from benchmarks.page import interleaved
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.zoo import repvgg
from reparam_compiler.zoo.random_weights import randomise_batch_norm

Run = Callable[[], np.ndarray]
UNPRUNED, ROUNDED = "unpruned", "ratio 0.3, multiples of 8"
FORMS: Mapping[str, Mapping[str, Any]] = {
    "ratio 0.3, exact": {"ratio": 0.3, "round_to": 1},
    ROUNDED: {"ratio": 0.3, "round_to": 8},
    "ratio 0.3, multiples of 16": {"ratio": 0.3, "round_to": 16},
    "latency 0.5, multiples of 8": {"latency": 0.5, "round_to": 8},
}
ONNX_RUNTIME, TVM = "ONNX Runtime", "TVM"
GOAL = 2.0
"""Times as fast as the unpruned net, in ONNX Runtime, with rounded widths."""


@dataclass(frozen=True, slots=True)
class Row:
    """A form in an engine: what is left of the multiply-adds, median and quartiles in milliseconds, speed-up, error."""

    form: str
    engine: str
    multiply_adds: int
    share: float
    milliseconds: float
    quartiles: tuple[float, float]
    speed_up: float
    relative_error: float


def subject(quick: bool) -> tuple[nn.Module, torch.Tensor]:
    """The net in training form, and an input."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    if quick:
        model, size = repvgg.RepVGG(repvgg.Architecture((1, 1), (32, 32), strides=(2, 1)), num_classes=10), 16
    else:
        model, size = repvgg.repvgg_a0(), 224
    return randomise_batch_norm(model.eval(), 0), torch.randn(1, 3, size, size, generator=generator)


def measure(model: nn.Module, x: torch.Tensor, repeat: int) -> list[Row]:
    """A row for each form and engine."""
    fused, about = reparam_compiler.fuse(model, (x,), return_report=True)
    forms, multiply_adds = {UNPRUNED: fused}, {UNPRUNED: about.after.flops}
    for form, options in FORMS.items():
        forms[form], report = reparam_compiler.prune(fused, (x,), return_report=True, **options)
        multiply_adds[form] = report.after.flops
    runs: dict[tuple[str, str], Run] = {}
    expected: dict[str, np.ndarray] = {}
    for form, pruned in forms.items():
        with torch.no_grad():
            expected[form] = deep_copy(pruned).double()(x.double()).numpy()
        runs[form, ONNX_RUNTIME] = torch_runs.onnx_runtime(pruned, x)
        runs[form, TVM] = torch_runs.compiled(pruned, x)
    errors = {key: float(np.abs(run() - expected[key[0]]).max() / np.abs(expected[key[0]]).max()) for key, run in runs.items()}
    taken = interleaved(runs, repeat)
    rows = []
    for (form, engine), times in taken.items():
        first, median, third = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
        speed_up = statistics.median(taken[UNPRUNED, engine]) / median
        share = multiply_adds[form] / multiply_adds[UNPRUNED]
        quartiles = first * 1e3, third * 1e3
        rows.append(Row(form, engine, multiply_adds[form], share, median * 1e3, quartiles, speed_up, errors[form, engine]))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    lines = [
        "| form | engine | multiply-adds | of unpruned | ms | speed-up | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counted = f"{row.multiply_adds / 1e6:.1f} M", f"{row.share:.2f}"
        timed = f"{row.milliseconds:.2f}", f"{row.speed_up:.2f}x", f"{row.relative_error:.1e}"
        lines.append(f"| {' | '.join((row.form, row.engine, *counted, *timed))} |")
    return "\n".join(lines) + "\n"


def goal(rows: Sequence[Row]) -> str:
    """What the goal asks for, beside what was found."""
    row = next(row for row in rows if (row.form, row.engine) == (ROUNDED, ONNX_RUNTIME))
    verdict = "met" if row.speed_up >= GOAL else "not met"
    return (
        f"{ROUNDED}, {ONNX_RUNTIME}: {row.speed_up:.2f}x as fast at {row.share:.2f} of the multiply-adds; "
        f"goal {GOAL}x at half of them: {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and the goal, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--repeat", type=int, default=40, help="rounds; each times every form in both engines once")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["TVM_NUM_THREADS"] = "1"  # read when tvm is first imported
    torch.set_num_threads(1)
    repeat = 3 if options.quick else options.repeat
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is repaired, and the exporter is deprecated
        rows = measure(*subject(options.quick), repeat)
    closing = goal(rows)
    print(f"{table(rows)}\n{closing}")
    if options.output:
        flags = " --quick" if options.quick else f" --repeat {repeat}"
        _write(options.output, rows, closing, f"python -m benchmarks.prune_speed{flags} -o {options.output}")


def _write(output: Path, rows: Sequence[Row], closing: str, command: str) -> None:
    about = page.facts(
        command,
        cpu=f"{page.processor()}, one thread, batch 1",
        versions=page.versions("torch", "onnxruntime", "apache-tvm", "numpy"),
        goal=closing,
    )
    text = page.head("What pruned widths are worth in time", about) + table(rows)
    page.write(output, text, {**about, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
