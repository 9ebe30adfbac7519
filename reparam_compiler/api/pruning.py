"""Pruning for callers: they bring a model and data, and get an ordinary model of the same kind.

prune             in one shot; with calibration data what is left is refitted
apply_manifest    the same cut on another checkpoint of the architecture

`rounds.py` has the same in rounds, between which the caller trains.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

from torch import fx, nn
from torch.utils import _pytree

from reparam_compiler.api.modes import outside_modes
from reparam_compiler.api.options import PruneKeywords, PruneOptions, made, takes
from reparam_compiler.api.report import Graphs, PruneReport, why_unrepaired
from reparam_compiler.api.timing import milliseconds
from reparam_compiler.api.writing import write_pruned
from reparam_compiler.checking.written import input_tree
from reparam_compiler.cost.model import cost
from reparam_compiler.errors import HarmfulRepairWarning, UnrepairedPruneWarning, UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.batch_size import fixed_batch
from reparam_compiler.models.binding import bound
from reparam_compiler.models.calibration import again, batches, check_path
from reparam_compiler.models.fitting import Batch
from reparam_compiler.models.held_out import parts
from reparam_compiler.models.opening import Source, open
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.apply_manifest import apply_manifest as apply_to_graph
from reparam_compiler.passes.pruning.manifest import Manifest

Model = TypeVar("Model")


@overload
def prune(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    return_report: Literal[False] = False,
    **options: Unpack[PruneKeywords],
) -> Model: ...
@overload
def prune(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    return_report: Literal[True],
    **options: Unpack[PruneKeywords],
) -> tuple[Model, PruneReport]: ...
@takes(PruneOptions)
def prune(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    return_report: bool = False,
    **options: Unpack[PruneKeywords],
) -> Any:
    """Removes channels of every layer that can spare them.

    A fused model has more to give than one in training form, whose identity branches tie the layers of a stage together: call
    `fuse` first. This function never does.

    >>> import torch
    >>> from torch import nn
    >>> net, x = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval(), torch.randn(16, 3, 9, 9)
    >>> small, report = prune(net, x[:1], ratio=0.5, calibration=x.numpy(), return_report=True)
    >>> [(family.name, family.before, family.after) for family in report.plan.families]
    [('0', 32, 16)]

    Args:
        model: as for `fuse`, but traced whole; shapes must be known.
        example_inputs: what the model is called with; a GraphModule or plain module needs them for its shapes. Without them
            the first sample of the calibration data is taken.
        ratio: the share of channels to remove, 0 <= ratio < 1.
        flops, params, latency: in place of a ratio the share of multiply-adds, parameters or time that may remain, 0 < share
            <= 1. Time is measured: by ONNX Runtime on this machine, one thread, or by `measure`.
        importance: how channels are ranked. By their weights: "l1", "l2", "bn_scale", "fpgm", "geometric", "random"; with
            calibration data: "taylor", "hessian", "energy", "lasso", "obs", "obs_patches" (docs/pruning.md); one that was
            registered (`register_criterion`), or a function from a `Scoring` to `Scores`. None is what the quality takes,
            "l1" without data.
        allocation: "uniform" takes the share from every family of channels, "global" the least important of the whole model,
            "sensitivity" what costs the least error for what it saves; or {pattern: ratio} for each layer.
        calibration: inputs as the model will see them: arrays, an .npz or .npy, a folder of images, a DataLoader or any
            iterable of batches. With them what reads the removed channels is refitted; without, a warning says what that
            costs. An eighth of them is held out: the report says how far the outputs are off on it, before repair and after,
            and a warning where repair made it worse.
        quality: what is done with calibration data. "standard" ranks by optimal brain selection and folds what is lost into
            what is left; "high" tells the taps of a conv apart and solves least squares on patches (slower, and better at high
            ratios); "fast" matches moments.
        mean, std: what images of a folder are normalised with, a number for each channel or one for all.
        round_to: widths go to the nearest multiple, 8 for what runtimes block channels by; 1 is the exact ratio.
        min_channels: how many channels every layer keeps at least.
        max_ratio: the largest share of its channels that a layer may lose, above 0 and at most 1.
        ignore: layers that keep their width: modules of the model, classes of them (`nn.Linear`), node ids, names of
            parameters or modules, or patterns of these; several in a list, or one alone.
        loss: for importance by gradient, from the model's output to a scalar.
        measure: for a latency, from a pruned model, of the caller's kind, to its time.
        weights_are_constant: as for `fuse`.
        verify: run what was written, and compare it with the pruned graph, where there are inputs; an ONNX model must pass
            onnx.checker and be loaded by ONNX Runtime. The graph itself is always proven.
        inplace: change the caller's model instead of a copy. (Where a GraphModule must stand for a plain module, that is a
            new one all the same, which shares its tensors.)
        return_report: give `(model, PruneReport)`.

    Returns:
        A model of the same kind: a plain module of its own class, or, where its forward() itself would have to change, a
        GraphModule, which the report says; the path of an .onnx file gives a ModelProto.

    Raises:
        InfeasiblePruneError: nothing can be pruned, with what pins each family; a budget that cannot be met; or an option
            makes no sense, or is one that nothing reads (a `loss` for "l1", a `quality` without data).
        UnsupportedModelError: the model cannot be read, a shape is not known, or calibration data does not fit.
        VerificationError: before repair, the pruned graph is not the original with those channels masked (float64, 1e-9); or
            what was written does not compute that graph. The caller's model is as it was.
        RewriteError: what was written does not run, or is no valid ONNX model.

    Source: coupling, selection and repair as in docs/pruning.md.
    """
    settings = made(PruneOptions, "prune", options)
    with outside_modes():
        source, settings = opened(model, example_inputs, settings, copy=not inplace)
        before = source.graph
        result = cut(source, settings)
        warn_of(result, before)
        written = _written(model, source, result.graph, inplace=inplace, verify=verify)
    if not return_report:
        return written
    report = report_of(source, result, Manifest.of(before, result))
    return written, replace(report, graphs=None) if inplace else report


def report_of(source: Source, result: pipeline.PruneResult, manifest: Manifest) -> PruneReport:
    """What was done to an opened model, once it is written: how that could be done is among the remarks."""
    before, after = cost(source.graph), cost(result.graph)
    graphs = Graphs(source.graph, result.graph)
    return PruneReport(source.frontend.name, result.plan, before, after, manifest, source.remarks, graphs)


def warn_of(result: pipeline.PruneResult, before: Graph) -> None:
    """Warns the caller of the public function where nothing was repaired: there was no data, or repair did harm."""
    gain = result.plan.gain
    if result.plan.repair is None and result.graph is not before:
        category = UnrepairedPruneWarning if gain is None else HarmfulRepairWarning
        warnings.warn(why_unrepaired(gain), category, stacklevel=3)


def opened(
    model: Any, example_inputs: Sequence[Any] | None, options: PruneOptions, *, copy: bool
) -> tuple[Source, PruneOptions]:
    """A model with its example inputs, or those that calibration data gives, and options whose data can be gone over again."""
    if isinstance(options.calibration, str | os.PathLike):
        check_path(Path(options.calibration))
    source = _followed(model, example_inputs, copy=copy, weights_are_constant=options.weights_are_constant)
    _check_shapes(source)
    if options.calibration is None:
        return source, options
    data = again(options.calibration)
    return bound(source, data, mean=options.mean, std=options.std), replace(options, calibration=data)


def _followed(model: Any, example_inputs: Sequence[Any] | None, *, copy: bool, weights_are_constant: bool) -> Source:
    """A model that was opened so that channels can be followed through all of it; an ONNX model stays as it is."""
    copied = copy or (weights_are_constant and not isinstance(model, nn.Module))
    source = open(model, example_inputs, copy=copied, weights_are_constant=weights_are_constant)
    if source.kind != "onnx":
        return _with_tensors(source)
    from reparam_compiler.frontends.onnx.subgraphs import without_functions

    return replace(source, model=without_functions(source.model))


def _written(model: Any, source: Source, after: Graph, *, inplace: bool, verify: bool) -> Any:
    """The model that computes a pruned graph: the caller's if `inplace`, also where a copy of it was read."""
    written = write_pruned(source, after, inplace=inplace, verify=verify)
    if not inplace or source.kind != "onnx" or written is model or not isinstance(model, type(written)):
        return written
    model.CopyFrom(written)
    return model


