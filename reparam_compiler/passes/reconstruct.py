"""Repairs what pruning broke, from calibration data and without training: the removed channels, as far as the kept ones predict
them, are folded into the weights that read them.

For a consumer with weight W, whose input z has kept channels K and removed ones R, least squares on calibration data gives

    z_R ~ A z_K + c      A = S_RK (S_KK + r I)^-1,    c = m_R - A m_K       (m mean, S covariance, r ridge x mean S_kk)
    W_K <- W_K + W_R A,  b <- b + W_R c,  W_R <- 0                          (W_R c summed over the taps)

All channels of z are those of the network *already pruned and repaired* up to here: every channel is still computed, but
nothing reads the removed ones. (Regressing on the original's activations instead lets the errors add up.) The operands of a
concat are regressed together; after a flatten one matrix serves all positions of a channel; in a group conv each group
absorbs its own. A constant in the bias is not exact where a conv reads zero padding.

The graph is run once, a node after the other, over all batches: memory is the activations that are still to be read, of all
calibration data, in float32; time is one forward pass and, for each consumer, the C x C covariance over all its positions.

Sources: He et al. 2017 ("Channel Pruning for Accelerating Very Deep Neural Networks"), Luo et al. 2017 (ThiNet).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from reparam_compiler.equivalence import evaluate_node, tensor_of
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.channel_groups import ChannelGroups, Keep
from reparam_compiler.passes.channel_labels import Labels

Array = Tensor | np.ndarray
Batch = Sequence[Array] | Array
"""An array for each model input, in order; one array alone for a model of one input."""

RIDGE = 1e-3
WIDEST = 4096
"""The widest input that is regressed position by position, where its channels do not have equally many."""
_CHUNK = 2**22
"""Elements of an activation that are brought to float64 at a time."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """A consumer that absorbed the channels that it lost; `unexplained` is the share of their variance that it could not."""

    node: NodeId
    removed: int
    unexplained: float


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A consumer that lost channels and was not repaired, and why."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, consumer by consumer, on how many calibration samples."""

    samples: int
    repaired: tuple[Repaired, ...]
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean `C` and covariance `C C` of channels."""

    mean: Float64[np.ndarray, "C"]
    covariance: Float64[np.ndarray, "C C"]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Removed channels from kept ones: `matrix` `R K`, `constant` `R`, and the share of the variance that is not predicted."""

    matrix: Float64[np.ndarray, "R K"]
    constant: Float64[np.ndarray, "R"]
    unexplained: float


def fold(
    graph: Graph,
    hidden: Graph,
    groups: ChannelGroups,
    keep: Keep,
    batches: Iterable[Batch],
    *,
    ridge: float = RIDGE,
    dtype: torch.dtype = torch.float32,
) -> tuple[Graph, Repair]:
    """The masked graph with every consumer repaired; its removed input slices are still zero, so that it can be sliced.

    Args:
        graph: the model before pruning.
        hidden: the same, masked.
        groups: the coupling of `graph`.
        keep: the groups that stay.
        batches: calibration data.
        ridge: relative to the mean variance of the kept channels.
        dtype: what activations are computed in; statistics are always float64.

    Raises:
        InfeasiblePruneError: no calibration data, or not an array for each input.
        RewriteError: a node cannot be run on this data.
    """
    values = _inputs(graph, batches, dtype)
    given = next(iter(values.values()))
    batch_count, samples = len(given), sum(len(batch) for batch in given)
    left = {node_id: len(readers) for node_id, readers in graph.users.items()}
    replacements: dict[NodeId, Node] = {}
    repaired: list[Repaired] = []
    passed_over: list[PassedOver] = []
    with torch.no_grad():
        for node in graph:
            if isinstance(node.op, ops.Input):
                continue
            now = hidden[node.id]
            stays = groups.read(node, keep)
            if stays is not None and not stays.all():
                reason = _why_not(node, graph, groups, values)
                if reason:
                    passed_over.append(PassedOver(node.id, reason))
                else:
                    now, unexplained = _absorbed(node, graph, groups, keep, values[node.sources[0]], ridge)
                    repaired.append(Repaired(node.id, int((~stays).sum()), unexplained))
            if now is not node:
                replacements[node.id] = now
            if (
                all(source in values for source in node.sources)
                and (result := _run(now, values, batch_count, dtype)) is not None
            ):
                values[node.id] = result
            for source in set(node.sources):
                left[source] -= 1
                if not left[source]:
                    values.pop(source, None)
    return graph.rewrite(replacements), Repair(samples, tuple(repaired), tuple(passed_over))


