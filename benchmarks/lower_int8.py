"""Quantized nets, compiled by us and in ONNX Runtime, beside the nets that they were quantized from.

    python -m benchmarks.lower_int8 [-o benchmarks/results/lower-int8.md] [--only NET …] [--threads 1 2] [--seconds 12]

Nets      RepVGG-A0, fused; ResNet-50 and MobileNetV2 of timm; random weights and statistics, 224 x 224, batch 1
Bytes     by onnxruntime.quantization: QDQ, weights signed and by channel, activations of either sign, on two images of noise
Timing    as `lower_zoo.py` has it: each engine in a process of its own, taking turns; medians
Errors    the largest difference from ONNX Runtime over the largest output: one byte's step, where a sum lies between two
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

import reparam_compiler
from benchmarks import lower_zoo, page
from benchmarks.lower_engines import ONNX_RUNTIME, OURS
from reparam_compiler.zoo import repvgg_a0
from tests.support import foreign_models

FLOATS = "float32"
KINDS: Mapping[str, QuantType | None] = {FLOATS: None, "unsigned": QuantType.QUInt8, "signed": QuantType.QInt8}
"""What activations are."""
IMAGES = 2


class Noise(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    """Images that the ranges of activations are measured on."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        source = np.random.default_rng(2)
        self.images = iter([{name: source.standard_normal(shape).astype(np.float32)} for _ in range(IMAGES)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one."""
        return next(self.images, None)


def fused_a0() -> nn.Module:
    """RepVGG-A0 as it is deployed."""
    fused: nn.Module = reparam_compiler.fuse(foreign_models.randomised(repvgg_a0()).eval())
    return fused


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "RepVGG-A0": fused_a0,
    "resnet50": lambda: foreign_models.timm().create_model("resnet50"),
    "mobilenetv2_100": lambda: foreign_models.timm().create_model("mobilenetv2_100"),
}


def written(make: Callable[[], nn.Module], kind: QuantType | None) -> Callable[[Path, int], np.ndarray]:
    """Writes a net as ONNX, quantized where a kind of activations is given, and gives images for it."""

    def write(path: Path, batch: int) -> np.ndarray:
        x = lower_zoo.exported(make)(path, batch)
        if kind is not None:
            name = onnx.load(path).graph.input[0].name
            options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "weight_type": QuantType.QInt8}
            quantize_static(path, path, Noise(name, x.shape), activation_type=kind, **options)
        return x

    return write


def nets(names: Sequence[str]) -> list[lower_zoo.Net]:
    """Each of the nets in each of the kinds."""
    return [lower_zoo.Net(f"{name}, {kind}", False, written(NETS[name], KINDS[kind])) for name in names for kind in KINDS]


def text(results: lower_zoo.Results) -> str:
    """A table for each number of threads, and how ours was built."""
    rows = {(row.subject, row.engine, row.threads): row for _, row in results.rows}
    parts = []
    for threads in sorted({row.threads for _, row in results.rows}):
        lines = [
            "| net, activations | ONNX Runtime, ms | ours, ms | times as fast | as our float32 | error |",
            "|" + " --- |" * 6,
        ]
        for subject in dict.fromkeys(row.subject for _, row in results.rows):
            theirs, ours = (rows[subject, engine, threads] for engine in (ONNX_RUNTIME, OURS))
            floats = rows[f"{subject.rpartition(',')[0]}, {FLOATS}", OURS, threads]
            if theirs.milliseconds is None or ours.milliseconds is None or floats.milliseconds is None:
                lines.append(f"| {subject} | {theirs.reason} | {ours.reason} | | | |")
                continue
            ratios = f"{theirs.milliseconds / ours.milliseconds:.2f} | {floats.milliseconds / ours.milliseconds:.2f}"
            lines.append(
                f"| {subject} | {theirs.milliseconds:.2f} | {ours.milliseconds:.2f} | {ratios} | {ours.relative_error:.1e} |"
            )
        parts.append(f"## {threads} thread{'s' * (threads > 1)}\n\n" + "\n".join(lines))
    lines = ["| net, activations | build, CPU s | artifact, MB |", "| --- | --- | --- |"]
    for name, built in results.built.items():
        cells = f"{built} | " if isinstance(built, str) else f"{built.seconds:.1f} | {built.artifact / 1e6:.1f}"
        lines.append(f"| {name} | {cells} |")
    return "\n\n".join([*parts, "## How ours was built", "\n".join(lines)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", default=list(NETS), choices=list(NETS), metavar="NET")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=12.0, help="of the turns of a net with one number of threads")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lower-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantize_static asks for what the nets do not need
        results = lower_zoo.measure(nets(options.only), [1], options.threads, options.seconds, Path(folder))
    about = page.facts(
        " ".join(["python -m benchmarks.lower_int8", *(sys.argv[1:] if arguments is None else arguments)]),
        cpu=f"{page.processor()}, {len(os.sched_getaffinity(0))} cores",
        versions=page.versions("torch", "timm", "onnxruntime", "apache-tvm", "numpy"),
        took=f"{time.perf_counter() - start:.0f} s",
    )
    body = text(results)
    print(body)
    if options.output:
        built = {name: found if isinstance(found, str) else asdict(found) for name, found in results.built.items()}
        record = {**about, "rows": [asdict(row) for _, row in results.rows], "built": built, "kernels": results.kernels}
        page.write(options.output, page.head("Quantized nets, compiled", about) + body, record)


if __name__ == "__main__":
    main()
