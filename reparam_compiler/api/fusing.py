"""`fuse` and `inspect`: a model is opened, its graph fused, the result written, checked and reported."""

import importlib.util
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, Unpack, overload

from torch import nn

from reparam_compiler.api.modes import outside_modes
from reparam_compiler.api.options import FuseKeywords, FuseOptions, made, takes
from reparam_compiler.api.report import FuseReport, Graphs, WholeModel, merged, prefixed
from reparam_compiler.api.writing import write_fused, write_fused_onnx
from reparam_compiler.checking.written import NOTHING_FINITE, Comparison, check_parts, check_same
from reparam_compiler.cost.model import cost
from reparam_compiler.errors import TrainingModeWarning
from reparam_compiler.frontends.base import Kind, Reading
from reparam_compiler.frontends.torch.bodies import read_bodies
from reparam_compiler.frontends.torch.hooks import has_hooks
from reparam_compiler.frontends.torch.tracing.calls import is_within
from reparam_compiler.frontends.torch.tracing.modules import Parts, fuse_parts
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.opening import Source, open
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.fuse_branches import Options, PassResult

Model = TypeVar("Model")


@overload
def fuse(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    return_report: Literal[False] = False,
    **options: Unpack[FuseKeywords],
) -> Model: ...
@overload
def fuse(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    return_report: Literal[True],
    **options: Unpack[FuseKeywords],
) -> tuple[Model, FuseReport]: ...
@takes(FuseOptions)
def fuse(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    return_report: bool = False,
    **options: Unpack[FuseKeywords],
) -> Any:
    """Rewrites every block of parallel conv-BN branches into one conv, and folds the conv-BN pairs that remain.

    >>> from reparam_compiler.zoo import repvgg_a0
    >>> import torch
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> fused, report = fuse(repvgg_a0().eval(), (x,), return_report=True)
    >>> report.before.convs, report.after.convs
    (44, 22)

    Args:
        model: an `fx.GraphModule`, an `ExportedProgram`, an `onnx.ModelProto` (or the path of an .onnx file), or any
            `nn.Module`, in evaluation mode. A module is traced, else exported with `example_inputs`; where neither takes the
            whole of it, every child that can be traced is fused by itself.
        example_inputs: what the model is called with, in a tuple. With them shapes are known and the whole model is compared.
        policy: "cost" fuses where that makes the model faster, by `cost_model`; "always" wherever it is exact.
        cost_model: the speed of the machine that the model is for; None is a usual CPU, `measure_costs()` this one.
        keep_bn: leave a batch norm that ends a block or follows a lone conv, for quantization-aware training.
        weights_are_constant: take the initializers of an ONNX model for constants though it lists them as inputs too, where a
            caller may override them; the result does not list them.
        verify: prove every rewritten region; where there are inputs compare the whole model, and run what was written as it is
            stored. Without, no copies are held.
        inplace: change the caller's model instead of a copy. (Where a GraphModule must stand for a plain module, that is a
            new one all the same, which shares its tensors.)
        return_report: give `(model, FuseReport)`.

    Returns:
        A model of the same kind: a plain module of its own class, or, where its forward() itself would have
        to change, a GraphModule, which the report says; the path of an .onnx file gives a ModelProto.

    Raises:
        UnsupportedModelError: no frontend reads this model.
        VerificationError: the whole model, compared in float64, is off by more than 1e-6 relative, or what was written by more
            than rounding. The caller's model is as it was.
        RewriteError: what was written does not run, or is no valid ONNX model.

    Warns:
        TrainingModeWarning: norms of a module are in training mode, and stay.

    Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, Eq. 1 to 4.
    """
    settings = made(FuseOptions, "fuse", options)
    _warn_of_training(model)
    with outside_modes():
        source = open(model, example_inputs, copy=not inplace, weights_are_constant=settings.weights_are_constant)
        fused, report = fuse_source(source, settings.of_passes(verify=verify), inplace=inplace)
    return (fused, replace(report, graphs=None) if inplace else report) if return_report else fused


