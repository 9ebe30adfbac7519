"""A module comes back as its own class: with its attributes, methods, hooks, keywords and modes, through every exporter."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam_compiler
from tests.support.branched_modules import Block, conv_norm, norms
from tests.support.small_models import normal, randomised, relative_error, run

X = normal(2, 3, 9, 7)
EXACT = 1e-9
"""Of float64."""


class NormAct(nn.BatchNorm2d):
    """A norm with its activation, traced through: it is no class of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        ).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), NormAct(8)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.order = [self.blocks[1], self.blocks[0]]
        self.head, self.head_norm = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.names = ["cat", "dog"]

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.order:
            x = block(x)
        return x

    def forward(self, x: Tensor, *, double: bool = False) -> dict[str, Tensor]:
        y = self.head_norm(self.head(self.features(x)))
        return {"scores": y * 2 if double else y}


def net() -> nn.Module:
    return randomised(Net()).double()


@pytest.fixture(scope="module")
def fused() -> tuple[Any, Any]:
    model = net()
    return model, reparam_compiler.fuse(model, (X,))


def test_class_attributes_and_methods_stay(fused: tuple[Any, Any]) -> None:
    model, result = fused
    assert type(result) is Net
    assert result.names == ["cat", "dog"]
    assert result.names is not model.names
    assert result.blocks[0].stride == 1
    assert result.blocks[0].names == ["dense", "point"]
    assert not norms(result)
    assert relative_error(model.features(X), result.features(X)) < EXACT


def test_arguments_stay(fused: tuple[Any, Any]) -> None:
    model, result = fused
    for given in (X, normal(5, 3, 12, 11)):
        assert relative_error(model(x=given)["scores"], result(x=given)["scores"]) < EXACT
        assert relative_error(model(given, double=True)["scores"], result(given, double=True)["scores"]) < EXACT


def test_what_a_list_holds_is_what_was_exchanged(fused: tuple[Any, Any]) -> None:
    _, result = fused
    assert result.order == [result.blocks[1], result.blocks[0]]
    assert all(isinstance(block, fx.GraphModule) for block in result.blocks)


