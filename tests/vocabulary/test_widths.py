"""Every row beside a conv that loses channels: it is written back for those that are left, or it keeps their number.

A branch is a conv of 4 channels, a call of a row, and a linear layer. Each row is called with its arguments by place, by
keyword and by numpy's words, in an FX graph, and by place in an exported program. What is written must give what the masked
reference gives. A row that states a width which nobody writes fails here.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.slice_channels import masked
from reparam_compiler.vocabulary.row import Row
from tests.support.row_samples import CALLABLE, sample
from tests.support.small_models import normal

pytestmark = [
    pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of functions that torch will drop
]
INPUT = normal(2, 3, 6, 6)
FLOAT64 = 1e-9  # relative
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
        nn.init.constant_(self.conv.bias, 0.5)
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
    lambda y: torch.roll(y, shifts=1),
    lambda y: y.mT,
    lambda y: y.cumprod(3),
    lambda y: torch.slice_scatter(y, const(MAP.expand(2, 4, 1, 6), y), axis=2, start=0, end=1),
    lambda y: torch.select_scatter(y, const(MAP.expand(2, 4, 6, 1)[..., 0], y), 2, 0),
    lambda y: F.rms_norm(y.mean((2, 3)), (4,), eps=1e-5),
    lambda y: F.channel_shuffle(y, 2),
)
"""Calls of several tensors, along the channels, and in spellings of their own."""


def pruned(chosen: Sequence[Case], kind: str) -> tuple[list[str], int]:
    """What is wrong with these cases, in one model, and how many lost channels.

    They are halved where something is raised, to find what.
    """
    model = Branches([case.body for case in chosen])
    try:
        native: Any = torch.export.export(model, (INPUT,)) if kind == "export" else fx.symbolic_trace(model)
        reading = frontend_for(native).read(native, (INPUT,))
        result = pipeline.prune(reading.graph, ratio=0.5, round_to=1)
        written = _outputs(reading.write(result.graph))
    except Exception as error:  # noqa: BLE001  whatever is raised is the finding
        if len(chosen) == 1:
            kept = isinstance(error, InfeasiblePruneError)
            return ([] if kept else [f"{chosen[0].row} {chosen[0].spelling}: {type(error).__name__} {error}"]), 0
        halves = [pruned(half, kind) for half in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :])]
        return [*halves[0][0], *halves[1][0]], halves[0][1] + halves[1][1]
    (source,) = (node.id for node in reading.graph if isinstance(node.op, ops.Input))
    hidden = masked(reading.graph, result.groups, result.keep)
    expected = evaluate(hidden, {source: INPUT})
    pairs = zip(chosen, hidden.outputs, written, strict=True)
    apart = [(case, difference(expected[output], found).relative) for case, output, found in pairs]
    wrong = [f"{case.row} {case.spelling}: values {error} apart" for case, error in apart if not error <= FLOAT64]
    return wrong, sum(family.after < family.before for family in result.plan.families)


def _outputs(model: Any) -> list[Tensor]:
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    return list(module(INPUT))


def chosen_for(kind: str) -> list[Case]:
    """Keywords are those of FX graphs alone; functions of elements are pruned by test_rows.py."""
    more = [Case(inspect.getsource(body).strip(), "", body) for body in MORE]
    rows = [row for row in CALLABLE if row.form not in ("pointwise", "elementwise")] if kind == "fx" else []
    placed = [case for row in rows if (case := by_place(row)) is not None]
    return [*more, *placed, *(case for row in rows for case in by_keyword(row))]


@pytest.mark.parametrize("kind", ["fx", "export"])
def test_a_row_beside_a_cut_conv_is_written_for_what_is_left_or_keeps_all(kind: str) -> None:
    chosen, wrong, cut = chosen_for(kind), [], 0
    for first in range(0, len(chosen), 60):
        found, narrower = pruned(chosen[first : first + 60], kind)
        wrong, cut = wrong + found, cut + narrower
    assert not wrong
    assert cut > len(chosen) / 2  # most lose channels
