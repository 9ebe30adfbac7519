"""Sizes that a model computes: what is cut follows them, what cannot is pinned by name, also in calibration."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam_compiler

X = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(8, 3, 4, 6, generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    """Two convs, and what subclasses do between them and the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).relu()


class HeadsOfAStaticWidth(Base):
    """Heads are as wide as another tensor's width over their number, which the cut of qkv leaves behind."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).flatten(2).transpose(1, 2)
        b, n, c = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        z = (q @ k.transpose(-2, -1) * (c // 4) ** -0.5).softmax(-1) @ v
        return self.head(self.out(z.transpose(1, 2).reshape(b, n, c)) + y)


class Grid(Base):
    """A grid of the sizes, by functions that give several tensors."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        rows, columns = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij")
        return self.head((y + torch.stack((rows, columns)).float().mean(0)).mean((2, 3)))


class Reversed(Base):
    """The pieces of a split, as a list that is turned round."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat(self.features(x).split(8, 1)[::-1], 1).mean((2, 3)))


class SomePieces(Base):
    """Some of the pieces of a split."""

    def forward(self, x: Tensor) -> Tensor:
        some = torch.cat(self.features(x).split(4, 1)[1:3], 1)
        return self.head(torch.cat([some, some], 1).mean((2, 3)))


class GivesSizes(Base):
    """Sizes that no cut changes, among the outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        y = self.a(x).relu()
        return self.head(self.b(y).relu().mean((2, 3))), y.shape[0], y.shape[2]


class GivesAWidth(Base):
    """One that a cut would change."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        y = self.a(x).relu()
        return self.head(self.b(y).relu().mean((2, 3))), y.shape[1]


class NormOfItsShape(Base):
    """A norm over what the value has, spelled so."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).permute(0, 2, 3, 1)
        return self.head(F.layer_norm(y, y.shape[-1:]))


class NormOfAnotherShape(Base):
    """The same of another value, of a width that does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).permute(0, 2, 3, 1)
        return self.head(F.layer_norm(self.out(y), y.shape[-1:]))


@pytest.mark.parametrize("quality", [None, "standard"])
@pytest.mark.parametrize(
    ("kind", "cut", "pinned"),
    [
        (HeadsOfAStaticWidth, {"a", "qkv"}, {"b": "mul (mul) is computed with the size of transpose"}),
        (Grid, {"a", "b"}, {}),
        (Reversed, {"a"}, {"b": "getitem (getitem) is not understood"}),
        (SomePieces, {"a"}, {"b": "getitem (getitem) is not understood"}),
        (GivesSizes, {"a", "b"}, {}),
        (GivesAWidth, {"b"}, {"a": "getitem (getitem) is a model output"}),
        (NormOfItsShape, {"a", "b"}, {}),
        (NormOfAnotherShape, {"a", "b", "out"}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")
def test_what_is_computed_from_sizes_is_cut_or_named(
    kind: type[Base], cut: set[str], pinned: dict[str, str], quality: Any
) -> None:
    given: dict[str, Any] = {} if quality is None else {"calibration": DATA, "quality": quality}
    pruned, report = reparam_compiler.prune(kind().eval(), (X,), ratio=0.5, round_to=1, return_report=True, **given)
    assert {family.name for family in report.plan.families if family.after < family.before} == cut
    found = {family.name: family.reason for family in report.plan.pinned}
    assert {name: found.get(name) for name in pinned} == pinned
    expected, outputs = kind().eval()(DATA), pruned(DATA)
    if isinstance(outputs, tuple):
        assert expected[1:] == outputs[1:]
