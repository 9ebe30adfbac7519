"""The Python API of the old tvmc: `load`, `tune`, `compile`, `run`, and what they give.

    path --load--> TVMCModel --compile--> TVMCPackage --run--> TVMCResult
                       |  tune -> records ---^

The arguments that still mean something keep their names; the work is done by `reparam_compiler.compile`, `tune` and `load`.
"""

import logging
import shlex
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from reparam_compiler.core.files import check_place, written_whole
from reparam_compiler.errors import LoweringError, UnsupportedModelError
from reparam_compiler.tvmc.benchmark import Benchmark, Callers
from reparam_compiler.tvmc.benchmark import benchmark as benchmark_callers
from reparam_compiler.tvmc.options import GONE_FORMATS
from reparam_compiler.tvmc.words import ONE_SIZE

if TYPE_CHECKING:
    import numpy as np

    from reparam_compiler.api.report import FuseReport
    from reparam_compiler.lowering import CompileOptions, Executable, Rpc, SearchOptions, TensorSpec, TuneResult, TuneStep
    from reparam_compiler.lowering.runtime.profile import Profile

log = logging.getLogger(__name__)

FillMode = Literal["random", "ones", "zeros"]
Shapes = Mapping[str, Sequence[int]]
Target = str | Mapping[str, Any] | None
DEVICES = {"cl": "opencl"}
"""Kinds of device by the names that they had."""


@dataclass(frozen=True, slots=True, eq=False)
class TVMCModel:
    """A model that can be tuned and compiled.

    native: an onnx.ModelProto, an ExportedProgram or an nn.Module.
    shape_dict: the shapes of inputs that the model leaves open; under "" that of the only one.
    fuse: whether it is fused before anything else.
    """

    native: Any
    shape_dict: Shapes | None = None
    fuse: bool = True

    def summary(self, file: TextIO | None = None) -> None:
        """Write the Relax module that the model is imported as, unfused, to `file` or stdout."""
        from reparam_compiler.lowering.importing.importer import to_relax

        (file or sys.stdout).write(f"{to_relax(self.native, input_shapes=self.shapes()).module.script()}\n")

    def stated_shapes(self) -> dict[str, Sequence[int]]:
        """The shapes of `shape_dict`, by the names of the inputs."""
        from reparam_compiler.models.shapes import numbers
        from reparam_compiler.models.stated import named_shapes

        return dict(numbers(named_shapes(self.native, self.shape_dict or {}), ONE_SIZE))

    def shapes(self) -> dict[str, Sequence[int]]:
        """The same, and a batch of one where an ONNX model leaves the batch open; a log line says so."""
        from reparam_compiler.lowering.importing.from_onnx import open_batches

        given = self.stated_shapes()
        for name, shape in open_batches(self.native).items():
            if name not in given:
                sizes = ",".join(map(str, (8, *shape[1:])))
                log.warning(
                    "%s: the model leaves the batch open; 1 is taken. For 8: --input-shapes '%s:[%s]'; for any: --batches 1,8",
                    name,
                    name,
                    sizes,
                )
                given[name] = shape
        return given


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TVMCPackage:
    """A compiled model in a file.

    package_path: the artifact.
    executable: the same, loaded.
    fused: what `fuse` did to the model before, where that was asked for here and now.
    """

    package_path: str
    executable: "Executable"
    fused: "FuseReport | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class TVMCResult:
    """What a run gave.

    outputs: by the model's own names; `get_output` and the files that `save` writes know them as output_0, output_1 too.
    times: seconds of one run, one for each repeat; empty where nothing was measured.
    profile: the time of each kernel, where it was asked for.
    benchmark: what callers saw, where some were asked for.
    """

    outputs: "dict[str, np.ndarray[Any, Any]]"
    times: list[float] = field(default_factory=list)
    profile: "Profile | None" = None
    benchmark: "Benchmark | None" = None

    def get_output(self, name: str) -> "np.ndarray[Any, Any]":
        """One output, by its name or as output_0, output_1, …"""
        return self._named()[name]

    def save(self, output_path: str) -> None:
        """Write the outputs as an .npz, whole or not at all."""
        write_npz(Path(output_path), self._named())

    def statistics(self) -> dict[str, float]:
        """Milliseconds of one run: mean, median, max, min, std; empty where nothing was measured."""
        if not self.times:
            return {}
        import numpy as np

        values = np.asarray(self.times) * 1e3
        found = {
            "mean": values.mean(),
            "median": np.median(values),
            "max": values.max(),
            "min": values.min(),
            "std": values.std(),
        }
        return {name: float(value) for name, value in found.items()}

    def format_times(self) -> str:
        """The table that the old tvmc printed."""
        found = self.statistics()
        head = " ".join(f"{f'{name} (ms)':^12}" for name in found)
        return f"Execution time summary:\n{head}\n{' '.join(f'{value:^12.4f}' for value in found.values())}\n"

    def __str__(self) -> str:
        return f"{self.format_times()}\nOutput Names:\n {list(self.outputs)}"

    def _named(self) -> "dict[str, np.ndarray[Any, Any]]":
        by_position = {f"output_{index}": array for index, array in enumerate(self.outputs.values())}
        return by_position | self.outputs


