"""What no rule knows, identified by its response to impulses.

A region of ops that are known to be affine is the convolution

    y[o, q] = b[o] + sum_{c, u} W[o, c, u] x[c, s q + u]

if it is one at all. Then b is its response to zero; s the least step of an impulse that moves the response by one; and an
impulse in channel c at position p gives W[:, c, p - s q] at every q: C impulses for each of the s residues of p are the kernel.
All in float64, far from the border; what the border reads (zeros, or the mirrored source) is then tried. The kernel counts only
if it gives what the region gives on random sources: those of a model of fixed sizes, else small ones, their multiples and long
ones (`larger`), so that what acts only from some position on, or on whole rows, or across the batch, is found out.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from dataclasses import replace
from functools import cached_property
from itertools import islice, product
from math import gcd, prod
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.advice import option
from reparam_compiler.core.channels import finest
from reparam_compiler.core.drawn import is_drawn
from reparam_compiler.core.kernel import ConvKernel, Ints, NotFusable, PaddingMode
from reparam_compiler.errors import ReparamError
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, NodeId, Operand, Param, TensorType
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.dtypes import FLOATING

TOLERANCE = 1e-10
"""The largest relative difference, in float64, of a region and the kernel that it seems to be."""
LARGEST_BATCH = 2**24
"""Elements of the sources of one batch of impulses."""
LONGEST = 4096
"""Positions along an axis: what begins to act further on is not found out."""
LARGEST_SOURCE = 2**23
"""Elements of a source that is as long as that."""
LARGEST_PROBE = 2**26
"""Elements of all of them, which take about two seconds: beyond, a region is not probed."""
STRIDES = 2**26
"""Elements that all nodes of a region compute while its stride is looked for, along all axes together."""
_CALL = 2**12
"""Elements that a call takes as long as, however few it has."""
_STEPS = 8
"""Steps of an impulse that are tried in any case."""
_NOISE = 1e-13
"""A tap below this share of the largest is the rounding of a zero."""


def is_affine(node: Node, data_independent: Set[NodeId] = frozenset()) -> bool:
    """True for an op that is affine in what it reads and can be run, even where its own rule refuses it.

    data_independent: values that count as constants, since no element of the source moves them.
    """
    op = node.op
    if isinstance(op, ops.Opaque):
        computed = sum(source not in data_independent for source in node.sources)
        return op.run is not None and (Facts.LINEAR in op.facts or (Facts.BILINEAR in op.facts and computed == 1))
    return op.affine


def identify(
    nodes: Sequence[Node],
    source: NodeId,
    channels: int,
    rank: int,
    known: TensorType | None,
    *,
    fixed: bool = False,
    rounding: float = 0.0,
    most: int | None = None,
) -> ConvKernel:
    """The operator of a region.

    Args:
        nodes: the region, in order; the last is its sink.
        source: what it reads, of `channels` channels and `rank` spatial axes, channels second.
        known: the type of the source, for regions that run on its sizes alone.
        fixed: whether every run has these sizes.
        rounding: how far constants in the region may be from what they were computed from (`Region.rounding`).
        most: how many weights the operator may have.

    Raises NotFusable where the region is no convolution, has more weights, or is too large to find out.
    """
    if rank < 1:
        raise NotFusable("a region without spatial axes")
    run = _runner(nodes, source)
    recorded = _recorded(known, rank)
    sizes, batch, at_zero = _sizes(run, nodes, channels, rank, recorded, fixed=fixed)
    if channels * channels * prod(sizes) > LARGEST_PROBE:
        raise NotFusable(f"{channels} channels at {'x'.join(map(str, sizes))} are too many to probe")
    if at_zero.ndim != rank + 2 or at_zero.shape[0] != batch or not at_zero.numel():
        raise NotFusable(f"it gives a value of shape {tuple(at_zero.shape)} for one of {(batch, channels, *sizes)}")
    bias, tolerance = _same_everywhere(at_zero, rounding)
    respond = _Responses(run, channels, sizes, at_zero, batch)
    steps = max(STRIDES // (len(nodes) * rank * (batch * channels * prod(sizes) + _CALL)), _STEPS)
    stride = tuple(_stride(respond, axis, steps) for axis in range(rank))
    if most is not None and (weights := respond.weights(stride)) > most:
        always = option("policy", "always")
        raise NotFusable(f"one conv would have about {weights} weights, and be slower; {always} fuses it all the same")
    taps, first = respond.taps(stride)
    kernel = _trimmed(taps, bias, stride, first)
    on = [recorded] if fixed and recorded else [(batch, *more) for more in (*_wider(kernel, sizes), *larger(channels, sizes))]
    return _confirmed(kernel, run, (batch, *sizes), on, at_zero.shape[2:], tolerance)


class Prober:
    """Identifies regions; of those that are alike, only the first is run where it is refused.

    Whether a region is a convolution is decided by its ops, and by where their weights are zero. The blocks of a net differ in
    the other numbers alone, and are refused by the dozen.
    """

    def __init__(self) -> None:
        self._refused: dict[Hashable, str] = {}
        self._zeros: dict[Param, bytes] = {}

    def identify(self, nodes: Sequence[Node], source: NodeId, *about: Hashable, **settings: Hashable) -> ConvKernel:
        """As the function `identify`."""
        alike = self._likeness(nodes, source), about, tuple(settings.items())
        if alike in self._refused:
            raise NotFusable(self._refused[alike])
        try:
            return identify(nodes, source, *about, **settings)  # type: ignore[arg-type]
        except NotFusable as reason:
            self._refused[alike] = str(reason)
            raise

    def _likeness(self, nodes: Sequence[Node], source: NodeId) -> Hashable:
        """The ops of a region, what each reads, and which of its constants are zero."""
        places = {name: place for place, name in enumerate([source, *(node.id for node in nodes)])}

        def read(operand: Operand) -> Hashable:
            return self._constant(operand) if isinstance(operand, Param) else places.get(operand or "", operand)

        return tuple((node.op, tuple(map(read, node.inputs))) for node in nodes)

    def _constant(self, param: Param) -> Hashable:
        if param not in self._zeros:
            array = np.asarray(param.load())
            told = array == 0 if param.dtype in FLOATING else array
            self._zeros[param] = hashlib.sha256(told.tobytes()).digest()
        return param.dtype, param.shape, self._zeros[param]


Run = Callable[[Tensor], Tensor]


def _runner(nodes: Sequence[Node], source: NodeId) -> Run:
    def run(x: Tensor) -> Tensor:
        values = {source: x}
        with torch.no_grad():
            for node in nodes:
                values[node.id] = evaluate_node(node, values)
        value = values[nodes[-1].id]
        if not isinstance(value, Tensor):
            raise NotFusable("it gives several values")
        return value

    return run


def _tried(run: Run, x: Tensor) -> Tensor | None:
    """None where the region does not run on this size."""
    try:
        return run(x)
    except (ReparamError, RuntimeError):
        return None


def _recorded(known: TensorType | None, rank: int) -> Ints | None:
    """The batch (2 where it is open) and the sizes that a source was recorded with."""
    if known is None or len(known.shape) != rank + 2:
        return None
    sizes = tuple(size for size in known.shape[2:] if isinstance(size, int))
    return (known.shape[0] if isinstance(known.shape[0], int) else 2, *sizes) if len(sizes) == rank else None


def _sizes(
    run: Run, nodes: Sequence[Node], channels: int, rank: int, recorded: Ints | None, *, fixed: bool
) -> tuple[Ints, int, Tensor]:
    """Small sizes that the region runs on, or those that it was recorded with; the batch; and its response to zero there.

    A batch of two shows what mixes samples; only where every run has the recorded one may it be another.
    """
    reach = [2] * rank
    for node in nodes:
        if isinstance(node.op, ops.Conv | ops.AvgPool) and len(node.op.stride) == rank:
            size = node.op.size if isinstance(node.op, ops.AvgPool) else node.params[0].shape[2:]
            dilation = node.op.dilation if isinstance(node.op, ops.Conv) else (1,) * rank
            reach = [n + d * (k - 1) * s for n, k, d, s in zip(reach, size, dilation, node.op.stride, strict=True)]
    small = tuple(2 * n + 3 + axis for axis, n in enumerate(reach))
    tries = [(2, small), (2, recorded[1:] if recorded else small)]
    if recorded and fixed:
        tries.append((recorded[0], recorded[1:]))
    drawn = [(batch, sizes) for batch, sizes in dict.fromkeys(tries) if is_drawn((batch, channels, *sizes))]
    if not drawn:
        raise NotFusable("every source that shows what it does is too large to be drawn")
    for batch, sizes in drawn:
        y = _tried(run, torch.zeros(batch, channels, *sizes, dtype=torch.float64))
        if y is not None and y.shape[:1] == (batch,):
            return sizes, batch, y
    raise NotFusable("it does not run on its own, or not on every batch alike")


def larger(channels: int, sizes: Ints) -> Iterator[Ints]:
    """Sizes that a region which runs on `sizes` runs on too: twice, three times, and each axis by itself as long as pays."""
    yield tuple(2 * size for size in sizes)
    yield tuple(3 * size for size in sizes)
    for axis, size in enumerate(sizes):
        room = LARGEST_SOURCE // (channels * prod(sizes))
        times = max(4, min(room, -(-LONGEST // size)))
        yield tuple(size * times if a == axis else n for a, n in enumerate(sizes))


def _same_everywhere(at_zero: Tensor, rounding: float) -> tuple[np.ndarray, float]:
    """The response to zero as one number for each channel, and up to which relative difference it is the same everywhere."""
    middle = at_zero[(slice(0, 1), slice(None), *(slice(n // 2, n // 2 + 1) for n in at_zero.shape[2:]))]
    apart = difference(middle.expand_as(at_zero), at_zero).relative
    if apart > max(rounding, TOLERANCE):
        raise NotFusable("what it adds differs from position to position")
    array: np.ndarray = middle.reshape(-1).numpy().copy()
    return array, TOLERANCE if apart <= TOLERANCE else rounding


class _Responses:
    """Responses to impulses near the middle of the source, less the response to zero."""

    def __init__(self, run: Run, channels: int, sizes: Ints, at_zero: Tensor, batch: int) -> None:
        self.run, self.channels, self.sizes, self.at_zero, self.batch = run, channels, sizes, at_zero, batch
        self.middle = tuple(size // 2 for size in sizes)
        flexible = _tried(run, torch.zeros(batch + 1, channels, *sizes, dtype=torch.float64))
        self.free_batch = flexible is not None and flexible.shape[0] == batch + 1

    @cached_property
    def heard(self) -> tuple[Ints, Tensor]:
        """A place near the middle whose impulse is answered, and the answer: a strided op does not read every place."""
        for offset in product(*(range(min(4, size - size // 2)) for size in self.sizes)):
            place = tuple(p + n for p, n in zip(self.middle, offset, strict=True))
            if (response := self.one(place)).any():
                return place, response
        raise NotFusable("it does not depend on its source")

    def one(self, place: Ints) -> Tensor:
        """To a random vector of channels at a place."""
        random = torch.Generator().manual_seed(1)
        return self._first((slice(None), *place), torch.randn(self.channels, dtype=torch.float64, generator=random))

    def weights(self, stride: Ints) -> int:
        """About how many weights the operator has: a channel's responses that are not zero, for all channels."""
        response = self._first((self.channels // 2, *self.heard[0]), 1.0).abs()
        heard = int((response > _NOISE * response.max()).sum())
        return heard * prod(stride) * self.channels

    def _first(self, at: tuple[slice | int, ...], impulse: Tensor | float) -> Tensor:
        """Of the first sample, which has an impulse there; alone where the region takes any batch."""
        x = torch.zeros(1 if self.free_batch else self.batch, self.channels, *self.sizes, dtype=torch.float64)
        x[0][at] = impulse
        return self.run(x)[0] - self.at_zero[0]

    def each_channel(self, place: Ints) -> Iterator[tuple[int, Tensor]]:
        """(channel, response) for a 1 in each channel."""
        most = max(1, LARGEST_BATCH // (self.channels * prod(self.sizes))) if self.free_batch else self.batch
        for start in range(0, self.channels, most):
            count = min(most, self.channels - start)
            x = torch.zeros(count if self.free_batch else self.batch, self.channels, *self.sizes, dtype=torch.float64)
            for index in range(count):
                x[index, start + index][place] = 1.0
            responses = self.run(x) - self.at_zero[:1]
            yield from ((start + index, responses[index]) for index in range(count))

    def taps(self, stride: Ints) -> tuple[np.ndarray, Ints]:
        """W[o, c, u] on all offsets u that the responses show, and the first of them for each axis."""
        counts = self.at_zero.shape[2:]
        first = tuple(p - s * (n - 1) for p, s, n in zip(self.middle, stride, counts, strict=True))
        width = tuple(s * n for s, n in zip(stride, counts, strict=True))
        taps = np.zeros((self.at_zero.shape[1], self.channels, *width))
        for residue in product(*(range(s) for s in stride)):
            place = tuple(p + r for p, r in zip(self.middle, residue, strict=True))
            at = tuple(slice(r, None, s) for r, s in zip(residue, stride, strict=True))
            for channel, response in self.each_channel(place):
                taps[:, channel][(slice(None), *at)] = response.flip(tuple(range(1, response.ndim))).numpy()
        return taps, first


def _stride(respond: _Responses, axis: int, steps: int) -> int:
    """The least step of an impulse that moves its response by one; raises NotFusable where it is none of so many."""
    start, here = respond.heard
    scale = float(here.abs().max())
    room = respond.sizes[axis] - start[axis]
    for step in range(1, min(room, steps + 1)):
        place = tuple(p + (step if a == axis else 0) for a, p in enumerate(start))
        there = respond.one(place)
        moved = torch.zeros_like(here)
        moved.narrow(axis + 1, 1, here.shape[axis + 1] - 1).copy_(here.narrow(axis + 1, 0, here.shape[axis + 1] - 1))
        if float((there - moved).abs().max()) <= TOLERANCE * scale:
            return step
    within = f" within {steps} steps, all that are tried at this size" if steps < room - 1 else ""
    raise NotFusable(f"its response does not move along axis {axis} as an impulse does{within}")


def _trimmed(taps: np.ndarray, bias: np.ndarray, stride: Ints, first: Ints) -> ConvKernel:
    """The taps that are not zero, on their coarsest lattice, with padding that reads from the first of them on."""
    taps[np.abs(taps) <= _NOISE * np.abs(taps).max()] = 0.0
    cuts, lattice, lows = [], [], []
    for axis, start in enumerate(first):
        used = np.flatnonzero(taps.any(axis=tuple(a for a in range(taps.ndim) if a != axis + 2)))
        if not len(used):
            raise NotFusable("it does not depend on its source")
        step = gcd(*(used - used[0]).tolist()) or 1
        cuts.append(slice(used[0], used[-1] + 1, step))
        lattice.append(step)
        lows.append(-(start + int(used[0])))
    weight = np.ascontiguousarray(taps[(slice(None), slice(None), *cuts)])
    padding = tuple((low, 0) for low in lows)
    return finest(ConvKernel(weight, bias, stride, tuple(lattice), padding))


def _wider(kernel: ConvKernel, sizes: Ints) -> Iterator[Ints]:
    """Sizes a little wider, of every remainder by the stride."""
    for extra in range(1, 2 + max(kernel.stride)):
        yield tuple(size + extra + axis for axis, size in enumerate(sizes))


def _confirmed(
    kernel: ConvKernel, run: Run, base: Ints, others: Sequence[Ints], counts: Sequence[int], tolerance: float
) -> ConvKernel:
    """The kernel with the padding that gives what the region gives, on random sources of these batches and sizes."""
    least = [
        s * (n - 1) + span + 1 - size - low
        for s, n, span, size, (low, _) in zip(kernel.stride, counts, kernel.span, base[1:], kernel.padding, strict=True)
    ]
    shapes = dict.fromkeys(others if len(others) == 1 else (base, *others))  # fixed sizes are all that count
    sources = [_random((batch, kernel.channels[0], *sizes)) for batch, *sizes in shapes]
    expected = [(x, y) for x in sources if (y := _tried(run, x)) is not None]
    if not expected:
        raise NotFusable("it does not run on the sizes that the model has")
    for mode in get_args(PaddingMode):
        for more in islice(product(*(range(s) for s in kernel.stride)), 64):
            padding = tuple((low, h + m) for (low, _), h, m in zip(kernel.padding, least, more, strict=True))
            candidate = replace(kernel, padding=padding, mode=mode)
            if all(_gives(candidate, x, y, tolerance) for x, y in expected):
                return candidate
        if all(low <= 0 and high + s <= 1 for (low, _), high, s in zip(kernel.padding, least, kernel.stride, strict=True)):
            break  # nothing beyond the border is read
    raise NotFusable("it is not the convolution that its impulse response seems to be")


def _random(shape: Ints) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _gives(kernel: ConvKernel, x: Tensor, y: Tensor, tolerance: float) -> bool:
    op = ops.Conv(kernel.stride, kernel.padding, kernel.dilation, kernel.groups, kernel.mode)
    weight, bias = (Param.of(a, role="weight", dtype="f64") for a in (kernel.weight, kernel.bias))
    try:
        result = evaluate_node(Node("probe", op, ("x", weight, bias)), {"x": x})
    except ReparamError:
        return False
    return difference(y, result).relative <= tolerance
