"""Criteria by the gradient of a loss L on calibration data, with w the weights and biases of a group's filters:

    taylor     sum over batches and w of |w dL/dw|               what L changes by, to first order, where w becomes 0
                                                                 (Molchanov et al. 2019, "Importance Estimation for Neural
                                                                 Network Pruning")
    hessian    1/2 sum over w of h w^2,  h = mean (dL_n/dw)^2    the same to second order at a minimum, with the diagonal of the
                                                                 empirical Fisher for the Hessian's (LeCun et al. 1990,
                                                                 "Optimal Brain Damage")

Calibration data has no labels. The loss is the caller's; by default, for one output of shape `N C`, the cross-entropy with the
model's own most likely class as the label, averaged over the batch, and else half the squared norm of each output, per sample.
`hessian` takes the gradient of one sample n at a time, of the first `FISHER_SAMPLES`; where the graph states the size of its
batch, which cannot be taken apart then, a batch counts as a sample.

Gradients run on the internal graph by torch's autograd in float32, a batch at a time.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param
from reparam_compiler.passes.pruning.coupling.labels import Labels, coupling_model
from reparam_compiler.passes.pruning.criteria.base import Scores, Scoring, register_criterion, stands, summed
from reparam_compiler.passes.pruning.criteria.running import Inputs, Running, batches_of, samples_of

FISHER_SAMPLES = 64
"""How many samples the Fisher information is the mean of, at most: each costs a forward and a backward pass."""


@register_criterion("taylor")
def taylor(scoring: Scoring) -> Scores:
    """First order; raises InfeasiblePruneError without calibration data or for a loss that is no scalar or not finite."""
    trained = _trained(scoring)
    running = Running(scoring.graph, trained=tuple(trained))
    totals = {param: torch.zeros_like(leaf) for param, leaf in running.leaves.items()}
    for inputs in batches_of(scoring, "taylor"):
        for param, gradient in _gradients(running, inputs, scoring):
            totals[param] += (running.leaves[param].detach() * gradient).abs()
    return _per_group(scoring, trained, totals)


@register_criterion("hessian")
def hessian(scoring: Scoring) -> Scores:
    """Second order; raises as `taylor` does."""
    trained = _trained(scoring)
    running = Running(scoring.graph, trained=tuple(trained))
    squares = {param: torch.zeros_like(leaf) for param, leaf in running.leaves.items()}
    count = 0
    for inputs in batches_of(scoring, "hessian"):
        for sample in samples_of(scoring.graph, inputs):
            if count == FISHER_SAMPLES:
                break
            count += 1
            for param, gradient in _gradients(running, sample, scoring):
                squares[param] += gradient**2
        if count == FISHER_SAMPLES:
            break
    totals = {param: 0.5 * square / count * running.leaves[param].detach() ** 2 for param, square in squares.items()}
    return _per_group(scoring, trained, totals)


def default_loss(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What gradients are taken of where the caller gives no loss (see the module).

    Raises InfeasiblePruneError where no output is of floating point.
    """
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
        return F.cross_entropy(outputs, outputs.detach().argmax(1))
    whole = (outputs,) if isinstance(outputs, Tensor) else outputs
    parts = [0.5 * (value**2).sum() / (len(value) if value.ndim else 1) for value in whole if value.is_floating_point()]
    if not parts:
        found = ", ".join(str(value.dtype).removeprefix("torch.") for value in whole)
        raise InfeasiblePruneError(
            f"loss: the model gives {found}, which no gradient comes from; expected an output of floating point. Rank by a "
            "criterion without a gradient ('energy', 'obs'), or prune the model without its last op (an argmax, say)"
        )
    return torch.stack(parts).sum()


def _trained(scoring: Scoring) -> dict[Param, tuple[int, Labels]]:
    """Weights and biases of convs, linears and embeddings with the axis of their outputs and the labels along it."""
    trained: dict[Param, tuple[int, Labels]] = {}
    for node, index, param, axes in scoring.groups.params(scoring.graph):
        if isinstance(coupling_model(node)[0], ops.Weighted | ops.Embedding):
            for axis, labels in axes.items():
                if stands(node, index, axis, axes) != "read":
                    trained.setdefault(param, (axis, labels))
    return trained


def _gradients(running: Running, inputs: Inputs, scoring: Scoring) -> Iterator[tuple[Param, Tensor]]:
    outputs = running.outputs(inputs)
    loss = (scoring.loss or default_loss)(outputs[0] if len(outputs) == 1 else outputs)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite().all()):
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) and loss.numel() != 1 else repr(loss)
        raise InfeasiblePruneError(f"the loss gave {found}; expected a finite scalar tensor that depends on the outputs")
    if not loss.requires_grad:
        raise InfeasiblePruneError(
            "the loss does not depend on the parameters: it was given outputs and must use them as they are"
        )
    leaves = list(running.leaves.values())
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    for param, gradient in zip(running.leaves, gradients, strict=True):
        if gradient is not None:
            yield param, gradient


def _per_group(scoring: Scoring, trained: dict[Param, tuple[int, Labels]], totals: dict[Param, Tensor]) -> Scores:
    return summed(
        scoring,
        (
            (labels, totals[param].double().movedim(axis, 0).reshape(len(labels), -1).sum(1).numpy())
            for param, (axis, labels) in trained.items()
        ),
    )
