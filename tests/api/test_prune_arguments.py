"""Arguments that are not given have their default, in pruning and in its calibration; what is given counts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError, UnrepairedPruneWarning, UnsupportedModelError

X = torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(8, 3, 6, 5, generator=torch.Generator().manual_seed(1))
SHIFT = torch.randn(8, 10, 6, 5, generator=torch.Generator().manual_seed(2))


class Base(nn.Module):
    """Two convs; subclasses differ in what forward() may be given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 10, 1)

    def run(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu())


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class OfNone(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.run(x) if mask is None else self.run(x) * mask


class OfANumber(Base):
    def forward(self, x: Tensor, scale: float = 3.0) -> Tensor:
        return self.c(self.a(x).relu() * scale)


class KeywordOnly(Base):
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return self.run(x) if mask is None else self.run(x) * mask


class OfAnything(Base):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.run(x)


class Unread(Base):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        return self.run(x)


class WithALoss(Base):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        y = self.run(x)
        return F.cross_entropy(y.mean((2, 3)), targets) if self.training and targets is not None else y


@pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")
@pytest.mark.parametrize("kind", [OfNone, OfANumber, KeywordOnly, OfAnything, Unread, WithALoss])
@pytest.mark.parametrize("calibration", [None, DATA])
def test_what_is_not_given_has_its_default(kind: type[Base], calibration: Tensor | None) -> None:
    model = kind().eval()
    pruned, report = reparam_compiler.prune(model, (X,), ratio=0.5, calibration=calibration, return_report=True)
    assert [(family.before, family.after) for family in report.plan.families] == [(16, 8)]
    assert pruned(DATA).shape == (8, 10, 6, 5)
    plain = reparam_compiler.prune(Plain().eval(), (X,), ratio=0.5, calibration=calibration)
    assert torch.equal(pruned.a.weight, plain.a.weight)
    if kind is not OfANumber:
        assert torch.equal(pruned(DATA), plain(DATA))


@pytest.mark.parametrize("verb", [reparam_compiler.prune, reparam_compiler.inspect])
@pytest.mark.parametrize("kind", [lambda model: model, torch.fx.symbolic_trace, lambda model: torch.export.export(model, (X,))])
def test_an_input_too_many_is_refused(kind: Callable[[nn.Module], Any], verb: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"takes 2 positional arguments but 3|at most 1 example inputs; found 2"):
        verb(kind(Plain().eval()), (X, X))


@pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")
def test_a_pruned_model_still_takes_the_argument() -> None:
    model = OfANumber().eval()
    pruned = reparam_compiler.prune(model, (X,), ratio=0.5)
    off = pruned.c.bias.detach().reshape(1, -1, 1, 1)
    torch.testing.assert_close((pruned(X, scale=6.0) - off), 2 * (pruned(X) - off))


class Several(Base):
    def forward(self, x: Tensor, flag: bool, mask: Tensor | None, shift: Tensor, scale: float = 1.0) -> Tensor:
        return self.c(self.a(x).relu() * scale) + shift


@pytest.mark.parametrize(
    "calibration",
    [[(DATA, True, None, SHIFT)], [(DATA, None, None, SHIFT)], {"x": DATA, "shift": SHIFT}, [{"x": DATA, "shift": SHIFT}]],
)
@pytest.mark.parametrize("export", [False, True])
def test_batches_are_matched_to_the_tensors(calibration: Any, export: bool) -> None:
    model, given = Several().eval(), (X, True, None, SHIFT[:1], 2.0)
    native = torch.export.export(model, given) if export else model
    _, report = reparam_compiler.prune(
        native, None if export else given, ratio=0.5, calibration=calibration, return_report=True
    )
    assert report.plan.repair is not None
    assert report.plan.repair.samples == 7
    assert [(family.before, family.after) for family in report.plan.families] == [(16, 8)]


def test_sizes_come_from_calibration_data_where_no_inputs_are_given() -> None:
    pruned, report = reparam_compiler.prune(OfNone().eval(), ratio=0.5, calibration=iter([DATA]), return_report=True)
    assert report.plan.repair is not None
    assert report.plan.repair.samples == 7
    assert pruned(X).shape == (1, 10, 6, 5)


def held(wiring: Callable[[Base, Any], Tensor]) -> Base:
    """A model of one argument that holds tensors."""
    return type("Held", (Base,), {"forward": lambda m, given: wiring(m, given)})().eval()


class Star(Base):
    def forward(self, *given: Tensor) -> Tensor:
        return self.run(given[0]) + 2 * self.run(given[1])


OTHER = -3 * DATA


@pytest.mark.parametrize(
    ("model", "given", "batch"),
    [
        (held(lambda m, given: m.run(given[0]) + 2 * m.run(given[1])), ([X, -X],), ([DATA, OTHER],)),
        (held(lambda m, given: m.run(given["x"]) + 2 * m.run(given["y"])), ({"x": X, "y": -X},), {"y": OTHER, "x": DATA}),
        (Star().eval(), (X, -X), (DATA, OTHER)),
    ],
    ids=["list", "mapping in another order", "*args"],
)
def test_inputs_that_hold_several_tensors_are_pruned_and_repaired_as_tensors_are(model: Base, given: Any, batch: Any) -> None:
    pruned, report = reparam_compiler.prune(model, given, ratio=0.5, calibration=[batch], return_report=True)
    assert type(pruned) is type(model)
    assert report.remarks[0].startswith(f"no trace will do for {type(model).__name__}, so it was exported")
    assert torch.equal(pruned.a.weight, tensors_pruned().a.weight)
    torch.testing.assert_close(pruned(*given), tensors_pruned()(X, -X))


@cache
def tensors_pruned() -> nn.Module:
    """The same model, called with the tensors themselves."""
    plain = type("Plain", (Base,), {"forward": lambda m, x, y: m.run(x) + 2 * m.run(y)})().eval()
    return reparam_compiler.prune(plain, (X, -X), ratio=0.5, calibration=[(DATA, OTHER)])


def test_a_manifest_cuts_a_model_whose_input_holds_several_tensors() -> None:
    plain = type("Plain", (Base,), {"forward": lambda m, x: m.run(x)})().eval()
    with pytest.warns(UnrepairedPruneWarning):
        _, report = reparam_compiler.prune(plain, (X,), ratio=0.5, return_report=True)
    assert reparam_compiler.apply_manifest(held(lambda m, given: m.run(given[0])), report.manifest, ([X],)).a.out_channels == 8


@dataclass
class Taken:
    """What torch knows no tree of."""

    x: Tensor


@pytest.mark.parametrize(
    ("model", "given", "data", "said"),
    [
        (
            held(lambda m, given: m.run(given["x"])),
            None,
            [{"x": DATA}],
            r"of which an array is taken .* \(given\); give example_inputs",
        ),
        (held(lambda m, given: m.run(given.x)), None, [Taken(DATA)], "for given is a Taken; expected numbers"),
        (held(lambda m, given: m.run(given.x)), (Taken(X),), [Taken(DATA)], r"inputs that are no tensors \(Taken\)"),
        (torch.fx.symbolic_trace(Star()).eval(), (X, X), None, r"\*given among the arguments; .* Pass torch.export.export"),
        (
            torch.fx.symbolic_trace(held(lambda m, given: m.run(given[0]))),
            ([X],),
            None,
            "an input that is a list; expected tensors",
        ),
    ],
    ids=["a batch that is a mapping", "a batch that is an object", "an object", "*args of a trace", "a list of a trace"],
)
def test_inputs_that_no_tensor_is_known_of_are_refused_with_their_cause(model: Any, given: Any, data: Any, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        reparam_compiler.prune(model, given, ratio=0.5, calibration=data)


class Drops(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.dropout(self.a(x).relu(), 0.5, self.training))


def test_a_dropout_in_training_mode_is_named_as_what_pins() -> None:
    with pytest.raises(InfeasiblePruneError, match=r"dropout \(dropout\) is random, .* \(call model.eval\(\) first\)"):
        reparam_compiler.prune(Drops(), (X,), ratio=0.5)


class Mixed(Base):
    """A trace of it runs on the example's batch alone, and mixes the samples of any other."""

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x).view(1, 10, -1).mean(2)


class Sized(Base):
    """No tracer takes it, so that it is exported, and checks the sizes of its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c(torch.cat(list(y.chunk(2, 1)), 1) if y.shape[2] < 99 else y)


@pytest.mark.parametrize("kind", [Mixed, Sized])
def test_more_samples_than_the_example_has_calibrate(kind: type[Base]) -> None:
    whole, alone = (
        reparam_compiler.prune(kind().eval(), (X,), ratio=0.5, calibration=data, round_to=4)
        for data in (DATA, list(DATA.split(1)))
    )
    torch.testing.assert_close(whole(X), alone(X), rtol=1e-3, atol=1e-4)


class Logs(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).log())


@pytest.mark.parametrize("importance", [None, "lasso"])
def test_numbers_that_are_not_finite_are_named_by_where_they_arise(importance: str | None) -> None:
    model = Logs().eval()
    nn.init.ones_(model.a.bias)  # so that zeros have a logarithm
    data = [torch.zeros(8, 3, 6, 5), DATA]
    with pytest.raises(InfeasiblePruneError, match=r"log \(log\) gives numbers that are not finite on calibration batch 1"):
        reparam_compiler.prune(model, (X,), ratio=0.5, importance=importance, calibration=data)


def test_an_op_that_gives_numbers_that_are_not_finite_leaves_its_readers_unrepaired() -> None:
    model = Logs().eval()
    nn.init.ones_(model.a.bias)  # some places have a logarithm
    _, report = reparam_compiler.prune(model, (X,), ratio=0.5, importance="l1", calibration=DATA, return_report=True)
    assert "not repaired  c: reads or gives numbers on the calibration data that are not finite" in report.to_text()


def test_a_cut_that_nothing_finite_can_prove_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"^c: on random inputs it is NaN everywhere, so that no cut can be proven"):
        reparam_compiler.prune(Logs().eval(), (X,), ratio=0.5, importance="l1", calibration=DATA)


def test_weights_without_values_are_refused_by_name() -> None:
    with torch.device("meta"):
        model, x = Unread().eval(), torch.empty(1, 3, 6, 5)
    with pytest.raises(UnsupportedModelError, match=r"a\.weight is on the device meta: it has a shape and no values"):
        reparam_compiler.prune(model, (x,), ratio=0.5)
