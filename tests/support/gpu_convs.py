"""Convs for GPU kernels over shapes that hide nothing, and what each kernel is run on and compared with.

`run(func, *inputs, out=…)` is how a scheduled PrimFunc is run: `serial_gpu.run_serially`, or on an OpenCL device.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.gpu.conv import gpu_conv
from reparam_compiler.lowering.gpu.kernels import gemm_packing, winograd_packing
from reparam_compiler.lowering.gpu.packing import PACKINGS
from reparam_compiler.lowering.gpu.tiles import GpuTile
from reparam_compiler.lowering.gpu.winograd import (
    gpu_winograd_input,
    gpu_winograd_output,
    gpu_winograd_placed,
    gpu_winograd_sums,
    winograd_form,
    winograd_gemm,
)
from tests.support.exact_convs import exact_conv

Run = Callable[..., np.ndarray]

BIAS_RELU = (Step("add", "channels"), Step("relu", "scalar"))
BIAS_RESIDUAL_RELU = (Step("add", "channels"), Step("add", "tensor"), Step("relu", "scalar"))
SAME = (1, 1, 1, 1)

SHAPES = {
    "stage of RepVGG": ConvShape(1, 14, 14, 48, 48, (3, 3), padding=SAME),
    "stride 2 on an odd, oblong input": ConvShape(1, 15, 10, 16, 24, (3, 3), (2, 2), padding=SAME),
    "three channels in": ConvShape(1, 18, 10, 3, 48, (3, 3), (2, 2), padding=SAME),
    "7x7 pixels": ConvShape(1, 7, 7, 24, 64, (3, 3), padding=SAME),
    "7x7 kernel": ConvShape(1, 14, 11, 3, 16, (7, 7), (2, 2), padding=(3, 3, 3, 3)),
    "ragged channels": ConvShape(1, 9, 5, 13, 29, (3, 3), padding=SAME),
    "one channel out": ConvShape(1, 6, 5, 8, 1, (3, 3), padding=SAME),
    "1x1": ConvShape(1, 5, 9, 24, 40, (1, 1)),
    "1x1 of stride 2": ConvShape(1, 5, 9, 24, 40, (1, 1), (2, 2)),
    "dilation 2": ConvShape(1, 12, 9, 16, 16, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
    "unequal everything": ConvShape(1, 13, 17, 8, 16, (3, 5), (2, 1), (1, 2), (1, 4, 1, 4)),
    "pads that differ by side": ConvShape(1, 8, 7, 8, 12, (3, 3), padding=(0, 1, 2, 1)),
    "batch 3": ConvShape(3, 7, 5, 16, 16, (3, 3), padding=SAME),
    "two groups": ConvShape(1, 9, 8, 32, 48, (3, 3), padding=SAME, groups=2),
    "four ragged groups, batch 2": ConvShape(2, 5, 8, 20, 68, (3, 3), padding=SAME, groups=4),
    "one pixel": ConvShape(1, 1, 1, 8, 16, (3, 3), padding=SAME),
    "dense": ConvShape(19, 1, 1, 37, 50, (1, 1)),
}
NARROW = {
    "depthwise": ConvShape(1, 11, 9, 32, 32, (3, 3), padding=SAME, groups=32),
    "depthwise, ragged, stride 2, batch 2": ConvShape(2, 11, 9, 13, 13, (5, 5), (2, 2), padding=(2, 2, 2, 2), groups=13),
    "depthwise without padding": ConvShape(1, 8, 7, 16, 16, (3, 3), groups=16),
    "depthwise with a multiplier": ConvShape(1, 8, 7, 8, 24, (3, 3), padding=SAME, groups=8),
    "four channels a group, dilated": ConvShape(1, 9, 8, 32, 32, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2), groups=8),
    "unequal channels a group": ConvShape(1, 6, 7, 6, 21, (3, 3), padding=SAME, groups=3),
}
SMALL = GpuTile(32, 32, 16, 4, 4)


def tensors(shape: ConvShape, epilogue: Sequence[Step], dtype: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Random x, weights `O kh kw Ig`, and the operands of an epilogue."""
    source = np.random.default_rng(0)
    sizes = {"channels": (shape.channels_out,), "tensor": (shape.pixels, shape.groups, shape.group_out)}
    x = source.standard_normal((shape.batch, shape.height, shape.width, shape.channels_in)).astype(dtype)
    scale = (shape.kernel[0] * shape.kernel[1] * shape.group_in) ** -0.5
    weight = (scale * source.standard_normal((shape.channels_out, *shape.kernel, shape.group_in))).astype(dtype)
    return x, weight, [source.standard_normal(sizes[s.operand]).astype(dtype) for s in epilogue if s.operand in sizes]


def expected(shape: ConvShape, x: np.ndarray, weight: np.ndarray, operands: list[np.ndarray], residual: bool) -> np.ndarray:
    """The conv with bias, residual and ReLU by torch, in float64."""
    y = torch.from_numpy(exact_conv(x, weight, shape)).reshape(shape.pixels, shape.groups, shape.group_out)
    y = y + torch.from_numpy(operands[0]).double().reshape(shape.groups, shape.group_out)
    if residual:
        y = y + torch.from_numpy(operands[1]).double()
    return y.relu().numpy()


def packed(weight: np.ndarray, shape: ConvShape, tile: GpuTile) -> np.ndarray:
    """Weights as the implicit GEMM reads them."""
    return gemm_packing(shape, tile).of(weight, PACKINGS)


def output(shape: ConvShape) -> tuple[tuple[int, ...], str]:
    return (shape.pixels, shape.groups, shape.group_out), shape.dtype


def winograd_conv(
    run: Run,
    shape: ConvShape,
    outputs: int,
    steps: Sequence[Step],
    x: np.ndarray,
    weight: np.ndarray,
    operands: list[np.ndarray],
) -> np.ndarray:
    """A conv by all kernels of its F(outputs x outputs), each run by `run`: `pixels G O/G`."""
    form = winograd_form(outputs)
    gemm, (height, width) = winograd_gemm(shape, form), form.transforms(shape)
    spread, channels = (form.tiles(shape), height.size, width.size), (shape.groups, shape.group_out)
    data = run(gpu_winograd_input(shape, form), x, out=((*spread, shape.channels_in), "float32"))
    weights = winograd_packing(shape, form, SMALL).of(weight, PACKINGS)
    products = run(gpu_conv(gemm, SMALL, ()), data.reshape(gemm.batch, 1, 1, -1), weights, out=output(gemm))
    products = products.reshape(*spread, *channels)
    size = (shape.batch, shape.out_height, shape.out_width, *channels)
    placed = [array.reshape(size) if array.ndim > 1 else array for array in operands]
    if shape.dilation == (1, 1):
        found = run(gpu_winograd_output(shape, form, steps), products, *placed, out=(size, "float32"))
    else:
        tiles = (form.tiles(shape), *form.outputs, *channels)
        sums = run(gpu_winograd_sums(shape, form), products, out=(tiles, "float32"))
        found = run(gpu_winograd_placed(shape, form, steps), sums, *placed, out=(size, "float32"))
    return found.reshape(shape.pixels, *channels)
