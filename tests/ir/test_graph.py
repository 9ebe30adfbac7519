"""Graphs are values: a rewrite makes a new one, and `diff` tells what changed."""

from dataclasses import replace

import numpy as np
import pytest

from reparam_compiler.errors import InvalidGraphError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param, TensorType, diff, with_inputs

RELU = ops.Elementwise("relu")


def param(*shape: int, role: str = "weight") -> Param:
    return Param.of(np.ones(shape), role=role, dtype="f32", origin="w")


def conv(node_id: str, source: str, weight: Param | None = None) -> Node:
    return Node(node_id, ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), (source, weight or param(2, 2, 1, 1), None))


def node(node_id: str, *sources: str, op: ops.Op = RELU) -> Node:
    return Node(node_id, op, sources)


def diamond() -> Graph:
    """x -> a -> (b, c) -> d, and `dead`, which nothing reads."""
    x, a = Node("x", ops.Input(), ()), conv("a", "x")
    return Graph.of(
        [x, a, node("b", "a"), conv("c", "a"), node("dead", "b"), node("d", "b", "c", op=ops.Add((1.0, 1.0)))], ["d"]
    )


def test_an_id_given_twice_is_an_error() -> None:
    with pytest.raises(InvalidGraphError, match="two nodes have the id a; ids must be unique"):
        Graph.of([node("a"), node("a")], ["a"])


def test_users_come_in_order_and_once() -> None:
    graph = Graph.of([node("x", op=ops.Input()), node("y", "x", "x", op=ops.Add((1.0, 1.0))), node("z", "x")], ["y", "z"])
    assert graph.users == {"x": ("y", "z"), "y": (), "z": ()}
    assert graph["y"].sources == ("x", "x")


def test_param_users_name_every_place_that_reads_a_parameter() -> None:
    shared = param(2, 2, 1, 1)
    graph = Graph.of([Node("x", ops.Input(), ()), conv("a", "x", shared), conv("b", "a", shared)], ["b"])
    assert graph.param_users == {shared: (("a", 1), ("b", 1))}


def test_a_rewrite_of_nothing_is_the_same_graph() -> None:
    graph = diamond()
    assert graph.rewrite({}) is graph


def test_a_rewrite_drops_what_it_leaves_unread_and_keeps_what_was_unread_before() -> None:
    graph = diamond()
    after = graph.rewrite({"d": replace(graph["d"], op=RELU, inputs=("a",), replaces=("c", "d"))})
    assert list(after.nodes) == ["x", "a", "b", "dead", "d"]
    assert list(graph.nodes) == ["x", "a", "b", "c", "dead", "d"]


def test_a_rewrite_drops_chains_but_never_inputs_nor_outputs() -> None:
    x, a, b, c = Node("x", ops.Input(), ()), node("a", "x"), node("b", "a"), node("c", "b")
    constant = Node("c", ops.Opaque("constant"), ())
    assert list(Graph.of([x, a, b, c], ["c"]).rewrite({"c": constant}).nodes) == ["x", "c"]
    assert list(Graph.of([x, a, b, c], ["a", "c"]).rewrite({"c": constant}).nodes) == ["x", "a", "c"]


def test_a_value_read_twice_by_what_goes_is_dropped_once() -> None:
    x = Node("x", ops.Input(), ())
    graph = Graph.of([x, node("a", "x"), node("b", "a", "a", op=ops.Add((1.0, 1.0))), node("c", "b")], ["c"])
    assert list(graph.rewrite({"c": node("c", "x")}).nodes) == ["x", "c"]


def test_a_diff_tells_changed_retyped_and_removed() -> None:
    graph = diamond()
    new = replace(graph["d"], op=RELU, inputs=("a",), replaces=("c", "d"))
    typed = replace(graph["b"], type=TensorType("f32", (1, 2)))
    found = diff(graph, graph.rewrite({"d": new, "b": typed}))
    assert (found.changed, found.retyped, found.removed) == ((new,), (typed,), ("c",))
    assert found


def test_the_diff_of_a_graph_with_itself_is_empty() -> None:
    graph = diamond()
    assert not diff(graph, graph)
    assert not diff(graph, Graph.of([replace(n) for n in graph], graph.outputs))


def test_a_new_parameter_changes_its_node() -> None:
    graph = diamond()
    after = graph.rewrite({"c": with_inputs(graph["c"], {1: param(2, 2, 1, 1)})})
    assert [n.id for n in diff(graph, after).changed] == ["c"]


def test_a_computed_input_is_no_parameter() -> None:
    bad = Node("c", ops.Linear(), ("x", "w"))
    with pytest.raises(InvalidGraphError, match=r"c \(linear\): its weight is computed by w, not a parameter"):
        bad.param("weight")
    assert bad.param("bias") is None


def test_a_parameter_is_loaded_when_it_is_asked_for() -> None:
    loads = []

    def load() -> np.ndarray:
        loads.append(1)
        return np.ones((2, 3), np.float16)

    lazy = Param("weight", "f16", (2, 3), load)
    assert lazy.count == 6
    assert not loads
    assert lazy.float64().dtype == np.float64
    assert loads == [1]


def test_a_static_shape_has_numbers_only() -> None:
    assert TensorType("f32", (1, 2)).static_shape == (1, 2)
    assert TensorType("f32", ("batch", 2)).static_shape is None
    assert TensorType("f32", (None, 2)).static_shape is None
