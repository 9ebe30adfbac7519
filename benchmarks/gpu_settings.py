"""What one run of the GPU benchmark does: see the options of `gpu.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.gpu_measure import LONGEST


@dataclass(frozen=True, slots=True)
class Group:
    """Nets that are timed in turns: a RepVGG and, where the paper pairs them, a ResNet and the paper's ratio."""

    repvgg: str
    resnet: str | None = None
    paper_ratio: float | None = None

    @property
    def size(self) -> int:
        """How many nets: training form, fused, and the ResNet."""
        return 2 + (self.resnet is not None)


# Those with a ratio to compare come first, so that a slow machine leaves out the others.
GROUPS = (
    Group("A0", "ResNet-18", 1.33),
    Group("A1", "ResNet-34", 1.64),
    Group("A2", "ResNet-50", 1.83),
    Group("B1g4", "ResNet-101", 2.01),
    Group("B1g2", "ResNet-152", 2.66),
    *(Group(name) for name in ("B0", "B1", "B2g4", "B2", "B3g4", "B3")),
)


@dataclass(frozen=True, slots=True)
class KernelSize:
    """The conv of Table 1: so many channels in and out, stride 1, and an image of that side."""

    channels: int = 2048
    image: int = 56
    batch: int = 32


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The nets of Table 8, by `zoo.pspnet`'s names of their backbones, and the side and number of images."""

    backbones: Sequence[str] = ("RepVGG-B1g2 fast", "ResNet-50", "RepVGG-B1g2", "RepVGG-B2 fast", "ResNet-101", "RepVGG-B2")
    image: int = 713
    batch: int = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run.

    engine_nets: nets that are timed on every engine.
    parts: which parts to run, in order, with each one's share of the time.
    longest: seconds that one configuration is timed at most.
    """

    device: torch.device
    groups: Sequence[Group]
    modes: Sequence[str]
    batches: Sequence[int]
    image: int
    minutes: float
    engine_nets: Sequence[str] = ("A0",)
    parts: Sequence[str] = ("engines", "zoo", "kernel sizes", "segmentation")
    kernel_size: KernelSize = field(default_factory=KernelSize)
    segmentation: Segmentation = field(default_factory=Segmentation)
    longest: float = LONGEST
