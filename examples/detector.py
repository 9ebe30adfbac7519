"""A detector as YOLO builds them: re-parameterized blocks, a pyramid joined by concats, a head on each level. Fused and pruned.

    python examples/detector.py [--ratio 0.3] [--pixels 320]

Heads keep their outputs by themselves, since what they give is the model's; `ignore` is there for layers that shall keep
their widths though nothing says that they must. Weights are random, so no accuracy is printed.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam_compiler import fuse, prune
from reparam_compiler.zoo import randomise_batch_norm


class RepConv(nn.Module):
    """silu(bn(3x3) + bn(1x1)), the block of YOLOv6 to v9."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.Conv2d(into, out, 1, stride, bias=False)
        self.wide_norm, self.narrow_norm = nn.BatchNorm2d(out), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.wide_norm(self.wide(x)) + self.narrow_norm(self.narrow(x)))


class Detector(nn.Module):
    """`N 3 H W` to `N 4 + classes, positions`: levels of stride 8 and 16."""

    def __init__(self, classes: int = 20, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(RepConv(3, width, 2), RepConv(width, 2 * width, 2))
        self.fine = nn.Sequential(RepConv(2 * width, 4 * width, 2), RepConv(4 * width, 4 * width))
        self.coarse = nn.Sequential(RepConv(4 * width, 8 * width, 2), RepConv(8 * width, 8 * width))
        self.joined = RepConv(12 * width, 4 * width)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 4 + classes, 1) for channels in (4 * width, 8 * width))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        joined = self.joined(torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0)], dim=1))
        return torch.cat([head(level).flatten(2) for head, level in zip(self.heads, (joined, coarse), strict=True)], dim=2)


def main() -> None:
    """Make, fuse, prune with images to repair by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--pixels", type=int, default=320)
    given = parser.parse_args()

    torch.manual_seed(0)
    model = randomise_batch_norm(Detector()).eval()
    images = torch.randn(16, 3, given.pixels, given.pixels)  # yours: 32 to 256 of what it will see
    fused = fuse(model, (images[:1],))
    pruned, report = prune(fused, (images[:1],), ratio=given.ratio, calibration=images, ignore="joined", return_report=True)
    print(report.to_text())
    with torch.no_grad():
        print(f"{type(pruned).__name__}: {tuple(fused(images[:1]).shape)} -> {tuple(pruned(images[:1]).shape)}")
    print(f"{sum(p.numel() for p in fused.parameters()):,} -> {sum(p.numel() for p in pruned.parameters()):,} parameters")


if __name__ == "__main__":
    main()
