"""Which of nested and overlapping regions are rewritten: what `passes/fusion/planner.py` decides."""

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.cost.model import USUAL, CostModel
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir.graph import Graph, Node
from reparam_compiler.passes.choices import Policy
from reparam_compiler.passes.fusion.fold_bn import fold_bn
from reparam_compiler.passes.fusion.fuse_branches import Options, PassResult, fuse_branches
from reparam_compiler.passes.fusion.planner import Planner, _reached
from reparam_compiler.passes.fusion.regions import Region, Regions
from tests.support.small_models import EXACT, Pieces, fuse_in_float64, normal

ARITHMETIC = CostModel(muls_per_second=1.0, bytes_per_second=1e30, launch_seconds=0.0)
"""A machine on which nothing but multiplications takes time."""
LAUNCHES = CostModel(muls_per_second=1e30, bytes_per_second=1e30, launch_seconds=1.0)


class Seen(tuple[Node, ...]):
    """Nodes that count how many of them are looked at; a slice is looked at whole."""

    __slots__ = ()
    count = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Seen.count += len(found) if isinstance(key, slice) else 1
        return found

    def __iter__(self) -> Iterator[Node]:
        Seen.count += len(self)
        return super().__iter__()


def test_a_region_of_a_long_chain_is_found_without_a_look_at_the_rest() -> None:
    """Each two values of a chain bound a region: a look at the whole chain for each of them takes its length to the third."""
    length = 200
    graph = graph_of(nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(length))), torch.zeros(1, 1, 2, 2))
    source, *convs = graph
    zone = Region(source.id, convs[-1].id, tuple(convs))
    planner = Planner(
        graph, Regions(graph), wants=lambda _: False, build=lambda _: pytest.fail("built"), policy="always", cost_model=USUAL
    )
    after = Seen(_reached(zone, convs[99].id))
    assert [*after] == convs[100:]
    Seen.count = 0
    found = planner._between(zone, convs[99].id, convs[101].id, after)
    assert [node.id for node in found.nodes] == [convs[100].id, convs[101].id]
    assert Seen.count < 2 + 4 * length.bit_length()


class Two(nn.Module):
    """A dense 3x3 and a dilated one, wespeaker's RSBB: one conv is a dense 5x5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1)
        self.far = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.near(x) + self.far(x))


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    return FxFrontend().read(fx.symbolic_trace(model.eval()), inputs or None).graph


def fused(model: nn.Module, cost_model: CostModel = USUAL, policy: str = "cost", *inputs: Tensor) -> PassResult:
    return fuse_branches(graph_of(model, *inputs), Options(policy=policy, cost_model=cost_model))  # type: ignore[arg-type]


def test_a_fusion_that_would_be_slower_is_refused_and_says_what_both_cost() -> None:
    x = torch.zeros(1, 64, 32, 32)
    (refusal,) = fused(Two(64), USUAL, "cost", x).refusals
    assert refusal.reason == (
        "one conv would be slower: 1.049e+08 multiply-adds and 9.341e+05 bytes instead of 7.55e+07 and 2.13e+06 in 3 ops; "
        "policy='always' fuses it all the same"
    )


def test_sizes_that_are_not_known_count_as_nominal_ones() -> None:
    (nominal,), (stated,) = fused(Two(64)).refusals, fused(Two(64), USUAL, "cost", torch.zeros(1, 64, 28, 28)).refusals
    assert nominal.reason == stated.reason
    assert "multiply-adds" in nominal.reason


def test_policy_always_fuses_what_is_exact() -> None:
    (fusion,) = fused(Two(64), policy="always").fusions
    assert fusion.weight == (64, 64, 5, 5)
    model, x = Two(4).double(), normal(1, 4, 7, 9)
    both = reparam_compiler.fuse(model, (x,), policy="always")
    assert (both(x) - model(x)).abs().max() < EXACT


def test_the_machine_decides() -> None:
    assert fused(Two(64), LAUNCHES).fusions
    assert not fused(Two(64), ARITHMETIC).fusions


class Ghost(nn.Module):
    """The value itself beside a depthwise conv of it: one dense conv, were Winograd at hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cheap = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return torch.relu(torch.cat([y, self.cheap(y)], 1))


def test_a_dense_conv_that_pays_by_winograd_alone_is_refused() -> None:
    x = torch.zeros(1, 8, 112, 112)
    (refusal,) = fused(Ghost(8), USUAL, "cost", x).refusals
    assert refusal.reason.startswith("one conv would be slower: 1.445e+07 multiply-adds and ")
    assert fused(Ghost(8), policy="always").fusions


def test_what_surrounds_a_block_that_cannot_grow_is_fused_by_itself() -> None:
    model = Pieces(lambda m, x: torch.relu(m.wide(m.wide(x) + m.point(x)) + m.norm(x)))
    found = fuse_in_float64(model, normal(1, 4, 6, 5))
    assert [f.nodes for f in found.report.fusions] == [("wide", "point", "add")]
    assert found.error < EXACT


def test_branches_of_a_block_that_is_refused_are_fused_inside() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu((m.wide(x) + m.point(x)) + torch.sigmoid(m.wide(x) + m.norm(x)))

    found = fuse_in_float64(Pieces(forward), normal(1, 4, 6, 5))
    assert len(found.report.fusions) == 2
    assert found.reasons == ["sigmoid (sigmoid) is not linear"]


