"""Every row beside a conv that loses channels: it is written back for those that are left, or it keeps their number.

A branch is a conv of 4 channels, a call of a row, and a linear layer. Each row is called with its arguments by place, by
keyword and by numpy's words, in an FX graph, an exported program, a decomposed one and an ONNX model. What is written must
give, run by its own framework, what the masked reference gives. A row that states a width which nobody writes fails here, and
so does one with a reader or a coupling model that no case calls.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, fx, nn

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.torch.ops.coupling_models import COUPLING_MODELS
from reparam_compiler.frontends.torch.ops.table import READERS
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.slice_channels import masked
from reparam_compiler.vocabulary.resolve import resolve_attribute, resolve_function, resolve_method
from reparam_compiler.vocabulary.row import Row
from tests.support.onnx_models import exported, model_of, run
from tests.support.row_samples import CALLABLE, sample
from tests.support.small_models import normal

pytestmark = [
    pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch's exporter, and of functions that it will drop
]
INPUT = normal(2, 3, 6, 6)
FLOAT64, FLOAT32 = 1e-9, 1e-4  # relative; ONNX Runtime has no float64 convs
aten = torch.ops.aten
Body = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Case:
    """A call in one spelling. row: of the vocabulary."""

    row: str
    spelling: str
    body: Body


class Branch(nn.Module):
    """A conv, a call of what it gives, and a linear layer of all that comes out, where that is a batch of images."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 4, 3, padding=1), body
        nn.init.uniform_(self.conv.bias, 0.4, 0.6)  # no two alike: torch's exporter to ONNX makes equal tensors one
        self.conv.weight.data.mul_(0.1)  # arcsines and logarithms are of numbers between 0 and 1
        given = body(torch.full((2, 4, 6, 6), 0.5, dtype=torch.float64))
        self.ranks = [part.ndim for part in given] if isinstance(given, tuple | list) else given.ndim
        flat = self.joined(given, torch.float64)
        self.head = nn.Linear(flat.shape[1], 3) if flat.ndim == 2 else nn.Identity()

    def joined(self, given: Any, dtype: Any) -> Tensor:
        """All that a call gives, in one line for each image."""
        if isinstance(self.ranks, int):
            return given.to(dtype).flatten(1) if self.ranks > 1 else given.to(dtype)
        return torch.cat([given[index].to(dtype).flatten(1) for index in range(len(self.ranks))], 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(self.joined(self.body(y), y.dtype))


class Branches(nn.Module):
    def __init__(self, bodies: Sequence[Body]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(map(Branch, bodies))
        self.double().eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


def runs(body: Body) -> bool:
    try:
        Branch(body)
    except (TypeError, RuntimeError, ValueError, AttributeError, NotImplementedError):
        return False
    return True


def by_place(row: Row) -> Case | None:
    """The first spelling of a row that runs: a function, else a method."""
    given = sample(row) or ()
    words = [word for word in row.spelled if word.isidentifier()]
    functions = [getattr(space, word) for word in words for space in (torch, F) if callable(getattr(space, word, None))]
    for function in functions:
        if runs(body := lambda y, f=function: f(y, *given)):
            return Case(row.name, "by place", body)
    for word in words:
        if hasattr(Tensor, word) and runs(body := lambda y, w=word: getattr(y, w)(*given)):
            return Case(row.name, "by place", body)
    return None


def by_keyword(row: Row) -> Iterator[Case]:
    """The same by the names of aten's parameters, and by numpy's words for these."""
    given, word = sample(row) or (), row.spelled[0]
    packet = getattr(aten, word, None)
    for overload in [] if packet is None or not given else packet.overloads():
        names = [argument.name for argument in getattr(packet, overload)._schema.arguments[1:]]
        keywords = dict(zip(names, given, strict=False))
        if len(keywords) < len(given) or not runs(body := lambda y, k=keywords: getattr(y, word)(**k)):
            continue
        yield Case(row.name, "by keyword", body)
        as_numpy = {{"dim": "axis", "keepdim": "keepdims", "other": "x2"}.get(name, name): v for name, v in keywords.items()}
        if as_numpy != keywords and runs(body := lambda y, k=as_numpy: getattr(torch, word)(x=y, **k)):
            yield Case(row.name, "by numpy's words", body)
        return


MAP, LINE = normal(4, 1, 1, seed=2), normal(4, seed=3)
OF = {shape: normal(*shape) for shape in ((6, 2, 1, 1), (4, 1, 2, 2), (5, 4), (4, 5), (2, 4))}


def const(tensor: Tensor, y: Tensor) -> Tensor:
    """A tensor of the model's own, in the dtype that the model has."""
    return tensor.to(y.dtype)


MORE: tuple[Body, ...] = (
    lambda y: torch.cat((y, -y), 1),
    lambda y: torch.cat((y, -y), axis=1),
    lambda y: torch.stack((y, -y), 1).flatten(1, 2),
    lambda y: torch.stack((y, -y), axis=2).sum(axis=2, keepdims=True),
    lambda y: torch.hstack((y, -y)),
    lambda y: torch.split(y, [1, 3], 1),
    lambda y: torch.split_with_sizes(y, [2, 2], 1),
    lambda y: y.chunk(2, axis=1),
    lambda y: y.tensor_split(2, 1),
    lambda y: torch.unbind(y, 1),
    lambda y: torch.unbind(y, 2),
    lambda y: torch.narrow(y, axis=1, start=0, length=2),
    lambda y: y[:, :2],
    lambda y: y[:, 1],
    lambda y: y[:, None],
    lambda y: y[..., 1:-1],
    lambda y: y[:, [0, 2]],
    lambda y: y[:, :, [0, 2]],
    lambda y: aten.slice.Tensor(y, 1, 0, 2),
    lambda y: y.select(axis=1, index=2),
    lambda y: y.select(2, 1),
    lambda y: y.index_select(1, torch.tensor([0, 2])),
    lambda y: y.index_select(2, torch.tensor([0, 2])),
    lambda y: y.repeat_interleave(2, 1),
    lambda y: y.repeat_interleave(2, 1, output_size=8),
    lambda y: y.repeat_interleave(2, 2, output_size=12),
    lambda y: y.mean(1, keepdim=True).squeeze(1),
    lambda y: y[:, :, :1].squeeze(2),
    lambda y: y.mean(2, keepdim=True).squeeze(),
    lambda y: y[:, :2].squeeze(),
    lambda y: y[:, :2].squeeze(1),
    lambda y: y.flip(3, 1),
    lambda y: y.flip(2, 3),
    lambda y: y.flip((1,)),
    lambda y: y.roll(1, 1),
    lambda y: y.roll(1, 2),
    lambda y: y.tile(1, 2, 1, 1),
    lambda y: y.repeat(1, 2, 1, 1),
    lambda y: y.repeat(1, 1, 2, 1),
    lambda y: y.mean((2, 3), keepdim=True).expand(2, 4, 6, 6) * y,
    lambda y: torch.broadcast_to(y[:, :, :1], (2, 4, 6, 6)) * y,
    lambda y: y[:, :1].expand(-1, 4, -1, -1),
    lambda y: y[:, :, :1].expand_as(other=y) + y,
    lambda y: y.view(2, 2, 2, 36),
    lambda y: y.reshape(2, -1, 6),
    lambda y: y.reshape(2, 144).view_as(y),
    lambda y: y.unflatten(1, (2, 2)),
    lambda y: y.unflatten(-1, (2, 3)),
    lambda y: y.flatten(2),
    lambda y: y.flatten(1, 2),
    lambda y: y.permute(0, 2, 3, 1),
    lambda y: y.transpose(1, 2),
    lambda y: y.movedim(1, 3),
    lambda y: y.swapaxes(1, 2),
    lambda y: y.softmax(axis=1),
    lambda y: torch.softmax(y, axis=2),
    lambda y: y.log_softmax(2),
    lambda y: F.softmin(y, 3),
    lambda y: y.cumsum(1),
    lambda y: F.normalize(y),
    lambda y: F.normalize(y, dim=2),
    lambda y: F.glu(y, 1),
    lambda y: F.glu(y, 2),
    lambda y: y.mean(1),
    lambda y: y.mean(axis=(2, 3), keepdims=True),
    lambda y: y.mean((1, 2), keepdim=True),
    lambda y: y.sum((2, 3)),
    lambda y: y.amax(1),
    lambda y: y.amin((1, 3)),
    lambda y: y.var(2, keepdim=True),
    lambda y: y.std((1, 2), keepdim=True),
    lambda y: y.var(axis=1),
    lambda y: torch.linalg.vector_norm(y, axis=1),
    lambda y: y.norm(dim=(2, 3)),
    lambda y: torch.norm(y, 1, dim=1),
    lambda y: F.pad(y, (1, 1)),
    lambda y: F.pad(y, (0, 0, 0, 0, 1, 2)),
    lambda y: F.pad(y, (1, 1, 1, 1), "reflect"),
    lambda y: torch.constant_pad_nd(y, (0, 0, 0, 0, 1, 1), 2.0),
    lambda y: F.interpolate(y, scale_factor=2),
    lambda y: F.interpolate(y, (3, 4), mode="bilinear"),
    lambda y: F.avg_pool2d(y, 2),
    lambda y: F.max_pool2d(y, 2),
    lambda y: F.adaptive_avg_pool2d(y, (2, 3)),
    lambda y: F.adaptive_max_pool2d(y, 2),
    lambda y: F.avg_pool1d(y.flatten(2), 2),
    lambda y: F.max_pool1d(y.flatten(2), 2),
    lambda y: F.avg_pool1d(y.flatten(1, 2), 2),
    lambda y: F.conv2d(y, const(MAP[:, None], y), None, 1, 0, 1, 4),
    lambda y: torch.conv2d(y, const(OF[6, 2, 1, 1], y), groups=2),
    lambda y: F.conv_transpose2d(y, const(OF[4, 1, 2, 2], y), groups=4),
    lambda y: torch.convolution(y, const(MAP[:, None], y), None, (1, 1), (0, 0), (1, 1), False, (0, 0), 4),
    lambda y: F.conv1d(y.flatten(2), const(MAP, y), groups=4),
    lambda y: F.linear(y.mean((2, 3)), const(OF[5, 4], y)),
    lambda y: y.mean((2, 3)) @ const(OF[4, 5], y),
    lambda y: torch.addmm(const(LINE[:1], y), y.mean((2, 3)), const(OF[4, 5], y)),
    lambda y: torch.mm(y.mean((2, 3)), mat2=const(OF[4, 5], y)),
    lambda y: torch.matmul(y.flatten(2), y.flatten(2).transpose(1, 2)),
    lambda y: torch.bmm(input=y.flatten(2).transpose(1, 2), mat2=y.flatten(2)),
    lambda y: torch.einsum("nchw,cd->ndhw", y, const(OF[4, 5], y)),
    lambda y: F.scaled_dot_product_attention(*(y.flatten(2).transpose(1, 2),) * 3),
    lambda y: F.layer_norm(y, (4, 6, 6)),
    lambda y: F.layer_norm(y.mean((2, 3)), (4,), const(LINE, y)),
    lambda y: torch.native_layer_norm(y.mean((2, 3)), (4,), const(LINE, y), None, 1e-5)[0],
    lambda y: F.group_norm(y, 4, const(LINE, y)),
    lambda y: F.group_norm(y, 2),
    lambda y: F.instance_norm(y),
    lambda y: torch.instance_norm(y, const(LINE, y), None, None, None, True, 0.1, 1e-5, False),
    lambda y: F.batch_norm(y, const(LINE, y), const(LINE.abs(), y), const(LINE, y)),
    lambda y: torch.batch_norm(y, None, const(LINE, y), const(LINE, y), const(LINE.abs(), y), False, 0.1, 1e-5, False),
    lambda y: F.prelu(y, const(LINE, y)),
    lambda y: F.prelu(y, const(LINE[:1], y)),
    lambda y: F.embedding(y.mean((2, 3)).long(), const(OF[2, 4], y)),
    lambda y: torch.embedding(const(OF[2, 4], y), y.mean((2, 3)).long()),
    lambda y: torch.where(y > 0.5, y, const(MAP, y)),
    lambda y: y.masked_fill(const(MAP, y) > 0, 1.0),
    lambda y: y * const(MAP, y),
    lambda y: torch.rsub(y, 1),
    lambda y: y / const(MAP, y),
    lambda y: torch.add(y, y, alpha=2),
    lambda y: torch.full_like(y, 2.0) * y,
    lambda y: F.dropout(y, training=False),
    lambda y: F.gelu(y, approximate="tanh"),
    lambda y: F.hardtanh(y, 0, 6),
    lambda y: F.pixel_shuffle(y, 2),
)
"""Calls of several tensors, along the channels, and in spellings of their own."""


TORCH_ALONE: tuple[Body, ...] = (
    lambda y: F.conv3d(y[:, :, None], const(MAP[:, None, None], y), groups=4),
    lambda y: F.conv_transpose1d(y.flatten(2), const(MAP, y), groups=4),
    lambda y: F.conv_transpose3d(y[:, :, None], const(MAP[:, None, None], y), groups=4),
    lambda y: F.conv2d(y, const(MAP[:, None], y), padding="same", groups=4),
    lambda y: F.avg_pool3d(y[:, :, None], (1, 2, 2)),
    lambda y: F.max_pool3d(y[:, :, None], (1, 2, 2)),
    lambda y: F.lp_pool1d(y.flatten(2), 2.0, 2),
    lambda y: F.adaptive_avg_pool1d(y.flatten(2), 5),
    lambda y: F.adaptive_avg_pool3d(y[:, :, None], (1, 2, 2)),
    lambda y: F.adaptive_max_pool1d(y.flatten(2), 5),
    lambda y: F.adaptive_max_pool3d(y[:, :, None], (1, 2, 2)),
    lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    lambda y: F.interpolate(y.flatten(2), 50, mode="nearest"),
    lambda y: F.interpolate(y.flatten(2), 50, mode="linear"),
    lambda y: F.interpolate(y, (4, 9), mode="bicubic"),
    lambda y: F.interpolate(y, (4, 3), mode="bilinear", antialias=True),
    lambda y: F.interpolate(y, (4, 3), mode="bicubic", antialias=True),
    lambda y: F.interpolate(y[:, :, None], (2, 4, 3), mode="nearest"),
    lambda y: F.interpolate(y[:, :, None], (2, 4, 3), mode="trilinear"),
    lambda y: F.dropout1d(y.flatten(2), training=False),
    lambda y: F.dropout2d(y, training=False),
    lambda y: F.dropout3d(y[:, :, None], training=False),
    lambda y: F.alpha_dropout(y, training=False),
    lambda y: F.feature_alpha_dropout(y, training=False),
    lambda y: torch.feature_dropout(y, 0.5, False),
    lambda y: y.mean((2, 3)).t().t(),
    lambda y: y.mean((2, 3)).T.T,
    lambda y: y.type(torch.float32),
    lambda y: y.type_as(y[0]),
    lambda y: y.float(),
    lambda y: y.double(),
    lambda y: y.half(),
    lambda y: y.bfloat16(),
    lambda y: (100 * y).int(),
    lambda y: (y - 0.5).relu().bool(),
    lambda y: ~(y > 0.5),
    lambda y: +y,
    lambda y: aten.alias(y),
    lambda y: aten._unsafe_view(y, (2, 4, 36)),
    lambda y: torch.roll(y, shifts=1),
    lambda y: y.mT,
    lambda y: y.cumprod(3),
    lambda y: torch.slice_scatter(y, const(MAP.expand(2, 4, 1, 6), y), axis=2, start=0, end=1),
    lambda y: torch.select_scatter(y, const(MAP.expand(2, 4, 6, 1)[..., 0], y), 2, 0),
    lambda y: F.rms_norm(y.mean((2, 3)), (4,), eps=1e-5),
    lambda y: F.channel_shuffle(y, 2),
)
"""Those that torch's exporter to ONNX has no form for."""


ALONE = {
    "export": frozenset(
        {
            *("upsample_nearest1d", "upsample_linear1d", "upsample_nearest3d", "upsample_trilinear3d"),
            *(
                "upsample_nearest2d",
                "upsample_bilinear2d",
                "upsample_bicubic2d",
                "_upsample_bilinear2d_aa",
                "_upsample_bicubic2d_aa",
            ),
            *("bitwise_not", "index", "lift_fresh_copy", "numpy_T"),
        }
    ),
    "decomposed": frozenset({"_softmax", "_log_softmax", "_native_batch_norm_legit_no_training", "_to_copy"}),
}
"""Rows that only these kinds of model call."""
DECOMPOSED = (
    *("norm", "softm", "attention", "pool", "pad", "mm(", "matmul", "@", "linear", "einsum", "glu", "chunk"),
    *("to(", "float", "half", "bfloat16"),
)
"""Words of calls that torch decomposes into others; the rest is as it was exported."""
ELSEWHERE = frozenset({"padded_conv", "gelu_tanh", "shrink_both", "space_to_depth"})
"""Rows that no call of torch's is: of our modules, of a word with an argument, and of ONNX alone."""


def called_rows(model: fx.GraphModule | torch.export.ExportedProgram) -> set[str]:
    """The rows that a model of torch calls."""
    found = []
    for node in model.graph.nodes:
        if node.target is getattr:
            found.append(resolve_attribute(node.args[1]))
        elif node.op in ("call_function", "call_method"):
            found.append(resolve_method(node.target) if node.op == "call_method" else resolve_function(node.target))
    return {resolved.row.name for resolved in found if resolved.row is not None}


def pruned(chosen: Sequence[Case], kind: str, folder: Path) -> tuple[list[str], int, set[str]]:
    """What is wrong with these cases, in one model, how many lost channels, and the rows that were called.

    They are halved where something is raised, to find what.
    """
    native = _native(tuple(case.body for case in chosen), kind, folder)
    try:
        reading = frontend_for(native).read(native, None if kind == "onnx" else (INPUT,))
        result = pipeline.prune(reading.graph, ratio=0.5, round_to=1)
        written = _outputs(reading.write(result.graph))
    except Exception as error:  # noqa: BLE001  whatever is raised is the finding
        if len(chosen) == 1:
            kept = isinstance(error, InfeasiblePruneError)
            wrong = [] if kept else [f"{chosen[0].row} {chosen[0].spelling}: {type(error).__name__} {error}"]
            return wrong, 0, set() if kind == "onnx" else called_rows(native)
        halves = [pruned(half, kind, folder) for half in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :])]
        return [*halves[0][0], *halves[1][0]], halves[0][1] + halves[1][1], halves[0][2] | halves[1][2]
    (source,) = (node.id for node in reading.graph if isinstance(node.op, ops.Input))
    hidden = masked(reading.graph, result.groups, result.keep)
    expected = evaluate(hidden, {source: INPUT.float().double() if kind == "onnx" else INPUT})
    room = FLOAT32 if kind == "onnx" else FLOAT64
    pairs = zip(chosen, hidden.outputs, written, strict=True)
    apart = [(case, difference(expected[output], found).relative) for case, output, found in pairs]
    wrong = [f"{case.row} {case.spelling}: values {error} apart" for case, error in apart if not error <= room]
    cut = sum(family.after < family.before for family in result.plan.families)
    return wrong, cut, set() if kind == "onnx" else called_rows(native)


