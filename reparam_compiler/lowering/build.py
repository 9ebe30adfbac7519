"""`compile`: the phases from a native model to an Executable, in one readable list.

import -> simplify -> NHWC -> convs to kernels -> legalize, fuse the rest -> schedule the rest -> Relax VM -> library
"""

import contextlib
import importlib.metadata
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir.transform import Sequential
from tvm.relax.backend.cpu_generic import pipeline as cpu_pipeline
from tvm.relax.backend.cuda import pipeline as cuda_pipeline
from tvm.s_tir import meta_schedule

from reparam_compiler.errors import LoweringError, class_and_line
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR
from reparam_compiler.lowering.conv.algorithms import candidates
from reparam_compiler.lowering.cpu.elementary import legalizations
from reparam_compiler.lowering.cpu.kernels import AlgorithmRule, convs_to_kernels
from reparam_compiler.lowering.cpu.schedules import schedule_rest
from reparam_compiler.lowering.gpu.cubin import cuda_toolchain
from reparam_compiler.lowering.gpu.cuda_graphs import with_cuda_graphs
from reparam_compiler.lowering.gpu.kernels import convs_to_gpu_kernels
from reparam_compiler.lowering.gpu.schedules import schedule_gpu
from reparam_compiler.lowering.importing.importer import Imported, to_relax
from reparam_compiler.lowering.options import CompileOptions, sources_of
from reparam_compiler.lowering.relax.conv_sites import ALGORITHM, ERROR, FLOPS
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.relax.memory_plan import memory_plan
from reparam_compiler.lowering.runtime.executable import Executable, Kernel, assemble
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.search.database import SCHEDULES, WORKLOADS, RecordedAlgorithms, check_readable, read_convs
from reparam_compiler.lowering.target import TargetLike, describe, is_gpu, resolve, vector_unit

DEFAULT_OPTIONS = CompileOptions()
COMPILING = threading.RLock()
"""Held while TVM imports, compiles or measures: its state, stderr and what an import patches are the whole process's."""


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: TargetLike = None,
    database: str | Path | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    options: CompileOptions | None = None,
) -> Executable:
    """Compile a model for a target, by schedules that need no search.

    Args:
        model: nn.Module, fx.GraphModule, ExportedProgram, onnx.ModelProto or the path of an `.onnx`; in eval mode.
        example_inputs: a tensor or a tuple, for nn.Module and fx.GraphModule.
        target: see `lowering.target`; None is this machine.
        database: a folder that `tune` wrote; its records choose tiles and schedules where they were measured faster.
        input_shapes: a shape for each input that has none or a symbolic one.
        options: how TVM's passes run, and what of their work is kept as text.

    Raises: LoweringError where a shape is missing, TVM cannot import an op, or code generation fails;
    UnsupportedModelError for another kind of model.
    """
    resolved = resolve(target)
    records = check_readable(Path(database)) if database is not None else None
    with COMPILING:
        imported = to_relax(model, example_inputs, input_shapes=input_shapes)
        return build(imported, resolved, records, options or DEFAULT_OPTIONS)


def build(
    imported: Imported, target: Any, records: Path | None = None, options: CompileOptions = DEFAULT_OPTIONS
) -> Executable:
    """The phases after import, for a resolved target."""
    watch = options.watch()
    try:
        with COMPILING, target, filter_stderr(), options.context(watch):
            module = lower(imported.module, target, records, options.max_error)
            with cuda_toolchain() if is_gpu(target) else contextlib.nullcontext():
                library = tvm.compile(module, target=target, relax_pipeline=_vm_passes(target))
    except LoweringError:
        raise
    except Exception as refusal:  # TVM's passes raise InternalError, TypeError, ScheduleError …
        raise LoweringError(
            f"main: TVM could not compile the imported model for {describe(target)}: {class_and_line(refusal)}. "
            f"{options.advice}"
        ) from refusal
    kernels = tuple(_kernels(module))
    made = assemble(library, imported.inputs, imported.outputs, describe(target), kernels, versions())
    listings = watch.finished() | sources_of(options.sources, imported.module, module, library)
    return replace(made, listings=listings, memory=memory_plan(module))


def lower(module: Any, target: Any, records: Path | None = None, max_error: float = MAX_ERROR) -> Any:
    """Relax with high-level ops -> Relax that calls scheduled kernels only."""
    return lower_gpu(module, target, max_error) if is_gpu(target) else lower_cpu(module, target, records, max_error)


def lower_gpu(module: Any, target: Any, max_error: float = MAX_ERROR) -> Any:
    """The phases for a GPU: NHWC inside, convs by rule, TVM's fusion and the schedules of `gpu.schedules` for the rest."""
    passes = [
        *cuda_pipeline.library_dispatch_passes(target),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
    ]
    return schedule_gpu(Sequential(passes)(convs_to_gpu_kernels(channels_last(simplify(module)), target, max_error)))


def lower_cpu(module: Any, target: Any, records: Path | None = None, max_error: float = MAX_ERROR) -> Any:
    """The phases for a CPU: NHWC inside, convs by the recipes, a schedule by rule for what is left."""
    rule = candidates if records is None else RecordedAlgorithms(read_convs(records), describe(target))
    module = fused_cpu(prepared_cpu(module), target, rule, max_error=max_error)
    if records is not None and (records / SCHEDULES).is_file():
        with meta_schedule.database.JSONDatabase(str(records / WORKLOADS), str(records / SCHEDULES)):
            module = relax.transform.MetaScheduleApplyDatabase()(module)
    return schedule_rest(module, vector_unit(target))


def prepared_cpu(module: Any) -> Any:
    """The phases before kernels are chosen."""
    return channels_last(simplify(module))


def fused_cpu(module: Any, target: Any, rule: AlgorithmRule = candidates, *, max_error: float = MAX_ERROR) -> Any:
    """Kernels for the convs; what is left, legalized to TIR and fused, has no schedule yet."""
    passes = [
        *cpu_pipeline.library_dispatch_passes(target),
        relax.transform.LegalizeOps(legalizations()),
        *cpu_pipeline.legalize_passes(target),
        relax.transform.RewriteDataflowReshape(),  # before the schedules: it knows a reshape by its plain loops
        relax.transform.DeadCodeElimination(),
    ]
    return Sequential(passes)(convs_to_kernels(module, vector_unit(target), rule, max_error=max_error))


def versions() -> dict[str, str]:
    """What wrote an artifact."""
    names = ("reparam_compiler", "apache-tvm", "apache-tvm-ffi", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "source tree"
    return found


def _vm_passes(target: Any) -> Any:
    if is_gpu(target):
        return with_cuda_graphs(cuda_pipeline.dataflow_lower_passes(target) + cuda_pipeline.finalize_passes(target))
    return Sequential(cpu_pipeline.dataflow_lower_passes(target) + cpu_pipeline.finalize_passes(target))


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
    return Kernel(name, algorithm, flops, _float(attrs[ERROR]) if ERROR in attrs else None)


def _float(value: Any) -> float:
    """A number of an attribute, which TVM wraps."""
    return float(getattr(value, "value", value))
