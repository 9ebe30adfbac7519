"""The transforms against the correlation itself, and what they lose in float32."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.core.winograd import kernels, phases, transform

SIZES = [(m, r) for m, r in itertools.product(range(1, 9), range(1, 6)) if m + r - 2 < 9]
SEEDS = st.integers(0, 2**16)


def correlation(data: np.ndarray, weight: np.ndarray, stride: tuple[int, int] = (1, 1)) -> np.ndarray:
    """y[i, j] = sum_{r, s} w[r, s] d[i s_h + r, j s_w + s], where the whole kernel lies inside."""
    windows = np.lib.stride_tricks.sliding_window_view(data, weight.shape)[:: stride[0], :: stride[1]]
    return np.einsum("ijrs,rs->ij", windows, weight)


@pytest.mark.parametrize(("outputs", "taps"), SIZES)
@given(seed=SEEDS)
def test_one_axis_is_the_correlation(outputs: int, taps: int, seed: int) -> None:
    draw, f = np.random.default_rng(seed), transform(outputs, taps)
    data, weight = draw.standard_normal(f.size), draw.standard_normal(taps)
    found = f.output @ ((f.kernel @ weight) * (f.data @ data))
    np.testing.assert_allclose(found, np.correlate(data, weight, "valid"), rtol=1e-9, atol=1e-9)
    assert (f.outputs, f.taps, f.size) == (outputs, taps, outputs + taps - 1)


@given(seed=SEEDS, height=st.sampled_from([(2, 3), (4, 3), (1, 3), (3, 1)]), width=st.sampled_from([(6, 3), (4, 2), (1, 1)]))
def test_two_axes_are_the_correlation(seed: int, height: tuple[int, int], width: tuple[int, int]) -> None:
    draw, (h, w) = np.random.default_rng(seed), (transform(*height), transform(*width))
    data, weight = draw.standard_normal((h.size, w.size)), draw.standard_normal((1, 1, h.taps, w.taps))
    found = h.output @ (kernels(weight, h, w)[:, :, 0, 0] * (h.data @ data @ w.data.T)) @ w.output.T
    np.testing.assert_allclose(found, correlation(data, weight[0, 0]), rtol=1e-9, atol=1e-9)


@given(seed=SEEDS, taps=st.tuples(*[st.integers(1, 5)] * 2), stride=st.tuples(*[st.integers(1, 3)] * 2))
def test_a_strided_kernel_is_the_sum_of_its_phases(seed: int, taps: tuple[int, int], stride: tuple[int, int]) -> None:
    draw = np.random.default_rng(seed)
    data, weight = draw.standard_normal((18, 18)), draw.standard_normal(taps)
    parts = phases(weight[None, None], stride)[0]
    expected = correlation(data, weight, stride)
    found = np.zeros((2, 2))
    for part, (row, column) in zip(parts, itertools.product(range(stride[0]), range(stride[1])), strict=True):
        found += correlation(data[row :: stride[0], column :: stride[1]], part)[:2, :2]
    np.testing.assert_allclose(found, expected[:2, :2], rtol=1e-12, atol=1e-12)


def test_more_outputs_lose_more_digits_and_four_stay_below_one_in_a_hundred_thousand() -> None:
    draw, lost = np.random.default_rng(0), {}
    weight = draw.standard_normal((64, 3, 3))
    for outputs in (2, 4, 6):
        f = transform(outputs, 3)
        data = np.maximum(draw.standard_normal((64, f.size, f.size)), 0)
        single = [part.astype(np.float32) for part in (f.output, f.data)]
        transformed = kernels(weight[None], f, f)[:, :, 0].astype(np.float32).transpose(2, 0, 1)
        products = (transformed * (single[1] @ data.astype(np.float32) @ single[1].T)).sum(0)
        found = single[0] @ products @ single[0].T
        assert found.dtype == np.float32
        exact = sum(correlation(d, w) for d, w in zip(data, weight, strict=True))
        lost[outputs] = np.abs(found - exact).max() / np.abs(exact).max()
    assert lost[2] < lost[4] < lost[6]
    assert lost[4] < 1e-5


@pytest.mark.parametrize(("outputs", "taps"), [(0, 3), (2, 0), (12, 3)])
def test_sizes_without_points_are_refused(outputs: int, taps: int) -> None:
    with pytest.raises(ValueError, match="expected sizes of 1 or more"):
        transform(outputs, taps)
