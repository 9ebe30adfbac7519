"""The compiled model: run it, time it, save it to one file, load that file where neither torch nor onnx is.

    compile -> Executable -> save: model.tar, or model.so -> load -> Executable -> run

What is in those files, and how they are checked, is said in `archive`. A machine that only runs artifacts needs tvm and
numpy, and no more.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tvm

from reparam_compiler.core.files import written_whole
from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.backend import Backend
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.runtime.archive import (
    ADVICE,
    FORMAT,
    FORMATS,
    LIBRARY,
    MAGIC,
    Artifact,
    Format,
    format_of,
    holds_manifest,
    manifest_source,
    write_library,
    write_tar,
)
from reparam_compiler.lowering.runtime.description import Kernel, MemoryPlan, TensorSpec, Timing, filled
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.runtime.launchers import default_threads
from reparam_compiler.lowering.runtime.linking import export_library
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.runtime.stored import aligned
from reparam_compiler.lowering.runtime.weights import Weight, all_packed
from reparam_compiler.lowering.target import resolve

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Shaped

    Array = Shaped[np.ndarray, "..."]

ResultT = TypeVar("ResultT")

CPU = int(tvm.cpu().dlpack_device_type())
PLAIN = frozenset(("float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))))
"""The dtypes that numpy gives and takes by DLPack."""


@dataclass(frozen=True, slots=True, eq=False)
class Executable:
    """A compiled model on a device. Made by `compile` and `load`; any number of threads may run it at once.

    >>> x, y = TensorSpec("x", (1, 3, 8, 8), "float32"), TensorSpec("y", (1, 10), "float32")
    >>> described = Executable((x,), (y,), target="llvm -mcpu=znver3")  # as a report has it: without a library to run
    >>> described.device, str(described.outputs[0]), described.runs_here
    ('cpu', 'y: float32 (1, 10)', False)

    inputs, outputs: in the order in which `run` takes and gives them.
    target: the target as JSON, which `compile(target=…)` reads again.
    memory: what a run needs; None where a size is symbolic, or an older version wrote the artifact.
    listings: texts that `CompileOptions` asked for, by name; they are not saved.
    verified: whether `compile` ran it beside the model and both gave the same; not saved either.
    verification: how they were compared, or why not.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: str
    kernels: tuple[Kernel, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    memory: MemoryPlan | None = None
    listings: Mapping[str, str] = field(default_factory=dict)
    verified: bool = False
    verification: str = "it was not asked for"
    _library: Any = field(default=None, repr=False)
    _weights: tuple[Weight, ...] = field(default=(), repr=False)
    _machines: Machines | None = field(default=None, repr=False)

    @property
    def runs_here(self) -> bool:
        """Whether this machine has the device and the instructions that the model is compiled for."""
        return self._machines is not None

    @property
    def device(self) -> str:
        """The kind of device that the model is compiled for: "cpu", "cuda"."""
        return self._backend.device_name

    def run(self, *arrays: Any, **named: Any) -> "list[Array]":
        """Run the model once. Safe in any number of threads: as many runs at once as there are cores for, others wait.

        Args:
            arrays: the inputs in order, as arrays or anything that numpy reads; or all of them by name.

        Returns: the outputs, flattened, in order.
        Raises: LoweringError where an input's count, name, shape or dtype is not the model's.
        """
        machines = self._ready()
        tensors = self._tensors(arrays, named, machines)
        return machines.call(lambda machine: _arrays(machine["main"](*tensors), machines.device))

    @property
    def threads(self) -> int:
        """How many cores one run takes: what TVM_NUM_THREADS or OMP_NUM_THREADS says, else all, until `clone` says another."""
        return self._ready().threads

    def clone(self, *, threads: int | None = None) -> "Executable":
        """Another Executable over the same library and weights, whose runs take another number of cores.

        `run` needs none to be called by several threads. With `threads=1` as many runs go on at once as there are cores.

        Args:
            threads: None is as many as of this one.

        Raises: LoweringError where `threads` is no positive number, or this machine cannot run the model.
        """
        machines = self._ready()
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise LoweringError(f"clone: found threads={threads!r}; expected 1 or more")
        return replace(self, _machines=machines.clone(threads or machines.threads))

    def time(self, *arrays: Any, repeat: int = 10, number: int = 1, **named: Any) -> float:
        """Median seconds of one run, warm; random inputs where none are given."""
        return self.timing(*arrays, repeat=repeat, number=number, **named).median

    def timing(self, *arrays: Any, repeat: int = 10, number: int = 1, end_to_end: bool = False, **named: Any) -> Timing:
        """`repeat` measurements of `number` runs each, after one run that is not counted.

        Args:
            end_to_end: count the copies of inputs to the device and of outputs from it too.
        """
        if repeat < 1 or number < 1:
            raise LoweringError(f"time: found repeat={repeat}, number={number}; expected 1 or more of each")
        if end_to_end:
            given = arrays if arrays or named else self._random()
            self.run(*given, **named)
            return Timing(tuple(self._whole_run(given, named, number) for _ in range(repeat)), number)
        machines = self._ready()
        tensors = self._tensors(arrays if arrays or named else self._random(), named, machines)

        def measured(machine: Any) -> Any:
            machine["main"](*tensors)
            return machine.time_evaluator("main", machines.device, number=number, repeat=repeat)(*tensors)

        return Timing(tuple(float(seconds) for seconds in machines.call(measured).results), number)

    def with_machine(self, work: Callable[[Any, list[Any], Any], ResultT], arrays: Sequence[Any] = ()) -> ResultT:
        """What `work(machine, arguments, device)` gives: a virtual machine of its own, on a thread that runs models.

        The arguments are those of its `main`: the inputs, then the weights.

        Args:
            arrays: the inputs in order; random ones where none are given.

        Raises: LoweringError as `run`.
        """
        machines = self._ready()
        tensors = self._tensors(arrays or self._random(), {}, machines)
        return machines.call_once(lambda machine: work(machine, tensors, machines.device))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: Format | None = None,
        compiler: str | None = None,
        compiler_options: Sequence[str] = (),
    ) -> None:
        """Write the artifact to `path`, whole or not at all.

        Args:
            format: "tar", or "so", one shared library; None goes by the suffix of `path`.
            compiler: the C++ compiler that links the library, such as "aarch64-linux-gnu-g++"; None is this machine's.
            compiler_options: what else it is given.

        Raises: LoweringError where the folder or a compiler is missing, linking fails, or a loaded library, which is linked
        already, shall be linked otherwise.
        """
        path = Path(path)
        form = format_of(path) if format is None else format
        if form not in FORMATS:
            raise LoweringError(f"{path}: found format {format!r}; expected one of {FORMATS}")
        if self._library is None:
            raise LoweringError(f"{path}: this Executable holds no library to save; make one with compile() or load()")
        if not path.parent.is_dir():
            raise LoweringError(f"{path}: the folder {path.parent} does not exist; make it first")
        with tempfile.TemporaryDirectory() as folder, written_whole(path) as whole:
            manifest = self._manifest()
            library = self._linked(Path(folder), manifest, compiler, compiler_options)
            if form == "tar":
                write_tar(whole, library, manifest, [weight.stored for weight in self._weights])
            elif holds_manifest(library):
                write_library(whole, library, [weight.value.numpy() for weight in self._weights])
            else:
                raise LoweringError(f"{path}: a library of format 1 does not describe itself; compile the model again")

    @property
    def _backend(self) -> Backend:
        return backend_for(resolve(self.target))

    def _manifest(self) -> dict[str, Any]:
        return {
            "magic": MAGIC,
            "format": FORMAT,
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "memory": None if self.memory is None else asdict(self.memory),
            "target": self.target,
            "versions": self.versions,
            "weights": [weight.described() for weight in self._weights],
        }

    def _linked(self, folder: Path, manifest: dict[str, Any], compiler: str | None, options: Sequence[str]) -> bytes:
        """The bytes of the library; linked anew where this Executable was compiled, the file's own where it was loaded."""
        if isinstance(self._library, bytes):  # TVM cannot export a loaded library again
            if compiler is not None or options:
                named = f"compiler={compiler!r}" if compiler is not None else f"compiler_options={list(options)!r}"
                raise LoweringError(f"save: found {named}, but the library is linked already; compile the model")
            return self._library
        library, source = folder / LIBRARY, folder / "manifest.cc"
        source.write_text(manifest_source(manifest))
        export_library(self._library, library, sources=(source,), compiler=compiler, options=options, target=self.target)
        return library.read_bytes()

    def _whole_run(self, arrays: Sequence[Any], named: dict[str, Any], number: int) -> float:
        """Mean seconds of a run, from arrays to arrays."""
        start = time.perf_counter()
        for _ in range(number):
            self.run(*arrays, **named)
        return (time.perf_counter() - start) / number

    def _random(self) -> "tuple[Array, ...]":
        return tuple(filled(spec, "random") for spec in self.inputs)

    def _ready(self) -> Machines:
        if self._machines is None:
            raise LoweringError(
                f"run: this model is compiled for {self._backend.kind}, and {self._backend.unrunnable_here()}; "
                "save it and load it where it can run, or compile with target=None"
            )
        return self._machines

    def _tensors(self, arrays: Sequence[Any], named: dict[str, Any], machines: Machines) -> list[Any]:
        """The arguments of `main`: the inputs on the device, then the weights."""
        expected = "; ".join(map(str, self.inputs))
        if named:
            names = [spec.name for spec in self.inputs]
            if arrays or set(named) != set(names):
                found = ", ".join([*(f"position {i}" for i in range(len(arrays))), *sorted(named)])
                raise LoweringError(f"run: found inputs {found}; expected all in order or all by name: {expected}")
            arrays = [named[name] for name in names]
        if len(arrays) != len(self.inputs):
            raise LoweringError(f"run: found {len(arrays)} inputs; expected {len(self.inputs)}: {expected}")
        given = [_tensor(array, spec, machines.device) for array, spec in zip(arrays, self.inputs, strict=True)]
        return [*given, *machines.weights]


