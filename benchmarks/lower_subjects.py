"""The nets that `lower.py` times, and the files that its engines read: `prepare` writes them into a folder for each net.

    x.npy, expected.npy           an image, and what the training form or the pruned net gives for it in float64 (torch)
    training.onnx                 with its branches and batch norms, where there is a training form
    fused.onnx, fused.pt          what ONNX Runtime, OpenVINO and torch run
    fused.mnn, fused.ncnn.*       converted from fused.onnx by MNN's converter and by pnnx
    ours.tar                      our artifact

A conversion that fails leaves no file, and the engine that misses it says so.
"""

import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.zoo import Architecture, RepVGG, pspnet, randomise_batch_norm, repvgg_a0, repvgg_b0, repvgg_b1g4, resnet18

CONVERSION_LIMIT = 120.0
"""Seconds."""
A0, DISTURBED = "RepVGG-A0", "RepVGG-A0 beside a process that streams memory"
PRUNED = ("A0 pruned 0.3, multiples of 16", "A0 pruned 0.3, multiples of 8")
Make = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Subject:
    """A net. make: in training form. size: of the square image. round_to: pruned by 0.3 to multiples of it; 0: not pruned."""

    name: str
    make: Make
    size: int = 224
    round_to: int = 0


SUBJECTS = (
    Subject(A0, repvgg_a0),
    Subject(PRUNED[0], repvgg_a0, round_to=16),
    Subject(PRUNED[1], repvgg_a0, round_to=8),
    Subject("RepVGG-B0", repvgg_b0),
    Subject("RepVGG-B1g4", repvgg_b1g4),
    Subject("ResNet-18", resnet18),
    Subject("PSPNet, RepVGG-A0, 233x233", lambda: pspnet("RepVGG-A0"), size=233),
)


def _narrow() -> nn.Module:
    return RepVGG(Architecture((1, 1), (32, 32), strides=(2, 1)), num_classes=10)


QUICK = (Subject(A0, _narrow, size=32), Subject(PRUNED[0], _narrow, size=32, round_to=16))
"""Stand-ins, to see that it works."""


@dataclass(frozen=True, slots=True)
class Built:
    """How ours was made. seconds: import to library. bytes: of the artifact. kernels: (name, algorithm) of each."""

    seconds: float
    bytes: int
    kernels: tuple[tuple[str, str], ...]

    def algorithms(self) -> str:
        """How many kernels each algorithm has, but for what general rules made."""
        counted = Counter(algorithm for _, algorithm in self.kernels if algorithm != "general")
        return ", ".join(f"{count} x {algorithm}" for algorithm, count in sorted(counted.items()))


def prepare(subject: Subject, folder: Path) -> Built | str:
    """Writes the files of a net into its folder; how ours was built, or why it was not."""
    folder.mkdir()
    model, x = _model(subject)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is repaired, and the exporter is deprecated
        plain = reparam_compiler.fuse(model, (x,))
        if subject.round_to:
            plain = reparam_compiler.prune(plain, (x,), ratio=0.3, round_to=subject.round_to)
        reference = plain if subject.round_to else model
        with torch.no_grad():
            expected = deep_copy(reference).double()(x.double()).numpy()
        np.save(folder / "x.npy", x.numpy())
        np.save(folder / "expected.npy", expected)
        torch.save(plain, folder / "fused.pt")
        torch.onnx.export(deep_copy(plain), (x,), str(folder / "fused.onnx"), dynamo=False)
        if not subject.round_to:
            torch.onnx.export(deep_copy(model), (x,), str(folder / "training.onnx"), dynamo=False)
    _convert(folder, sys.executable, "-m", "MNN.tools.mnnconvert", *_MNN)
    _convert(folder, sys.executable, "-c", _PNNX)
    return build(plain, x, folder / "ours.tar")


def build(model: nn.Module, x: Tensor, artifact: Path) -> Built | str:
    """Our artifact of a model that is plain already; why there is none where it cannot be compiled."""
    start = time.perf_counter()
    try:
        executable = reparam_compiler.compile(model, (x,))
    except reparam_compiler.ReparamError as refusal:
        return f"{type(refusal).__name__}: {refusal}"[:200]
    seconds = time.perf_counter() - start
    executable.save(artifact)
    kernels = tuple((kernel.name, kernel.algorithm) for kernel in executable.kernels)
    return Built(seconds, artifact.stat().st_size, kernels)


def dilated_convs(folder: Path, *, quick: bool) -> Mapping[tuple[int, int], Path]:
    """Artifacts of single 3x3 convs with a ReLU, by width and dilation: equal multiply-adds, padded to keep their size."""
    side, found = (16 if quick else 60), {}
    for width in (16,) if quick else (64, 128, 256):
        for dilation in (1, 2) if quick else (1, 2, 4):
            torch.manual_seed(0)
            conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation), nn.ReLU()).eval()
            path = folder / f"{width} channels, dilation {dilation}.tar"
            if isinstance(build(conv, torch.randn(1, width, side, side), path), Built):
                found[width, dilation] = path
    return found


_MNN = ("-f", "ONNX", "--modelFile", "fused.onnx", "--MNNModel", "fused.mnn", "--bizCode", "benchmark")
_PNNX = "import pnnx, subprocess; subprocess.run([pnnx.EXEC_PATH, 'fused.onnx', 'fp16=0'], check=True)"


def _convert(folder: Path, *command: str) -> None:
    """Runs a converter in the folder: what it prints is of no use, and what it does not write its engine will miss."""
    quiet = subprocess.DEVNULL
    try:
        subprocess.run(command, cwd=folder, stdout=quiet, stderr=quiet, timeout=CONVERSION_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return


def _model(subject: Subject) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomise_batch_norm(subject.make().eval(), 0)
    return model, torch.randn(1, 3, subject.size, subject.size, generator=torch.Generator().manual_seed(0))
