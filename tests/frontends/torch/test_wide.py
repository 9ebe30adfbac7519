"""A model in float64 whose large weights are made when they are read: it computes what a plain copy in float64 does."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam_compiler.frontends.torch import wide
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.wide import WideTensor, in_float64, wide_tensor


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "LARGE", 2)


class ReadsItsWeights(nn.Module):
    """A forward that asks a weight for all that code asks one for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.same = self.weight

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.shape == (3, 3)
        assert self.weight.device.type == "cpu"
        rows = [row for row in self.weight]  # noqa: C416 - a weight is walked through
        scaled = x.to(self.weight.dtype) @ (self.weight.t() / self.weight.size(0)) + self.same.detach()[0] + self.weight.data[1]
        return torch.cat([scaled, torch.stack(rows).numpy().sum() * x], 1)


class Writes(nn.Module):
    """A forward that writes to its own weight, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(2)
            self.weight.data.add_(1)
        return x * self.weight


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 4, 1),
    "linear": lambda: nn.Linear(3, 5),
    "attention": lambda: nn.TransformerEncoderLayer(3, 1, 8, batch_first=True),
    "LSTM": lambda: nn.Sequential(nn.LSTM(3, 4)),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)),
    "script": lambda: torch.jit.trace(nn.Linear(3, 5), torch.zeros(1, 3)),
    "shared": lambda: nn.Sequential(layer := nn.Linear(3, 3), nn.ReLU(), layer),
    "reads its weights": ReadsItsWeights,
    "writes": Writes,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_does_in_float64_and_the_module_stays_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64) if name == "conv" else torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        given, expected = in_float64(layer)(x), deep_copy(layer).double()(x)
    torch.testing.assert_close(given, expected, rtol=1e-13, atol=1e-13)
    for key, value in layer.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])


def test_no_widened_weight_outlives_the_op_that_reads_it() -> None:
    made: list[weakref.ref[Tensor]] = []

    def load() -> Tensor:
        tensor = torch.ones(4, 3, dtype=torch.float64)
        made.append(weakref.ref(tensor))
        return tensor

    layer = nn.Linear(3, 4, bias=False)
    layer.weight = nn.Parameter(wide_tensor(load, (4, 3), "cpu"), requires_grad=False)
    for _ in range(2):
        assert torch.equal(layer(torch.ones(1, 3, dtype=torch.float64)), torch.full((1, 4), 3.0, dtype=torch.float64))
    gc.collect()
    assert [reference() for reference in made] == [None, None]


def test_what_it_says_of_itself_loads_nothing() -> None:
    def load() -> Tensor:
        raise AssertionError

    weight = nn.Parameter(wide_tensor(load, (4, 3), "cpu"), requires_grad=False)
    assert isinstance(weight.detach(), WideTensor)
    assert (weight.shape, weight.dtype, weight.device.type, weight.numel()) == ((4, 3), torch.float64, "cpu", 12)
    assert not weight.requires_grad
    assert weight.double() is weight


def test_small_weights_are_plain_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "LARGE", 100)
    assert type(in_float64(nn.Linear(3, 5)).weight) is nn.Parameter
