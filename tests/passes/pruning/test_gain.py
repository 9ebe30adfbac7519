"""What repair gained, on samples that it did not see."""

import numpy as np
import pytest

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.passes.pruning.repair.gain import Gain, gain_on
from tests.support.pruning_nets import Net

BATCHES = [np.random.default_rng(seed).standard_normal((4, 3, 9, 7)).astype(np.float32) for seed in (0, 1)]


def scaled(factor: float, *, outputs: int = 1) -> Graph:
    """A conv whose outputs are `factor` times those of another."""
    net = Net()
    conv = net.conv(net.x, 4, bias=False)
    weight = net.nodes[conv].params[0]
    changed = Param.of(weight.float64() * factor, role="weight", dtype="f32")
    net.nodes[conv] = net.nodes[conv].with_operands({"weight": changed})
    return net.graph(conv, *(net.relu(conv) for _ in range(outputs - 1)))


@pytest.mark.parametrize("outputs", [1, 2])
def test_errors_are_relative_to_the_outputs_of_the_whole_model(outputs: int) -> None:
    whole, cut, mended = (scaled(factor, outputs=outputs) for factor in (1.0, 0.5, 0.9))
    gain = gain_on(whole, cut, mended, BATCHES)
    assert gain is not None
    assert gain.samples == 8
    assert (gain.before, gain.after) == (pytest.approx(0.5, rel=1e-5), pytest.approx(0.1, rel=1e-4))
    assert not gain.is_worse
    worse = gain_on(whole, mended, cut, BATCHES)
    assert worse is not None
    assert worse.is_worse


def test_a_difference_that_is_none_is_no_harm() -> None:
    assert not Gain(4, 0.100, 0.104).is_worse
    assert not Gain(4, 0.0, 0.0).is_worse


@pytest.mark.parametrize(("before", "harmed"), [(0.5, True), (0.95, True), (0.97, False), (1.0, False), (2.0, False)])
def test_a_cut_that_is_no_better_than_zeros_cannot_be_harmed(before: float, harmed: bool) -> None:
    assert Gain(3, before, 3.4).is_worse is harmed


def test_there_is_none_without_samples_or_where_the_graph_cannot_be_run() -> None:
    assert gain_on(scaled(1.0), scaled(1.0), scaled(1.0), []) is None
    net = Net()
    opaque = Graph.of([net.nodes[net.x], Node("y", ops.Opaque("custom"), (net.x,), None)], ["y"])
    assert gain_on(opaque, opaque, opaque, BATCHES) is None


@pytest.mark.parametrize("factor", [0.0, np.inf])
def test_there_is_none_relative_to_nothing(factor: float) -> None:
    assert gain_on(scaled(factor), scaled(0.5), scaled(0.9), BATCHES) is None


def test_there_is_none_where_a_size_of_the_outputs_depends_on_values() -> None:
    def positive(factor: float) -> Graph:
        net = Net()
        taken = ops.Opaque("masked_select", lambda x: x[factor * x > 0.5])
        return Graph.of([net.nodes[net.x], Node("y", taken, (net.x,), None)], ["y"])

    assert gain_on(positive(1.0), positive(2.0), positive(1.0), BATCHES) is None
    assert gain_on(positive(1.0), positive(1.0), positive(1.0), BATCHES) is not None
