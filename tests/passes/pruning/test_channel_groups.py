"""Which channels leave together, and which cannot, with the reason in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, TensorType
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family, channel_groups
from reparam_compiler.passes.pruning.coupling.rules import coupling_rule
from tests.support.pruning_nets import SIZE, Net


def families(graph: Graph) -> dict[str, Family]:
    return {family.name: family for family in channel_groups(graph).families}


def widths(groups: ChannelGroups) -> dict[str, tuple[int, int]]:
    """For each free family its width and its number of groups."""
    return {family.name: (family.width, len(family.groups)) for family in groups.free}


def reason(graph: Graph, name: str) -> str:
    pin = families(graph)[name].pin
    assert pin is not None
    return f"{pin.node}: {pin.reason}"


def test_a_plain_chain_has_one_family_a_layer_and_keeps_its_outputs() -> None:
    net = Net()
    graph = net.head(net.relu(net.norm(net.conv(net.relu(net.conv(net.x, 12, name="one")), 10, name="two"))))
    assert widths(channel_groups(graph)) == {"net.one": (12, 12), "net.two": (10, 10)}
    assert families(graph)["net.two"].members == ("two", "bn_4", "head")
    assert reason(graph, "net.head") == "head: head (linear) is a model output"


def test_sum_ties_its_operands_into_one_family() -> None:
    net = Net()
    a, b = net.conv(net.x, 12, name="a"), net.conv(net.x, 12, 1, name="b")
    graph = net.head(net.sum(a, net.norm(b)))
    assert widths(channel_groups(graph)) == {"net.a": (12, 12)}
    assert families(graph)["net.a"].producers == ("a", "b")


def test_product_over_space_does_not_tie_a_single_channel_mask() -> None:
    net = Net()
    x = net.conv(net.x, 12, name="body")
    mask = net.sigmoid(net.conv(net.x, 1, 1, name="mask"))
    graph = net.head(net.add(ops.Mul(), x, mask))
    assert widths(channel_groups(graph)) == {"net.body": (12, 12)}
    assert "one channel only" in reason(graph, "net.mask")


def test_group_conv_loses_the_same_from_every_group() -> None:
    net = Net()
    x = net.conv(net.x, 12, name="before")
    graph = net.head(net.conv(x, 20, groups=4, name="grouped"))
    found = channel_groups(graph)
    assert widths(found) == {"net.before": (12, 3), "net.grouped": (20, 5)}
    assert [family.positions for family in found.free] == [4, 4]


def test_depthwise_conv_passes_channels_on() -> None:
    net = Net()
    x = net.conv(net.x, 12, name="before")
    graph = net.head(net.norm(net.conv(x, 12, groups=12, name="depthwise")))
    assert widths(channel_groups(graph)) == {"net.before": (12, 12)}


def test_depthwise_conv_with_a_multiplier_passes_each_channel_to_all_it_makes() -> None:
    net = Net()
    x = net.conv(net.x, 6, name="before")
    graph = net.head(net.conv(x, 18, groups=6, name="depthwise"))
    assert widths(channel_groups(graph)) == {"net.before": (6, 6)}


def test_flattened_channel_takes_all_its_positions_along() -> None:
    net = Net()
    x = net.add(ops.Flatten(1, 3), net.conv(net.x, 6, name="conv"))
    graph = net.graph(net.linear(x, 5))
    labels = channel_groups(graph).slots["linear_3", 1][1]
    assert np.array_equal(labels.reshape(6, -1), np.repeat(labels[:: SIZE[0] * SIZE[1], None], SIZE[0] * SIZE[1], 1))


def test_split_makes_a_family_of_each_piece() -> None:
    net = Net()
    left, right = net.split(net.conv(net.x, 14, name="conv"), 8, 6)
    graph = net.head(net.concat(net.conv(left, 5), net.conv(right, 7)))
    assert {k: v for k, v in widths(channel_groups(graph)).items() if "net.conv" in k and "_" not in k} == {
        "net.conv": (8, 8),
        "net.conv#2": (6, 6),
    }


def test_channel_shuffle_is_followed_by_running_it() -> None:
    net = Net()
    graph = net.head(net.conv(net.shuffle(net.conv(net.x, 12, name="a"), 3), 8, name="b"))
    assert widths(channel_groups(graph)) == {"net.a": (12, 4), "net.b": (8, 8)}


def test_shared_weight_ties_its_uses() -> None:
    net = Net(channels=6)
    a, b = net.conv(net.conv(net.x, 8, name="a"), 8, name="c"), net.conv(net.conv(net.x, 8, name="b"), 8, name="d")
    net.nodes[b] = replace(net.nodes[b], inputs=(net.nodes[b].inputs[0], *net.nodes[a].inputs[1:]))
    graph = net.head(net.concat(a, b))
    assert set(widths(channel_groups(graph))) == {"net.a", "net.c"}


@pytest.mark.parametrize("batch", [2, "n", None])
def test_batch_may_be_unknown(batch: int | str | None) -> None:
    net = Net(batch=batch)
    graph = net.head(net.shuffle(net.conv(net.x, 12, name="a"), 2))
    assert widths(channel_groups(graph)) == {"net.a": (12, 6)}


def test_model_outputs_and_what_is_added_to_them_are_pinned() -> None:
    net = Net()
    a = net.conv(net.x, 8, name="a")
    graph = net.graph(net.sum(a, net.conv(net.x, 8, name="b")))
    assert channel_groups(graph).free == ()
    assert reason(graph, "net.a") == "add_3: add_3 (add) is a model output"


def test_sum_with_the_model_input_is_pinned() -> None:
    net = Net(channels=8)
    graph = net.head(net.sum(net.conv(net.x, 8, name="a"), net.x))
    assert "joins it with what keeps its width" in reason(graph, "net.a")


def test_opaque_op_pins_what_it_reads_and_is_named() -> None:
    net = Net()
    x = net.add(ops.Opaque("fold_space", lambda v: v * 1.5), net.conv(net.x, 8, name="a"), name="odd")
    graph = net.head(net.conv(x, 6, name="after"))
    assert reason(graph, "net.a") == "odd: odd (fold_space) is not understood"
    assert set(widths(channel_groups(graph))) == {"net.after"}


def test_question_for_a_size_that_nothing_reads_pins_nothing() -> None:
    net = Net()
    x = net.conv(net.x, 8, name="a")
    graph = net.head(x)
    asked = Graph.of(
        [*graph, replace(graph["x"], id="size", op=ops.Opaque("size", facts=ops.Facts.SIZE_QUERY), inputs=("a",), type=None)],
        graph.outputs,
    )
    assert set(widths(channel_groups(asked))) == {"net.a"}


@pytest.mark.parametrize("function", ["mean", "max", "min", "sum", "norm"])
def test_reduction_over_channels_ends_them(function: str) -> None:
    net = Net()
    x = net.conv(net.x, 8, name="a")
    pooled = net.add(ops.Reduce(function, (1,), True), x, name="over")  # type: ignore[arg-type]
    found = channel_groups(net.head(net.add(ops.Mul(), x, pooled)))
    assert widths(found) == {"net.a": (8, 8)}
    assert list(found.slots["over", 1]) == [1]


def test_softmax_over_channels_pins_them() -> None:
    net = Net()
    x = net.add(ops.Opaque("softmax", lambda v: torch.softmax(v, 1)), net.conv(net.x, 8, name="a"))
    assert "(softmax) is not understood" in reason(net.head(x), "net.a")


def test_reduction_over_space_passes_channels_on() -> None:
    net = Net()
    x = net.add(ops.Reduce("mean", (2, 3), False), net.conv(net.x, 8, name="a"))
    assert widths(channel_groups(net.graph(net.linear(x, 4)))) == {"net.a": (8, 8)}


def test_layer_between_token_axes_carries_channels() -> None:
    net = Net()
    tokens = net.add(ops.Reshape((0, 8, SIZE[0] * SIZE[1])), net.conv(net.x, 8, name="a"))
    mixed = net.linear(tokens, 11, name="mix")
    graph = net.graph(net.linear(net.add(ops.Permute((0, 2, 1)), mixed), 4))
    assert set(widths(channel_groups(graph))) == {"net.a"}


def test_computed_weight_is_pinned() -> None:
    net = Net()
    x, y = net.conv(net.x, 8, name="a"), net.conv(net.x, 8, name="b")
    kernel = net.add(ops.Reshape((5, 8, 1, 1)), net.param(5, 8))
    out = net.add(ops.Conv((1, 1), ((0, 0),) * 2, (1, 1)), x, kernel, None, name="dynamic")
    graph = net.head(net.concat(out, y))
    assert "is computed" in reason(graph, "net.a")
    assert set(widths(channel_groups(graph))) == {"net.b"}


def test_channels_that_can_only_leave_together_are_pinned() -> None:
    net = Net()
    graph = net.head(net.conv(net.conv(net.x, 4, name="a"), 4, groups=2, name="b"))
    both = families(graph)
    assert both["net.b"].pin is None
    tight = Net()
    graph = tight.head(tight.conv(tight.conv(tight.x, 4, name="a"), 2, groups=2, name="b"))
    assert reason(graph, "net.b") == "b: its 2 channels can only leave together"


def test_pinned_node_keeps_its_width_with_the_reason_given() -> None:
    net = Net()
    graph = net.head(net.conv(net.conv(net.x, 8, name="a"), 6, name="b"))
    found = channel_groups(graph, pinned={"a": "asked for"})
    assert set(widths(found)) == {"net.b"}
    assert next(f.pin.reason for f in found.families if f.name == "net.a" and f.pin) == "asked for"


def test_unknown_shape_is_an_error_that_says_what_to_pass() -> None:
    net = Net()
    graph = net.head(net.conv(net.x, 8))
    bare = Graph.of([replace(node, type=None) for node in graph], graph.outputs)
    with pytest.raises(UnsupportedModelError, match=r"x: the shape is not known.*pass example_inputs"):
        channel_groups(bare)
    dynamic = Graph.of([replace(n, type=TensorType("f32", (2, 3, "h", 7))) if n.id == "x" else n for n in graph], graph.outputs)
    with pytest.raises(UnsupportedModelError, match="2 x 3 x h x 7"):
        channel_groups(dynamic)


def test_second_rule_for_an_op_is_refused() -> None:
    with pytest.raises(ValueError, match="Conv has a coupling rule already"):
        coupling_rule(ops.Conv)(lambda node, op, trace: trace.source(node))


def test_even_and_odd_channels_go_in_pairs() -> None:
    net = Net()
    x = net.conv(net.x, 12, name="a")
    even, odd = (net.add(ops.Slice(1, start, None, 2), x) for start in (0, 1))
    graph = net.head(net.concat(net.conv(even, 4), net.conv(odd, 4)))
    assert widths(channel_groups(graph))["net.a"] == (12, 6)
