"""A module in a wrapper that passes on what it is given is pruned and fused, and comes back in its wrapper."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from tests.support.small_models import EXACT, normal, randomised, relative_error

X = normal(2, 3, 6, 5)
pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")


class Net(nn.Module):
    """Two convs with a norm between them; other(), and a mask, are what callers use beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ["cat", "dog"]
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = self.b(self.norm(self.a(x)).relu())
        return (y if mask is None else y * mask) * scale


class Ema(nn.Module):
    """As timm's: a copy, whose weights follow those of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), 0.9

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "EMA": Ema,
    "EMA of a DataParallel": lambda model: Ema(nn.DataParallel(model)),
}


def net() -> nn.Module:
    return randomised(Net()).double().eval()


def inside(model: nn.Module) -> Any:
    """The net in all wrappers."""
    return model if isinstance(model, Net) else inside(model.get_submodule("module"))


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_wrapped_is_pruned_and_comes_back_in_its_wrapper(name: str) -> None:
    plain = net()
    wrapped = WRAPPERS[name](plain).eval()
    pruned, report = reparam_compiler.prune(wrapped, (X,), ratio=0.5, return_report=True)
    assert type(pruned) is type(wrapped)
    assert report.remarks == ()
    assert inside(pruned).names == ["cat", "dog"]
    assert inside(pruned).a.out_channels == inside(pruned).norm.num_features == 8
    alone = reparam_compiler.prune(plain, (X,), ratio=0.5)
    mask = normal(2, 4, 6, 5)
    assert relative_error(alone(X, mask, scale=2.0), pruned(X, mask, scale=2.0)) < EXACT
    assert pruned.state_dict().keys() == wrapped.state_dict().keys()
    fresh = reparam_compiler.apply_manifest(WRAPPERS[name](net()).eval(), report.manifest, (X,))
    fresh.load_state_dict(pruned.state_dict())
    assert relative_error(pruned(X), fresh(X)) < EXACT


def test_calibration_data_gives_the_inputs_of_what_is_wrapped() -> None:
    pruned = reparam_compiler.prune(AveragedModel(net()).eval(), ratio=0.5, calibration=normal(16, 3, 6, 5))
    assert inside(pruned).a.out_channels == 8


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("inputs", [(X,), None])
def test_what_is_wrapped_is_fused_and_comes_back_in_its_wrapper(name: str, inputs: tuple[Tensor, ...] | None) -> None:
    wrapped = WRAPPERS[name](net()).eval()
    fused = reparam_compiler.fuse(wrapped, inputs)
    assert type(fused) is type(wrapped)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    assert relative_error(wrapped(X, scale=2.0), fused(X, scale=2.0)) < EXACT


def test_a_data_parallel_in_a_net_ties_its_channels_to_those_round_it() -> None:
    features = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)))
    model = nn.Sequential(features, nn.ReLU(), nn.Conv2d(16, 4, 1)).double().eval()
    pruned, report = reparam_compiler.prune(model, (X,), ratio=0.5, return_report=True)
    assert [(cut.name, cut.after) for cut in report.plan.families] == [("0.module.0", 8), ("0.module.2", 8)]
    assert type(pruned[0]) is nn.DataParallel
    assert pruned(X).shape == (2, 4, 6, 5)


def test_rounds_keep_the_wrapper() -> None:
    pruner = reparam_compiler.IterativePruner(AveragedModel(net()), (X,), ratio=0.5, steps=2, round_to=1)
    widths = [(type(model), inside(model).a.out_channels) for model in (pruner.step(), pruner.step())]
    assert widths == [(AveragedModel, 12), (AveragedModel, 8)]


class Holder(nn.Module):
    """As timm's ModelEmaV2: it holds a copy, and cannot be called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


@pytest.fixture
def distributed() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch's own, of torch.jit
@pytest.mark.usefixtures("distributed")
@pytest.mark.parametrize(
    ("wrap", "advice"),
    [
        (Holder, r"it has no forward\(\).*; give what it holds: \.module$"),
        (nn.parallel.DistributedDataParallel, r"DistributedDataParallel\).*; give its \.module, and wrap what comes back$"),
        (lambda model: torch.jit.trace(model, X), r"a script.*; give the module that it was made of, or an ONNX export of it$"),
    ],
)
def test_what_shows_nobody_what_it_does_is_refused_with_what_to_give(wrap: Callable[[nn.Module], Any], advice: str) -> None:
    with pytest.raises(UnsupportedModelError, match=advice):
        reparam_compiler.prune(wrap(net()), (X,), ratio=0.5)
