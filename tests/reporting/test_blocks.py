"""Which nodes are shown as one."""

from collections import Counter

from hypothesis import given

from reparam_compiler.reporting.blocks import FEWEST, SHOWN, grouped
from reparam_compiler.reporting.page import GraphView
from tests.support.pages import graphs, node


@given(graphs())
def test_groups_are_nested_and_know_how_many_nodes_they_have(graph: GraphView) -> None:
    grouping = grouped(graph)
    counts = Counter(name for chain in grouping.chains.values() for name in chain)
    parents = {group.name: group.parent for group in grouping.groups}
    assert {group.name: group.count for group in grouping.groups} == counts
    for chain in grouping.chains.values():
        assert [parents[name] for name in chain] == ["", *chain][: len(chain)]
    assert all(count >= FEWEST for count in counts.values())


@given(graphs())
def test_an_open_group_stands_in_open_ones(graph: GraphView) -> None:
    grouping = grouped(graph)
    parents = {group.name: group.parent for group in grouping.groups}
    assert all(parents[name] in ("", *grouping.opened) for name in grouping.opened)


def chain_of(blocks: int) -> GraphView:
    """A chain of convs and activations whose nodes have lost their names."""
    nodes = [node("x", op="input")]
    for _ in range(blocks):
        nodes.append(node(f"v{len(nodes)}", nodes[-1].id, op="conv", weight=(8, 8, 3, 3)))
        nodes.append(node(f"v{len(nodes)}", nodes[-1].id))
    return GraphView(tuple(nodes), (nodes[-1].id,))


def test_equal_blocks_in_a_row_are_one_where_nodes_have_no_modules() -> None:
    grouping = grouped(chain_of(1000))
    assert [(group.name, group.count) for group in grouping.groups] == [("blocks 2 to 1001", 2000)]
    assert grouping.opened == ()


def test_what_fits_on_a_page_begins_open() -> None:
    grouping = grouped(chain_of(20))
    assert set(grouping.opened) == {group.name for group in grouping.groups}


def test_a_large_model_begins_with_a_page_full_of_blocks() -> None:
    nodes = [node("x", op="input")]
    for stage in range(10):
        for block in range(20):
            for _ in range(10):
                nodes.append(node(f"v{len(nodes)}", nodes[-1].id, path=f"stages.{stage}.{block}"))
    grouping = grouped(GraphView(tuple(nodes), (nodes[-1].id,)))
    assert set(grouping.opened) == {"stages", *(f"stages.{stage}" for stage in range(10))}
    assert len({chain[2] for chain in grouping.chains.values() if len(chain) > 2}) + 1 <= SHOWN


def test_a_block_begins_where_one_value_is_alive() -> None:
    nodes = [node("x", op="input")]
    for block in range(300):
        last = nodes[-1].id
        nodes.append(node(f"c{block}", last, op="conv", weight=(8, 8, 3, 3)))
        nodes.append(node(f"d{block}", f"c{block}", op="conv", weight=(8, 8, 1, 1)))
        nodes.append(node(f"a{block}", f"d{block}", last, op="add"))
    chains = grouped(GraphView(tuple(nodes), (nodes[-1].id,))).chains
    assert chains["c7"] == chains["d7"] == chains["a7"] != chains["c8"]
