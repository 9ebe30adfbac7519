"""Convolution operators run from their definition, and the sizes of sources to run them on."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam_compiler.core.kernel import ConvKernel, PaddingMode

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def extended(x: Tensor, padding: Sequence[tuple[int, int]], mode: PaddingMode = "zeros", value: Tensor | None = None) -> Tensor:
    """x of `N C *S`, extended by `padding` and then cropped where it is negative; `value` for each channel."""
    for axis, (low, high) in enumerate(padding, start=2):
        size = x.shape[axis]
        places = torch.arange(-low if low > 0 else 0, size + max(high, 0))
        if mode == "reflect":
            inside = (size - 1) - (places.abs() - (size - 1)).abs() if size > 1 else torch.zeros_like(places)
        elif mode == "circular":
            inside = places % size
        else:
            inside = places.clamp(0, size - 1)
        wider = x.index_select(axis, inside)
        if mode == "zeros":
            outside = ((places < 0) | (places >= size)).view(-1, *(1,) * (x.ndim - axis - 1))
            fill = torch.zeros(()) if value is None else value.view(1, -1, *(1,) * (x.ndim - 2))
            wider = torch.where(outside, fill.to(x.dtype), wider)
        x = wider.narrow(axis, max(-low, 0), wider.shape[axis] - max(-low, 0) - max(-high, 0))
    return x


def upsampled(x: Tensor, factors: Sequence[int]) -> Tensor:
    """x of `N C *S` with zeros between its positions."""
    if all(factor == 1 for factor in factors):
        return x
    wider = x.new_zeros(*x.shape[:2], *((n - 1) * u + 1 for n, u in zip(x.shape[2:], factors, strict=True)))
    wider[(..., *(slice(None, None, u) for u in factors))] = x
    return wider


def run(kernel: ConvKernel, x: Tensor) -> Tensor:
    """The operator itself, from its definition."""
    weight, bias = torch.from_numpy(kernel.weight), torch.from_numpy(kernel.bias)
    x = extended(upsampled(x, kernel.upsampling), kernel.padding, kernel.mode)
    if not kernel.rank:
        return F.conv1d(x[..., None], weight[..., None], bias, groups=kernel.groups)[..., 0]
    return CONVS[kernel.rank](x, weight, bias, kernel.stride, 0, kernel.dilation, kernel.groups)


def source(kernel_in: int, sizes: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(2, kernel_in, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gives_something(kernel: ConvKernel, sizes: Sequence[int]) -> bool:
    """Whether torch takes the operator on a source of these sizes."""
    for size, margin, (low, high) in zip(stuffed(kernel, sizes), kernel.margin, kernel.padding, strict=True):
        largest = {"zeros": 99, "replicate": 99, "circular": size, "reflect": size - 1}[kernel.mode]
        if size + margin < 1 or size + min(low, 0) + min(high, 0) < 1 or max(low, high) > largest:
            return False
    return True


def stuffed(kernel: ConvKernel, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple((size - 1) * u + 1 for size, u in zip(sizes, kernel.upsampling, strict=True))


def output_sizes(kernel: ConvKernel, sizes: Sequence[int]) -> tuple[int, ...]:
    sources = stuffed(kernel, sizes)
    return tuple((size + margin - 1) // s + 1 for size, margin, s in zip(sources, kernel.margin, kernel.stride, strict=True))


def all_sizes(rank: int, largest: int = 8) -> list[tuple[int, ...]]:
    """Sizes of sources to try: all lengths for one axis, lengths against one another for more."""
    if rank == 0:
        return [()]
    if rank == 1:
        return [(n,) for n in range(1, largest + 2)]
    return [tuple(1 + (n + 2 * axis * (n % 3 + 1)) % largest for axis in range(rank)) for n in range(largest // (rank - 1))]
