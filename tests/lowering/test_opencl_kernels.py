"""The GPU's kernels on an OpenCL device: what torch computes, over any geometry, to the same bits in any order of threads."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.gpu.conv import gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.gpu.grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.gpu.opencl.devices import CHOICE, why_none
from reparam_compiler.lowering.gpu.opencl.program import Program
from reparam_compiler.lowering.gpu.packing import pack_grouped
from reparam_compiler.lowering.gpu.tiles import FLOAT32_TILES, GpuTile
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
from tests.support.opencl_device import ORDERS, in_order, kernel_program, needs_opencl, run_on_device, run_program

pytestmark = [pytest.mark.tvm, needs_opencl]
FLOAT32 = {"rtol": 1e-4, "atol": 2e-5}
BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"


@st.composite
def geometries(draw: st.DrawFn, groups: st.SearchStrategy[int], each_group: st.SearchStrategy[int]) -> ConvShape:
    """A conv whose sizes have nothing to do with each other; it has an output pixel at least."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    count = draw(groups)
    return ConvShape(
        draw(st.integers(1, 2)),
        reach[0] + draw(st.integers(0, 6)),
        reach[1] + draw(st.integers(0, 6)),
        count * draw(each_group),
        count * draw(each_group),
        kernel,
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        dilation,
        draw(st.tuples(*[st.integers(0, 2)] * 4)),
        count,
    )


def check(found: np.ndarray, shape: ConvShape, x: np.ndarray, weight: np.ndarray, operands: list[np.ndarray]) -> None:
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=True), **FLOAT32)


@settings(max_examples=7)
@given(geometries(st.integers(1, 3), st.integers(1, 37)), st.sampled_from([1, 2, 3]))
def test_implicit_gemm_of_any_geometry_matches_torch(shape: ConvShape, pieces: int) -> None:
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, "float32")
    tile = replace(SMALL, pieces=pieces)
    weights = packed(weight, shape, tile)
    if pieces == 1:
        found = run_on_device(gpu_conv(shape, tile, BIAS_RESIDUAL_RELU), x, weights, *operands)
    else:
        sums = run_on_device(gpu_partial_conv(shape, tile), x, weights)
        found = run_on_device(gpu_sum_of_pieces(shape, tile, BIAS_RESIDUAL_RELU), sums, *operands)
    check(found, shape, x, weight, operands)


@settings(max_examples=6)
@given(geometries(st.integers(2, 12), st.integers(1, 4)))
def test_conv_of_few_channels_a_group_of_any_geometry_matches_torch(shape: ConvShape) -> None:
    assert is_narrow(shape)
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, "float32")
    check(
        run_on_device(gpu_grouped_conv(shape, BIAS_RESIDUAL_RELU), x, pack_grouped(weight), *operands),
        shape,
        x,
        weight,
        operands,
    )


@settings(max_examples=2)
@given(geometries(st.integers(1, 2), st.integers(1, 9)), st.sampled_from([2, 4]))
def test_winograd_of_any_geometry_matches_torch(shape: ConvShape, outputs: int) -> None:
    shape = replace(shape, kernel=(3, 3), stride=(1, 1), height=shape.height + 4, width=shape.width + 4)
    x, weight, operands = tensors(shape, BIAS_RESIDUAL_RELU, "float32")
    check(winograd_conv(run_on_device, shape, outputs, BIAS_RESIDUAL_RELU, x, weight, operands), shape, x, weight, operands)


BY_THREAD = {(tile.thread_rows, tile.thread_columns): tile for tile in FLOAT32_TILES}
"""A tile for each number of rows and columns that one thread computes; `test_gpu_values` runs them all."""


@pytest.mark.parametrize("tile", BY_THREAD.values(), ids=str)
def test_each_tile_matches_torch(tile: GpuTile) -> None:
    shape = SHAPES["ragged channels"]
    x, weight, operands = tensors(shape, BIAS_RELU, "float32")
    found = run_on_device(gpu_conv(shape, tile, BIAS_RELU), x, packed(weight, shape, tile), *operands)
    np.testing.assert_allclose(found, expected(shape, x, weight, operands, residual=False), **FLOAT32)


SEVERAL = ConvShape(1, 9, 7, 24, 40, (3, 3), padding=SAME)
"""A GEMM of several work-groups in each direction, and several steps of k."""


@functools.cache
def program_and_inputs() -> tuple[Program, list[np.ndarray]]:
    x, weight, operands = tensors(SEVERAL, BIAS_RELU, "float32")
    return kernel_program(gpu_conv(SEVERAL, SMALL, BIAS_RELU)), [x, packed(weight, SEVERAL, SMALL), *operands]


@pytest.mark.parametrize("order", ORDERS)
def test_implicit_gemm_is_the_same_bits_in_any_order(order: str) -> None:
    program, inputs = program_and_inputs()
    np.testing.assert_array_equal(run_program(in_order(program, order), *inputs), run_program(program, *inputs))


@pytest.mark.parametrize("order", [order for order in ORDERS if order.startswith("threads")])
def test_a_kernel_without_its_barriers_is_told_by_the_order_of_its_threads(order: str) -> None:
    program, inputs = program_and_inputs()
    assert program.source.count(BARRIER) == 2
    racing = replace(program, source=program.source.replace(BARRIER, ""))
    assert not np.array_equal(run_program(in_order(racing, order), *inputs), run_program(program, *inputs))


@pytest.mark.parametrize("order", ["groups backwards", "threads backwards"])
def test_conv_of_few_channels_a_group_is_the_same_bits_in_any_order(order: str) -> None:
    shape = NARROW["unequal channels a group"]
    x, weight, operands = tensors(shape, BIAS_RELU, "float32")
    program, inputs = kernel_program(gpu_grouped_conv(shape, BIAS_RELU)), (x, pack_grouped(weight), *operands)
    np.testing.assert_array_equal(run_program(in_order(program, order), *inputs), run_program(program, *inputs))


def test_implicit_gemm_is_the_same_bits_on_one_core_and_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    program, inputs = program_and_inputs()
    expected = run_program(program, *inputs)
    monkeypatch.setenv(CHOICE, "portable:basic")  # PoCL's device that runs one work-group after the other
    if reason := why_none():
        pytest.skip(reason)
    np.testing.assert_array_equal(run_program(program, *inputs), expected)


def test_a_kernel_says_how_it_is_launched() -> None:
    program, inputs = program_and_inputs()
    ((launch,),) = [call.launches for call in program.calls]
    assert launch.groups == (2, 2, 1)
    assert launch.threads == (SMALL.workers, 1, 1)
    assert sorted(launch.arguments) == [0, 1, 2, 3]
    assert program.sizes == (*(array.nbytes for array in inputs), 9 * 7 * 40 * 4)
    assert output(SEVERAL) == (program.outputs[0].shape, program.outputs[0].dtype)
