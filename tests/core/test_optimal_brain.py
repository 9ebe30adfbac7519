"""The order of removal against the errors counted by least squares on the data itself."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.core.optimal_brain import Consumer, removal_errors

SEEDS = st.integers(0, 2**16)


def data(seed: int, features: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((count, features)) @ draw.standard_normal((features, features))
    return z - z.mean(0), draw.standard_normal((5, features))


def consumer(z: np.ndarray, weight: np.ndarray, group: np.ndarray) -> Consumer:
    return Consumer(z.T @ z / len(z), weight, group)


def error_without(z: np.ndarray, weight: np.ndarray, lost: np.ndarray) -> float:
    """The mean square, relative to that of the output, that least squares on the rest cannot make good."""
    y = z @ weight.T
    rest = z[:, ~lost]
    return float(((y - rest @ np.linalg.lstsq(rest, y, rcond=None)[0]) ** 2).sum() / (y**2).sum())


@given(seed=SEEDS)
def test_the_error_of_the_first_one_is_that_of_least_squares_without_it(seed: int) -> None:
    z, weight = data(seed, 6)
    group = np.arange(1, 7)
    errors = removal_errors([consumer(z, weight, group)], [group], ridge=1e-12)
    alone = {int(g): error_without(z, weight, group == g) for g in group}
    first = min(errors, key=errors.__getitem__)
    assert np.isclose(errors[first], min(alone.values()), rtol=1e-5, atol=1e-9)
    assert np.isclose(alone[first], min(alone.values()), rtol=1e-5, atol=1e-9)


@given(seed=SEEDS, wide=st.integers(1, 3))
def test_errors_add_up_to_those_of_all_that_left(seed: int, wide: int) -> None:
    """Groups of several features; each step's error is what the rest can make good no more."""
    z, weight = data(seed, 4 * wide)
    group = np.repeat(np.arange(1, 5), wide)
    errors = removal_errors([consumer(z, weight, group)], [np.arange(1, 5)], ridge=1e-12)
    order = sorted(errors, key=errors.__getitem__)
    for count in (1, 2, 3):
        lost = np.isin(group, order[:count])
        assert np.isclose(errors[order[count - 1]], error_without(z, weight, lost), rtol=1e-4, atol=1e-8)


@given(seed=SEEDS)
def test_what_the_others_predict_leaves_first(seed: int) -> None:
    z, weight = data(seed, 5)
    z = np.c_[z, z @ np.random.default_rng(seed + 1).standard_normal(5)]  # the sixth is a mixture of them
    weight = np.c_[weight, np.full(5, 3.0)]
    group = np.arange(1, 7)
    errors = removal_errors([consumer(z, weight, group)], [group], ridge=1e-10)
    assert min(errors.values()) < 1e-6


@given(seed=SEEDS)
def test_consumers_of_one_group_are_asked_together(seed: int) -> None:
    """A group that one consumer does not need and the other does is dearer than one that neither needs."""
    z, weight = data(seed, 4)
    group = np.arange(1, 5)
    one, two = weight.copy(), np.random.default_rng(seed + 1).standard_normal((5, 4))
    one[:, 0] = two[:, 1] = one[:, 1] = 0.0  # neither reads the second; the first is read by `two` alone
    errors = removal_errors([consumer(z, one, group), consumer(z, two, group)], [group])
    assert min(errors, key=errors.__getitem__) == 2
    assert errors[2] < 1e-9


def test_families_lose_the_same_share_in_turn() -> None:
    z, weight = data(0, 12)
    families = [np.arange(1, 5), np.arange(5, 13)]
    errors = removal_errors([consumer(z, weight, np.arange(1, 13))], families)
    assert set(errors) == set(range(1, 13))
    for family in families:
        found = sorted(errors[int(g)] for g in family)
        assert all(a < b for a, b in pairwise(found))


def test_a_consumer_that_gives_nothing_says_nothing() -> None:
    group = np.arange(1, 4)
    errors = removal_errors([Consumer(np.zeros((3, 3)), np.eye(3), group)], [group])
    assert all(error < 1e-300 for error in errors.values())


def test_what_stays_is_never_removed_and_helps_to_predict() -> None:
    z, weight = data(3, 4)
    z[:, 1] = z[:, 0] * 2
    errors = removal_errors([consumer(z, weight, np.array([0, 1, 2, 3]))], [np.array([1, 2, 3])], ridge=1e-10)
    assert set(errors) == {1, 2, 3}
    assert min(errors, key=errors.__getitem__) == 1


@given(seed=SEEDS)
def test_groups_of_unequal_sizes_and_a_weight_of_many_rows_are_no_exception(seed: int) -> None:
    """Beside features that stay; the errors are those of least squares, and past the half what is left was packed."""
    z, weight = data(seed, 9)
    weight = np.r_[weight, np.random.default_rng(seed).standard_normal((20, 9))]
    group = np.array([3, 1, 0, 2, 2, 3, 4, 3, 0])
    errors = removal_errors([consumer(z, weight, group)], [np.array([1, 2, 3, 4])], ridge=1e-12)
    order = sorted(errors, key=errors.__getitem__)
    for count in (1, 2, 3, 4):
        lost = np.isin(group, order[:count])
        assert np.isclose(errors[order[count - 1]], error_without(z, weight, lost), rtol=1e-4, atol=1e-8)


@given(seed=SEEDS, leave=st.integers(0, 8))
def test_only_those_that_leave_are_put_in_order(seed: int, leave: int) -> None:
    z, weight = data(seed, 12)
    families = [np.arange(1, 9), np.arange(9, 13)]
    consumers = [consumer(z, weight, np.arange(1, 13))]
    every, told = removal_errors(consumers, families), removal_errors(consumers, families, leave=[leave, 4])
    leaving = sorted(families[0].tolist(), key=every.__getitem__)[:leave]
    np.testing.assert_allclose([told[group] for group in leaving], [every[group] for group in leaving])
    stay = {*families[0].tolist()} - {*leaving}
    assert {*told} == {*every} - (set() if leave else stay)
    assert all(told[group] > told[leaving[-1]] for group in stay if leave)
