"""A net for super-resolution of the ECBSR kind, fused and compiled for one size of image.

    python examples/super_resolution.py [--height 135 --width 240] [--output net.tar]

A branch that widens by a 1x1 with a bias and then pads is no 3x3 as it stands: the border would lack the bias. These nets
therefore write the bias over the border, in place; the library reads that, measures the bias and finds one conv a block.
Weights are random.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam_compiler


class Widened(nn.Module):
    """1x1, a border of its bias, 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.conv = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pad(self.wide(x), (1, 1, 1, 1))
        border = self.wide.bias.view(1, -1, 1, 1)
        y[:, :, 0:1, :] = border
        y[:, :, -1:, :] = border
        y[:, :, :, 0:1] = border
        y[:, :, :, -1:] = border
        return self.conv(y)


class Block(nn.Module):
    """prelu(3x3 + widened + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.widened = nn.Conv2d(channels, channels, 3, padding=1), Widened(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + self.widened(x) + x)


def net(scale: int = 2, channels: int = 16, blocks: int = 3) -> nn.Module:
    """`N 3 H W` to `N 3 scale H, scale W`."""
    ends = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
    return nn.Sequential(ends[0], *(Block(channels) for _ in range(blocks)), ends[1], nn.PixelShuffle(scale)).eval()


def main() -> None:
    """Make, fuse, compile, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=135)
    parser.add_argument("--width", type=int, default=240)
    parser.add_argument("--output", help="where the artifact goes: .tar or .so")
    given = parser.parse_args()

    torch.manual_seed(0)
    model, image = net(), torch.rand(1, 3, given.height, given.width)
    fused, report = reparam_compiler.fuse(model, (image,), return_report=True)
    print(f"{report.before.convs} convs -> {report.after.convs}")
    executable = reparam_compiler.compile(fused, (image,), fuse=False)  # for images of this size alone
    (large,) = executable.run(image.numpy())
    with torch.no_grad():
        error = np.abs(large - model(image).numpy()).max() / np.abs(large).max()
    print(f"{tuple(image.shape)} -> {large.shape}, differs by {error:.1e}, {1e3 * executable.time(image.numpy()):.2f} ms")
    if given.output is not None:
        executable.save(given.output)


if __name__ == "__main__":
    main()
