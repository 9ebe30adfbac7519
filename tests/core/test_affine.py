"""Convolutions in disguise, against torch in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.core import affine
from reparam_compiler.core.kernel import NotFusable
from tests.support.operators import EXACT, all_sizes, gives_something, run, source

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@given(rank=st.integers(0, 3), channels=st.integers(1, 5), affine_norm=st.booleans(), eps=st.sampled_from([1e-5, 1e-3, 0.3]))
def test_batch_norm_is_eq_2(rank: int, channels: int, affine_norm: bool, eps: float) -> None:
    random = np.random.default_rng(channels)
    gamma, beta, mean = random.standard_normal((3, channels))
    var = random.random(channels)
    kernel = affine.batch_norm(gamma if affine_norm else None, beta if affine_norm else None, mean, var, eps=eps, rank=rank)
    x = source(channels, (3, 4, 5)[:rank])
    scale, shift = (torch.from_numpy(v) if affine_norm else None for v in (gamma, beta))
    expected = F.batch_norm(x, torch.from_numpy(mean), torch.from_numpy(var), scale, shift, False, 0.0, eps)
    torch.testing.assert_close(run(kernel, x), expected, **EXACT)


@given(rank=st.integers(0, 3), channels=st.integers(1, 5))
def test_identity_gives_its_source(rank: int, channels: int) -> None:
    x = source(channels, (3, 4, 5)[:rank])
    assert torch.equal(run(affine.identity(channels, rank), x), x)


@given(data=st.data(), rank=st.integers(1, 3), channels=st.integers(1, 3), ceil_mode=st.booleans(), counted=st.booleans())
def test_an_average_pool_that_is_not_refused_is_torchs(
    data: st.DataObject, rank: int, channels: int, ceil_mode: bool, counted: bool
) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    size = tuple(draw(1, 4) for _ in range(rank))
    stride = tuple(draw(1, 3) for _ in range(rank))
    padding = tuple(draw(0, n // 2) for n in size)
    divisor = data.draw(st.sampled_from([None, 3])) if rank > 1 else None
    pairs = tuple((amount, amount) for amount in padding)
    try:
        kernel = affine.average_pool(
            channels, size, stride, pairs, count_include_pad=counted, ceil_mode=ceil_mode, divisor=divisor
        )
    except NotFusable:
        return
    for sizes in all_sizes(rank):
        if gives_something(kernel, sizes) and all(
            n >= k for n, k in zip(sizes, size, strict=True)
        ):  # torch asks for that in 3-d
            x = source(channels, sizes)
            extra = (divisor,) if rank > 1 else ()
            expected = POOLS[rank](x, size, stride, padding, ceil_mode, counted, *extra)
            torch.testing.assert_close(run(kernel, x), expected, **EXACT)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"count_include_pad": False}, "count_include_pad=False divides by less at the border"),
        ({"ceil_mode": True}, "ceil_mode reads beyond its padding"),
    ],
)
def test_an_average_pool_that_no_conv_equals_is_refused(attributes: dict[str, bool], reason: str) -> None:
    with pytest.raises(NotFusable, match=reason):
        affine.average_pool(2, (3, 3), (2, 2), ((1, 1), (1, 1)), **attributes)


def test_an_average_pool_that_pads_nothing_may_leave_the_padding_uncounted() -> None:
    assert affine.average_pool(2, (3,), (1,), ((0, 0),), count_include_pad=False, ceil_mode=True).size == (3,)
