"""What a conv or linear reads and gives, as rows of a matrix: a row for each sample and output position.

    channel rows    x[n, :, s]                                     `M C`; the taps of a conv see the same channels
    patch rows      x[n, c, s * stride + k * dilation - low]       `M C*K`; padding included, so that borders count as they are
    output rows     y[n, :, s]                                     `M O`

Rows come in pieces. Channel rows are float64; patch rows, of which there are a tap's worth more, are in the dtype that the
activations were computed in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from reparam_compiler.core.kernel import Ints
from reparam_compiler.interpreter.rules import padded
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups
from reparam_compiler.passes.pruning.coupling.labels import FIXED, Labels
from reparam_compiler.passes.pruning.repair.activations import Activations

PIECE = 2**22
"""Elements of a piece of rows."""
ROWS = 16
LEAST_ROWS = 2**14
"""Rows that are taken for each feature, and at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One group of a conv, or the whole of a conv or linear.

    outputs: which of the node's outputs it gives.
    channels: which of the node's input channels it reads, in the order of its weight.
    labels: of these.
    """

    outputs: slice
    channels: Int64[np.ndarray, "I"]
    labels: Labels

    @property
    def places(self) -> Int64[np.ndarray, "C P"]:
        """Where each channel stands: after a flatten at many positions. Where they are not equally many, each is a channel."""
        distinct, count = np.unique(self.labels, return_counts=True)
        if FIXED not in distinct and count.min() == count.max():
            return np.argsort(self.labels, kind="stable").reshape(len(distinct), -1)
        return np.arange(len(self.labels)).reshape(-1, 1)


def mixes(node: Node) -> bool:
    """True for a conv or linear with a constant weight that reads several channels at once."""
    op = node.op
    if not isinstance(op, ops.Weighted):
        return False
    weight = node.operand("weight")
    return isinstance(weight, Param) and node.has_constant_params and not op.is_depthwise(weight.shape)


def outputs_first(node: Node, weight: Float64[np.ndarray, "A B *K"]) -> Float64[np.ndarray, "O I *K"]:
    """A weight with the axis of the outputs first, which a transposed conv has second; done again, as it was before."""
    if not isinstance(node.op, ops.ConvTranspose):
        return weight
    each = weight.reshape(node.op.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return each.reshape(-1, *each.shape[2:])


def blocks(node: Node, groups: ChannelGroups) -> tuple[Block, ...]:
    """The blocks of a node that mixes channels; no block where what it mixes is another axis than the labelled one."""
    op, shape = node.op, node.params[0].shape
    if not isinstance(op, ops.Weighted):
        return ()
    count = op.blocks
    into, out = op.channels_read(shape) // count, shape[op.output_axis] // (count if op.output_axis == 0 else 1)
    source = groups.value(node.sources[0])
    along = groups.along(node, "weight").get(op.input_axis)
    if source.axis is not None and along is None:
        return ()
    labels = np.full(count * into, FIXED) if source.axis is None else source.labels
    everything = np.arange(count * into).reshape(count, into)
    return tuple(
        Block(slice(index * out, (index + 1) * out), channels, labels[channels]) for index, channels in enumerate(everything)
    )


def channel_axis(node: Node) -> int:
    """The axis along which a conv or linear has the channels that it reads and gives."""
    return 1 if node.op.channels_second else -1


def channel_rows(
    node: Node, values: Activations, places: Int64[np.ndarray, "C P"], kept: Bool[np.ndarray, "C"]
) -> Iterator[tuple[Float[np.ndarray, "M C"], Float[np.ndarray, "M K"]]]:
    """All channels that a node read before, and the kept ones that it reads now."""
    axis, pieces = channel_axis(node), _Pieces(node, values, len(places))
    for before, now in zip(values.before(node.sources[0]), values.now(node.sources[0]), strict=True):
        for was, seen in zip(pieces.split(before), pieces.split(now), strict=True):
            at = pieces.chosen(was.movedim(axis, -1).shape[:-1])
            yield _picked(was, axis, places, at), _picked(seen, axis, places[kept], at)


def channels_before(node: Node, values: Activations, places: Int64[np.ndarray, "C P"]) -> Iterator[Float[np.ndarray, "M C"]]:
    """The channels that a node read before."""
    axis, pieces = channel_axis(node), _Pieces(node, values, len(places))
    for before in values.before(node.sources[0]):
        for was in pieces.split(before):
            yield _picked(was, axis, places, pieces.chosen(was.movedim(axis, -1).shape[:-1]))


def patches_before(node: Node, values: Activations, channels: Int64[np.ndarray, "I"]) -> Iterator[Float[np.ndarray, "M F"]]:
    """The patches that a node read before."""
    pieces = _Pieces(node, values, len(channels) * taps(node))
    for before in values.before(node.sources[0]):
        for was in pieces.split(before):
            yield _flat(_patches(node, was, channels, pieces))


def patch_rows(
    node: Node, values: Activations, outputs: slice, channels: Int64[np.ndarray, "I"]
) -> Iterator[tuple[Float[np.ndarray, "M O"], Float[np.ndarray, "M F"]]]:
    """What some outputs of a node gave before, and the patches of these channels that it reads now."""
    pieces = _Pieces(node, values, len(channels) * taps(node))
    for gave, reads in zip(values.before(node.id), values.now(node.sources[0]), strict=True):
        for was, now in zip(pieces.split(gave, like=reads), pieces.split(reads), strict=True):
            seen = _flat(_patches(node, now, channels, pieces))
            yield output_rows(node, was, pieces.last)[:, outputs], seen


def depthwise_rows(node: Node, values: Activations) -> Iterator[tuple[Float[np.ndarray, "M C T"], Float[np.ndarray, "M C K"]]]:
    """What each channel of a depthwise conv gave before, and the patches of it that are read now."""
    channels, pieces = np.arange(node.op.blocks if isinstance(node.op, ops.Weighted) else 1), _Pieces(node, values, taps(node))
    for gave, reads in zip(values.before(node.id), values.now(node.sources[0]), strict=True):
        for was, now in zip(pieces.split(gave, like=reads), pieces.split(reads), strict=True):
            seen = _patches(node, now, channels, pieces)
            yield output_rows(node, was, pieces.last).reshape(len(seen), len(channels), -1), seen


def output_rows(node: Node, y: Tensor, at: Int64[np.ndarray, "M"] | None = None) -> Float[np.ndarray, "M O"]:
    """What a node gives, a row for each sample and position, or for those that are asked for."""
    return _rows_at(y.movedim(channel_axis(node), -1), y.ndim - 1, at)


def _patches(node: Node, x: Tensor, channels: Int64[np.ndarray, "I"], pieces: "_Pieces") -> Float[np.ndarray, "M I K"]:
    """The patches of these channels at the chosen rows."""
    if not isinstance(node.op, ops.Conv):
        return _rows_at(x[..., torch.from_numpy(channels), None], x.ndim - 1, pieces.chosen(x.shape[:-1]))
    seen, lead = windows(node.op, node.params[0].shape[2:], x[:, torch.from_numpy(channels)]), 1 + len(node.op.stride)
    patches = _rows_at(seen, lead, pieces.chosen(seen.shape[:lead]))
    return patches.reshape(len(patches), len(channels), -1)


def windows(op: ops.Conv, size: Ints, x: Tensor) -> Tensor:
    """What a conv with a window of this size reads at each position: a view `N *S C *size` of the padded x."""
    x = padded(x, op.padding, op.mode)
    for axis, (k, s, d) in enumerate(zip(size, op.stride, op.dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return x.movedim(1, 1 + len(size))


class _Pieces:
    """How the values of a node are cut into pieces, and which rows of each are taken.

    There are far more positions than a regression needs: of them `ROWS` for each feature are taken, one out of each stretch,
    at a place that is drawn.

    last: the rows that were chosen last, None for all.
    """

    def __init__(self, node: Node, values: Activations, features: int) -> None:
        self._taps = taps(node)
        total = sum(rows(node, x) for x in values.before(node.sources[0]))
        self._stretch = max(1, total // max(LEAST_ROWS, ROWS * features))
        self._draw = np.random.default_rng(0)
        self.last: Int64[np.ndarray, "M"] | None = None

    def split(self, x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
        """The samples of a value, as many at a time as PIECE allows; or as many as those of another value."""
        sized = x if like is None else like
        return torch.split(x, max(1, PIECE * self._stretch // max(1, sized[:1].numel() * self._taps)))

    def chosen(self, shape: tuple[int, ...]) -> Int64[np.ndarray, "M"] | None:
        """The rows to take of so many samples and positions, counted through; None for all."""
        total = int(np.prod(shape))
        self.last = None
        if self._stretch > 1:
            starts = np.arange(0, total, self._stretch)
            self.last = np.minimum(starts + self._draw.integers(0, self._stretch, len(starts)), total - 1)
        return self.last


def _rows_at(x: Tensor, lead: int, at: Int64[np.ndarray, "M"] | None) -> Float[np.ndarray, "M ..."]:
    """The first `lead` axes of a value as one, or the rows of it that are asked for."""
    if at is None:
        chosen = x.reshape(-1, *x.shape[lead:])
    else:
        chosen = x[tuple(torch.from_numpy(index) for index in np.unravel_index(at, tuple(x.shape[:lead])))]
    picked: Float[np.ndarray, "M ..."] = chosen.to(torch.promote_types(chosen.dtype, torch.float32)).numpy()
    return picked


def rows(node: Node, x: Tensor) -> int:
    """How many rows a node gives for an input; a transposed conv, whose taps go to different places, counts what it reads."""
    if not isinstance(node.op, ops.Conv):
        return x.numel() // x.shape[channel_axis(node)]
    sides = zip(x.shape[2:], node.params[0].shape[2:], node.op.stride, node.op.dilation, node.op.padding, strict=True)
    positions = [(size + low + high - d * (k - 1) - 1) // s + 1 for size, k, s, d, (low, high) in sides]
    return len(x) * int(np.prod(positions))


def taps(node: Node) -> int:
    """How many taps a node reads of each channel."""
    return int(np.prod(node.params[0].shape[2:]))


def _flat(rows: Float[np.ndarray, "M I K"]) -> Float[np.ndarray, "M F"]:
    return rows.reshape(len(rows), -1)


def _picked(
    x: Tensor, axis: int, places: Int64[np.ndarray, "C P"], at: Int64[np.ndarray, "M"] | None
) -> Float[np.ndarray, "M C"]:
    last = x.movedim(axis, -1)[..., torch.from_numpy(places.T.ravel())]
    return _rows_at(last, last.ndim - 1, at).reshape(-1, len(places)).astype(np.float64)
