"""Each rule gives the operator that its op is: `f(x) == kernel(x)`, over random attributes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.core.kernel import ConvKernel, NotFusable
from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param, TensorType
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.merge_rules import per_channel
from reparam_compiler.passes.fusion.registry import is_linear, linear_rule, merge_rule
from tests.support.small_models import EXACT, normal, relative_error


def param(*shape: int, seed: int = 0, positive: bool = False) -> Param:
    array = np.random.default_rng(seed).standard_normal(shape)
    return Param.of(np.abs(array) + 0.5 if positive else array, role="weight", dtype="f64")


def node(op: ops.Op, *inputs: object) -> Node:
    return Node("y", op, inputs)  # type: ignore[arg-type]


def as_node(kernel: ConvKernel) -> Node:
    op = ops.Conv(kernel.stride, kernel.padding, kernel.dilation, kernel.groups, kernel.mode)
    if not kernel.rank:
        op = ops.Linear()  # type: ignore[assignment]
    tensors = (Param.of(array, role="weight", dtype="f64") for array in (kernel.weight, kernel.bias))
    return node(op, "x", *tensors)


def check(one: Node, x: torch.Tensor) -> None:
    """The rule's kernel gives what the op gives."""
    rule = linear_rule(one)
    assert rule is not None
    last = isinstance(one.op, ops.Linear)
    kernel = rule(one, SourceLayout(x.shape[-1 if last else 1], 0 if last else x.ndim - 2, last))
    assert relative_error(evaluate_node(one, {"x": x}), evaluate_node(as_node(kernel), {"x": x})) < EXACT


@settings(max_examples=settings.default.max_examples // 2)
@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    size=st.integers(1, 3),
    low=st.integers(-1, 2),
    high=st.integers(0, 2),
    mode=st.sampled_from(["zeros", "reflect", "replicate"]),
    bias=st.booleans(),
)
def test_conv(rank: int, groups: int, size: int, low: int, high: int, mode: str, bias: bool) -> None:
    op = ops.Conv((2,) * rank, ((low, high),) * rank, (2,) * rank, groups, mode)  # type: ignore[arg-type]
    one = node(op, "x", param(4, 4 // groups, *(size,) * rank), param(4, seed=1) if bias else None)
    check(one, normal(2, 4, *(8, 9, 7)[:rank]))


@given(bias=st.booleans())
def test_linear(bias: bool) -> None:
    check(node(ops.Linear(), "x", param(3, 5), param(3, seed=1) if bias else None), normal(2, 5))


@given(rank=st.integers(0, 3), affine=st.booleans(), eps=st.sampled_from([1e-5, 0.1]))
def test_batch_norm(rank: int, affine: bool, eps: float) -> None:
    gamma, beta = (param(4, seed=2), param(4, seed=3)) if affine else (None, None)
    one = node(ops.BatchNorm(eps), "x", gamma, beta, param(4), param(4, seed=1, positive=True))
    x = normal(3, 4, *(5, 4, 3)[:rank])
    rule = linear_rule(one)
    assert rule is not None
    kernel = rule(one, SourceLayout(4, rank))
    assert kernel.is_diagonal
    across = (1, -1, *(1,) * rank)
    found = x * torch.from_numpy(kernel.weight.reshape(across)) + torch.from_numpy(kernel.bias.reshape(across))
    assert relative_error(evaluate_node(one, {"x": x}), found) < EXACT


@given(rank=st.integers(1, 3), size=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 1))
def test_average_pool(rank: int, size: int, stride: int, padding: int) -> None:
    padding = min(padding, size // 2)
    one = node(ops.AvgPool((size,) * rank, (stride,) * rank, ((padding, padding),) * rank), "x")
    check(one, normal(2, 4, *(8, 9, 7)[:rank]))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_identity(rank: int) -> None:
    rule = linear_rule(node(ops.Identity(), "x"))
    assert rule is not None
    assert (rule(node(ops.Identity(), "x"), SourceLayout(4, rank)).weight == 1).all()


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (node(ops.BatchNorm(training=True), "x", None, None, param(4), param(4)), "training=True; call model.eval()"),
        (node(ops.BatchNorm(), "x", None, None, None, None), "batch norm without statistics"),
        (node(ops.Linear(), "x", param(3, 4), None), "linear over an axis that is not that of the channels"),
    ],
)
def test_what_no_kernel_equals_is_refused(one: Node, reason: str) -> None:
    rule = linear_rule(one)
    assert rule is not None
    with pytest.raises(NotFusable, match=reason.replace("(", r"\(").replace(")", r"\)")):
        rule(one, SourceLayout(4, 2))


