"""Functions that choose by position become a loop nest for each range, without a choice, and compute the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("tvm")

import tvm
from tvm import te, tirx, topi

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.rest import generic_schedule

pytestmark = pytest.mark.tvm
UNIT = VectorUnit(32, 16, 2)


def joined(shapes: Sequence[tuple[int, ...]], axis: int, then: Callable[[Any], Any] = lambda y: y * 2.0 + 1.0) -> Any:
    """The scheduled function of inputs of these shapes, concatenated, with a function of each element behind."""
    inputs = [te.placeholder(shape, "float32", f"x{index}") for index, shape in enumerate(shapes)]
    together = topi.concatenate(inputs, axis)
    out = te.compute(together.shape, lambda *at: then(together[at]), "out")
    return generic_schedule(te.create_prim_func([*inputs, out]), UNIT)


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([(1, 3, 5, 16), (1, 3, 5, 8)], 3),
        ([(2, 7, 13), (2, 7, 1), (2, 7, 3)], 2),
        ([(1, 1, 12), (1, 6, 12)], 1),
        ([(2, 11), (3, 11), (4, 11)], 0),
        ([(40, 8, 8), (40, 8, 24)], 2),
        ([(5,), (9,)], 0),
    ],
    ids=["pixels", "ragged", "a class token", "the first axis", "enough for threads", "one axis"],
)
def test_a_concatenation_is_a_loop_nest_for_each_input(shapes: list[tuple[int, ...]], axis: int) -> None:
    func = joined(shapes, axis)
    text = func.script()
    assert "if_then_else" not in text
    assert "T.vectorized" in text
    assert ("T.parallel" in text) == (np.prod(shapes[0]) > 1000)
    source = np.random.default_rng(0)
    arrays = [source.standard_normal(shape).astype("float32") for shape in shapes]
    expected = np.concatenate(arrays, axis) * 2 + 1
    out = tvm.runtime.tensor(np.zeros_like(expected))
    tvm.compile(tvm.IRModule({"main": func}), target="llvm")["main"](*map(tvm.runtime.tensor, arrays), out)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6)


def test_a_concatenation_of_one_row_an_input_shares_the_threads_of_its_rows() -> None:
    text = joined([(64, 32), (64, 64)], 1).script()
    assert text.count("T.parallel") == 1
    assert text.count("T.vectorized(8)") == 2


@pytest.mark.parametrize(("cut", "width"), [(16, 16), (20, 16), (0, 16), (-3, 16), (20, 13), (7, 16), (5, 5)])
def test_a_choice_that_is_the_same_everywhere_is_one_nest(cut: int, width: int) -> None:
    """What is left of a padding that is cropped again."""
    x = te.placeholder((3, 16), "float32", "x")
    out = te.compute((3, width), lambda i, j: tirx.if_then_else(j < cut, x[i, j], -1.0), "out")
    func = generic_schedule(te.create_prim_func([x, out]), UNIT)
    assert "if_then_else" not in func.script()
    array = np.random.default_rng(0).standard_normal((3, 16)).astype("float32")
    found = tvm.runtime.tensor(np.zeros((3, width), "float32"))
    tvm.compile(tvm.IRModule({"main": func}), target="llvm")["main"](tvm.runtime.tensor(array), found)
    np.testing.assert_array_equal(found.numpy(), np.where(np.arange(width) < cut, array[:, :width], -1))


def test_choices_along_two_axes_keep_their_schedule() -> None:
    x = te.placeholder((6, 16), "float32", "x")
    padded = te.compute((8, 18), lambda i, j: tirx.if_then_else(tirx.all(i < 6, j < 16), x[i, j], 0.0), "padded")
    text = generic_schedule(te.create_prim_func([x, padded]), UNIT).script()
    assert "if_then_else" in text


def test_a_choice_that_compares_no_position_keeps_its_schedule() -> None:
    x = te.placeholder((6, 16), "float32", "x")
    out = te.compute((6, 16), lambda i, j: tirx.if_then_else(tirx.all(x[i, j] > 0.5, j < 8), x[i, j], 0.0), "out")
    assert "if_then_else" in generic_schedule(te.create_prim_func([x, out]), UNIT).script()


class Cropped(nn.Module):
    """To a multiple of four and back, as nets of windows do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        return F.pad(x.relu(), (0, -width % 4, 0, -height % 4))[..., :height, :width]


@pytest.mark.parametrize("size", [(12, 10), (9, 8), (7, 7), (8, 4)], ids=str)
def test_a_padding_that_is_cropped_again_is_compiled(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    np.testing.assert_array_equal(compile(Cropped().eval(), (x,)).run(x.numpy())[0], x.relu().numpy())


class Repeated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x * 2], 1)


def test_a_function_of_one_input_goes_through_tvms_passes() -> None:
    x = torch.randn(2, 5, 3)
    np.testing.assert_allclose(compile(Repeated().eval(), x).run(x)[0], Repeated()(x).numpy(), rtol=1e-6)