def test_a_norm_goes_into_the_conv_before_it_where_the_one_after_it_pads() -> None:
    found = fuse_in_float64(Pieces(lambda m, x: m.wide(m.norm(m.point(x)))), normal(1, 4, 6, 5))
    assert [f.nodes for f in found.report.fusions] == [("point", "norm")]
    assert not found.report.refusals


@settings(max_examples=settings.default.max_examples // 3)
@given(widths=st.lists(st.sampled_from([1, 2, 3, 5, 8, 13]), min_size=3, max_size=6))
def test_a_chain_of_convs_is_cut_where_that_is_cheapest(widths: list[int]) -> None:
    """Against all ways to cut it, where the matrix chain costs its multiplications."""
    model = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in pairwise(widths)))
    found = fused(model, ARITHMETIC)
    convs = [node for node in found.graph if node.op.name == "conv"]
    cost = sum(conv.params[0].shape[0] * conv.params[0].shape[1] for conv in convs)
    inner = range(1, len(widths) - 1)
    cuts = [(0, *cut, len(widths) - 1) for n in range(len(widths) - 1) for cut in combinations(inner, n)]
    best = min(sum(widths[a] * widths[b] for a, b in pairwise(cut)) for cut in cuts)
    assert cost <= best * 1.02  # what is as dear but for two percent is taken whole


def test_keep_bn_leaves_a_norm_that_ends_a_block_and_folds_the_others() -> None:
    model = Pieces(lambda m, x: torch.relu(m.norm(m.wide(x) + m.norm(m.point(x)))))
    x = normal(1, 4, 6, 5)
    graph_module = fx.symbolic_trace(model.double())
    kept, report = reparam_compiler.fuse(graph_module, (x,), keep_bn=True, return_report=True)
    assert [f.node for f in report.fusions] == ["add"]
    assert [node.op for node in kept.graph.nodes].count("call_module") == 2
    assert (kept(x) - graph_module(x)).abs().max() < EXACT
    assert len(reparam_compiler.fuse(graph_module, (x,), return_report=True)[1].fusions[0].nodes) == 5


def _last(m: Pieces, x: Tensor) -> Tensor:
    return m.norm(m.wide(x) + m.point(x))


TAILS: dict[str, Callable[[Pieces, Tensor], Tensor]] = {
    "scaled": lambda m, x: _last(m, x) * 2.0,
    "scaled for each channel": lambda m, x: _last(m, x) * m.wide.bias.view(1, -1, 1, 1),
    "shifted": lambda m, x: _last(m, x) + 1.0,
    "padded": lambda m, x: nn.functional.pad(_last(m, x), (1, 1, 0, 0)),
    "twice": lambda m, x: m.norm(_last(m, x)),
    "after a lone conv": lambda m, x: m.norm(m.wide(x)) * 2.0,
}


@pytest.mark.parametrize("policy", ["cost", "always"])
@pytest.mark.parametrize("tail", TAILS)
def test_keep_bn_leaves_a_norm_after_the_last_kernel_or_merge_whatever_follows_it(tail: str, policy: Policy) -> None:
    module, x = fx.symbolic_trace(Pieces(TAILS[tail]).double()), normal(1, 4, 6, 5)
    norms = count_norms(module)
    kept = reparam_compiler.fuse(module, (x,), keep_bn=True, policy=policy)
    assert count_norms(kept) == norms
    assert sum(node.target == "point" for node in kept.graph.nodes) == 0
    assert (kept(x) - module(x)).abs().max() < EXACT
    assert count_norms(reparam_compiler.fuse(module, (x,), policy=policy)) == 0


def count_norms(module: fx.GraphModule) -> int:
    return sum(isinstance(module.get_submodule(n.target), nn.BatchNorm2d) for n in module.graph.nodes if n.op == "call_module")


def test_keep_bn_leaves_a_lone_pair_as_it_is() -> None:
    graph_module = fx.symbolic_trace(Pieces(lambda m, x: torch.relu(m.norm(m.wide(x)))))
    _, report = reparam_compiler.fuse(graph_module, keep_bn=True, return_report=True)
    assert not report.fusions


def test_a_norm_after_a_conv_folds_whatever_sizes_are_assumed() -> None:
    """Between ops that tell nothing of sizes, and on so few positions that the bias is a quarter of what is moved."""
    wide = nn.Sequential(nn.Conv2d(120, 480, 1, bias=False), nn.BatchNorm2d(480))
    narrow = nn.Sequential(nn.Conv2d(4096, 4096, 1, groups=4096, bias=False), nn.BatchNorm2d(4096))
    bytes_alone = CostModel(muls_per_second=1e30, bytes_per_second=1e9, launch_seconds=0.0)

    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = wide

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.body(x.permute(0, 3, 1, 2)))

    for model, x in ((Permuted(), None), (narrow, torch.zeros(1, 4096, 1, 1))):
        graph = graph_of(model) if x is None else graph_of(model, x)
        for cost_model in (USUAL, bytes_alone, ARITHMETIC):
            result = fold_bn(graph, Options(cost_model=cost_model))
            assert len(result.fusions) == 1
            assert not result.refusals
