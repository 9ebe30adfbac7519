"""What a search finds: a net tuned, run beside itself by rule, and on a CPU beside ONNX Runtime.

    python -m benchmarks.tuning [-o PAGE] [--net A0] [--target "llvm -num-cores 1"] [--seconds 600] [--records FOLDER]

Net        RepVGG-A0 fused, or an ONNX file; random weights and statistics, batch 1
Search     `reparam_compiler.tune` for so many seconds; in FOLDER what it keeps, a temporary one by default
Curve      the sum of all convs, each at its best so far, measured alone beside the rule's, by the seconds of the search
Net        each engine in a process of its own, bound to the same cores, taking turns; medians of a run from array to array
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import reparam_compiler
from benchmarks import page
from benchmarks.lower_engines import ONNX_RUNTIME, OURS, Worker
from reparam_compiler.lowering import TuneResult, TuneStep
from reparam_compiler.lowering.gpu.opencl.devices import device_here
from reparam_compiler.lowering.search.measuring import cores_of
from reparam_compiler.lowering.search.records import ConvRecord, read_convs
from reparam_compiler.lowering.target import describe, resolve
from reparam_compiler.zoo import randomise_batch_norm, repvgg_a0

A0 = "A0"
RULE, TUNED = "by rule", "tuned"
ROUNDS = 7
RUNS = 5
"""Of an engine in its turn."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a search.

    steps: after each measurement. records: of the folder, for this target. milliseconds: medians of each engine, by turns.
    """

    result: TuneResult
    steps: Sequence[TuneStep]
    records: Sequence[ConvRecord]
    milliseconds: dict[str, float]
    threads: int


def net_file(name: str, folder: Path) -> Path:
    """The net as ONNX, with an image for it beside it."""
    if name != A0:
        model = onnx.load(name)
        shape = [size.dim_value or 1 for size in model.graph.input[0].type.tensor_type.shape.dim]
        np.save(folder / "x.npy", np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        onnx.save(model, folder / "fused.onnx")
        return folder / "fused.onnx"
    torch.manual_seed(0)
    model, x = randomise_batch_norm(repvgg_a0().eval(), 0), torch.randn(1, 3, 224, 224)
    np.save(folder / "x.npy", x.numpy())
    torch.onnx.export(reparam_compiler.fuse(model, (x,)), (x,), str(folder / "fused.onnx"), dynamo=False)
    return folder / "fused.onnx"


def search(name: str, target: str, seconds: float, records: Path | None, turns: int) -> Found:
    """Tunes a net for so many seconds, and runs what came of it."""
    steps: list[TuneStep] = []
    resolved = resolve(target)
    with tempfile.TemporaryDirectory(prefix="tuning-") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(work)
        kept = records or folder / "records"
        model = onnx.load(net_file(name, folder))
        result = reparam_compiler.tune(
            model, database=kept, target=target, trials=10**6, max_seconds=seconds, listener=steps.append, progress=False
        )
        for engine, database in ((RULE, None), (TUNED, kept)):
            (folder / engine).mkdir()
            for file in ("x.npy", "fused.onnx"):
                (folder / engine / file).symlink_to(folder / file)
            reparam_compiler.compile(model, target=target, database=database).save(folder / engine / "ours.tar")
        threads = cores_of(resolved) or len(os.sched_getaffinity(0))
        engines = {RULE: OURS, TUNED: OURS} | ({ONNX_RUNTIME: ONNX_RUNTIME} if resolved.kind.name == "llvm" else {})
        workers = {
            engine: Worker(kind, folder / (engine if kind == OURS else RULE), threads) for engine, kind in engines.items()
        }
        found = [each for each in read_convs(kept) if each.target == describe(resolved)]
        return Found(result, steps, found, _by_turns(workers, turns), threads)


def _by_turns(workers: dict[str, Worker], turns: int) -> dict[str, float]:
    """Medians in milliseconds; no entry for an engine that does not run."""
    taken: dict[str, list[float]] = {engine: [] for engine in workers}
    try:
        ready = [engine for engine, worker in workers.items() if worker.ready()]
        for turn in range(turns):
            for engine in ready[turn % len(ready) :] + ready[: turn % len(ready)]:
                taken[engine] += workers[engine].turn(RUNS)
    finally:
        for worker in workers.values():
            worker.close()
    return {engine: 1e3 * float(np.median(seconds)) for engine, seconds in taken.items() if seconds}


def curve(steps: Sequence[TuneStep]) -> list[tuple[float, float, float]]:
    """(seconds, the sum of all convs by the rule's, the share of the final gain), at ten times of the search."""
    known = [(s.seconds, s.best_seconds / s.start_seconds) for s in steps if s.best_seconds and s.start_seconds]
    if not known:
        return []
    last = known[-1][1]
    marks = np.linspace(known[0][0], known[-1][0], 10)
    at = [next(ratio for seconds, ratio in reversed(known) if seconds <= mark) for mark in marks]
    return [(float(mark), ratio, (1 - ratio) / (1 - last) if last < 1 else 1.0) for mark, ratio in zip(marks, at, strict=True)]


def best_of(records: Sequence[ConvRecord]) -> list[tuple[ConvRecord, int]]:
    """Of each layer that was measured alone the record of the least ratio, and how many points it had."""
    by_shape: dict[Any, list[ConvRecord]] = {}
    for record in records:
        if record.where == "alone":
            by_shape.setdefault(record.shape, []).append(record)
    return [(min(alike, key=lambda record: record.ratio), len(alike)) for alike in by_shape.values()]


def text(found: Found) -> str:
    """The tables."""
    rows = [
        f"| {engine} | {value:.2f} | {value / found.milliseconds[TUNED]:.2f} |" for engine, value in found.milliseconds.items()
    ]
    net = ["| engine | ms | by the tuned net's |", "| --- | --- | --- |", *rows]
    points = ["| seconds | sum of convs, by the rule's | share of the gain |", "| --- | --- | --- |"]
    points += [f"| {seconds:.0f} | {ratio:.3f} | {share:.0%} |" for seconds, ratio, share in curve(found.steps)]
    best = best_of(found.records)
    layers = ["| layer | points | best, by the rule's | which |", "| --- | --- | --- | --- |"]
    layers += [f"| {record.shape.mark} | {count} | {record.ratio:.3f} | {record.point} |" for record, count in best]
    ratios = [record.ratio for record, _ in best if 0 < record.ratio < math.inf]
    mean = math.exp(-float(np.mean(np.log(ratios)))) if ratios else 1.0
    result = found.result
    said = f"{result.measured} measurements, {result.failed} failed; layers alone: {mean:.2f} times as fast (geometric mean)."
    parts = ["\n".join(net), said, "## The curve", "\n".join(points), "## Layers, alone", "\n".join(layers)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--net", default=A0, help="A0, or an ONNX file")
    parser.add_argument("--target", default="llvm -num-cores 1")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the search")
    parser.add_argument("--records", type=Path, help="the folder of the records; what it holds already counts")
    parser.add_argument("--turns", type=int, default=15, help="of each engine")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    torch.set_num_threads(1)
    resolved = resolve(options.target)
    found = search(options.net, options.target, options.seconds, options.records, options.turns)
    about = page.facts(
        " ".join(["python -m benchmarks.tuning", *(sys.argv[1:] if arguments is None else arguments)]),
        cpu=f"{page.processor()}, {len(os.sched_getaffinity(0))} cores",
        target=describe(resolved),
        **({"device": device_here().name} if resolved.kind.name == "opencl" else {}),
        versions=page.versions("torch", "onnxruntime", "apache-tvm", "numpy", "xgboost-cpu"),
        took=f"{time.perf_counter() - start:.0f} s",
    )
    body = text(found)
    print(body)
    if options.output:
        record = {**about, "milliseconds": found.milliseconds, "curve": curve(found.steps), "measured": found.result.measured}
        record["layers"] = [
            [record.shape.mark, count, record.ratio, str(record.point)] for record, count in best_of(found.records)
        ]
        page.write(options.output, page.head(f"{options.net}, tuned", about) + body, json.loads(json.dumps(record)))


if __name__ == "__main__":
    main()
