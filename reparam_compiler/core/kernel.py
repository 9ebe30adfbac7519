"""Convolution operators and their algebra: what lets parallel branches become one conv.

A kernel with stride s, dilation d and padding (l, h) sends a source x, extended beyond its border, to

    y[o, p] = b[o] + sum_{i, t} W[o, i, t] x[i, s p + d t - l],     0 <= p <= (size + l + h - d (k - 1) - 1) // s

A kernel that upsamples by u reads x with u - 1 zeros between each two positions, (size - 1) u + 1 long: with stride 1 it is a
transposed conv. Such operators are closed under

    (a K + b) x = a (K x) + b              W' = a W, b' = a b_K + b                     scale, always exact
    (K + L) x = K x + L x                  W' = W_K + W_L on one lattice of taps        add, where both give the same positions
    (L . K) x = L (K x)                    W' = W_L * W_K (full correlation)            compose, where L reads only what K gave

`compose` is where the danger lies. An outer kernel that pads reads positions that the inner one never produced: there it
sees the padding, not what the inner kernel would give. The two agree only where the inner kernel has a single tap along the
padded axis, so that outside its source it gives its bias, and the padding value is that bias. A 3x3 that pads over a 3x3
that pads is therefore refused, even without a bias: it is not a 5x5.

Where the taps are right but the padding is not the inner bias, b is no longer one number for each channel: it is NaN, and stays
so through all that follows. What comes later may put it right (DBB writes its bias over the border); so whoever wants the
operator measures b, which is its response to zero, and finds out whether it is the same everywhere.

Everything is float64, rank-generic (`*K` is any number of spatial axes, none for a linear layer) and pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import gcd, prod
from typing import Literal

import numpy as np
from jaxtyping import Float64

Weight = Float64[np.ndarray, "O Ig *K"]
Bias = Float64[np.ndarray, "O"]
Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class NotFusable(Exception):
    """This step has no exact convolution; the message is the reason that the report prints."""


@dataclass(frozen=True, slots=True, eq=False)
class ConvKernel:
    """An affine convolution operator from `groups * Ig` to `O` channels.

    weight: taps, `O Ig *K`.
    bias: `O`; NaN where it is not known to be the same at all positions.
    stride, dilation: for each spatial axis, in source positions (those of the upsampled source).
    padding: for each spatial axis, how far the source is extended below and above; a negative number is a crop.
    groups: blocks of the block-diagonal channel matrix.
    mode: what the extension holds.
    upsampling: for each spatial axis; left out, it is 1.
    slack: for each spatial axis, how much less the source may be extended above on the sizes that the operator is for (even
        ones, where it joins every other position with those between); left out, it is 0.
    """

    weight: Weight
    bias: Bias
    stride: Ints
    dilation: Ints
    padding: Pairs
    groups: int = 1
    mode: PaddingMode = "zeros"
    upsampling: Ints = ()
    slack: Ints = ()

    def __post_init__(self) -> None:
        rank = self.weight.ndim - 2
        if not self.upsampling:
            object.__setattr__(self, "upsampling", (1,) * rank)
        if not self.slack:
            object.__setattr__(self, "slack", (0,) * rank)
        if not len(self.stride) == len(self.dilation) == len(self.padding) == len(self.upsampling) == rank:
            raise ValueError(f"{rank} spatial axes, but {self.stride=}, {self.dilation=}, {self.padding=}, {self.upsampling=}")
        if self.bias.shape != self.weight.shape[:1] or self.weight.shape[0] % self.groups:
            raise ValueError(f"weight {self.weight.shape}, bias {self.bias.shape} and groups {self.groups} do not agree")

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return self.weight.ndim - 2

    @property
    def size(self) -> Ints:
        """Taps along each spatial axis."""
        return self.weight.shape[2:]

    @property
    def channels(self) -> tuple[int, int]:
        """(in, out)."""
        return self.weight.shape[1] * self.groups, self.weight.shape[0]

    @property
    def span(self) -> Ints:
        """The distance from the first tap to the last, in source positions, for each axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True))

    @property
    def margin(self) -> Ints:
        """`l + h - d (k - 1)`: what decides how many outputs a source of a given size gives."""
        return tuple(low + high - span for (low, high), span in zip(self.padding, self.span, strict=True))

    @property
    def upsamples(self) -> bool:
        """The source is read with zeros between its positions."""
        return any(n > 1 for n in self.upsampling)

    @property
    def bias_varies(self) -> bool:
        """What is added may differ from position to position."""
        return bool(np.isnan(self.bias).any())

    @property
    def is_pointwise(self) -> bool:
        """Every output reads the one source position that it stands on (stride 1, one tap, no padding)."""
        ones = (*self.size, *self.stride, *self.upsampling)
        return all(n == 1 for n in ones) and self.padding == ((0, 0),) * self.rank

    @property
    def is_diagonal(self) -> bool:
        """Pointwise, and every channel on its own: batch norm, scale, identity."""
        return self.is_pointwise and self.weight.shape[1] == 1 and self.groups == self.weight.shape[0]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one output position over all channels."""
        return prod(self.weight.shape)


def diagonal(factor: Bias, shift: Bias, rank: int) -> ConvKernel:
    """The operator x -> factor x + shift, a number for each channel."""
    ones = (1,) * rank
    weight = np.asarray(factor, np.float64).reshape(-1, 1, *ones)
    return ConvKernel(weight, np.asarray(shift, np.float64), ones, ones, ((0, 0),) * rank, groups=len(weight))


def scale(kernel: ConvKernel, factor: Bias, shift: Float64[np.ndarray, "#O"]) -> ConvKernel:
    """The operator x -> factor * kernel(x) + shift (the paper's Eq. 3): a number for each output channel, or one shift."""
    per_channel = factor.reshape(-1, *(1,) * (kernel.weight.ndim - 1))
    return replace(kernel, weight=kernel.weight * per_channel, bias=kernel.bias * factor + shift)


def regroup(kernel: ConvKernel, groups: int) -> ConvKernel:
    """The same operator in coarser groups, with zero blocks where the finer ones had nothing.

    Raises NotFusable where `groups` does not divide the kernel's own.
    """
    if groups == kernel.groups:
        return kernel
    merged, rest = divmod(kernel.groups, groups)
    if rest:
        raise NotFusable(f"{kernel.groups} groups cannot be written as {groups}")
    out, into = kernel.weight.shape[0] // kernel.groups, kernel.weight.shape[1]
    blocks = kernel.weight.reshape(groups, merged, out, into, *kernel.size)
    weight = np.zeros((groups, merged, out, merged, into, *kernel.size))
    diagonal_blocks = np.arange(merged)
    weight[:, diagonal_blocks, :, diagonal_blocks] = np.moveaxis(blocks, 1, 0)
    return replace(kernel, weight=weight.reshape(-1, merged * into, *kernel.size), groups=groups)


def add(first: ConvKernel, *others: ConvKernel) -> ConvKernel:
    """The operator x -> first(x) + others(x) (RepVGG, Fig. 4: kernels padded to one size and added up).

    Raises NotFusable where the operators do not map the same channels, or do not give the same positions.
    """
    for other in others:
        _check_parallel(first, other)
    kernels = [first, *others]
    groups = gcd(*(kernel.groups for kernel in kernels))
    return _superpose(kernels, [0] * len(kernels), first.channels[1], groups)


def concat(first: ConvKernel, *others: ConvKernel) -> ConvKernel:
    """The operator x -> (first(x), others(x) …) along the channels: parallel convs of one source are one wide conv.

    Raises NotFusable as `add` does, but the numbers of output channels are free.
    """
    for other in others:
        _check_parallel(first, other, same_outputs=False, joined=True)
    kernels = _of_one_extent([first, *others])
    *starts, out = accumulate((kernel.channels[1] for kernel in kernels), initial=0)
    return _superpose(kernels, starts, out, 1)


def _of_one_extent(kernels: Sequence[ConvKernel]) -> list[ConvKernel]:
    """Strided kernels that give as many positions on some sizes, extended as far as the widest, which changes nothing there.

    What is joined is only ever run on these sizes.
    """
    axes = range(kernels[0].rank)
    most = [max(kernel.margin[axis] for kernel in kernels) for axis in axes]
    slack = tuple(most[axis] - min(kernel.margin[axis] - kernel.slack[axis] for kernel in kernels) for axis in axes)
    paddings = (
        tuple((low, high + m - n) for (low, high), m, n in zip(k.padding, most, k.margin, strict=True)) for k in kernels
    )
    return [replace(kernel, padding=padding, slack=slack) for kernel, padding in zip(kernels, paddings, strict=True)]


def side_by_side(first: ConvKernel, *others: ConvKernel) -> ConvKernel:
    """The operator (x, z …) -> (first(x), others(z) …) along the channels: blocks on the diagonal of one matrix.

    Raises NotFusable where the operators do not give the same positions, or have blocks of different shapes.
    """
    kernels = [first, *others]
    for other in others:
        _check_positions(first, other)
    blocks = {(k.weight.shape[0] // k.groups, k.weight.shape[1]) for k in kernels}
    if len(blocks) > 1:
        raise NotFusable(f"blocks of {sorted(blocks)} channels stand side by side")
    lattice, padding = _common_lattice(kernels)
    return replace(
        first,
        weight=np.concatenate([_widened(kernel, lattice, padding) for kernel in kernels]),
        bias=np.concatenate([kernel.bias for kernel in kernels]),
        dilation=lattice,
        padding=padding,
        groups=sum(kernel.groups for kernel in kernels),
        mode=_common_mode(kernels),
    )


def pad(kernel: ConvKernel, padding: Pairs, value: Bias, mode: PaddingMode = "zeros") -> ConvKernel:
    """The operator whose output is the kernel's, extended by `padding` positions (cropped where negative).

    The extension holds `value`, a number for each channel, or repeats the output as another `mode` says. Where the kernel,
    evaluated there, gives another bias, the result's is NaN.

    Raises NotFusable where the kernel, evaluated at those positions, does not give a constant, or would not repeat itself.
    """
    extends = any(low > 0 or high > 0 for low, high in padding)
    if mode != "zeros" and extends:
        return _repeated(kernel, padding, mode)
    for axis, (below, above) in enumerate(padding):
        if (below > 0 or above > 0) and (reason := _outside_is_not_bias(kernel, axis)):
            raise NotFusable(f"pads axis {axis} of what {reason} gave")
    moved = tuple(
        (low + below * s, high + above * s)
        for (low, high), (below, above), s in zip(kernel.padding, padding, kernel.stride, strict=True)
    )
    if kernel.mode == "circular" and any(min(pair) < 0 < max(pair) for pair in moved):
        raise NotFusable("crops a source that the other border is padded with")
    bias = np.where(_alike(kernel.bias, value), kernel.bias, np.nan) if extends else kernel.bias
    return replace(kernel, bias=bias, padding=moved, mode="zeros" if extends else kernel.mode)


def _repeated(kernel: ConvKernel, padding: Pairs, mode: PaddingMode) -> ConvKernel:
    """`pad` by what the output itself has: each axis may be extended once, all in the same mode."""
    once = all(mine == (0, 0) or more == (0, 0) for mine, more in zip(kernel.padding, padding, strict=True))
    alike = kernel.mode == mode or all(low <= 0 and high <= 0 for low, high in kernel.padding)
    if not once or not alike or not replace(kernel, padding=((0, 0),) * kernel.rank).is_pointwise:
        raise NotFusable(f"pads ({mode}) over an op that is not pointwise")
    both = tuple(mine if more == (0, 0) else more for mine, more in zip(kernel.padding, padding, strict=True))
    return replace(kernel, padding=both, mode=mode)


def subsample(kernel: ConvKernel, steps: Ints) -> ConvKernel:
    """The operator that keeps every so many of the kernel's outputs along each axis, the first one included."""
    return replace(kernel, stride=tuple(s * step for s, step in zip(kernel.stride, steps, strict=True)))


def compose(outer: ConvKernel, inner: ConvKernel) -> ConvKernel:
    """The operator x -> outer(inner(x)).

    Raises NotFusable where the outer kernel pads over what the inner one never gave, or upsamples it (see the module).
    """
    if outer.channels[0] != inner.channels[1]:
        raise NotFusable(f"an op of {outer.channels[0]} channels reads {inner.channels[1]}")
    if outer.is_diagonal:
        return scale(inner, outer.weight.reshape(-1), outer.bias)
    if outer.upsamples:
        if not inner.is_pointwise:
            raise NotFusable("upsamples what an op that is not pointwise gave")
        bias = np.where(inner.bias == 0, 0.0, np.nan)  # there is none between the positions that it is read at
        padded = replace(inner, bias=bias, padding=outer.padding, mode=outer.mode, upsampling=outer.upsampling)
    else:
        padded = pad(inner, outer.padding, np.zeros(inner.channels[1]), outer.mode)
    bias = outer.bias + _apply_to_constant(outer, padded.bias)
    if inner.is_diagonal:
        into = inner.weight.reshape(outer.groups, 1, -1, *(1,) * outer.rank)
        blocks = outer.weight.reshape(outer.groups, -1, *outer.weight.shape[1:])
        return replace(outer, weight=(blocks * into).reshape(outer.weight.shape), bias=bias)
    groups = gcd(outer.groups, inner.groups)
    return _correlate(regroup(outer, groups), regroup(padded, groups), bias)


def composed_weights(outer: ConvKernel, inner: ConvKernel) -> int:
    """How many weights `compose` gives, known before they are computed."""
    if outer.is_diagonal:
        return inner.weight.size
    if inner.is_diagonal:
        return outer.weight.size
    _, _, size = _common_taps(outer, inner)
    return outer.channels[1] * (inner.channels[0] // gcd(outer.groups, inner.groups)) * prod(size)


def _common_taps(outer: ConvKernel, inner: ConvKernel) -> tuple[Ints, Ints, Ints]:
    """How far apart an outer kernel reads the inner one, in source positions; their common lattice; how many taps that has."""
    steps = tuple(s * d for s, d in zip(inner.stride, outer.dilation, strict=True))
    lattice = tuple(
        gcd(step if m > 1 else 0, d if n > 1 else 0) or 1
        for step, m, d, n in zip(steps, outer.size, inner.dilation, inner.size, strict=True)
    )
    spans = (step * (m - 1) + span for step, m, span in zip(steps, outer.size, inner.span, strict=True))
    return steps, lattice, tuple(span // g + 1 for span, g in zip(spans, lattice, strict=True))


def _correlate(outer: ConvKernel, inner: ConvKernel, bias: Bias) -> ConvKernel:
    """The taps of outer . inner on their common lattice; both in the same groups, the padding already in `inner`."""
    steps, lattice, size = _common_taps(outer, inner)
    groups, out, into = inner.groups, outer.weight.shape[0], inner.weight.shape[1]
    weight = np.zeros((groups, out // groups, into, *size))
    inner_matrix = inner.weight.reshape(groups, inner.weight.shape[0] // groups, -1)
    outer_blocks = outer.weight.reshape(groups, out // groups, *outer.weight.shape[1:])
    for tap in np.ndindex(*outer.size):
        seen = outer_blocks[(slice(None),) * 3 + tap] @ inner_matrix
        place = tuple(
            slice(step * t // g, step * t // g + span // g + 1, d // g if n > 1 else 1)
            for step, t, g, span, d, n in zip(steps, tap, lattice, inner.span, inner.dilation, inner.size, strict=True)
        )
        weight[(slice(None),) * 3 + place] += seen.reshape(groups, out // groups, into, *inner.size)
    stride = tuple(p * q for p, q in zip(outer.stride, inner.stride, strict=True))
    return replace(inner, weight=weight.reshape(out, into, *size), bias=bias, stride=stride, dilation=lattice, groups=groups)


def _alike(a: Bias, b: Bias) -> np.ndarray:
    """Where two biases are one number, but for the rounding of two ways to compute it."""
    same: np.ndarray = np.isclose(a, b, rtol=1e-12, atol=1e-12 * np.nan_to_num(np.abs(a)).max(initial=0.0))
    return same


def _apply_to_constant(kernel: ConvKernel, value: Float64[np.ndarray, "I"]) -> Bias:
    """The kernel without its bias on a source that holds `value` everywhere, its extension too."""
    blocks = kernel.weight.reshape(kernel.groups, -1, kernel.weight.shape[1], prod(kernel.size)).sum(-1)
    result: Bias = (blocks @ value.reshape(kernel.groups, -1, 1)).reshape(-1)
    return result


def _outside_is_not_bias(kernel: ConvKernel, axis: int) -> str | None:
    """Why the kernel, evaluated beyond its outputs along `axis`, may give something else than its bias.

    Output -1 reads up to span - l - s, and the first that is too many from size + h - span on: nothing of the source is there
    where s > span - l and h >= span.
    """
    (low, high), span = kernel.padding[axis], kernel.span[axis]
    if kernel.stride[axis] <= span - low or high < span:
        return "a cropped op" if kernel.size[axis] == 1 else f"an op {'x'.join(map(str, kernel.size))} wide"
    if kernel.mode != "zeros" and any(max(pair) > 0 for pair in kernel.padding):
        return f"an op with {kernel.mode} padding"
    return None


def _check_parallel(a: ConvKernel, b: ConvKernel, *, same_outputs: bool = True, joined: bool = False) -> None:
    if a.rank == b.rank and (a.channels[0] != b.channels[0] or (same_outputs and a.channels[1] != b.channels[1])):
        (ai, ao), (bi, bo) = a.channels, b.channels
        raise NotFusable(f"branches map {ai} to {ao} and {bi} to {bo} channels")
    _check_positions(a, b, joined=joined)


def _check_positions(a: ConvKernel, b: ConvKernel, *, joined: bool = False) -> None:
    """Raises NotFusable for kernels that give other positions, or, where they are `joined`, ever so many of them."""
    if a.rank != b.rank:
        raise NotFusable(f"branches have {a.rank} and {b.rank} spatial axes")
    if a.stride != b.stride:
        raise NotFusable(f"stride {_text(a.stride)} meets stride {_text(b.stride)}")
    if a.upsampling != b.upsampling:
        raise NotFusable(f"upsampling by {_text(a.upsampling)} meets upsampling by {_text(b.upsampling)}")
    if any(abs(m - n) >= (s if joined else 1) for m, n, s in zip(a.margin, b.margin, a.stride, strict=True)):
        raise NotFusable(f"branches give different positions: padding less extent is {a.margin} and {b.margin}")


def _common_mode(kernels: Sequence[ConvKernel]) -> PaddingMode:
    """The mode of the kernels that read beyond the border; one that never does takes any."""
    modes = sorted({k.mode for k in kernels if any(low > 0 or high > 0 for low, high in k.padding)})
    if len(modes) > 1:
        raise NotFusable(f"branches read differently padded borders: {', '.join(modes)}")
    return modes[0] if modes else "zeros"


def _superpose(kernels: Sequence[ConvKernel], starts: Sequence[int], out: int, groups: int) -> ConvKernel:
    """Kernels of one source added into an operator of `out` channels, each from its start on.

    The taps stand on the coarsest lattice that holds them all, from the first one of any to the last.
    """
    lattice, padding = _common_lattice(kernels)
    size = _size_between(lattice, padding, kernels[0])
    shape, bias = (out, kernels[0].channels[0] // groups, *size), np.zeros(out)
    whole = next((i for i, k in enumerate(kernels) if k.weight.shape == shape and k.groups == groups), None)
    weight = np.zeros(shape) if whole is None else kernels[whole].weight.copy()
    for index, (kernel, start) in enumerate(zip(kernels, starts, strict=True)):
        rows = slice(start, start + kernel.channels[1])
        bias[rows] += kernel.bias
        if index != whole:
            _deposit(kernel, weight[rows], groups, _places(kernel, lattice, padding))
    return replace(
        kernels[0], weight=weight, bias=bias, dilation=lattice, padding=padding, groups=groups, mode=_common_mode(kernels)
    )


def _size_between(lattice: Ints, padding: Pairs, kernel: ConvKernel) -> Ints:
    """How many taps a lattice has from the first to the last that any kernel of this margin reads."""
    parts = zip(padding, kernel.margin, lattice, strict=True)
    return tuple((low + high - margin) // g + 1 for (low, high), margin, g in parts)


def _widened(kernel: ConvKernel, lattice: Ints, padding: Pairs) -> Weight:
    """The taps of a kernel on a lattice that holds them, with zeros between and round them."""
    weight = np.zeros((*kernel.weight.shape[:2], *_size_between(lattice, padding, kernel)))
    _deposit(kernel, weight, kernel.groups, _places(kernel, lattice, padding))
    return weight


def _common_lattice(kernels: Sequence[ConvKernel]) -> tuple[Ints, Pairs]:
    lattice, padding = [], []
    for axis in range(kernels[0].rank):
        lows = [kernel.padding[axis][0] for kernel in kernels]
        steps = [kernel.dilation[axis] for kernel in kernels if kernel.size[axis] > 1]
        lattice.append(gcd(*steps, *(lows[0] - low for low in lows)) or 1)
        padding.append((max(lows), max(kernel.padding[axis][1] for kernel in kernels)))
    return tuple(lattice), tuple(padding)


def _places(kernel: ConvKernel, lattice: Ints, padding: Pairs) -> tuple[slice, ...]:
    """Where the taps of a kernel stand among those of a wider one."""
    firsts = (low - own for (low, _), (own, _) in zip(padding, kernel.padding, strict=True))
    steps = (d // g if n > 1 else 1 for d, g, n in zip(kernel.dilation, lattice, kernel.size, strict=True))
    return tuple(
        slice(first // g, (first + span) // g + 1, step)
        for first, g, span, step in zip(firsts, lattice, kernel.span, steps, strict=True)
    )


def _deposit(kernel: ConvKernel, rows: Weight, groups: int, places: tuple[slice, ...]) -> None:
    """Adds a kernel's taps to `rows`, which has coarser groups or the same."""
    if kernel.groups == groups:
        rows[(slice(None), slice(None), *places)] += kernel.weight
        return
    merged, out, into = kernel.groups // groups, kernel.weight.shape[0] // kernel.groups, kernel.weight.shape[1]
    taps = kernel.weight.reshape(groups, merged, out, into, *kernel.size)
    blocks = rows.reshape(groups, merged, out, merged, into, *rows.shape[2:])
    for block in range(merged):
        index: tuple[int | slice, ...] = (slice(None), block, slice(None), block, slice(None), *places)
        blocks[index] += taps[:, block]


def _text(values: Ints) -> str:
    return "x".join(map(str, values)) if len(set(values)) > 1 else str(values[0])
