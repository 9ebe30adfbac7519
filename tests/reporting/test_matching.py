"""Nodes of a model under the names of another reading of it."""

from types import MappingProxyType

import torch
from torch import nn

from reparam_compiler import fuse
from reparam_compiler.models.opening import open
from reparam_compiler.reporting.matching import names_in, renamed
from tests.support.reparam_runs import SHAPE, net


def test_a_graph_has_the_names_of_another_reading() -> None:
    x = (torch.randn(SHAPE),)
    fused, report = fuse(net(), x, return_report=True)
    assert report.graphs is not None
    again = open(fused, x).graph
    names = names_in(again, report.graphs.after)
    assert tuple(renamed(again, names).nodes) == tuple(report.graphs.after.nodes)


def test_a_graph_has_its_own_names_in_itself() -> None:
    graph = open(net(), (torch.randn(SHAPE),)).graph
    names = names_in(graph, graph)
    assert names == {name: name for name in graph.nodes}
    assert isinstance(renamed(graph, names).nodes, MappingProxyType)


def test_what_another_model_has_not_keeps_its_name() -> None:
    x = (torch.zeros(1, 3, 8, 8),)
    one, other = (open(nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()).eval(), x).graph for width in (4, 5))
    names = names_in(one, other)
    assert names["_0"] == "_0"
    assert set(names) == set(one.nodes)
