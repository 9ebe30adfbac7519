"""Trials of a fuzzer: a valid file of each kind that the package reads, made wrong in one way, and read by all that reads it.

    trial = Trial(12)
    trial.subject, trial.mutation       ("onnx", "cycle"), the same whenever it is asked for
    outcome(trial)                      worked, refused or a fault

What is refused must be a typed error with words; whatever else is raised is a fault, and so are another output than the
model's, a pickle that ran, and more than ten seconds.
"""

import contextlib
import gzip
import io
import json
import random
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from torch import nn

import reparam_compiler
from reparam_compiler.checking.onnx_runtime import random_inputs
from reparam_compiler.errors import InfeasiblePruneError, ReparamError, VerificationError
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.frontends.onnx.frontend import unset_inputs
from reparam_compiler.frontends.onnx.node_runner import FAILURES
from reparam_compiler.frontends.onnx.shapes.inference import opset_of
from reparam_compiler.ir import ops
from reparam_compiler.lowering.runtime import archive
from reparam_compiler.lowering.runtime.executable import described
from reparam_compiler.lowering.search.folders import of_shared, summaries
from reparam_compiler.lowering.search.records import CONVS, REST, check_readable, read_rest
from reparam_compiler.lowering.search.shared import SHIPPED, read_shared
from reparam_compiler.models.calibration import batches
from reparam_compiler.models.io import load_model
from reparam_compiler.models.opening import open
from reparam_compiler.passes.pruning.manifest import KeptParam, Manifest
from tests.support import fuzz_onnx
from tests.support.fuzz_files import BYTES, JSON, ZIP, Canary, a_pickle_ran, in_bytes, in_json, zipped
from tests.support.fuzz_seeds import SEEDS

SECONDS = 10.0
"""Of CPU, that a trial may take."""
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
"""Two float32 nets of unit weights; half precision is compared by `fuse` itself."""
JUDGED = 14
"""The opset from which on the reference evaluator can be the judge: older norms it trains (`findings/`)."""
ARITHMETIC = frozenset(
    {"nothing", "not a number", "negative variance", "overflow when folded", "renamed everywhere", "other rank"}
)
"""Mutations of which many models run, so that their outputs are worth a comparison in the reference evaluator."""


class WrongError(Exception):
    """Another output than the model's, or a pickle that ran."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a trial: worked, refused or fault. words: the error, with its class. seconds: of CPU."""

    name: str
    found: str
    words: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One input; all of it follows from its number."""

    number: int

    @property
    def subject(self) -> str:
        return TURNS[self.number % len(TURNS)]

    @property
    def mutation(self) -> str:
        names = SUBJECTS[self.subject].mutations
        return names[self.number // len(TURNS) % len(names)]

    @property
    def name(self) -> str:
        return f"{self.subject}, {self.mutation}, {self.number}"


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of file. mutations: their names. read: makes one wrong in a folder, by a name of them, and reads it."""

    mutations: tuple[str, ...]
    read: Callable[[random.Random, str, Path], None]


def outcome(trial: Trial) -> Result:
    """One trial in this process."""
    start = time.process_time()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of what a model lacks, and of numpy on numbers out of range
        place = Path(folder) / "model"
        place.mkdir()
        found, words = _became(trial, place)
    seconds = time.process_time() - start
    if seconds > SECONDS and found != "fault":
        found, words = "fault", f"TooSlow: {seconds:.0f} s; {words}"
    return Result(trial.name, found, words, round(seconds, 3))


def _became(trial: Trial, folder: Path) -> tuple[str, str]:
    a_pickle_ran()
    try:
        SUBJECTS[trial.subject].read(random.Random(trial.number), trial.mutation, folder)
        found, words = "worked", ""
    except VerificationError as error:
        found, words = _said(error, "fault" if trial.mutation in fuzz_onnx.STAYS_VALID else "refused")
    except ReparamError as error:
        found, words = _said(error, "refused" if len(str(error)) > 20 else "fault")
    except BaseException as error:  # noqa: BLE001 - whatever else is raised is what is looked for
        found, words = _said(error, "fault")
    return ("fault", f"a pickle ran; {words}") if a_pickle_ran() else (found, words)


