"""What the source of a region gives is told by its type and by the ops that read it, and these must agree."""

import numpy as np
import pytest

from reparam_compiler.core.kernel import NotFusable
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Operand, Param, TensorType
from reparam_compiler.passes.fusion.abstract_values import NoRule, SourceLayout
from reparam_compiler.passes.fusion.regions import Region
from reparam_compiler.passes.fusion.source_layout import channels_second, source_layout

IMAGE = TensorType("f32", (2, 6, 9, 7))
TOKENS = TensorType("f32", (2, 5, 6))


def param(*shape: int) -> Param:
    return Param.of(np.zeros(shape), role="weight", dtype="f32")


def conv(source: str = "x", channels: int = 6, groups: int = 1) -> Node:
    weight = param(4 * groups, channels // groups, 3, 3)
    return Node("conv", ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1), groups), (source, weight, None))


def linear(source: str = "x", features: int = 6) -> Node:
    return Node("linear", ops.Linear(), (source, param(3, features), None), TensorType("f32", (2, 5, 3)))


def region(known: TensorType | None, *nodes: Node, fixed: bool = True) -> tuple[Graph, Region]:
    graph = Graph.of([Node("x", ops.Input(), (), known), *nodes], [nodes[-1].id], sizes_are_fixed=fixed)
    return graph, Region("x", nodes[-1].id, nodes)


def pool(*inputs: Operand, name: str = "pool") -> Node:
    return Node(name, ops.AvgPool((2, 2), (2, 2), ((0, 0), (0, 0))), inputs)


def test_a_type_tells_channels_axes_and_sizes() -> None:
    assert source_layout(*region(IMAGE, conv())) == SourceLayout(6, 2, False, 4, (9, 7))
    assert source_layout(*region(IMAGE, conv(), fixed=False)).sizes is None


@pytest.mark.parametrize(
    ("nodes", "channels"),
    [
        ((conv(channels=12, groups=3),), 12),
        ((Node("up", ops.ConvTranspose((2, 2), ((0, 0),) * 2, (0, 0), (1, 1), 2), ("x", param(10, 3, 2, 2), None)),), 10),
        ((pool("x"), conv("pool", 8)), 8),
        ((pool("x"), Node("halves", ops.Split(1, (2, 3)), ("pool",))), 5),
        ((pool("x"), Node("crop", ops.Slice(2, 0, 3), ("pool",)), conv("crop", 8)), 8),
    ],
)
def test_without_a_type_the_ops_that_read_it_tell(nodes: tuple[Node, ...], channels: int) -> None:
    assert source_layout(*region(None, *nodes)) == SourceLayout(channels, 2)


def test_channels_are_last_where_a_linear_layer_reads_them() -> None:
    assert source_layout(*region(TOKENS, linear())) == SourceLayout(6, 0, True, 3)


@pytest.mark.parametrize(
    ("known", "nodes", "refusal", "reason"),
    [
        (IMAGE, (conv(channels=8),), NotFusable, r"\[6, 8\] channels meet"),
        (TOKENS, (conv(),), NotFusable, r"axes \[1, 2\] meet"),
        (None, (Node("relu", ops.Identity(), ("x",)),), NotFusable, "x has an unknown number of axes"),
        (None, (pool("x"),), NotFusable, "x has an unknown number of channels"),
        (TOKENS, (linear(), Node("pool", ops.AvgPool((2,), (2,), ((0, 0),)), ("linear",))), NoRule, "second axis meet"),
        (None, (linear(), Node("pool", ops.AvgPool((2,), (2,), ((0, 0),)), ("linear",))), NoRule, r"axes \[0, 1\] meet"),
    ],
)
def test_what_does_not_agree_is_refused(
    known: TensorType | None, nodes: tuple[Node, ...], refusal: type[NotFusable], reason: str
) -> None:
    with pytest.raises(refusal, match=reason) as caught:
        source_layout(*region(known, *nodes))
    assert type(caught.value) is refusal


def test_a_region_that_is_probed_has_its_channels_second() -> None:
    assert channels_second(*region(TOKENS, linear())) == SourceLayout(5, 1)
    with pytest.raises(NotFusable, match="x has an unknown number of axes or channels"):
        channels_second(*region(None, Node("same", ops.Identity(), ("x",))))
