"""torch.compile with our backend: dynamo's graphs are fused, their weights follow the model's, and training is left alone."""

import copy
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.integrations import dynamo
from reparam_compiler.zoo.repvgg import Architecture, RepVGG
from tests.support.loaded_packages import loaded
from tests.support.small_models import EXACT, Pieces, normal, randomised, relative_error


class Inner:
    """A backend that compiles nothing and keeps what it was given."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph_module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
        assert len(graph_module.graph.find_nodes(op="placeholder")) == len(inputs)
        self.graphs.append(graph_module)
        self.options = options
        return graph_module.forward

    @property
    def convs(self) -> list[int]:
        """The convs of each graph."""
        return [sum(map(_convs_of, _calls(graph))) for graph in self.graphs]


def _calls(graph_module: fx.GraphModule) -> list[Any]:
    modules = dict(graph_module.named_modules())
    return [
        modules[str(n.target)] if n.op == "call_module" else n.target
        for n in graph_module.graph.nodes
        if n.op.startswith("call")
    ]


def _convs_of(called: Any) -> int:
    if isinstance(called, nn.Module):
        return sum(isinstance(module, nn.Conv2d) for module in called.modules())
    return int(called is torch.conv2d)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """No graph of another test's."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module, **more: Any) -> tuple[Callable[..., Any], Inner]:
    """The model under our backend, and what gets the rest."""
    inner = Inner()
    options = {"inner": inner, **more.pop("options", {})}
    return torch.compile(model, backend="reparam", options=options, **more), inner


def tiny_repvgg() -> nn.Module:
    return randomised(RepVGG(Architecture((1, 2, 1, 1, 1), (4, 8, 8, 8, 8)), num_classes=5)).double()


def block(m: Pieces, x: Tensor) -> Tensor:
    return torch.relu(m.wide(x) + m.point(x) + m.norm(x))


def pieces(wiring: Callable[[Pieces, Tensor], Any] = block) -> Pieces:
    return Pieces(wiring).double()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_repvgg_is_fused_and_its_values_stay() -> None:
    model, x = tiny_repvgg(), normal(2, 3, 32, 36)
    before = values(model)
    call, inner = compiled(model)
    with torch.no_grad():
        assert relative_error(model(x), call(x)) < EXACT  # float64
    assert inner.convs == [6]
    assert not [called for called in _calls(inner.graphs[0]) if called is torch.nn.functional.batch_norm]
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_inner_backend_may_be_given_by_name() -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    with torch.no_grad():
        found = torch.compile(model, backend="reparam", options={"inner": "eager"})(x)
        assert relative_error(model(x), found) < EXACT  # float64


def test_options_and_mode_that_are_not_ours_are_handed_on() -> None:
    call, inner = compiled(pieces(), options={"verify": False, "max_autotune": False})
    with torch.no_grad():
        call(normal(2, 4, 6, 5))
    assert inner.options == {"options": {"max_autotune": False}}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dynamic", [None, True])
def test_fused_weights_follow_a_change_in_place(context: Callable[[], Any], dynamic: bool | None) -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    call, inner = compiled(model, dynamic=dynamic)
    with context():
        call(x)
    model.load_state_dict(randomised(pieces(), seed=1).state_dict())
    with context():
        assert relative_error(model(x), call(x)) < EXACT  # float64
    with torch.no_grad():
        model.wide.weight.add_(0.5)
    with context():
        assert relative_error(model(x), call(x)) < EXACT  # float64
    assert inner.convs == [1]  # compiled once