def _said(error: BaseException, found: str) -> tuple[str, str]:
    return found, f"{type(error).__name__}: {error}"


def _onnx(draw: random.Random, mutation: str, folder: Path) -> None:
    """As a file or in memory."""
    model = fuzz_onnx.mutated(draw, SEEDS[draw.choice(sorted(SEEDS))](), mutation)
    if draw.random() < 0.5:
        _through_verbs(model, mutation in ARITHMETIC)
    else:
        _from_file(folder, model.SerializeToString(), mutation)


def _onnx_bytes(draw: random.Random, mutation: str, folder: Path) -> None:
    model = SEEDS[draw.choice(sorted(SEEDS))]()
    _from_file(folder, in_bytes(draw, model.SerializeToString(), mutation), mutation)


def _from_file(folder: Path, content: bytes, mutation: str) -> None:
    path = folder / "model.onnx"
    path.write_bytes(content)
    for data in (folder / "weights.bin", folder.parent / "weights.bin"):
        data.write_bytes(bytes(64))
    _through_verbs(load_model(path), mutation in ARITHMETIC)


def _through_verbs(model: ModelProto, compare: bool) -> None:
    """Inspects, fuses, prunes and saves a model; `compare` also runs the fused one beside it in the reference evaluator."""
    reparam_compiler.inspect(model)
    fused = reparam_compiler.fuse(model)
    if compare:
        _same(model, fused)
    try:
        pruned = reparam_compiler.prune(model, ratio=0.4, round_to=1)
    except InfeasiblePruneError:
        pruned = fused
    with tempfile.TemporaryDirectory() as folder:
        onnx_io.save(pruned, Path(folder) / "result.onnx")


def _same(model: ModelProto, fused: ModelProto) -> None:
    """Raises WrongError where the reference evaluator runs the model, and has something else for the fused one."""
    inputs = random_inputs(model)
    if inputs is None or opset_of(model) < JUDGED:
        return
    feeds = {value.name: array for value, array in zip(unset_inputs(model), inputs, strict=True)}
    try:
        with np.errstate(all="ignore"):
            expected = ReferenceEvaluator(model).run(None, feeds)
    except FAILURES:
        return
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(fused).run(None, feeds)
    for one, other in zip(expected, found, strict=True):
        if one.dtype == np.float32 and np.isfinite(one).all() and not np.allclose(one, other, **CLOSE):
            raise WrongError(f"the fused model is off by {np.abs(one - other).max():.3g} of {np.abs(one).max():.3g}")


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.one(x)) + self.other(x)))


@cache
def _program() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(_Net().eval(), (torch.randn(2, 3, 5, 4),)), buffer)
    return buffer.getvalue()


def _pt2(draw: random.Random, mutation: str, folder: Path) -> None:
    """The bytes of the archive, its members, or the JSON in them."""
    content = _program()
    if mutation in BYTES:
        content = in_bytes(draw, content, mutation)
    elif mutation in ZIP:
        content = zipped(draw, content, mutation)
    else:
        content = _with_other_json(draw, content, mutation)
    path = folder / "model.pt2"
    path.write_bytes(content)
    reparam_compiler.fuse(load_model(path))


def _with_other_json(draw: random.Random, content: bytes, mutation: str) -> bytes:
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    records = {str(name): reader.get_record(name) for name in reader.get_all_records()}
    name = draw.choice([name for name in records if name.endswith(".json")])
    records[name] = json.dumps(in_json(draw, json.loads(records[name]), mutation)).encode()
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for each, data in records.items():
        writer.write_record(each, data, len(data))
    writer.write_end_of_file()
    return buffer.getvalue()


