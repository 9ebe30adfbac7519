"""Rows of an operator and its finest groups, against the operator itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.core import channels
from reparam_compiler.core.kernel import ConvKernel, NotFusable, diagonal, regroup

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


def kernel_of(groups: int, out: int, into: int) -> ConvKernel:
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((groups * out, into, 3)), random.standard_normal(groups * out)
    return ConvKernel(weight, bias, (1,), (1,), ((1, 1),), groups)


def run(kernel: ConvKernel, x: torch.Tensor) -> torch.Tensor:
    weight, bias = torch.from_numpy(kernel.weight), torch.from_numpy(kernel.bias)
    return torch.nn.functional.conv1d(x, weight, bias, padding=1, groups=kernel.groups)


@given(
    groups=st.integers(1, 4),
    out=st.integers(1, 3),
    into=st.integers(1, 3),
    start=st.integers(0, 5),
    length=st.integers(1, 12),
    step=st.integers(1, 3),
)
def test_rows_are_the_channels_of_the_output(groups: int, out: int, into: int, start: int, length: int, step: int) -> None:
    kernel = kernel_of(groups, out, into)
    start = min(start, kernel.channels[1] - 1)
    x = torch.randn(2, groups * into, 6, dtype=torch.float64)
    found = run(channels.rows(kernel, start, start + length, step), x)
    torch.testing.assert_close(found, run(kernel, x)[:, start : start + length : step], **EXACT)


def test_all_rows_are_the_kernel_itself() -> None:
    kernel = kernel_of(2, 2, 1)
    assert channels.rows(kernel, 0, 4) is kernel


def test_rows_of_a_matrix_that_is_too_large_to_write_out_are_refused() -> None:
    wide = diagonal(np.ones(2**15), np.zeros(2**15), 1)
    with pytest.raises(NotFusable, match="a matrix from 32768 to 16384 channels, written as one group, is too large"):
        channels.rows(wide, 0, 2**15, 2)


@given(groups=st.integers(1, 4), first=st.integers(0, 3), count=st.integers(1, 4), more=st.integers(0, 3))
def test_groups_by_themselves_and_embedded_again(groups: int, first: int, count: int, more: int) -> None:
    kernel = kernel_of(groups, 2, 3)
    first = min(first, groups - 1)
    last = min(first + count, groups)
    few = channels.groups(kernel, first, last)
    x = torch.randn(2, groups * 3 + more, 6, dtype=torch.float64)
    expected = run(kernel, x[:, : groups * 3])[:, first * 2 : last * 2]
    torch.testing.assert_close(run(few, x[:, first * 3 : last * 3]), expected, **EXACT)
    torch.testing.assert_close(run(channels.embedded(few, first * 3, groups * 3 + more), x), expected, **EXACT)


@given(groups=st.integers(1, 3), parts=st.integers(1, 4), out=st.integers(1, 2), into=st.integers(1, 2))
def test_the_finest_groups_hold_every_tap(groups: int, parts: int, out: int, into: int) -> None:
    kernel = kernel_of(groups * parts, out, into)
    found = channels.finest(regroup(kernel, groups))
    assert found.groups >= kernel.groups
    assert found.groups % kernel.groups == 0
    x = torch.randn(2, kernel.channels[0], 6, dtype=torch.float64)
    torch.testing.assert_close(run(found, x), run(kernel, x), **EXACT)


def test_one_tap_between_two_blocks_keeps_them_together() -> None:
    weight = np.zeros((4, 4, 1))
    weight[[0, 1, 2, 3], [0, 1, 2, 3]] = 1.0
    weight[0, 3] = 1e-300
    kernel = ConvKernel(weight, np.zeros(4), (1,), (1,), ((0, 0),))
    assert channels.finest(kernel).groups == 1