def test_fused_weights_follow_an_optimizer() -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    call, inner = compiled(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with torch.no_grad():
            assert relative_error(model(x), call(x)) < EXACT  # float64
        call(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert relative_error(model(x), call(x)) < EXACT  # float64
    assert inner.convs == [1, 2]  # without gradients, and with them


def test_fused_weights_follow_another_tensor_in_the_place_of_one() -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    call, _ = compiled(model)
    with torch.no_grad():
        call(x)
        model.wide.weight = nn.Parameter(model.wide.weight + 1)
        assert relative_error(model(x), call(x)) < EXACT  # float64
        model.point.weight.data = model.point.weight.data * 2
        assert relative_error(model(x), call(x)) < EXACT  # float64


def test_weights_that_fuse_into_another_form_run_unfused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    call, _ = compiled(model)
    with torch.no_grad():
        call(x)
        monkeypatch.setattr(dynamo, "_fused", lambda *args, **more: None)
        model.wide.weight.add_(1)
        assert torch.equal(model(x), call(x))
        model.wide.weight.add_(1)
        assert torch.equal(model(x), call(x))
    assert [r.getMessage()[:26] for r in caplog.records if r.levelno == logging.WARNING] == ["the model's weights changed"[:26]]


def test_parameters_that_require_gradients_get_them(caplog: pytest.LogCaptureFixture) -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    call, inner = compiled(model)
    with caplog.at_level(logging.INFO, logger=dynamo.__name__):
        call(x).sum().backward()
    assert inner.convs == [2]
    assert "is not fused: gradients are enabled" in caplog.text
    expected = copy.deepcopy(model)
    expected.zero_grad()
    expected(x).sum().backward()
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert found.grad is not None
        assert relative_error(wanted.grad, found.grad) < EXACT  # float64


def test_gradients_that_are_enabled_within_the_graph_are_kept() -> None:
    def wiring(m: Pieces, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return block(m, x)

    call, inner = compiled(pieces(wiring))
    with torch.no_grad():
        assert call(normal(2, 4, 6, 5)).requires_grad
    assert inner.convs == [2]


def test_a_frozen_model_is_fused_and_gives_gradients_of_its_input() -> None:
    model = pieces().requires_grad_(False)
    call, inner = compiled(model)
    x, y = (normal(2, 4, 6, 5).requires_grad_() for _ in range(2))
    call(x).square().sum().backward()
    model(y).square().sum().backward()
    assert relative_error(y.grad, x.grad) < EXACT  # float64
    assert inner.convs == [1]


def test_a_norm_in_training_mode_stays_and_writes_to_the_model() -> None:
    def wiring(m: Pieces, x: Tensor) -> Tensor:
        return m.norm(torch.relu(m.wide(x) + m.point(x)))

    model = pieces(wiring).train()
    expected, x = copy.deepcopy(model), normal(2, 4, 6, 5)
    call, inner = compiled(model)
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(expected(x), call(x)) < EXACT  # float64
    assert inner.convs == [1]
    for (name, wanted), found in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.allclose(wanted, found, rtol=EXACT), name


def test_a_batch_norm_in_training_mode_is_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).double().train()
    expected, x = copy.deepcopy(model), normal(2, 4, 6, 5)
    call, inner = compiled(model)
    with torch.no_grad():
        assert torch.equal(expected(x), call(x))
    assert torch.nn.functional.batch_norm in _calls(inner.graphs[0])
    assert torch.equal(expected[1].running_mean, model[1].running_mean)


def test_sizes_that_change_become_dynamic_and_stay_so() -> None:
    model = pieces()
    call, inner = compiled(model)
    with torch.no_grad():
        for shape in ((2, 4, 6, 5), (3, 4, 7, 9), (5, 4, 8, 4), (6, 4, 11, 3)):
            assert relative_error(model(normal(*shape)), call(normal(*shape))) < EXACT  # float64
    assert inner.convs == [1, 1]


def test_numbers_that_dynamo_makes_tensors_are_read() -> None:
    model, x = pieces(), normal(2, 4, 6, 5)
    call, inner = compiled(model, dynamic=True)
    with torch.no_grad():
        assert relative_error(model(x), call(x)) < EXACT  # float64
        model.norm.eps = 0.5
        assert relative_error(model(x), call(x)) < EXACT  # float64
    assert set(inner.convs) == {1}


def test_each_side_of_a_graph_break_is_fused() -> None:
    def wiring(m: Pieces, x: Tensor) -> Tensor:
        y = block(m, x)
        return block(m, y) if y.sum() > 0 else y

    model = pieces(wiring)
    call, inner = compiled(model)
    with torch.no_grad():
        assert relative_error(model(normal(2, 4, 6, 5)), call(normal(2, 4, 6, 5))) < EXACT  # float64
    assert inner.convs == [1, 1]


def test_a_weight_that_is_folded_and_read_elsewhere_is_both() -> None:
    def wiring(m: Pieces, x: Tensor) -> Any:
        return block(m, x), torch.relu(m.wide.weight), m.norm.running_mean

    model, x = pieces(wiring), normal(2, 4, 6, 5)
    call, inner = compiled(model)
    with torch.no_grad():
        assert relative_error(model(x), call(x)) < EXACT  # float64
        model.wide.weight.mul_(2)
        assert relative_error(model(x), call(x)) < EXACT  # float64
    assert inner.convs == [1]


def test_a_kernel_computed_from_parameters_follows_them() -> None:
    def wiring(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu(m.norm(nn.functional.conv2d(x, torch.sigmoid(m.wide.weight) * 2, m.wide.bias, padding=1)))

    model, x = pieces(wiring), normal(2, 4, 6, 5)
    call, _ = compiled(model)
    with torch.no_grad():
        assert relative_error(model(x), call(x)) < EXACT  # float64
        model.wide.weight.mul_(2)
        assert relative_error(model(x), call(x)) < EXACT  # float64


def test_a_graph_with_nothing_to_fuse_goes_on_as_it_is() -> None:
    call, inner = compiled(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).double())
    with torch.no_grad():
        call(normal(2, 4, 6, 5))
    assert inner.convs == [1]


def test_a_graph_that_cannot_be_read_goes_on_as_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise UnsupportedModelError("as the test wants it")

    monkeypatch.setattr(dynamo.FxFrontend, "read", refuse)
    model, x = pieces(), normal(2, 4, 6, 5)
    call, inner = compiled(model)
    with torch.no_grad():
        assert torch.equal(model(x), call(x))
    assert inner.convs == [2]
    assert "UnsupportedModelError: as the test wants it" in caplog.text


def test_weights_made_under_inference_mode_are_not_watched_and_so_not_fused() -> None:
    with torch.inference_mode():
        model, x = pieces(), normal(2, 4, 6, 5)
        call, inner = compiled(model)
        assert torch.equal(model(x), call(x))
    assert inner.convs == [2]


def test_functions_of_weights_that_no_module_holds_are_left_alone() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.conv2d(x, weight) + torch.conv2d(x, weight)

    inner = Inner()
    call = torch.compile(function, backend="reparam", options={"inner": inner})
    with torch.no_grad():
        call(normal(2, 4, 6, 5), normal(4, 4, 1, 1))
    assert inner.convs == [2]


def test_importing_the_library_does_not_import_dynamo() -> None:
    plain, ours = (loaded(step) & {"torch._dynamo"} for step in ("torch alone", "the functions"))
    assert plain == ours


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_gets_the_rest() -> None:
    """Once, for open sizes: its C++ compiler takes half a minute. What compiles again when, the tests above say."""
    model, x = pieces(), normal(2, 4, 6, 5)
    call = torch.compile(model, backend="reparam", dynamic=True)
    with torch.no_grad():
        assert relative_error(model(x), call(x)) < EXACT  # float64
        model.load_state_dict(randomised(pieces(), seed=1).state_dict())
        assert relative_error(model(x), call(x)) < EXACT  # float64
        wide = normal(3, 4, 7, 9)
        assert relative_error(model(wide), call(wide)) < EXACT  # float64
