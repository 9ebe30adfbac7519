"""Repairs what pruning broke, from calibration data and without training: what reads removed channels learns to do without.

The nodes are walked in order; each is repaired on what the network *already pruned and repaired* up to there gives it, towards
what it did in the original one. (Towards the pruned network's own values the errors add up: on the digits net at ratio 0.5,
48 % of the test images are right instead of 98 %.) Three ways, from cheap to good; `core/least_squares.py` has the equations:

    moments         each output gets the mean m and the deviation s back that it had       W' = W s/s',  b' = m + (b - m') s/s'
    fold            all channels that were read are predicted from those that are left,
                    and that goes into the weights; all taps of a conv share it            W' = W A,     b' = b + W c
    least_squares   the outputs are predicted from the patches that are left, padding
                    included, each tap for itself; before a ReLU only what passes counts   W' = S_yz S_zz^-1
                    (that many numbers want much data: `moved.py` makes twice as much)

A group conv is repaired group by group; a depthwise conv cannot mix channels, so each of its filters is refitted by itself. A
concat's operands are regressed together, since they stand in one input. Convs and linears that lost nothing but read something
else than before are refitted too. A constant in the bias is not exact where a conv reads zero padding, but by least squares.

A transposed conv is folded, by least squares too: not all of its taps meet in one output. A tap t has the constant W_t c, and
the sums of those that meet differ by place (`unequal`); what a bias cannot add, u_t, the kept channels do, by their best
prediction q z of 1:

    W_t' = W_t A + u_t q^T,    b' = b + mean y - mean y'

A depthwise one gets moments back. What only sums over channels (attention, a mean) has no weight to refit, and is named.

Time is two forward passes and, for each node, covariances over all its positions; memory is bounded by the largest of these
(`passes/pruning/repair/activations.py` puts activations that do not fit into files).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from reparam_compiler.core.least_squares import (
    RIDGE,
    Moments,
    Prediction,
    Rows,
    Spread,
    fold,
    moments,
    refit,
    refit_each,
    refit_rectified,
)
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.ir.kind import OperandName
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Keep
from reparam_compiler.passes.pruning.coupling.labels import coupling_model
from reparam_compiler.passes.pruning.repair.activations import Activations, Batch
from reparam_compiler.passes.pruning.repair.consumers import (
    Block,
    blocks,
    channel_rows,
    depthwise_rows,
    mixes,
    output_rows,
    outputs_first,
    patch_rows,
    rows,
    taps,
)
from reparam_compiler.passes.pruning.repair.moved import WithMoved, can_be_moved
from reparam_compiler.progress import steps

RepairName = Literal["moments", "fold", "least_squares"]
_PARAMS: tuple[OperandName, ...] = ("weight", "bias")
WIDEST = 8192
"""The most features that are regressed on."""
_WEAKEST = 1e-12
"""The least variance, relative to the largest of the node's outputs, that an output is scaled from or to."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """A node that makes good for what it lost.

    removed: channels that it reads no more; 0 for one that is only refitted to what comes before.
    unexplained: the share of the variance, of what it read (`fold`) or gave (`least_squares`), that the rest cannot predict;
        None where only moments were matched.
    """

    node: NodeId
    removed: int
    unexplained: float | None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A consumer that lost channels and was not repaired, and why."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, consumer by consumer.

    samples: of calibration data that were fitted to. moved: copies of them, moved a little (`moved.py`), that were too.
    """

    how: RepairName
    samples: int
    moved: int
    repaired: tuple[Repaired, ...]
    passed_over: tuple[PassedOver, ...]

    @property
    def samples_text(self) -> str:
        """How many samples, in words."""
        return f"{self.samples} calibration samples{' and as many moved copies' if self.moved else ''}"


