"""The pruned graph computes what its masked reference computes, in float64 at 1e-9, whatever the graph joins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError, VerificationError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param, TensorType, diff
from reparam_compiler.ir.printer import to_text
from reparam_compiler.ir.verifier import check
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.pipeline import PruneResult, prune
from reparam_compiler.passes.pruning.slice_channels import masked, sliced, verify_pruned
from tests.support.pruning_nets import SIZE, Net

GOLDENS = Path(__file__).parents[2] / "goldens" / "prune_channels"
TOLERANCE = 1e-9  # float64


def plain(net: Net) -> Graph:
    return net.head(net.relu(net.norm(net.conv(net.relu(net.conv(net.x, 12, stride=2)), 10, 1))))


def residual(net: Net) -> Graph:
    x = net.sigmoid(net.norm(net.conv(net.x, 12, bias=False)))
    y = net.norm(net.conv(net.sigmoid(net.conv(x, 9)), 12))
    return net.head(net.relu(net.sum(x, y)))


def dense(net: Net) -> Graph:
    a = net.conv(net.x, 7)
    b = net.conv(net.sigmoid(net.norm(net.concat(net.x, a))), 9)
    return net.head(net.norm(net.concat(a, net.concat(b, a))))


def separable(net: Net) -> Graph:
    x = net.sigmoid(net.norm(net.conv(net.x, 10)))
    x = net.sigmoid(net.norm(net.conv(x, 10, groups=10, bias=False)))
    return net.head(net.conv(net.conv(x, 14, 1), 28, groups=14))


def grouped(net: Net) -> Graph:
    return net.head(net.norm(net.conv(net.sigmoid(net.conv(net.x, 12)), 18, groups=3)))


def squeeze_excite(net: Net) -> Graph:
    x = net.conv(net.x, 12)
    return net.head(net.add(ops.Mul(), x, net.sigmoid(net.conv(net.relu(net.conv(net.pool(x), 6, 1)), 12, 1))))


def quotient(net: Net) -> Graph:
    x = net.conv(net.x, 12)
    positive = net.add(ops.Elementwise("exp"), net.conv(net.x, 12, 1))
    return net.head(net.add(ops.Div(), x, positive))


def per_channel_constants(net: Net) -> Graph:
    x = net.add(ops.Mul(), net.conv(net.x, 12), net.param(12, 1, 1))
    x = net.add(ops.Div(), net.sum(x, net.param(1, 12, 1, 1)), net.param())
    return net.head(net.sum(x, net.param(*SIZE)))


def channel_shuffle(net: Net) -> Graph:
    x = net.conv(net.shuffle(net.sigmoid(net.conv(net.x, 12)), 3), 20, groups=2)
    return net.head(net.sum(net.shuffle(x, 2), net.conv(net.x, 20, 1)))


def split_and_shuffle(net: Net) -> Graph:
    x = net.conv(net.x, 16)
    for _ in range(3):
        left, right = net.split(x, 8, 8)
        x = net.shuffle(net.concat(left, net.relu(net.norm(net.conv(right, 8)))), 2)
    return net.head(net.conv(x, 10))


def sliced_channels(net: Net) -> Graph:
    x = net.conv(net.x, 18)
    parts = [net.add(ops.Slice(1, start, stop, step), x) for start, stop, step in ((0, 7, 1), (7, None, 2), (8, 17, 2))]
    return net.head(net.concat(*(net.sigmoid(net.conv(part, 6)) for part in parts)))


def pixel_shuffle(net: Net) -> Graph:
    h, w = SIZE
    x = net.add(ops.Reshape((0, 8, 2, 2, h, w)), net.conv(net.x, 32))
    x = net.add(ops.Reshape((0, 8, 2 * h, 2 * w)), net.add(ops.Permute((0, 1, 4, 2, 5, 3)), x))
    return net.head(net.sigmoid(x))


def flattened(net: Net) -> Graph:
    x = net.add(ops.MaxPool((2, 2), (2, 2), ((0, 0),) * 2, (1, 1)), net.conv(net.x, 9))
    return net.graph(net.linear(net.sigmoid(net.linear(net.add(ops.Flatten(1, 3), x), 14)), 5))


def tokens(net: Net) -> Graph:
    x = net.add(ops.Reshape((0, 12, SIZE[0] * SIZE[1])), net.conv(net.x, 12))
    x = net.add(ops.Permute((0, 2, 1)), net.linear(x, 11))
    return net.graph(net.linear(net.add(ops.Elementwise("gelu"), net.linear(x, 13)), 4))


def heads(net: Net) -> Graph:
    x = net.add(ops.Permute((0, 2, 1)), net.add(ops.Reshape((0, 12, SIZE[0] * SIZE[1])), net.conv(net.x, 12)))
    x = net.add(ops.Reshape((0, SIZE[0] * SIZE[1], 3, 8)), net.linear(x, 24))
    x = net.add(ops.Reshape((0, 3, -1)), net.add(ops.Permute((0, 2, 1, 3)), x))
    return net.graph(net.linear(x, 5))


def padded_shortcut(net: Net) -> Graph:
    x = net.conv(net.x, 8)
    wide = net.add(ops.Pad(((0, 0), (0, 6), (0, 0), (0, 0))), x)
    return net.head(net.sum(wide, net.conv(x, 14)))


def token_prefix(net: Net) -> Graph:
    x = net.add(ops.Permute((0, 2, 1)), net.add(ops.Reshape((2, 12, SIZE[0] * SIZE[1])), net.conv(net.x, 12)))
    return net.graph(net.linear(net.concat(net.param(2, 1, 12), x, axis=1), 5))


def around_an_opaque_op(net: Net) -> Graph:
    x = net.conv(net.conv(net.x, 10), 8)
    x = net.add(ops.Opaque("rolled", lambda v: v.roll(1, 1)), x)
    return net.head(net.conv(x, 10))


def shared_weight(net: Net) -> Graph:
    a, b = net.conv(net.x, 10), net.conv(net.x, 10)
    weight, bias = net.param(8, 10, 3, 3, role="weight"), net.param(8, role="bias")
    conv = ops.Conv((1, 1), ((1, 1),) * 2, (1, 1))
    return net.head(net.concat(net.add(conv, a, weight, bias), net.sigmoid(net.add(conv, b, weight, bias))))


NETS: list[Callable[[Net], Graph]] = [
    plain, residual, dense, separable, grouped, squeeze_excite, quotient, per_channel_constants, channel_shuffle,
    split_and_shuffle, sliced_channels, pixel_shuffle, flattened, tokens, heads, padded_shortcut, token_prefix,
    around_an_opaque_op, shared_weight,
]  # fmt: skip


@pytest.mark.parametrize("build", NETS)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**16), share=st.floats(0.1, 0.9))
def test_sliced_graph_computes_what_the_masked_one_does(build: Callable[[Net], Graph], seed: int, share: float) -> None:
    graph = build(Net(seed=seed))
    groups = channel_groups(graph)
    assert groups.free
    keep = np.ones(groups.count, np.bool_)
    random = np.random.default_rng(seed)
    for family in groups.free:
        keep[random.permutation(family.groups)[: int(share * len(family.groups))]] = False
    hidden, pruned = masked(graph, groups, keep), sliced(graph, groups, keep)
    check(pruned)
    verify_pruned(hidden, pruned, tolerance=TOLERANCE)
    inputs = {"x": torch.from_numpy(random.standard_normal((2, 3, *SIZE)))}
    expected, values = evaluate(hidden, inputs), evaluate(pruned, inputs, wanted=list(pruned.nodes))
    for output in graph.outputs:
        torch.testing.assert_close(values[output], expected[output], rtol=TOLERANCE, atol=TOLERANCE)
    for node in pruned:
        if node.type is not None:
            assert tuple(values[node.id].shape) == node.type.shape


@pytest.mark.parametrize("build", NETS)
def test_half_of_every_free_family_goes(build: Callable[[Net], Graph]) -> None:
    graph = build(Net())
    result = prune(graph, ratio=0.5, round_to=1)
    for family in result.plan.families:
        group = next(f.positions for f in result.groups.free if f.name == family.name)
        assert abs(family.after - family.before / 2) <= group / 2
    assert sum(p.count for p in result.graph.param_users) < sum(p.count for p in graph.param_users)
    assert result.plan.relative_error <= TOLERANCE


def rounded(result: PruneResult) -> dict[str, tuple[int, int]]:
    return {family.name: (family.before, family.after) for family in result.plan.families}


def test_widths_go_to_the_nearest_multiple_of_eight() -> None:
    net = Net()
    x = net.conv(net.conv(net.conv(net.x, 48, name="a"), 24, name="b"), 12, name="c")
    result = prune(net.head(x), ratio=0.3)
    assert rounded(result) == {"net.a": (48, 32), "net.b": (24, 16), "net.c": (12, 8)}


def test_family_that_rounding_leaves_alone_says_so() -> None:
    net = Net()
    result = prune(net.head(net.conv(net.conv(net.x, 64, name="a"), 12, name="b")), ratio=0.1)
    assert rounded(result) == {"net.a": (64, 56), "net.b": (12, 12)}
    note = next(family.note for family in result.plan.families if family.name == "net.b")
    assert "multiple of 8" in note
    assert "round_to=1" in note


def test_ratio_zero_gives_the_same_graph_back() -> None:
    graph = plain(Net())
    assert prune(graph, ratio=0.0).graph is graph


def test_repeated_pruning_goes_on_where_it_stopped() -> None:
    once = prune(residual(Net()), ratio=0.25, round_to=1)
    twice = prune(once.graph, ratio=0.25, round_to=1)
    assert all(a.after == b.before > b.after for a, b in zip(once.plan.families, twice.plan.families, strict=True))


def test_pruned_params_keep_origin_and_dtype_and_load_exactly() -> None:
    net = Net()
    graph = net.head(net.conv(net.x, 10, name="a"))
    result = prune(graph, ratio=0.5, round_to=1)
    old, new = graph["a"].param(1), result.graph["a"].param(1)
    assert old is not None
    assert new is not None
    stays = result.groups.kept(result.keep, result.groups.value("a").labels)
    assert new.origin == "net.a.weight"
    assert new.load().dtype == np.float32
    assert np.array_equal(new.load(), old.load()[stays])
    assert old.load().shape == (10, 3, 3, 3)


def test_params_are_cut_only_when_they_are_loaded() -> None:
    net = Net()
    graph = net.head(net.conv(net.x, 10, name="a"))
    loaded: list[str] = []
    graph = graph.rewrite({node.id: _watched(node.id, graph, loaded) for node in graph if node.params})
    groups = channel_groups(graph)
    keep = np.ones(groups.count, np.bool_)
    keep[groups.free[0].groups[0]] = False
    sliced(graph, groups, keep)
    assert not loaded


def _watched(node_id: NodeId, graph: Graph, loaded: list[str]) -> Node:
    def watch(param: Param) -> Param:
        return replace(param, load=lambda: (loaded.append(node_id), param.load())[1])

    node = graph[node_id]
    return replace(node, inputs=tuple(watch(o) if isinstance(o, Param) else o for o in node.inputs))


def test_shared_param_is_cut_once() -> None:
    graph = shared_weight(Net())
    result = prune(graph, ratio=0.5, round_to=1)
    shared = [param for param, users in result.graph.param_users.items() if len(users) > 1]
    assert len(shared) == 2


def test_only_what_lost_channels_changes() -> None:
    net = Net()
    graph = net.head(net.conv(net.relu(net.conv(net.conv(net.x, 8, name="a"), 8, name="b")), 8, name="c"))
    result = prune(graph, ratio=0.5, round_to=1, ignore=["b", "c"])
    changes = diff(graph, result.graph)
    assert {node.id for node in changes.changed} == {"a", "b"}
    assert not changes.retyped
    assert not changes.removed


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_ratio_out_of_bounds_is_refused(ratio: float) -> None:
    with pytest.raises(InfeasiblePruneError, match="at least 0 and below 1"):
        prune(plain(Net()), ratio=ratio)


def test_nothing_prunable_is_an_error_that_lists_the_pins() -> None:
    net = Net()
    graph = net.graph(net.add(ops.Opaque("softmax", lambda v: v.softmax(1)), net.conv(net.x, 8, name="a"), name="s"))
    with pytest.raises(InfeasiblePruneError, match=r"no channel can be removed: net\.a: s \(softmax\) is not understood"):
        prune(graph, ratio=0.3)


def test_rounding_that_removes_nothing_is_an_error_with_the_remedy() -> None:
    net = Net()
    with pytest.raises(InfeasiblePruneError, match=r"removes no channel.*round_to=1"):
        prune(net.head(net.conv(net.x, 8)), ratio=0.3)


def test_ignored_layers_keep_their_width() -> None:
    graph = residual(Net())
    free = [family.name for family in channel_groups(graph).free]
    result = prune(graph, ratio=0.5, round_to=1, ignore=[free[0]])
    assert list(rounded(result)) == free[1:]
    assert [p.reason for p in result.plan.pinned if p.name == free[0]] == [f"ignore asks for it ({free[0]})"]


def test_unknown_input_shape_is_an_error() -> None:
    graph = Net(batch=None, size=(9, 7))
    out = graph.head(graph.conv(graph.x, 8))
    bare = Graph.of([replace(node, type=None) if node.id == "x" else node for node in out], out.outputs)
    with pytest.raises(UnsupportedModelError, match="pass example_inputs"):
        prune(bare, ratio=0.5)


def test_keep_mask_that_empties_or_cuts_what_is_pinned_is_refused() -> None:
    graph = plain(Net())
    groups = channel_groups(graph)
    empty = np.ones(groups.count, np.bool_)
    empty[groups.free[0].groups] = False
    with pytest.raises(InfeasiblePruneError, match="all 12 channels would go"):
        sliced(graph, groups, empty)
    pinned = np.ones(groups.count, np.bool_)
    pinned[next(f for f in groups.families if f.pin).groups[0]] = False
    with pytest.raises(InfeasiblePruneError, match="is a model output"):
        masked(graph, groups, pinned)
    with pytest.raises(InfeasiblePruneError, match="expected bool"):
        masked(graph, groups, np.ones(3, np.bool_))


def test_graph_that_computes_something_else_fails_verification() -> None:
    graph = plain(Net())
    result = prune(graph, ratio=0.5, round_to=1)
    with pytest.raises(VerificationError, match="head"):
        verify_pruned(graph, result.graph)


def test_opaque_op_that_cannot_be_run_is_no_obstacle_to_verification() -> None:
    net = Net()
    x = net.add(ops.Opaque("custom", lambda v: v), net.conv(net.conv(net.x, 8), 6))
    graph = net.head(net.conv(x, 8))
    bare = Graph.of([_without_run(node) for node in graph], graph.outputs)
    assert prune(bare, ratio=0.5, round_to=1).plan.relative_error <= TOLERANCE


@pytest.mark.parametrize("known", [None, TensorType("f32", (None, None, 5, 6))], ids=["no type", "no sizes"])
def test_what_reads_a_value_of_unknown_shape_is_no_obstacle_either(known: TensorType | None) -> None:
    net = Net()
    (whole,) = net.head(net.conv(net.conv(net.x, 8), 8)).outputs
    x = net.add(ops.Opaque("custom", lambda v: v), net.x)
    graph = net.graph(whole, net.conv(x, 4))
    bare = Graph.of([replace(_without_run(n), type=known) if n.id == x else _without_run(n) for n in graph], graph.outputs)
    assert prune(bare, ratio=0.5, round_to=1).plan.relative_error <= TOLERANCE


def _without_run(node: Node) -> Node:
    return replace(node, op=ops.Opaque("custom")) if isinstance(node.op, ops.Opaque) else node


@pytest.mark.parametrize("build", [plain, residual, dense, separable, grouped, channel_shuffle, sliced_channels, flattened])
def test_text_before_and_after(build: Callable[[Net], Graph]) -> None:
    graph = build(Net())
    after = prune(graph, ratio=0.5, round_to=1).graph
    text = f"# Before:\n{to_text(graph)}\n# After prune_channels, ratio 0.5:\n{to_text(after)}"
    assert text == (GOLDENS / f"{build.__name__}.txt").read_text()


class Mixed(torch.nn.Module):
    """A residual block, a concat, a channel shuffle, squeeze-and-excite and a flatten, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.SiLU())
        self.body = torch.nn.Sequential(torch.nn.Conv2d(16, 12, 1), torch.nn.ReLU(), torch.nn.Conv2d(12, 16, 3, 1, 1))
        self.side = torch.nn.Conv2d(16, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.gate = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(24, 6, 1), torch.nn.ReLU())
        self.open = torch.nn.Conv2d(6, 24, 1)
        self.head = torch.nn.Linear(24 * 5 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        x = self.depthwise(torch.cat([x, self.side(x)], 1))
        x = x.reshape(-1, 2, 12, 5, 4).transpose(1, 2).reshape(-1, 24, 5, 4)
        x = x * torch.sigmoid(self.open(self.gate(x)))
        return self.head(torch.flatten(x, 1))


def test_traced_model_is_pruned_and_written_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 7)
    model = Mixed().eval()
    reading = FxFrontend().read(torch.fx.symbolic_trace(model), (x,))
    result = prune(reading.graph, ratio=0.5, round_to=1)
    assert result.plan.relative_error <= TOLERANCE
    assert [family.name for family in result.plan.families] == ["stem.0", "stem.0#2", "body.0", "gate.1"]
    written = reading.write(result.graph)
    expected = evaluate(result.graph, {"x": x})[result.graph.outputs[0]]
    torch.testing.assert_close(written(x), expected.float(), rtol=1e-4, atol=1e-5)  # float32
    assert sum(p.numel() for p in written.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
