"""`compile`: from a native model to an Executable.

to_relax -> backend.lower (`cpu/pipeline.py`, `gpu/pipeline.py`) -> backend.compiled -> Executable

A model that takes any batch is imported and built once for each size, over one store of weights.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm import tirx
from tvm.target import Target

from reparam_compiler.core.locks import ProcessLock
from reparam_compiler.core.packages import installed_version
from reparam_compiler.errors import LoweringError, class_and_line
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.cpu.families import CpuFamily
from reparam_compiler.lowering.cpu.machine import native
from reparam_compiler.lowering.importing.batches import check_batches, one_size
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.options import CompileOptions, Watch, sources_of
from reparam_compiler.lowering.relax.backwards import counted_forwards
from reparam_compiler.lowering.relax.conv_sites import ALGORITHM, ERROR, FLOPS, LAYER
from reparam_compiler.lowering.relax.memory_plan import memory_plan
from reparam_compiler.lowering.relax.packed import lifted, noted
from reparam_compiler.lowering.runtime.description import Kernel
from reparam_compiler.lowering.runtime.executable import Executable, executable_of
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.runtime.instruction_sets import best_here
from reparam_compiler.lowering.runtime.linking import compiler_line
from reparam_compiler.lowering.runtime.paces import with_paces
from reparam_compiler.lowering.runtime.variant import Variant
from reparam_compiler.lowering.runtime.weights import Store
from reparam_compiler.lowering.search.records import check_readable, warn_of_foreign
from reparam_compiler.lowering.search.winners import Measured, measured_in
from reparam_compiler.lowering.target import TargetLike, describe, resolve_all

log = logging.getLogger(__name__)

DEFAULT_OPTIONS = CompileOptions()
COMPILING = ProcessLock()
"""Held while TVM imports, compiles or measures: its state, stderr and what an import patches are the whole process's."""


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: TargetLike = None,
    database: str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    options: CompileOptions | None = None,
) -> Executable:
    """Compile a model for a target, by schedules that need no search.

    Args:
        model: nn.Module, fx.GraphModule, ExportedProgram or onnx.ModelProto; in eval mode.
        example_inputs: a tensor or a tuple, for nn.Module and fx.GraphModule.
        target: see `lowering.target`; None is this machine.
        database: a folder that `tune` wrote; its measurements choose tiles and schedules where they are faster.
        input_shapes: a shape for each input that has none or a symbolic one.
        options: how TVM's passes run, and what of their work is kept as text.

    Raises: LoweringError as `check`, and where a shape is missing, TVM cannot import an op, or code generation fails;
    UnsupportedModelError for another kind of model.
    """
    return compile_forms([Form(model, example_inputs, input_shapes)], target=target, database=database, options=options)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A model at one size: what `to_relax` takes. batch: of how many samples, where that is one of several."""

    model: Any
    example_inputs: Any = None
    input_shapes: Mapping[str, Sequence[int]] | None = None
    batch: int | None = None

    def imported(self) -> Imported:
        """The model as Relax. Raises: LoweringError as `to_relax`, with the batch where there is one."""
        try:
            return to_relax(self.model, self.example_inputs, input_shapes=self.input_shapes)
        except LoweringError as refusal:
            if self.batch is None:
                raise
            raise LoweringError(
                f"{refusal}. That is at a batch of {self.batch}; a model that was exported for one batch may state it within: "
                f"export it with an open one. {one_size()}"
            ) from refusal


def compile_forms(
    forms: Sequence[Form],
    *,
    target: TargetLike = None,
    database: str | os.PathLike[str] | None = None,
    options: CompileOptions | None = None,
    any_batch: bool = False,
) -> Executable:
    """Compile a model at each of its sizes, the smallest first, over one copy of its weights.

    Args:
        target: as for `compile`, or several: the code of each is in the result. database, options: as for `compile`.
        any_batch: whether the sizes are those of a batch, of which runs of any number of samples are put together. That no
            sample has a part in another's outputs is seen in the sizes of the outputs alone here (`check_batches`).

    Raises: LoweringError as `compile` and `check_batches`.
    """
    settings = options or DEFAULT_OPTIONS
    targets = check(target, database, settings)
    best = backend_for(targets[best_here(targets)])
    if forgone := best.forgone_here():
        log.warning("code for %s is slower here than code for this machine would be: %s", describe(best.target), forgone)
    with COMPILING.held():
        imports = [form.imported() for form in forms]
        if any_batch:
            check_batches(imports)
        store, made, variants = Store(), list[Built](), list[Variant]()
        for one in targets:
            measured, store = _measured(database, one, settings), store.another()
            built = [build(imported, one, measured, settings, store) for imported in imports]
            variants += with_paces([_naming(measured, each.variant) for each in built])
            made += built
    return executable_of(variants, any_batch, versions(), _together(made))


def _measured(database: str | os.PathLike[str] | None, target: Target, options: CompileOptions) -> Measured | None:
    """What measurements decide for a target: those of a folder, then those that are shipped for its family.

    A log line says where none of the folder's is for it.
    """
    tuning, folder = backend_for(target).settled(measure=options.measure).tuning(), None if database is None else Path(database)
    if folder is not None:
        warn_of_foreign(folder, describe(target), searched=tuning is not None)
    if tuning is None:
        return None
    return measured_in(folder, describe(target), tuning.rule, tuning.peers if options.shipped_records else None)


def _naming(measured: Measured | None, variant: Variant) -> Variant:
    """With the shipped records among what its kernels were chosen by."""
    if measured is None or measured.shipped is None:
        return variant
    return replace(variant, chosen_by="; ".join(filter(None, (variant.chosen_by, str(measured.shipped)))))


def check(target: TargetLike, database: str | os.PathLike[str] | None, options: CompileOptions) -> tuple[Target, ...]:
    """The targets that are asked for; asked before a model is fused, which may take minutes.

    Raises: LoweringError where the target cannot be read, the database holds no records, or a setting is unknown.
    """
    options.check()
    targets = resolve_all(target)
    if database is not None:
        check_readable(Path(database))
    return targets


def measure_cpu() -> CpuFamily:
    """What kernels cost on this machine's CPU, measured anew in some ten seconds.

    `compile` takes it where no costs are shipped for the CPU, and measures it itself where nothing is kept of an earlier time:
    below `$XDG_CACHE_HOME/reparam_compiler`, by the name of the CPU, the width of its vectors and the version of the model.

    >>> measure_cpu().costs.cold_bytes > 0
    True

    Returns: the costs, the rate of multiply-adds and what may be used of the second-level cache.
    """
    from reparam_compiler.lowering.cpu.measured_family import measure_now

    with COMPILING.held():
        return measure_now(Target(native()))


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A variant, and the texts of its compilation that were asked for."""

    variant: Variant
    listings: Mapping[str, str]


