"""Values of the GPU schedules, beside torch, with thread loops made serial: see `serial_gpu` for what that can show."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.gpu.conv import declare_conv, gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.gpu.cuda.chips import chip_of
from reparam_compiler.lowering.gpu.grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.gpu.kernels import gemm_packing, winograd_packing
from reparam_compiler.lowering.gpu.packing import PACKINGS, pack_grouped
from reparam_compiler.lowering.gpu.tensor_cores import cheap_stack_frames, scheduled_tensor_conv
from reparam_compiler.lowering.gpu.tiles import FLOAT32_TILES, TENSOR_TILES, GpuTile
from reparam_compiler.lowering.gpu.winograd import (
    choose_gpu_winograd,
    gpu_winograd_input,
    gpu_winograd_output,
    gpu_winograd_placed,
    gpu_winograd_sums,
    winograd_form,
    winograd_gemm,
)
from tests.support.exact_convs import exact_conv
from tests.support.serial_gpu import run_serially

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
FLOAT16 = {"rtol": 1e-3, "atol": 1e-3}  # one rounding of the result to float16, whose unit is 2**-11 of it

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


@pytest.mark.parametrize("name", SHAPES)
def test_implicit_gemm_matches_torch(name: str) -> None:
    shape = SHAPES[name]
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, "float32")
    found = run_serially(
        gpu_conv(shape, SMALL, BIAS_RESIDUAL_RELU),
        x,
        packed(weight, shape, SMALL),
        *operands,
        out=output(shape),
    )
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=True), **FLOAT32)


@pytest.mark.parametrize("tile", FLOAT32_TILES, ids=str)
def test_each_float32_tile_matches_torch(tile: GpuTile) -> None:
    shape = SHAPES["ragged channels"]
    x, weight, operands = tensors(shape, BIAS_RELU, "float32")
    found = run_serially(gpu_conv(shape, tile, BIAS_RELU), x, packed(weight, shape, tile), *operands, out=output(shape))
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=False), **FLOAT32)


@pytest.mark.parametrize("name", ["stage of RepVGG", "ragged channels", "four ragged groups, batch 2", "dilation 2"])
@pytest.mark.parametrize(("pieces", "dtype"), [(2, "float32"), (3, "float32"), (3, "float16")])
def test_sum_in_pieces_matches_torch(name: str, pieces: int, dtype: str) -> None:
    shape = replace(SHAPES[name], dtype=dtype)
    tile = replace(SMALL if dtype == "float32" else TENSOR_TILES[-1], pieces=pieces)
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, dtype)
    rows, columns, _ = tile.padded(shape)
    part: Any = gpu_partial_conv(shape, tile)
    if dtype == "float16":
        part = scheduled_tensor_conv(declare_conv(shape, tile, None), shape, tile, intrinsics=False).mod["main"]
    scratch = (pieces * shape.groups, rows, columns), "float32"
    sums = run_serially(part, x, packed(weight, shape, tile), out=scratch)
    found = run_serially(gpu_sum_of_pieces(shape, tile, BIAS_RESIDUAL_RELU), sums, *operands, out=output(shape))
    tolerance = FLOAT16 if dtype == "float16" else FLOAT32
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=True), **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", NARROW)
def test_conv_of_few_channels_a_group_matches_torch(name: str, dtype: str) -> None:
    shape = replace(NARROW[name], dtype=dtype)
    assert is_narrow(shape)
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, dtype)
    func = gpu_grouped_conv(shape, BIAS_RESIDUAL_RELU)
    found = run_serially(func, x, pack_grouped(weight), *operands, out=output(shape))
    tolerance = FLOAT16 if dtype == "float16" else FLOAT32
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=True), **tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_tensor_core_conv_matches_torch(name: str) -> None:
    check_tensor_conv(replace(SHAPES[name], dtype="float16"), TENSOR_TILES[-1])


@pytest.mark.parametrize("tile", TENSOR_TILES, ids=str)
def test_each_tensor_core_tile_matches_torch(tile: GpuTile) -> None:
    check_tensor_conv(replace(SHAPES["ragged channels"], dtype="float16"), tile)


def check_tensor_conv(shape: ConvShape, tile: GpuTile) -> None:
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, "float16")
    func: Any = scheduled_tensor_conv(declare_conv(shape, tile, BIAS_RESIDUAL_RELU), shape, tile, intrinsics=False).mod["main"]
    found = run_serially(func, x, packed(weight, shape, tile), *operands, out=output(shape))
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=True), **FLOAT16)


WINOGRAD = {
    **{
        name: SHAPES[name]
        for name in ("stage of RepVGG", "7x7 pixels", "ragged channels", "batch 3", "two groups", "one pixel")
    },
    "dilation 2": SHAPES["dilation 2"],
    "dilation 3 by 2": ConvShape(2, 11, 9, 8, 12, (3, 3), (1, 1), (3, 2), (3, 2, 3, 2)),
    "pads that differ by side": SHAPES["pads that differ by side"],
}


MEETING_2 = ("stage of RepVGG", "ragged channels", "one pixel", "dilation 3 by 2", "pads that differ by side")
"""What the outputs of a tile meet: ragged images and widths, dilations, pads. These make up the others."""


@pytest.mark.parametrize(("outputs", "name"), [*((4, name) for name in WINOGRAD), *((2, name) for name in MEETING_2)])
def test_winograd_matches_torch(name: str, outputs: int) -> None:
    shape, form = WINOGRAD[name], winograd_form(outputs)
    gemm, (height, width) = winograd_gemm(shape, form), form.transforms(shape)
    x, weight, (bias, residual) = tensors(shape, BIAS_RESIDUAL_RELU, "float32")
    spread, channels = (form.tiles(shape), height.size, width.size), (shape.groups, shape.group_out)

    data = run_serially(gpu_winograd_input(shape, form), x, out=((*spread, shape.channels_in), "float32"))
    weights = winograd_packing(shape, form, SMALL).of(weight, PACKINGS)
    products = run_serially(gpu_conv(gemm, SMALL, ()), data.reshape(gemm.batch, 1, 1, -1), weights, out=output(gemm))
    products = products.reshape(*spread, *channels)
    size = (shape.batch, shape.out_height, shape.out_width, *channels)
    operands = (bias, residual.reshape(size))
    if shape.dilation == (1, 1):
        last = gpu_winograd_output(shape, form, BIAS_RESIDUAL_RELU)
        found = run_serially(last, products, *operands, out=(size, "float32"))
    else:
        tiles = (form.tiles(shape), *form.outputs, *channels)
        sums = run_serially(gpu_winograd_sums(shape, form), products, out=(tiles, "float32"))
        last = gpu_winograd_placed(shape, form, BIAS_RESIDUAL_RELU)
        found = run_serially(last, sums, *operands, out=(size, "float32"))
    right = expected(shape, x, weight, [bias, residual], residual=True)
    np.testing.assert_allclose(found.reshape(right.shape), right, rtol=1e-4, atol=2e-5)  # F(4) loses a digit


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"stride": (2, 2)}, False),
        ({"kernel": (5, 5)}, False),
        ({"dtype": "float16"}, False),
        ({"batch": 1}, False),
    ],
    ids=str,
)
def test_winograd_is_taken_for_large_float32_convs_of_stride_1_alone(change: dict[str, Any], taken: bool) -> None:
    shape = replace(ConvShape(128, 14, 14, 192, 192, (3, 3), padding=SAME), **change)
    assert bool(choose_gpu_winograd(shape, chip_of("sm_80"))) == taken


def test_stack_without_source_names_the_same_functions_and_gives_way() -> None:
    real = inspect.stack
    with cheap_stack_frames():
        found = [frame.function for frame in inspect.stack()]
        assert inspect.stack()[0].code_context is None
    assert inspect.stack is real
    assert found == [frame.function for frame in inspect.stack()]