def moments(rows: Iterable[Float64[np.ndarray, "M C"]]) -> Moments:
    """Mean and covariance of channels, over all rows, a piece at a time; raises ValueError where there is no row."""
    count, total, product = 0, np.zeros(0), np.zeros((0, 0))
    for piece in rows:
        if not count:
            total, product = np.zeros(piece.shape[1]), np.zeros((piece.shape[1],) * 2)
            shift = piece.mean(0)  # near the mean, so that the difference of squares below loses no digits
        centred = piece - shift
        count, total, product = count + len(piece), total + centred.sum(0), product + centred.T @ centred
    if not count:
        raise ValueError("no rows: the moments of nothing are not defined")
    mean = total / count
    return Moments(mean + shift, product / count - np.outer(mean, mean))


def regress(observed: Moments, kept: Bool[np.ndarray, "C"], ridge: float = RIDGE) -> Prediction:
    """The best affine prediction of the channels that are not kept from those that are (the equation of the module)."""
    cov, mean = observed.covariance, observed.mean
    cross, own = cov[np.ix_(~kept, kept)], cov[np.ix_(kept, kept)]
    scale = float(np.trace(own)) / len(own)
    matrix = np.linalg.solve(own + ridge * scale * np.eye(len(own)), cross.T).T if scale > 0 else np.zeros_like(cross)
    variance = cov.diagonal()[~kept]
    rest = variance - 2 * (matrix * cross).sum(1) + ((matrix @ own) * matrix).sum(1)
    unexplained = float(rest.sum() / variance.sum()) if variance.sum() > 0 else 0.0
    return Prediction(matrix, mean[~kept] - matrix @ mean[kept], min(max(unexplained, 0.0), 1.0))


def absorb(
    weight: Float64[np.ndarray, "O I *K"],
    bias: Float64[np.ndarray, "O"],
    places: Int64[np.ndarray, "C P"],
    kept: Bool[np.ndarray, "C"],
    prediction: Prediction,
) -> tuple[Float64[np.ndarray, "O I *K"], Float64[np.ndarray, "O"]]:
    """The weight and bias that read predictions instead of removed channels; channel c stands at `places[c]` of axis 1."""
    removed = weight[:, places[~kept]]  # O R P *K
    weight = weight.copy()
    weight[:, places[kept]] += np.moveaxis(np.tensordot(prediction.matrix, removed, (0, 1)), 0, 1)
    weight[:, places[~kept]] = 0
    constant: Float64[np.ndarray, "O"] = removed.reshape(*removed.shape[:2], -1).sum(-1) @ prediction.constant
    return weight, bias + constant


def _absorbed(
    node: Node, graph: Graph, groups: ChannelGroups, keep: Keep, values: Sequence[Any], ridge: float
) -> tuple[Node, float]:
    """The repaired consumer, group by group, and the worst share of variance that a group could not predict."""
    weight, bias = node.param(1), node.param(2)
    if weight is None:
        raise InfeasiblePruneError(f"{node.id}: a consumer without weight")
    blocks = node.op.groups if isinstance(node.op, ops.Conv) else 1
    axis = 1 if isinstance(node.op, ops.Conv) else -1
    old, out, into = weight.float64(), weight.shape[0] // blocks, weight.shape[1]
    labels = groups.value(node.sources[0]).labels
    new_weight, new_bias = np.empty_like(old), bias.float64() if bias else np.zeros(len(old))
    new_bias, worst = new_bias.copy(), 0.0
    for block in range(blocks):
        own, rows = labels[block * into : (block + 1) * into], slice(block * out, (block + 1) * out)
        places = channel_places(own)
        if places is None:
            raise InfeasiblePruneError(f"{node.id}: its {into} inputs are too many to regress")
        kept = groups.kept(keep, own[places[:, 0]])
        prediction = regress(moments(_rows(values, axis, block * into + places)), kept, ridge)
        new_weight[rows], new_bias[rows] = absorb(old[rows], new_bias[rows], places, kept, prediction)
        worst = max(worst, prediction.unexplained)
    shared = bias is not None and len(graph.param_users[bias]) > 1
    stored = Param.of(new_bias, role="bias", dtype=weight.dtype, origin=bias.origin if bias and not shared else None)
    operands = (node.inputs[0], Param.of(new_weight, role=weight.role, dtype=weight.dtype, origin=weight.origin), stored)
    return replace(node, inputs=operands), worst