def from_artifact(artifact: Artifact, path: Path) -> Executable:
    """The Executable of what a file holds. path: of that file, for errors.

    Raises: LoweringError where the manifest is not whole, or this machine cannot load the library.
    """
    manifest = artifact.manifest
    known = {entry.name for entry in fields(Kernel)}
    try:
        specs = {
            side: tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in manifest[side])
            for side in ("inputs", "outputs")
        }
        kernels = tuple(Kernel(**{key: kernel[key] for key in kernel if key in known}) for kernel in manifest["kernels"])
        written_for, written_by = str(manifest["target"]), dict(manifest["versions"])
        memory = MemoryPlan(**manifest["memory"]) if manifest.get("memory") else None
    except (KeyError, TypeError, ValueError) as refusal:
        raise LoweringError(f"{path}: the manifest in it is not whole ({refusal!r}); {ADVICE}") from refusal
    backend = backend_for(resolve(written_for))
    if reason := backend.unloadable_here():
        raise LoweringError(f"{path}: the library in it cannot run here: {reason}. Compile the model again for this machine")
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        file = Path(folder) / LIBRARY
        file.write_bytes(artifact.library)
        try:
            with filter_stderr():
                module = tvm.runtime.load_module(str(file))
        except (RuntimeError, OSError, ValueError) as refusal:
            raise LoweringError(
                f"{path}: the library in it cannot be loaded here: {first_line(refusal)}. It was compiled for "
                f"{written_for}; compile it again for this machine"
            ) from refusal
    weights = all_packed(artifact.weights, artifact.packings, backend.packings)
    made = assemble(module, specs["inputs"], specs["outputs"], written_for, kernels, written_by, weights)
    return replace(made, _library=artifact.library, memory=memory)


