"""What exported programs compute inside their nodes is fused in its place, or named."""

import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.export import Dim

import reparam_compiler
from reparam_compiler.frontends.torch.bodies import read_bodies
from tests.support.small_models import EXACT, normal, randomised, relative_error

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
X = normal(2, 4, 6, 5)


class Block(nn.Module):
    """Two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.wide(x)) + self.point(x)


class Net(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.head = Block(), Block()
        randomised(self.double())


class Frozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.back(x)
        return self.head(x)


class Branching(Net):
    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda y: self.back(y), lambda y: self.head(y) * 2, (x,))


class Twice(Net):
    """One block under two contexts of its own: its weights are shared."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.back(x)
        x = self.head(torch.relu(x))
        with torch.no_grad():
            return self.back(torch.relu(x))


class Nested(Net):
    """A branch inside a branch."""

    def forward(self, x: Tensor) -> Any:
        def inner(y: Tensor) -> Any:
            return torch.cond(y.mean() > 100, lambda z: self.back(z), lambda z: self.head(z), (y,))

        return torch.cond(x.sum() > 0, inner, lambda y: y * 2, (x,))


class Looping(Net):
    def forward(self, x: Tensor) -> Any:
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.back(y)), (torch.tensor(0), x))[1]


@functools.cache
def made(kind: type[Net]) -> tuple[Net, torch.export.ExportedProgram]:
    """A model, and what torch.export makes of it. Exporting a `cond` is dear."""
    model = kind()
    return model, torch.export.export(model, (X,), dynamic_shapes=({0: Dim("batch", max=64)},))


FUSED = {
    Frozen: ["add_1", "submod_1.add"],
    Branching: ["false_graph_0.mul", "true_graph_0.add"],
    Twice: ["add_1", "submod_1.add", "submod_3.add_2"],
    Nested: ["true_graph_0.false_graph_0.add", "true_graph_0.true_graph_0.add"],
}


@pytest.mark.parametrize("kind", FUSED)
def test_the_bodies_of_a_program_are_fused_in_their_places(kind: type[Net]) -> None:
    model, original = made(kind)
    fused, report = reparam_compiler.fuse(original, return_report=True)
    assert sorted(fusion.node for fusion in report.fusions) == FUSED[kind]
    assert report.whole_model is not None
    assert not report.remarks
    assert not any("wide" in name or "norm" in name for name in fused.state_dict)
    before, after = original.module(), fused.module()
    for x in (X, -X, normal(3, 4, 6, 5)):
        assert relative_error(before(x), after(x)) < EXACT
    assert set(original.state_dict) == set(model.state_dict())


def test_a_program_is_fused_in_place_with_its_bodies() -> None:
    model, x = Frozen().float(), X.float()
    program = torch.export.export(model, (x,))
    assert reparam_compiler.fuse(program, inplace=True) is program
    assert sorted(program.state_dict) == ["back.fused.bias", "back.fused.weight", "head.fused.bias", "head.fused.weight"]
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("kind", FUSED)
def test_the_bodies_of_a_programs_module_are_fused_in_their_places(kind: type[Net]) -> None:
    module = made(kind)[1].module()
    fused, report = reparam_compiler.fuse(module, (X,), return_report=True)
    assert sorted(fusion.node for fusion in report.fusions) == FUSED[kind]
    assert not any("wide" in name for name, _ in fused.named_parameters())
    for x in (X, -X, normal(3, 4, 6, 5)):
        assert relative_error(module(x), fused(x)) < EXACT
    assert set(module.state_dict()) == set(made(kind)[0].state_dict())


def test_a_fused_program_with_bodies_is_saved_exported_and_read_again() -> None:
    fused = reparam_compiler.fuse(made(Twice)[1])
    stored = io.BytesIO()
    torch.export.save(fused, stored)
    stored.seek(0)
    loaded = torch.export.load(stored)
    assert torch.equal(loaded.module()(X), fused.module()(X))
    assert not reparam_compiler.inspect(loaded).fusions
    assert sorted(fused.state_dict) == sorted(
        f"{holder}.{leaf}" for holder in ("back.fused", "back.fused_1", "head.fused") for leaf in ("weight", "bias")
    )


def test_what_a_context_froze_stays_without_gradient() -> None:
    x = X.clone()
    run = reparam_compiler.fuse(made(Frozen)[1]).module()
    run(x).sum().backward()
    gradients = {name: parameter.grad is not None for name, parameter in run.named_parameters()}
    assert gradients == {
        "back.fused.weight": False,
        "back.fused.bias": False,
        "head.fused.weight": True,
        "head.fused.bias": True,
    }


def test_inspect_says_of_bodies_what_fuse_does() -> None:
    original = made(Branching)[1]
    _, report = reparam_compiler.fuse(original, return_report=True)
    assert reparam_compiler.inspect(original).fusions == report.fusions


def test_a_body_whose_operands_change_as_it_runs_is_named() -> None:
    model = Looping()
    fused, report = reparam_compiler.fuse(torch.export.export(model, (X,)), return_report=True)
    assert not report.fusions
    assert report.remarks == (
        "while_loop (while_loop): what it computes inside was left as it was: its operands may change as it runs",
    )
    assert torch.equal(model(X), fused.module()(X))


def test_a_body_that_two_calls_run_is_named() -> None:
    module = made(Twice)[1].module()
    first, second = (node for node in module.graph.nodes if str(node.target).startswith("submod_"))
    second.target = first.target
    assert [remark.partition(": ")[2] for remark in read_bodies(module).remarks()] == [
        "what it computes inside was left as it was: other calls run submod_1 too"
    ] * 2


def test_an_autocast_block_keeps_its_rounding_and_says_so() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.norm(self.conv(x))

    _, report = reparam_compiler.fuse(torch.export.export(Cast().eval(), (X.float(),)), return_report=True)
    assert [(r.node, r.reason) for r in report.refusals] == [("submod_1.batch_norm", "conv2d is bf16, and the weights are f32")]
