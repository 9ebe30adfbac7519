"""What the rule for all other ops decides, and that what schedule primitives refuse computes what it should."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm import te, tirx, topi

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.rest import SMALL, generic_schedule

pytestmark = pytest.mark.tvm
INDICES = torch.tensor([2, 0, 1]).reshape(1, 3, 1).expand(3, 3, 5)
REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "topk": lambda x: torch.topk(x, 2),
    "topk between others": lambda x: torch.topk((x * 2).relu(), 2)[0].sigmoid() + 1,
    "sort": lambda x: torch.sort(x, -1, descending=True),
    "argsort": lambda x: torch.argsort(x, 1),
    "cumsum": lambda x: x.cumsum(1),
    "max": lambda x: x.max(1),
    "median": lambda x: x[:, 1:].median(1),
    "scatter": lambda x: torch.scatter(x, 1, INDICES, x[:, :3] * 2),
    "gather": lambda x: x.gather(1, INDICES),
}


class Applied(nn.Module):
    """Every function, of an input of its own."""

    def forward(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        return tuple(function(x) for function, x in zip(REFUSED.values(), inputs, strict=True))


Leaves = dict[str, list[tuple[np.ndarray, np.ndarray]]]


@pytest.fixture(scope="module")
def results() -> Leaves:
    """What a compiled model and torch compute for each function."""
    torch.manual_seed(0)
    inputs = tuple(torch.randn(3, 6, 5) for _ in REFUSED)
    expected = [[value] if isinstance(value, torch.Tensor) else list(value) for value in Applied()(*inputs)]
    found = iter(compile(Applied().eval(), inputs).run(*inputs))
    leaves = {name: [(next(found), value.numpy()) for value in values] for name, values in zip(REFUSED, expected, strict=True)}
    assert next(found, None) is None
    return leaves


@pytest.mark.parametrize("name", REFUSED)
def test_what_schedules_refuse_computes_what_torch_does(name: str, results: Leaves) -> None:
    for found, expected in results[name]:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_threads_compile_one_after_another() -> None:
    models = [nn.Sequential(nn.Conv2d(8, 4 + index, 3), nn.ReLU()).eval() for index in range(3)]
    x = torch.randn(1, 8, 7, 5)
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: compile(model, x).run(x)[0], models))
    for result, model in zip(found, models, strict=True):
        np.testing.assert_allclose(result, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


UNIT = VectorUnit(32, 16, 2)


def script(*tensors: Any) -> str:
    """The function of these tensors, the last of which is its output, by the rule for what has no recipe."""
    return generic_schedule(te.create_prim_func(list(tensors)), UNIT).script()


def doubled(*shape: int) -> str:
    x = te.placeholder(shape, "float32", "x")
    return script(x, te.compute(shape, lambda *i: x(*i) * 2.0, "out"))


def test_threads_are_started_for_what_pays_them() -> None:
    assert "T.parallel" in doubled(SMALL // 32, 32)
    assert "T.parallel" not in doubled(SMALL // 32 - 1, 32)


@pytest.mark.parametrize(("width", "lanes"), [(64, 8), (12, 6), (20, 5), (7, 7), (26, 8), (1, 0)])
def test_the_last_axis_is_a_vector_that_divides_it_or_a_whole_register(width: int, lanes: int) -> None:
    text = doubled(3, width)
    assert f"T.vectorized({lanes})" in text if lanes else "T.vectorized" not in text


def test_what_is_cheap_is_inlined_and_a_function_that_is_read_twice_is_computed_once() -> None:
    def product(value: Callable[[Any], Any]) -> str:
        x = te.placeholder((8, 64), "float32", "x")
        y = te.compute((8, 64), lambda i, j: value(x[i, j]), "y")
        return script(x, te.compute((8, 64), lambda i, j: y[i, j] * y[i, j], "out"))

    assert 'sblock("y")' not in product(lambda value: value + 1.0)
    assert 'sblock("y")' in product(tirx.exp)


def test_the_padding_of_a_sum_stays_a_buffer_and_that_of_a_copy_does_not() -> None:
    x, k = te.placeholder((8, 64), "float32", "x"), te.reduce_axis((0, 3), "k")
    padded = te.compute((8, 66), lambda i, j: tirx.if_then_else(j < 64, x[i, j], 0.0), "padded")
    window = te.compute((8, 64), lambda i, j: te.sum(padded[i, j + k], axis=k), "out")
    copied = te.compute((8, 64), lambda i, j: padded[i, j + 2], "out")
    assert 'sblock("padded")' in script(x, window)
    assert 'sblock("padded")' not in script(x, copied)


TOTALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "largest": lambda x: x.amax((0, 1, 2)),
    "least": lambda x: x.amin((0, 1, 2), keepdim=True),
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "relative": lambda x: x.sum() / x.abs().sum(),
}


@pytest.mark.parametrize("shape", [(4, 8, 16), (1, 6, 8), (3, 5, 7)], ids=["whole vectors", "some", "none"])
def test_what_is_reduced_to_one_element_goes_by_vectors_of_partial_results(shape: tuple[int, ...]) -> None:
    class Totals(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(function(x) for function in TOTALS.values())

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(compile(Totals().eval(), (x,)).run(x), Totals()(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    source = te.placeholder(shape, "float32", "x")
    reduced = generic_schedule(te.create_prim_func([source, topi.max(source)]), VectorUnit(32, 16, 2))
    assert ("_rf" in reduced.script()) == (np.prod(shape) % 8 == 0)
