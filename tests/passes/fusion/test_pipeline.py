"""Phases run in order, with the invariants checked between them."""

import logging
from dataclasses import replace

import pytest
import torch

from reparam_compiler.errors import InvalidGraphError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.printer import to_text
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.fuse_branches import Options, PassResult
from tests.support.branch_blocks import block


def graph_of(name: str) -> Graph:
    model, x = block(name)
    return FxFrontend().read(torch.fx.symbolic_trace(model), (x,)).graph


def test_branches_are_fused_before_lone_norms_are_folded() -> None:
    assert [phase.name for phase in pipeline.FUSE] == ["fuse_branches", "fold_bn", "move_norms"]


def test_every_phase_is_in_the_log_and_its_fusions_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, pipeline.logger.name)
    result = pipeline.run(graph_of("residual_reorg"))
    logged = [record.getMessage() for record in caplog.records if record.name == pipeline.logger.name]
    graphs = [text for text in logged if text.startswith("after ")]
    assert [text.split(":")[0] for text in graphs] == [f"after {phase.name}" for phase in pipeline.FUSE]
    assert graphs[-1] == f"after move_norms:\n{to_text(result.graph)}"
    assert len(result.fusions) == 2


def test_a_refusal_of_a_node_that_a_later_phase_rewrote_is_not_reported() -> None:
    result = pipeline.run(graph_of("residual_reorg"))
    assert {refusal.node for refusal in result.refusals} <= set(result.graph.nodes)
    assert [refusal.op for refusal in result.refusals] == ["add"]


def test_a_pass_that_breaks_an_invariant_is_stopped() -> None:
    def breaks(graph: Graph, options: Options, /) -> PassResult:
        _, *others = graph.nodes
        return PassResult(Graph.of([graph[node_id] for node_id in others], graph.outputs))

    with pytest.raises(InvalidGraphError, match="does not come before it in the graph"):
        pipeline.run(graph_of("repvgg"), phases=(pipeline.Phase("breaks", breaks),))


def test_a_graph_that_is_broken_already_is_stopped_before_any_phase() -> None:
    graph = graph_of("repvgg")
    broken = Graph(dict(graph.nodes) | {"x": replace(graph["x"], id="y")}, graph.outputs)
    with pytest.raises(InvalidGraphError, match="x: the node under this id calls itself y"):
        pipeline.run(broken, phases=())


def test_without_verify_nothing_is_measured() -> None:
    assert all(fusion.error is None for fusion in pipeline.run(graph_of("nested"), Options(verify=False)).fusions)
    assert all(fusion.error is not None for fusion in pipeline.run(graph_of("nested")).fusions)
