"""Repair folds the removed channels into their consumers as far as the kept ones predict them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, NodeId, Param
from reparam_compiler.passes.choices import Quality
from reparam_compiler.passes.fusion.pipeline import run as run_passes
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.pipeline import prune
from reparam_compiler.passes.pruning.repair.reconstruct import Repair, RepairName, repair, unequal
from reparam_compiler.passes.pruning.slice_channels import masked, sliced
from reparam_compiler.zoo import digits
from tests.support.pruning_nets import SIZE, Net


def batches(count: int = 3, samples: int = 16, seed: int = 0) -> list[tuple[torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(samples, 3, *SIZE, generator=draw, dtype=torch.float64),) for _ in range(count)]


def redundant_conv(net: Net, x: NodeId, independent: int, redundant: int, *, affine: bool = True) -> NodeId:
    """A 1x1 conv whose last channels are affine in the first ones, or linear."""
    basis = net.random.standard_normal((independent, net.channels(x), 1, 1))
    mix = net.random.standard_normal((redundant, independent))
    bias = net.random.standard_normal(independent)
    weight = np.concatenate([basis, np.tensordot(mix, basis, 1)])
    shift = np.concatenate([bias, mix @ bias + affine * net.random.standard_normal(redundant)])
    params = (Param.of(a, role=role, dtype="f64") for a, role in ((weight, "weight"), (shift, "bias")))
    return net.add(ops.Conv((1, 1), ((0, 0),) * 2, (1, 1)), x, *params, name="wide")


def without_redundant(graph: Graph, ridge: float, how: RepairName) -> tuple[Graph, Graph, Repair]:
    """The graph without the last three of the five channels of `wide`: unrepaired and repaired."""
    groups = channel_groups(graph)
    keep = np.ones(groups.count, np.bool_)
    keep[groups.number[groups.value("wide").labels[2:]]] = False
    hidden = masked(graph, groups, keep)
    repaired, report = repair(graph, hidden, groups, keep, batches(), how=how, ridge=ridge, dtype=torch.float64)
    return sliced(hidden, groups, keep), sliced(repaired, groups, keep), report


def to_conv(net: Net, x: NodeId) -> Graph:
    return net.graph(net.conv(x, 4, 1, name="reader"))


def to_conv_without_bias(net: Net, x: NodeId) -> Graph:
    return net.graph(net.conv(x, 4, 1, bias=False, name="reader"))


def to_flatten_and_linear(net: Net, x: NodeId) -> Graph:
    return net.graph(net.linear(net.add(ops.Flatten(1, 3), x), 4, name="reader"))


def to_concat(net: Net, x: NodeId) -> Graph:
    return net.graph(net.conv(net.concat(net.x, x), 4, 1, name="reader"))


def to_two_readers(net: Net, x: NodeId) -> Graph:
    return net.graph(net.sum(net.conv(x, 4, 1, name="reader"), net.conv(x, 4, 1)))


@pytest.mark.parametrize("how", ["fold", "least_squares"])
@pytest.mark.parametrize("read", [to_conv, to_conv_without_bias, to_flatten_and_linear, to_concat, to_two_readers])
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**16))
def test_linearly_redundant_channels_are_recovered_exactly(
    read: Callable[[Net, NodeId], Graph], how: RepairName, seed: int
) -> None:
    net = Net(seed=seed)
    graph = read(net, redundant_conv(net, net.x, 2, 3))
    cut, repaired, report = without_redundant(graph, 1e-13, how)
    x = {"x": batches(1, seed=7)[0][0]}
    expected = evaluate(graph, x)[graph.outputs[0]]
    assert difference(expected, evaluate(repaired, x)[graph.outputs[0]]).relative < 1e-6  # float64, conditioning of the draw
    assert difference(expected, evaluate(cut, x)[graph.outputs[0]]).relative > 1e-3
    assert all(part.unexplained is not None and part.unexplained < 1e-6 for part in report.repaired)
    assert report.samples == 48
    assert not report.passed_over


def transposed(net: Net, x: NodeId, size: int, stride: int, *, groups: int = 1) -> Graph:
    op = ops.ConvTranspose((stride, 1), ((0, 1), (1, 0)), (0, 0), (1, 2), groups)
    weight = net.param(net.channels(x), 4 // groups, size, 2, role="weight", origin="net.reader.weight")
    return net.graph(net.add(op, x, weight, net.param(4, role="bias"), name="reader"))


@pytest.mark.parametrize("how", ["fold", "least_squares"])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 2), (3, 2), (3, 1), (2, 3)])
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**16))
def test_transposed_conv_recovers_linearly_redundant_channels_exactly(
    size: int, stride: int, how: RepairName, seed: int
) -> None:
    net = Net(seed=seed)
    graph = transposed(net, redundant_conv(net, net.x, 2, 3, affine=False), size, stride)
    cut, repaired, report = without_redundant(graph, 1e-13, how)
    x = {"x": batches(1, seed=7)[0][0]}
    expected = evaluate(graph, x)["reader"]
    assert difference(expected, evaluate(repaired, x)["reader"]).relative < 1e-6  # float64, conditioning of the draw
    assert difference(expected, evaluate(cut, x)["reader"]).relative > 1e-3
    (part,) = report.repaired
    assert (part.node, part.removed) == ("reader", 3)
    assert part.unexplained is not None
    assert part.unexplained < 1e-6
    assert not report.passed_over


@pytest.mark.parametrize("step", [1, 2, 3])
def test_transposed_conv_reads_a_constant_that_no_bias_can_add_off_what_is_left(step: int) -> None:
    """One of the two channels that are left is constant: with it a constant that differs by place is exact, too."""
    net = Net(seed=1)
    wide = net.nodes[redundant_conv(net, net.x, 2, 3)]
    weight, bias = (param.float64().copy() for param in wide.params)
    weight[1], bias[1] = 0, 1.5
    weight[2:] = np.multiply.outer([0.5, -2.0, 1.0], weight[0])
    params = (Param.of(a, role=role, dtype="f64") for a, role in ((weight, "weight"), (bias, "bias")))
    net.nodes["wide"] = replace(wide, inputs=(net.x, *params))
    op = ops.ConvTranspose((step, 1), ((0, 0),) * 2, (0, 0), (1, 1))
    graph = net.graph(net.add(op, "wide", net.param(5, 4, step, 1, role="weight"), None, name="reader"))
    _, repaired, _ = without_redundant(graph, 1e-13, "fold")
    x = {"x": batches(1, seed=7)[0][0]}
    expected, found = (evaluate(g, x)["reader"] for g in (graph, repaired))
    assert difference(expected, found).relative < 1e-6


@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_conv_is_nearer_after_repair_than_before(quality: Quality, groups: int) -> None:
    net = Net(seed=groups)
    a = net.relu(net.conv(net.relu(net.conv(net.x, 8, name="a")), 8, name="b"))
    op = ops.ConvTranspose((2, 2), ((0, 0),) * 2, (0, 0), (1, 1), groups)
    up = net.add(op, a, net.param(8, 8 // groups, 2, 2, role="weight"), None, name="up")
    graph = net.graph(net.conv(up, 4, 1, name="last"))
    cut = prune(graph, ratio=0.25, round_to=1)
    found = prune(graph, ratio=0.25, round_to=1, importance="l1", calibration=batches(), quality=quality)
    assert found.plan.repair is not None
    assert [part.node for part in found.plan.repair.repaired] == ["b", "up", "last"]
    x = batches(1, seed=99)[0][0]
    assert mean_square(graph, found.graph, x) < 0.8 * mean_square(graph, cut.graph, x)


@pytest.mark.parametrize(
    ("step", "stride", "shares"),
    [(1, 1, [0, 0, 0]), (1, 2, [1.5, -3, 1.5]), (1, 3, [1 / 3, -5 / 3, 4 / 3]), (2, 2, [8 / 3] * 3)],
)
def test_taps_that_meet_share_what_their_constants_have_beyond_a_bias(step: int, stride: int, shares: list[float]) -> None:
    """At stride 2 taps 0 and 2 meet, and add up to 7; tap 1 has 1 alone. With a step of two, half of the places have none."""
    op = ops.ConvTranspose((stride,), ((0, 0),), (0,), (step,))
    np.testing.assert_allclose(unequal(op, np.array([[3.0, 1.0, 4.0]])), [shares], atol=1e-12)


def test_what_sums_over_channels_without_a_weight_is_named() -> None:
    net = Net()
    a = net.relu(net.conv(net.x, 8, name="a"))
    mean = net.add(ops.Reduce("mean", (1,), True), a, name="mean")
    result = prune(net.graph(net.conv(net.concat(mean, a), 4, name="last")), ratio=0.5, round_to=1, calibration=batches())
    assert result.plan.repair is not None
    assert [part.node for part in result.plan.repair.repaired] == ["last"]
    assert [(p.node, p.reason) for p in result.plan.repair.passed_over] == [
        ("mean", "sums over 4 channels fewer and has no weight for them")
    ]


@pytest.mark.parametrize("how", ["fold", "least_squares"])
def test_group_conv_absorbs_within_each_group(how: RepairName) -> None:
    net = Net(seed=3)
    one = redundant_conv(net, net.x, 2, 2)
    graph = net.graph(net.conv(net.add(ops.Slice(1, 0, None), one), 6, 1, groups=2, name="reader"))
    groups = channel_groups(graph)
    keep = np.ones(groups.count, np.bool_)
    keep[groups.free[0].groups[1]] = False
    hidden = masked(graph, groups, keep)
    repaired, report = repair(graph, hidden, groups, keep, batches(), how=how)
    x = {"x": batches(1, seed=7)[0][0]}
    expected = evaluate(graph, x)["reader"]
    errors = [difference(expected, evaluate(g, x)["reader"]).relative for g in (hidden, repaired)]
    assert errors[1] < errors[0]
    assert [part.node for part in report.repaired] == ["reader"]


def residual(net: Net) -> Graph:
    x = net.relu(net.norm(net.conv(net.x, 16)))
    x = net.relu(net.sum(x, net.norm(net.conv(net.relu(net.conv(x, 12)), 16))))
    return net.head(net.relu(net.conv(x, 10)))


def dense(net: Net) -> Graph:
    a = net.relu(net.conv(net.x, 12))
    b = net.relu(net.conv(net.concat(net.x, a), 12))
    return net.head(net.relu(net.conv(net.concat(a, b), 10)))


def separable(net: Net) -> Graph:
    x = net.relu(net.norm(net.conv(net.x, 12)))
    return net.head(net.relu(net.conv(net.relu(net.conv(x, 12, groups=12)), 10, 1)))


def grouped(net: Net) -> Graph:
    return net.head(net.relu(net.conv(net.relu(net.conv(net.x, 16)), 12, groups=2)))


def mean_square(graph: Graph, other: Graph, x: torch.Tensor) -> float:
    a, b = (evaluate(g, {"x": x})[graph.outputs[0]] for g in (graph, other))
    return float(((a - b) ** 2).mean())


@pytest.mark.parametrize("build", [residual, dense, separable, grouped])
@pytest.mark.parametrize(("quality", "share"), [("fast", 1.0), ("standard", 0.5), ("high", 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_repair_brings_random_nets_nearer_on_data_it_has_not_seen(
    build: Callable[[Net], Graph], quality: Quality, share: float, seed: int
) -> None:
    graph = build(Net(seed=seed))
    cut = prune(graph, ratio=0.4, round_to=1)
    repaired = prune(graph, ratio=0.4, round_to=1, importance="l1", calibration=batches(), quality=quality)
    assert np.array_equal(cut.keep, repaired.keep)
    x = batches(1, samples=64, seed=99)[0][0]
    assert mean_square(graph, repaired.graph, x) < share * mean_square(graph, cut.graph, x)


def test_repaired_graph_has_the_widths_of_the_unrepaired_one() -> None:
    graph = residual(Net())
    cut, repaired = (prune(graph, ratio=0.4, round_to=1, calibration=c).graph for c in (None, batches()))
    assert [node.type for node in cut] == [node.type for node in repaired]


def test_bias_is_made_where_there_was_none() -> None:
    net = Net()
    graph = net.graph(net.conv(net.relu(net.conv(net.x, 8)), 4, bias=False, name="reader"))
    pruned = prune(graph, ratio=0.5, round_to=1, calibration=batches()).graph
    bias = pruned["reader"].param(2)
    assert bias is not None
    assert (bias.shape, bias.dtype, bias.origin) == ((4,), "f32", None)
    weight = pruned["reader"].param(1)
    assert weight is not None
    assert weight.origin == "net.reader.weight"


def test_consumer_with_a_shared_weight_is_passed_over_and_named() -> None:
    net = Net()
    a, b = net.conv(net.x, 8), net.conv(net.x, 8)
    weight, conv = net.param(4, 8, 1, 1, role="weight"), ops.Conv((1, 1), ((0, 0),) * 2, (1, 1))
    readers = [net.add(conv, x, weight, None, name=name) for x, name in ((a, "one"), (b, "two"))]
    result = prune(net.graph(*readers), ratio=0.5, round_to=1, calibration=batches())
    assert result.plan.repair is not None
    assert [(p.node, p.reason) for p in result.plan.repair.passed_over] == [
        ("one", "shares its weight with another node"),
        ("two", "shares its weight with another node"),
    ]


def test_what_comes_after_an_op_that_cannot_be_run_is_passed_over() -> None:
    net = Net()
    x = net.relu(net.conv(net.relu(net.conv(net.x, 8)), 8, name="reader"))
    odd = net.add(ops.Opaque("custom", lambda v: v), x, name="odd")
    graph = net.graph(net.conv(net.conv(odd, 8), 4, name="last"))
    graph = graph.rewrite({"odd": replace(graph["odd"], op=ops.Opaque("custom"))})
    repair = prune(graph, ratio=0.5, round_to=1, calibration=batches()).plan.repair
    assert repair is not None
    assert [part.node for part in repair.repaired] == ["reader"]
    assert [(p.node, "cannot be run" in p.reason) for p in repair.passed_over] == [("last", True)]


def test_batches_may_be_arrays_and_of_unequal_size() -> None:
    graph = residual(Net())
    x = torch.cat([batch for (batch,) in batches()]).float()
    whole = prune(graph, ratio=0.4, round_to=1, calibration=[x]).graph
    parts = prune(graph, ratio=0.4, round_to=1, calibration=(p.numpy() for p in x.split(20))).graph
    assert mean_square(whole, parts, x) < 1e-6  # float32 activations


@pytest.mark.parametrize(("data", "message"), [([], "no batch"), ([(torch.zeros(1), torch.zeros(1))], "2 arrays, the model 1")])
def test_calibration_that_does_not_fit_is_refused(data: list[tuple[torch.Tensor, ...]], message: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=message):
        prune(residual(Net()), ratio=0.4, round_to=1, calibration=data)


def test_digits_net_keeps_its_accuracy_at_a_third_of_its_channels() -> None:
    """pruning.md: L1 alone falls to about 20 %, L1 + fold keeps 99.0 % at ratio 0.3 and 98.0 % at 0.5."""
    split, (x,) = digits.digits_split(), [torch.zeros(1, 1, 16, 16)]
    graph = run_passes(FxFrontend().read(torch.fx.symbolic_trace(digits.digits_repvgg()), (x,)).graph).graph
    source = next(node.id for node in graph if isinstance(node.op, ops.Input))

    def accuracy(pruned: Graph) -> float:
        def predict(images: np.ndarray) -> np.ndarray:
            values = evaluate(pruned, {source: torch.from_numpy(images.copy())}, dtype=torch.float32)
            return values[pruned.outputs[0]].numpy()

        return digits.accuracy(predict, split.test_images, split.test_labels)

    calibration = [(images,) for images in np.split(digits.calibration_images(256), 4)]
    whole, cut = accuracy(graph), accuracy(prune(graph, ratio=0.3).graph)
    third, half = (accuracy(prune(graph, ratio=r, calibration=calibration).graph) for r in (0.3, 0.5))
    assert whole > 0.99
    assert cut < 0.5
    assert third > 0.985
    assert half > 0.965
