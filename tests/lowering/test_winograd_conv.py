"""Winograd kernels against torch in float64, over shapes that hide nothing, and the choice by cost and by error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm

from reparam_compiler.lowering import CompileOptions, compile
from reparam_compiler.lowering.conv import accuracy
from reparam_compiler.lowering.conv.accuracy import measured_error
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct, Order, Step, Tile, Winograd, unroll_of
from reparam_compiler.lowering.conv.choice import BLOCK_CACHES, candidates, direct_form
from reparam_compiler.lowering.cpu.kernels import kernel_of, output_size, packed_weights
from reparam_compiler.lowering.cpu.machine import VectorUnit, vector_unit
from reparam_compiler.lowering.cpu.winograd import winograd_conv
from reparam_compiler.lowering.target import resolve
from tests.support.exact_convs import exact_conv

pytestmark = pytest.mark.tvm
AVX2, ZEN4, NEON = VectorUnit(32, 16, 2), VectorUnit(64, 32, 2, fmas=1), VectorUnit(16, 32, 2)
ONES = (1, 1, 1, 1)
FLOAT32 = 1e-5
"""Relative to the largest output, for up to four outputs a tile."""
EPILOGUES = {
    "bias and ReLU": (Step("add", "channels"), Step("relu")),
    "residual on the left": (Step("sub", "tensor", swapped=True), Step("mul", "scalar", value=0.5)),
    "none": (),
}
SHAPES = {
    "a stage of RepVGG": ConvShape(1, 14, 14, 48, 48, (3, 3), padding=ONES),
    "7x7 pixels": ConvShape(1, 7, 7, 24, 64, (3, 3), padding=ONES),
    "widths that no vector divides": ConvShape(1, 13, 9, 13, 29, (3, 3), padding=ONES),
    "no padding": ConvShape(1, 9, 12, 16, 16, (3, 3)),
    "unequal pads": ConvShape(1, 6, 11, 16, 16, (3, 3), padding=(2, 0, 1, 3)),
    "batch 3": ConvShape(3, 7, 5, 16, 24, (3, 3), padding=ONES),
    "two groups": ConvShape(1, 9, 8, 32, 48, (3, 3), padding=ONES, groups=2),
    "four groups, ragged": ConvShape(2, 9, 8, 20, 28, (3, 3), padding=ONES, groups=4),
    "dilation 2": ConvShape(1, 12, 9, 16, 16, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)),
    "unequal dilations, batch 2": ConvShape(2, 13, 11, 16, 16, (3, 3), dilation=(4, 3), padding=(4, 3, 4, 3)),
    "stride 2": ConvShape(1, 15, 10, 16, 24, (3, 3), stride=(2, 2), padding=ONES),
    "stride 2, two groups": ConvShape(1, 10, 15, 16, 24, (3, 3), stride=(2, 2), padding=ONES, groups=2),
    "unequal strides": ConvShape(1, 15, 10, 16, 24, (3, 3), stride=(2, 1), padding=ONES),
    "5x5": ConvShape(1, 11, 10, 16, 24, (5, 5), padding=(2, 2, 2, 2)),
    "5x5 of stride 3": ConvShape(1, 17, 13, 8, 8, (5, 5), stride=(3, 3), padding=(2, 2, 2, 2)),
    "1x3": ConvShape(1, 6, 7, 8, 16, (1, 3), padding=(0, 1, 0, 1)),
    "3x1": ConvShape(1, 6, 7, 8, 16, (3, 1), padding=(1, 0, 1, 0)),
    "one pixel": ConvShape(1, 1, 1, 8, 16, (3, 3), padding=ONES),
}


def outputs_of(shape: ConvShape, m: int) -> tuple[int, int]:
    height, width = (m if size > 1 else 1 for size in shape.kernel)
    return height, width


def expected(x: np.ndarray, weight: np.ndarray, shape: ConvShape) -> np.ndarray:
    """The conv in float64, `N H W G O/G`."""
    y = exact_conv(x, weight, shape)
    return y.reshape(*y.shape[:3], shape.groups, shape.group_out)


def random_layer(shape: ConvShape) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((shape.batch, shape.height, shape.width, shape.channels_in)).astype(shape.dtype)
    return x, draw.standard_normal((shape.channels_out, *shape.kernel, shape.group_in)).astype(shape.dtype)


def run(shape: ConvShape, algorithm: Algorithm, epilogue: str) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel gives, and what it should."""
    target = resolve(None)
    kernel = kernel_of(shape, algorithm, EPILOGUES[epilogue], vector_unit(target))
    library = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target=target)
    (x, weight), draw = random_layer(shape), np.random.default_rng(1)
    y = expected(x, weight, shape)
    bias, other = (draw.standard_normal(size).astype(shape.dtype) for size in (shape.channels_out, y.shape))
    operands: list[np.ndarray] = []
    if epilogue == "bias and ReLU":
        y, operands = np.maximum(y + bias.reshape(shape.groups, -1), 0), [bias]
    elif epilogue == "residual on the left":
        y, operands = (other - y) * 0.5, [other]
    out = tvm.runtime.tensor(np.full(output_size(shape, algorithm), np.nan, shape.dtype))
    library["main"](*map(tvm.runtime.tensor, (x, packed_weights(weight, shape, algorithm), *operands)), out)
    return out.numpy(), y


