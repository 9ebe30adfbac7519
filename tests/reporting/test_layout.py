"""Where nodes stand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.reporting.layout import separated, side_by_side
from reparam_compiler.reporting.page import GraphView
from tests.support.pages import fused_page, graphs, pruned_page, refused_page

pytest.importorskip("igraph")


@given(graphs())
def test_edges_go_down_and_nodes_of_a_row_stand_apart(graph: GraphView) -> None:
    (layout,) = side_by_side(graph, None, ())
    assert len(layout.edges) == sum(len(node.sources) for node in graph.nodes)
    for edge in layout.edges:
        rows = [layout.rows[edge.source], *(row for _, row in edge.bends), layout.rows[edge.target]]
        assert all(above < below for above, below in pairwise(rows))
    by_row: dict[int, list[float]] = {}
    for column, row in zip(layout.columns, layout.rows, strict=True):
        by_row.setdefault(row, []).append(column)
    for columns in by_row.values():
        assert all(right - left >= 0.98 for left, right in pairwise(sorted(columns)))


@pytest.mark.parametrize("page", [fused_page, refused_page, pruned_page])
def test_what_stayed_stands_beside_itself_and_a_fused_op_beside_its_region(page: object) -> None:
    found = page()  # type: ignore[operator]
    before, after = side_by_side(found.before, found.after, found.regions)
    old = {node.id: row for node, row in zip(found.before.nodes, before.rows, strict=True)}
    fused = {region.node: [old[name] for name in region.nodes] for region in found.regions}
    for node, row in zip(found.after.nodes, after.rows, strict=True):
        assert min(fused.get(node.id, [old[node.id]])) <= row <= max(fused.get(node.id, [old[node.id]]))


@given(st.lists(st.floats(-100, 100), max_size=12).map(sorted))
def test_numbers_are_moved_apart_and_no_farther_than_need_be(columns: list[float]) -> None:
    found = separated(columns)
    assert all(right - left >= 1 - 1e-9 for left, right in pairwise(found))
    assert sum(found) == pytest.approx(sum(columns), abs=1e-6)
    if all(right - left >= 1 for left, right in pairwise(columns)):
        assert found == pytest.approx(columns)
