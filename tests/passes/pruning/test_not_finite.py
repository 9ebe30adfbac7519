"""Infinite numbers in channels that nobody reads hide nothing and spread nowhere."""

from collections.abc import Callable

import numpy as np
import pytest

from reparam_compiler.errors import UnsupportedModelError, VerificationError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Param
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.criteria.running import first_not_finite
from reparam_compiler.passes.pruning.pipeline import prune
from reparam_compiler.passes.pruning.slice_channels import masked, sliced, verify_pruned
from tests.support.pruning_nets import Net


def logged(net: Net, low: float = -99) -> str:
    """The logarithm of what a ReLU gives: minus infinity in every other channel, where that is zero below."""
    weight = net.param(8, 3, 3, 3, role="weight")
    bias = Param.of(np.float32([low, 99] * 4), role="bias", dtype="f32")
    conv = net.add(ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 1), net.x, weight, bias, name="conv")
    return net.add(ops.Elementwise("log"), net.relu(conv))


def into_conv(net: Net) -> Graph:
    return net.head(net.conv(logged(net), 6))


def into_grouped_conv(net: Net) -> Graph:
    return net.head(net.conv(logged(net), 6, groups=2))


def into_linear(net: Net) -> Graph:
    moved = net.add(ops.Permute((0, 2, 3, 1)), logged(net))
    return net.head(net.add(ops.Permute((0, 3, 1, 2)), net.linear(moved, 6)))


def into_transposed_conv(net: Net) -> Graph:
    weight = net.param(8, 6, 2, 2, role="weight")
    op = ops.ConvTranspose((2, 2), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)
    return net.head(net.add(op, logged(net), weight))


@pytest.mark.parametrize("build", [into_conv, into_grouped_conv, into_linear, into_transposed_conv])
def test_removed_channels_may_be_infinite(build: Callable[[Net], Graph]) -> None:
    graph = build(Net())
    groups = channel_groups(graph)
    keep = np.ones(groups.count, np.bool_)
    for family in groups.free:
        keep[family.groups[::2]] = False
    hidden, pruned = masked(graph, groups, keep), sliced(graph, groups, keep)
    verify_pruned(hidden, pruned)
    other = next(node for node in pruned if isinstance(node.op, ops.Weighted) and node.id not in ("conv", "head"))
    weight = other.params[0]
    moved = Param.of(weight.float64() * 2, role=weight.role, dtype=weight.dtype)
    with pytest.raises(VerificationError):
        verify_pruned(hidden, pruned.rewrite({other.id: other.with_operands({"weight": moved})}))


def test_the_first_node_with_nan_is_named_before_one_that_is_infinite() -> None:
    net, data = Net(), [np.ones((2, 3, 9, 7), np.float32)]
    assert first_not_finite(net.graph(net.conv(net.x, 4)), data) is None
    log = logged(net)
    assert first_not_finite(net.graph(log), data) == (log, 0)
    difference = net.add(ops.Add((1.0, -1.0)), log, log)
    assert first_not_finite(net.graph(difference), data) == (difference, 0)


def test_a_pruned_net_with_logarithms_is_verified() -> None:
    net = Net()
    graph = net.head(net.conv(logged(net, low=99), 6))
    assert prune(graph, ratio=0.5, round_to=1).plan.relative_error < 1e-9


def square_root_of(net: Net, scale: float) -> Graph:
    """Of the inputs times a scale, then a conv that is cut; negative numbers have no root."""
    scaled = net.add(ops.Mul(), net.x, Param.of(np.float32([scale]), role="const", dtype="f32"))
    summed = net.add(ops.Reduce("sum", (0, 1, 2, 3), True), net.add(ops.Elementwise("sqrt"), scaled))
    return net.head(net.relu(net.conv(net.add(ops.Add((1.0, 1.0)), net.x, summed), 8)))


def test_what_is_nan_for_negative_inputs_is_proven_on_positive_ones() -> None:
    graph = square_root_of(Net(), 1.0)
    result = prune(graph, ratio=0.5, round_to=1)
    assert result.plan.relative_error < 1e-9
    conv = next(node for node in result.graph if isinstance(node.op, ops.Conv))
    moved = Param.of(conv.params[0].float64() * 2, role="weight", dtype="f32")
    hidden = masked(graph, result.groups, result.keep)
    with pytest.raises(VerificationError):
        verify_pruned(hidden, result.graph.rewrite({conv.id: conv.with_operands({"weight": moved})}))


@pytest.mark.parametrize("build", [into_conv, lambda net: square_root_of(net, float("nan"))])
def test_a_net_that_gives_nothing_but_nan_proves_no_cut(build: Callable[[Net], Graph]) -> None:
    graph = build(Net())
    with pytest.raises(UnsupportedModelError, match=r"it is NaN everywhere.*look for weights that are NaN"):
        prune(graph, ratio=0.5, round_to=1)
