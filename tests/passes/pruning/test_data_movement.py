"""Ops that only move elements, run on labels: what stands in a slice is what was moved there. Held here and nowhere else: that
no chain of moves loses track of a channel, and what is frozen instead."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, NodeId
from reparam_compiler.passes.pruning.coupling.data_movement import _blocks
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from tests.support.pruning_nets import Net

CHANNELS = 12


def moved(net: Net, x: NodeId, random: np.random.Generator) -> NodeId:
    """One random move of what has a batch first."""
    known = net.nodes[x].type
    assert known is not None
    shape = [size for size in known.shape if isinstance(size, int)]
    rank, axis = len(shape), int(random.integers(1, len(shape)))
    size = shape[axis]
    moves: list[ops.Op] = [
        ops.Permute((0, *(1 + random.permutation(rank - 1)).tolist())),
        ops.Slice(axis, int(random.integers(0, size)), None),
        ops.Slice(axis, 0, None, int(random.integers(1, 4))),
        ops.Flatten(1, rank - 1),
        ops.Concat(axis),
        ops.Identity(),
        ops.Reshape((shape[0], *shape[:0:-1])),  # the sizes turned round: no transpose
    ]
    if rank > 2:
        moves.append(ops.Flatten(rank - 2, rank - 1))
    for part in (2, 3):
        if size % part == 0 and rank < 6:
            moves += [ops.Reshape((*shape[:axis], part, size // part, *shape[axis + 1 :]))]
            moves += [ops.ChannelShuffle(part)] if axis == 1 and rank > 2 else []
    op = moves[int(random.integers(len(moves)))]
    return net.add(op, x, x) if isinstance(op, ops.Concat) else net.add(op, x)


def origins(graph: Graph, x: NodeId, start: NodeId) -> Tensor:
    """For each element of a value which channel of the conv it came from: the moves run on the numbers of the channels."""
    after = graph.position[start]
    nodes = [node for node in graph if graph.position[node.id] > after and not isinstance(node.op, ops.Conv)]
    known = graph[start].type
    assert known is not None
    numbers = torch.arange(CHANNELS, dtype=torch.float64).reshape(1, -1, 1, 1).expand([int(size) for size in known.shape])
    source = graph[start]
    part = Graph.of([type(source)(start, ops.Input(), (), source.type), *nodes], [x])
    return evaluate(part, {start: numbers})[x].long()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**20), steps=st.integers(1, 5))
def test_a_slice_that_can_leave_holds_nothing_but_channels_that_leave_with_it(seed: int, steps: int) -> None:
    random, net = np.random.default_rng(seed), Net(size=(2, 3), seed=seed)
    x = start = net.conv(net.x, CHANNELS, name="a")
    for _ in range(steps):
        x = moved(net, x, random)
    graph = net.graph(x)
    groups, found = channel_groups(graph), origins(graph, x, start)
    number = groups.number[groups.value(start).labels]
    value = groups.value(x)
    if value.axis is None:  # nothing can be cut here: then no channel that got here may leave, but with all of it
        pinned = {int(group) for family in groups.families if family.pin for group in family.groups}
        assert pinned.issuperset(number[found.unique().numpy()].tolist())
        return
    slices = found.movedim(value.axis, 0).flatten(1)
    for label, channels in zip(value.labels.tolist(), slices, strict=True):
        assert {int(groups.number[label])} == set(number[channels.numpy()].tolist())


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_blocks_of_a_reshape_hold_as_many_elements_before_as_after(sizes: list[int], seed: int) -> None:
    left, after = int(np.prod(sizes)), []
    random = np.random.default_rng(seed)
    while left > 1:
        divisors = [n for n in range(1, left + 1) if left % n == 0]
        after.append(int(random.choice(divisors)))
        left //= after[-1]
    found = _blocks(sizes, after)
    assert sorted(axis for block, _ in found for axis in block) == list(range(len(sizes)))
    assert sorted(axis for _, block in found for axis in block) == list(range(len(after)))
    for old, new in found:
        assert np.prod([sizes[axis] for axis in old]) == np.prod([after[axis] for axis in new])


def reason(graph: Graph) -> str:
    pins = [family.pin for family in channel_groups(graph).families if "a" in family.producers and family.pin]
    return pins[-1].reason


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (ops.Slice(1, -4, None), "runs backwards"),
        (ops.Slice(1, 0, -2), "runs backwards"),
        (ops.Rearrange((1,)), "calls channels by their numbers"),
        (ops.Slice(1, 3, 4), "leaves one channel, or moves channels to the batch"),
    ],
)
def test_what_cannot_be_followed_is_frozen_with_the_reason(op: ops.Op, why: str) -> None:
    net = Net()
    x = net.relu(net.conv(net.x, CHANNELS, name="a"))
    if isinstance(op, ops.Rearrange):
        model = ops.Opaque("flip", lambda v: v.flip(1), coupling=op, reads=1)
        graph = net.graph(net.conv(net.add(model, x), 4))
    else:
        graph = net.graph(net.add(op, x))
    assert why in reason(graph)


def test_a_step_over_channels_ties_each_stretch_so_that_the_step_still_fits() -> None:
    net = Net()
    graph = net.head(net.add(ops.Slice(1, 0, None, 3), net.conv(net.x, CHANNELS, name="a")))
    (family,) = channel_groups(graph).free
    assert (family.width, len(family.groups)) == (CHANNELS, 4)
