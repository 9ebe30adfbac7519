"""How exact `fuse` is, and how long it takes.

    python benchmarks/fuse.py [-o benchmarks/results/fuse-cpu.md]

Errors: RepVGG-A0 and -B1g4 with random weights and random BN statistics, one random image of 224 x 224, through each frontend.
The largest absolute difference of the outputs before and after, and that over the largest output. `algebra` compares in float64
with the new weights not rounded; `as shipped` runs both models as they are, in float32 (ONNX in ONNX Runtime), and so holds the
float32 rounding of both runs. Seconds: the median of three runs of each step, on a traced model.
"""

import argparse
import datetime
import io
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

import reparam_compiler
from reparam_compiler.equivalence import difference
from reparam_compiler.frontends.onnx_gs import OnnxFrontend
from reparam_compiler.passes import pipeline
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from reparam_compiler.zoo.repvgg import REPVGG, RepVGG

SIZE = 224


def main() -> None:
    """Prints both tables, and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = ["| model | frontend | algebra, float64 | as shipped, float32 |", "|---|---|---|---|"]
    for name in ("A0", "B1g4"):
        lines += errors(name)
    lines += ["", "| model | step | seconds |", "|---|---|---|"]
    for name in ("A0", "B3"):
        lines += seconds(name)
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        command = f"python benchmarks/fuse.py -o {arguments.output}"
        arguments.output.write_text(f"# fuse: errors and seconds\n\n- date: {day}\n- command: {command}\n\n{text}\n")


def built(name: str) -> tuple[RepVGG, torch.Tensor]:
    """A model of the zoo with random BN statistics, and an image."""
    torch.manual_seed(0)
    model = REPVGG[name]().eval()
    randomise_batch_norm(model, 0)
    return model, torch.randn(1, 3, SIZE, SIZE)


def errors(name: str) -> list[str]:
    """A line for each frontend."""
    model, x = built(name)
    rows = []
    with torch.no_grad():
        for frontend, traced in (
            ("torch.fx", torch.fx.symbolic_trace(model)),
            ("torch.export", torch.export.export(model, (x,))),
        ):
            fused, report = reparam_compiler.fuse(traced, (x,), return_report=True)
            run = fused.module() if frontend == "torch.export" else fused
            shipped = difference(model(x), run(x))
            rows.append((frontend, report.whole_model.difference, shipped))
    buffer = io.BytesIO()
    torch.onnx.export(model, (x,), buffer, dynamo=False)
    reading = OnnxFrontend().read(onnx.load_from_string(buffer.getvalue()))
    compared = reading.compare(pipeline.run(reading.graph).graph, (x.numpy(),))
    rows.append(("onnx", None, compared.difference if compared else None))
    return [f"| {name} | {frontend} | {_shown(exact)} | {_shown(shipped)} |" for frontend, exact, shipped in rows]


def _shown(found: Any) -> str:
    return "none" if found is None else f"{found.max_abs:.1e} ({found.relative:.1e})"


def seconds(name: str) -> list[str]:
    """A line for each step."""
    model, x = built(name)
    traced = torch.fx.symbolic_trace(model)
    fused = reparam_compiler.fuse(traced, (x,), verify=False)
    steps: dict[str, Callable[[], object]] = {
        "fuse, verify=False": lambda: reparam_compiler.fuse(traced, verify=False),
        "fuse, regions proven": lambda: reparam_compiler.fuse(traced),
        "fuse, regions proven, whole model compared at 224": lambda: reparam_compiler.fuse(traced, (x,)),
        "prune 0.3 of the fused model": lambda: reparam_compiler.prune(fused, (x,), ratio=0.3),
    }
    return [f"| {name} | {step} | {_median(run):.2f} |" for step, run in steps.items()]


def _median(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
