"""Pruning for callers: they bring a model and data, and get an ordinary model of the same kind.

prune             in one shot; with calibration data what is left is refitted
apply_manifest    the same cut on another checkpoint of the architecture
IterativePruner   in rounds, between which the caller trains
"""

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

from torch import nn

from reparam_compiler.api.modes import outside_inference_mode
from reparam_compiler.api.options import PruneKeywords, PruneOptions, RoundKeywords, made, takes
from reparam_compiler.api.report import UNREPAIRED, PruneReport
from reparam_compiler.api.writing import write_pruned
from reparam_compiler.cost.model import cost
from reparam_compiler.errors import InfeasiblePruneError, UnrepairedPruneWarning
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.batch_size import fixed_batch
from reparam_compiler.models.binding import bound
from reparam_compiler.models.calibration import again, batches
from reparam_compiler.models.io import save_model
from reparam_compiler.models.opening import Source, open
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.budget import Schedule
from reparam_compiler.passes.pruning.budget import schedule as ratios_of
from reparam_compiler.passes.pruning.manifest import Manifest
from reparam_compiler.passes.pruning.manifest import apply_manifest as apply_to_graph

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
            costs.
        quality: what is done with calibration data. "standard" ranks by optimal brain selection and folds what is lost into
            what is left; "high" tells the taps of a conv apart and solves least squares on patches (slower, and better at high
            ratios); "fast" matches moments.
        mean, std: what images of a folder are normalised with, a number for each channel or one for all.
        round_to: widths go to the nearest multiple, 8 for what runtimes block channels by; 1 is the exact ratio.
        ignore: layers that keep their width: modules of the model, node ids, names of parameters or modules, or patterns of
            these; several in a list, or one alone.
        loss: for importance by gradient, from the model's output to a scalar.
        measure: for a latency, from a pruned model, of the caller's kind, to its time.
        verify: run what was written, and compare it with the pruned graph, where there are inputs; an ONNX model must pass
            onnx.checker and be loaded by ONNX Runtime. The graph itself is always proven.
        inplace: change the caller's model instead of a copy. (A plain module is traced into a new one all the same, which
            then shares its tensors.)
        return_report: give `(model, PruneReport)`.

    Returns:
        A model of the same kind; the path of an .onnx file gives a ModelProto, a plain module a GraphModule.

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
    with outside_inference_mode():
        source = open(model, example_inputs, copy=not inplace)
        if settings.calibration is not None:
            data = again(settings.calibration)
            settings = replace(settings, calibration=data)
            source = bound(source, data, mean=settings.mean, std=settings.std)
        before = source.graph
        result = _pruned(source, settings)
        if settings.calibration is None and result.graph is not before:
            warnings.warn(UNREPAIRED, UnrepairedPruneWarning, stacklevel=2)
        written = write_pruned(source, result.graph, inplace=inplace, verify=verify)
    if not return_report:
        return written
    manifest = Manifest.of(before, result)
    return written, PruneReport(source.frontend.name, result.plan, cost(before), cost(result.graph), manifest)


