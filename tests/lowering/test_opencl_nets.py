"""Whole models on an OpenCL device compute what torch computes, to the same bits in any order of threads."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import reparam_compiler
from reparam_compiler import lowering, zoo
from tests.support.compiled_nets import NETS, Results, results_of, seeded
from tests.support.opencl_device import in_order, needs_opencl, run_program

pytestmark = [pytest.mark.tvm, needs_opencl]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}

WITHOUT_RECIPE = {
    "global average": (nn.AdaptiveAvgPool2d(1), (2, 12, 13, 11)),
    "average of what is inside": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 5, 9, 7)),
    "largest of overlapping windows": (nn.MaxPool2d((3, 2), (2, 1), (1, 0)), (1, 5, 9, 7)),
    "dense of one row": (nn.Linear(300, 70), (1, 300)),
    "dense of 40 rows": (nn.Linear(300, 70), (40, 300)),
    "softmax of a long row": (nn.Softmax(1), (3, 500)),
    "softmax of channels": (nn.Softmax(1), (2, 19, 5, 7)),
    "layer norm": (nn.LayerNorm(33), (4, 7, 33)),
    "group norm": (nn.GroupNorm(3, 12), (2, 12, 5, 7)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 5, 4)),
    "pixel shuffle": (nn.PixelShuffle(2), (1, 12, 3, 5)),
    "attention": (nn.TransformerEncoderLayer(16, 2, 20, dropout=0.0, batch_first=True), (2, 7, 16)),
}


MIXED = {name: NETS[name] for name in ("branches and concat", "transposed and resized", "three-dimensional")}
COMPILED: list[tuple[lowering.Executable, tuple[torch.Tensor, ...]]] = []
"""What `results` compiled, and its inputs."""


def compile_and_run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    COMPILED.append((lowering.compile(model, inputs, target="opencl"), inputs))
    return COMPILED[-1][0].run(*inputs)


@pytest.fixture(scope="module")
def results() -> Results:
    return results_of({**MIXED, **WITHOUT_RECIPE}, compile_and_run)


@pytest.mark.parametrize("name", [*MIXED, *WITHOUT_RECIPE])
def test_net_matches_torch(name: str, results: Results) -> None:
    for found, expected in results[name]:
        np.testing.assert_allclose(found, expected, **FLOAT32)


def run_in_order(compiled: lowering.Executable, order: str, *inputs: torch.Tensor) -> list[np.ndarray]:
    """A run with groups or threads in another order."""
    (variant,) = compiled.variants
    weights = [weight.value.numpy() for weight in variant.weights]
    return run_program(in_order(variant.library, order), *(x.numpy() for x in inputs), *weights)


def test_nets_are_the_same_bits_in_any_order_of_threads(results: Results) -> None:
    compiled, inputs = COMPILED[-1]
    expected = [found for pairs in results.values() for found, _ in pairs]
    for again, first in zip(run_in_order(compiled, "threads backwards", *inputs), expected, strict=True):
        np.testing.assert_array_equal(again, first)


ELEMENTARY = (
    *(torch.acos, torch.asin, torch.atan, torch.asinh, torch.atanh, torch.sinh, torch.cosh, torch.tan, torch.erf, torch.erfc),
    *(torch.exp2, torch.expm1, torch.log10, torch.log1p, torch.log2, torch.round, torch.trunc, torch.rsqrt, torch.sigmoid),
)


class Elementary(nn.Module):
    """Functions that TVM calls as C does, and those of two arguments."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = (*(function(x, y) for function in (torch.fmod, torch.atan2, torch.hypot, torch.pow, torch.fmin, torch.fmax)),)
        return *(function(x) for function in ELEMENTARY), torch.acosh(x + 1), torch.copysign(x, y - 0.5), *pairs


def test_elementary_functions_match_torch() -> None:
    torch.manual_seed(0)
    inputs = torch.rand(7, 9) * 0.9 + 0.05, torch.rand(7, 9) * 0.9 + 0.05
    found = lowering.compile(Elementary().eval(), inputs, target="opencl").run(*inputs)
    for ours, theirs in zip(found, Elementary()(*inputs), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


class Chained(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(30):
            x = torch.tanh(torch.sin(x) * 0.5)
        return x


def test_a_kernel_of_many_ops_has_a_name_that_a_file_may_have() -> None:
    x = torch.linspace(-1, 1, 12)
    compiled = lowering.compile(Chained().eval(), x, target="opencl")
    ((call,),) = [variant.library.calls for variant in compiled.variants]
    assert len(call.kernel) > 255 > max(len(launch.function) for launch in call.launches) * 2
    np.testing.assert_allclose(compiled.run(x)[0], Chained()(x).numpy(), rtol=1e-5, atol=1e-6)


class Level(nn.Module):
    """A level of a U-Net: two convs, the levels below at half the size, and their result beside its own."""

    def __init__(self, before: int, width: int, below: nn.Module | None) -> None:
        super().__init__()
        self.down = nn.Sequential(*self.conv(before, width), *self.conv(width, width))
        self.below = below
        if below is not None:
            self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
            self.joined = nn.Sequential(*self.conv(2 * width, width))

    def conv(self, before: int, width: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        if self.below is None:
            return x
        deep = self.up(self.below(nn.functional.max_pool2d(x, 2)))
        return self.joined(torch.cat([x, deep], 1))


def unet() -> nn.Module:
    return nn.Sequential(Level(3, 8, Level(8, 16, Level(16, 32, None))), nn.Conv2d(8, 2, 1))


WHOLE = {
    "digits": (zoo.digits_repvgg, (3, 1, 8, 8)),
    "RepVGG-A0": (zoo.repvgg_a0, (1, 3, 64, 64)),
    "ResNet-18": (zoo.resnet18, (1, 3, 64, 64)),
    "U-Net": (unet, (1, 3, 24, 32)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_net_matches_torch(name: str) -> None:
    make, shape = WHOLE[name]
    torch.manual_seed(0)
    model, x = seeded(make()), torch.randn(shape)
    compiled = lowering.compile(reparam_compiler.fuse(model, x), x, target="opencl")
    (found,) = compiled.run(x)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    if name == "digits":
        np.testing.assert_array_equal(run_in_order(compiled, "groups backwards", x)[0], found)
