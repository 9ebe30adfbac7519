"""A model in float16 on a CPU: the net of float32, with its kernels, rounded to float16 where it ends or says so itself."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from onnx import ModelProto, TensorProto, helper, numpy_helper
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.cpu.pipeline import prepared
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.single import in_single
from reparam_compiler.lowering.target import resolve
from tests.support.lowered import lower

pytestmark = pytest.mark.tvm
HALF_ULP = 2.0**-11
"""Of a number, by which rounding to float16 moves it at most; what is computed before is of float32, to 1e-5."""


class Sums(nn.Module):
    """Convs, a product of activations, a norm, pools, and a sum that leaves the range of float16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.depthwise(self.conv(x).relu())
        rows = self.norm(y.flatten(2).transpose(1, 2))
        mixed = (rows[:, :24] @ rows[:, :24].transpose(1, 2)).softmax(-1)
        return self.head(rows), mixed, y.mean((2, 3)), nn.functional.avg_pool2d(y, 2), (y.abs() * 4096).sum((1, 2, 3))


def halved(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model in float16, and the same numbers in float64."""
    half = model.half().eval()
    return half, copy.deepcopy(half).double()


def test_outputs_are_those_of_the_exact_net_rounded_once() -> None:
    torch.manual_seed(0)
    (model, exact), x = halved(Sums()), torch.randn(2, 3, 48, 40).half()
    compiled = compile(model, x)
    with torch.no_grad():
        expected = [value.numpy() for value in exact(x.double())]
    for found, wanted in zip(compiled.run(x), expected, strict=True):
        assert (found.dtype, found.shape) == (np.float16, wanted.shape)
        within = np.abs(wanted) < np.finfo(np.float16).max
        apart = np.abs(found.astype(np.float64) - wanted)[within]
        assert (apart <= HALF_ULP * np.abs(wanted[within]) + 1e-5 * np.abs(wanted[within]).max(initial=0)).all()
        assert np.isinf(found[~within]).all()
    assert np.isinf(compiled.run(x)[-1]).all()
    kinds = {kernel.name.split("_")[0] for kernel in compiled.kernels if kernel.algorithm != "general"}
    assert {"conv", "depthwise", "dense"} <= kinds


class Excite(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y * functional.hardsigmoid(self.up(self.down(y.mean((2, 3), keepdim=True)).relu()))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.conv(y) + y)


class LastNorm(nn.Module):
    """A layer norm over the channels of each pixel, as ConvNeXt has it, with its scale of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.full((8,), 0.5))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = self.norm(y.permute(0, 2, 3, 1)) * self.scale
        return normal.permute(0, 3, 1, 2) + y


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "ReLU": nn.ReLU,
    "clip": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "PReLU": lambda: nn.PReLU(8),
    "batch norm": lambda: nn.BatchNorm2d(8),
    "layer norm": LastNorm,
    "softmax": lambda: nn.Softmax(1),
    "residual sum": Residual,
    "squeeze and excite": Excite,
    "max pool": lambda: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda: nn.AvgPool2d(3, 1, 1),
}


def ops(module: Any) -> Counter[str]:
    """How often each op is in `main`."""
    return Counter(op_name(value) for value in relax.analysis.get_var2val(module["main"]).values())


