"""The depthwise kernel against torch in float64, over what its bands and tiles meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.cpu.depthwise import (
    BAND_BYTES,
    band_rows,
    depthwise_columns,
    depthwise_conv,
    pixel_tile,
    vectors_of,
)
from reparam_compiler.lowering.cpu.machine import VectorUnit, vector_unit
from reparam_compiler.lowering.cpu.packing import pack_channels
from reparam_compiler.lowering.target import resolve
from tests.support.exact_convs import exact_conv

pytestmark = pytest.mark.tvm
AVX2, AVX512, NEON = VectorUnit(32, 16, 2), VectorUnit(64, 32, 2), VectorUnit(16, 32, 2)
ONES = (1, 1, 1, 1)
EPILOGUE = (Step("add", "channels"), Step("add", "tensor"), Step("relu"))


def depthwise(
    channels: int,
    size: tuple[int, int],
    taps: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = ONES,
    batch: int = 1,
) -> ConvShape:
    return ConvShape(batch, *size, channels, channels, taps, stride, dilation, padding, groups=channels)


SHAPES = {
    "several bands": depthwise(16, (64, 56)),
    "a width that no tile divides": depthwise(16, (11, 13)),
    "channels that no vector divides": depthwise(13, (9, 10)),
    "one vector of channels": depthwise(8, (9, 10)),
    "stride 2, batch 2": depthwise(24, (15, 12), stride=(2, 2), batch=2),
    "unequal everything": depthwise(12, (17, 14), (5, 3), (2, 1), (1, 2), (2, 0, 1, 3)),
    "7x7": depthwise(16, (10, 9), (7, 7), padding=(3, 3, 3, 3)),
    "no padding": depthwise(16, (8, 9), padding=(0, 0, 0, 0)),
    "one pixel": depthwise(16, (1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_kernel_computes_the_conv(name: str) -> None:
    shape, target, draw = SHAPES[name], resolve(None), np.random.default_rng(0)
    unit = vector_unit(target)
    x = draw.standard_normal((shape.batch, shape.height, shape.width, shape.channels_in)).astype("float32")
    weight = draw.standard_normal((shape.channels_out, *shape.kernel, 1)).astype("float32")
    bias = draw.standard_normal(shape.channels_out).astype("float32")
    y = exact_conv(x, weight, shape) + bias
    other = draw.standard_normal(y.shape).astype("float32")
    kernel = depthwise_conv(shape, EPILOGUE, unit).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": kernel}), target=target)
    out = tvm.runtime.tensor(np.full((*y.shape, 1), np.nan, "float32"))
    packed = pack_channels(weight, columns=depthwise_columns(shape, unit))
    library["main"](*map(tvm.runtime.tensor, (x, packed, bias, other[..., None])), out)
    np.testing.assert_allclose(out.numpy()[..., 0], np.maximum(y + other, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", [AVX2, AVX512, NEON])
@given(channels=st.integers(2, 400), height=st.integers(1, 120), width=st.integers(1, 120), stride=st.integers(1, 2))
def test_a_tile_fits_the_registers_and_a_band_the_cache(
    unit: VectorUnit, channels: int, height: int, width: int, stride: int
) -> None:
    shape = depthwise(channels, (height, width), stride=(stride, stride))
    assert pixel_tile(shape, unit) * vectors_of(shape, unit) + 2 <= unit.registers
    rows = band_rows(shape, unit)
    assert shape.out_height % rows == 0
    halo = ((rows - 1) * stride + 3) * (width + 2) * vectors_of(shape, unit) * unit.bytes
    assert rows == 1 or halo <= BAND_BYTES


def test_a_tile_leaves_few_pixels_over() -> None:
    tiles = [pixel_tile(depthwise(16, (width, width)), AVX2) for width in (7, 14, 56, 80, 13, 10)]
    assert tiles == [7, 7, 7, 5, 7, 5]
