"""What a page says of what was done to a model."""

import dataclasses
import importlib.machinery
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from reparam_compiler import fuse
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.reporting.equations import NORM_AFTER, SEQUENCE, SUM, WIDENED
from reparam_compiler.reporting.gather import page_of_fusing, page_of_models, provenance, provenance_here
from tests.support.pages import fused_page, pruned_page, refused_page
from tests.support.reparam_runs import SHAPE, net


def test_a_region_is_told_with_its_rules_its_error_and_what_it_costs() -> None:
    (region,) = fused_page().regions
    assert set(region.nodes) == {"wide", "wide_bn", "narrow", "narrow_bn", region.node}
    assert region.rules == (NORM_AFTER, SUM, WIDENED)
    assert region.error is not None
    assert region.error < 1e-9
    assert region.multiply_adds[1] < region.multiply_adds[0]


def test_every_node_of_a_region_is_before_and_its_op_is_after() -> None:
    for page in (fused_page(), refused_page(), pruned_page()):
        assert page.after is not None
        before, after = ({node.id for node in view.nodes} for view in (page.before, page.after))
        assert all(before.issuperset(region.nodes) and region.node in after for region in page.regions)


def test_nodes_are_of_modules_also_where_they_have_no_weights() -> None:
    paths = {node.id: node.path for node in refused_page().before.nodes}
    assert paths["first_0"] == "first.0"
    assert paths["first_2"] == "first"


def test_layers_are_those_of_the_result_with_the_ranges_of_their_weights() -> None:
    page = fused_page()
    assert page.after is not None
    layers = {layer.node: layer for layer in page.layers}
    assert layers.keys() == {node.id for node in page.after.nodes if node.op != "input"}
    last = net().get_parameter("last.weight")
    assert layers["last"].weight_range == pytest.approx((last.min().item(), last.max().item()))
    assert layers["last"].multiply_adds == 2 * 4 * 7 * 5 * 16 * 9
    assert layers[page.regions[0].node].weight_range == page.regions[0].weight_range


def test_ops_are_counted_before_and_after() -> None:
    counts = {count.op: (count.before, count.after) for count in fused_page().ops}
    assert counts == {"conv": (3, 2), "batch_norm": (2, 0), "add": (1, 0), "input": (1, 1), "relu": (1, 1)}


def test_the_most_that_is_alive_is_the_activation_memory_of_the_summary() -> None:
    page = fused_page()
    (memory,) = [figure for figure in page.figures if figure.name == "activation memory"]
    assert memory.before == max(node.alive or 0 for node in page.before.nodes)


def test_a_refusal_names_its_node_and_the_reason() -> None:
    page = refused_page()
    (refusal,) = page.refusals
    assert refusal.node in {node.id for node in page.before.nodes}
    assert refusal.reason


def test_a_pruned_model_is_told_by_families_beside_what_was_fused_before() -> None:
    page = pruned_page()
    assert [(family.before, family.after) for family in page.families if not family.pinned] == [(16, 8)]
    assert [family.pinned for family in page.families if family.pinned]
    assert len(page.regions) == 1
    assert any("held-out" in line for line in page.accuracy)
    assert page.repair is not None
    assert [layer.node for layer in page.repair.layers] == ["last"]
    assert 0 < page.repair.after < page.repair.before


def test_a_model_that_nothing_fuses_in_is_shown_as_it_is() -> None:
    _, report = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (torch.zeros(1, 3, 8, 8),), return_report=True)
    page = page_of_fusing("plain", report)
    assert page.after is None
    assert all(figure.after is None for figure in page.figures)


def test_layers_in_sequence_are_told_as_such() -> None:
    model = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.Conv2d(64, 16, 1)).eval()
    _, report = fuse(model, (torch.zeros(1, 16, 8, 8),), return_report=True)
    (region,) = page_of_fusing("sequence", report).regions
    assert region.rules == (SEQUENCE,)


def test_a_model_that_was_fused_in_parts_has_both_graphs_with_the_names_of_the_whole() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part(x) if x.sum() > 0 else x

    _, report = fuse(Branching().eval(), return_report=True)
    (region,) = page_of_fusing("parts", report).regions
    assert region.nodes == ("part._0", "part._1")
    assert region.source.startswith("part.")


def test_two_models_are_shown_without_regions() -> None:
    _, report = fuse(net(), (torch.randn(SHAPE),), return_report=True)
    assert report.graphs is not None
    page = page_of_models("both", "torch", report.graphs.before, report.graphs.after)
    assert page.regions == ()
    assert [(figure.before, figure.after) for figure in page.figures if figure.name == "convs"] == [(3.0, 2.0)]


def test_a_report_of_a_model_that_was_changed_in_place_has_no_graphs() -> None:
    _, report = fuse(net(), (torch.randn(SHAPE),), inplace=True, return_report=True)
    with pytest.raises(UnsupportedModelError, match="changed in place"):
        page_of_fusing("net", report)


def test_the_hash_of_weights_is_that_of_their_numbers() -> None:
    reports = [fuse(model, return_report=True)[1] for model in (net(), net())]
    changed = net()
    with torch.no_grad():
        changed.get_parameter("last.bias")[0] += 1
    reports.append(fuse(changed, return_report=True)[1])
    hashes = [provenance("", graph=report.graphs.before).hashes["weights"] for report in reports if report.graphs is not None]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("module", "program"),
    [("reparam_compiler.__main__", "python -m reparam_compiler"), ("reparam_compiler.fuse", "python -m reparam_compiler.fuse")],
)
def test_the_command_can_be_typed_again(module: str, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/reparam", "fuse", "my net.onnx", "--input-shapes", "x:[1,3]"])
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert provenance_here().command == "reparam fuse 'my net.onnx' --input-shapes 'x:[1,3]'"
    main.__spec__ = importlib.machinery.ModuleSpec(module, None)
    assert provenance_here().command == f"{program} fuse 'my net.onnx' --input-shapes 'x:[1,3]'"


def test_two_files_of_one_name_have_a_hash_each(tmp_path: Path) -> None:
    files = [tmp_path / folder / "net.onnx" for folder in ("one", "other")]
    for file in files:
        file.parent.mkdir()
        file.write_text(str(file))
    hashes = provenance("", files).hashes
    assert list(hashes) == list(map(str, files))
    assert len(set(hashes.values())) == 2


def test_reports_are_a_line_each() -> None:
    _, report = fuse(net(), return_report=True)
    assert repr(report) == "<FuseReport nn.Module: 1 fused, 0 refused, 3 -> 2 convs>"
    assert report == dataclasses.replace(report, graphs=None)
