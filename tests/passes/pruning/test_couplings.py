"""How single ops treat channels: what they count, what they tie, and what they refuse, on graphs built by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.interpreter.size_expressions import asked, number_values, numbers_of, stale_numbers
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param, TensorType
from reparam_compiler.passes.pruning.coupling.groups import Family, channel_groups
from reparam_compiler.passes.pruning.coupling.rules import COUPLINGS
from reparam_compiler.passes.pruning.pipeline import prune
from tests.support.pruning_nets import SIZE, Net

EXACT = 1e-12  # float64
TOKENS = SIZE[0] * SIZE[1]


def families(graph: Graph) -> dict[str, Family]:
    return {family.name: family for family in channel_groups(graph).families}


def reason(graph: Graph, name: str) -> str:
    pin = families(graph)[name].pin
    assert pin is not None
    return pin.reason


def tokens(net: Net, width: int, name: str) -> NodeId:
    flat = net.add(ops.Permute((0, 2, 1)), net.add(ops.Reshape((0, 3, TOKENS)), net.x))
    return net.linear(flat, width, name=name)


def heads(net: Net, count: int, width: int, name: str) -> NodeId:
    split = net.add(ops.Reshape((0, TOKENS, count, width)), tokens(net, count * width, name))
    return net.add(ops.Permute((0, 2, 1, 3)), split)


def counted_ops(seed: int) -> list[tuple[ops.Op, tuple[Tensor | None, ...], int]]:
    """Ops that work across channels, their operands, and the axis of the first one that loses some."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 12, 5, 4, generator=random, dtype=torch.float64)
    last = torch.randn(2, 5, 12, generator=random, dtype=torch.float64)
    weight, bias = (torch.randn(12, generator=random, dtype=torch.float64) for _ in range(2))
    found: list[tuple[ops.Op, tuple[Tensor | None, ...], int]] = [
        (ops.Reduce(function, axes, keepdim), (x,), 1)
        for function in ("mean", "sum", "max", "min", "norm")
        for axes, keepdim in (((1,), True), ((1, 3), False))
    ]
    found += [(ops.LayerNorm((-1,), 1e-5, centred), (last, weight, bias), 2) for centred in (True, False)]
    found += [(ops.GroupNorm(groups, 1e-5), (x, weight, bias), 1) for groups in (1, 3)]
    found += [(ops.Einsum("abc", "adc", "abd"), (last, torch.randn(2, 3, 12, dtype=torch.float64)), 2)]
    bias_of = torch.randn(2, 5, 5, generator=random, dtype=torch.float64)
    found += [(ops.Attention(0.3, 12, causal), (last, last.flip(1), last[..., :7], bias_of), 2) for causal in (True, False)]
    return found


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), removed=st.integers(1, 2))
def test_op_that_counts_some_channels_gives_what_it_gives_without_the_others(seed: int, removed: int) -> None:
    for op, operands, axis in counted_ops(seed):
        groups = op.groups or 1 if isinstance(op, ops.GroupNorm) else 1
        gone = np.random.default_rng(seed).permutation(12 // groups)[:removed]
        keep = np.ones((groups, 12 // groups), np.bool_)
        keep[:, gone] = False
        kept = torch.from_numpy(keep.ravel())
        first = operands[0]
        assert first is not None
        assert op.has_mask
        mask = kept.double().reshape([-1 if a == axis else 1 for a in range(first.ndim)])
        whole = _value(op, [*operands, *[None] * (op.operands.index("mask") - len(operands)), mask])
        cut = [None if v is None else v[_along(v, kept)] for v in operands]
        expected = _value(op, cut)
        found = whole[_along(whole, kept)] if whole.shape != expected.shape else whole
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def _along(value: Tensor, kept: Tensor) -> tuple[slice | Tensor, ...]:
    return tuple(kept if size == len(kept) else slice(None) for size in value.shape)


def _value(op: ops.Op, operands: list[Tensor | None]) -> Tensor:
    values = {f"operand {index}": value for index, value in enumerate(operands) if value is not None}
    inputs = tuple(None if value is None else f"operand {index}" for index, value in enumerate(operands))
    return torch.as_tensor(evaluate_node(Node("op", op, inputs), values))


def test_group_norm_loses_the_same_from_every_group() -> None:
    net = Net()
    x = net.add(ops.GroupNorm(3, 1e-5), net.conv(net.x, 12, name="a"), net.param(12, role="weight"), net.param(12), name="norm")
    (family,) = channel_groups(net.head(net.relu(x))).free
    assert (family.width, len(family.groups)) == (12, 4)


def test_group_norm_of_single_channels_ties_none() -> None:
    net = Net()
    x = net.add(
        ops.GroupNorm(12, 1e-5), net.conv(net.x, 12, name="a"), net.param(12, role="weight"), net.param(12), name="norm"
    )
    result = prune(net.head(net.relu(x)), ratio=0.5, round_to=1)
    assert result.graph["norm"].op == ops.GroupNorm(6, 1e-5)


def test_width_of_heads_is_tied_between_queries_and_keys_and_free_in_values() -> None:
    net = Net()
    q, k, v = heads(net, 2, 7, "q"), heads(net, 2, 7, "k"), heads(net, 2, 9, "v")
    y = net.add(ops.Attention(0.4, 7), q, k, v, name="attention")
    y = net.add(ops.Reshape((0, TOKENS, 18)), net.add(ops.Permute((0, 2, 1, 3)), y))
    graph = net.graph(net.linear(y, 4))
    found = families(graph)
    assert found["net.q"].producers == ("q", "k")
    assert len(found["net.q"].groups) == 7
    assert len(found["net.v"].groups) == 9
    result = prune(graph, ratio=0.4, round_to=1)
    assert result.graph["attention"].op == ops.Attention(0.4, 4)


def test_heads_go_where_their_widths_cannot() -> None:
    """A softmax over the width of heads pins it; whole heads leave instead."""
    net = Net()
    q = net.add(ops.Opaque("softmax", lambda x: torch.softmax(x, 3), ops.Slicewise((0, 1, 2)), 1), heads(net, 3, 8, "q"))
    y = net.add(ops.Reshape((0, TOKENS, 24)), net.add(ops.Permute((0, 2, 1, 3)), q))
    (family,) = channel_groups(net.graph(net.linear(y, 4))).free
    assert (family.width, len(family.groups)) == (24, 3)


def test_product_whose_result_has_channels_along_two_axes_keeps_one() -> None:
    net = Net()
    a, b = tokens(net, 6, "a"), tokens(net, 8, "b")
    product = net.add(ops.Einsum("nta", "ntb", "nab"), a, b, name="gram")
    graph = net.graph(net.linear(product, 4))
    assert reason(graph, "net.a") == "gram (einsum) gives channels along two axes"
    assert families(graph)["net.b"].pin is None


def test_channels_that_only_one_side_of_a_product_has_are_pinned() -> None:
    net = Net()
    other = net.add(ops.Reshape((0, 3, TOKENS)), net.x)
    graph = net.graph(net.linear(net.add(ops.Einsum("ntc", "nct", "nt"), tokens(net, 3, "a"), other), 4))
    assert "joins it with what keeps its width" in reason(graph, "net.a")


def test_sum_of_values_with_channels_along_different_axes_keeps_one() -> None:
    net = Net(channels=TOKENS, size=(3,))
    wide = net.linear(net.x, 20, name="wide")
    narrow = net.add(ops.Permute((0, 2, 1)), net.linear(net.add(ops.Permute((0, 2, 1)), net.x), TOKENS, name="tall"))
    one = net.add(ops.Reduce("mean", (2,), True), narrow)
    graph = net.graph(net.linear(net.add(ops.Mul(), wide, one), 4))
    pins = {name: family.pin.reason if family.pin else "" for name, family in families(graph).items()}
    assert sorted(bool(pin) for name, pin in pins.items() if name in ("net.wide", "net.tall")) == [False, True]
    assert any("joins channels of different axes" in pin for pin in pins.values())


REFUSED: list[tuple[str, ops.Op, Callable[[Tensor], Tensor], str]] = [
    ("softmax", ops.Slicewise((0, 2, 3)), lambda x: torch.softmax(x, 1), "runs over the channels"),
    ("select", ops.Rearrange((1,)), lambda x: x[:, [0, 2, 1, 3, 4, 5, 7, 6]], "calls channels by their numbers"),
    ("flip", ops.Rearrange(), lambda x: x.flip(1).transpose(0, 0), ""),
]


@pytest.mark.parametrize(("name", "like", "run", "why"), REFUSED)
def test_likeness_says_what_passes(name: str, like: ops.Op, run: Callable[[Tensor], Tensor], why: str) -> None:
    net = Net()
    x = net.add(ops.Opaque(name, run, like, 1), net.conv(net.x, 8, name="a"), name="odd")
    graph = net.head(net.relu(x))
    if why:
        assert reason(graph, "net.a") == f"odd ({name}) {why}"
    else:
        assert prune(graph, ratio=0.5, round_to=1).plan.relative_error <= EXACT


def sized(net: Net, asks: Callable[[Tensor], object], source: NodeId) -> NodeId:
    """A number that the model computes from the shape of a value."""
    name = f"number_{len(net.nodes)}"
    net.nodes[name] = Node(name, ops.Opaque("size", asks, facts=ops.Facts.SIZE_QUERY), (source,), None)
    return name


def test_number_from_a_width_that_may_change_pins_it() -> None:
    net = Net()
    a = net.conv(net.x, 8, name="a")
    width = sized(net, lambda x: x.shape[1], a)
    known = TensorType("f32", (2, 8, *SIZE))
    scaled = Node("scaled", ops.Opaque("mul", lambda x, n: x * n, ops.Slicewise((0, 1, 2, 3)), 1), (a, width), known)
    net.nodes["scaled"] = scaled
    graph = net.head("scaled")
    assert reason(graph, "net.a") == "scaled (mul) is computed with the size of a"
    assert numbers_of(graph) == (width,)
    assert number_values(graph) == {width: 8}
    assert number_values(graph, {"a": (2, 8, 2**40, 2**40)})[width] != 8  # torch cannot count such elements
    assert stale_numbers(graph, {"a": (2, 5, *SIZE)}) == {width}
    assert list(asked(graph, width)) == ["a"]


def test_number_from_another_size_pins_nothing() -> None:
    net = Net()
    a = net.conv(net.x, 8, name="a")
    height = sized(net, lambda x: x.shape[2], a)
    known = TensorType("f32", (2, 8, *SIZE))
    net.nodes["scaled"] = Node(
        "scaled", ops.Opaque("mul", lambda x, n: x * n, ops.Slicewise((0, 1, 2, 3)), 1), (a, height), known
    )
    graph = net.head("scaled")
    assert families(graph)["net.a"].pin is None
    assert prune(graph, ratio=0.5, round_to=1).plan.relative_error <= EXACT
    assert stale_numbers(graph, {"a": (2, 5, *SIZE)}) == frozenset()


def test_weight_that_two_ops_read_along_different_axes_is_blanked_for_each() -> None:
    net = Net()
    weight = net.param(9, 12, 1, 1, role="weight")
    a = net.conv(net.x, 12, name="a")
    inner = net.relu(net.add(ops.Conv((1, 1), ((0, 0),) * 2, (1, 1)), a, weight, None, name="encoder"))
    outer = net.add(ops.ConvTranspose((1, 1), ((0, 0),) * 2, (0, 0), (1, 1)), inner, weight, None, name="decoder")
    result = prune(net.head(outer), ratio=0.4, round_to=1)
    assert result.plan.relative_error <= EXACT
    cut = [operand.shape for operand in result.graph["decoder"].inputs if isinstance(operand, Param)]
    assert cut == [(5, 7, 1, 1)]


def test_size_that_nothing_reads_changes_nothing() -> None:
    net = Net()
    a = net.conv(net.x, 8, name="a")
    sized(net, lambda x: x.shape, a)
    assert prune(net.head(net.relu(a)), ratio=0.5, round_to=1).plan.relative_error <= EXACT


def test_every_kind_has_a_coupling_rule() -> None:
    assert set(COUPLINGS) == set(ops.KINDS) - {ops.Opaque}
