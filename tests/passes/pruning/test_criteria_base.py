"""Where filters and readers stand, in every kind of conv."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.passes.pruning.coupling.groups import Family, channel_groups
from reparam_compiler.passes.pruning.coupling.labels import reads_channels
from reparam_compiler.passes.pruning.criteria.base import Reader, Scoring, family_filters, places_of, readers, stands
from tests.support.pruning_nets import Net


def transposed(groups: int, into: int, out: int, seed: int = 0) -> Node:
    weight = np.random.default_rng(seed).standard_normal((into, out // groups, 3, 3))
    op = ops.ConvTranspose((2, 2), ((0, 0),) * 2, (0, 0), (1, 1), groups)
    return Node("up", op, ("x", Param.of(weight, role="weight", dtype="f64"), None))


@given(blocks=st.integers(1, 3), into=st.integers(1, 3), out=st.integers(1, 3), seed=st.integers(0, 99), up=st.booleans())
def test_slices_say_what_each_channel_adds_to_the_output(blocks: int, into: int, out: int, seed: int, up: bool) -> None:
    """With one position of input, of the size of the kernel or of one pixel, the output is the sum over all slices."""
    if up:
        node = transposed(blocks, blocks * into, blocks * out, seed)
    else:
        weight = np.random.default_rng(seed).standard_normal((blocks * out, into, 3, 3))
        op = ops.Conv((1, 1), ((0, 0),) * 2, (1, 1), blocks)
        node = Node("conv", op, ("x", Param.of(weight, role="weight", dtype="f64"), None))
    size = 1 if up else 3
    x = torch.randn(1, blocks * into, size, size, dtype=torch.float64)
    expected = evaluate_node(node, {"x": x}).reshape(-1).numpy()
    numbers = np.arange(blocks * into)
    slices = Reader(node, node.params[0], "x", 1, numbers).slices()  # B O C K
    found = np.einsum("bock,bck->bo", slices, x.reshape(blocks, into, -1).numpy()).ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_transposed_conv_makes_channels_along_axis_one_and_reads_along_zero() -> None:
    node = transposed(1, 4, 6)
    assert [stands(node, 1, axis, (0, 1)) for axis in (0, 1)] == ["read", "filters"]
    assert stands(node, 2, 0, (0,)) == "made"
    assert reads_channels(node, (0, 1))


def test_depthwise_conv_reads_nothing_of_its_own() -> None:
    node = transposed(4, 4, 4)
    assert stands(node, 1, 0, (0,)) == "filters"
    assert not reads_channels(node, (0,))
    net = Net()
    net.conv(net.conv(net.x, 4, name="a"), 4, groups=4, name="dw")
    assert stands(net.nodes["dw"], 1, 0, (0,)) == "filters"
    assert not reads_channels(net.nodes["dw"], (0,))


def test_readers_are_the_convs_and_linears_that_mix_what_can_go() -> None:
    net = Net()
    graph = net.head(net.conv(net.conv(net.conv(net.x, 8, name="a"), 8, groups=8, name="dw"), 8, groups=2, name="b"))
    found = readers(graph, channel_groups(graph))
    assert [(reader.node.id, reader.source, reader.axis, len(reader.numbers)) for reader in found] == [
        ("b", "dw", 1, 8),
        ("head", found[1].source, -1, 8),
    ]


@given(size=st.integers(1, 6), positions=st.integers(1, 3), seed=st.integers(0, 99))
def test_places_follow_the_order_of_the_family(size: int, positions: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    family = Family("f", random.permutation(np.arange(1, size + 1)), positions, (), ())
    numbers = random.permutation(np.concatenate([np.repeat(family.groups, positions), np.full(2, 99)]))
    places = places_of(family, numbers)
    assert places.shape == (size, positions)
    assert (numbers[places] == family.groups[:, None]).all()
    assert (np.diff(places, axis=1) > 0).all()


def test_rows_of_a_family_hold_all_that_its_groups_are_made_by() -> None:
    net = Net()
    graph = net.head(net.sum(net.conv(net.x, 6, name="a"), net.conv(net.x, 6, 1, name="b")))
    groups = channel_groups(graph)
    ((family, rows),) = family_filters(Scoring(graph, groups))
    assert family is groups.free[0]
    assert rows.shape == (6, 3 * 9 + 3)
    np.testing.assert_array_equal(rows[2, :27], graph["a"].params[0].float64()[2].ravel())