def load(
    path: str,
    model_format: str | None = None,
    shape_dict: Shapes | None = None,
    *,
    fuse: bool = True,
    unsafe: bool = False,
) -> TVMCModel:
    """Read a model.

    Args:
        path: an .onnx, a .pt2, or package.module:factory.
        model_format: "onnx" or "pytorch"; None goes by the name.
        shape_dict: a shape for each input that the model leaves open.
        fuse: fuse it before it is tuned or compiled.
        unsafe: open pickles too: they can run any code.

    Raises: UnsupportedModelError where there is no such model or it cannot be read.
    """
    if model_format in GONE_FORMATS:
        raise UnsupportedModelError(
            f"{path}: TVM has no importer of {model_format} models any more; convert it to ONNX with "
            f"{GONE_FORMATS[model_format]}"
        )
    if model_format not in (None, "onnx", "pytorch"):
        raise UnsupportedModelError(f"{path}: found the model format {model_format!r}; expected onnx or pytorch")
    from reparam_compiler.models.io import load_model

    return TVMCModel(load_model(path, unsafe=unsafe, is_onnx=model_format == "onnx"), shape_dict, fuse)


def tune(
    tvmc_model: TVMCModel,
    target: Target = None,
    tuning_records: str | None = None,
    prior_records: str | None = None,
    *,
    trials: int = 1000,
    repeat: int = 5,
    number: int = 1,
    timeout: float = 30.0,
    early_stopping: int | None = None,
    min_repeat_ms: int = 0,
    parallel: int | None = None,
    rpc: "Rpc | None" = None,
) -> str:
    """Search better kernels, on this machine or on devices far away.

    Args:
        target: as for `compile`; it must be this machine's, or that of the devices.
        tuning_records: the folder of the records; None makes one, which stays.
        prior_records: the records of an earlier search, to start from.
        trials: measurements in all; `repeat`, `number`, `min_repeat_ms`, `timeout`: of each candidate.
        early_stopping: measurements without a gain, after which it ends. parallel: candidates that are built at once.
        rpc: devices far away that measure instead of this machine.

    Returns: the folder, for `compile(tuning_records=…)`.
    Raises: LoweringError as `reparam_compiler.tune`, and where there are prior records and others already.
    """
    folder = tuning_records or tempfile.mkdtemp(prefix="reparam-records-")
    from reparam_compiler import lowering

    options = lowering.SearchOptions(
        trials=trials,
        early_stopping=early_stopping,
        repeat=repeat,
        number=number,
        min_repeat_ms=min_repeat_ms,
        timeout=timeout,
        parallel=parallel,
    )
    measured(tvmc_model, target, folder, prior_records, options, rpc=rpc)
    return folder


