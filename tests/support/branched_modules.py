"""A block of two branches, whose own forward has to change where it is fused, and how norms are found."""

from typing import Any

from torch import Tensor, nn


def conv_norm(channels: int, out: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, **options), nn.BatchNorm2d(out))


class Block(nn.Module):
    """Two branches: its own forward has to change."""

    stride = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(channels, channels), nn.Conv2d(channels, channels, 1)
        self.names = ["dense", "point"]

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return (self.dense(x) + self.point(x)).relu() * scale


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
