"""The elementary functions against float64, at the edges too, in a kernel and in a model."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")

import tvm
from tvm import te

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.conv import elementary
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.target import resolve
from tests.support.lowered import lower

pytestmark = pytest.mark.tvm
EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
SIZE = 44_000
RELATIVE, ABSOLUTE = 1e-6, 2e-7
"""In float32: of the value, and where it vanishes of 1, or of x where that is larger. (torch's own gelu loses 3.2e-7 of x.)"""


@functools.cache
def library(dtype: str) -> Any:
    """Each function in a kernel of its own, in vectors, of `SIZE` numbers."""
    return tvm.compile(tvm.IRModule({name: kernel(name, dtype) for name in EXACT}), target=resolve(None))


def kernel(name: str, dtype: str) -> Any:
    data = te.placeholder((SIZE,), dtype, "data")
    out = te.compute((SIZE,), lambda i: getattr(elementary, name)(data[i]), "out")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([data, out]).without_attr("global_symbol"))
    _, lane = schedule.split(schedule.get_loops(schedule.get_sblock("out"))[0], [None, 8])
    schedule.vectorize(lane)
    return schedule.mod["main"].with_attr("global_symbol", name)


def evaluated(name: str, x: np.ndarray) -> np.ndarray:
    """What one of these kernels computes."""
    data = np.zeros(SIZE, x.dtype)
    data[: x.size] = x
    result = tvm.runtime.tensor(np.full_like(data, np.nan))
    library(str(x.dtype))[name](tvm.runtime.tensor(data), result)
    return result.numpy()[: x.size]


def test_the_nearest_integer_is_that_next_to_a_number_and_of_two_the_even_one() -> None:
    halves, most = np.arange(-600, 600) + 0.5, 2.0**22 - 1
    x = np.concatenate([np.linspace(-512, 512, 40001), halves, np.nextafter(np.float32(halves), 0), [most, -most]]).astype(
        "float32"
    )
    data, out = np.zeros(SIZE, "float32"), tvm.runtime.tensor(np.zeros(SIZE, "int32"))
    data[: x.size] = x
    tvm.compile(tvm.IRModule({"main": kernel("nearest", "float32")}), target=resolve(None))["nearest"](
        tvm.runtime.tensor(data), out
    )
    np.testing.assert_array_equal(out.numpy()[: x.size], np.rint(x).astype("int32"))


@pytest.mark.parametrize("name", EXACT)
def test_float32_is_as_exact_as_it_says(name: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 40000), np.linspace(-1e-3, 1e-3, 2000), np.linspace(-87, 88.5, 2000)]).astype(
        "float32"
    )
    expected = EXACT[name](torch.tensor(x).double()).numpy()
    error = np.abs(evaluated(name, x) - expected)
    assert (error <= RELATIVE * np.abs(expected) + (0 if name == "exp" else ABSOLUTE * np.maximum(1, np.abs(x)))).all()


@pytest.mark.parametrize("name", EXACT)
def test_edges_are_those_of_the_function(name: str) -> None:
    x = np.array([math.nan, math.inf, -math.inf, 0.0, 200.0, -200.0, 88.7, -103.0], "float32")
    found, expected = evaluated(name, x), EXACT[name](torch.tensor(x)).numpy()
    inexact = np.isnan(expected) & ~np.isnan(x)  # silu and gelu of -inf are nan in arithmetic, and torch's own differ
    np.testing.assert_allclose(found[~inexact], expected[~inexact], rtol=2e-6, atol=1e-30 if name == "exp" else 1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_float64_keeps_the_exact_function(name: str) -> None:
    x = np.linspace(-6, 6, 800)
    np.testing.assert_allclose(evaluated(name, x), EXACT[name](torch.tensor(x)).numpy(), rtol=1e-12, atol=1e-14)


IN_CONVS = [name for name in EXACT if name != "exp"]


class Activated(nn.Module):
    """Each function behind a conv of its own, and alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({name: nn.Conv2d(3, channels, 3, padding=1) for name in IN_CONVS})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        behind = [EXACT[name](conv(x)) for name, conv in self.convs.items()]
        return *behind, *(EXACT[name](x) * 2 for name in IN_CONVS)


@functools.cache
def activated(channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the compiled model and torch compute for each output."""
    torch.manual_seed(0)
    model, x = Activated(channels).eval(), torch.randn(1, 3, 9, 7)
    with torch.no_grad():
        return list(zip(compile(model, x).run(x), (value.numpy() for value in model(x)), strict=True))


@pytest.mark.parametrize("channels", [16, 13])
@pytest.mark.parametrize("name", IN_CONVS)
def test_in_a_conv_and_alone_they_are_what_torch_computes(name: str, channels: int) -> None:
    for found, expected in activated(channels)[IN_CONVS.index(name) :: len(IN_CONVS)]:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Chained(nn.Module):
    """An activation several times in a row, behind a conv and alone."""

    def __init__(self, activation: Callable[[], nn.Module], count: int) -> None:
        super().__init__()
        self.conv, self.chain = nn.Conv2d(8, 8, 3), nn.Sequential(*(activation() for _ in range(count)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.chain(self.conv(x)), self.chain(x)


CHAINED: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
}
COUNTS = (2, 5)


@functools.cache
def chained() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """What one compiled model of every chain and torch compute, of each activation for each length behind a conv and alone."""
    torch.manual_seed(0)
    chains = nn.ModuleList(Chained(make, count) for make in CHAINED.values() for count in COUNTS)
    together, x = Several(chains).eval(), torch.randn(1, 8, 9, 7)
    with torch.no_grad():
        pairs = list(zip(compile(together, x).run(x), (value.numpy() for value in together(x)), strict=True))
    each = 2 * len(COUNTS)
    return {name: pairs[index * each : (index + 1) * each] for index, name in enumerate(CHAINED)}


class Several(nn.Module):
    """The outputs of several chains on one input."""

    def __init__(self, chains: nn.ModuleList) -> None:
        super().__init__()
        self.chains = chains

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value for chain in self.chains for value in chain(x))


@pytest.mark.parametrize("name", CHAINED)
def test_chained_activations_are_what_torch_computes(name: str) -> None:
    for found, expected in chained()[name]:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def size(module: Any, *, behind_conv: bool) -> int:
    """The lines of the kernels that hold a conv, or of the others."""
    kernels = {
        variable: function
        for variable, function in module.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc) and str(variable.name_hint).startswith("conv") == behind_conv
    }
    assert kernels
    return tvm.IRModule(kernels).script().count("\n")


@pytest.mark.parametrize("name", CHAINED)
def test_chained_activations_grow_linearly(name: str) -> None:
    x, target = torch.randn(1, 8, 9, 7), resolve(None)
    with target:
        short, long = (lower(to_relax(Chained(CHAINED[name], count).eval(), x).module, target) for count in COUNTS)
    for behind_conv in (True, False):
        assert size(long, behind_conv=behind_conv) <= 5 / 2 * size(short, behind_conv=behind_conv)
