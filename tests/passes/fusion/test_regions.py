"""Where a region ends, and what its interpretation refuses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.core import affine
from reparam_compiler.core.kernel import ConvKernel, NotFusable
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, TensorType
from reparam_compiler.passes.fusion import linear_rules as rules
from reparam_compiler.passes.fusion import registry
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.interpretation import interpret
from reparam_compiler.passes.fusion.pipeline import run as run_pipeline
from reparam_compiler.passes.fusion.regions import Blocked, Region, Regions
from tests.support.small_models import EXACT, Kind, Pieces, fuse_in_float64, normal

Wiring = Callable[[Pieces, Tensor], Tensor]


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    return FxFrontend().read(fx.symbolic_trace(model.eval()), inputs or None).graph


def found(graph: Graph, sink: str) -> tuple[list[tuple[str, int]], str]:
    """The regions of a sink as (source, number of nodes), and why there is no larger one."""
    *regions, blocked = Regions(graph).ending_at(sink)
    assert all(isinstance(region, Region) for region in regions)
    assert isinstance(blocked, Blocked)
    return [(region.source, len(region.nodes)) for region in regions], blocked.reason


def test_regions_grow_up_the_dominators_until_an_op_that_is_not_linear() -> None:
    graph = graph_of(Pieces(lambda m, x: m.norm(m.wide(torch.relu(x)) + m.point(torch.relu(x)))))
    assert found(graph, "norm") == ([("add", 1)], "relu (relu) is not linear")
    graph = graph_of(Pieces(lambda m, x: m.norm((lambda y: m.wide(y) + m.point(y))(torch.relu(x)))))
    assert found(graph, "norm") == ([("add", 1), ("relu", 4)], "relu (relu) is not linear")


def test_a_value_that_is_also_read_outside_ends_the_region() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        y = m.wide(x)
        return m.norm(y + m.point(x)) * torch.sigmoid(y)

    assert found(graph_of(Pieces(forward)), "norm") == ([("add", 1)], "wide is also read by sigmoid")


def test_a_value_that_the_model_returns_ends_the_region() -> None:
    def forward(m: Pieces, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.wide(x)
        return m.norm(y), y

    assert found(graph_of(Pieces(forward)), "norm") == ([("wide", 1)], "wide is an output of the model")


def test_two_inputs_are_no_source() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    assert found(graph_of(Two()), "add") == ([], "add reads no single value")


def test_the_interpretation_carries_a_kernel_to_each_node() -> None:
    graph = graph_of(Pieces(lambda m, x: m.wide(x) + m.point(x)))
    (region, _) = Regions(graph).ending_at("add")
    assert isinstance(region, Region)
    understood = interpret(graph, region)
    assert {node_id: kernel.size for node_id, kernel in understood.kernels.items()} == {
        "wide": (3, 3),
        "point": (1, 1),
        "add": (3, 3),
    }
    assert understood.kernel.size == (3, 3)


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize(
    ("wiring", "reason"),
    [
        (lambda m, x: m.wide(x) + torch.relu(m.point(x)), "relu (relu) is not linear"),
        (lambda m, x: m.wide(x) + m.point(x) * m.norm(x), "the product of two computed values is not linear at mul"),
        (lambda m, x: m.wide(m.wide(x)) + m.point(x), "pads axis 0 of what an op 3x3 wide gave"),
        (lambda m, x: m.wide(m.point(x)) + m.point(x), "pads over an inner bias with another value than that bias"),
        (lambda m, x: torch.cat([m.wide(x), m.point(x)], 0), "a concat of other things than channels at cat"),
        (lambda m, x: m.wide(x) + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "divides by less at the border"),
        (lambda m, x: F.avg_pool2d(m.wide(x), 5, 2, ceil_mode=True) + m.point(x)[:, :, :2, :2], "ceil_mode"),
        (lambda m, x: m.wide(x) + m.point(x).transpose(2, 3), "permute has no rule at transpose; probed: its response"),
        (lambda m, x: m.wide(x) + m.point(x).flip(2), "flip has no rule at flip; probed: its response does not move"),
        (lambda m, x: m.wide(x) + m.point(x)[:1], "a slice of the batch"),
        (
            lambda m, x: m.wide(x) + m.point(x).mean(3, keepdim=True),
            "mean over other axes than that of a stack at mean; probed",
        ),
    ],
)
def test_what_is_not_linear_or_not_exact_is_refused_with_its_reason(wiring: Wiring, reason: str, kind: Kind) -> None:
    x = normal(2, 4, 6, 6)
    fused = fuse_in_float64(Pieces(wiring), x, kind=kind, shapes=kind == "fx")
    assert fused.error < EXACT
    assert not fused.report.fusions
    assert reason in " | ".join(fused.reasons)


def test_a_linear_whose_weight_is_computed_is_not_a_linear_op() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values, self.weights = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.values(x), self.weights(x))

    fused = fuse_in_float64(Dynamic(), normal(4, 4), shapes=True)
    assert fused.error < EXACT
    assert not fused.report.fusions


def test_a_sum_that_no_frontend_could_read_is_not_linear() -> None:
    fused = fuse_in_float64(Pieces(lambda m, x: m.norm(m.wide(x)) + 1 + True), normal(1, 4, 6, 5))
    assert fused.error < EXACT
    assert [f.nodes for f in fused.report.fusions] == [("wide", "norm", "add")]


def test_a_constant_of_a_wider_dtype_is_not_folded_into_a_narrower_conv() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Conv2d(3, 4, 3).half(), nn.Conv2d(4, 4, 1)
            self.factor = nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(self.narrow(x) * self.factor)

    model, x = Mixed().eval(), torch.randn(1, 3, 5, 6).half()
    graph = graph_of(model, x)
    assert not run_pipeline(graph).fusions


@pytest.mark.parametrize("kind", ["fx", "export"])
def test_a_size_that_is_also_read_elsewhere_does_not_end_a_region(kind: Kind) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        y = torch.relu(x)
        rows = y.size(0)
        nothing = y.new_zeros(rows, 4, 1, 1)
        return torch.relu(m.wide(y) + m.point(y) + nothing).view(rows, -1)

    fused = fuse_in_float64(Pieces(forward), normal(2, 4, 6, 6), kind=kind, shapes=kind == "fx")
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1
    assert not fused.report.refusals


class TestRules:
    """Registering rules."""

    def test_a_second_rule_needs_override(self) -> None:
        with pytest.raises(ValueError, match="conv has a rule already; pass override=True"):
            registry.register_linear("conv")(lambda node, reads: affine.identity(reads.channels, reads.rank))

    def test_a_new_rule_makes_an_op_linear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, x = Pieces(lambda m, x: torch.relu(m.wide(x) + torch.positive(m.point(x)))), normal(1, 4, 6, 5)
        assert fuse_in_float64(model, x).reasons == ["positive (positive) is not linear"]
        monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
        registry.register_linear("positive")(lambda node, reads: affine.identity(reads.channels, reads.rank))
        after = fuse_in_float64(model, x)
        assert after.error < EXACT
        assert len(after.report.fusions) == 1

    def test_a_rule_for_one_value_refuses_an_op_that_reads_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
        registry.register_linear("maximum")(lambda node, reads: affine.identity(reads.channels, reads.rank))
        fused = fuse_in_float64(Pieces(lambda m, x: m.point(torch.maximum(m.wide(x), m.norm(x))) + x), normal(1, 4, 6, 5))
        assert fused.error < EXACT
        assert fused.reasons[0] == "maximum of 2 computed values at maximum"

    def test_a_wrong_rule_is_caught_by_the_proof_and_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(node: Node, reads: SourceLayout) -> ConvKernel:
            right = rules.batch_norm(node, reads)
            return affine.diagonal(right.weight.reshape(-1) * 1.0001, right.bias, reads.rank)

        monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
        registry.register_linear("batch_norm", override=True)(wrong)
        model = Pieces(lambda m, x: torch.relu(m.wide(x) + m.norm(x)) + torch.relu(m.wide(x) + m.point(x)))
        fused = fuse_in_float64(model, normal(1, 4, 6, 5))
        assert fused.error < EXACT
        assert len(fused.report.fusions) == 1
        assert fused.reasons[0].startswith("the proof failed: both forms differ by")

    def test_a_refusal_names_its_node_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuses(node: Node, reads: SourceLayout) -> ConvKernel:
            raise NotFusable(f"{node.id}: never")

        monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
        registry.register_linear("batch_norm", override=True)(refuses)
        fused = fuse_in_float64(Pieces(lambda m, x: torch.relu(m.wide(x) + m.norm(x))), normal(1, 4, 6, 5))
        assert fused.reasons[0] == "norm: never"


def test_more_channels_than_can_be_counted_are_refused() -> None:
    known = TensorType("f32", (1, 2**40, 4, 4))
    node = Node("y", ops.Add((1.0, 1.0)), ("x", "x"), known)
    graph = Graph.of([Node("x", ops.Input(), (), known), node], ["y"])
    with pytest.raises(NotFusable, match=f"x has {2**40} channels, which are too many to be followed"):
        interpret(graph, Region("x", "y", (node,)))
