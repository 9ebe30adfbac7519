"""Every published block through every route: one conv where one is exact, the reason where none is, the same values."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import ModelProto

import reparam_compiler
from reparam_compiler.api.report import FuseReport
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models import opening
from tests.support import onnx_models
from tests.support.catalogue import ENTRIES
from tests.support.catalogue_parts import Entry, built
from tests.support.small_models import EXACT, relative_error, run, traced_as

CONVS = ("conv", "conv_transpose", "linear")
SILENT = ("input", "identity", "size", "shape", "getitem", "Shape", "torch.export._unlift.GuardsFn")
"""What neither computes nor moves anything, and what reads or checks shapes."""
QUICK = ("repvgg_grouped", "dbb", "dyrep", "ecbsr", "fastvit", "lora_tokens")
"""What goes through the dynamo exporter, which takes a second for each block, even in a quick run."""
EXPORTED = (
    *QUICK,
    "coat",
    "repvggplus",
    "transposed",
    "lora_layers",
    "ghostnetv3",
    "split_conv_concat",
    "norm_of_the_data",
    "repvgg_d2se",
    "linear_add",
    "span",
    "davit_tokens",
    "yolov7_implicit",
    "repconv_without_identity",
    "qarepvgg_v2",
    "replicate_3d",
    "repmlp",
    "acnet_cropped",
    "dyrep_nested",
    "repghost_without_norm",
    "efficientvim",
    "csrep",
    "dbb_padded_by_zeros",
    "relu_inside",
)
"""What goes through it in a whole run, and to `fuse` as a program of torch.export: all blocks together have no op, no set of an
op's attributes and no pair of an op and what it reads that these lack. The other exporter's model every block has."""
TOGETHER = 15
"""How many blocks go through the dynamo exporter in one call; those of a quick run in the first."""


def check(entry: Entry, after: Graph, report: FuseReport) -> None:
    """What is left is what the entry says: the convs, no other ops than those it names, and the reasons."""
    refusals = [f"{refusal.op}: {refusal.reason}" for refusal in report.refusals]
    unexpected = [text for text in refusals if entry.refused is None or not re.search(entry.refused, text)]
    names = [node.op.name for node in after]
    extra = {*names} - {*CONVS, *SILENT, *entry.remains}
    left, expected = (sum(name in CONVS for name in names), extra, unexpected), (entry.convs, set(), [])
    assert left == expected, f"convs, other ops and refusals left: {left}; expected: {expected}"
    assert bool(refusals) == (entry.refused is not None)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "fx") for name in ENTRIES), *((name, "export") for name in EXPORTED if ENTRIES[name].exports)]
)
def test_a_block_is_one_conv_through_torch(name: str, kind: str) -> None:
    """As a program, those of `EXPORTED`: the graphs of all others, and what they are fused to, `test_fuse_branches.py` has."""
    entry = ENTRIES[name]
    model, x = built(entry.make)
    given: Any = traced_as(kind, model, (x,)) if kind == "export" or entry.symbolic else copy.deepcopy(model)  # type: ignore[arg-type]
    fused, report = reparam_compiler.fuse(given, (x,), policy="always", return_report=True)
    assert relative_error(run(model, x), run(fused, x)) < EXACT
    check(entry, opening.open(fused, (x,)).graph, report)


@functools.cache
def dynamo_exports(group: int) -> dict[str, ModelProto]:
    """Some neighbours in the catalogue, from the dynamo exporter."""
    made = {name: built(ENTRIES[name].make) for name in EXPORTED[group * TOGETHER : (group + 1) * TOGETHER]}
    return onnx_models.exported_together({name: (model.float(), x.float()) for name, (model, x) in made.items()})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        *((name, False) for name in ENTRIES),
        *(pytest.param(name, True, marks=pytest.mark.slow if name not in QUICK else ()) for name in EXPORTED),
    ],
)
def test_a_block_is_one_conv_through_onnx(name: str, dynamo: bool, tmp_path: Path) -> None:
    entry = ENTRIES[name]
    model, x = built(entry.make)
    if dynamo:
        proto = dynamo_exports(EXPORTED.index(name) // TOGETHER)[name]
    else:
        proto = onnx_models.exported(model.float(), x.float(), tmp_path, dynamo=False, dynamic=False)
    fused, report = reparam_compiler.fuse(proto, policy="always", return_report=True)
    feeds = {proto.graph.input[0].name: x.float().numpy()}
    with torch.no_grad():
        (expected,), (found,) = ((torch.from_numpy(y) for y in onnx_models.run(m, feeds)) for m in (proto, fused))
    scale = expected.abs().max().item()
    torch.testing.assert_close(found / scale, expected / scale, **onnx_models.FLOAT32)
    check(entry, OnnxFrontend().read(fused).graph, report)


def test_what_was_fixed_while_tracing_is_reported() -> None:
    model, x = built(ENTRIES["pp_yoloe"].make)
    _, report = reparam_compiler.fuse(model, (x,), return_report=True)
    assert report.remarks == (
        "fixed while tracing, as the weights have it: alpha",
        "the result is a GraphModule, and no LearnedAlpha: the branches of add are joined in LearnedAlpha.forward() itself",
    )
