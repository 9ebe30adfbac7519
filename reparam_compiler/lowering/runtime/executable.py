"""The compiled model: run it, time it, save it to one file, load that file where neither torch nor onnx is.

    compile -> Executable -> save: model.tar, or model.so -> load -> Executable -> run

It holds variants of one model (`variant`): one for each target and each batch that was asked for. What is in those files, and
how they are checked, is said in `archive`. A machine that only runs artifacts needs tvm and numpy, and no more.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.runtime import saving
from reparam_compiler.lowering.runtime.archive import ADVICE, NOT_WHOLE, Artifact, Format
from reparam_compiler.lowering.runtime.batches import joined, samples_in, split, worth_their_size
from reparam_compiler.lowering.runtime.description import Kernel, MemoryPlan, TensorSpec, TimedCall, Timing, filled
from reparam_compiler.lowering.runtime.instruction_sets import best_here, why_none_loads
from reparam_compiler.lowering.runtime.stored import Packing
from reparam_compiler.lowering.runtime.variant import Variant, as_array
from reparam_compiler.lowering.runtime.weights import Weight, all_packed, distinct

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, eq=False)
class Executable:
    """A compiled model on a device. Made by `compile` and `load`; any number of threads may run it at once.

    >>> x, y = TensorSpec("x", (1, 3, 8, 8), "float32"), TensorSpec("y", (1, 10), "float32")
    >>> described = Executable((Variant("llvm -mcpu=znver3", (x,), (y,)),))  # as a report has it: without a library to run
    >>> described.device, str(described.outputs[0]), described.runs_here
    ('cpu', 'y: float32 (1, 10)', False)

    variants: the kernels for each size, the smallest first, for the target that this machine takes.
    others: those for the other targets that the model was compiled for, which a file holds too.
    any_batch: whether `run` takes any number of samples; without, inputs have exactly the sizes of the one variant.
    listings: texts that `CompileOptions` asked for, by name; they are not saved.
    verified: whether `compile` ran it beside the model and both gave the same; not saved either.
    verification: how they were compared, or why not.
    """

    variants: tuple[Variant, ...]
    others: tuple[Variant, ...] = ()
    any_batch: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    listings: Mapping[str, str] = field(default_factory=dict)
    verified: bool = False
    verification: str = "it was not asked for"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the order in which `run` takes them; with the smallest batch where it takes any."""
        return self.variants[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """In the order in which `run` gives them; of those inputs."""
        return self.variants[0].outputs

    @property
    def target(self) -> str:
        """The target as JSON, which `compile(target=…)` reads again."""
        return self.variants[0].target

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets that the model was compiled for, the one that is taken first."""
        return tuple(dict.fromkeys(variant.target for variant in (*self.variants, *self.others)))

    def taking(self, target: str) -> "Executable":
        """The same with the kernels for another of `targets`, which can run only where the model was compiled.

        Raises: LoweringError where the model was not compiled for it.
        """
        if target not in self.targets:
            raise LoweringError(f"target: found {target!r}; it was compiled for {', '.join(self.targets)}")
        every = (*self.variants, *self.others)
        own = tuple(variant for variant in every if variant.target == target)
        return replace(self, variants=own, others=tuple(variant for variant in every if variant.target != target))

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Those for the smallest batch; `at` has the others'."""
        return self.variants[0].kernels

    @property
    def memory(self) -> MemoryPlan | None:
        """What a run needs, at the largest batch; None where it is not known."""
        return self.variants[-1].memory

    @property
    def batches(self) -> tuple[int, ...]:
        """How many samples each variant takes; none where a run takes inputs of one size alone."""
        return tuple(variant.batch for variant in self.variants) if self.any_batch else ()

    @property
    def pieces(self) -> tuple[int, ...]:
        """The batches that `run` puts any number together from: all but those that are slower a sample than a smaller one."""
        return worth_their_size({variant.batch: variant.seconds for variant in self.variants}) if self.any_batch else ()

    @property
    def runs_here(self) -> bool:
        """Whether this machine has the device and the instructions that the model is compiled for."""
        return self.variants[0].machines is not None

    @property
    def device(self) -> str:
        """The kind of device that the model is compiled for: "cpu", "cuda"."""
        return self.variants[0].backend.device_name

    @property
    def threads(self) -> int:
        """How many cores one run takes: what TVM_NUM_THREADS or OMP_NUM_THREADS says, else all, until `clone` says another."""
        return self.variants[0].ready().threads

    def at(self, batch: int) -> "Executable":
        """The kernels for one of the batches alone, over the same weights: an Executable of that size.

        Raises: LoweringError where the model was not compiled for it.
        """
        if batch not in self.batches:
            known = f"it was compiled for {self.batches}" if self.any_batch else "it was compiled for one size"
            raise LoweringError(f"batch: found {batch}; {known}")
        return replace(self, variants=(self.variants[self.batches.index(batch)],), others=(), any_batch=False)

    def run(self, *arrays: Any, **named: Any) -> "list[Array]":
        """Run the model once. Safe in any number of threads: as many runs at once as there are cores for, others wait.

        Where the model was compiled for any number of samples, they are run in `pieces`, the largest first; what is left over
        in the smallest one, filled up with its last sample, whose further outputs are dropped.

        Args:
            arrays: the inputs in order, as arrays or anything that numpy reads; or all of them by name.

        Returns: the outputs, flattened, in order.
        Raises: LoweringError where an input's count, name, shape or dtype is not the model's.
        """
        given = self._given(arrays, named)
        if not self.any_batch:
            return self.variants[0].run(given)
        self.variants[0].ready()
        samples = samples_in(given, self.inputs)
        of_size = dict(zip(self.batches, self.variants, strict=True))
        found = [of_size[size].run(piece) for size, piece in split(given, samples, self.pieces)]
        return joined(found, samples, self.outputs, self.batches[0])

    def clone(self, *, threads: int | None = None) -> "Executable":
        """Another Executable over the same libraries and weights, whose runs take another number of cores.

        `run` needs none to be called by several threads. With `threads=1` as many runs go on at once as there are cores.

        Args:
            threads: None is as many as of this one.

        Raises: LoweringError where `threads` is no positive number, or this machine cannot run the model.
        """
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise LoweringError(f"clone: found threads={threads!r}; expected 1 or more")
        return replace(self, variants=tuple(variant.clone(threads) for variant in self.variants))

    def time(self, *arrays: Any, repeat: int = 10, number: int = 1, **named: Any) -> float:
        """Median seconds of one run, warm; random inputs where none are given."""
        return self.timing(*arrays, repeat=repeat, number=number, **named).median

    def timing(self, *arrays: Any, repeat: int = 10, number: int = 1, end_to_end: bool = False, **named: Any) -> Timing:
        """`repeat` measurements of `number` runs each, after one run that is not counted.

        Of samples that are run in pieces, it is the sum over the pieces.

        Args:
            end_to_end: count the copies of inputs to the device and of outputs from it too.
        """
        if repeat < 1 or number < 1:
            raise LoweringError(f"time: found repeat={repeat}, number={number}; expected 1 or more of each")
        given = self._given(arrays, named) if arrays or named else self._random()
        if end_to_end:
            self.run(*given)
            return Timing(tuple(self._whole_run(given, number) for _ in range(repeat)), number)
        if not self.any_batch:
            return Timing(self.variants[0].measured(given, repeat, number), number)
        parts = list(split(given, samples_in(given, self.inputs), self.pieces))
        counts, one_of = Counter(size for size, _ in parts), dict(parts)
        measured = [
            [counts[size] * seconds for seconds in variant.measured(one_of[size], repeat, number)]
            for size, variant in zip(self.batches, self.variants, strict=True)
            if size in one_of
        ]
        return Timing(tuple(map(sum, zip(*measured, strict=True))) or (0.0,) * repeat, number)

    def with_machine(self, work: Callable[[Any, list[Any], Any], ResultT], arrays: Sequence[Any] = ()) -> ResultT:
        """What `work(machine, arguments, device)` gives: a virtual machine of its own, on a thread that runs models.

        The arguments are those of its `main`: the inputs, then the weights.

        Args:
            arrays: the inputs in order, of one of the batches; random ones of the smallest where none are given.

        Raises: LoweringError as `run`, and where the model was not compiled for that batch.
        """
        given = self._given(arrays, {}) if arrays else self._random()
        return self.fitting(given).variants[0].with_machine(work, given)

    def profiled(self, arrays: Sequence[Any], runs: int) -> list[list[TimedCall]]:
        """The kernels' calls of each of so many runs, in order; inputs as for `with_machine`."""
        given = self._given(arrays, {}) if arrays else self._random()
        return self.fitting(given).variants[0].profiled(given, runs)

    def fitting(self, arrays: Sequence[Any]) -> "Executable":
        """The kernels that run these inputs as they are: of their batch alone. Raises: LoweringError as `with_machine`."""
        if not self.any_batch:
            return self
        return self.at(samples_in(self._given(arrays, {}), self.inputs)) if arrays else self.at(self.batches[0])

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
        already, shall be linked otherwise, or one of its batches alone; or code for several targets shall be one library.
        """
        about, every = {"versions": self.versions, "any_batch": self.any_batch}, (*self.variants, *self.others)
        saving.save(Path(path), every, about, form=format, compiler=compiler, options=compiler_options)

    def _whole_run(self, arrays: Sequence[Any], number: int) -> float:
        """Mean seconds of a run, from arrays to arrays."""
        start = time.perf_counter()
        for _ in range(number):
            self.run(*arrays)
        return (time.perf_counter() - start) / number

    def _random(self) -> "list[Array]":
        return [filled(spec, "random") for spec in self.inputs]

    def _given(self, arrays: Sequence[Any], named: dict[str, Any]) -> "list[Array]":
        """The inputs in order, as numpy has them."""
        expected = "; ".join(map(str, self.inputs))
        if named:
            names = [spec.name for spec in self.inputs]
            if arrays or set(named) != set(names):
                found = ", ".join([*(f"position {i}" for i in range(len(arrays))), *sorted(named)])
                raise LoweringError(f"run: found inputs {found}; expected all in order or all by name: {expected}")
            arrays = [named[name] for name in names]
        if len(arrays) != len(self.inputs):
            raise LoweringError(f"run: found {len(arrays)} inputs; expected {len(self.inputs)}: {expected}")
        return [as_array(value, spec) for value, spec in zip(arrays, self.inputs, strict=True)]


def from_artifact(artifact: Artifact, path: Path) -> Executable:
    """The Executable of what a file holds. path: of that file, for errors.

    Raises: LoweringError where the manifest is not whole, or this machine cannot load the library.
    """
    made = described(artifact, path)
    if reason := why_none_loads(made.targets):
        raise LoweringError(f"{path}: the library in it cannot run here: {reason}. Compile the model again for this machine")
    if made.others:
        log.info("%s: of the code for %d targets that for %s is taken", path, len(made.targets), made.target)
    own = distinct(weight for variant in made.variants for weight in variant.weights)
    ready = dict(zip(map(id, own), all_packed(own, made.variants[0].backend.packings), strict=True))
    variants = (replace(each, weights=tuple(ready[id(weight)] for weight in each.weights)) for each in made.variants)
    return replace(made, variants=tuple(variant.made_ready(_loaded(variant, path)) for variant in variants))


def described(artifact: Artifact, path: Path) -> Executable:
    """What a file holds, nothing of it loaded, taking what this machine would run best. path: as for `from_artifact`.

    Raises: LoweringError where the manifest is not whole.
    """
    manifest = artifact.manifest
    try:
        weights = _weights(artifact)
        variants = [
            _described(entry, library, weights) for entry, library in zip(manifest["variants"], artifact.libraries, strict=True)
        ]
        return executable_of(variants, bool(manifest["any_batch"]), dict(manifest["versions"]))
    except NOT_WHOLE as refusal:
        raise LoweringError(f"{path}: the manifest in it is not whole ({refusal!r}); {ADVICE}") from refusal


def executable_of(
    variants: Sequence[Variant], any_batch: bool, versions: dict[str, str], listings: Mapping[str, str] | None = None
) -> Executable:
    """An Executable of variants, which takes those for the target that this machine runs best."""
    targets = list(dict.fromkeys(variant.target for variant in variants))
    whole = Executable(tuple(variants), (), any_batch, versions, listings or {})
    return whole.taking(targets[best_here(targets)])


def _weights(artifact: Artifact) -> list[Weight]:
    """The weights that a file holds, not yet packed. Raises: KeyError, TypeError, ValueError, IndexError where it does not."""
    found = []
    for place, entry in enumerate(artifact.manifest["weights"]):
        packing = None if entry["packing"] is None or artifact.packed else Packing(entry["packing"], entry["arguments"])
        array = artifact.arrays[place if artifact.packed else entry["stored"]]
        found.append(Weight(array, packing, tuple(entry["shape"]), str(entry["dtype"])))
    return found


def _described(entry: Mapping[str, Any], library: bytes, weights: Sequence[Weight]) -> Variant:
    """The variant that a manifest describes. Raises: KeyError, TypeError, ValueError, IndexError where it is not whole."""
    known = {each.name for each in fields(Kernel)}
    inputs, outputs = (
        tuple(TensorSpec(spec["name"], tuple(spec["shape"]), spec["dtype"]) for spec in entry[side])
        for side in ("inputs", "outputs")
    )
    kernels = tuple(Kernel(**{key: kernel[key] for key in kernel if key in known}) for kernel in entry["kernels"])
    memory = MemoryPlan(**entry["memory"]) if entry.get("memory") else None
    own = tuple(weights[place] for place in entry["weights"])
    about = (str(entry["target"]), inputs, outputs, kernels, memory, str(entry.get("chosen_by", "")), entry.get("seconds"))
    return Variant(*about, library=library, weights=own)


def _loaded(variant: Variant, path: Path) -> Any:
    """The library of a variant, loaded. Raises: LoweringError where this machine cannot."""
    try:
        return variant.backend.loaded(variant.library)
    except (RuntimeError, OSError, ValueError) as refusal:
        raise LoweringError(
            f"{path}: the library in it cannot be loaded here: {first_line(refusal)}. It was compiled for "
            f"{variant.target}; compile it again for this machine"
        ) from refusal
