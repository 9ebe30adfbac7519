"""Which channels of an operator's output are kept, and in how few blocks its matrix can be written.

rows      (S K) x, S a choice of channels        W' = W[rows], b' = b[rows]
finest    the largest g that divides I and O with W[o, i] = 0 for all o, i of different g-ths
"""

from dataclasses import replace
from math import gcd

import numpy as np

from reparam_compiler.core.kernel import ConvKernel, NotFusable, regroup

LARGEST = 2**27
"""Numbers in a matrix that is written out to take some of its rows: a gibibyte in float64."""


def rows(kernel: ConvKernel, start: int, stop: int, step: int = 1) -> ConvKernel:
    """The operator that gives the channels `start:stop:step` of the kernel's, from all of its source.

    Raises NotFusable where the kernel is grouped and its matrix would be too large to write out.
    """
    stop = min(stop, kernel.channels[1])
    if start == 0 and stop == kernel.channels[1] and step == 1:
        return kernel
    per_group = kernel.weight.shape[0] // kernel.groups
    first, last = start // per_group, (stop - 1) // per_group + 1
    few = groups(kernel, first, last)
    offset = first * per_group
    inside = slice(start - offset, stop - offset, step)
    kept = len(range(start, stop, step))
    _check_size(kept, kernel)
    dense = regroup(few, 1)
    taken = replace(dense, weight=dense.weight[inside], bias=dense.bias[inside].copy())
    return embedded(taken, first * kernel.weight.shape[1], kernel.channels[0])


def groups(kernel: ConvKernel, first: int, last: int) -> ConvKernel:
    """The groups `first:last` of a kernel by themselves: they read the channels of their own only."""
    per_group = kernel.weight.shape[0] // kernel.groups
    inside = slice(first * per_group, last * per_group)
    return replace(kernel, weight=kernel.weight[inside], bias=kernel.bias[inside], groups=last - first)


def embedded(kernel: ConvKernel, start: int, channels: int) -> ConvKernel:
    """The operator on a source of so many channels that does to those from `start` on what the kernel does.

    Raises NotFusable where its matrix would be too large to write out.
    """
    if kernel.channels[0] == channels:
        return kernel
    _check_size(kernel.channels[1], kernel, channels)
    dense = regroup(kernel, 1)
    weight = np.zeros((kernel.channels[1], channels, *kernel.size))
    weight[:, start : start + kernel.channels[0]] = dense.weight
    return replace(dense, weight=weight)


def _check_size(out: int, kernel: ConvKernel, into: int | None = None) -> None:
    into = kernel.channels[0] if into is None else into
    if out * into * int(np.prod(kernel.size)) > LARGEST:
        raise NotFusable(f"a matrix from {into} to {out} channels, written as one group, is too large")


def finest(kernel: ConvKernel) -> ConvKernel:
    """The same operator in the finest groups that hold all of its taps."""
    into, out = kernel.weight.shape[1], kernel.weight.shape[0] // kernel.groups
    used = kernel.weight.reshape(kernel.groups, out, into, -1).any(axis=(0, 3))
    for parts in range(gcd(into, out), 1, -1):
        if into % parts or out % parts:
            continue
        blocks = used.reshape(parts, out // parts, parts, into // parts).any(axis=(1, 3))
        if not (blocks & ~np.eye(parts, dtype=bool)).any():
            taps = kernel.weight.reshape(kernel.groups, parts, out // parts, parts, into // parts, *kernel.size)
            diagonal = np.arange(parts)
            weight = np.moveaxis(taps[:, diagonal, :, diagonal], 0, 1)
            return replace(kernel, weight=weight.reshape(-1, into // parts, *kernel.size).copy(), groups=kernel.groups * parts)
    return kernel
