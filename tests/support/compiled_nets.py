"""Convs and small nets over shapes that hide nothing (H != W, ragged widths, groups), to compile and compare with torch."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from tests.support.small_models import Together


def seeded(module: nn.Module) -> nn.Module:
    """Random weights and batch-norm statistics: the defaults hide bugs."""
    source = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.copy_(torch.randn(child.num_features, generator=source))
            child.running_var.copy_(torch.rand(child.num_features, generator=source) + 0.5)
            child.weight.data.copy_(torch.rand(child.num_features, generator=source) + 0.5)
            child.bias.data.copy_(torch.randn(child.num_features, generator=source))
    return module.eval()


CONVS = {
    "stage of RepVGG": (nn.Conv2d(48, 48, 3, padding=1), (1, 48, 14, 14)),
    "stride 2 on an odd, oblong input": (nn.Conv2d(16, 24, 3, stride=2, padding=1), (1, 16, 15, 10)),
    "three channels in": (nn.Conv2d(3, 48, 3, stride=2, padding=1), (1, 3, 32, 20)),
    "7x7 pixels": (nn.Conv2d(24, 64, 3, padding=1), (1, 24, 7, 7)),
    "patches of 16x16": (nn.Conv2d(3, 12, 16, stride=16), (1, 3, 32, 48)),
    "1x15 kernel": (nn.Conv2d(4, 8, (1, 15), padding=(0, 7)), (1, 4, 5, 16)),
    "7x7 kernel": (nn.Conv2d(3, 16, 7, stride=2, padding=3), (1, 3, 30, 22)),
    "widths that no vector divides": (nn.Conv2d(13, 29, 3, padding=1), (1, 13, 9, 5)),
    "one channel out": (nn.Conv2d(8, 1, 3, padding=1), (1, 8, 6, 5)),
    "one channel in": (nn.Conv2d(1, 9, 3), (1, 1, 9, 8)),
    "1x1": (nn.Conv2d(24, 40, 1), (1, 24, 5, 9)),
    "1x1 of stride 2": (nn.Conv2d(24, 40, 1, stride=2), (1, 24, 5, 9)),
    "dilation": (nn.Conv2d(16, 16, 3, padding=2, dilation=2), (1, 16, 12, 9)),
    "unequal strides, dilations and pads": (
        nn.Conv2d(8, 16, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2)),
        (1, 8, 13, 17),
    ),
    "1x3": (nn.Conv2d(8, 16, (1, 3), padding=(0, 1)), (1, 8, 6, 7)),
    "batch 3": (nn.Conv2d(16, 16, 3, padding=1), (3, 16, 7, 5)),
    "two groups": (nn.Conv2d(32, 48, 3, padding=1, groups=2), (1, 32, 9, 8)),
    "four groups, ragged": (nn.Conv2d(20, 28, 3, padding=1, groups=4), (2, 20, 9, 8)),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32), (1, 32, 11, 9)),
    "depthwise, ragged, stride 2": (nn.Conv2d(13, 13, 5, stride=2, padding=2, groups=13), (2, 13, 11, 9)),
    "depthwise without padding": (nn.Conv2d(16, 16, 3, groups=16), (1, 16, 8, 7)),
    "depthwise with a multiplier": (nn.Conv2d(8, 24, 3, padding=1, groups=8), (1, 8, 8, 7)),
    "no bias": (nn.Conv2d(8, 16, 3, padding=1, bias=False), (1, 8, 8, 7)),
    "one pixel": (nn.Conv2d(8, 16, 3, padding=1), (1, 8, 1, 1)),
}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + x)


class Inception(nn.Module):
    """Branches of several kinds, concatenated; an output that is also read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(8, 12, 1)
        self.wide = nn.Conv2d(8, 10, 3, padding=1)
        self.after = nn.Conv2d(30, 16, 3, stride=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        joined = torch.cat([self.narrow(x).sigmoid(), nn.functional.silu(self.wide(x)), pooled], 1)
        return self.after(joined), joined


NETS = {
    "residual net with pools and a head": (
        nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            Residual(16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 11),
        ),
        (2, 3, 33, 26),
    ),
    "branches and concat": (Inception(), (1, 8, 9, 7)),
    "elementwise zoo": (
        nn.Sequential(
            nn.Conv2d(4, 12, 3), nn.ReLU6(), nn.Conv2d(12, 12, 1), nn.Hardswish(), nn.Conv2d(12, 8, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, 1), nn.Hardsigmoid(), nn.Conv2d(8, 8, 1), nn.GELU(),
        ),
        (1, 4, 9, 8),
    ),
    "mlp": (nn.Sequential(nn.Linear(37, 50), nn.ReLU(), nn.Linear(50, 10), nn.Softmax(-1)), (3, 37)),
    "linear over a sequence": (nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24)), (2, 5, 16)),
    "transposed and resized": (
        nn.Sequential(nn.ConvTranspose2d(6, 8, 2, stride=2), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3)),
        (1, 6, 5, 4),
    ),
    "one-dimensional": (nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 6, 1)), (2, 4, 19)),
    "three-dimensional": (nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU()), (1, 2, 5, 6, 4)),
    "adaptive pool to 3x2": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 5)),
        (1, 3, 13, 11),
    ),
    "no conv at all": (nn.ReLU(), (2, 3)),
}  # fmt: skip


Nets = dict[str, tuple[nn.Module, tuple[int, ...]]]
Results = dict[str, list[tuple[np.ndarray, np.ndarray]]]
"""Of each net its outputs: what was found, and what torch computes."""


def results_of(nets: Nets, run: Callable[..., list[np.ndarray]]) -> Results:
    """What `run(model, inputs)` and torch compute for each output of each net."""
    torch.manual_seed(1)
    model = seeded(Together(net for net, _ in nets.values()))
    inputs = tuple(torch.randn(shape) for _, shape in nets.values())
    with torch.no_grad():
        expected = model(*inputs)
    found = iter(run(model, inputs))
    results = {name: [(next(found), value.numpy()) for value in values] for name, values in zip(nets, expected, strict=True)}
    assert next(found, None) is None
    return results


def rectified(nets: Nets) -> Nets:
    return {name: (nn.Sequential(net, nn.ReLU()), shape) for name, (net, shape) in nets.items()}
