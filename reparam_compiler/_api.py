"""The public functions: they pick a frontend, run a pipeline, verify, write back and report."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from torch import Tensor, fx, nn

from reparam_compiler._verify import verify_compiled
from reparam_compiler.cost import USUAL, CostModel, cost
from reparam_compiler.errors import UnsupportedModelError, VerificationError
from reparam_compiler.frontends.base import Frontend, Reading
from reparam_compiler.frontends.export import ExportFrontend
from reparam_compiler.frontends.fx import FxFrontend, compare_copies
from reparam_compiler.frontends.modules import fuse_parts, traced
from reparam_compiler.frontends.torch_values import deep_copy
from reparam_compiler.passes import pipeline
from reparam_compiler.passes.fuse_branches import Options, PassResult
from reparam_compiler.passes.plan import Policy
from reparam_compiler.report import FuseReport, WholeModel, merged, prefixed

if TYPE_CHECKING:
    from reparam_compiler.lowering import CompileOptions, Executable, TuneResult

log = logging.getLogger(__name__)

Model = TypeVar("Model")
WHOLE_TOLERANCE = 1e-6
"""The largest relative difference of the whole model, compared in float64 with the fused weights not yet rounded."""
ROUNDED_TOLERANCE = 1e-4
"""The same with weights that are rounded to float32 already."""


@overload
def fuse(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    policy: Policy = "cost",
    cost_model: CostModel | None = None,
    keep_bn: bool = False,
    verify: bool = True,
    inplace: bool = False,
    return_report: Literal[False] = False,
) -> Model: ...
@overload
def fuse(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    policy: Policy = "cost",
    cost_model: CostModel | None = None,
    keep_bn: bool = False,
    verify: bool = True,
    inplace: bool = False,
    return_report: Literal[True],
) -> tuple[Model, FuseReport]: ...
def fuse(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    policy: Policy = "cost",
    cost_model: CostModel | None = None,
    keep_bn: bool = False,
    verify: bool = True,
    inplace: bool = False,
    return_report: bool = False,
) -> Any:
    """Rewrites every block of parallel conv-BN branches into one conv, and folds the conv-BN pairs that remain.

    Args:
        model: an `fx.GraphModule`, an `ExportedProgram`, an `onnx.ModelProto` (or the path of an .onnx file), or any
            `nn.Module`, in evaluation mode. A module is traced, else exported with `example_inputs`; where neither takes the
            whole of it, every child that can be traced is fused by itself.
        example_inputs: what the model is called with, in a tuple. With them shapes are known and the whole model is compared.
        policy: "cost" fuses where that makes the model faster, by `cost_model`; "always" wherever it is exact.
        cost_model: the speed of the machine that the model is for; None is a usual CPU, `measure_costs()` this one.
        keep_bn: leave a batch norm that ends a block or follows a lone conv, for quantization-aware training.
        verify: prove every rewritten region, and compare the whole model where there are inputs. Without, no copies are held.
        inplace: change the caller's model instead of a copy. (A plain module is traced into a new one all the same, which
            then shares its tensors.)
        return_report: give `(model, FuseReport)`.

    Returns:
        A model of the same kind; the path of an .onnx file gives a ModelProto, a plain module a callable module.

    Raises:
        UnsupportedModelError: no frontend reads this model.
        VerificationError: the whole model, compared in float64, is off by more than 1e-6 relative. The caller's model is
            as it was.

    Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, Eq. 1 to 4.
    """
    options = Options(verify=verify, policy=policy, model=cost_model or USUAL, keep_bn=keep_bn)
    fused, report = _fused(opened(model), given_inputs(example_inputs), options, inplace=inplace)
    return (fused, report) if return_report else fused


def _fused(model: Any, example_inputs: Sequence[Any] | None, options: Options, *, inplace: bool) -> tuple[Any, FuseReport]:
    if isinstance(model, nn.Module) and not isinstance(model, fx.GraphModule):
        graph_module = traced(model, example_inputs, copy=not inplace)
        if graph_module is None:
            return _fuse_parts(model, example_inputs, options, copy=not inplace)
        frontend, inplace = frontend_for(graph_module), True
        remarks = tuple(f"fixed while tracing, as the weights have it: {name}" for name in graph_module.meta.get("frozen", ()))
        remarks += graph_module.meta.get("remarks", ())
        try:
            reading = frontend.read(graph_module, example_inputs)
        except UnsupportedModelError:  # a check of its own data that shapes alone do not pass: what the tracer noted will do
            reading = frontend.read(graph_module, None)
    else:
        frontend = frontend_for(model)
        if frontend.name == "onnx":
            return _fused_onnx(frontend, model, example_inputs, options, inplace=inplace, compare=options.verify)
        reading, remarks = frontend.read(model, example_inputs), ()
    found = pipeline.run(reading.graph, options)
    report = _report(frontend, reading, found, example_inputs, compare=options.verify)
    return reading.write(found.graph, inplace=inplace), replace(report, remarks=(*report.remarks, *remarks))


def _fused_onnx(
    frontend: Frontend[Any], model: Any, inputs: Sequence[Any] | None, options: Options, *, inplace: bool, compare: bool
) -> tuple[Any, FuseReport]:
    """Functions are inlined where that lets more be fused, and the bodies of If, Loop and Scan are fused after the graph."""
    from reparam_compiler.frontends.onnx_bodies import fuse_bodies, with_functions_inlined

    unproven = replace(options, verify=False)
    inlined = with_functions_inlined(model, lambda m: len(pipeline.run(frontend.read(m).graph, unproven).fusions))
    reading = frontend.read(model if inlined is None else inlined, inputs)
    found = pipeline.run(reading.graph, options)
    report = _report(frontend, reading, found, inputs, compare=compare)
    written = reading.write(found.graph, inplace=inplace or inlined is not None)
    parts, remarks = fuse_bodies(written, lambda body: _fused(body, None, options, inplace=True)[1])
    if parts or remarks:
        reports = [report, *(prefixed(part, path) for path, part in parts.items())]
        report = replace(merged(report.kind, reports, [*report.remarks, *remarks]), whole_model=report.whole_model)
    if inlined is not None and inplace:
        model.CopyFrom(written)
        written = model
    return written, report


def compile(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    database: str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    options: "CompileOptions | None" = None,
    verify: bool = True,
) -> "Executable":
    """Machine code for a model, through TVM, by schedules that need no search.

    Args:
        model: as for `fuse`.
        example_inputs: for models that do not know their input shapes.
        target: "llvm", "cuda", an old-style string ("llvm -mcpu=znver3 -num-cores 2"), a tag or a dict; None is this machine.
        fuse: fuse the model first, as `reparam_compiler.fuse` does by default. A model that `fuse` cannot read is compiled as
            it is, and a log line says so.
        database: a folder that `tune` wrote.
        input_shapes: a shape for each input, by name, that has none or a symbolic one.
        options: how TVM's passes run, and what of their work is kept as text.
        verify: run the result once, and the model as it was given in its own runtime, and compare the outputs. Done where this
            machine can run both; a log line says where it was not.

    Raises:
        TvmMissingError: apache-tvm is not installed.
        UnsupportedModelError: the model is of no kind that can be compiled.
        LoweringError: a shape is missing, TVM cannot import an op, or the target is not one.
        VerificationError: the fused model is off by more than rounding: `fuse=False` compiles the model as it is; or the
            compiled one is, where TVM misreads an op: `verify=False` gives it all the same.
    """
    from reparam_compiler import lowering
    from reparam_compiler.lowering.importer import checked_shapes

    shapes = checked_shapes(input_shapes)
    given = _inputs_to_lower(model, example_inputs, shapes)
    settings = options or lowering.CompileOptions()
    made = lowering.compile(
        _fused_to_lower(model, given) if fuse else model,
        given,
        target=target,
        database=None if database is None else Path(database),
        input_shapes=shapes,
        options=settings,
    )
    if verify:
        verify_compiled(made, model, given, max_error=settings.max_error)
    return made


def tune(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    database: str | os.PathLike[str],
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    trials: int = 256,
    repeat: int = 3,
    number: int = 1,
    timeout: float = 30.0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: bool = True,
) -> "TuneResult":
    """Measures candidates for every kernel of a model on this machine; `compile(database=…)` takes the best of them.

    A search that was killed goes on where it stopped: what `database` holds counts towards `trials`. `repeat` measurements of
    `number` runs each, at most `timeout` seconds for one candidate. The other arguments: see `compile`.
    """
    from reparam_compiler import lowering
    from reparam_compiler.lowering.importer import checked_shapes

    shapes = checked_shapes(input_shapes)
    given = _inputs_to_lower(model, example_inputs, shapes)
    return lowering.tune(
        _fused_to_lower(model, given) if fuse else model,
        given,
        target=target,
        trials=trials,
        database=Path(database),
        repeat=repeat,
        number=number,
        timeout=timeout,
        input_shapes=shapes,
        progress=progress,
    )


def _inputs_to_lower(model: Any, example_inputs: Any, shapes: Mapping[str, Sequence[int]]) -> Sequence[Any] | None:
    """The example inputs as a tuple; zeros of these shapes where a module has none. Raises LoweringError as `zeros_of`."""
    from reparam_compiler.lowering.importer import zeros_of

    if example_inputs is None and shapes and isinstance(model, nn.Module):
        return zeros_of(model, shapes)
    return given_inputs(example_inputs)


def _fused_to_lower(model: Any, inputs: Sequence[Any] | None) -> Any:
    """The fused model; the model itself where `fuse` cannot read or run it: what is wrong then, the importer says.

    Raises: UnsupportedModelError for what is no model at all.
    """
    if isinstance(model, str | os.PathLike) and not Path(model).is_file():
        return model
    model = opened(model)
    if not isinstance(model, nn.Module):
        frontend_for(model)
    elif inputs is None or any(child.training for child in model.modules() if type(child) is not nn.Module):
        return model  # fx holds children in bare Modules, which say nothing of the mode
    try:
        return fuse(model, inputs)
    except (UnsupportedModelError, RuntimeError, TypeError, ValueError, IndexError) as refusal:  # the latter: of a forward
        log.warning("%s is compiled as it is, unfused: %s", type(model).__name__, refusal)
        return model


def inspect(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    policy: Policy = "cost",
    cost_model: CostModel | None = None,
    keep_bn: bool = False,
) -> FuseReport:
    """What `fuse` would do to a model, and what it would refuse and why; nothing is written. Arguments as for `fuse`."""
    options = Options(policy=policy, model=cost_model or USUAL, keep_bn=keep_bn)
    model, example_inputs = opened(model), given_inputs(example_inputs)
    if isinstance(model, nn.Module) and not isinstance(model, fx.GraphModule):
        graph_module = traced(model, example_inputs, copy=True)
        if graph_module is None:
            return _fuse_parts(model, None, options, copy=True)[1]
        model = graph_module
    frontend = frontend_for(model)
    if frontend.name == "onnx":
        return _fused_onnx(frontend, model, example_inputs, options, inplace=False, compare=False)[1]
    reading = frontend.read(model, example_inputs)
    return _report(frontend, reading, pipeline.run(reading.graph, options), example_inputs, compare=False)


def _fuse_parts(
    model: nn.Module, example_inputs: Sequence[Any] | None, options: Options, *, copy: bool
) -> tuple[nn.Module, FuseReport]:
    """A model that no tracer takes whole."""
    parts = fuse_parts(model, lambda part: _fused(part, None, options, inplace=True), copy=copy)
    result, kind = parts.model, type(model).__name__
    fused = f"{len(parts.reports)} of its parts were fused: {', '.join(parts.reports) or 'none'}"
    kept = [f"{path} was not fused as a whole: {why}" for path, why in parts.kept.items()]
    report = merged(
        f"nn.Module {kind}, in parts",
        [prefixed(part, path) for path, part in parts.reports.items()],
        [f"{kind} cannot be traced whole; {fused}", *kept],
    )
    if not (options.verify and copy and example_inputs is not None and report.fusions):
        return result, report

    def copies(exact: bool) -> tuple[nn.Module, nn.Module]:
        before, after = deep_copy(model), deep_copy(result)
        return (before.double(), after.double()) if exact else (before, after)

    found, dtype = compare_copies(copies, example_inputs)
    whole = WholeModel(f"torch, {dtype}, example inputs, the fused weights as they are stored", found)
    return result, replace(report, whole_model=checked(whole, ROUNDED_TOLERANCE if dtype == "float64" else math.inf))


def checked(whole: WholeModel, tolerance: float) -> WholeModel:
    """The comparison; raises VerificationError where it is off by more than this, or of another shape, or NaN elsewhere.

    What a model makes in float32 may be chaotic (a top-k of near ties): there the proofs of the regions decide.
    """
    found = whole.difference
    if math.isinf(found.max_abs):
        advice = "Shapes differ, or the places of NaN and infinities. Please report the model: this is a defect of a rewrite."
        raise VerificationError("output", found.max_abs, 0.0, advice)
    if not found.relative <= tolerance:
        allowed = tolerance * found.max_abs / found.relative if math.isfinite(found.relative) else 0.0
        raise VerificationError("output", found.max_abs, allowed)
    return whole


def frontend_for(model: object) -> Frontend[Any]:
    """The frontend that reads a model; raises UnsupportedModelError where there is none."""
    frontends: list[Frontend[Any]] = [FxFrontend(), ExportFrontend()]
    if type(model).__module__.partition(".")[0] == "onnx":
        from reparam_compiler.frontends.onnx_gs import OnnxFrontend

        frontends.append(OnnxFrontend())
    for frontend in frontends:
        if frontend.matches(model):
            return frontend
    raise UnsupportedModelError(
        f"found a {type(model).__module__}.{type(model).__qualname__}; expected an fx.GraphModule, an ExportedProgram, "
        "an onnx.ModelProto, the path of an .onnx file, or an nn.Module. For a .pt2 file call torch.export.load first"
    )


def given_inputs(example_inputs: Any) -> Sequence[Any] | None:
    """Example inputs as a tuple: a tensor alone is one input."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if example_inputs is None or isinstance(example_inputs, tuple | list):
        return example_inputs
    raise UnsupportedModelError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tuple of what forward() takes, in its order"
    )


def opened(model: Any) -> Any:
    """The ModelProto of an .onnx file; everything else as it is."""
    if not isinstance(model, str | os.PathLike):
        return model
    if Path(model).suffix != ".onnx":
        raise UnsupportedModelError(f"found the path {os.fspath(model)}; expected one that ends in .onnx, or a model object")
    from reparam_compiler.frontends.onnx_io import load

    return load(model)


def _report(
    frontend: Frontend[Any], reading: Reading[Any], found: PassResult, inputs: Sequence[Any] | None, *, compare: bool
) -> FuseReport:
    comparison = reading.compare(found.graph, inputs) if compare and found.fusions else None
    whole = None
    if comparison is not None:
        whole = WholeModel(f"{comparison.runtime}, {comparison.dtype}, {comparison.inputs}", comparison.difference)
        checked(whole, WHOLE_TOLERANCE if comparison.dtype == "float64" else math.inf)
    return FuseReport(frontend.name, found.fusions, found.refusals, cost(reading.graph), cost(found.graph), whole)
