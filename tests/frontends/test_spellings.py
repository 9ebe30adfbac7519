"""Every spelling of an op that states a width is written back as it was: function, method, keywords; from every kind of model.

One branch is one spelling: a conv of 16 channels, what is spelled, and a head. The branches of a family make one model.
"""

import operator
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError, RewriteError
from reparam_compiler.frontends.torch.module_widths import writes_module
from reparam_compiler.frontends.torch.spellings import ComputedSizes, update_call, writes
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node
from reparam_compiler.models import opening
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.slice_channels import masked
from tests.support.spelled import FLOAT32, Body, Model, Spelling, X, Y, halves, native, outputs, spelled, turned, weight

pytestmark = [
    pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # group_norm checks its input, and torch's exporter says so
]
aten = torch.ops.aten


def tokens(n: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = y.flatten(2).transpose(1, 2)
    return n.q(y), n.k(y), n.v(y)


def rows(y: Tensor) -> Tensor:
    return (y.mean((1, 2, 3)) > 0).long()


LINEARS = dict.fromkeys("qkv", lambda: nn.Linear(16, 16))
WIDE = {"w": weight(16, 1, 3, 3)}

FAMILIES: dict[str, dict[str, Spelling]] = {
    "narrow": {
        "function": spelled(lambda n, y: halves([torch.narrow(y, 1, 0, 8), torch.narrow(y, 1, 8, 8)])),
        "function, keywords": spelled(
            lambda n, y: halves([torch.narrow(y, dim=1, start=0, length=8), torch.narrow(input=y, dim=1, start=8, length=8)])
        ),
        "method": spelled(lambda n, y: halves([y.narrow(1, 0, 8), y.narrow(-3, 8, 8)])),
        "method, keywords": spelled(lambda n, y: halves([y.narrow(dim=1, start=0, length=8), y.narrow(1, 8, length=8)])),
    },
    "split": {
        "function": spelled(lambda n, y: halves(torch.split(y, 8, 1))),
        "function, sizes": spelled(lambda n, y: turned(torch.split(y, [4, 12], 1))),
        "function, keywords": spelled(lambda n, y: halves(torch.split(y, split_size_or_sections=8, dim=1))),
        "method": spelled(lambda n, y: halves(y.split(8, 1))),
        "method, keywords": spelled(lambda n, y: halves(y.split(split_size=8, dim=-3))),
        "method, sizes": spelled(lambda n, y: turned(y.split([4, 12], dim=1))),
        "with sizes": spelled(lambda n, y: turned(torch.split_with_sizes(y, [4, 12], 1))),
        "with sizes, method": spelled(lambda n, y: turned(y.split_with_sizes([4, 12], dim=1))),
        "with sizes, keywords": spelled(lambda n, y: turned(y.split_with_sizes(split_sizes=[4, 12], dim=1))),
        "chunk": spelled(lambda n, y: halves(torch.chunk(y, 2, 1))),
        "chunk, method": spelled(lambda n, y: halves(y.chunk(2, 1))),
        "chunk, keywords": spelled(lambda n, y: halves(y.chunk(chunks=2, dim=1))),
        "chunk of unequal pieces": spelled(lambda n, y: turned(y.chunk(3, dim=1), 3)),
    },
    "index": {
        "slices": spelled(lambda n, y: halves([y[:, :8], y[:, 8:]])),
        "whole index": spelled(lambda n, y: halves([y[:, :8, :, :], y[:, 8:16, :, :]])),
        "ellipsis": spelled(lambda n, y: halves([y[..., :8, :, :], y[..., 8:, :, :]])),
        "from the end": spelled(lambda n, y: halves([y[:, :-8], y[:, -8:]])),
        "steps": spelled(lambda n, y: halves([y[:, ::2], y[:, 1::2]])),
        "other axes": spelled(lambda n, y: y[:, :, 0] + y[:, :, 1:2, None].flatten(2) + y[..., 3]),
        "crop": spelled(lambda n, y: y[:, :, 1:-1, 1:]),
        "none": spelled(lambda n, y: y[:, None].squeeze(1)),
        "aten": spelled(lambda n, y: halves([aten.slice.Tensor(y, 1, 0, 8), aten.slice.Tensor(y, 1, 8, 16)]), onnx=False),
        "aten packet, keywords": spelled(
            lambda n, y: halves([aten.slice(y, 1, 0, 8), aten.slice(y, dim=1, start=8)]), onnx=False
        ),
    },
    "pick": {
        "select": spelled(lambda n, y: torch.select(y, 2, 1) + torch.select(y, dim=3, index=1)),
        "select, method": spelled(lambda n, y: y.select(2, 1) + y.select(dim=3, index=1)),
        "unbind": spelled(lambda n, y: halves(torch.unbind(y, 2))),
        "unbind, method": spelled(lambda n, y: halves(y.unbind(dim=3)), onnx=False),
        "index_select": spelled(lambda n, y: torch.index_select(y, 2, n.table), table=lambda: torch.tensor([0, 2])),
        "index_select, method": spelled(lambda n, y: y.index_select(dim=2, index=n.table), table=lambda: torch.tensor([0, 2])),
    },
    "view": {
        "sizes": spelled(lambda n, y: y.view(2, 16, 16), batch=False),
        "computed": spelled(lambda n, y: y.view(y.size(0), 4, -1, 4, 4).mean(2)),
        "tuple": spelled(lambda n, y: y.view((-1, 16, 16))),
        "keywords": spelled(lambda n, y: y.view(size=(-1, 16, 16))),
        "shape": spelled(lambda n, y: y.view(y.shape[0], y.shape[1], 16)),
        "whole shape": spelled(lambda n, y: y.reshape(-1, 16, 16).view(y.size())),
        "view_as": spelled(lambda n, y: y.reshape(-1, 16, 16).view_as(y)),
        "reshape": spelled(lambda n, y: y.reshape(-1, 16, 4, 4)),
        "reshape, keywords": spelled(lambda n, y: y.reshape(shape=(-1, 16, 16))),
        "reshape, function": spelled(lambda n, y: torch.reshape(y, (-1, 16, 16))),
        "reshape, function, keywords": spelled(lambda n, y: torch.reshape(input=y, shape=(-1, 16, 16))),
        "reshape_as": spelled(lambda n, y: y.reshape(-1, 16, 16).reshape_as(y)),
        "flatten": spelled(lambda n, y: torch.flatten(y, 1)),
        "flatten, method": spelled(lambda n, y: y.flatten(start_dim=2)),
    },
    "unflatten": {
        "function": spelled(lambda n, y: torch.unflatten(y, 1, (4, 4)).mean(2)),
        "method": spelled(lambda n, y: y.unflatten(1, (4, -1)).mean(1)),
        "method, keywords": spelled(lambda n, y: y.unflatten(dim=-3, sizes=(4, 4)).mean(1)),
        "module": spelled(lambda n, y: n.part(y).mean(2), part=lambda: nn.Unflatten(1, (4, 4))),
    },
    "expand": {
        "sizes": spelled(lambda n, y: y.mean(1, keepdim=True).expand(-1, 16, -1, -1) * y),
        "tuple": spelled(lambda n, y: y.mean((2, 3), keepdim=True).expand((-1, 16, 4, 4)) * y),
        "keywords": spelled(lambda n, y: y.mean((2, 3), keepdim=True).expand(size=(-1, 16, 4, 4)) * y),
        "expand_as": spelled(lambda n, y: y.mean((2, 3), keepdim=True).expand_as(y) * y),
        "broadcast_to": spelled(lambda n, y: torch.broadcast_to(y.mean(1, keepdim=True), (2, 16, 4, 4)) * y, batch=False),
        "broadcast_to, cut": spelled(lambda n, y: torch.broadcast_to(y[:, :, :1], (2, 16, 4, 4)) * y, batch=False),
        "broadcast_to, keywords": spelled(lambda n, y: y[:, :, :1].broadcast_to(size=(2, 16, 4, 4)) * y, batch=False),
    },
    "norm": {
        "group_norm": spelled(lambda n, y: F.group_norm(y, 16) + torch.group_norm(y, 4)),
        "group_norm, keywords": spelled(lambda n, y: F.group_norm(y, num_groups=16, eps=1e-3)),
        "group_norm, computed weights": spelled(
            lambda n, y: F.group_norm(y, 16, bias=2 * n.b, weight=3 * n.w), w=weight(16), b=weight(16)
        ),
        "group_norm, module": spelled(lambda n, y: n.part(y), part=lambda: nn.GroupNorm(16, 16)),
        "group_norm, module, no weights": spelled(lambda n, y: n.part(y), part=lambda: nn.GroupNorm(16, 16, affine=False)),
        "instance_norm": spelled(lambda n, y: F.instance_norm(y, weight=2 * n.w), w=weight(16)),
        "instance_norm, module": spelled(lambda n, y: n.part(y), part=lambda: nn.InstanceNorm2d(16, affine=True)),
        "layer_norm": spelled(lambda n, y: F.layer_norm(y, (16, 4, 4)), onnx=False),
        "layer_norm, torch's": spelled(lambda n, y: torch.layer_norm(y.mean((2, 3)), [16])),
        "layer_norm, keywords": spelled(lambda n, y: F.layer_norm(y, normalized_shape=(16, 4, 4), eps=1e-3), onnx=False),
        "layer_norm, computed": spelled(
            lambda n, y: F.layer_norm(y.mean((2, 3)), (y.shape[1],), bias=2 * n.b, weight=3 * n.w),
            w=weight(16),
            b=weight(16),
            onnx=False,
        ),
        "layer_norm, module": spelled(lambda n, y: n.part(y.mean((2, 3))), part=lambda: nn.LayerNorm(16)),
        "rms_norm": spelled(lambda n, y: F.rms_norm(y.mean((2, 3)), (16,), eps=1e-5), onnx=False),
        "rms_norm, module": spelled(lambda n, y: n.part(y.mean((2, 3))), part=lambda: nn.RMSNorm(16, eps=1e-5), onnx=False),
    },
    "conv": {
        "function": spelled(lambda n, y: F.conv2d(y, n.w, None, 1, 1, 1, 16), **WIDE),
        "function, keywords": spelled(lambda n, y: F.conv2d(y, weight=n.w, padding=1, groups=16), **WIDE),
        "torch's": spelled(lambda n, y: torch.conv2d(y, 2 * n.w, padding=1, groups=16), **WIDE),
        "convolution": spelled(lambda n, y: torch.convolution(y, n.w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 16), **WIDE),
        "module": spelled(lambda n, y: n.part(y), part=lambda: nn.Conv2d(16, 16, 3, groups=16)),
        "module, groups": spelled(lambda n, y: n.part(y), part=lambda: nn.Conv2d(16, 16, 3, groups=4)),
        "transposed": spelled(lambda n, y: F.conv_transpose2d(y, n.w, None, 1, 0, 0, 16), **WIDE),
        "transposed, keywords": spelled(lambda n, y: F.conv_transpose2d(y, n.w, groups=16), **WIDE),
        "transposed, module": spelled(lambda n, y: n.part(y), part=lambda: nn.ConvTranspose2d(16, 16, 3, groups=16)),
    },
    "attention": {
        "function": spelled(lambda n, y: F.scaled_dot_product_attention(*tokens(n, y)).mean(1), **LINEARS),
        "keywords": spelled(
            lambda n, y: F.scaled_dot_product_attention(**dict(zip(("query", "key", "value"), tokens(n, y), strict=True))).mean(
                1
            ),
            **LINEARS,
        ),
        "scale": spelled(
            lambda n, y: F.scaled_dot_product_attention(*tokens(n, y), None, 0.0, False, scale=0.3).mean(1), **LINEARS
        ),
    },
    "shuffle": {
        "pixels": spelled(lambda n, y: F.pixel_shuffle(y, 2)),
        "pixels, keywords": spelled(lambda n, y: F.pixel_shuffle(y, upscale_factor=2)),
        "pixels, module": spelled(lambda n, y: n.part(y), part=lambda: nn.PixelShuffle(2)),
        "unshuffled": spelled(lambda n, y: F.pixel_unshuffle(y, 2)),
        "channels": spelled(lambda n, y: torch.channel_shuffle(y, 4), onnx=False),
        "channels, keywords": spelled(lambda n, y: F.channel_shuffle(y, groups=4), onnx=False),
        "channels, module": spelled(lambda n, y: n.part(y), part=lambda: nn.ChannelShuffle(4), onnx=False),
    },
    "embedding": {
        "function": spelled(lambda n, y: F.embedding(rows(y), 2 * n.w) + y.mean((2, 3)), w=weight(2, 16), onnx=False),
        "torch's": spelled(lambda n, y: torch.embedding(2 * n.w, rows(y)) + y.mean((2, 3)), w=weight(2, 16), onnx=False),
    },
    "constants": {
        "maximum": spelled(lambda n, y: torch.maximum(y, 2 * n.w), w=weight(16, 1, 1)),
        "maximum, keywords": spelled(lambda n, y: torch.maximum(other=y, input=2 * n.w), w=weight(16, 1, 1)),
        "where": spelled(lambda n, y: torch.where(y > 0.2, y, 2 * n.w), w=weight(16, 1, 1)),
        "prelu": spelled(lambda n, y: F.prelu(y - 1, 2 * n.w), w=weight(16)),
        "cat": spelled(
            lambda n, y: torch.cat(tensors=[y, (2 * n.w).expand(2, 4, 4, 4)], dim=1), w=weight(4, 1, 1), batch=False
        ),
        "expand": spelled(lambda n, y: (2 * n.w).expand(-1, 16, 4, 4) * y, w=weight(1, 16, 1, 1)),
    },
    "product": {
        "linear": spelled(lambda n, y: F.linear(y.mean((2, 3)), n.w), w=weight(6, 16)),
        "linear, keywords": spelled(lambda n, y: F.linear(input=y.mean((2, 3)), weight=2 * n.w), w=weight(6, 16)),
        "operator": spelled(lambda n, y: y.mean((2, 3)) @ n.w, w=weight(16, 6)),
        "mm, keywords": spelled(lambda n, y: torch.mm(y.mean((2, 3)), mat2=n.w), w=weight(16, 6)),
        "addmm": spelled(lambda n, y: torch.addmm(n.b, y.mean((2, 3)), n.w), w=weight(16, 6), b=weight(6)),
        "add": spelled(lambda n, y: torch.add(input=2 * n.w, other=y) + torch.mul(y, other=n.w.exp()), w=weight(16, 1, 1)),
    },
}
KINDS = ("module", "fx", "export", "dynamic", "onnx")
SPELLED_OTHERWISE = {
    torch.chunk: torch.split,
    "chunk": "split",
    aten.chunk.default: aten.split_with_sizes.default,
    operator.matmul: F.linear,
    torch.mm: F.linear,
    torch.addmm: F.linear,
    aten.matmul.default: aten.linear.default,
    aten.mm.default: aten.linear.default,
    aten.addmm.default: aten.linear.default,
}
"""Calls that cannot say what they must: pieces of unequal sizes, and a product whose weight is cut along its columns."""
CALIBRATION = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(2)).numpy()