MEETING_4 = (
    "a stage of RepVGG", "widths that no vector divides", "unequal pads", "four groups, ragged", "unequal dilations, batch 2",
    "stride 2", "unequal strides", "5x5", "1x3", "one pixel",
)  # fmt: skip
"""What the outputs of a tile meet: ragged images and widths, pads, strides, dilations, kernels. These make up the others, which
are computed by tiles of two; so are some of these, in blocks."""


@pytest.mark.parametrize("name", SHAPES)
def test_kernel_computes_the_conv(name: str) -> None:
    shape, m = SHAPES[name], 4 if name in MEETING_4 else 2
    algorithm = Winograd(outputs_of(shape, m), Tile(4, 16, unroll_of(shape.group_in, 4)))
    found, y = run(shape, algorithm, "bias and ReLU")
    assert np.abs(found - y).max() <= FLOAT32 * np.abs(y).max()


@pytest.mark.parametrize(
    ("name", "block"),
    [("batch 3", 9), ("four groups, ragged", 10), ("widths that no vector divides", 7), ("unequal strides", 10), ("3x1", 7)],
)
def test_blocks_of_tiles_give_the_same(name: str, block: int) -> None:
    """Blocks that the GEMM's rows do not divide: what fills them up is never read."""
    shape = SHAPES[name]
    algorithm = Winograd(outputs_of(shape, 2), Tile(4, 16, unroll_of(shape.group_in, 4)), block)
    assert algorithm.blocks(shape) > 1
    assert algorithm.tiles(shape) == block * algorithm.blocks(shape)
    found, y = run(shape, algorithm, "bias and ReLU")
    assert np.abs(found - y).max() <= FLOAT32 * np.abs(y).max()


@pytest.mark.parametrize("block", [0, 5, 25])
@pytest.mark.parametrize("order", ["weights", "pixels"])
def test_blocks_of_pixels_give_the_same(block: int, order: Order) -> None:
    """Blocks that row tiles do not divide, each with a halo of its own; weights beyond the cache are asked for in time."""
    shape = ConvShape(2, 9, 8, 200, 330, (3, 3), stride=(2, 2), padding=(1, 0, 1, 3))
    assert shape.out_width == 5
    found, y = run(shape, Direct(Tile(3, 16, 4, order), block), "bias and ReLU")
    assert np.abs(found.reshape(y.shape) - y).max() <= FLOAT32 * np.abs(y).max()


@pytest.mark.parametrize("unit", [AVX2, ZEN4, NEON])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    into=st.integers(1, 300),
    out=st.integers(1, 300),
    taps=st.integers(1, 3),
)
def test_blocks_divide_the_pixels(unit: VectorUnit, height: int, width: int, into: int, out: int, taps: int) -> None:
    shape = ConvShape(1, height + taps, width + taps, into, out, (taps, taps))
    form = direct_form(shape, unit)
    assert form.blocks(shape) * (form.block or shape.pixels) == shape.pixels
    assert shape.pointwise or form.block % shape.out_width == 0


@pytest.mark.parametrize("unit", [AVX2, ZEN4, NEON])
@given(height=st.integers(3, 60), width=st.integers(3, 60), into=st.integers(1, 300), out=st.integers(1, 300))
def test_blocks_divide_the_tiles_and_stay_in_cache(unit: VectorUnit, height: int, width: int, into: int, out: int) -> None:
    shape = ConvShape(1, height, width, into, out, (3, 3), padding=ONES)
    for algorithm in candidates(shape, unit):
        if isinstance(algorithm, Winograd) and algorithm.block:
            assert algorithm.tiles(shape) % algorithm.block == 0
            assert algorithm.scratch(shape, unit) <= BLOCK_CACHES * unit.l2_bytes


def test_a_large_image_of_few_channels_goes_through_the_cache_block_by_block() -> None:
    """What the whole image's scratch would take, 64 MB here, comes from memory."""
    shape = ConvShape(1, 224, 224, 64, 64, (3, 3), padding=ONES)
    best = candidates(shape, AVX2)[0]
    assert isinstance(best, Winograd)
    assert 1 < best.block < best.tiles(shape) / 8


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogue_is_applied_to_the_sums(epilogue: str) -> None:
    shape = SHAPES["four groups, ragged"]
    found, y = run(shape, Winograd((3, 3), Tile(3, 16, 5)), epilogue)
    assert np.abs(found - y).max() <= FLOAT32 * np.abs(y).max()


def test_float64_loses_nothing() -> None:
    shape = replace(SHAPES["a stage of RepVGG"], dtype="float64")
    found, y = run(shape, Winograd((6, 6), Tile(4, 16, 4)), "bias and ReLU")
    assert np.abs(found - y).max() <= 1e-12 * np.abs(y).max()


