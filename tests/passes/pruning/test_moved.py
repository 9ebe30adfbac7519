"""Calibration samples that are moved a little, to have more to fit to."""

import numpy as np
import pytest
import torch

from reparam_compiler.passes.pruning.repair.moved import WithMoved, can_be_moved, moved
from tests.support.pruning_nets import Net


def numbered(*shape: int) -> np.ndarray:
    """Samples in which each number says its place."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("shape", [(40, 2, 32), (40, 1, 16, 37), (40, 1, 16, 16, 16)])
def test_samples_are_moved_by_a_sixteenth_and_their_edges_go_on(shape: tuple[int, ...]) -> None:
    samples = numbered(*shape)
    seen = set()
    for before, after in zip(samples, moved(samples, np.random.default_rng(0)), strict=True):
        middle = tuple(size // 2 for size in shape[2:])
        by = (np.argwhere(before[0] == after[0][middle])[0] - middle).tolist()
        places = [np.clip(np.arange(size) + step, 0, size - 1) for size, step in zip(shape[2:], by, strict=True)]
        np.testing.assert_array_equal(after, before[(slice(None), *np.ix_(*places))])
        assert all(abs(step) <= size // 16 for size, step in zip(shape[2:], by, strict=True))
        seen.add(tuple(by))
    assert len(seen) > 3


def test_an_axis_that_is_short_stays() -> None:
    samples = numbered(20, 1, 15, 32)
    after = moved(samples, np.random.default_rng(0))
    assert not np.array_equal(after, samples)
    assert not (np.diff(after, axis=2) != samples.shape[3]).any()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_each_batch_is_followed_by_its_copy_which_is_always_the_same(kind: object) -> None:
    given = [numbered(4, 1, 16, 16), numbered(2, 1, 16, 16)]
    for batches in ([kind(batch) for batch in given], [(kind(batch),) for batch in given]):  # type: ignore[operator]
        first, second = ([np.asarray(batch).reshape(-1, 1, 16, 16) for batch in WithMoved(batches)] for _ in range(2))
        assert [len(batch) for batch in first] == [4, 4, 2, 2]
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(first[::2], given, strict=True))


def test_what_is_moved_is_the_one_input_that_convs_alone_read() -> None:
    net = Net()
    conv = net.conv(net.x, 4)
    assert can_be_moved(net.graph(conv))
    assert not can_be_moved(net.graph(conv, net.relu(net.x)))
    row = Net(size=())
    assert not can_be_moved(row.graph(row.linear(row.x, 4)))
