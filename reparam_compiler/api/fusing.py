"""The public functions: they pick a frontend, run a pipeline, verify, write back and report."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from torch import fx, nn

from reparam_compiler.api.report import FuseReport, WholeModel, merged, prefixed
from reparam_compiler.cost.model import USUAL, CostModel, cost
from reparam_compiler.errors import UnsupportedModelError, VerificationError
from reparam_compiler.frontends.base import Frontend, Reading
from reparam_compiler.frontends.torch.fx import compare_copies
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.tracing.modules import fuse_parts, traced
from reparam_compiler.models.opening import frontend_for, given_inputs, opened
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.fuse_branches import Options, PassResult
from reparam_compiler.passes.fusion.planner import Policy

if TYPE_CHECKING:
    pass


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
    options = Options(verify=verify, policy=policy, cost_model=cost_model or USUAL, keep_bn=keep_bn)
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
    from reparam_compiler.frontends.onnx.subgraphs import fuse_bodies, with_functions_inlined

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


def inspect(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    policy: Policy = "cost",
    cost_model: CostModel | None = None,
    keep_bn: bool = False,
) -> FuseReport:
    """What `fuse` would do to a model, and what it would refuse and why; nothing is written. Arguments as for `fuse`."""
    options = Options(policy=policy, cost_model=cost_model or USUAL, keep_bn=keep_bn)
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


def _report(
    frontend: Frontend[Any], reading: Reading[Any], found: PassResult, inputs: Sequence[Any] | None, *, compare: bool
) -> FuseReport:
    comparison = reading.compare(found.graph, inputs) if compare and found.fusions else None
    whole = None
    if comparison is not None:
        whole = WholeModel(f"{comparison.runtime}, {comparison.dtype}, {comparison.inputs}", comparison.difference)
        checked(whole, WHOLE_TOLERANCE if comparison.dtype == "float64" else math.inf)
    return FuseReport(frontend.name, found.fusions, found.refusals, cost(reading.graph), cost(found.graph), whole)
