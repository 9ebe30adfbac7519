"""Fuses a checkpoint of a class that nobody prepared for it: no switch_to_deploy(), no rule for the class.

    python examples/unknown_checkpoint.py [--checkpoint theirs.safetensors]

`Theirs` stands for code that you got with the checkpoint: three branches, one of them without a module of its own, and
attention to nothing but training. Without a checkpoint its weights are random.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from reparam_compiler import equivalent, fuse
from reparam_compiler.zoo import randomise_batch_norm

EXAMPLE = (torch.randn(1, 3, 40, 36, generator=torch.Generator().manual_seed(0)),)


class Branches(nn.Module):
    """A 3x3, a 1x1 spelled as a product of channels, and the input itself, each with a norm of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.mixing = nn.Parameter(torch.randn(channels, channels, 1, 1) / channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.conv(x), functional.conv2d(x, self.mixing), x)
        normed = [norm(branch) for norm, branch in zip(self.norms, branches, strict=True)]
        return functional.silu(torch.stack(normed).sum(0))


class Theirs(nn.Module):
    """A stem, three such blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.body = nn.Sequential(*(Branches(16) for _ in range(3)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def main() -> None:
    """Load, fuse, say what became of it, check it once more by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = randomise_batch_norm(Theirs())
    if given.checkpoint is not None:
        model.load_state_dict(load_file(given.checkpoint))
    model.eval()  # the one thing that must not be forgotten: a norm in training mode is no linear op

    fused, report = fuse(model, EXAMPLE, return_report=True)
    print(report.to_text())
    print(equivalent(model, fused, EXAMPLE).to_text())


if __name__ == "__main__":
    main()