def _warn_of_training(model: Any) -> None:
    """Warns the caller of `fuse` where nothing can become of the norms of a module."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    norms = [name for name, part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    if norms:
        shown = ", ".join(norms[:3]) + (", …" if len(norms) > 3 else "")
        words = f"{len(norms)} norms are in training mode and stay as they are ({shown}); call model.eval() before fuse()"
        warnings.warn(words, TrainingModeWarning, stacklevel=3)


@takes(FuseOptions)
def inspect(model: Any, example_inputs: Sequence[Any] | None = None, **options: Unpack[FuseKeywords]) -> FuseReport:
    """What `fuse` would do to a model, and what it would refuse and why; nothing is written.

    >>> from torch import nn
    >>> report = inspect(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> [(fusion.node, fusion.nodes) for fusion in report.fusions]
    [('_1', ('_0', '_1'))]

    Args:
        model, example_inputs: as for `fuse`; with inputs shapes are known, and costs with them.
        policy, cost_model, keep_bn, weights_are_constant: as for `fuse`.

    Returns:
        A `FuseReport` in which the whole model is not compared.

    Raises:
        UnsupportedModelError: no frontend reads this model.
    """
    settings = made(FuseOptions, "inspect", options)
    passes = settings.of_passes(verify=True)
    with outside_modes():
        source = open(model, example_inputs, weights_are_constant=settings.weights_are_constant)
        if source.kind == "onnx":
            report = _fuse_onnx(source, passes, inplace=False, verify=False)[1]
        elif source.kind == "torch.nn":
            report = _fuse_module(source, passes, inplace=False, verify=False)[1]
        else:
            report = _FusedGraphs.of(source, passes).report(None)
    return replace(report, not_compared="nothing was written")


def fuse_source(source: Source, options: Options, *, inplace: bool = False) -> tuple[Any, FuseReport]:
    """What `fuse` does to a model that was opened, by its kind."""
    fused, report = _FUSE[source.kind](source, options, inplace, options.verify)
    why = "" if report.whole_model is not None else report.not_compared or _why_not_compared(source, report, options.verify)
    return fused, replace(report, not_compared=why)


def _why_not_compared(source: Source, report: FuseReport, verify: bool) -> str:
    if not report.fusions:
        return "nothing was fused"
    if not verify:
        return "verify=False"
    if source.kind == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed"
    return "pass example inputs to have that done"


@dataclass(frozen=True, slots=True)
class _FusedGraphs:
    """The graph of a torch model, fused, and what its calls run: bodies.

    reading: what writes them all. bodies: by path what was read of each, and what became of it. left: why others stay.
    """

    source: Source
    reading: Reading[Any]
    result: PassResult
    bodies: Mapping[str, tuple[Graph, PassResult]]
    left: Sequence[str]

    @classmethod
    def of(cls, source: Source, options: Options) -> "_FusedGraphs":
        """The graphs of an opened model, fused."""
        bodies: dict[str, tuple[Graph, PassResult]] = {}

        def fused(path: str, body: Graph) -> Graph:
            bodies[path] = body, pipeline.run(body, options)
            return bodies[path][1].graph

        result, found = pipeline.run(source.graph, options), read_bodies(source.native)
        return cls(source, found.fused(source.reading, fused), result, bodies, tuple(found.remarks()))

    @property
    def has_fusions(self) -> bool:
        """Whether anything was fused."""
        return any(result.fusions for result in (self.result, *(result for _, result in self.bodies.values())))

    def report(self, comparison: Comparison | None) -> FuseReport:
        """What was done, in the graph and in the bodies."""
        whole = _report(self.source, self.source.graph, self.result, comparison)
        if not self.bodies and not self.left:
            return whole
        parts = [prefixed(_report(self.source, *body, None), path) for path, body in self.bodies.items()]
        return _compared_as(whole, merged(whole.kind, [whole, *parts], [*whole.remarks, *self.left]))


def _fuse_graph(source: Source, options: Options, inplace: bool, verify: bool) -> tuple[Any, FuseReport]:
    fused = _FusedGraphs.of(source, options)
    check = verify and fused.has_fusions
    written, whole = write_fused(source, fused.reading, fused.result.graph, inplace=inplace, verify=check)
    return written, fused.report(whole)


def _fuse_module(source: Source, options: Options, inplace: bool, verify: bool) -> tuple[Any, FuseReport]:
    """A module that is traced whole, else in parts; exported where the parts leave something that can be fused."""
    if source.trace is not None and not source.trace.apart and not has_hooks(source.model):
        return _fuse_graph(source, options, inplace, verify)
    if source.trace is not None or source.exported is None:
        return _fuse_parts(source, options, verify)
    parts = _fuse_parts(source if source.copy else replace(source, copy=True), options, verify)
    left = open(parts[0], source.inputs)
    if left.exported is None or pipeline.run(left.graph, replace(options, verify=False)).fusions:
        return _fuse_graph(source, options, inplace, verify)
    return parts if source.copy else _fuse_parts(source, options, verify)


def _fuse_onnx(source: Source, options: Options, inplace: bool, verify: bool) -> tuple[Any, FuseReport]:
    """Functions are inlined where that lets more be fused, and the bodies of If, Loop and Scan are fused after the graph."""
    from reparam_compiler.frontends.onnx.subgraphs import fuse_bodies, with_functions_inlined

    unproven = replace(options, verify=False)
    inlined = with_functions_inlined(source.model, lambda m: len(pipeline.run(open(m).graph, unproven).fusions))
    subject = source if inlined is None else replace(source, model=inlined)
    result = pipeline.run(subject.graph, options)
    parts: dict[str, FuseReport] = {}
    remarks: list[str] = []

    def write(in_place: bool) -> Any:
        written = subject.reading.write(result.graph, inplace=in_place and inlined is None)
        reports, left = fuse_bodies(written, lambda body: _fuse_onnx(open(body), options, inplace=True, verify=False)[1])
        parts.update(reports)
        remarks[:] = left
        return written

    def changed() -> bool:
        return bool(result.fusions) or any(part.fusions for part in parts.values())

    written, whole = write_fused_onnx(source, write, changed, inplace=inplace, verify=verify)
    if inlined is not None and inplace and not verify:
        source.model.CopyFrom(written)
        written = source.model
    report = _report(subject, subject.graph, result, whole)
    if parts or remarks:
        reports = [report, *(prefixed(part, path) for path, part in parts.items())]
        report = _compared_as(report, merged(report.kind, reports, [*report.remarks, *remarks]))
    return written, report


def _fuse_parts(source: Source, options: Options, verify: bool) -> tuple[nn.Module, FuseReport]:
    """A model that no tracer takes whole, or takes but for modules with hooks."""

    def fuse_one(part: nn.Module) -> tuple[nn.Module, FuseReport] | None:
        opened = open(part, copy=False)
        return None if opened.trace is None else _fuse_graph(opened, options, True, False)

    def fused_parts(copy: bool) -> Parts:
        return fuse_parts(source.model, fuse_one, copy=copy, whole=source.trace is not None)

    inputs = source.run_inputs if verify else None
    parts = fused_parts(source.copy or inputs is not None)  # what is to be changed in place is checked on a copy before
    result, kind = parts.model, type(source.model).__name__
    if source.trace is None:
        fused = f"{len(parts.reports)} of its parts were fused: {', '.join(parts.reports) or 'none'}"
        how = [f"{kind} cannot be traced whole ({source.why_not_traced}); {fused}"]
    else:
        how = [_apart(path, why, parts.reports) for path, why in source.trace.apart.items()]
    kept = [f"{path} was not fused as a whole: {why}" for path, why in parts.kept.items()]
    report = merged(
        f"nn.Module {kind}, in parts",
        [prefixed(part, path) if path else part for path, part in parts.reports.items()],
        [*how, *kept],
    )
    whole, given, why = None, None, ""
    if inputs is not None and report.fusions:
        compared, given = check_parts(result, source.model, inputs)
        words = f"torch, {compared.dtype}, {inputs.words}, the fused weights as they are stored"
        whole, why = (WholeModel(words, compared.difference), "") if compared.is_telling else (None, NOTHING_FINITE)
    if inputs is not None and not source.copy:
        result = fused_parts(False).model if report.fusions else source.model
        if given is not None:
            check_same(result, given, inputs)
    return result, replace(report, whole_model=whole, not_compared=why)


def _apart(path: str, why: str, fused: Collection[str]) -> str:
    """What became of a part that the trace of the whole does not enter. fused: the paths of the parts that were fused."""
    is_fused = any(is_within(name, path) for name in fused)
    return f"{path} {why}, so it was " + ("fused by itself" if is_fused else "looked at by itself: nothing in it is fused")


_FUSE: Mapping[Kind, Callable[[Source, Options, bool, bool], tuple[Any, FuseReport]]] = {
    "torch.nn": _fuse_module,
    "torch.fx": _fuse_graph,
    "torch.export": _fuse_graph,
    "onnx": _fuse_onnx,
}
"""How each kind is fused: in place or not, and with its result checked or not."""


def _report(source: Source, before: Graph, result: PassResult, comparison: Comparison | None) -> FuseReport:
    whole, why = None, "" if comparison is None or comparison.is_telling else NOTHING_FINITE
    if comparison is not None and comparison.is_telling:
        how = f"{comparison.runtime}, {comparison.dtype}, {comparison.inputs}"
        whole = WholeModel(how, comparison.difference)
    costs, graphs = (cost(before), cost(result.graph)), Graphs(before, result.graph)
    return FuseReport(source.frontend.name, result.fusions, result.refusals, *costs, whole, source.remarks, why, graphs)


def _compared_as(whole: FuseReport, report: FuseReport) -> FuseReport:
    """A report that says of the whole model what another one does."""
    return replace(report, whole_model=whole.whole_model, not_compared=whole.not_compared)