def calls(graph: fx.Graph) -> dict[str, tuple[Any, int, set[str]]]:
    """For each call what it calls, how many arguments stand there by place, and which by keyword."""
    found = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    return {node.name: (node.target, len(node.args), set(node.kwargs) - {"scale"}) for node in found}


def chosen_for(family: str, kind: str) -> dict[str, Spelling]:
    """The spellings of a family that a kind of model can have.

    An exported program has one call for an op whatever the spelling was: a dynamic one need not show that again.
    """
    return {
        name: spelling
        for name, spelling in FAMILIES[family].items()
        if (kind != "onnx" or spelling.onnx)
        and (kind != "dynamic" or (spelling.batch and not name.endswith(("keywords", ", method"))))
    }


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family in FAMILIES for kind in KINDS if chosen_for(family, kind)]
)
def test_a_pruned_model_computes_its_masked_reference_and_is_spelled_as_it_was(family: str, kind: str, tmp_path: Path) -> None:
    chosen = chosen_for(family, kind)
    model = Model(list(chosen.values())).eval()
    before = native(model, kind, tmp_path)
    reading = frontend_for(before).read(before, None if kind == "onnx" else (X,))
    result = pipeline.prune(reading.graph, ratio=0.5, round_to=1)
    written = reading.write(result.graph)
    if kind == "module":
        written = reparam_compiler.prune(model, (X,), ratio=0.5, round_to=1)
    x = Y if kind == "dynamic" else X
    (source,) = (node.id for node in reading.graph if isinstance(node.op, ops.Input))
    hidden = masked(reading.graph, result.groups, result.keep)
    expected = evaluate(hidden, {source: x})
    for name, output, found in zip(chosen, hidden.outputs, outputs(written, x), strict=True):
        assert difference(expected[output], found).relative <= FLOAT32, name
    widths = {param.origin: param.shape[0] for node in result.graph for param in node.params if param.shape}
    assert [widths[f"branches.{index}.conv.weight"] for index in range(len(chosen))] == [8] * len(chosen)
    if kind != "onnx":
        was = calls(before.graph)
        for name, call in calls(opening.open(written, (X,)).native.graph if kind == "module" else written.graph).items():
            target, *arguments = was.get(name, call)
            if call[0] != SPELLED_OTHERWISE.get(target):
                assert call == (target, *arguments), name


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize("family", ["conv", "product"])
def test_a_repaired_model_has_its_new_biases_where_the_call_takes_them(family: str, kind: str, tmp_path: Path) -> None:
    """A bias that repair made goes to the argument of that name, whatever stands before it and however it is given."""
    chosen = chosen_for(family, kind)
    before = native(Model(list(chosen.values())).eval(), kind, tmp_path)
    reading = frontend_for(before).read(before, (X,))
    repaired = pipeline.prune(reading.graph, ratio=0.5, round_to=1, calibration=[(CALIBRATION,)]).graph
    (source,) = (node.id for node in reading.graph if isinstance(node.op, ops.Input))
    expected = evaluate(repaired, {source: X})
    found = outputs(reading.write(repaired), X)
    for name, output, value in zip(chosen, repaired.outputs, found, strict=True):
        assert difference(expected[output], value).relative <= FLOAT32, name


