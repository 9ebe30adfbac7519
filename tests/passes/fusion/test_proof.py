"""Which sources a region is tried on, and what of its answers is refused. Held here and nowhere else: the choice of shapes
(beside borders, odd and even, the model's own sizes), a region that runs on none, a bias that differs by place."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reparam_compiler.core.kernel import ConvKernel, Ints, NotFusable, PaddingMode
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param, TensorType
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.proof import Trial, acts_on_positions, measured_bias, prove

RANDOM = np.random.default_rng(0)
WEIGHT, BIAS = RANDOM.standard_normal((4, 3, 3, 2)), RANDOM.standard_normal(4)
IMAGE = TensorType("f32", (1, 3, 10, 12))


def kernel(stride: Ints = (1, 1), mode: PaddingMode = "zeros") -> ConvKernel:
    return ConvKernel(WEIGHT, BIAS, stride, (1, 1), ((1, 1), (0, 1)), mode=mode)


def conv(of: ConvKernel, source: str = "x", name: str = "conv") -> Node:
    op = ops.Conv(of.stride, of.padding, of.dilation, of.groups, of.mode)
    params = (Param.of(array, role=role, dtype="f64") for array, role in ((of.weight, "weight"), (of.bias, "bias")))
    return Node(name, op, (source, *params))


def trial(*nodes: Node, of: ConvKernel | None = None, known: TensorType | None = None, fixed: bool = False) -> Trial:
    return Trial(nodes, "x", of or kernel(), SourceLayout(3, 2), known, fixed=fixed)


def shapes(of: Trial) -> list[Ints]:
    return [tuple(x.shape) for x, _ in of.run(lambda shape, _: torch.zeros(shape, dtype=torch.float64))]


def custom(run: Callable[[Tensor], Tensor], source: str = "conv") -> Node:
    return Node("custom", ops.Opaque("custom", run), (source,))


def test_a_source_is_just_wider_than_the_kernel_and_no_two_axes_are_alike() -> None:
    assert shapes(trial(conv(kernel()))) == [(1, 3, 4, 3)]
    square = replace(kernel(), weight=RANDOM.standard_normal((4, 3, 3, 3)))
    assert shapes(trial(conv(square), of=square)) == [(1, 3, 4, 5)]


@pytest.mark.parametrize("stride", [(2, 2), (3, 1)])
def test_a_strided_kernel_is_tried_on_sizes_that_leave_unlike_rests(stride: Ints) -> None:
    found = shapes(trial(conv(kernel(stride)), of=kernel(stride)))
    assert len(found) == 2
    for axis, step in enumerate(stride, start=2):
        assert step == 1 or len({shape[axis] % step for shape in found}) == 2
        assert len({shape[axis] % 2 for shape in found}) == 2
    assert all(len({*shape[2:]}) == 2 for shape in found)


def test_what_may_act_on_positions_is_tried_on_two_samples_and_on_longer_sources() -> None:
    small = shapes(trial(conv(kernel())))[0]
    found = shapes(trial(conv(kernel()), custom(torch.Tensor.clone)))
    assert {shape[0] for shape in found} == {2}
    assert max(shape[2] for shape in found) >= 4 * small[2]
    assert max(shape[3] for shape in found) >= 4 * small[3]


def test_where_every_run_has_one_size_that_alone_is_tried() -> None:
    nodes = conv(kernel()), custom(torch.Tensor.clone)
    assert shapes(trial(*nodes, known=IMAGE, fixed=True)) == [IMAGE.shape]
    assert IMAGE.shape not in shapes(trial(*nodes, known=IMAGE, fixed=False))
    assert len(shapes(trial(*nodes, known=TensorType("f32", ("n", 3, 10, 12)), fixed=True))) > 1


def test_the_model_s_own_size_is_tried_where_the_region_runs_on_no_smaller_one() -> None:
    reshape = Node("flat", ops.Reshape((1, 4, 10 * 12)), ("conv",))
    assert shapes(trial(conv(kernel()), reshape, known=IMAGE)) == [IMAGE.shape]


def test_a_region_that_runs_on_no_size_is_refused() -> None:
    reshape = Node("flat", ops.Reshape((1, 4, 999)), ("conv",))
    with pytest.raises(NotFusable, match="the region does not run on its own"):
        trial(conv(kernel()), reshape, known=IMAGE).run(lambda shape, _: torch.zeros(shape, dtype=torch.float64))


def test_sources_that_are_too_large_to_be_drawn_are_none_that_the_region_does_not_run_on() -> None:
    vast = TensorType("f32", (2, 3, 2**14, 2**14))
    with pytest.raises(NotFusable, match="is too large to be drawn"):
        trial(conv(kernel()), custom(torch.Tensor.clone), known=vast, fixed=True).run(lambda shape, _: torch.zeros(shape))


def test_channels_that_are_last_have_as_many_axes_before_them_as_the_source() -> None:
    linear = Node("linear", ops.Linear(), ("x", Param.of(WEIGHT[:, :, 0, 0], role="weight", dtype="f64"), None))
    of = ConvKernel(WEIGHT[:, :, 0, 0], BIAS, (), (), ())
    for axes in (2, 3, 4):
        (shape,) = shapes(Trial((linear,), "x", of, SourceLayout(3, 0, True, axes), None, fixed=False))
        assert len(shape) == axes
        assert shape[-1] == 3


@pytest.mark.parametrize(
    ("op", "acts"),
    [
        (ops.Add((1.0, 1.0)), False),
        (ops.BatchNorm(), False),
        (ops.Slice(1, 0, 2), False),
        (ops.Slice(2, 0, 2), True),
        (ops.AvgPool((2, 2), (2, 2), ((0, 0), (0, 0))), False),
        (ops.AvgPool((2, 2), (2, 2), ((0, 0), (0, 0)), ceil_mode=True), True),
        (ops.Reshape((0, -1)), True),
        (ops.Opaque("custom"), True),
    ],
)
def test_what_may_act_on_certain_positions(op: ops.Op, acts: bool) -> None:
    assert acts_on_positions([Node("node", op, ("x",))]) is acts


def test_the_bias_that_is_measured_is_the_response_to_zero() -> None:
    found = measured_bias(trial(conv(kernel())), 1e-9)
    assert found is not None
    np.testing.assert_allclose(found, BIAS, rtol=1e-12)


def test_a_response_to_zero_that_differs_by_place_is_no_bias() -> None:
    """A conv that pads with zeros over a bias: at the border fewer of its taps meet the bias."""
    inner = Node("inner", ops.Add((1.0, 1.0)), ("x", Param.of(np.ones((3, 1, 1)), role="const", dtype="f64")))
    assert measured_bias(trial(inner, conv(kernel(), "inner")), 1e-9) is None
    assert measured_bias(trial(inner, conv(kernel(mode="replicate"), "inner"), of=kernel(mode="replicate")), 1e-9) is not None


def test_a_proof_gives_the_difference_or_names_it() -> None:
    region, other = trial(conv(kernel())), kernel()
    assert prove(region, conv(kernel())).max_abs == 0
    off = replace(other, bias=BIAS + np.array([0, 0, 1e-3, 0]))
    with pytest.raises(NotFusable, match=r"both forms differ by 0\.001"):
        prove(region, conv(off))
    assert prove(region, conv(off), 1e-2).max_abs == pytest.approx(1e-3)


def test_a_proof_of_what_is_not_a_number_fails() -> None:
    nan = replace(kernel(), bias=np.full(4, np.nan))
    with pytest.raises(NotFusable, match="the proof failed"):
        prove(trial(conv(kernel())), conv(nan))


@pytest.mark.parametrize("change", [lambda y: y + (y.shape[0] > 1), lambda y: y * (1 + (y.shape[2] > 16))])
def test_what_acts_on_the_batch_or_on_long_sources_alone_is_found_out(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotFusable, match="the proof failed"):
        prove(trial(conv(kernel()), custom(change)), conv(kernel()))