def measured(
    model: TVMCModel,
    target: Target,
    folder: str,
    prior: str | None,
    options: "SearchOptions",
    *,
    rpc: "Rpc | None" = None,
    progress: bool = True,
    listener: "Callable[[TuneStep], None] | None" = None,
) -> "tuple[TuneResult, FuseReport | None]":
    """`tune`, with what the search measured, and what `fuse` did before, if it did anything."""
    from reparam_compiler.api.compiling import tune_reported
    from reparam_compiler.api.options import FuseOptions

    if prior is not None and Path(prior).resolve() != Path(folder).resolve():
        _start_from(Path(prior), Path(folder))
    return tune_reported(
        model.native,
        None,
        FuseOptions() if model.fuse else None,
        database=folder,
        target=target,
        options=options,
        input_shapes=model.shapes(),
        rpc=rpc,
        progress=progress,
        listener=listener,
    )


def compile(
    tvmc_model: TVMCModel,
    target: Target = None,
    opt_level: int | None = None,
    *,
    tuning_records: str | None = None,
    package_path: str | None = None,
    cross: str | None = None,
    cross_options: str | None = None,
    output_format: Literal["tar", "so"] | None = None,
    dump_code: str | Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    options: "CompileOptions | None" = None,
    verify: bool = True,
) -> TVMCPackage:
    """Compile a model to one file.

    Args:
        target: see `reparam_compiler.compile`.
        opt_level: passes of a higher level are left out; None is what `options` say, 3 without them.
        tuning_records: the folder that `tune` wrote.
        package_path: the file; None makes one that lives as long as the package.
        cross, cross_options: the compiler that links the library, and what else it is given.
        output_format: "tar" or "so"; None goes by the name of the file.
        dump_code: of "relax", "tir", "ll", "asm", "cu", "cl"; each is written beside the file as `<package_path>.<name>`.
        batches: the numbers of samples to compile for, of which any number is put together; see `reparam_compiler.compile`.
        options: more settings of TVM's passes; the listings that they ask for are in `package.executable.listings`.
        verify: compare one run of it with one of the model in its own runtime, where this machine can run both.

    Raises: LoweringError, UnsupportedModelError, VerificationError as `reparam_compiler.compile`.
    """
    from reparam_compiler import lowering
    from reparam_compiler.api.compiling import compile_reported
    from reparam_compiler.api.options import FuseOptions
    from reparam_compiler.lowering.backends import backend_for
    from reparam_compiler.lowering.runtime.linking import check_linker
    from reparam_compiler.lowering.runtime.saving import checked_form
    from reparam_compiler.lowering.target import describe, resolve_all

    dumped = (dump_code,) if isinstance(dump_code, str) else tuple(dump_code or ())
    given = options or lowering.CompileOptions()
    level = given.opt_level if opt_level is None else opt_level
    settings = replace(given, opt_level=level, sources=tuple(dict.fromkeys((*given.sources, *dumped))))
    temporary = None if package_path else tempfile.mkdtemp(prefix="reparam-package-")
    path = Path(package_path or f"{temporary}/module.tar")
    check_folder(path)
    targets = resolve_all(target)
    checked_form(path, output_format, targets)
    for one in targets:
        if backend_for(one).linked:
            check_linker(cross or None, describe(one))
    executable, fused = compile_reported(
        tvmc_model.native,
        None,
        FuseOptions() if tvmc_model.fuse else None,
        target=target,
        database=tuning_records or None,
        input_shapes=tvmc_model.shapes() if batches is None else tvmc_model.stated_shapes(),
        batches=batches,
        options=settings,
        verify=verify,
    )
    executable.save(path, format=output_format, compiler=cross or None, compiler_options=shlex.split(cross_options or ""))
    for name in dumped:
        write_text(path.with_name(f"{path.name}.{name}"), executable.listings[name])
    package = TVMCPackage(str(path), executable, fused)
    if temporary is not None:
        weakref.finalize(package, shutil.rmtree, temporary, ignore_errors=True)
    return package


