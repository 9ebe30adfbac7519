"""Least squares from moments against least squares on the rows themselves."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.core import least_squares
from reparam_compiler.core.least_squares import (
    Rows,
    Spread,
    covariance,
    fold,
    inverse_of,
    moments,
    refit,
    refit_each,
    refit_rectified,
)

SEEDS = st.integers(0, 2**16)


def rows(seed: int, targets: int = 3, features: int = 4, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    seen = draw.standard_normal((count, features)) + 3
    return seen @ draw.standard_normal((features, targets)) + draw.standard_normal((count, targets)), seen


def test_moments_do_not_depend_on_how_the_rows_come() -> None:
    data = 1e4 + np.random.default_rng(0).standard_normal((50, 5))
    whole, parts = (moments((r, r[:, :3]) for r in np.split(data, edges)) for edges in ([], [7, 30]))
    for name in ("target_mean", "seen_mean", "variance", "cross", "own"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.own, np.cov(data[:, :3].T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(whole.own, covariance([data[:, :3]]), rtol=1e-9)
    known = moments([(data, data[:, :3])], whole)
    np.testing.assert_allclose(known.cross, whole.cross, rtol=1e-9)


@given(seed=SEEDS, pieces=st.integers(1, 4))
def test_the_spread_is_that_of_all_rows(seed: int, pieces: int) -> None:
    data = 1e4 + rows(seed)[0]
    spread = Spread()
    for piece in np.array_split(data, pieces):
        spread.add(piece)
    np.testing.assert_allclose(spread.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(spread.variance, data.var(0), rtol=1e-9)


@pytest.mark.parametrize("give", [moments, covariance, lambda none: refit_each(none, np.zeros((1, 1, 1)))])
def test_no_rows_have_no_moments(give: object) -> None:
    with pytest.raises(ValueError, match="no rows"):
        give([])  # type: ignore[operator]


@given(seed=SEEDS)
def test_a_refit_without_ridge_is_least_squares(seed: int) -> None:
    target, seen = rows(seed)
    found = refit(moments([(target, seen)]), np.zeros((3, 4)), ridge=0.0)
    expected = np.linalg.lstsq(np.c_[seen, np.ones(len(seen))], target, rcond=None)[0]
    np.testing.assert_allclose(np.c_[found.matrix, found.constant], expected.T, atol=1e-9)
    rest = target - seen @ found.matrix.T - found.constant
    assert found.unexplained == pytest.approx(float(rest.var(0).sum() / target.var(0).sum()), rel=1e-6)


@given(seed=SEEDS)
def test_a_large_ridge_leads_back_to_the_start(seed: int) -> None:
    target, seen = rows(seed)
    start = np.random.default_rng(seed).standard_normal((3, 4))
    found = refit(moments([(target, seen)]), start, ridge=1e9)
    np.testing.assert_allclose(found.matrix, start, atol=1e-6)
    np.testing.assert_allclose(found.constant, target.mean(0) - start @ seen.mean(0), atol=1e-6)


@given(seed=SEEDS)
def test_what_is_kept_predicts_itself(seed: int) -> None:
    channels = rows(seed, targets=5)[0]
    kept = np.array([True, False, True, True, False])
    found = fold(moments([(channels, channels[:, kept])]), kept, ridge=1e-12)
    np.testing.assert_allclose(found.matrix[kept], np.eye(3), atol=1e-6)


def test_dead_channels_are_predicted_by_their_mean() -> None:
    target = np.random.default_rng(0).standard_normal((40, 3)) + 2
    prediction = fold(moments([(target, np.zeros((40, 1)))]), np.array([True, False, False]))
    assert np.array_equal(prediction.matrix, np.eye(3)[:, :1])
    np.testing.assert_allclose(prediction.constant, target.mean(0))


@given(seed=SEEDS, pieces=st.integers(1, 4))
def test_each_channel_by_itself_is_a_refit_of_its_own(seed: int, pieces: int) -> None:
    draw = np.random.default_rng(seed)
    target, seen = draw.standard_normal((40, 3, 2)) + 1, draw.standard_normal((40, 3, 4)) - 2
    start = draw.standard_normal((3, 2, 4))
    found = refit_each(zip(np.array_split(target, pieces), np.array_split(seen, pieces), strict=True), start, 0.01)
    for channel in range(3):
        alone = refit(moments([(target[:, channel], seen[:, channel])]), start[channel], 0.01)
        np.testing.assert_allclose(found.matrix[channel], alone.matrix, atol=1e-9)
        np.testing.assert_allclose(found.constant[channel], alone.constant, atol=1e-9)


def test_a_channel_that_never_moves_keeps_its_start() -> None:
    start = np.ones((1, 1, 2))
    found = refit_each([(np.full((5, 1, 1), 4.0), np.ones((5, 1, 2)))], start)
    assert np.array_equal(found.matrix, start)
    np.testing.assert_allclose(found.constant, [[2.0]])


@given(seed=SEEDS)
def test_where_only_the_positive_part_counts_it_is_fitted_better(seed: int) -> None:
    target, seen = rows(seed, count=200)
    start = np.zeros((3, 4))

    def given_rows() -> Rows:
        return zip(np.array_split(target, 3), np.array_split(seen, 3), strict=True)

    def loss(matrix: np.ndarray, constant: np.ndarray) -> float:
        found = seen @ matrix.T + constant
        return float((np.where(target > 0, target - found, np.maximum(found, 0)) ** 2).sum())

    plain = refit(moments(given_rows()), start, 0.0)
    losses = [loss(plain.matrix, plain.constant)]
    for rounds in (1, 2, 5):
        found = refit_rectified(given_rows, start, 0.0, rounds=rounds)
        losses.append(loss(found.matrix, found.constant))
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))


def test_rows_of_float32_give_the_moments_of_float64_but_for_their_rounding() -> None:
    target, seen = (side.astype(np.float32) for side in rows(0, count=4000))
    narrow = moments(zip(np.split(target, 4), np.split(seen, 4), strict=True))
    wide = moments([(target.astype(np.float64), seen.astype(np.float64))])
    for name in ("target_mean", "seen_mean", "variance", "cross", "own"):
        assert getattr(narrow, name).dtype == np.float64
        np.testing.assert_allclose(getattr(narrow, name), getattr(wide, name), rtol=1e-5, atol=1e-5)


def test_rows_that_are_too_many_to_be_held_are_made_anew_for_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = rows(0)
    calls: list[int] = []

    def pieces() -> Rows:
        calls.append(1)
        return iter([(target[:30], seen[:30]), (target[30:], seen[30:])])

    held = refit_rectified(pieces, np.zeros((3, 4)), rounds=3)
    assert len(calls) == 1
    monkeypatch.setattr(least_squares, "HELD", target[:30].nbytes)
    anew = refit_rectified(pieces, np.zeros((3, 4)), rounds=3)
    assert len(calls) == 1 + 1 + 1 + 3
    np.testing.assert_array_equal(held.matrix, anew.matrix)


@given(seed=SEEDS, size=st.sampled_from([1, 2, 63, 64, 65, 130]))
def test_the_inverse_by_cholesky_is_the_inverse(seed: int, size: int) -> None:
    root = np.random.default_rng(seed).standard_normal((size, size))
    definite = root @ root.T + np.eye(size)
    np.testing.assert_allclose(inverse_of(definite) @ definite, np.eye(size), atol=1e-9)


def test_the_inverse_of_what_rounding_made_indefinite_is_its_inverse() -> None:
    indefinite = np.diag([1.0, -1e-9])
    np.testing.assert_allclose(inverse_of(indefinite), np.diag([1.0, -1e9]))
