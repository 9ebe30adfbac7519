"""Pruning for callers: they bring a model and data, and get an ordinary model of the same kind.

prune             in one shot; with calibration data what is left is refitted
apply_manifest    the same cut on another checkpoint of the architecture
IterativePruner   in rounds, between which the caller trains
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, fx, nn

from reparam_compiler.api.fusing import ROUNDED_TOLERANCE, checked
from reparam_compiler.api.report import UNREPAIRED, PruneReport, WholeModel
from reparam_compiler.cost.model import cost
from reparam_compiler.errors import InfeasiblePruneError, UnrepairedPruneWarning, UnsupportedModelError
from reparam_compiler.frontends.base import Reading
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.tracing.modules import traced
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.calibration import Calibration, batches, fixed_batch
from reparam_compiler.models.io import save_model
from reparam_compiler.models.opening import frontend_for, given_inputs, opened
from reparam_compiler.passes.pruning import pipeline as prune_plan
from reparam_compiler.passes.pruning.allocation import AllocationName, RatioOf
from reparam_compiler.passes.pruning.budget import Budget, Schedule, schedule
from reparam_compiler.passes.pruning.criteria.importance import Criterion, Loss
from reparam_compiler.passes.pruning.manifest import Manifest
from reparam_compiler.passes.pruning.manifest import apply_manifest as apply_to_graph
from reparam_compiler.passes.pruning.pipeline import Quality

Model = TypeVar("Model")


@overload
def prune(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    importance: str | Criterion | None = None,
    allocation: AllocationName | RatioOf = "uniform",
    calibration: Calibration | None = None,
    quality: Quality = "standard",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    round_to: int = 8,
    ignore: Iterable[str] = (),
    loss: Loss | None = None,
    measure: Callable[[Any], float] | None = None,
    return_report: Literal[False] = False,
) -> Model: ...
@overload
def prune(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    importance: str | Criterion | None = None,
    allocation: AllocationName | RatioOf = "uniform",
    calibration: Calibration | None = None,
    quality: Quality = "standard",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    round_to: int = 8,
    ignore: Iterable[str] = (),
    loss: Loss | None = None,
    measure: Callable[[Any], float] | None = None,
    return_report: Literal[True],
) -> tuple[Model, PruneReport]: ...
def prune(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    importance: str | Criterion | None = None,
    allocation: AllocationName | RatioOf = "uniform",
    calibration: Calibration | None = None,
    quality: Quality = "standard",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    round_to: int = 8,
    ignore: Iterable[str] = (),
    loss: Loss | None = None,
    measure: Callable[[Any], float] | None = None,
    return_report: bool = False,
) -> Any:
    """Removes channels of every layer that can spare them; the caller's model is not touched.

    A fused model has more to give than one in training form, whose identity branches tie the layers of a stage together: call
    `fuse` first. This function never does.

    Args:
        model: as for `fuse`, but traced whole; shapes must be known.
        example_inputs: what the model is called with; a GraphModule or plain module needs them for its shapes.
        ratio: the share of channels to remove, 0 <= ratio < 1.
        flops, params, latency: in place of a ratio the share of multiply-adds, parameters or time that may remain, 0 < share
            <= 1. Time is measured: by ONNX Runtime on this machine, one thread, or by `measure`.
        importance: how channels are ranked (`importance.py`), or a function; None is what the quality takes.
        allocation: "uniform" takes the share from every family of channels, "global" the least important of the whole model,
            "sensitivity" what costs the least error for what it saves; or {pattern: ratio} for each layer.
        calibration: inputs as the model will see them: arrays, an .npz or .npy, a folder of images, a DataLoader or any
            iterable of batches. With them what reads the removed channels is refitted; without, a warning says what that
            costs.
        quality: "standard" ranks by optimal brain selection and folds what is lost into what is left; "high" tells the taps
            of a conv apart and solves least squares on patches (slower, and better at high ratios); "fast" matches moments.
        mean, std: what images of a folder are normalised with, a number for each channel or one for all.
        round_to: widths go to the nearest multiple, 8 for what runtimes block channels by; 1 is the exact ratio.
        ignore: node ids, parameter names or patterns of layers that keep their width.
        loss: for importance by gradient, from the model's output to a scalar.
        measure: from a pruned model, of the caller's kind, to its time.
        return_report: give `(model, PruneReport)`.

    Raises:
        InfeasiblePruneError: nothing can be pruned, with what pins each family; a budget that cannot be met; or `ratio`,
            `ignore` … make no sense.
        UnsupportedModelError: the model cannot be read, a shape is not known, or calibration data does not fit.
        VerificationError: before repair, the pruned graph is not the original with those channels masked (float64, 1e-9).

    Source: coupling, selection and repair as in docs/pruning.md.
    """
    reading, inputs, inplace, kind = _read(model, example_inputs)
    limits = {name: share for name, share in (("flops", flops), ("params", params), ("latency", latency)) if share is not None}
    sources = [node for node in reading.graph if isinstance(node.op, ops.Input)]
    data = None
    if calibration is not None:
        data = batches(calibration, sources, exact=fixed_batch(reading.graph), mean=mean, std=std)
    timed = measure or (lambda written: _milliseconds(written, reading.graph, inputs))
    found = prune_plan.prune(
        reading.graph,
        ratio=ratio,
        budget=Budget(**limits) if limits else None,
        importance=importance,
        allocation=allocation,
        calibration=data,
        quality=quality,
        round_to=round_to,
        ignore=ignore,
        measure=lambda graph: timed(reading.write(graph)),
        loss=loss,
    )
    if calibration is None and found.graph is not reading.graph:
        warnings.warn(UNREPAIRED, UnrepairedPruneWarning, stacklevel=2)
    written = reading.write(found.graph, inplace=inplace)
    if inputs is not None and isinstance(written, nn.Module):
        _check_written(written, found.graph, inputs)
    if not return_report:
        return written
    manifest = Manifest.of(reading.graph, found)
    return written, PruneReport(kind, found.plan, cost(reading.graph), cost(found.graph), manifest)


def apply_manifest(model: Any, manifest: Manifest | str | os.PathLike[str], example_inputs: Sequence[Any] | None = None) -> Any:
    """Cuts another checkpoint of a pruned architecture where the first one was cut.

    What repair added to the first one's biases is not in a manifest: calibrate anew (`prune` with data), or fine-tune.

    Args:
        model: as for `prune`, with the weights to cut (fine-tuned, averaged); or a state_dict of the unpruned architecture.
        manifest: one, or the path of one that was saved.
        example_inputs: as for `prune`.

    Returns:
        The pruned model, of the same kind; for a state_dict one that the pruned model loads.

    Raises:
        UnsupportedModelError: the file is no manifest of this version.
        InfeasiblePruneError: the model has another architecture; the message names the first parameter that differs.
    """
    found = manifest if isinstance(manifest, Manifest) else Manifest.load(Path(manifest))
    if isinstance(model, Mapping):
        return apply_to_graph(model, found)
    reading, _, inplace, _ = _read(model, example_inputs)
    return reading.write(apply_to_graph(reading.graph, found), inplace=inplace)


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
        **options: Any,
    ) -> None:
        """Prunes nothing yet.

        Args:
            model, example_inputs: as for `prune`.
            ratio: the share of channels that is gone after the last round.
            steps: how many rounds.
            schedule: how the share grows (`passes/pruning/budget.py`).
            options: what else `prune` takes, in every round.
        """
        self.model: nn.Module = model
        self.report: PruneReport | None = None
        self._inputs, self._options = example_inputs, options
        self._ratios = list(_schedule(ratio, steps, schedule))
        self._gone = 0.0

    @property
    def finished(self) -> bool:
        """True after the last round."""
        return not self._ratios

    def step(self) -> nn.Module:
        """One round; raises InfeasiblePruneError after the last one, and what `prune` raises."""
        if self.finished:
            raise InfeasiblePruneError("the last round has been made; start another IterativePruner to go on")
        training, of_the_rest = self.model.training, 1 - (1 - self._ratios[0]) / (1 - self._gone)
        try:
            pruned, self.report = prune(self.model.eval(), self._inputs, ratio=of_the_rest, return_report=True, **self._options)
        finally:
            self.model.train(training)
        self._gone = self._ratios.pop(0)
        self.model = pruned.train(training)
        return self.model


_schedule = schedule


def _read(model: Any, example_inputs: Sequence[Any] | None) -> tuple[Reading[Any], Sequence[Any] | None, bool, str]:
    """A model that was read, its inputs, whether what was read is a copy already, and its kind."""
    model, inputs, inplace = opened(model), given_inputs(example_inputs), False
    if isinstance(model, nn.Module) and not isinstance(model, fx.GraphModule):
        graph_module = traced(model, inputs, copy=True)
        if graph_module is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be traced as a whole, and channels are coupled across the whole model; "
                "pass example_inputs, or export the model yourself and pass the ExportedProgram"
            )
        model, inplace = graph_module, True
    frontend = frontend_for(model)
    return frontend.read(model, inputs), inputs, inplace, frontend.name


def _milliseconds(written: Any, graph: Graph, inputs: Sequence[Any] | None) -> float:
    """The time of a model in ONNX Runtime on one thread, on inputs of the shapes that it was read with."""
    from reparam_compiler.frontends.onnx.timing import milliseconds

    shapes = [node.type.shape for node in graph if isinstance(node.op, ops.Input) and node.type is not None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        save_model(written, path, example_inputs=inputs)
        return milliseconds(path, [[size if isinstance(size, int) else 1 for size in shape] for shape in shapes])


def _check_written(written: nn.Module, graph: Graph, example_inputs: Sequence[Any]) -> None:
    """What was written back computes the graph: raises VerificationError where it does not (the new weights are rounded)."""
    ids = [node.id for node in graph if isinstance(node.op, ops.Input)]
    if len(ids) != len(example_inputs) or not all(isinstance(x, Tensor) for x in example_inputs):
        return
    expected = evaluate(graph, dict(zip(ids, example_inputs, strict=True)))
    model = deep_copy(written).double()
    with torch.no_grad():
        given = model(*(x.double() if x.is_floating_point() else x for x in example_inputs))
    found = [value for value in torch.utils._pytree.tree_leaves(given) if isinstance(value, Tensor)]
    if len(found) != len(graph.outputs):  # an output given twice, or one that is no tensor
        return
    for node_id, value in zip(graph.outputs, found, strict=True):
        checked(WholeModel("torch, float64", difference(expected[node_id], value)), ROUNDED_TOLERANCE)