WRITTEN: dict[str, tuple[Body, str]] = {
    "narrow": (lambda n, y: halves([torch.narrow(y, 1, 0, 8), torch.narrow(y, 1, 8, 8)]), "torch.narrow({}, 1, 4, 4)"),
    "narrow, keywords": (
        lambda n, y: halves([y.narrow(dim=1, start=0, length=8), y.narrow(1, 8, length=8)]),
        "{}.narrow(dim = 1, start = 0, length = 4)",
    ),
    "split": (lambda n, y: halves(y.split(split_size=8, dim=1)), "{}.split(split_size = 4, dim = 1)"),
    "sizes": (lambda n, y: turned(y.split_with_sizes([4, 12], dim=1)), "{}.split_with_sizes([2, 6], dim = 1)"),
    "chunk": (lambda n, y: halves(torch.chunk(y, 2, 1)), "torch.chunk({}, 2, 1)"),
    "ellipsis": (lambda n, y: halves([y[..., :8, :, :], y[..., 8:, :, :]]), "{}[(Ellipsis, slice(None, 4, None), slice("),
    "steps": (lambda n, y: halves([y[:, ::2], y[:, 1::2]]), "{}[(slice(None, None, None), slice(1, None, 2))]"),
    "view": (lambda n, y: y.view(-1, 16, 4, 4), "{}.view(-1, 8, 4, 4)"),
    "reshape": (lambda n, y: torch.reshape(y, shape=(-1, 16, 4, 4)), "torch.reshape({}, shape = (-1, 8, 4, 4))"),
    "unflatten": (lambda n, y: y.unflatten(1, sizes=(4, 4)).mean(2), "{}.unflatten(1, sizes = (4, 2))"),
    "expand": (lambda n, y: y.mean(1, keepdim=True).expand(-1, 16, 4, 4) * y, ".expand(-1, 8, 4, 4)"),
    "group_norm": (lambda n, y: torch.group_norm(y, num_groups=16), "torch.group_norm({}, num_groups = 8)"),
    "layer_norm": (lambda n, y: torch.layer_norm(y, [16, 4, 4]), "torch.layer_norm({}, [8, 4, 4])"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_arguments_stay_positional_or_by_keyword(name: str) -> None:
    body, expected = WRITTEN[name]
    model = fx.symbolic_trace(Model([spelled(body)]).eval())
    written = reparam_compiler.prune(model, (X,), ratio=0.5, round_to=1)
    assert expected.format("relu") in written.code, written.code


PINNED: dict[str, tuple[Body, str]] = {
    "select": (lambda n, y: y.select(1, 3).unsqueeze(1) + y, "select (select) calls channels by their numbers"),
    "unbind": (lambda n, y: torch.unbind(y, 1)[3].unsqueeze(1) + y, "unbind (unbind) calls channels by their numbers"),
    "index": (lambda n, y: y[:, 3].unsqueeze(1) + y, "getitem (getitem) calls channels by their numbers"),
    "slice and index": (lambda n, y: y[:, :8, 0], "getitem (getitem) calls channels by their numbers"),
    "list": (lambda n, y: y[:, [0, 3, 5]], "getitem (getitem) is not understood"),
    "index_select": (
        lambda n, y: y.index_select(1, torch.tensor([0, 2])),
        "index_select (index_select) calls channels by their numbers",
    ),
    "tensor_split": (lambda n, y: halves(y.tensor_split(2, 1)), "tensor_split (tensor_split) is not understood"),
    "another dtype": (lambda n, y: y.view(torch.int32).view(torch.float32), "view (view) is not understood"),
    "computed bounds": (lambda n, y: y[:, : y.shape[1] // 2], "getitem_1 (getitem) calls channels by their numbers"),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_has_no_writer_keeps_its_channels_and_says_why(name: str) -> None:
    body, reason = PINNED[name]
    with pytest.raises(InfeasiblePruneError, match=re.escape(reason)):
        reparam_compiler.prune(fx.symbolic_trace(Model([spelled(body)]).eval()), (X,), ratio=0.5, round_to=1)


def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    return torch.narrow(x, dim, start, length)


CUT = (ops.Slice(1, 0, 8), ops.Slice(1, 0, 4))
SIZES = ComputedSizes({}, frozenset())


@pytest.mark.parametrize(
    ("target", "arguments", "change"),
    [
        (narrow, (1, 0, 8), CUT),  # of the user's own
        (torch.cumsum, (1,), CUT),
        (torch.narrow, (1, 0, 8), (ops.Slice(1, 0, None), ops.Slice(1, 4, None))),  # to an end that is not known
        (aten.view.dtype, (torch.int32,), (ops.Reshape((2, 16)), ops.Reshape((2, 8)))),
        (torch.reshape, ((2, 16),), (ops.Reshape((0, 16)), ops.Reshape((-1, -1)))),
        (torch.split, (8, 1), (ops.Split(1, (8, 8)), ops.Slice(1, 0, 4))),
    ],
)
def test_what_a_call_cannot_say_is_refused(target: Any, arguments: tuple[Any, ...], change: tuple[ops.Op, ops.Op]) -> None:
    graph = fx.Graph()
    call = graph.call_function(target, (graph.placeholder("x"), *arguments))
    before, after = (Node("call", op, ("x",)) for op in change)
    with pytest.raises(RewriteError, match="call"):
        update_call(call, before, after, SIZES)
    assert call.target is target
    assert call.args[1:] == arguments


def test_a_spelling_has_one_writer() -> None:
    with pytest.raises(ValueError, match="narrow has a writer"):
        writes("narrow")(lambda call: None)
    with pytest.raises(ValueError, match="conv2d have a writer"):
        writes_module(ops.Conv, "conv2d")(lambda module, op, node: {})
    with pytest.raises(KeyError):
        writes("no row")(lambda call: None)
