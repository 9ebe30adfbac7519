"""Ops that are convolutions in disguise, each as a `ConvKernel`.

batch norm (Eq. 2)   y = (x - mu) gamma / sigma + beta,  sigma = sqrt(var + eps)       diagonal, 1 tap
identity             y = x                                                             diagonal, 1 tap
average pool         y[p] = 1/|K| sum_t x[s p + t - l]                                 depthwise, k taps of 1/|K|
space to depth       y[(c, t), p] = x[c, s p + t]                                      every phase a channel, one tap
"""

import numpy as np

from reparam_compiler.core.kernel import Bias, ConvKernel, Ints, NotFusable, Pairs, diagonal


def identity(channels: int, rank: int) -> ConvKernel:
    """The operator x -> x: in the paper, a 1x1 conv whose kernel is the identity matrix."""
    return diagonal(np.ones(channels), np.zeros(channels), rank)


def batch_norm(gamma: Bias | None, beta: Bias | None, mean: Bias, var: Bias, *, eps: float, rank: int) -> ConvKernel:
    """Batch norm with the statistics that it was trained to (Eq. 2); without gamma and beta where it is not affine."""
    factor = (1.0 if gamma is None else gamma) / np.sqrt(var + eps)
    return diagonal(factor, (0.0 if beta is None else beta) - mean * factor, rank)


def average_pool(
    channels: int,
    size: Ints,
    stride: Ints,
    padding: Pairs,
    *,
    count_include_pad: bool = True,
    ceil_mode: bool = False,
    divisor: int | None = None,
) -> ConvKernel:
    """Average pooling as a depthwise conv.

    Args:
        channels: of what is read and of what is given.
        size, stride, padding: of the window, in positions along each spatial axis; padding is (low, high).
        count_include_pad, ceil_mode: as torch has them.
        divisor: what the sum over a window is divided by; its number of positions where None.

    Returns:
        A kernel with the weight `C 1 *size`, all of whose taps are alike.

    Raises:
        NotFusable: an output divides by the number of positions that it really saw (`count_include_pad=False` with padding), or
            `ceil_mode` lets the last output reach beyond the padding.

    >>> average_pool(8, (2, 2), (2, 2), ((0, 0), (0, 0))).weight[0, 0, 0]
    array([0.25, 0.25])
    """
    if any(low or high for low, high in padding) and not count_include_pad and divisor is None:
        raise NotFusable("average pool with count_include_pad=False divides by less at the border")
    if ceil_mode and any(s > 1 for s in stride):
        raise NotFusable("average pool with ceil_mode reads beyond its padding")
    taps = np.full((channels, 1, *size), 1.0 / (divisor or np.prod(size)))
    return ConvKernel(taps, np.zeros(channels), stride, (1,) * len(size), padding, groups=channels)


def space_to_depth(channels: int, factor: int, rank: int, *, phases_first: bool = False) -> ConvKernel:
    """Every `factor` x `factor` positions as so many channels more (pixel unshuffle; of a phase together with `phases_first`).

    >>> space_to_depth(3, 2, 2).weight.shape, space_to_depth(3, 2, 2).groups
    ((12, 1, 2, 2), 3)
    """
    taps = np.eye(factor**rank).reshape(-1, *(factor,) * rank)
    if not phases_first:
        weight, groups = np.tile(taps, (channels, *(1,) * rank))[:, None], channels
    else:
        weight, groups = np.einsum("tk,oi->toik", taps.reshape(len(taps), -1), np.eye(channels)), 1
        weight = weight.reshape(-1, channels, *(factor,) * rank)
    steps, more = (factor,) * rank, (factor - 1,) * rank
    padding = tuple((0, high) for high in more)
    return ConvKernel(weight, np.zeros(len(weight)), steps, (1,) * rank, padding, groups, slack=more)