def channel_places(labels: Labels) -> Int64[np.ndarray, "C P"] | None:
    """Where each channel stands: a flatten gives it many positions. None where that differs and the input is too wide."""
    distinct, count = np.unique(labels, return_counts=True)
    if count.min() == count.max():
        return np.argsort(labels, kind="stable").reshape(len(distinct), -1)
    return np.arange(len(labels)).reshape(-1, 1) if len(labels) <= WIDEST else None


def _rows(values: Sequence[Any], axis: int, places: Int64[np.ndarray, "C P"]) -> Iterable[Float64[np.ndarray, "M C"]]:
    """A row for each sample and position, a column for each channel."""
    index = torch.from_numpy(places.T.ravel())
    for value in values:
        for part in value.split(max(1, _CHUNK // max(1, value[:1].numel()))):
            picked = part.movedim(axis, -1)[..., index].double()
            yield picked.reshape(-1, len(places)).numpy()


def _why_not(node: Node, graph: Graph, groups: ChannelGroups, values: Mapping[NodeId, object]) -> str:
    """Why a consumer cannot be repaired; empty where it can."""
    if node.sources[0] not in values:
        return "comes after an op that cannot be run outside its model"
    weight = node.param(1)
    if weight is not None and len(graph.param_users[weight]) > 1:
        return "shares its weight with another node"
    if channel_places(groups.value(node.sources[0]).labels) is None:
        return f"reads more than {WIDEST} positions, of channels that have unequally many"
    return ""


def _run(node: Node, values: Mapping[NodeId, list[Any]], batch_count: int, dtype: torch.dtype) -> list[Any] | None:
    """The node on every batch, its parameters loaded once; None for an opaque op that cannot be run."""
    names = {f"operand {i}": tensor_of(p, dtype) for i, p in enumerate(node.inputs) if isinstance(p, Param)}
    operands = tuple(f"operand {i}" if isinstance(p, Param) else p for i, p in enumerate(node.inputs))
    bare = replace(node, inputs=operands)
    if isinstance(node.op, ops.Opaque) and node.op.run is None:
        return None
    return [evaluate_node(bare, names | {s: values[s][b] for s in node.sources}, dtype) for b in range(batch_count)]


def _inputs(graph: Graph, batches: Iterable[Batch], dtype: torch.dtype) -> dict[NodeId, list[Any]]:
    inputs = [node.id for node in graph if isinstance(node.op, ops.Input)]
    values: dict[NodeId, list[Any]] = {node_id: [] for node_id in inputs}
    for number, batch in enumerate(batches):
        arrays = (batch,) if isinstance(batch, Tensor | np.ndarray) else tuple(batch)
        if len(arrays) != len(inputs):
            raise InfeasiblePruneError(
                f"calibration: batch {number} has {len(arrays)} arrays, the model {len(inputs)} inputs ({', '.join(inputs)}); "
                "give a tuple with one array for each input"
            )
        for node_id, array in zip(inputs, arrays, strict=True):
            tensor = torch.as_tensor(array).detach().cpu()
            values[node_id].append(tensor.to(dtype) if tensor.is_floating_point() else tensor)
    if not inputs or not values[inputs[0]]:
        raise InfeasiblePruneError("calibration: there is no batch; give at least one, 32 images are enough")
    return values
