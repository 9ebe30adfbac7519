"""The graph before and after, as text, compared whole: `UPDATE_GOLDENS=1 pytest` writes the texts anew.

FX and export give the same text, but for blocks of the catalogue that torch.export spells with other ops: those have a golden
of their own for it.
"""

import os
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import nn

from reparam_compiler.cost.model import cost
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.printer import to_text
from reparam_compiler.ir.verifier import check
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.fuse_branches import Options, PassResult, fuse_branches
from tests.support.branch_blocks import BLOCKS, CATALOGUE, block
from tests.support.catalogue import ENTRIES
from tests.support.onnx_models import exported, exported_together
from tests.support.small_models import EXACT, normal, traced_as

GOLDENS = Path(__file__).parents[2] / "goldens" / "fuse_branches"
ALWAYS = Options(policy="always")
ROUNDED = ("dyrep", "dyrep_nested")
"""Blocks whose padding values the model computes in float32: they are its inner biases to eight units in the last place."""
NAMES = pytest.mark.parametrize("name", BLOCKS)
KINDS = {name: ("fx", "export") if name in BLOCKS or ENTRIES[name].symbolic else ("export",) for name in BLOCKS | CATALOGUE}
"""The routes that take a block, the one that writes its golden first."""
CASES = pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in KINDS.items() for kind in kinds])


@cache
def graph_of(name: str, kind: str) -> Graph:
    model, x = block(name)
    model, x = model.float(), x.float()
    given = traced_as(kind, model, (x,))  # type: ignore[arg-type]
    return FxFrontend().read(given, (x,)).graph if kind == "fx" else ExportFrontend().read(given).graph


@cache
def fused(name: str, kind: str) -> PassResult:
    graph = graph_of(name, kind)
    return pipeline.run(graph) if name in BLOCKS else pipeline.run(graph, ALWAYS)


def golden(name: str, before: Graph, after: PassResult) -> str:
    refused = "".join(f"# {refusal.op} stays: {_numbered(refusal.reason, after.graph)}\n" for refusal in after.refusals)
    return f"# Before:\n{to_text(before)}\n# After:\n{to_text(after.graph)}{refused}"


def _numbered(reason: str, graph: Graph) -> str:
    """A reason with the numbers of values for their ids, which differ from frontend to frontend."""
    for index, node_id in enumerate(graph.nodes):
        reason = re.sub(rf"(^|\b(?:at|by) ){re.escape(node_id)}\b(?! \(\w+\))", rf"\1%{index}", reason, count=1)
    return re.sub(r"^\w+ \((\w+)\)", r"a value (\1)", reason)


@CASES
def test_the_graph_before_and_after_is_the_golden(name: str, kind: str) -> None:
    found = golden(name, graph_of(name, kind), fused(name, kind))
    path, own = GOLDENS / f"{name}.txt", GOLDENS / f"{name}.{kind}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == KINDS[name][0]:
            path.write_text(found)
        elif name in CATALOGUE and found != path.read_text():
            own.write_text(found)
        else:
            own.unlink(missing_ok=True)
    assert found == (own if own.exists() else path).read_text()


@CASES
def test_the_fused_graph_gives_the_same_values_in_float64(name: str, kind: str) -> None:
    graph, after = graph_of(name, kind), fused(name, kind).graph
    check(after)
    (source,) = [node.id for node in graph if node.op.name == "input"]
    _, x = block(name)
    shapes = [x.shape]
    if name in BLOCKS:  # the catalogue has blocks for one size only
        shapes.append(x.shape[:2] + tuple(size + 3 for size in x.shape[2:]))
    for shape in shapes:
        feeds = {source: normal(*shape, seed=1)}
        expected, found = (evaluate(g, feeds)[g.outputs[0]] for g in (graph, after))
        assert difference(expected, found).relative < (8 * 2**-23 if name in ROUNDED else EXACT)


def test_every_golden_has_a_block() -> None:
    assert {path.name.partition(".")[0] for path in GOLDENS.glob("*.txt")} == set(BLOCKS | CATALOGUE)