def _pruned(source: Source, options: PruneOptions) -> pipeline.PruneResult:
    graph, data = source.graph, None
    if options.calibration is not None:
        nodes = [node for node in graph if isinstance(node.op, ops.Input)]
        exact, names = fixed_batch(graph), source.input_names
        data = batches(options.calibration, nodes, exact=exact, mean=options.mean, std=options.std, names=names)
    timed = options.measure or (lambda written: _milliseconds(written, graph, source.inputs))
    return pipeline.prune(
        graph,
        ratio=options.ratio,
        budget=options.budget,
        importance=options.importance,
        allocation=options.allocation,
        calibration=data,
        quality=options.quality,
        round_to=options.round_to,
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
) -> Any:
    """Cuts another checkpoint of a pruned architecture where the first one was cut.

    What repair added to the first one's biases is not in a manifest: calibrate anew (`prune` with data), or fine-tune.

    >>> import torch
    >>> net, x = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval(), torch.randn(16, 3, 9, 9)
    >>> _, report = prune(net, x[:1], ratio=0.5, calibration=x.numpy(), return_report=True)
    >>> apply_manifest(net, report.manifest, x[:1])(x).shape
    torch.Size([16, 8, 5, 5])

    Args:
        model: as for `prune`, with the weights to cut (fine-tuned, averaged); or a state_dict of the unpruned architecture.
        manifest: one, or the path of one that was saved.
        example_inputs, verify, inplace: as for `prune`. A state_dict is never changed.

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
    with outside_inference_mode():
        source = open(model, example_inputs, copy=not inplace)
        return write_pruned(source, apply_to_graph(source.graph, cut), inplace=inplace, verify=verify)


class IterativePruner:
    """Prunes a module in rounds, each a little narrower, between which the caller trains it.

        pruner = IterativePruner(model, (x,), ratio=0.7, steps=4, schedule="cubic", calibration=images)
        while not pruner.finished:
            train(pruner.step())

    model: as it is now, an ordinary module in the mode that it was given in.
    report: of the last round.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any],
        *,
        ratio: float,
        steps: int,
        schedule: Schedule = "linear",
        verify: bool = True,
        **options: Unpack[RoundKeywords],
    ) -> None:
        """Prunes nothing yet.

        Args:
            model, example_inputs: as for `prune`.
            ratio: the share of channels that is gone after the last round.
            steps: how many rounds.
            schedule: how the share grows (`passes/pruning/budget.py`).
            verify, options: what else `prune` takes, in every round.

        Raises:
            InfeasiblePruneError: an option makes no sense. What the model and the data lack is raised by `step`.
        """
        if amount := [name for name in ("flops", "params", "latency", "measure") if name in options]:
            raise TypeError(f"IterativePruner() got an unexpected keyword argument {amount[0]!r}; it takes a ratio")
        settings = made(PruneOptions, "IterativePruner", options)
        options["ignore"] = settings.ignored(model)  # a module of this model is none of the next round's
        if settings.calibration is not None:  # each round goes over it
            options["calibration"] = again(settings.calibration)
        self.model: nn.Module = model
        self.report: PruneReport | None = None
        self._inputs, self._options, self._verify = example_inputs, options, verify
        self._ratios = list(ratios_of(ratio, steps, schedule))
        self._gone = 0.0

    @property
    def finished(self) -> bool:
        """True after the last round."""
        return not self._ratios

    def step(self) -> nn.Module:
        """One round; raises InfeasiblePruneError after the last one, and what `prune` raises."""
        if self.finished:
            raise InfeasiblePruneError("the last round has been made; start another IterativePruner to go on")
        modes, of_the_rest = _modes(self.model), 1 - (1 - self._ratios[0]) / (1 - self._gone)
        try:
            self.model.eval()
            pruned, self.report = prune(
                self.model, self._inputs, ratio=of_the_rest, verify=self._verify, return_report=True, **self._options
            )
        finally:
            _set_modes(self.model, modes)
        self._gone = self._ratios.pop(0)
        self.model = pruned.train(modes[""])
        _set_modes(self.model, modes)
        return self.model


def _modes(model: nn.Module) -> dict[str, bool]:
    """For each module, by its name, whether it is in training mode; a frozen norm in a model that trains is not."""
    return {name: module.training for name, module in model.named_modules(remove_duplicate=False)}


def _set_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    for name, module in model.named_modules(remove_duplicate=False):
        module.training = modes.get(name, module.training)


def _milliseconds(written: Any, graph: Graph, inputs: Sequence[Any] | None) -> float:
    """The time of a model in ONNX Runtime on one thread, on inputs of the shapes that it was read with."""
    from reparam_compiler.frontends.onnx.timing import milliseconds

    shapes = [node.type.shape for node in graph if isinstance(node.op, ops.Input) and node.type is not None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        save_model(written, path, example_inputs=inputs)
        return milliseconds(path, [[size if isinstance(size, int) else 1 for size in shape] for shape in shapes])
