"""Modules that their callers altered, by hooks, methods set on them, wrappers, scripts, are fused and stay what they were."""

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from tests.support.branched_modules import Block, conv_norm, norms
from tests.support.small_models import normal, randomised, relative_error

X = normal(2, 3, 9, 7)
EXACT = 1e-9
"""Of float64."""


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        self.seen.append(y)
        self.last = y
        return y


@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_traced_is_left_in_attributes(inplace: bool) -> None:
    model = randomised(Remembers()).double()
    fused = reparam_compiler.fuse(model, inplace=inplace)
    assert type(fused) is Remembers
    for kept in (model, fused):
        assert kept.seen == []
        assert kept.last is None


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.rest = conv_norm(3, 4), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.body(x))


def test_modules_with_hooks_are_fused_and_keep_them() -> None:
    model = randomised(Hooked()).double()
    seen: list[Tensor] = []
    model.body.register_forward_hook(lambda module, args, output: seen.append(output))
    model.register_forward_hook(lambda module, args, output: output * 3)
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert type(fused) is Hooked
    assert not norms(fused)
    assert [fusion.node for fusion in report.fusions] == ["rest_1", "body._1"]
    assert "body has hooks, so it was fused by itself" in report.remarks
    seen.clear()
    expected, found = model(X), fused(X)
    assert relative_error(expected, found) < EXACT
    assert all(isinstance(value, Tensor) for value in seen)
    assert relative_error(*seen) < EXACT


def test_a_block_with_a_hook_that_would_be_a_graph_module_stays() -> None:
    model = randomised(nn.Sequential(Block(3), conv_norm(3, 4))).double()
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert type(fused[0]) is Block
    assert relative_error(model(X), fused(X)) < EXACT
    assert any(remark.startswith("0 was not fused as a whole: it has hooks") for remark in report.remarks)
    assert len(norms(fused)) == 0  # that of the branch goes into its own conv


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_what_torch_compile_was_given_is_fused() -> None:
    model = randomised(Hooked()).double()
    fused, report = reparam_compiler.fuse(torch.compile(model), (X,), return_report=True)
    assert type(fused) is Hooked
    assert not norms(fused)
    assert report.remarks == ("torch.compile had compiled the model; the result is not: compile it anew",)


class Deployed(nn.Module):
    """Its forward is set on it, as deployment code does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Hooked()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_deployed(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_method_that_was_set_as_forward_is_what_is_fused_and_stays() -> None:
    model = randomised(Deployed()).double()
    model.forward = model.forward_deployed  # type: ignore[method-assign]
    fused = reparam_compiler.fuse(model, (X,))
    assert type(fused) is Deployed
    assert fused.forward.__self__ is fused  # type: ignore[attr-defined]
    assert not norms(fused)
    assert relative_error(model(X), fused(X)) < EXACT


class Holds(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rest = inner, conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.inner(x))


def test_a_data_parallel_is_entered() -> None:
    model = Holds(nn.DataParallel(randomised(conv_norm(3, 4)))).eval().double()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert type(fused) is Holds
    assert type(fused.inner) is nn.DataParallel
    assert not norms(fused)
    assert report.remarks == ()
    assert relative_error(model(X), fused(X)) < EXACT


@pytest.mark.filterwarnings("ignore")  # torch's own, of torch.jit
def test_a_script_stays_and_what_is_round_it_is_fused() -> None:
    script = torch.jit.script(randomised(conv_norm(3, 4)).double())
    model = Holds(script).eval().double()
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert type(fused) is Holds
    assert [fusion.node for fusion in report.fusions] == ["rest_1"]
    assert relative_error(model(X), fused(X)) < EXACT
    same, report = reparam_compiler.fuse(script, return_report=True)
    assert "it is a script (torch.jit); give the module that it was made of" in report.remarks[0]
    assert relative_error(script(X), same(X)) < EXACT