def run(
    tvmc_package: "TVMCPackage | str",
    device: str | None = None,
    *,
    rpc: "Rpc | None" = None,
    inputs: Mapping[str, Any] | None = None,
    fill_mode: FillMode = "random",
    batch: int | None = None,
    repeat: int = 10,
    number: int = 10,
    benchmark: bool = False,
    end_to_end: bool = False,
    profile: bool = False,
    callers: "Callers | None" = None,
) -> TVMCResult:
    """Run a compiled model.

    Args:
        tvmc_package: what `compile` gave, or the path of an artifact.
        device: "cpu", "cuda", or "opencl", which was "cl" once; None is what it was compiled for.
        rpc: devices far away, one of which runs it; see `reparam_compiler.load`.
        inputs: arrays by name; those that are missing are filled.
        fill_mode: what with: "random", "ones" or "zeros".
        batch: how many samples, where the model takes any number and none are given; None is the smallest batch.
        benchmark: measure `repeat` times `number` runs; `end_to_end` with the copies of inputs and outputs.
        profile: measure each kernel.
        callers: measure latency and throughput as these callers see them.

    Raises: LoweringError where the device is another than the package's, or inputs do not fit.
    """
    from reparam_compiler.lowering.runtime import loading
    from reparam_compiler.lowering.runtime.description import filled

    if isinstance(tvmc_package, str):
        executable = loading.load(tvmc_package, rpc=rpc)
    else:
        executable = tvmc_package.executable if rpc is None else loading.load(tvmc_package.package_path, rpc=rpc)
    kind = executable.device
    if DEVICES.get(str(device), device) not in (None, kind):
        raise LoweringError(f"--device: found {device!r}; this artifact was compiled for {kind!r}. Compile it again for it")
    given = dict(inputs or {})
    names = [spec.name for spec in executable.inputs]
    if unknown := sorted(set(given) - set(names)):
        raise LoweringError(f"run: found inputs {', '.join(unknown)}; the model has {'; '.join(map(str, executable.inputs))}")
    arrays = [given[spec.name] if spec.name in given else filled(spec, fill_mode) for spec in _sized(executable, given, batch)]
    results = executable.run(*arrays)
    times: list[float] = []
    if benchmark or end_to_end:
        times += executable.timing(*arrays, repeat=repeat, number=number, end_to_end=end_to_end).seconds
    found = None
    if profile:
        from reparam_compiler.lowering.runtime.profile import profile as profile_kernels

        found = profile_kernels(executable, arrays)
    seen = None if callers is None else benchmark_callers(executable, arrays, callers)
    outputs = {spec.name: array for spec, array in zip(executable.outputs, results, strict=True)}
    return TVMCResult(outputs, times, found, seen)


def _sized(executable: "Executable", given: Mapping[str, Any], batch: int | None) -> "Sequence[TensorSpec]":
    """The inputs with as many samples as the given arrays hold, or as are asked for."""
    from reparam_compiler.lowering.runtime.batches import of_samples

    held = [len(given[spec.name]) for spec in executable.inputs if spec.name in given and spec.shape]
    if batch is not None and (held or not executable.any_batch):
        found = f"inputs of {held[0]} samples" if held else "an artifact of one size"
        raise LoweringError(f"--batch: found {found}; it says how many samples are filled in where the model takes any number")
    if executable.any_batch and (held or batch):
        return of_samples(executable.inputs, held[0] if held else batch or 0)
    return executable.inputs


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name, whole or not at all.

    Raises: LoweringError where the folder does not exist.
    """
    import numpy as np

    check_folder(path)
    with written_whole(path) as whole, whole.open("wb") as file:
        np.savez(file, **arrays)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    check_folder(path)
    with written_whole(path) as whole:
        whole.write_text(text)


def check_folder(path: Path) -> None:
    """Raises LoweringError where a file cannot be written there, as `check_place`: better asked before work than after."""
    try:
        check_place(path)
    except OSError as refusal:
        raise LoweringError(str(refusal)) from refusal


def _start_from(prior: Path, folder: Path) -> None:
    """Copy the records of an earlier search into a folder that has none."""
    from reparam_compiler.lowering.search.records import check_readable

    check_readable(prior)
    if folder.is_dir() and any(folder.iterdir()):
        raise LoweringError(
            f"{folder}: found records there already, and others in {prior} to start from; name another folder to write, or "
            "leave out --tuning-records: what the folder holds is gone on with anyway"
        )
    shutil.copytree(prior, folder, dirs_exist_ok=True)