def test_measured_error_is_that_of_the_kernel() -> None:
    shape = ConvShape(1, 16, 16, 64, 64, (3, 3), padding=ONES)
    x, weight = random_layer(shape)
    y = expected(np.maximum(x, 0), weight, shape)
    for m in (2, 6):
        target, algorithm = resolve(None), Winograd((m, m), Tile(4, 16, 4))
        kernel = winograd_conv(shape, algorithm, (), vector_unit(target))
        library = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target=target)
        out = tvm.runtime.tensor(np.zeros(y.shape, "float32"))
        library["main"](*map(tvm.runtime.tensor, (np.maximum(x, 0), packed_weights(weight, shape, algorithm))), out)
        real = np.abs(out.numpy() - y).max() / np.abs(y).max()
        assert real / 4 <= measured_error(weight, shape, algorithm) <= real * 4


def test_measured_error_grows_with_the_tile_and_is_zero_for_no_weights() -> None:
    shape = SHAPES["a stage of RepVGG"]
    _, weight = random_layer(shape)
    tile = Tile(4, 16, 4)
    errors = [measured_error(weight, shape, each) for each in (Direct(tile), Winograd((2, 2), tile), Winograd((6, 6), tile))]
    direct, few, many = errors
    assert 0 < direct < 1e-6  # which of these two is less is for numpy's order of sums to say, another one on each machine
    assert 0 < few < 1e-6  # two outputs a tile lose next to nothing
    assert max(direct, few) < many < 1e-4
    assert measured_error(0 * weight, shape, Winograd((6, 6), tile)) == 0


@pytest.mark.parametrize("unit", [AVX2, ZEN4, NEON])
def test_wide_layers_take_winograd_and_what_it_would_slow_down_stays_direct(unit: VectorUnit) -> None:
    def first(shape: ConvShape) -> str:
        return str(candidates(shape, unit)[0])

    assert first(ConvShape(1, 56, 56, 48, 48, (3, 3), padding=ONES)) == "winograd 4x4"
    assert first(ConvShape(1, 28, 28, 64, 64, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2))).startswith("winograd")
    assert first(ConvShape(1, 224, 224, 3, 48, (3, 3), stride=(2, 2), padding=ONES)) == "direct"
    assert first(ConvShape(1, 14, 14, 192, 1280, (3, 3), stride=(2, 2), padding=ONES)) == "direct"
    assert first(ConvShape(1, 28, 28, 64, 64, (1, 1))) == "direct"
    assert first(ConvShape(1, 28, 28, 64, 64, (3, 3), padding=ONES, groups=64)) == "direct"


def test_every_shape_has_the_direct_form_and_no_algorithm_twice() -> None:
    for shape in SHAPES.values():
        found = candidates(shape, AVX2)
        assert direct_form(shape, AVX2) in found
        assert len(set(map(str, found))) == len(found)
    both = ConvShape(1, 20, 20, 16, 16, (3, 3), stride=(2, 2), dilation=(2, 2))
    assert [str(each) for each in candidates(both, AVX2)] == ["direct"]


def test_long_kernels_have_short_tiles_or_none() -> None:
    found = {
        size: {str(each) for each in candidates(ConvShape(1, 40, 40, 16, 16, (size, size)), AVX2)} for size in (5, 7, 9, 31)
    }
    assert found[5] == {"direct", "winograd 2x2", "winograd 3x3", "winograd 4x4"}
    assert found[7] == {"direct", "winograd 2x2"}
    assert found[9] == found[31] == {"direct"}
    flat = candidates(ConvShape(1, 40, 40, 16, 16, (1, 9)), AVX2)
    assert [str(each) for each in flat] == ["direct"]


@given(phase=st.sampled_from([(1, 1), (2, 2), (2, 1)]), width=st.integers(1, 40))
def test_unrolled_steps_divide_the_channels_of_a_phase(phase: tuple[int, int], width: int) -> None:
    for each in candidates(ConvShape(1, 12, 12, width, 16, (3, 3), stride=phase), AVX2):
        assert width % each.tile.unroll == 0


def test_samples_are_many_enough_to_be_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["two groups"]
    _, weight = random_layer(shape)
    few = measured_error(weight, shape, Winograd((4, 4), Tile(4, 16, 4)))
    monkeypatch.setattr(accuracy, "SAMPLES", 256)
    many = measured_error(weight, shape, Winograd((4, 4), Tile(4, 16, 4)))
    assert many / 3 <= few <= many * 3


@pytest.mark.parametrize(("value", "bound"), [(float("inf"), 1e-4), (float("nan"), 1e-4), (1.0, 0.0)])
def test_weights_that_are_not_finite_and_bounds_that_nothing_keeps_take_the_direct_form(value: float, bound: float) -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Conv2d(32, 32, 3, padding=1).eval(), torch.randn(1, 32, 17, 15)
    model.weight.data[3, 2, 1, 1] = value
    compiled = compile(model, x, options=CompileOptions(max_error=bound))
    assert {kernel.algorithm for kernel in compiled.kernels} <= {"direct", "general"}
    found, expected = compiled.run(x)[0], model(x).detach().numpy()
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-4)