@pytest.mark.parametrize("name", BLOCKS | CATALOGUE)
def test_a_second_run_finds_nothing_to_do(name: str) -> None:
    after = fused(name, KINDS[name][0]).graph
    assert (pipeline.run(after) if name in BLOCKS else pipeline.run(after, ALWAYS)).graph is after


@NAMES
def test_no_fusion_costs_more_than_what_it_replaces(name: str) -> None:
    before, after = cost(graph_of(name, "fx")), cost(fused(name, "fx").graph)
    assert (after.flops or 0) <= (before.flops or 0)
    assert after.convs <= before.convs
    assert (after.activation_bytes or 0) <= (before.activation_bytes or 0)


# refusals


def test_a_dense_conv_that_costs_more_than_its_branches_is_refused_with_both_costs() -> None:
    model = nn.Sequential(nn.Conv2d(512, 16, 1, bias=False), nn.Conv2d(16, 512, 1, bias=False)).eval()
    result = fuse_branches(FxFrontend().read(torch.fx.symbolic_trace(model)).graph)
    assert not result.fusions
    assert result.graph.nodes.keys() == {"input_1", "_0", "_1"}


def test_a_conv_of_a_few_taps_of_two_dilations_is_not_made_dense() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=2, dilation=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    result = fuse_branches(FxFrontend().read(torch.fx.symbolic_trace(Two())).graph)
    assert [refusal.reason for refusal in result.refusals] == [
        "one conv would be slower: 8.028e+07 multiply-adds and 8.113e+05 bytes instead of 5.78e+07 and 1.7e+06 in 3 ops; "
        "policy='always' fuses it all the same"
    ]


def test_unequal_strides_are_skipped_with_reason() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    result = fuse_branches(FxFrontend().read(torch.fx.symbolic_trace(Two())).graph)
    assert result.refusals[0].reason == "stride 2 meets stride 1 at add"


def test_nothing_to_do_gives_the_same_graph_back() -> None:
    graph = FxFrontend().read(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Flatten()))).graph
    assert fuse_branches(graph).graph is graph


def test_a_fusion_names_what_it_replaced_sources_first() -> None:
    fusion = fused("repvgg", "fx").fusions[0]
    assert fusion.source == "x"
    assert fusion.node == fusion.nodes[-1] == "add_1"
    assert (fusion.op, fusion.weight, fusion.shape) == ("conv pad=1", (8, 8, 3, 3), "f32 2 8 9 7")
    assert fusion.error is not None
    assert fusion.error.relative < EXACT


def test_weights_are_folded_in_float64_and_kept_so_until_they_are_written() -> None:
    after = fused("repvgg", "fx").graph
    (conv,) = [node for node in after if node.op.name == "conv"]
    assert conv.params[0].load().dtype == np.float64
    assert conv.params[0].dtype == "f32"


def test_the_interpretation_of_a_strided_block_divides_its_cost() -> None:
    assert Fraction(cost(graph_of("strided", "fx")).flops or 0, cost(fused("strided", "fx").graph).flops or 1) == Fraction(
        10, 9
    )


# the same after every exporter


def without_remarks(text: str) -> str:
    """ONNX exporters fold some norms on their own, so that fewer nodes are left to fuse; a relu is a relu in any opset."""
    return re.sub(r"   fused from \d+ nodes", "", text)


QUICK = ("repvgg", "grouped", "residual_reorg", "nested")
EXPORTS = [
    pytest.param(name, dynamo, marks=pytest.mark.slow if dynamo and name not in QUICK else ())
    for name in BLOCKS
    for dynamo in (True, False)
]
"""The dynamo exporter takes seconds for each block."""


@cache
def dynamo_exports() -> dict[str, ModelProto]:
    made = {name: block(name) for name in BLOCKS}
    return exported_together({name: (model.float(), x.float()) for name, (model, x) in made.items()})


@pytest.mark.parametrize(("name", "dynamo"), EXPORTS)
def test_onnx_gives_the_same_graph_after(name: str, dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        proto = dynamo_exports()[name]
    else:
        model, x = block(name)
        proto = exported(model.float(), x.float(), tmp_path, dynamo=False, dynamic=False)
    graph = OnnxFrontend().read(proto).graph
    assert without_remarks(to_text(pipeline.run(graph).graph)) == without_remarks(to_text(fused(name, "fx").graph))
