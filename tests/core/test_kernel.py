"""The algebra of convolution operators, each function against torch in float64 over random geometry."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam_compiler.core import kernel as algebra
from reparam_compiler.core.kernel import ConvKernel, NotFusable, PaddingMode, diagonal
from tests.support.operators import (
    EXACT,
    all_sizes,
    extended,
    gives_something,
    output_sizes,
    run,
    source,
)

MODES: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")


def check_same(found: ConvKernel, run_expected: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The operator gives what is expected; one whose bias varies, but for what it gives of zeros."""
    if found.bias_varies:
        linear = replace(found, bias=np.zeros_like(found.bias))
        torch.testing.assert_close(run(linear, x), run_expected(x) - run_expected(torch.zeros_like(x)), **EXACT)
    else:
        torch.testing.assert_close(run(found, x), run_expected(x), **EXACT)


@st.composite
def ranks(draw: st.DrawFn) -> int:
    return draw(st.sampled_from([2, 1, 2, 3, 0]))


@st.composite
def kernels(
    draw: st.DrawFn,
    rank: int,
    into: int | None = None,
    out: int | None = None,
    *,
    modes: Sequence[PaddingMode] = ("zeros", "zeros", "zeros", "reflect", "replicate", "circular"),
    widest: int = 3,
) -> ConvKernel:
    """Any kernel: uneven and negative padding, even sizes, groups, biases that are zero or not."""
    into = into or draw(st.integers(1, 4))
    out = out or draw(st.integers(1, 4))
    groups = draw(st.sampled_from([g for g in range(1, into + 1) if into % g == 0 and out % g == 0]))
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    size = pick(1, widest)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bias = random.standard_normal(out) * draw(st.sampled_from([0.0, 0.0, 1.0]))
    padding = tuple(zip(pick(-1, 2), pick(-1, 2), strict=True))
    if draw(st.booleans()):
        padding = tuple((abs(low), abs(low)) for low, _ in padding)
    stride = pick(1, 2) if draw(st.booleans()) else (1,) * rank
    weight = random.standard_normal((out, into // groups, *size))
    mode = draw(st.sampled_from(modes))
    upsampling = pick(1, 3) if mode == "zeros" and not draw(st.integers(0, 3)) else ()
    return ConvKernel(weight, bias, stride, pick(1, 3), padding, groups, mode, upsampling)


def conv(*size: int, into: int = 2, out: int = 2, bias: float = 0.0, **attributes: object) -> ConvKernel:
    """A kernel of random weights for the tests of refusals; padding is a number for both sides of all axes."""
    rank = len(size)
    random = np.random.default_rng(0)
    pad = attributes.pop("pad", 0)
    given = {"stride": (1,) * rank, "dilation": (1,) * rank, "padding": ((pad, pad),) * rank} | attributes
    weight = random.standard_normal((out, into // int(given.get("groups", 1)), *size))
    return ConvKernel(weight, np.full(out, bias), **given)


# what each function computes


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data(), rank=ranks())
def test_scale_multiplies_and_shifts_each_channel(data: st.DataObject, rank: int) -> None:
    kernel = data.draw(kernels(rank))
    factor, shift = np.random.default_rng(0).standard_normal((2, kernel.channels[1]))
    scaled = algebra.scale(kernel, factor, shift)
    across = (1, -1, *(1,) * rank)
    for sizes in all_sizes(rank):
        if gives_something(kernel, sizes):
            x = source(kernel.channels[0], sizes)
            expected = run(kernel, x) * torch.from_numpy(factor).view(across) + torch.from_numpy(shift).view(across)
            torch.testing.assert_close(run(scaled, x), expected, **EXACT)


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data(), rank=ranks(), merged=st.integers(1, 3), groups=st.integers(1, 3), out=st.integers(1, 2))
def test_coarser_groups_are_the_same_operator(data: st.DataObject, rank: int, merged: int, groups: int, out: int) -> None:
    finest = merged * groups
    kernel = data.draw(kernels(rank, into=1, out=out, modes=("zeros",)))
    weight = np.concatenate([kernel.weight * (block + 1) for block in range(finest)])
    kernel = ConvKernel(weight, np.arange(len(weight)) * 1.0, kernel.stride, kernel.dilation, kernel.padding, finest)
    coarser = algebra.regroup(kernel, groups)
    assert (coarser.groups, coarser.channels) == (groups, kernel.channels)
    for sizes in all_sizes(rank):
        if gives_something(kernel, sizes):
            x = source(finest, sizes)
            torch.testing.assert_close(run(coarser, x), run(kernel, x), **EXACT)


@given(rank=ranks(), channels=st.integers(1, 5))
def test_diagonal_is_a_factor_and_a_shift_for_each_channel(rank: int, channels: int) -> None:
    factor, shift = np.random.default_rng(0).standard_normal((2, channels))
    kernel = diagonal(factor, shift, rank)
    assert kernel.is_diagonal
    x = source(channels, (3, 4, 5)[:rank])
    across = (1, -1, *(1,) * rank)
    expected = x * torch.from_numpy(factor).view(across) + torch.from_numpy(shift).view(across)
    torch.testing.assert_close(run(kernel, x), expected, **EXACT)


@given(data=st.data(), rank=ranks())
def test_margin_decides_how_many_outputs_there_are(data: st.DataObject, rank: int) -> None:
    kernel = data.draw(kernels(rank))
    for sizes in all_sizes(rank):
        if gives_something(kernel, sizes):
            assert run(kernel, source(kernel.channels[0], sizes)).shape[2:] == output_sizes(kernel, sizes)


# soundness: wherever a function does not refuse, it is right for every size of source


@st.composite
def parallel_kernels(draw: st.DrawFn, rank: int, *, same_outputs: bool) -> list[ConvKernel]:
    """Kernels of one source that often, not always, give the same positions."""
    first = draw(kernels(rank, into=draw(st.sampled_from([1, 2, 4]))))
    into, out = first.channels
    found = [first]
    for _ in range(draw(st.integers(1, 2))):
        other = draw(kernels(rank, into, out if same_outputs else None))
        if draw(st.integers(0, 9)):  # most are made to fit: this stride, and padding that gives this margin
            padding = []
            for axis in range(rank):
                low = draw(st.integers(-1, 3))
                padding.append((low, first.margin[axis] + other.span[axis] - low))
            mode = draw(st.sampled_from([first.mode, "zeros"]))
            other = replace(other, stride=first.stride, padding=tuple(padding), mode=mode, upsampling=first.upsampling)
        found.append(other)
    return found


@given(data=st.data(), rank=ranks())
def test_a_sum_that_is_not_refused_is_the_sum_on_every_source(data: st.DataObject, rank: int) -> None:
    branches = data.draw(parallel_kernels(rank, same_outputs=True))
    try:
        total = algebra.add(*branches)
    except NotFusable:
        return
    for sizes in all_sizes(rank):
        if all(gives_something(kernel, sizes) for kernel in (*branches, total)):
            x = source(total.channels[0], sizes)
            torch.testing.assert_close(run(total, x), sum(run(kernel, x) for kernel in branches), **EXACT)


@given(data=st.data(), rank=ranks())
def test_operators_side_by_side_that_are_not_refused_act_each_on_its_own(data: st.DataObject, rank: int) -> None:
    kernels = data.draw(parallel_kernels(rank, same_outputs=False))
    try:
        both = algebra.side_by_side(*kernels)
    except NotFusable:
        return
    for sizes in all_sizes(rank):
        if all(gives_something(kernel, sizes) for kernel in (*kernels, both)):
            sources = [source(kernel.channels[0], sizes, seed) for seed, kernel in enumerate(kernels)]
            expected = torch.cat([run(kernel, x) for kernel, x in zip(kernels, sources, strict=True)], 1)
            torch.testing.assert_close(run(both, torch.cat(sources, 1)), expected, **EXACT)


def test_depthwise_convs_side_by_side_are_one_on_the_lattice_of_both() -> None:
    near, far = conv(3, pad=1, into=2, groups=2), conv(3, pad=2, dilation=(2,), into=4, out=4, groups=4)
    both = algebra.side_by_side(near, far)
    assert (both.groups, both.size, both.padding) == (6, (5,), ((2, 2),))


def test_a_branch_that_is_added_twice_counts_twice() -> None:
    kernel = conv(3, pad=1, bias=0.5)
    x = source(2, (4,))
    torch.testing.assert_close(run(algebra.add(kernel, kernel, kernel), x), 3 * run(kernel, x), **EXACT)


@given(data=st.data(), rank=ranks())
def test_a_concat_that_is_not_refused_is_the_concat_on_every_source(data: st.DataObject, rank: int) -> None:
    branches = data.draw(parallel_kernels(rank, same_outputs=False))
    try:
        wide = algebra.concat(*branches)
    except NotFusable:
        return
    for sizes in all_sizes(rank):
        if all(gives_something(kernel, sizes) for kernel in (*branches, wide)):
            x = source(wide.channels[0], sizes)
            torch.testing.assert_close(run(wide, x), torch.cat([run(kernel, x) for kernel in branches], 1), **EXACT)


@given(data=st.data(), rank=ranks())
def test_a_composition_that_is_not_refused_is_the_sequence_on_every_source(data: st.DataObject, rank: int) -> None:
    inner = data.draw(kernels(rank, widest=data.draw(st.sampled_from([1, 3]))))
    outer = data.draw(kernels(rank, into=inner.channels[1]))
    try:
        both = algebra.compose(outer, inner)
    except NotFusable:
        return
    for sizes in all_sizes(rank):
        if gives_something(inner, sizes) and gives_something(outer, output_sizes(inner, sizes)):
            x = source(inner.channels[0], sizes)
            assume(gives_something(both, sizes))
            check_same(both, lambda x: run(outer, run(inner, x)), x)


@given(data=st.data(), rank=ranks())
def test_a_padding_that_is_not_refused_is_the_padded_output_on_every_source(data: st.DataObject, rank: int) -> None:
    kernel = data.draw(kernels(rank, widest=data.draw(st.sampled_from([1, 1, 3]))))
    amounts = tuple((data.draw(st.integers(-2, 2)), data.draw(st.integers(-2, 2))) for _ in range(rank))
    value = data.draw(st.sampled_from([kernel.bias, np.zeros_like(kernel.bias)]))
    try:
        padded = algebra.pad(kernel, amounts, value)
    except NotFusable:
        return
    for sizes in all_sizes(rank):
        if gives_something(kernel, sizes) and gives_something(padded, sizes):
            given_sizes = output_sizes(kernel, sizes)
            if all(n + min(low, 0) + min(high, 0) >= 1 for n, (low, high) in zip(given_sizes, amounts, strict=True)):
                x = source(kernel.channels[0], sizes)
                check_same(padded, lambda x: extended(run(kernel, x), amounts, value=torch.from_numpy(value)), x)


# the cases of the families in the wild, which must not be refused


@given(data=st.data(), rank=st.integers(1, 3), groups=st.sampled_from([1, 2, 4]), dilation=st.integers(1, 3))
def test_branches_of_a_repvgg_block_add_up_on_the_coarsest_lattice(
    data: st.DataObject, rank: int, groups: int, dilation: int
) -> None:
    stride = (data.draw(st.sampled_from([1, 1, 2])),) * rank
    wide = conv(*(3,) * rank, into=4, out=4, groups=groups, pad=dilation, dilation=(dilation,) * rank, stride=stride)
    point = conv(*(1,) * rank, into=4, out=4, groups=groups, stride=stride, bias=0.5)
    branches = [wide, point] + ([diagonal(np.ones(4), np.ones(4), rank)] if stride[0] == 1 else [])
    total = algebra.add(*branches)
    assert (total.size, total.dilation, total.groups) == (wide.size, wide.dilation, groups)
    x = source(4, (5, 6, 7)[:rank])
    torch.testing.assert_close(run(total, x), sum(run(kernel, x) for kernel in branches), **EXACT)


def test_a_dilated_kernel_and_a_dense_one_share_the_finer_lattice() -> None:
    total = algebra.add(conv(3, 3, pad=2, dilation=(2, 2)), conv(3, 3, pad=1))
    assert (total.size, total.dilation) == ((5, 5), (1, 1))


def test_each_of_two_convs_that_pads_its_own_axis_composes() -> None:
    """RepNeXt: 1 x k, then k x 1; the inner one has a single tap where the outer one pads."""
    inner, outer = conv(1, 3, padding=((0, 0), (1, 1))), conv(3, 1, padding=((1, 1), (0, 0)))
    both = algebra.compose(outer, inner)
    assert (both.size, both.padding) == ((3, 3), ((1, 1), (1, 1)))
    x = source(2, (4, 5))
    torch.testing.assert_close(run(both, x), run(outer, run(inner, x)), **EXACT)


def test_padding_with_the_inner_bias_makes_dbb_exact() -> None:
    inner, outer = conv(1, 1, bias=0.5), conv(3, 3)
    padded = algebra.pad(inner, ((1, 1), (1, 1)), inner.bias)
    both = algebra.compose(outer, padded)
    x = source(2, (4, 5))
    expected = run(outer, extended(run(inner, x), ((1, 1), (1, 1)), value=torch.full((2,), 0.5, dtype=torch.float64)))
    torch.testing.assert_close(run(both, x), expected, **EXACT)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_padding_mode_is_kept_through_a_pointwise_op(mode: PaddingMode) -> None:
    inner, outer = conv(1, 1, bias=0.5), conv(3, 3, pad=1, mode=mode)
    both = algebra.compose(outer, inner)
    assert both.mode == mode
    x = source(2, (4, 5))
    torch.testing.assert_close(run(both, x), run(outer, run(inner, x)), **EXACT)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_axes_that_are_padded_one_after_the_other_are_padded_at_once(mode: PaddingMode) -> None:
    point = diagonal(np.array([2.0, -1.0]), np.ones(2), 2)
    once = algebra.pad(algebra.pad(point, ((0, 0), (2, 1)), np.zeros(2), mode), ((1, 2), (0, 0)), np.zeros(2), mode)
    both = algebra.pad(point, ((1, 2), (2, 1)), np.zeros(2), mode)
    assert (once.padding, once.mode) == (both.padding, both.mode)
    for again in (((0, 0), (1, 1)), ((1, 1), (1, 1))):
        with pytest.raises(NotFusable, match="over an op that is not pointwise"):
            algebra.pad(once, again, np.zeros(2), mode)
    with pytest.raises(NotFusable, match="over an op that is not pointwise"):
        algebra.pad(algebra.pad(point, ((0, 0), (1, 1)), np.ones(2)), ((1, 1), (0, 0)), np.zeros(2), mode)


def test_zero_padding_over_a_conv_whose_mode_never_mattered_is_zero_padding() -> None:
    inner, outer = conv(1, mode="replicate"), conv(3, pad=1)
    both = algebra.compose(outer, inner)
    x = source(2, (4,))
    torch.testing.assert_close(run(both, x), run(outer, run(inner, x)), **EXACT)


def test_lora_is_a_sum_of_linear_layers() -> None:
    down, up, dense = conv(into=6, out=2), conv(into=2, out=5), conv(into=6, out=5, bias=1.0)
    total = algebra.add(dense, algebra.compose(up, down))
    assert np.allclose(total.weight, dense.weight + up.weight @ down.weight, rtol=1e-12)  # float64


# a bias that is not the same everywhere


def test_padding_with_another_value_than_the_inner_bias_leaves_no_bias() -> None:
    inner = conv(1, into=3, out=3, bias=0.5)
    padded = algebra.pad(inner, ((1, 0),), np.array([0.5, 0.0, 0.5]))
    assert np.isnan(padded.bias).tolist() == [False, True, False]
    assert not algebra.pad(inner, ((-1, 0),), np.zeros(3)).bias_varies


def test_a_bias_that_varies_stays_so_for_what_reads_it_and_for_nothing_else() -> None:
    varies = algebra.pad(conv(1, bias=0.5), ((1, 1),), np.zeros(2))
    assert algebra.compose(conv(3), varies).bias_varies
    assert algebra.add(varies, conv(3, pad=2)).bias_varies
    assert algebra.scale(varies, np.ones(2), np.ones(2)).bias_varies
    beside = algebra.concat(varies, conv(1, pad=1))
    assert np.isnan(beside.bias).tolist() == [True, True, False, False]


def test_a_bias_computed_in_another_order_is_the_same_bias() -> None:
    inner = conv(1, bias=0.1 + 0.2)
    assert not algebra.pad(inner, ((1, 1),), np.full(2, 0.3)).bias_varies


def test_upsampling_an_inner_bias_leaves_none() -> None:
    assert algebra.compose(conv(2, upsampling=(2,)), conv(1, bias=0.5)).bias_varies
    assert not algebra.compose(conv(2, upsampling=(2,)), conv(1)).bias_varies


@given(data=st.data(), rank=st.integers(1, 3))
def test_subsampling_keeps_every_so_many_outputs(data: st.DataObject, rank: int) -> None:
    kernel = data.draw(kernels(rank))
    steps = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    for sizes in all_sizes(rank):
        if gives_something(kernel, sizes):
            x = source(kernel.channels[0], sizes)
            expected = run(kernel, x)[(..., *(slice(None, None, step) for step in steps))]
            torch.testing.assert_close(run(algebra.subsample(kernel, steps), x), expected, **EXACT)


# what must be refused, with its reason


@pytest.mark.parametrize(
    ("outer", "inner", "reason"),
    [
        (conv(3, 3, pad=1), conv(3, 3, pad=1), "pads axis 0 of what an op 3x3 wide gave"),
        (conv(1, 3, padding=((0, 0), (1, 1))), conv(1, 3), "pads axis 1 of what an op 1x3 wide gave"),
        (conv(3, upsampling=(2,)), conv(3, pad=1), "upsamples what an op that is not pointwise gave"),
        (conv(3, pad=1), conv(1, padding=((-1, 0),)), "pads axis 0 of what a cropped op gave"),
        (conv(3, pad=1), conv(1, pad=1, mode="reflect"), "pads axis 0 of what an op with reflect padding gave"),
        (
            conv(3, 1, padding=((1, 1), (0, 0))),
            conv(1, 3, padding=((0, 0), (1, 1)), mode="replicate"),
            "pads axis 0 of what an op with replicate padding gave",
        ),
        (conv(3, pad=1, mode="reflect"), conv(3, pad=1), r"pads \(reflect\) over an op that is not pointwise"),
        (conv(3, pad=1, mode="circular"), conv(1, stride=(2,)), r"pads \(circular\) over an op that is not pointwise"),
        (conv(3, into=3), conv(3, out=2), "an op of 3 channels reads 2"),
    ],
)
def test_a_composition_that_reads_what_was_never_given_is_refused(outer: ConvKernel, inner: ConvKernel, reason: str) -> None:
    with pytest.raises(NotFusable, match=reason):
        algebra.compose(outer, inner)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (conv(3, pad=1), conv(1, stride=(2,)), "stride 1 meets stride 2"),
        (conv(3, 3, pad=1, stride=(2, 1)), conv(1, 1), "stride 2x1 meets stride 1"),
        (conv(3, pad=1), conv(3), r"different positions: padding less extent is \(0,\) and \(-2,\)"),
        (conv(3, pad=1, mode="reflect"), conv(3, pad=1), "branches read differently padded borders: reflect, zeros"),
        (conv(1, out=3), conv(1, out=2), "branches map 2 to 3 and 2 to 2 channels"),
        (conv(1, into=3), conv(1, into=2), "branches map 3 to 2 and 2 to 2 channels"),
        (conv(1), conv(1, 1), "branches have 1 and 2 spatial axes"),
        (conv(2, upsampling=(2,)), conv(2), "upsampling by 2 meets upsampling by 1"),
    ],
)
def test_branches_that_do_not_match_are_refused(a: ConvKernel, b: ConvKernel, reason: str) -> None:
    with pytest.raises(NotFusable, match=reason):
        algebra.add(a, b)
    if "map 2 to 3" not in reason:
        with pytest.raises(NotFusable, match=reason):
            algebra.concat(a, b)


