"""The ladder: training form -> fused -> pruned -> compiled, in torch eager, ONNX Runtime and TVM, side by side in one run.

TVM by rule is `compile` without the records that ship for this CPU, and TVM with them.

    python -m benchmarks.ladder [--repeat 30] [--threads 1] [-o benchmarks/results/ladder-cpu.json]

Every rung of a model is timed in turn, again and again, and the median of its times is quoted: a machine that drifts does
so for all. Batch 1, float32. Errors are against the same rung in float64 (torch): relative to the largest absolute output.
"""

import argparse
import os
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import reparam_compiler
from benchmarks import page, torch_runs
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.zoo import digits, repvgg
from reparam_compiler.zoo.random_weights import randomise_batch_norm

RATIO = 0.3
A0 = "RepVGG-A0"
TRAINING, FUSED, PRUNED = "training form", "fused", f"pruned {RATIO}"
EAGER, ONNX_RUNTIME, BY_RULE, TVM = "torch eager", "ONNX Runtime", "TVM by rule", "TVM"
OVER_ONNX_RUNTIME, WHOLE = 2.2, 5.0
"""The goals on A0, one thread, AVX-512: the fused net over ONNX Runtime's, and the last rung over the first in ONNX Runtime."""
Run = Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class Row:
    """One rung in one engine: median milliseconds, how much faster than the training form in torch, error against float64."""

    model: str
    form: str
    engine: str
    milliseconds: float
    speed_up: float
    relative_error: float


def main() -> None:
    """Runs the ladder and writes the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=30, help="rounds; each times every rung once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "ladder-cpu.json")
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    rows = [row for name, model, x in subjects() for row in ladder(name, model, x, arguments.repeat, arguments.threads)]
    text = table(rows)
    print(text)
    write(arguments.output, rows, text, arguments)


def subjects() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """RepVGG-A0 with random weights at 224 x 224, and the trained digits net at 16 x 16."""
    generator = torch.Generator().manual_seed(0)
    a0 = repvgg.repvgg_a0().eval()
    randomise_batch_norm(a0, 0)
    yield A0, a0, torch.randn(1, 3, 224, 224, generator=generator)
    yield "digits", digits.digits_repvgg(), torch.from_numpy(np.array(digits.digits_split().test_images[:1]))


def ladder(name: str, model: nn.Module, x: torch.Tensor, repeat: int, threads: int) -> list[Row]:
    """All rungs of one model, timed in turn."""
    fused = reparam_compiler.fuse(model, (x,))
    with warnings.catch_warnings():  # random weights have nothing to calibrate on; the speed does not depend on it
        warnings.simplefilter("ignore", reparam_compiler.UnrepairedPruneWarning)
        pruned = reparam_compiler.prune(fused, (x,), ratio=RATIO)
    runs: dict[tuple[str, str], Run] = {}
    expected: dict[str, np.ndarray] = {}
    for form, rung in ((TRAINING, model), (FUSED, fused), (PRUNED, pruned)):
        with torch.no_grad():
            expected[form] = deep_copy(rung).double()(x.double()).numpy()
        runs[form, EAGER] = _torch_run(rung, x)
        runs[form, ONNX_RUNTIME] = torch_runs.onnx_runtime(rung, x, threads)
        for engine, shipped in ((BY_RULE, False), (TVM, True)):
            runs[form, engine] = torch_runs.compiled(rung, x, threads, shipped_records=shipped)
    errors = {key: float(np.abs(run() - expected[key[0]]).max() / np.abs(expected[key[0]]).max()) for key, run in runs.items()}
    medians = {key: statistics.median(values) * 1e3 for key, values in page.interleaved(runs, repeat).items()}
    first = medians[TRAINING, EAGER]
    return [
        Row(name, form, engine, medians[form, engine], first / medians[form, engine], errors[form, engine])
        for form, engine in runs
    ]


def _torch_run(model: nn.Module, x: torch.Tensor) -> Run:
    def run() -> np.ndarray:
        with torch.no_grad():
            result: np.ndarray = model(x).numpy()
        return result

    return run


def table(rows: list[Row]) -> str:
    """The rows as markdown, and the goals."""
    lines = ["| model | form | engine | ms | times as fast | relative error |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.model, row.form, row.engine, f"{row.milliseconds:.3f}", f"{row.speed_up:.2f}", f"{row.relative_error:.1e}")
        lines.append(f"| {' | '.join(cells)} |")
    found = {(row.model, row.form, row.engine): row.milliseconds for row in rows}
    fused, whole = (found[A0, form, ONNX_RUNTIME] / found[A0, rung, TVM] for form, rung in ((FUSED, FUSED), (TRAINING, PRUNED)))
    return "\n".join(
        [
            *lines,
            "",
            f"{A0}, fused, ONNX Runtime over TVM: {fused:.2f} (wanted {OVER_ONNX_RUNTIME})",
            f"The whole ladder, from the training form in ONNX Runtime to the pruned net in TVM: {whole:.2f} (wanted {WHOLE})",
        ]
    )


def write(path: Path, rows: list[Row], text: str, arguments: argparse.Namespace) -> None:
    """The JSON, and the table beside it; each whole or not at all."""
    command = f"python -m benchmarks.ladder --repeat {arguments.repeat} --threads {arguments.threads}"
    about = page.facts(command, cpu=page.processor(), torch=torch.__version__)
    record = {**about, "rows": [asdict(row) for row in rows]}
    page.write(path.with_suffix(".md"), f"{page.head('The ladder on a CPU', about)}{text}\n", record)


if __name__ == "__main__":
    main()
