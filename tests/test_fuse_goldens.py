"""Goldens of `fuse`: the graph of a block before and after, compared whole, read through every frontend.

FX and export print the same text before and after. ONNX exporters fold some norms on their own, so that ONNX need only give the
same graph after; how many nodes went into a conv is left out of that comparison.

`UPDATE_GOLDENS=1 pytest tests/test_fuse_goldens.py` writes them anew: read the difference before committing it.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from small_models import Pieces, randomised
from torch import Tensor, nn

from reparam_compiler.frontends.export import ExportFrontend
from reparam_compiler.frontends.fx import FxFrontend
from reparam_compiler.frontends.onnx_gs import OnnxFrontend
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.text import to_text
from reparam_compiler.passes import pipeline
from reparam_compiler.zoo.blocks import BLOCKS, Site

GOLDENS = Path(__file__).parent / "goldens" / "fuse_branches"
AFTER = "\n# After fuse_branches and fold_bn:\n"


class Parallel(nn.Module):
    """The sum of branches that read one input, and a ReLU."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        return torch.relu(sum(others, start=first))


def conv_bn(rank: int, *arguments: int, **options: int) -> nn.Sequential:
    conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[rank]
    return nn.Sequential(conv(*arguments, bias=False, **options), norm(arguments[1]))


def zoo(name: str, **options: int) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    return lambda: BLOCKS[name](Site(8, 8, **options)), (2, 8, 9, 7)


def nested(p: Pieces, x: Tensor) -> Tensor:
    inner = p.norm(p.wide(x) + p.point(x))
    return torch.relu(x + inner - p.point(x) * 0.5)


def used_twice(p: Pieces, x: Tensor) -> Tensor:
    branch = p.point(x)
    return torch.relu((branch + p.wide(x)) + branch)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: zoo(name) for name in BLOCKS if name != "residual_reorg"},
    "repvgg_strided": (lambda: BLOCKS["repvgg"](Site(8, 12, stride=2)), (2, 8, 9, 7)),
    "repvgg_dilated": (lambda: BLOCKS["repvgg"](Site(8, 8, dilation=2)), (2, 8, 9, 7)),
    "repvgg_grouped": (lambda: BLOCKS["repvgg"](Site(8, 8, groups=4)), (2, 8, 9, 7)),
    "mobileone_depthwise": (
        lambda: Parallel(
            *(conv_bn(2, 6, 6, 3, padding=1, groups=6) for _ in range(3)), conv_bn(2, 6, 6, 1, groups=6), nn.BatchNorm2d(6)
        ),
        (2, 6, 9, 7),
    ),
    "large_kernel_depthwise": (
        lambda: Parallel(conv_bn(2, 6, 6, 7, padding=3, groups=6), conv_bn(2, 6, 6, 3, padding=1, groups=6)),
        (2, 6, 9, 7),
    ),
    "one_dimension": (lambda: Parallel(conv_bn(1, 4, 4, 3, padding=1), conv_bn(1, 4, 4, 1), nn.BatchNorm1d(4)), (2, 4, 11)),
    "three_dimensions": (
        lambda: Parallel(conv_bn(3, 4, 4, 3, padding=1), conv_bn(3, 4, 4, 1), nn.BatchNorm3d(4)),
        (2, 4, 5, 7, 6),
    ),
    "average_pool_branch": (
        lambda: Parallel(conv_bn(2, 4, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1), nn.Identity()),
        (2, 4, 9, 7),
    ),
    "nested_branches": (lambda: Pieces(nested), (2, 4, 9, 7)),
    "branch_used_twice": (lambda: Pieces(used_twice), (2, 4, 9, 7)),
    "padded_conv_after_conv_stays": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        (2, 4, 9, 7),
    ),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    return randomised(make()), torch.randn(shape)


def texts(graph: Graph) -> str:
    result = pipeline.run(graph)
    reasons = "".join(f"# refused {refusal.op}: {_numbered(graph, refusal.reason)}\n" for refusal in result.refusals)
    return to_text(graph) + AFTER + to_text(result.graph) + reasons


def _numbered(graph: Graph, reason: str) -> str:
    """A reason with the printer's numbers in place of native names, which differ by frontend."""
    for index, node_id in sorted(enumerate(graph.nodes), key=lambda pair: -len(pair[1])):
        reason = re.sub(rf"(?<![\w/.(]){re.escape(node_id)}(?![\w/.])", f"%{index}", reason)
    return reason


def without_counts(text: str) -> str:
    return re.sub(r" +(# )? *fused from \d+ nodes", "", text)


@pytest.mark.parametrize("name", CASES)
def test_fx_and_export_read_and_fuse_as_the_golden_says(name: str) -> None:
    model, x = built(name)
    found = texts(FxFrontend().read(torch.fx.symbolic_trace(model), (x,)).graph)
    golden = GOLDENS / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(found)
    assert found == golden.read_text()
    if name not in ("diracnet", "trivial"):  # export spells out what FX leaves inside the module
        assert texts(ExportFrontend().read(torch.export.export(model, (x,))).graph) == found


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", CASES)
def test_onnx_fuses_to_the_same_graph(name: str, dynamo: bool) -> None:
    model, x = built(name)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        if dynamo:
            proto = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
        else:
            torch.onnx.export(model, (x,), buffer, dynamo=False)
            proto = onnx.load_from_string(buffer.getvalue())
    graph = pipeline.run(OnnxFrontend().read(proto).graph).graph
    golden = (GOLDENS / f"{name}.txt").read_text().partition(AFTER)[2]
    expected = "\n".join(line for line in golden.splitlines() if not line.startswith("# refused"))
    assert without_counts(to_text(graph)).strip() == without_counts(expected).strip()


@pytest.mark.parametrize("name", ["diracnet", "trivial"])
def test_parametrized_weights_are_parameters_in_an_exported_program_too(name: str) -> None:
    model, x = built(name)
    program = pipeline.run(ExportFrontend().read(torch.export.export(model, (x,))).graph).graph
    traced = pipeline.run(FxFrontend().read(torch.fx.symbolic_trace(model), (x,)).graph).graph
    assert to_text(program) == to_text(traced)
