"""Weights of several layers, weights that code transposes, and weights that nothing cuts, with the cause."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError
from tests.support.small_models import normal

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")


class TiedHead(nn.Module):
    """A language model's: the head has the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        y = self.embedding(ids)
        return self.head(y + self.down(self.up(y).relu()))


@pytest.mark.parametrize("quality", [None, "fast", "standard", "high"])
def test_a_head_tied_to_an_embedding_stays_tied(quality: Any) -> None:
    ids = torch.randint(0, 20, (12, 5), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {} if quality is None else {"calibration": ids, "quality": quality}
    pruned = reparam_compiler.prune(TiedHead().eval(), (ids[:1],), ratio=0.5, **options)
    assert type(pruned) is TiedHead
    assert pruned.head.weight is pruned.embedding.weight
    assert pruned.embedding.weight.shape == (20, 8)
    assert (pruned.embedding.embedding_dim, pruned.head.in_features) == (8, 8)


class Transposed(nn.Module):
    """An autoencoder of one weight, which its code transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(10, 16), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.into(x).relu(), self.into.weight.t()))


def test_a_weight_that_is_read_transposed_as_well_is_cut_in_both_places() -> None:
    pruned, report = reparam_compiler.prune(
        Transposed().eval(), (normal(3, 10).float(),), ratio=0.5, round_to=1, return_report=True
    )
    assert [(cut.name, cut.after) for cut in report.plan.families] == [("into", 8), ("linear", 5)]
    assert pruned(normal(7, 10).float()).shape == (7, 4)
    assert report.remarks == (
        "the result is a GraphModule, and no Transposed: t is not computed any more, and code that stays reads it",
    )


def complex_convs() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 16, 3, dtype=torch.cfloat), nn.Conv2d(16, 4, 1, dtype=torch.cfloat)
    return nn.Sequential(*layers), torch.randn(1, 3, 6, 5, dtype=torch.cfloat)


def hooked() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1))
    model[1].register_forward_hook(seen)
    return model, torch.randn(1, 3, 6, 5)


def seen(*given: Any) -> None:
    """A hook that changes nothing."""


def scripted() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 16, 3), torch.jit.script(nn.Conv2d(16, 4, 1))), torch.randn(1, 3, 6, 5)


@pytest.mark.filterwarnings("ignore")  # torch's own, of torch.jit
@pytest.mark.parametrize(
    ("build", "cause"),
    [
        (complex_convs, r"_0 \(conv\) computes with complex numbers"),
        (hooked, r"0: _1 \(Conv2d\) has a forward hook \(seen\)"),
        (scripted, r"0: _1 \(.*ScriptModule\) is a script \(torch\.jit\)"),
    ],
)
def test_what_keeps_channels_is_named_by_its_cause(build: Any, cause: str) -> None:
    model, x = build()
    with pytest.raises(InfeasiblePruneError, match=cause):
        reparam_compiler.prune(model.eval(), (x,), ratio=0.5)


def test_a_net_with_a_complex_part_is_cut_beside_it() -> None:
    class Filtered(nn.Module):
        """Scales frequencies by complex weights between two pairs of convs."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
            self.filter = nn.Parameter(torch.randn(4, 6, 3, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x).relu())
            return torch.fft.irfft2(torch.fft.rfft2(y) * self.filter, s=(6, 5))

    model = Filtered().eval()
    pruned, report = reparam_compiler.prune(model, (torch.randn(1, 3, 6, 5),), ratio=0.5, return_report=True)
    assert [(cut.name, cut.after) for cut in report.plan.families] == [("a", 8)]
    assert torch.equal(pruned.filter, model.filter)
    assert pruned(torch.randn(2, 3, 6, 5)).shape == (2, 4, 6, 5)


def test_an_op_that_says_no_shapes_is_named_as_what_keeps_channels() -> None:
    @torch.library.custom_op("shared_weights::without_shapes", mutates_args=())
    def without_shapes(x: Tensor) -> Tensor:
        return x.clone()

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.ops.shared_weights.without_shapes(self.a(x)))

    with pytest.raises(InfeasiblePruneError, match=r"a: without_shapes \(shared_weights::without_shapes\) is not understood"):
        reparam_compiler.prune(Custom().eval(), (torch.randn(1, 3, 6, 5),), ratio=0.5)