def kernel_of(channels: int, rank: int = 2) -> ConvKernel:
    ones = (1,) * rank
    return ConvKernel(np.ones((channels, 3, *ones)), np.zeros(channels), ones, ones, ((0, 0),) * rank)


def wide_kernel(channels: int) -> ConvKernel:
    return ConvKernel(np.ones((channels, 3, 2, 2)), np.zeros(channels), (1, 1), (1, 1), ((0, 0), (0, 0)))


@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1), (1, 1)])
def test_a_constant_that_broadcasts_to_channels_is_one_number_each(shape: tuple[int, ...]) -> None:
    constant = param(*shape)
    x = normal(2, 4, 5, 6)
    expected = x * torch.from_numpy(np.asarray(constant.load()))
    found = x * torch.from_numpy(per_channel(constant, 4, 2).reshape(1, -1, 1, 1))
    assert torch.equal(expected, found)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((4,), 4), ((2, 4, 1, 1), 4), ((4, 1), 4), ((1, 4, 1, 1), 1), ((4, 5, 6), 4), ((1, 1, 4, 1, 1), 4), ((3, 1, 1), 4)],
)
def test_a_constant_that_varies_otherwise_is_refused(shape: tuple[int, ...], channels: int) -> None:
    with pytest.raises(NotFusable, match=rf"a constant of shape \({', '.join(map(str, shape))},?\) is not one number for each"):
        per_channel(param(*shape), channels, 2)


def test_on_two_axes_a_constant_for_the_last_axis_is_one_for_each_channel() -> None:
    assert per_channel(param(4), 4, 0).shape == (4,)


def test_only_ops_with_a_rule_are_linear() -> None:
    linear = [ops.Identity(), ops.Add((1.0, 1.0)), ops.Add((1.0, -1.0)), ops.Mul(), ops.Div(), ops.Concat(1), ops.Linear()]
    assert all(is_linear(node(op, "x")) for op in linear)
    others = [ops.Elementwise("relu"), ops.Input(), ops.Permute((0, 2, 1)), ops.MaxPool((2,), (2,), ((0, 0),), (1,))]
    assert not any(is_linear(node(op, "x")) for op in others)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "concat", "pad", "linear", "conv", "batch_norm", "identity"])
def test_an_opaque_op_does_not_go_by_the_rule_of_its_name(name: str) -> None:
    assert not is_linear(node(ops.Opaque(name), "x"))


@pytest.mark.parametrize(
    ("op", "operands", "reason"),
    [
        (ops.Mul(), (kernel_of(4), kernel_of(4)), "the product of two computed values is not linear"),
        (ops.Div(), (param(4, 1, 1), kernel_of(4)), "a quotient by a computed value is not linear"),
        (ops.Concat(0), (kernel_of(4), kernel_of(4)), "a concat of other things than channels"),
        (ops.Concat(1), (kernel_of(4), param(1, 4, 1, 1)), "a concat of other things than channels"),
        (ops.Pad(((0, 0), (1, 0), (0, 0), (0, 0))), (kernel_of(4),), "pads the batch or the channels"),
        (
            ops.Pad(((0, 0), (0, 0), (1, 1), (0, 0)), "reflect"),
            (wide_kernel(4),),
            "pads .reflect. over an op that is not pointwise",
        ),
    ],
)
def test_a_merge_that_is_not_exact_is_refused(op: ops.Op, operands: tuple[object, ...], reason: str) -> None:
    one = Node("y", op, ("a", "b")[: len(operands)], TensorType("f32", (1, 4, 5, 5)))
    rule = merge_rule(one)
    assert rule is not None
    with pytest.raises(NotFusable, match=reason):
        rule(one, operands, SourceLayout(3, 2, axes=4))  # type: ignore[arg-type]