def _with_tensors(source: Source) -> Source:
    """The source, whose graph has a value for each tensor that the model is given: a trace has one for all of a list, a mapping
    or `*args`, so such a module is read as torch.export has it.

    Raises UnsupportedModelError for a GraphModule of that kind.
    """
    if source.inputs is None or source.kind not in ("torch.nn", "torch.fx"):
        return source
    several = next((value for value in source.inputs if _pytree.tree_leaves(value) not in ([value], [])), None)
    found = "" if several is None else f"an input that is a {type(several).__name__}"
    if source.kind == "torch.fx" or source.trace is not None:
        if input_tree(source.native) is not None:  # it was exported, and takes them apart itself
            return source
        star = next((node for node in source.native.graph.find_nodes(op="placeholder") if _is_starred(node)), None)
        found = found or ("" if star is None else f"{star.target} among the arguments")
    if found and source.kind == "torch.fx":
        raise UnsupportedModelError(
            f"found {found}; expected tensors, which pruning follows channels through. Pass torch.export.export(model, "
            "inputs), or a module that is called with the tensors themselves"
        )
    return replace(source, why_exported=f"a trace has one value for {found}") if found else source


def _is_starred(node: fx.Node) -> bool:
    """Whether it is the `*args` of a trace that reads them."""
    return str(node.target).startswith("*") and bool(node.users)


