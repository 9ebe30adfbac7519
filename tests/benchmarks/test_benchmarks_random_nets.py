"""Random nets: the same for the same number, of the parts that they should have, and told apart by what became of them."""

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("onnx")

import reparam_compiler
from benchmarks import random_nets
from benchmarks.op_coverage import Outcome
from benchmarks.random_nets import KINDS, Trial, outcome, text, trials
from reparam_compiler.errors import InfeasiblePruneError
from tests.support.random_nets import DEEPEST, STEPS, random_net


def test_a_net_is_the_same_for_the_same_number_and_gives_finite_numbers() -> None:
    kinds = set[str]()
    for seed in range(25):
        (net, x), (again, same) = random_net(seed), random_net(seed)
        assert torch.equal(x, same)
        assert net.steps == again.steps
        assert 2 <= len(net.steps) <= DEEPEST + 1  # a head
        with torch.no_grad():
            for y, z in zip(*(found if isinstance(found, tuple) else (found,) for found in (net(x), again(x))), strict=True):
                assert y.isfinite().all()
                assert torch.equal(y, z)
        kinds |= {kind for kind, *_ in net.steps}
    assert {"layer", "branches", "add", "cat"} <= kinds <= STEPS.keys()


@pytest.mark.parametrize("number", [39, 40, 41])
@pytest.mark.parametrize("verb", ["fuse", "prune"])
def test_a_net_of_each_kind_goes_through_a_verb_unchanged(verb: str, number: int) -> None:
    found = outcome(Trial(number, verb))
    assert found.found == "equal", found.words
    assert found.name == f"{verb} {KINDS[number % 3]} {number}"


def test_a_net_that_torch_does_not_export_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    assert outcome(Trial(1, "fuse")).found == "not made"


def test_a_verb_that_changes_what_a_net_computes_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.net(x)
            return y * (1 + 1e-6)

    def shifted(model: Any, inputs: Any) -> Any:
        return Shifted(model).eval()

    one = next(number for number in range(0, 30, 3) if not random_net(number)[0].two)
    monkeypatch.setattr(reparam_compiler, "fuse", shifted)
    assert outcome(Trial(one, "fuse")).found == "wrong"
    monkeypatch.setattr(reparam_compiler, "fuse", lambda *_: (_ for _ in ()).throw(InfeasiblePruneError("no")))
    assert outcome(Trial(one, "fuse")).found == "refused"
    monkeypatch.setattr(reparam_compiler, "fuse", lambda *_: (_ for _ in ()).throw(KeyError("no")))
    assert outcome(Trial(one, "fuse")).found == "crashed"


def test_a_net_whose_outputs_cancel_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 1e4 + x - 1e4 is x but for 1e-3: another order of its sums says nothing of what is computed."""

    class Cancelling(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.conv, self.by = nn.Conv2d(3, 3, 1), by
            self.far = nn.Parameter(torch.full((3, 1, 1), 1e4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * self.by + self.far - 1e4

    x = torch.randn(1, 3, 8, 8)
    torch.manual_seed(0)
    net = Cancelling(1.0).eval()
    for by, found in ((1.001, "not told"), (1000.0, "wrong")):
        other = Cancelling(by).eval()
        other.load_state_dict(net.state_dict())
        monkeypatch.setattr(random_nets, "made", lambda trial: (net, x))
        monkeypatch.setattr(reparam_compiler, "fuse", lambda *_, other=other: other)
        assert outcome(Trial(0, "fuse")).found == found


def test_every_net_is_fused_and_pruned_and_a_part_of_each_kind_compiled() -> None:
    asked = list(trials(0, 12, 2))
    assert [sum(trial.verb == verb for trial in asked) for verb in random_nets.VERBS] == [12, 12, 6]
    assert {trial.kind for trial in asked if trial.verb == "compile"} == set(KINDS)


def test_the_page_counts_by_verb_and_kind_and_names_what_is_wrong() -> None:
    page = text(
        [Outcome("fuse onnx 2", "wrong", "by\n0.1", 1.0), Outcome("fuse onnx 5", "refused", "InfeasiblePruneError: no", 1.0)]
    )
    assert "| fuse | onnx | 2 | 0 | 1 | 0 | 0 | 1 | 0 |" in page
    assert "- fuse onnx 2: by 0.1" in page
    assert "- InfeasiblePruneError: 1" in page