def repair(
    graph: Graph,
    hidden: Graph,
    groups: ChannelGroups,
    keep: Keep,
    batches: Iterable[Batch],
    *,
    how: RepairName = "fold",
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
        how: see the module.
        ridge: relative to the mean variance of what is regressed on.
        dtype: what activations are computed in; statistics are always float64.

    Raises:
        InfeasiblePruneError: no calibration data, or not an array for each input.
        RewriteError: a node cannot be run on this data.
    """
    twice = how == "least_squares" and can_be_moved(graph)
    values = Activations(graph, WithMoved(batches) if twice else batches, dtype=dtype)
    work = _Repair(graph, groups, keep, values, how, ridge)
    replacements: dict[NodeId, Node] = {}
    with torch.no_grad():
        for node in steps(graph, "repairing what reads removed channels", len(graph.nodes)):
            if isinstance(node.op, ops.Input):
                continue
            values.run_before(node)
            now = work.repaired(node, hidden.nodes.get(node.id, node))  # a number that masked nodes are not told is not there
            if now is not node:
                replacements[node.id] = now
            values.run_now(node, now)
    given = values.samples // 2 if twice else values.samples
    done, passed_over = tuple(work.done), tuple(work.passed_over)
    return graph.rewrite(replacements), Repair(how, given, values.samples - given, done, passed_over)


@dataclass(slots=True, eq=False)
class _Repair:
    """The repair of one graph, as far as it has come."""

    graph: Graph
    groups: ChannelGroups
    keep: Keep
    values: Activations
    how: RepairName
    ridge: float
    done: list[Repaired] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)

    def repaired(self, node: Node, hidden: Node) -> Node:
        """The node as it shall be: `hidden`, which reads no removed channel, or better."""
        if summed := self._lost_in_sums(node):
            self.passed_over.append(PassedOver(node.id, f"sums over {summed} channels fewer and has no weight for them"))
            return hidden
        removed = 0
        if (stays := self.groups.read(node, self.keep)) is not None:
            removed = int((~stays).sum())
        if not removed and (node.id not in self.values or self.values.same(node)):
            return hidden
        depthwise = isinstance(node.op, ops.Conv | ops.ConvTranspose) and not mixes(node)
        own = blocks(node, self.groups) if mixes(node) else ()
        if reason := self._why_not(node, own) or ("" if own or depthwise else "mixes another axis than the channels"):
            if removed:
                self.passed_over.append(PassedOver(node.id, reason))
            return hidden
        try:
            refitted = self._refitted(node, hidden, own)
        except np.linalg.LinAlgError:
            refitted = None
        if refitted is None or not (np.isfinite(refitted.weight).all() and np.isfinite(refitted.bias).all()):
            self.passed_over.append(PassedOver(node.id, "reads or gives numbers on the calibration data that are not finite"))
            return hidden
        return self._stored(hidden, removed, refitted)

    def _refitted(self, node: Node, hidden: Node, own: tuple[Block, ...]) -> "_Refitted":
        """New parameters for a node, which has no blocks where it is depthwise."""
        transposed = isinstance(node.op, ops.ConvTranspose)
        if self.how == "moments" or (transposed and not own):
            return self._scaled(node, hidden)
        if not own:
            return self._each_filter(node)
        refitted = self._all_blocks(node, own)
        return self._level(node, hidden, refitted) if transposed else refitted

    def _lost_in_sums(self, node: Node) -> int:
        """How many channels an op without weights (an attention, a mean) sums over no more, and does not pass on."""
        op, seen = coupling_model(node)
        ended = 0
        for labels in self.groups.along(seen, "mask").values() if op.has_mask else ():
            lost = self.groups.number[labels[~self.groups.kept(self.keep, labels)]]
            passed_on = np.isin(lost, self.groups.number[self.groups.value(node.id).labels])
            ended += int((~passed_on).sum())
        return ended

    def _why_not(self, node: Node, own: tuple[Block, ...]) -> str:
        """Why a node cannot be repaired; empty where it can."""
        if not mixes(node) and not isinstance(node.op, ops.Conv | ops.ConvTranspose):
            return "is no conv or linear"
        if node.sources[0] not in self.values:
            return "comes after an op that cannot be run outside its model"
        for name in _PARAMS:
            operand = node.operand(name)
            if isinstance(operand, Param) and len(self.graph.param_users[operand]) > 1:
                return f"shares its {name} with another node"
        if not node.has_constant_params:
            return "has a weight that is computed"
        widest = max((len(block.places) for block in own), default=0)
        return f"reads {widest} channels; at most {WIDEST} are regressed" if widest > WIDEST else ""

    def _stored(self, node: Node, removed: int, refitted: "_Refitted") -> Node:
        self.done.append(Repaired(node.id, removed, refitted.unexplained))
        return _with_params(node, refitted)

    def _spreads(self, node: Node, changed: Node) -> tuple[Spread, Spread]:
        """Of each output of a node: what it was, and what it would be by the changed node."""
        was, now = Spread(), Spread()
        for spread, outputs in ((was, self.values.before(node.id)), (now, self.values.preview(changed))):
            for y in outputs:
                spread.add(output_rows(node, y))
        return was, now

    def _level(self, node: Node, hidden: Node, refitted: "_Refitted") -> "_Refitted":
        """The same with the mean of each output as it was: what the taps of a transposed conv add up to differs by place."""
        was, now = self._spreads(node, _with_params(hidden, refitted))
        return replace(refitted, bias=refitted.bias + was.mean - now.mean)

    def _scaled(self, node: Node, hidden: Node) -> "_Refitted":
        """Mean and deviation of each output as they were."""
        was, now = self._spreads(node, hidden)
        weight, bias = _params(hidden)
        least = _WEAKEST * max(float(was.variance.max()), float(now.variance.max()))
        usable = (was.variance > least) & (now.variance > least)
        scale = np.sqrt(np.divide(was.variance, now.variance, out=np.ones_like(bias), where=usable))
        scaled = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        return _Refitted(scaled, was.mean + (bias - now.mean) * scale, None)

    def _each_filter(self, node: Node) -> "_Refitted":
        """Each filter of a depthwise conv refitted to its own channel."""
        weight, _ = _params(node)
        channels = node.op.blocks if isinstance(node.op, ops.Weighted) else 1
        refit = refit_each(depthwise_rows(node, self.values), weight.reshape(channels, len(weight) // channels, -1), self.ridge)
        return _Refitted(refit.matrix.reshape(weight.shape), refit.constant.reshape(-1), refit.unexplained)

    def _all_blocks(self, node: Node, own: tuple[Block, ...]) -> "_Refitted":
        weight, bias = _params(node)
        new_weight, new_bias, worst = np.zeros_like(weight), bias.copy(), 0.0
        count = sum(rows(node, x) for x in self.values.before(node.sources[0]))  # fewer than features say too little of them
        for block in own:
            patches = self.how == "least_squares" and not isinstance(node.op, ops.ConvTranspose)
            apart = patches and len(block.channels) * taps(node) <= min(WIDEST, count)
            own_fit = (self._from_patches if apart else self._from_channels)(
                node, block, weight[block.outputs], bias[block.outputs]
            )
            new_weight[block.outputs], new_bias[block.outputs] = own_fit.weight, own_fit.bias
            worst = max(worst, own_fit.unexplained or 0.0)
        return _Refitted(new_weight, new_bias, worst)

    def _from_channels(
        self, node: Node, block: Block, weight: Float64[np.ndarray, "O I *K"], bias: Float64[np.ndarray, "O"]
    ) -> "_Refitted":
        places = block.places
        kept = self.groups.kept(self.keep, block.labels[places[:, 0]])
        observed = moments(channel_rows(node, self.values, block.channels[places], kept))
        prediction = fold(observed, kept, self.ridge)
        absorbed, shift = absorb(weight, bias, places, kept, prediction)
        if isinstance(node.op, ops.ConvTranspose):
            constants = np.tensordot(weight[:, places].sum(2), prediction.constant, (1, 0))  # O *K
            read = np.repeat(one(observed, self.ridge)[:, None] / places.shape[1], places.shape[1], axis=1)  # R P
            absorbed[:, places[kept]] += np.moveaxis(np.multiply.outer(read, unequal(node.op, constants)), 2, 0)
        return _Refitted(absorbed, shift, prediction.unexplained)

    def _from_patches(
        self, node: Node, block: Block, weight: Float64[np.ndarray, "O I *K"], bias: Float64[np.ndarray, "O"]
    ) -> "_Refitted":
        kept = self.groups.kept(self.keep, block.labels)
        start = weight[:, kept].reshape(len(weight), -1)

        def pieces() -> Rows:
            return patch_rows(node, self.values, block.outputs, block.channels[kept])

        rectified = node.id not in self.graph.outputs and all(map(self._is_relu, self.graph.users[node.id]))
        fit = refit_rectified(pieces, start, self.ridge) if rectified else refit(moments(pieces()), start, self.ridge)
        refitted = np.zeros_like(weight)
        refitted[:, kept] = fit.matrix.reshape(len(weight), -1, *weight.shape[2:])
        return _Refitted(refitted, fit.constant, fit.unexplained)

    def _is_relu(self, node_id: NodeId) -> bool:
        return self.graph[node_id].op == ops.Elementwise("relu")


@dataclass(frozen=True, slots=True, eq=False)
class _Refitted:
    """New parameters of a node, or of one of its blocks."""

    weight: Float64[np.ndarray, "O I *K"]
    bias: Float64[np.ndarray, "O"]
    unexplained: float | None


def absorb(
    weight: Float64[np.ndarray, "O I *K"],
    bias: Float64[np.ndarray, "O"],
    places: Int64[np.ndarray, "C P"],
    kept: Bool[np.ndarray, "C"],
    prediction: Prediction,
) -> tuple[Float64[np.ndarray, "O I *K"], Float64[np.ndarray, "O"]]:
    """The weight and bias that read predictions instead of channels; channel c stands at `places[c]` of axis 1."""
    read = weight[:, places]  # O C P *K
    absorbed = np.zeros_like(weight)
    absorbed[:, places[kept]] = np.moveaxis(np.tensordot(prediction.matrix, read, (0, 1)), 0, 1)
    constant: Float64[np.ndarray, "O"] = read.reshape(*read.shape[:2], -1).sum(-1) @ prediction.constant
    return absorbed, bias + constant


def unequal(op: ops.ConvTranspose, constants: Float64[np.ndarray, "O *K"]) -> Float64[np.ndarray, "O *K"]:
    """What each tap is to add that a bias cannot: a bias is the same everywhere, and only every `stride`-th tap meets others.

    The constants that meet add up; what a sum has beyond the mean of all sums is shared by the taps that meet. Where a place
    that no tap goes to has the bias alone, a bias adds nothing.
    """
    size = constants.shape[1:]
    places = [np.arange(k) * d % s for k, d, s in zip(size, op.dilation, op.stride, strict=True)]
    meet = np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), op.stride).ravel()
    sums = np.zeros((len(constants), math.prod(op.stride)))
    np.add.at(sums.T, meet, constants.reshape(len(constants), -1).T)
    count = np.bincount(meet, minlength=sums.shape[1])
    common = sums.mean(1, keepdims=True) if count.all() else 0.0
    return ((sums - common)[:, meet] / count[meet]).reshape(constants.shape)


def one(observed: Moments, ridge: float) -> Float64[np.ndarray, "R"]:
    """The best prediction of the constant 1 from what is seen, without a constant."""
    products = observed.own + np.outer(observed.seen_mean, observed.seen_mean)
    damping = ridge * float(np.trace(products)) / max(1, len(products))
    if not damping:
        return np.zeros_like(observed.seen_mean)
    return np.linalg.solve(products + damping * np.eye(len(products)), observed.seen_mean)


def _with_params(node: Node, refitted: _Refitted) -> Node:
    """The node with new parameters, of the dtype, role and origin that its own have."""
    old, shift = node.params[0], node.param("bias")
    weight = Param.of(outputs_first(node, refitted.weight), role=old.role, dtype=old.dtype, origin=old.origin)
    bias = Param.of(refitted.bias, role="bias", dtype=old.dtype, origin=shift.origin if shift else None)
    return node.with_operands({"weight": weight, "bias": bias})


def _params(node: Node) -> tuple[Float64[np.ndarray, "O I *K"], Float64[np.ndarray, "O"]]:
    """The weight and the bias, zero where there is none."""
    weight, bias = outputs_first(node, node.params[0].float64()), node.param("bias")
    return weight, bias.float64() if bias else np.zeros(len(weight))