def test_the_second_of_many_branches_is_checked_too() -> None:
    with pytest.raises(NotFusable, match="stride 1 meets stride 2"):
        algebra.add(conv(1), conv(1), conv(1, stride=(2,)))


def test_a_crop_of_a_circular_source_is_refused() -> None:
    with pytest.raises(NotFusable, match="crops a source that the other border is padded with"):
        algebra.pad(conv(2, padding=((0, 1),), mode="circular"), ((-1, 0),), np.zeros(2))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(NotFusable, match="3 groups cannot be written as 2"):
        algebra.regroup(conv(1, into=3, out=3, groups=3), 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stride": (1,)},
        {"padding": ((0, 0),)},
        {"dilation": ()},
        {"bias": np.zeros(3)},
        {"groups": 3},
    ],
)
def test_a_kernel_that_contradicts_itself_is_a_value_error(wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for callers: no hook sees the shapes before
    right = {"bias": np.zeros(2), "stride": (1, 1), "dilation": (1, 1), "padding": ((0, 0), (0, 0))}
    with pytest.raises(ValueError, match=r"spatial axes|do not agree"):
        ConvKernel(np.zeros((2, 2, 3, 3)), **(right | wrong))


def test_multiply_adds_count_the_taps() -> None:
    kernel = conv(3, 3, into=4, out=6, groups=2)
    assert kernel.multiply_adds == 6 * 2 * 9 == prod(kernel.weight.shape)
    assert kernel.span == (2, 2)