def _native(bodies: tuple[Body, ...], kind: str, folder: Path) -> Any:
    if kind == "onnx":
        return exported(Branches(bodies).float(), INPUT.float(), folder, dynamo=False, dynamic=False)
    if kind == "fx":
        return fx.symbolic_trace(Branches(bodies))
    return _program(bodies) if kind == "export" else _program(bodies).run_decompositions()


@cache
def _program(bodies: tuple[Body, ...]) -> torch.export.ExportedProgram:
    return torch.export.export(Branches(bodies), (INPUT,))


def _outputs(model: Any) -> list[Tensor]:
    if isinstance(model, torch.export.ExportedProgram):
        return list(model.module()(INPUT))
    if isinstance(model, nn.Module):
        return list(model(INPUT))
    return [torch.from_numpy(value) for value in run(model, {"x": INPUT.float().numpy()})]


def chosen_for(kind: str) -> list[Case]:
    """Keywords are those of FX graphs alone; functions of elements are pruned by test_rows.py."""
    bodies = MORE if kind == "onnx" else (*MORE, *TORCH_ALONE)
    more = [Case(inspect.getsource(body).strip(), "", body) for body in bodies]
    if kind == "decomposed":
        more = [case for case in more if any(word in case.row for word in DECOMPOSED)]
    rows = [row for row in CALLABLE if row.form not in ("pointwise", "elementwise")] if kind == "fx" else []
    placed = [case for row in rows if (case := by_place(row)) is not None]
    return [*more, *placed, *(case for row in rows for case in by_keyword(row))]


