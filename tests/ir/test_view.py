"""networkx views: order, dominators, what lies between."""

import pytest

from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import ENTRY, between, dataflow, immediate_dominators, read_for
from reparam_compiler.ir.graph import Graph, Node


def graph(edges: dict[str, str], outputs: str) -> Graph:
    """`{"d": "bc"}`: d reads b and c."""
    return Graph.of(
        [Node(name, ops.Opaque("op") if reads else ops.Input(), tuple(reads)) for name, reads in edges.items()], tuple(outputs)
    )


DIAMOND = graph({"x": "", "a": "x", "b": "a", "c": "a", "d": "bc", "e": "d"}, "e")


def test_the_order_is_that_of_the_graph() -> None:
    assert list(dataflow(DIAMOND)) == list("xabcde")
    assert list(dataflow(graph({"x": "", "b": "x", "a": "x"}, "ab"))) == list("xba")


def test_edges_go_from_values_to_their_readers() -> None:
    assert set(dataflow(DIAMOND).edges) == {("x", "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")}


def test_a_merge_is_dominated_by_where_its_branches_part() -> None:
    assert immediate_dominators(DIAMOND) == {"x": ENTRY, "a": "x", "b": "a", "c": "a", "d": "a", "e": "d"}


@pytest.mark.parametrize(("wanted", "expected"), [("e", "abcdex"), ("b", "abx"), ("bc", "abcx"), ("x", "x"), ("", "")])
def test_a_value_is_computed_from_what_leads_to_it(wanted: str, expected: str) -> None:
    assert sorted(read_for(DIAMOND, wanted)) == list(expected)


def test_what_two_inputs_reach_has_no_dominator() -> None:
    two = graph({"x": "", "y": "", "z": "xy"}, "z")
    assert immediate_dominators(two) == {"x": ENTRY, "y": ENTRY, "z": ENTRY}


def test_values_without_sources_hang_on_the_entry() -> None:
    constant = Graph.of([Node("k", ops.Opaque("ones"), ()), Node("r", ops.Elementwise("relu"), ("k",))], ("r",))
    assert immediate_dominators(constant) == {"k": ENTRY, "r": "k"}


def test_a_graph_without_nodes_has_no_dominators() -> None:
    assert immediate_dominators(Graph.of((), ())) == {}


@pytest.mark.parametrize(("source", "sink", "found"), [("a", "d", "bcd"), ("x", "d", "abcd"), ("d", "e", "e"), ("d", "d", "")])
def test_between_holds_the_sink_and_not_the_source(source: str, sink: str, found: str) -> None:
    assert between(DIAMOND, source, sink) == list(found)
