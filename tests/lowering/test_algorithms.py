"""The tile rule: what the design measured as best is chosen, and nothing spills."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from reparam_compiler.lowering.conv.algorithms import ConvShape, unroll_of
from reparam_compiler.lowering.conv.choice import candidate_tiles, choose_tile
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.packing import pack_columns

pytestmark = pytest.mark.tvm
AVX2, AVX512, NEON = VectorUnit(32, 16, 2), VectorUnit(64, 32, 2), VectorUnit(16, 32, 2)


@pytest.mark.parametrize("width", [48, 96, 192])
def test_avx2_takes_four_by_twenty_four_where_it_divides(width: int) -> None:
    tile = choose_tile(ConvShape(1, 28, 28, width, width, (3, 3), padding=(1, 1, 1, 1)), AVX2)
    assert (tile.rows, tile.columns) == (4, 24)


@pytest.mark.parametrize("unit", [AVX2, AVX512, NEON])
@given(
    height=st.integers(1, 30), width=st.integers(1, 30), into=st.integers(1, 70), out=st.integers(1, 70), taps=st.integers(1, 3)
)
def test_no_candidate_spills(unit: VectorUnit, height: int, width: int, into: int, out: int, taps: int) -> None:
    shape = ConvShape(1, height + taps, width + taps, into, out, (taps, taps))
    for tile in candidate_tiles(shape, unit):
        vectors, ragged = divmod(tile.columns, unit.lanes("float32"))
        assert not ragged
        assert tile.rows * vectors + vectors + 1 <= unit.registers
        assert shape.group_in % tile.unroll == 0


def test_unroll_divides_the_extent() -> None:
    assert [unroll_of(extent, 4) for extent in (1, 2, 3, 4, 5, 6, 7, 8, 13, 48)] == [1, 2, 3, 4, 5, 3, 7, 4, 1, 4]


def test_packed_weights_are_the_weights_and_zeros() -> None:
    weight = np.random.default_rng(0).standard_normal((10, 3, 3, 3)).astype("float32")
    packed = pack_columns(weight, groups=2, columns=8)
    assert packed.shape == (2, 3, 3, 3, 8)
    for group in range(2):
        np.testing.assert_array_equal(packed[group, ..., :5], weight[5 * group : 5 * group + 5].transpose(1, 2, 3, 0))
    assert not packed[..., 5:].any()