ABOUT: Mapping[str, Any] = {
    "magic": archive.MAGIC,
    "format": archive.FORMAT,
    "versions": {"numpy": "2"},
    "any_batch": False,
    "arrays": [{"dtype": "float32", "shape": [3, 5]}],
    "weights": [{"stored": 0, "dtype": "float64", "shape": [5, 3], "packing": None, "arguments": {}}],
    "variants": [
        {
            "target": '{"kind": "llvm", "mtriple": "aarch64-linux-gnu"}',
            "inputs": [{"name": "x", "shape": [1, 3], "dtype": "float32"}],
            "outputs": [{"name": "y", "shape": [1, 5], "dtype": "float32"}],
            "kernels": [{"name": "conv", "algorithm": "direct", "flops": 90, "error": 1e-7, "layer": "3x5"}],
            "memory": {"peak": 1, "bound": 1, "planned": 1, "scratch": 0, "weights": 60},
            "weights": [0],
            "chosen_by": "rule",
            "seconds": None,
        }
    ],
}
"""The manifest of an artifact; the library beside it is none, for no code of a file that was changed is to run."""


def _artifact(draw: random.Random, mutation: str, folder: Path) -> None:
    """The bytes of an archive or of a library, a manifest that was sealed again, or a member that is no plain file."""
    path = folder / "model.tar"
    manifest = in_json(draw, dict(ABOUT), mutation)
    library, weights = b"\x7fELF library", np.arange(15, dtype=np.float32).reshape(3, 5)
    if mutation == "member of another kind":
        path.write_bytes(_tar(draw, manifest))
    elif draw.random() < 0.5 or not isinstance(manifest, dict):
        sealed = archive.MARK + b"\n" + b"0" * archive.DIGITS + b"\n" + json.dumps(manifest).encode() + b"\0"
        archive.write_library(path, [library + sealed], [weights.T.astype(np.float64)])  # as the variant has them
    else:
        archive.write_tar(path, [library], manifest, [weights])
    path.write_bytes(in_bytes(draw, path.read_bytes(), mutation))
    described(archive.read(path), path)