def assemble(
    library: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    target: str,
    kernels: tuple[Kernel, ...],
    versions: dict[str, str],
    weights: tuple[Weight, ...] = (),
) -> Executable:
    """An Executable over `library` and its weights, on this machine's device of the target's kind where one can run it."""
    backend = backend_for(resolve(target))
    machines = None
    if not backend.unrunnable_here():
        machines = Machines(library, backend.device(), default_threads(), [weight.value for weight in weights])
    described = (inputs, outputs, target, kernels, versions)
    return Executable(*described, _library=library, _weights=weights, _machines=machines)


def _arrays(result: Any, device: Any) -> "list[Array]":
    return [_array(leaf, device) for leaf in _leaves(result)]


def _array(tensor: Any, device: Any) -> "Array":
    """A copy of a tensor; through DLPack where numpy can, as TVM's own way takes ten times as long for a small one."""
    plain = _is_cpu(device) and str(tensor.dtype) in PLAIN
    return np.from_dlpack(tensor).copy() if plain else tensor.numpy()


def _is_cpu(device: Any) -> bool:
    return bool(device.dlpack_device_type() == CPU)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tvm.runtime.Tensor):
        yield value
    else:
        for part in value:
            yield from _leaves(part)


def _tensor(array: Any, spec: TensorSpec, device: Any) -> Any:
    try:
        if hasattr(array, "detach"):  # a torch tensor, without importing torch
            array = array.detach().cpu().numpy()
        found = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as refusal:  # bfloat16, sparse; a ragged list
        what = f"{type(array).__name__} of dtype {array.dtype}" if hasattr(array, "dtype") else type(array).__name__
        raise LoweringError(
            f"{spec.name}: numpy cannot hold the {what} that was found ({refusal}); expected {spec.dtype} {spec.shape}"
        ) from refusal
    if found.shape != spec.shape:
        raise LoweringError(f"{spec.name}: found shape {found.shape}; expected {spec.shape}")
    if str(found.dtype) != spec.dtype:
        raise LoweringError(
            f"{spec.name}: found dtype {found.dtype}; expected {spec.dtype}. Convert it: array.astype({spec.dtype!r})"
        )
    if _is_cpu(device) and spec.dtype in PLAIN and found.size:  # nothing is nowhere aligned
        return tvm.runtime.from_dlpack(aligned(found))
    return tvm.runtime.tensor(np.asarray(found, order="C"), device)  # ascontiguousarray raises the rank of a scalar
