"""The tile of a GPU's GEMM is chosen by counting: large where the chip is filled, cut into pieces where it would idle."""

import pytest

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.gpu.cuda.chips import chip_of
from reparam_compiler.lowering.gpu.grouped import is_narrow
from reparam_compiler.lowering.gpu.tiles import FLOAT32_TILES, TENSOR_TILES, GpuTile, choose_gpu_tile, gpu_cycles
from reparam_compiler.lowering.gpu.winograd import choose_gpu_winograd, winograd_gemm

pytestmark = pytest.mark.tvm
ONES = (1, 1, 1, 1)
A100 = chip_of("sm_80")


def test_sums_are_cut_into_pieces_only_where_the_chip_would_idle() -> None:
    small = ConvShape(1, 14, 14, 192, 192, (3, 3), padding=(1, 1, 1, 1))
    large = ConvShape(128, 14, 14, 192, 192, (3, 3), padding=(1, 1, 1, 1))
    assert choose_gpu_tile(small, A100, tensor_cores=False).pieces > 1
    assert choose_gpu_tile(large, A100, tensor_cores=False).pieces == 1
    assert choose_gpu_tile(large, A100, tensor_cores=False).rows == 128


def test_unknown_architecture_is_taken_for_an_a100() -> None:
    assert chip_of("sm_61") == chip_of("sm_80")
    assert chip_of("sm_90a") == chip_of("sm_90") != chip_of("sm_80")


@pytest.mark.parametrize("tile", [*FLOAT32_TILES, *TENSOR_TILES], ids=str)
def test_padded_sizes_are_whole_tiles_and_hold_the_conv(tile: GpuTile) -> None:
    shape = ConvShape(1, 13, 11, 20, 29, (3, 3), padding=ONES)
    rows, columns, depth = tile.padded(shape)
    assert (rows % tile.rows, columns % tile.columns, depth % tile.depth) == (0, 0, 0)
    assert 0 <= rows - shape.pixels < tile.rows
    assert 0 <= columns - shape.group_out < tile.columns
    assert 0 <= depth - 9 * 20 < tile.depth


def test_tensor_cores_cost_fewer_cycles_where_there_is_enough_to_multiply() -> None:
    shape = ConvShape(64, 28, 28, 256, 256, (3, 3), padding=ONES)
    plain, fast = (
        gpu_cycles(shape, choose_gpu_tile(shape, A100, tensor_cores=cores), A100, tensor_cores=cores) for cores in (False, True)
    )
    assert fast < plain / 4


def test_winograd_is_for_wide_float32_convs_of_stride_one() -> None:
    wide = ConvShape(64, 28, 28, 256, 256, (3, 3), padding=ONES)
    assert choose_gpu_winograd(wide, A100)
    assert winograd_gemm(wide, choose_gpu_winograd(wide, A100)[0]).pointwise
    for other in (
        ConvShape(64, 28, 28, 256, 256, (3, 3), stride=(2, 2), padding=ONES),
        ConvShape(64, 28, 28, 256, 256, (1, 1)),
        ConvShape(64, 28, 28, 256, 256, (3, 3), padding=ONES, dtype="float16"),
    ):
        assert choose_gpu_winograd(other, A100) == []


def test_finely_grouped_convs_fill_no_tile() -> None:
    assert is_narrow(ConvShape(1, 9, 9, 32, 32, (3, 3), groups=32))
    assert not is_narrow(ConvShape(1, 9, 9, 32, 32, (3, 3), groups=2))
    assert not is_narrow(ConvShape(1, 9, 9, 3, 8, (3, 3)))
