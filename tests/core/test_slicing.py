"""Keep masks commute with splitting and slicing, and widths go to the nearest multiple."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.core.slicing import blank, block_heads, bounds, nearest_width, piece_sizes, take

masks = st.lists(st.booleans(), min_size=1, max_size=24).map(np.array)


@settings(deadline=None)
@given(keep=masks, other=masks)
def test_take_cuts_every_axis_given_and_leaves_the_dtype(keep: np.ndarray, other: np.ndarray) -> None:
    array = np.arange(len(keep) * 3 * len(other)).reshape(len(keep), 3, len(other)).astype(ml_dtypes.bfloat16)
    cut = take(array, {0: keep, 2: other})
    assert cut.dtype == array.dtype
    assert np.array_equal(cut, array[keep][:, :, other])


@settings(deadline=None)
@given(keep=masks)
def test_blank_zeroes_what_take_drops_and_nothing_else(keep: np.ndarray) -> None:
    array = np.ones((2, len(keep), 3), np.float16)
    blanked = blank(array, {1: keep})
    assert np.array_equal(take(blanked, {1: keep}), array[:, keep])
    assert not blanked[:, ~keep].any()
    assert array.all()
    assert blanked.dtype == np.float16


@settings(deadline=None)
@given(keep=masks, data=st.data())
def test_pieces_of_what_is_kept_are_what_is_kept_of_the_pieces(keep: np.ndarray, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.lists(st.integers(0, len(keep)), max_size=4)))
    sizes = np.diff([0, *edges, len(keep)]).tolist()
    x = np.arange(len(keep))
    expected = [piece[k] for piece, k in zip(np.split(x, edges), np.split(keep, edges), strict=True)]
    found = np.split(x[keep], np.cumsum(piece_sizes(keep, sizes))[:-1])
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


@settings(deadline=None)
@given(data=st.data(), length=st.integers(1, 24), start=st.integers(0, 26), step=st.integers(1, 5))
def test_strided_slice_of_kept_blocks_reads_what_is_kept_of_the_slice(
    data: st.DataObject, length: int, start: int, step: int
) -> None:
    stop = data.draw(st.none() | st.integers(0, length + 2))
    drawn = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    keep = drawn[block_heads(length, start, step)]
    x = np.arange(length)
    first, last = bounds(keep, start, stop, step)
    assert np.array_equal(x[keep][first:last:step], x[start:stop:step][keep[start:stop:step]])


@pytest.mark.parametrize(
    ("target", "width", "unit", "expected"),
    [
        (33.6, 48, 8, 32),
        (67.2, 96, 8, 64),
        (134.4, 192, 8, 136),
        (7.0, 10, 8, 8),
        (10.8, 12, 8, 12),
        (2.8, 4, 8, 4),
        (0.2, 32, 8, 8),
        (0.2, 3, 1, 1),
        (20.0, 32, 8, 24),
        (22.4, 32, 1, 22),
    ],
)
def test_width_is_the_nearest_multiple_or_what_it_was(target: float, width: int, unit: int, expected: int) -> None:
    assert nearest_width(target, width, unit) == expected
