"""The compiled model: run it, time it, save it to one file, load that file where neither torch nor onnx is.

    artifact = tar { manifest.json, model.so }

The manifest holds the format's version, input and output names, shapes and dtypes, the target, the versions of what
wrote it, and the SHA-256 of the library. Members are read by name and written only into a fresh folder of our own, so
an archive cannot write elsewhere; but a library is machine code: load only artifacts that you trust.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.target import is_gpu, missing_here, resolve

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Shaped

    Array = Shaped[np.ndarray, "..."]

FORMAT = 1
MAGIC = "reparam_compiler artifact"
MANIFEST, LIBRARY = "manifest.json", "model.so"
DEVICES = {"llvm": "cpu", "cuda": "cuda"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name in the model, its shape, its dtype as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {self.shape}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run, warm: each of `seconds` is the mean of `number` runs in a row."""

    seconds: tuple[float, ...]
    number: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def mean(self) -> float:
        return float(np.mean(self.seconds))

    @property
    def std(self) -> float:
        return float(np.std(self.seconds))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One function of the library, for reports: its name, and whether a recipe made it ("direct") or a general rule."""

    name: str
    algorithm: str


@dataclass(frozen=True, slots=True, eq=False)
class Executable:
    """A compiled model on a device. Made by `compile` and `load`.

    inputs, outputs: in the order in which `run` takes and gives them.
    target: the target as JSON, which `compile(target=…)` reads again.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: str
    kernels: tuple[Kernel, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    _library: Any = None
    _machine: Any = None
    _device: Any = None

    def run(self, *arrays: Any, **named: Any) -> "list[Array]":
        """Run the model once.

        Args:
            arrays: the inputs in order, as arrays or anything that numpy reads; or all of them by name.

        Returns: the outputs, flattened, in order.
        Raises: LoweringError where an input's count, name, shape or dtype is not the model's.
        """
        machine, device = self._ready()
        result = machine["main"](*self._tensors(arrays, named, device))
        return [np.array(leaf.numpy()) for leaf in _leaves(result)]

    def time(self, *arrays: Any, repeat: int = 10, number: int = 1, **named: Any) -> float:
        """Median seconds of one run, warm; random inputs where none are given."""
        return self.timing(*arrays, repeat=repeat, number=number, **named).median

    def timing(self, *arrays: Any, repeat: int = 10, number: int = 1, **named: Any) -> Timing:
        """`repeat` measurements of `number` runs each, after one run that is not counted."""
        if repeat < 1 or number < 1:
            raise LoweringError(f"time: found repeat={repeat}, number={number}; expected 1 or more of each")
        machine, device = self._ready()
        if not arrays and not named:
            arrays = tuple(filled(spec, "random") for spec in self.inputs)
        tensors = self._tensors(arrays, named, device)
        machine["main"](*tensors)
        measured = machine.time_evaluator("main", device, number=number, repeat=repeat)(*tensors)
        return Timing(tuple(float(seconds) for seconds in measured.results), number)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact to `path`, whole or not at all."""
        path = Path(path)
        if self._library is None:
            raise LoweringError(f"{path}: this Executable holds no library to save; make one with compile() or load()")
        if not path.parent.is_dir():
            raise LoweringError(f"{path}: the folder {path.parent} does not exist; make it first")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".reparam-") as folder:
            library = Path(folder) / LIBRARY
            if isinstance(self._library, bytes):  # loaded: the file's own, which TVM cannot export again
                library.write_bytes(self._library)
            else:
                export_library(self._library, library)
            manifest = {
                "magic": MAGIC,
                "format": FORMAT,
                "inputs": [asdict(spec) for spec in self.inputs],
                "outputs": [asdict(spec) for spec in self.outputs],
                "kernels": [asdict(kernel) for kernel in self.kernels],
                "target": self.target,
                "versions": self.versions,
                "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
            }
            text = json.dumps(manifest, indent=1, sort_keys=True).encode()
            whole = Path(folder) / "artifact"
            with tarfile.open(whole, "w", format=tarfile.PAX_FORMAT) as archive:
                entry = tarfile.TarInfo(MANIFEST)
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text))
                archive.add(library, LIBRARY, filter=_without_owner)
            whole.replace(path)

    def _ready(self) -> tuple[Any, Any]:
        if self._machine is None:
            target = resolve(self.target)
            reason = "this machine has no device for it" if is_gpu(target) else missing_here(target)
            raise LoweringError(
                f"run: this model is compiled for {target.kind.name}, and {reason}; "
                "save it and load it where it can run, or compile with target=None"
            )
        return self._machine, self._device

    def _tensors(self, arrays: Sequence[Any], named: dict[str, Any], device: Any) -> list[Any]:
        expected = "; ".join(map(str, self.inputs))
        if named:
            names = [spec.name for spec in self.inputs]
            if arrays or set(named) != set(names):
                found = ", ".join([*(f"position {i}" for i in range(len(arrays))), *sorted(named)])
                raise LoweringError(f"run: found inputs {found}; expected all in order or all by name: {expected}")
            arrays = [named[name] for name in names]
        if len(arrays) != len(self.inputs):
            raise LoweringError(f"run: found {len(arrays)} inputs; expected {len(self.inputs)}: {expected}")
        return [_tensor(array, spec, device) for array, spec in zip(arrays, self.inputs, strict=True)]


def filled(spec: TensorSpec, mode: str, seed: int = 0) -> "Array":
    """An array for one input: `random` (normal, or small integers), `ones` or `zeros`.

    Raises LoweringError for another mode.
    """
    dtype = np.dtype(spec.dtype)
    if mode == "ones":
        return np.ones(spec.shape, dtype)
    if mode == "zeros":
        return np.zeros(spec.shape, dtype)
    if mode != "random":
        raise LoweringError(f"fill mode: found {mode!r}; expected random, ones or zeros")
    source = np.random.default_rng(seed)
    if dtype.kind == "f":
        return np.asarray(source.standard_normal(spec.shape)).astype(dtype)
    return np.asarray(source.integers(0, 2, spec.shape)).astype(dtype)


def load(path: str | os.PathLike[str]) -> Executable:
    """The Executable that `save` wrote to `path`; needs tvm and numpy only.

    Raises: LoweringError where the file is missing, truncated, foreign, or written in a newer format.
    """
    path = Path(path)
    manifest, library = _read(path)
    specs = {
        side: tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in manifest[side])
        for side in ("inputs", "outputs")
    }
    kernels = tuple(Kernel(**kernel) for kernel in manifest["kernels"])
    target = resolve(manifest["target"])
    if not is_gpu(target) and (reason := missing_here(target)):
        raise LoweringError(f"{path}: the library in it cannot run here: {reason}. Compile the model again for this machine")
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        file = Path(folder) / LIBRARY
        file.write_bytes(library)
        try:
            with quiet():
                module = tvm.runtime.load_module(str(file))
        except (RuntimeError, OSError, ValueError) as refusal:
            raise LoweringError(
                f"{path}: the library in it cannot be loaded here: {_first_line(refusal)}. It was compiled for "
                f"{manifest['target']}; compile it again for this machine"
            ) from refusal
    made = assemble(module, specs["inputs"], specs["outputs"], manifest["target"], kernels, manifest["versions"])
    return replace(made, _library=library)


def assemble(
    library: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    target: str,
    kernels: tuple[Kernel, ...],
    versions: dict[str, str],
) -> Executable:
    """An Executable over `library`, on this machine's device of the target's kind where there is one that can run it."""
    kind = json.loads(target)["kind"]
    device = tvm.device(DEVICES[kind], 0)
    machine = None
    if device.exist and not (kind == "llvm" and missing_here(resolve(target))):
        with quiet():
            machine = VirtualMachine(library, device)
    return Executable(inputs, outputs, target, kernels, versions, library, machine, device)


def export_library(library: Any, path: Path) -> None:
    """Link `library` into a shared object.

    Raises: LoweringError where no C++ compiler is found or linking fails.
    """
    try:
        with quiet():
            library.export_library(str(path))
    except (RuntimeError, OSError, ValueError) as refusal:
        raise LoweringError(
            f"save: linking the library failed: {_first_line(refusal)}. A C++ compiler (g++ or clang++) must be on PATH"
        ) from refusal


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop the lines that TVM's C++ side prints on stderr while it saves and loads a module ("Scope Saving: …").

    They come from the library's own logger at warning level, below Python; what anything else writes passes.
    """
    os_stderr = 2
    with tempfile.TemporaryFile() as caught:
        try:
            saved = os.dup(os_stderr)
        except OSError:  # no stderr at all: nothing to quiet
            yield
            return
        try:
            os.dup2(caught.fileno(), os_stderr)
            yield
        finally:
            os.dup2(saved, os_stderr)
            os.close(saved)
            caught.seek(0)
            kept = [line for line in caught.read().splitlines(keepends=True) if not _is_noise(line)]
            if kept:
                os.write(os_stderr, b"".join(kept))


NOISE = (
    b"Scope Saving:",
    b"Scope Loaded:",
    b"Unable to detect CUDA version",
    b"Unknown schedule rule",
    b"  s_tir.meta_schedule.cpu.meta_schedule.",
)


def _is_noise(line: bytes) -> bool:
    return not line.strip() or any(mark in line for mark in NOISE)


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    advice = "expected a file that Executable.save or `tvmc compile` wrote; write it again"
    if not path.is_file():
        raise LoweringError(f"{path}: no such file; {advice}")
    try:
        with tarfile.open(path, "r:") as archive:
            manifest = json.loads(_member(archive, MANIFEST))
            if not isinstance(manifest, dict) or manifest.get("magic") != MAGIC:
                raise LoweringError(f"{path}: found an archive of something else; {advice}")
            if manifest["format"] > FORMAT:
                raise LoweringError(
                    f"{path}: found format {manifest['format']}, written by {manifest.get('versions')}; this version "
                    f"reads up to {FORMAT}. Upgrade reparam_compiler, or compile the model again"
                )
            library = _member(archive, LIBRARY)
    except (tarfile.TarError, EOFError, KeyError, TypeError, ValueError) as refusal:
        raise LoweringError(f"{path}: found a truncated or foreign file ({_first_line(refusal)}); {advice}") from refusal
    if hashlib.sha256(library).hexdigest() != manifest.get("sha256"):
        raise LoweringError(f"{path}: the library in it is damaged (its SHA-256 is not the manifest's); {advice}")
    return manifest, library


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    entry = archive.getmember(name)
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise tarfile.ReadError(f"{name} is no regular file")
    data = content.read()
    if len(data) != entry.size:
        raise tarfile.ReadError(f"{name} ends after {len(data)} of {entry.size} bytes")
    return data


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tvm.runtime.Tensor):
        yield value
    else:
        for part in value:
            yield from _leaves(part)


def _tensor(array: Any, spec: TensorSpec, device: Any) -> Any:
    if hasattr(array, "detach"):  # a torch tensor, without importing torch
        array = array.detach().cpu().numpy()
    found = np.asarray(array)
    if found.shape != spec.shape:
        raise LoweringError(f"{spec.name}: found shape {found.shape}; expected {spec.shape}")
    if str(found.dtype) != spec.dtype:
        raise LoweringError(
            f"{spec.name}: found dtype {found.dtype}; expected {spec.dtype}. Convert it: array.astype({spec.dtype!r})"
        )
    return tvm.runtime.tensor(np.ascontiguousarray(found), device)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
