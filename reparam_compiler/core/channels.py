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
    if start == 0 and stop >= kernel.channels[1] and step == 1:
        return kernel
    kept = len(range(start, min(stop, kernel.channels[1]), step))
    if kept * kernel.channels[0] * int(np.prod(kernel.size)) > LARGEST:
        raise NotFusable(f"{kept} of {kernel.channels[1]} channels, written as one group, are too many")
    per_group = kernel.weight.shape[0] // kernel.groups
    first, last = start // per_group, (min(stop, kernel.channels[1]) - 1) // per_group + 1
    into = kernel.weight.shape[1]
    few = replace(  # the groups that the rows are in, before they are written as one
        kernel,
        weight=kernel.weight[first * per_group : last * per_group],
        bias=kernel.bias[first * per_group : last * per_group],
        groups=last - first,
    )
    dense = regroup(few, 1)
    weight = np.zeros((kept, kernel.channels[0], *kernel.size))
    offset = first * per_group
    weight[:, first * into : last * into] = dense.weight[start - offset : stop - offset : step]
    return replace(kernel, weight=weight, bias=dense.bias[start - offset : stop - offset : step].copy(), groups=1)


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
