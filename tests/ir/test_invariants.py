"""A graph that breaks an invariant is an error that names the node, what was found and what was expected."""

import numpy as np
import pytest
import torch

from reparam_compiler.errors import InvalidGraphError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.ir.verifier import check
from tests.support.branch_blocks import BLOCKS, block

X = Node("x", ops.Input(), ())
RELU = ops.Elementwise("relu")


def param(*shape: int) -> Param:
    return Param.of(np.ones(shape), role="weight", dtype="f32")


def conv(weight: Param, bias: Param | None = None, groups: int = 1, stride: tuple[int, ...] = (1, 1)) -> Node:
    return Node("c", ops.Conv(stride, ((0, 0), (0, 0)), (1, 1), groups), ("x", weight, bias))


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ([Node("a", RELU, ("x",)), X], ["a"], "a reads x, which does not come before it in the graph"),
        ([X, Node("a", RELU, ("y",))], ["a"], "a reads y"),
        ([X], ["y"], "the output y is not a node of the graph"),
        ([X, conv(param(4, 4, 3, 3), stride=(1,))], ["c"], r"c: a conv of 1 strides has padding"),
        ([X, conv(param(4, 4, 3))], ["c"], r"weight \(4, 4, 3\)"),
        ([X, conv(param(4, 2, 3, 3), groups=3)], ["c"], "c: 4 output channels do not divide into 3 groups"),
        ([X, conv(param(4, 4, 3, 3), param(3))], ["c"], r"c: its bias has shape \(3,\), expected \(4,\)"),
        ([X, Node("l", ops.Linear(), ("x", param(5, 4), param(4)))], ["l"], r"l: its bias has shape \(4,\), expected \(5,\)"),
        (
            [X, Node("b", ops.BatchNorm(), ("x", param(3), None, param(4), param(4)))],
            ["b"],
            r"b: its weight has shape \(3,\), expected \(4,\)",
        ),
        ([X, Node("s", ops.Add((1.0,)), ("x", "x"))], ["s"], "s: 2 operands, but 1 coefficients"),
    ],
)
def test_a_breach_is_named(nodes: list[Node], outputs: list[str], message: str) -> None:
    with pytest.raises(InvalidGraphError, match=message):
        check(Graph.of(nodes, outputs))


def test_a_node_under_another_id_is_named() -> None:
    with pytest.raises(InvalidGraphError, match="y: the node under this id calls itself x"):
        check(Graph({"y": X}, ("y",)))


@pytest.mark.parametrize("name", BLOCKS)
def test_graphs_as_they_are_read_hold(name: str) -> None:
    model, x = block(name)
    check(FxFrontend().read(torch.fx.symbolic_trace(model), (x,)).graph)