def _check_shapes(source: Source) -> None:
    """Raises what kept shapes from being followed from the example inputs, where they are not known otherwise."""
    error = source.why_without_shapes
    if error is not None and any(node.type is None for node in source.graph if isinstance(node.op, ops.Input)):
        raise error


def cut(source: Source, options: PruneOptions, target: pipeline.Target | None = None) -> pipeline.PruneResult:
    """The graph of an opened model, pruned as the options say; `target` stands in place of their ratio."""
    graph, fitted = source.graph, None
    held_out: Iterable[Batch] = ()
    if options.calibration is not None:
        nodes = [node for node in graph if isinstance(node.op, ops.Input)]
        if not nodes:
            kinds = ", ".join(type(value).__name__ for value in source.inputs or ())
            raise UnsupportedModelError(
                f"found inputs that are no tensors ({kinds or 'none at all'}); expected some, which calibration data is given "
                "for: give a module that is called with tensors, or with lists and mappings of them"
            )
        if target is None and (options.ratio or options.budget):
            pipeline.check_prunable(graph, options.ignored(source.model))
        exact, names = fixed_batch(graph), source.input_names
        data = batches(options.calibration, nodes, exact=exact, mean=options.mean, std=options.std, names=names)
        fitted, held_out = parts(data)
    timed = options.measure or (lambda written: milliseconds(written, graph, source.inputs))
    return pipeline.prune(
        graph,
        ratio=options.ratio,
        budget=options.budget,
        target=target,
        importance=options.importance,
        allocation=options.allocation,
        calibration=fitted,
        held_out=held_out,
        quality=options.quality,
        round_to=options.round_to,
        min_channels=options.min_channels,
        max_ratio=options.max_ratio,
        ignore=options.ignored(source.model),
        measure=lambda candidate: timed(source.reading.write(candidate)),
        loss=options.loss,
    )


def apply_manifest(
    model: Any,
    manifest: Manifest | str | os.PathLike[str],
    example_inputs: Sequence[Any] | None = None,
    *,
    verify: bool = True,
    inplace: bool = False,
    weights_are_constant: bool = False,
) -> Any:
    """Cuts another checkpoint of a pruned architecture where the first one was cut.

    What repair made of the first one's weights is not in a manifest: load its state_dict, calibrate anew (`prune` with data),
    or fine-tune. A layer that repair gave a bias has one of zeros.

    >>> import torch
    >>> from torch import nn
    >>> net, x = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval(), torch.randn(16, 3, 9, 9)
    >>> _, report = prune(net, x[:1], ratio=0.5, calibration=x.numpy(), return_report=True)
    >>> apply_manifest(net, report.manifest, x[:1])(x).shape
    torch.Size([16, 8, 5, 5])

    Args:
        model: as for `prune`, with the weights to cut (fine-tuned, averaged); or a state_dict of the unpruned architecture.
        manifest: one, or the path of one that was saved.
        example_inputs, verify, inplace, weights_are_constant: as for `prune`. A state_dict is never changed.

    Returns:
        The pruned model, of the same kind; for a state_dict one that the pruned model loads.

    Raises:
        UnsupportedModelError: the file is no manifest of this version.
        InfeasiblePruneError: the model has another architecture; the message names the first parameter that differs.
        VerificationError, RewriteError: as for `prune`.
    """
    cut = manifest if isinstance(manifest, Manifest) else Manifest.load(Path(manifest))
    if isinstance(model, Mapping):
        return apply_to_graph(model, cut)
    with outside_modes():
        source = _followed(model, example_inputs, copy=not inplace, weights_are_constant=weights_are_constant)
        return _written(model, source, apply_to_graph(source.graph, cut), inplace=inplace, verify=verify)