def _tar(draw: random.Random, manifest: Mapping[str, Any]) -> bytes:
    """An archive whose members are links, devices, folders, far outside, or larger than they are stored."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=draw.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as writer:
        for name, content in {archive.MANIFEST: json.dumps(manifest).encode(), archive.LIBRARY: b"library"}.items():
            entry = tarfile.TarInfo(draw.choice([name, name, name, f"../{name}", f"/{name}"]))
            entry.size = draw.choice([len(content), len(content), 0, 10**6])
            entry.type = draw.choice([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
            entry.linkname = draw.choice(["/etc/hostname", name, ".."])
            if draw.random() < 0.3:
                entry.type, entry.pax_headers = tarfile.REGTYPE, _sparse(2**50)
            writer.addfile(entry, io.BytesIO(content + bytes(10**6)))
    return buffer.getvalue()


def _sparse(size: int) -> dict[str, str]:
    """The headers of a member that says that it is so large, and mostly holes."""
    sizes = {"GNU.sparse.size": str(size), "GNU.sparse.realsize": str(size)}
    return {**sizes, "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1", "GNU.sparse.numblocks": "1"}


@cache
def _shipped() -> list[bytes]:
    """The lines of a file of shared records, with the first that says where they are from."""
    return gzip.decompress(sorted(SHIPPED.glob("*.gz"))[0].read_bytes()).splitlines()[:12]


def _records(draw: random.Random, mutation: str, folder: Path) -> None:
    """A folder that a search kept, and a file of shared records."""
    lines = [json.loads(line) for line in _shipped()]
    about, *records = lines
    kept = [
        {**{key: record[key] for key in ("shape", "point", "against")}, "epilogue": [], "target": about["family"],
         "where": "net", "seconds": [1.0], "beside": [1.2], "failure": ""} for record in records
    ]  # fmt: skip
    rest = [{"function": 1, "name": "f", "target": "llvm", "rule": 1.0, "found": 0.5}]
    for name, content in ((CONVS, kept), (REST, rest)):
        (folder / name).write_bytes(_changed(draw, content, mutation))
    shared = folder / "shared.jsonl.gz"
    packed = gzip.compress(_changed(draw, lines, mutation))
    shared.write_bytes(in_bytes(draw, packed, mutation) if draw.random() < 0.3 else packed)
    refused: list[ReparamError] = []
    for read in (lambda: summaries(check_readable(folder)), lambda: read_rest(folder), lambda: of_shared(read_shared(shared))):
        try:
            str(read())
        except ReparamError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _changed(draw: random.Random, lines: list[Any], mutation: str) -> bytes:
    if mutation in JSON:
        lines = [in_json(draw, line, mutation) if draw.random() < 0.3 else line for line in lines]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return in_bytes(draw, content, mutation)


@cache
def _pruned() -> tuple[nn.Module, tuple[torch.Tensor], str]:
    """A net, its example inputs, and the manifest of what was cut of it."""
    net, examples = _Net().eval(), (torch.randn(1, 3, 5, 4),)
    _, report = reparam_compiler.prune(net, examples, ratio=0.4, round_to=1, return_report=True)
    return net, examples, report.manifest.to_json()


def _manifest(draw: random.Random, mutation: str, folder: Path) -> None:
    """As it is, or sealed again, so that what it says is looked at."""
    net, examples, text = _pruned()
    found = in_json(draw, json.loads(text), mutation)
    content = json.dumps(_sealed(found) if draw.random() < 0.8 else found)
    path = folder / "cut.json"
    path.write_bytes(in_bytes(draw, content.encode(), mutation))
    manifest = Manifest.load(path)
    manifest.to_text()
    reparam_compiler.apply_manifest(net, manifest, examples)


def _sealed(found: Any) -> Any:
    """A manifest with the hash of the names and shapes that it states, where it states some."""
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        params = {name: KeptParam(tuple(entry["before"]), {}) for name, entry in found["params"].items()}
        found["shapes_sha256"] = Manifest(params, {}, "").fingerprint
    return found


@cache
def _samples() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones((40, 3, 8, 7), np.float32), label=np.zeros(40, np.int64))
    return buffer.getvalue()


def _calibration(draw: random.Random, mutation: str, folder: Path) -> None:
    path = folder / "samples.npz"
    if mutation == "array of another kind":
        array = draw.choice(_ARRAYS)()
        np.savez(path, x=array) if draw.random() < 0.5 else np.save(path.with_suffix(".npy"), array, allow_pickle=True)
        path = path if path.exists() else path.with_suffix(".npy")
    elif mutation in BYTES:
        path.write_bytes(in_bytes(draw, _samples(), mutation))
    else:
        path.write_bytes(zipped(draw, _samples(), mutation))
    inputs = [node for node in open(SEEDS["classifier"]()).graph if isinstance(node.op, ops.Input)]
    for _ in batches(path, inputs):
        pass


_ARRAYS: tuple[Callable[[], Any], ...] = (
    lambda: np.array([Canary(), None], object),
    lambda: np.array([{"a": 1}], object),
    lambda: np.zeros(3, [("a", np.float32), ("b", object)]),
    lambda: np.zeros((2, 3, 8, 7), "V8"),
    lambda: np.array(["a", "b"]),
    lambda: np.zeros((2, 3, 8, 7), np.complex64),
    lambda: np.zeros((0, 3, 8, 7), np.float32),
    lambda: np.zeros((), np.float32),
    lambda: np.full((2, 3, 8, 7), np.nan, np.float32),
    lambda: np.asfortranarray(np.ones((40, 3, 8, 7), np.float32)),
    lambda: np.zeros((2, 3, 8, 7), "datetime64[s]"),
)

SUBJECTS: Mapping[str, Subject] = {
    "onnx": Subject(tuple(fuzz_onnx.MUTATIONS), _onnx),
    "onnx bytes": Subject(tuple(BYTES), _onnx_bytes),
    "pt2": Subject((*BYTES, *ZIP, *JSON), _pt2),
    "artifact": Subject((*BYTES, *JSON, "member of another kind"), _artifact),
    "records": Subject((*BYTES, *JSON), _records),
    "manifest": Subject((*BYTES, *JSON), _manifest),
    "calibration": Subject((*BYTES, *ZIP, "array of another kind"), _calibration),
}
TURNS = (*["onnx"] * 11, *["onnx bytes"] * 3, "pt2", "artifact", "artifact", "records", "manifest", "calibration")