@pytest.mark.parametrize("kind", ["fx", "export", "decomposed", "onnx"])
def test_a_row_beside_a_cut_conv_is_written_for_what_is_left_or_keeps_all(kind: str, tmp_path: Path) -> None:
    chosen = chosen_for(kind)
    wrong, cut, called = [], 0, set[str]()
    for first in range(0, len(chosen), 60):
        found, narrower, rows = pruned(chosen[first : first + 60], kind, tmp_path)
        wrong, cut, called = wrong + found, cut + narrower, called | rows
    assert not wrong
    assert cut > len(chosen) / 2  # most lose channels
    assert ALONE.get(kind, frozenset()) <= called
    if kind == "fx":
        elements = {row for row in CALLABLE if row.form in ("pointwise", "elementwise")}  # test_rows.py has these
        needed = {row.name for row in {**READERS, **COUPLING_MODELS} if row not in elements}
        assert called & needed == needed - ELSEWHERE - ALONE["export"] - ALONE["decomposed"]


@pytest.mark.parametrize(("kind", "attributes"), [("SpaceToDepth", {"blocksize": 2}), ("Shrink", {"lambd": 0.3, "bias": 0.1})])
def test_what_only_onnx_has_is_written_for_what_is_left(kind: str, attributes: dict[str, Any]) -> None:
    wide = 16 if kind == "SpaceToDepth" else 4
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["y"], "first"),
        helper.make_node(kind, ["y"], ["z"], kind, **attributes),
        helper.make_node("Conv", ["z", "last"], ["out"], "last"),
    ]
    weights = {"first": normal(4, 3, 1, 1).float().numpy(), "last": normal(2, wide, 1, 1).float().numpy()}
    model = model_of(nodes, {"x": (2, 3, 6, 6)}, ["out"], weights)
    reading = frontend_for(model).read(model)
    result = pipeline.prune(reading.graph, ratio=0.5, round_to=1)
    assert [(family.before, family.after) for family in result.plan.families] == [(4, 2)]
    expected = evaluate(masked(reading.graph, result.groups, result.keep), {"x": INPUT.float()})["out"]
    (found,) = run(reading.write(result.graph), {"x": INPUT.float().numpy()})
    assert difference(expected, torch.from_numpy(found)).relative < FLOAT32