def test_modes_copies_and_state_work(fused: tuple[Any, Any]) -> None:
    model, result = fused
    assert not any(module.training for module in result.modules())
    result.train()
    assert all(module.training for module in result.modules())
    result.eval()
    again = copy.deepcopy(result)
    again.load_state_dict(result.state_dict())
    assert again.blocks[0].names == ["dense", "point"]
    assert relative_error(run(model, X), run(again, X)) < EXACT
    assert relative_error(run(model, X), run(pickle.loads(pickle.dumps(result)), X)) < EXACT


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_both_exporters_take_it(tmp_path: Any, dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result, x = reparam_compiler.fuse(randomised(nn.Sequential(Block(3), conv_norm(3, 4)))), X.float()
    assert type(result) is nn.Sequential
    torch.onnx.export(result, (x,), tmp_path / "m.onnx", dynamo=dynamo)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert relative_error(result(x), torch.from_numpy(given)) < 1e-5


def test_the_caller_s_module_is_as_it_was() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = dict(model.named_modules())
    reparam_compiler.fuse(model, (X,))
    assert dict(model.named_modules()) == parts
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_in_place_it_is_the_caller_s_module() -> None:
    model = net()
    expected = run(model, X)
    assert reparam_compiler.fuse(model, (X,), inplace=True) is model
    assert not norms(model)
    assert relative_error(expected, run(model, X)) < EXACT


def test_pruned_it_is_of_its_class() -> None:
    model = randomised(Net())
    small, x = reparam_compiler.prune(model, (X.float(),), ratio=0.5, round_to=1, calibration=X.float().numpy()), X.float()
    assert type(small) is Net
    assert small.names == ["cat", "dog"]
    assert small.stem.out_channels == 4
    assert small(x, double=True)["scores"].shape == model(x)["scores"].shape
    assert small.train().training


class WithMask(nn.Module):
    """Takes an argument that may be None; `between` is what it does with one."""

    def __init__(self, between: Callable[["WithMask", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.between = between

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return self.last(self.between(self, x, mask))
        return self.last(self.norm(self.conv(x)).relu())


def after_the_norm(m: WithMask, x: Tensor, mask: Tensor) -> Tensor:
    return m.norm(m.conv(x)) * mask


def before_the_norm(m: WithMask, x: Tensor, mask: Tensor) -> Tensor:
    return m.norm(m.conv(x) * mask)


def without_the_norm(m: WithMask, x: Tensor, mask: Tensor) -> Tensor:
    return m.conv(x) * mask


def norm_alone(m: WithMask, x: Tensor, mask: Tensor) -> Tensor:
    return m.norm(mask.expand(1, 8, 7, 5))


def asked(m: WithMask, x: Tensor, mask: Tensor) -> Tensor:
    return m.norm(m.conv(x)) if mask.sum() > 0 else m.conv(x)


def test_an_argument_that_may_be_none_is_taken_as_before() -> None:
    model, mask = randomised(WithMask(after_the_norm)).double(), normal(2, 1, 7, 5)
    fused = reparam_compiler.fuse(model, (X,))
    assert type(fused) is WithMask
    assert isinstance(fused.norm, nn.Identity)
    assert relative_error(model(X, mask), fused(X, mask)) < EXACT
    assert relative_error(model(X), fused(X)) < EXACT


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (before_the_norm, "with mask given conv is read by others than norm"),
        (without_the_norm, "with mask given conv is read by others than norm"),
        (norm_alone, "with mask given norm reads something else than conv"),
        (asked, "what it does with mask given cannot be traced"),
    ],
)
def test_a_norm_that_is_passed_by_with_an_argument_keeps_the_code_from_running(between: Any, why: str) -> None:
    model = randomised(WithMask(between)).double()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert isinstance(fused, fx.GraphModule)
    assert f"the result is a GraphModule, and no WithMask: {why}" in report.remarks[-1]
    assert relative_error(model(X), fused(X)) < EXACT


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(3, 4), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.point(x)


class InARow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.branches, self.norm = Scale(), Branches(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.branches(self.scale(x)))


def test_what_stands_before_and_behind_branches_passes_by() -> None:
    model = randomised(InARow()).double()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert type(fused) is InARow
    assert len(report.fusions) == 1
    assert isinstance(fused.norm, nn.Identity)
    assert isinstance(fused.scale, fx.GraphModule)
    assert [type(layer) for layer in fused.branches.children()] == [nn.Conv2d]
    assert relative_error(model(X), fused(X)) < EXACT


class JoinsInItsOwnForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point, self.label = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), "x"

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.point(x)


def test_a_module_whose_forward_would_change_is_a_graph_module_and_says_so() -> None:
    model = JoinsInItsOwnForward().eval().double()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert isinstance(fused, fx.GraphModule)
    assert fused.label == "x"
    why = "the branches of add are joined in JoinsInItsOwnForward.forward() itself"
    assert report.remarks == (f"the result is a GraphModule, and no JoinsInItsOwnForward: {why}",)


class ReadsAWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu() + self.conv.weight.mean()


def test_code_that_reads_a_weight_reads_the_old_one() -> None:
    model = randomised(ReadsAWeight()).double()
    fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert relative_error(model(X), fused(X)) < EXACT
    assert isinstance(fused, fx.GraphModule)
    assert "its code would compute" in report.remarks[-1]


class TwoNorms(nn.Module):
    """One conv at two scales, with a norm for each, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 4, 3), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [norm(self.conv(given)) for norm, given in zip(self.norms, (x, x.relu()), strict=True)]


class OneNorm(TwoNorms):
    """One conv and its norm, called twice."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.norms[0](self.conv(given)) for given in (x, x.relu())]


@pytest.mark.parametrize(("kind", "is_own"), [(TwoNorms, False), (OneNorm, True)])
def test_a_layer_that_is_called_twice(kind: type[nn.Module], is_own: bool) -> None:
    model = randomised(kind()).double()
    fused = reparam_compiler.fuse(model, (X,))
    assert (type(fused) is kind) == is_own
    for expected, found in zip(model(X), fused(X), strict=True):
        assert relative_error(expected, found) < EXACT


class Extracts(ReadsAWeight):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ExtractsBetween(Extracts):
    def before_the_norm(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_method_that_calls_a_layer_without_its_norm_is_not_left_to_give_something_else() -> None:
    model = randomised(Extracts()).double()
    fused = reparam_compiler.fuse(model, (X,))
    assert relative_error(model.features(X), fused.features(X)) < EXACT
    fused, report = reparam_compiler.fuse(randomised(ExtractsBetween()).double(), (X,), return_report=True)
    assert isinstance(fused, fx.GraphModule)
    assert "its method before_the_norm() calls conv without norm" in report.remarks[-1]
