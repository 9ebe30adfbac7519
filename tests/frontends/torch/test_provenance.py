"""New calls carry what a tracer noted of those that they stand for; quantizers, unflatten and profilers find them by it."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.passes.utils.source_matcher_utils import get_source_partitions

import reparam_compiler
from tests.support.small_models import normal

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning"),
]
X = normal(2, 4, 6, 5).float()


class Branches(nn.Module):
    """A block of which the second branch has the largest kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.wide, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.point(x) + self.norm(self.wide(x)) + x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Branches(), nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), nn.Flatten()).eval()


def convs(model: Any) -> list[fx.Node]:
    return [node for node in model.graph.nodes if node.target is torch.ops.aten.conv2d.default]


def paths(node: fx.Node) -> list[str]:
    return [path for path, _ in node.meta["nn_module_stack"].values()]


@pytest.mark.parametrize("written", [lambda program: program, lambda program: program.module()], ids=["program", "its module"])
def test_a_new_call_stands_where_the_largest_conv_that_it_replaces_stood(written: Any) -> None:
    program = torch.export.export(net(), (X,))
    fused = reparam_compiler.fuse(written(program))
    assert [paths(node) for node in convs(fused)] == [["", "0", "0.wide"], ["", "1", "1.0"]]
    originals = {paths(node)[-1]: node for node in convs(program)}
    for node in convs(fused):
        original = originals[paths(node)[-1]]
        assert node.meta["torch_fn"] == original.meta["torch_fn"]
        assert node.stack_trace == original.stack_trace
        assert node.meta["val"].shape == original.meta["val"].shape
        assert node.meta["nn_module_stack"] is not original.meta["nn_module_stack"]


@pytest.mark.parametrize("make", [reparam_compiler.fuse, lambda p: reparam_compiler.prune(p, ratio=0.5, round_to=1)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_written_program_is_unflattened_into_its_modules(make: Any, dynamic: bool) -> None:
    model = nn.Sequential(net(), nn.Linear(6 * 4 * 3, 5)).eval()
    shapes = ({0: Dim("batch")},) if dynamic else None
    written = make(torch.export.export(model, (X,), dynamic_shapes=shapes))
    stored = io.BytesIO()
    torch.export.save(written, stored)
    stored.seek(0)
    for program in (written, torch.export.load(stored)):
        again = torch.export.unflatten(program)
        torch.testing.assert_close(again(X), written.module()(X))
        assert isinstance(again.get_submodule("0.1.0"), nn.Module)


def test_partitions_by_source_find_the_new_call_as_they_find_the_old_one() -> None:
    fused = reparam_compiler.fuse(torch.export.export(net(), (X,)))
    found = get_source_partitions(fused.graph, ["conv2d"])["conv2d"]
    assert [partition.nodes for partition in found] == [[node] for node in convs(fused)]


def test_a_pad_before_a_new_conv_has_its_place_and_is_no_conv_itself() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, (2, 4), padding="same", padding_mode="reflect"), nn.BatchNorm2d(4)).eval()
    fused = reparam_compiler.fuse(torch.export.export(model, (X,)))
    pad, conv = (node for node in fused.graph.nodes if node.op == "call_function")
    assert paths(pad) == paths(conv) == ["", "0"]
    assert "torch_fn" not in pad.meta
    assert "conv2d" in str(conv.meta["torch_fn"])


def test_a_trace_keeps_the_path_and_the_type_of_the_module_that_was_replaced() -> None:
    fused = reparam_compiler.fuse(fx.symbolic_trace(net()))
    stacks = {
        str(node.target): list(node.meta["nn_module_stack"].values())[-1]
        for node in fused.graph.nodes
        if isinstance(node.target, str) and "fused" in node.target
    }
    assert stacks == {"0.fused": ("0.wide", nn.Conv2d), "1.fused": ("1.0", nn.Conv2d)}


def test_the_module_of_a_program_gets_calls_of_operators_and_tensors_of_its_own() -> None:
    program = torch.export.export(net(), (X,))
    module, fused = reparam_compiler.fuse(program.module()), reparam_compiler.fuse(program)
    assert len(convs(module)) == 2
    assert {name for name, _ in module.named_parameters()} == set(fused.state_dict)
    assert all(parameter.requires_grad for parameter in module.parameters())
    torch.testing.assert_close(module(X), fused.module()(X))
    again, report = reparam_compiler.fuse(module, return_report=True)
    assert not report.fusions
    torch.testing.assert_close(again(X), module(X))