@settings(max_examples=12)
@given(names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4))
def test_between_its_borders_a_half_net_has_the_ops_of_the_float32_net(names: list[str]) -> None:
    """Behind a batch norm, whose scale the weights take in only where they are no numbers of float16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(8), *(BLOCKS[name]() for name in names if name != "batch norm")).eval()
    x = torch.zeros(1, 8, 6, 5)
    single = ops(prepared(to_relax(net, x).module))
    half = ops(prepared(to_relax(copy.deepcopy(net).half(), x.half()).module))
    assert half - single == Counter({"relax.astype": 2})
    assert not single - half


@pytest.mark.parametrize("name", BLOCKS)
def test_what_the_kernel_of_a_conv_takes_in_it_takes_in_of_a_half_net(name: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(8, 8, 3), BLOCKS[name](), nn.Conv2d(8, 8, 1)).eval(), torch.zeros(1, 8, 8, 7)
    single, half = (
        lower(to_relax(model, given).module, resolve(None))
        for model, given in ((net, x), (copy.deepcopy(net).half(), x.half()))
    )
    casts = 2  # of the input and of the output, each a kernel, or a part of what moves it
    assert len(half.functions) <= len(single.functions) + casts
    with torch.no_grad():
        exact = copy.deepcopy(net).half().double()(torch.ones(1, 8, 8, 7, dtype=torch.float64)).numpy()
    (found,) = compile(copy.deepcopy(net).half(), x.half()).run(torch.ones(1, 8, 8, 7).half())
    np.testing.assert_allclose(found, exact, rtol=HALF_ULP, atol=1e-5 * np.abs(exact).max())


def clipped() -> ModelProto:
    """A conv with ONNX's Clip, which TVM imports as a kernel; one behind a resizing in float32, as converters leave it."""
    source = np.random.default_rng(0)
    weights = {name: source.standard_normal((8, 8, 1, 1)).astype(np.float16) for name in ("v", "w")}
    bounds = {"low": np.array(0, np.float16), "high": np.array(6, np.float16)}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["y"]),
        helper.make_node("Clip", ["y", "low", "high"], ["z"]),
        helper.make_node("Cast", ["z"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "third"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["narrow", "w"], ["out"]),
    ]
    arrays = weights | bounds | {"third": np.array(1 / 3, np.float32)}
    graph = helper.make_graph(
        nodes,
        "clipped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, (1, 8, 6, 5))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, (1, 8, 6, 5)) for name in ("out", "narrow")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_clip_of_onnx_is_a_part_of_its_conv_and_what_a_converter_left_in_float32_is_not_rounded() -> None:
    model, x = clipped(), np.random.default_rng(1).standard_normal((1, 8, 6, 5)).astype(np.float16)
    found = ops(in_single(to_relax(model).module))
    assert (found["relax.maximum"], found["relax.minimum"], found["relax.call_tir"], found["relax.astype"]) == (1, 1, 0, 3)
    out, narrow = compile(model).run(x)
    arrays = {each.name: numpy_helper.to_array(each).astype(np.float64)[..., 0, 0] for each in model.graph.initializer[:2]}
    y = np.clip(np.einsum("oc,nchw->nohw", arrays["v"], x.astype(np.float64)), 0, 6) / 3
    np.testing.assert_allclose(narrow, y, rtol=HALF_ULP, atol=1e-5)
    z = np.einsum("oc,nchw->nohw", arrays["w"], y)
    np.testing.assert_allclose(out, z, rtol=HALF_ULP, atol=1e-5 * np.abs(z).max())


class Rounded(nn.Module):
    """A model of float32 that rounds to float16 itself, and computes with what is left."""

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.half().float() * 2049, (x > 0).half() + x.half(), places.half() / 3


def test_what_a_model_casts_to_float16_is_rounded_there() -> None:
    x, places = torch.randn(4, 33), torch.arange(2040, 2060)
    for found, expected in zip(compile(Rounded().eval(), (x, places)).run(x, places), Rounded()(x, places), strict=True):
        np.testing.assert_array_equal(found, expected.numpy(), strict=True)


class Looked(nn.Module):
    """Rows of a table, and a part of the input, as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2000, 32)

    def forward(self, places: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.table(places), x


def test_a_table_of_float16_is_stored_as_one_and_an_input_that_is_an_output_is_the_same() -> None:
    model, places, x = Looked().half().eval(), torch.tensor([[3, 1999], [0, 7]]), torch.randn(2, 3).half()
    compiled = compile(model, (places, x))
    assert [(str(weight.stored.dtype), weight.stored.shape) for weight in compiled.variants[0].weights] == [
        ("float16", (2000, 32))
    ]
    for found, expected in zip(compiled.run(places, x), model(places, x), strict=True):
        np.testing.assert_array_equal(found, expected.detach().numpy(), strict=True)


@I.ir_module
class Branches:
    """Values of float16 that pass through the branches of an If."""

    @R.function
    def main(x: R.Tensor((4,), "float16"), which: R.Tensor((), "bool")) -> R.Tensor((4,), "float16"):
        y = R.multiply(x, x)
        if which:
            double = R.add(y, x)
            taken = R.negative(double)
        else:
            taken = x
        z = R.sqrt(taken)
        return z


def test_branches_give_float16_where_they_end() -> None:
    module = in_single(Branches)
    relax.analysis.well_formed(module)
    text = module["main"].script(show_meta=False)
    assert text.count('astype(x, dtype="float32")') >= 1
    assert "R.multiply(x, x)" not in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_of_half_precision_is_left_as_it_is(dtype: torch.dtype) -> None:
    module = to_relax(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(dtype).eval(), torch.zeros(1, 3, 6, 5, dtype=dtype)
    ).module
    assert in_single(module) is module
