"""Values of the GPU schedules, beside torch, with thread loops made serial: see `serial_gpu` for what that can show."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.gpu.conv import declare_conv, gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.gpu.cuda.chips import chip_of
from reparam_compiler.lowering.gpu.grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.gpu.packing import pack_grouped
from reparam_compiler.lowering.gpu.tensor_cores import cheap_stack_frames, scheduled_tensor_conv
from reparam_compiler.lowering.gpu.tiles import FLOAT32_TILES, TENSOR_TILES, GpuTile
from reparam_compiler.lowering.gpu.winograd import (
    choose_gpu_winograd,
)
from tests.support.gpu_convs import (
    BIAS_RELU,
    BIAS_RESIDUAL_RELU,
    NARROW,
    SAME,
    SHAPES,
    SMALL,
    expected,
    output,
    packed,
    tensors,
    winograd_conv,
)
from tests.support.serial_gpu import run_serially

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
FLOAT16 = {"rtol": 1e-3, "atol": 1e-3}  # one rounding of the result to float16, whose unit is 2**-11 of it


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


@pytest.mark.parametrize("name", ["stage of RepVGG", "ragged channels", "three channels in"])
def test_half_precision_without_tensor_cores_matches_torch(name: str) -> None:
    shape = replace(SHAPES[name], dtype="float16")
    x, weight, operands = tensors(shape, BIAS_RELU, "float16")
    found = run_serially(gpu_conv(shape, SMALL, BIAS_RELU), x, packed(weight, shape, SMALL), *operands, out=output(shape))
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=False), **FLOAT16)


@pytest.mark.parametrize(
    ("name", "pieces", "dtype"),
    [
        ("stage of RepVGG", 2, "float32"), ("ragged channels", 3, "float32"), ("four ragged groups, batch 2", 2, "float32"),
        ("dilation 2", 3, "float32"), ("ragged channels", 3, "float16"), ("four ragged groups, batch 2", 2, "float16"),
    ],
)  # fmt: skip
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


MEETING_2 = ("ragged channels", "one pixel", "dilation 3 by 2", "pads that differ by side")
"""What the outputs of a tile meet: ragged images and widths, dilations, pads. These make up the others."""


@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd_matches_torch(name: str) -> None:
    """By tiles of four outputs or of two; of any geometry by both, `test_opencl_kernels.py` runs them on a device."""
    shape, outputs = WINOGRAD[name], 2 if name in MEETING_2 else 4
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, "float32")
    found = winograd_conv(run_serially, shape, outputs, BIAS_RESIDUAL_RELU, x, weight, operands)
    right = expected(shape, x, weight, operands, residual=True)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=2e-5)  # F(4) loses a digit


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
