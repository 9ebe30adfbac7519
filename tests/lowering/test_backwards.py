"""Positions that are counted backwards are divided as those counted forwards, and nets that flip read what they should."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("tvm")

import tvm
import tvm_ffi
from tvm import te, tirx

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.relax.backwards import counted_forwards

pytestmark = pytest.mark.tvm
Index = Callable[[Any, Any], Any]


def places(at: Index, extents: tuple[int, int]) -> Any:
    """A kernel that writes a function of the positions of an output."""
    return te.create_prim_func([te.compute(extents, at, "out")])


def written(func: Any, extents: tuple[int, int]) -> Any:
    """What it writes, through TVM's whole pipeline."""
    out = tvm.runtime.tensor(np.zeros(extents, "int64"))
    tvm.compile(tvm.IRModule({"main": func}), target="llvm")["main"](out)
    return out.numpy()


def falls(func: Any) -> bool:
    """Whether a dividend of the kernel has a term that falls."""
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tirx.FloorDiv, found.append))
    tvm_ffi.structural_walk(func.body, (tirx.FloorMod, found.append))
    return any(isinstance(node.a, tirx.Sub) for node in found)


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(-9, 20),
    by=st.integers(2, 7),
    steps=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    is_quotient=st.booleans(),
)
def test_a_quotient_and_a_remainder_are_what_they_were(k: int, by: int, steps: tuple[int, int], is_quotient: bool) -> None:
    extents = (5, 4)
    divided = tirx.floordiv if is_quotient else tirx.floormod

    def at(i: Any, j: Any) -> Any:
        i, j = (tirx.Cast("int64", v) for v in (i, j))
        return divided(tirx.const(k, "int64") - i * steps[0] - j * steps[1], tirx.const(by, "int64"))

    func = counted_forwards(tvm.IRModule({"main": places(at, extents)}))["main"]
    assert not falls(func)
    expected = np.zeros(extents, "int64")
    for i, j in itertools.product(*map(range, extents)):
        dividend = k - i * steps[0] - j * steps[1]
        expected[i, j] = dividend // by if is_quotient else dividend % by
    np.testing.assert_array_equal(written(func, extents), expected)


@pytest.mark.parametrize(
    "at",
    [
        lambda i, j: tirx.floordiv(i * 4 - j, 3),
        lambda i, j: tirx.floordiv(i + 5, 3),
        lambda i, j: tirx.floordiv(7 - i, j + 1),
        lambda i, j: tirx.floormod(i * 4 + (3 - j), 6),
    ],
    ids=["rising and falling", "rising", "no number below", "rising and falling, remainder"],
)
def test_other_dividends_stay(at: Index) -> None:
    func = places(at, (5, 4))
    tvm.ir.assert_structural_equal(counted_forwards(tvm.IRModule({"main": func}))["main"].body, func.body)


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("times", [2, 3])
def test_what_was_repeated_and_flipped_is_read_where_it_stands(rows: int, times: int) -> None:
    x = te.placeholder((rows, 4), "float32", "x")
    last = rows * times - 1
    out = te.compute((rows * times, 4), lambda i, j: x[tirx.floordiv(last - i, times), j], "out")
    module = counted_forwards(tvm.IRModule({"main": te.create_prim_func([x, out])}))
    array = np.random.default_rng(0).standard_normal((rows, 4)).astype("float32")
    found = tvm.runtime.tensor(np.zeros((rows * times, 4), "float32"))
    tvm.compile(module, target="llvm")["main"](tvm.runtime.tensor(array), found)
    np.testing.assert_array_equal(found.numpy(), np.repeat(array, times, 0)[::-1])


class Unshuffled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(x, 2).flip(1)


class Interleaved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, -x], 2).flatten(1, 2).flip(1)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("net", [Unshuffled(), Interleaved()], ids=lambda net: type(net).__name__)
def test_a_net_that_flips_what_it_interleaved(net: nn.Module, kind: str, tmp_path: Path) -> None:
    x = torch.randn(1, 8, 4, 4)
    model: Any = net.eval()
    if kind == "onnx":
        pytest.importorskip("onnx")
        from tests.support.onnx_models import exported

        model = exported(model, x, tmp_path, dynamo=False, dynamic=False)
    np.testing.assert_array_equal(compile(model, (x,)).run(x.numpy())[0], net(x).numpy())
