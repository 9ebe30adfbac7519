"""Pages of small models, and graphs of no model at all, for the tests of reports."""

import functools
from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from reparam_compiler import fuse, prune
from reparam_compiler.reporting.gather import page_of_fusing, page_of_pruning, provenance
from reparam_compiler.reporting.page import GraphView, NodeView, Page, Sweep, SweepPoint
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support.reparam_runs import SHAPE, net


class Refused(nn.Module):
    """Two blocks: one that is one conv, and one whose branches have unequal strides before they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W` to `N 8 H W`."""
        x = self.first(x)
        return self.wide(x) + torch.relu(self.narrow(x)) * x


@functools.cache
def fused_page() -> Page:
    """Of a net of two branches."""
    _, report = fuse(net(), (torch.randn(SHAPE),), return_report=True)
    assert report.graphs is not None
    return page_of_fusing("net", report, provenance("reparam report net", graph=report.graphs.before))


@functools.cache
def refused_page() -> Page:
    """Of a net with a merge that stays."""
    torch.manual_seed(0)
    _, report = fuse(randomise_batch_norm(Refused()).eval(), (torch.randn(2, 3, 9, 7),), return_report=True)
    return page_of_fusing("refused", report)


@functools.cache
def pruned_page() -> Page:
    """Of the same net of two branches, fused and pruned from data."""
    x = torch.randn(SHAPE)
    fused, fusions = fuse(net(), (x,), return_report=True)
    images = np.random.default_rng(0).standard_normal((32, *SHAPE[1:])).astype("float32")
    _, report = prune(fused, (x,), ratio=0.5, calibration=images, return_report=True)
    return page_of_pruning("pruned", report, fusions)


@functools.cache
def swept_page() -> Page:
    """The same pruned by several ratios, one of which cannot be had, in numbers of no model."""
    cut = [
        SweepPoint(ratio, 9, int(90 - 80 * ratio), 900, 1 - ratio, 1 - ratio, ratio, 2 * ratio) for ratio in (0.0, 0.25, 0.5)
    ]
    points = (SweepPoint(None, 10, 100, 1000, 1.5, 1.0), *cut, SweepPoint(0.9, refused="ratio=0.9 removes no channel"))
    return replace(pruned_page(), sweep=Sweep(points, "accuracy", 8, ""))


def node(name: str, *sources: str, op: str = "relu", path: str = "", weight: tuple[int, ...] = ()) -> NodeView:
    """A node that is nothing but its name and what it reads."""
    from reparam_compiler.reporting.page import Parameter

    params = (Parameter("weight", weight, "f32", ""),) if weight else ()
    return NodeView(name, op, op, "", path, sources, params, None)


@st.composite
def graphs(draw: st.DrawFn) -> GraphView:
    """Any graph of up to thirty nodes, each of a module of three levels."""
    count = draw(st.integers(1, 30))
    nodes = []
    for index in range(count):
        earlier = [f"n{other}" for other in range(index)]
        sources = draw(st.lists(st.sampled_from(earlier), max_size=3, unique=True)) if earlier else []
        path = ".".join(draw(st.lists(st.sampled_from("abc"), max_size=3)))
        nodes.append(node(f"n{index}", *sources, path=path))
    return GraphView(tuple(nodes), (f"n{count - 1}",))


@functools.cache
def large_page() -> Page:
    """Of 2,001 nodes in ten stages of twenty blocks, as they are before and after."""
    nodes = [node("x", op="input")]
    for stage in range(10):
        for block in range(20):
            for _ in range(10):
                nodes.append(node(f"v{len(nodes)}", nodes[-1].id, path=f"stages.{stage}.{block}"))
    view = GraphView(tuple(nodes), (nodes[-1].id,))
    return Page("large", "none", provenance("reparam report large"), (), view, view, (), (), (), (), ())