def build(
    imported: Imported,
    target: Any,
    measured: Measured | None = None,
    options: CompileOptions = DEFAULT_OPTIONS,
    store: Store | None = None,
) -> Built:
    """The phases after import, for a resolved target.

    measured: what decides where it was faster than the rule. store: the weights of the variants that were built before.
    """
    watch, store = Watch(options), Store() if store is None else store
    with COMPILING.held():
        backend = backend_for(target).settled(measure=options.measure)
    try:
        with COMPILING.held(), target, filter_stderr(), options.context(watch, backend.idle_passes), noted(store) as packed:
            module = counted_forwards(backend.lower(imported.module, measured=measured, max_error=options.max_error))
            without_weights, weights = lifted(module, packed, store, backend.weights_from)
            library = backend.compiled(without_weights)
    except LoweringError:
        raise
    except Exception as refusal:  # TVM's passes raise InternalError, TypeError, ScheduleError …
        if said := compiler_line(refusal):
            raise LoweringError(
                f"main: the compiler of the kernels for {describe(target)} failed: {said}. Check that it knows this target, "
                "and that it works"
            ) from refusal
        raise LoweringError(
            f"main: TVM could not compile the imported model for {describe(target)}: {class_and_line(refusal)}. "
            f"{options.advice}"
        ) from refusal
    variant = Variant(
        describe(target),
        imported.inputs,
        imported.outputs,
        tuple(_kernels(module)),
        memory_plan(module),
        chosen_by=backend.chosen_by,
        library=library,
        weights=weights,
    )
    listings = watch.finished() | sources_of(options.sources, imported.module, module, library, backend)
    return Built(variant.made_ready(library), listings)


def _together(made: Sequence[Built]) -> dict[str, str]:
    """The listings of all variants by name, each under a line that says what it is for where there are several."""
    if len(made) == 1:
        return dict(made[0].listings)
    names = dict.fromkeys(name for each in made for name in each.listings)
    titled = [(f"# for a batch of {each.variant.batch}, {each.variant.target}", each.listings) for each in made]
    return {name: "\n\n".join(f"{title}\n{texts[name]}" for title, texts in titled if name in texts) for name in names}


def versions() -> dict[str, str]:
    """What wrote an artifact."""
    names = ("reparam_compiler", "apache-tvm", "apache-tvm-ffi", "numpy")
    return {name: installed_version(name) or "source tree" for name in names}


def _kernels(module: Any) -> list[Kernel]:
    return [
        _kernel(str(variable.name_hint), func.attrs or {})
        for variable, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc)
    ]


def _kernel(name: str, attrs: Any) -> Kernel:
    """What the recipe that made a function noted on it."""
    algorithm = str(attrs[ALGORITHM]) if ALGORITHM in attrs else "general"
    flops = int(attrs[FLOPS]) if FLOPS in attrs else 0
    error, layer = _float(attrs[ERROR]) if ERROR in attrs else None, str(attrs[LAYER]) if LAYER in attrs else ""
    return Kernel(name, algorithm, flops, error, layer)


def _float(value: Any) -> float:
    """A number of an attribute, which TVM wraps."""
    return float(getattr(value, "value", value))
