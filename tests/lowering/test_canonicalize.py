"""What TVM's importers and passes misread, compiled and compared with torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")

from tvm import relax

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.canonicalize import RULES, canonicalized
from reparam_compiler.lowering.relax.layout import channels_last

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
CASES: dict[str, Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]] = {
    "the last of a dimension": lambda y: y[:, -1],
    "the last of the batch": lambda y: y[-1],
    "chosen from both ends": lambda y: y[:, [-1, 0, -3]],
    "chosen along two axes": lambda y: y[:, :, [-1, 0]],
    "norm over channels and pixels": lambda y: functional.layer_norm(y, y.shape[1:]),
    "norm over pixels": lambda y: functional.layer_norm(y, y.shape[2:], eps=1e-3),
    "squeeze of a negative axis": lambda y: y.mean(3, keepdim=True).squeeze(-1),
    "squeeze of every axis": lambda y: y.mean((2, 3), keepdim=True).squeeze(),
    "relu6": functional.relu6,
    "half a clamp": lambda y: y.clamp(min=-0.25),
    "a clamp below everything": lambda y: y.clamp(max=-float("inf")),
    "a clamp above everything": lambda y: y.clamp(min=float("inf")),
    "a clamp of nothing": lambda y: y.clamp(-float("inf"), float("inf")),
    "a clamp at no number": lambda y: y.clamp(max=float("nan")),
    "leaky relu with a slope over 1": lambda y: functional.leaky_relu(y, 1.5),
    "leaky relu with a slope below 0": lambda y: functional.leaky_relu(y, -0.5),
    "leaky relu of rank 3": lambda y: functional.leaky_relu(y.flatten(2), 0.1),
    "a number minus": lambda y: 3 - y,
    "a number over": lambda y: 1 / (y.abs() + 2),
    "a power of a number": lambda y: y.sigmoid() ** 3,
    "a number of no axes": lambda y: y * torch.tensor(2.5),
    "squares and cubes": lambda y: (y**2, y**3, y.flatten(2) ** 2.0),
    "GELU in arithmetic": lambda y: y * (torch.erf(y / 2**0.5) + 1) * 0.5,
    "GELU with its half first": lambda y: 0.5 * y * (1 + torch.erf(y * 0.5**0.5)),
    "GELU by tanh in arithmetic": lambda y: 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))),
    "SiLU in arithmetic": lambda y: y * torch.sigmoid(y),
    "hard swish in arithmetic": lambda y: y * (y + 3).clamp(0, 6) / 6,
    "a product of two functions": lambda y: torch.sigmoid(y) * torch.tanh(y),
    "itself less its half": lambda y: 0.5 * y - y,
    "stacked": lambda y: torch.stack((y, y.relu()), 1) + 1,
    "stacked behind the last axis": lambda y: torch.stack((y, y.relu()), -1).flatten(1),
    "the sum of a stack": lambda y: torch.stack((y, y.relu(), -y)).sum(0),
    "the mean of a stack": lambda y: torch.stack((y, y.relu(), -y), 2).mean(2),
    "the sum of a stack, kept": lambda y: torch.stack((y, y.relu()), 1).sum(1, keepdim=True),
    "the sum of a stack of each": lambda y: torch.stack((y, y.relu())).sum((0, 1)),
    "a sum with itself turned": lambda y: y[:, :, :5, :5] + y[:, :, :5, :5].transpose(2, 3),
}


class Behind(nn.Module):
    """Each op behind a conv of its own, whose output is NHWC inside."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in CASES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = [case(conv(x)) for conv, case in zip(self.convs, CASES.values(), strict=True)]
        return tuple(
            torch.cat([each.flatten() for each in result]) if isinstance(result, tuple) else result for result in results
        )


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a compiled model and torch compute for each case."""
    torch.manual_seed(0)
    model, x = Behind().eval(), torch.randn(2, 3, 7, 6)
    with torch.no_grad():
        expected = [value.numpy() for value in model(x)]
    return dict(zip(CASES, zip(compile(model, x).run(x), expected, strict=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_behind_a_conv_it_is_what_torch_computes(name: str, results: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    found, expected = results[name]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, **FLOAT32)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm((4, 7, 6))
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.up, self.last = nn.ConvTranspose2d(4, 5, 2, stride=2), nn.Conv2d(5, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(self.norm(self.conv(x))).relu())


def test_a_norm_with_weights_over_three_axes_and_a_transposed_conv_between_convs() -> None:
    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(1, 3, 7, 6)
    np.testing.assert_allclose(compile(model, x).run(x)[0], model(x).detach().numpy(), **FLOAT32)


class Integers(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 2, 7 - x, x.clamp(1, 5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_numbers_keep_the_dtype_of_what_they_meet(dtype: torch.dtype) -> None:
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).to(dtype)
    for found, expected in zip(compile(Integers().eval(), x).run(x), Integers()(x), strict=True):
        assert found.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(found, expected.numpy())


def test_what_needs_no_other_words_is_left_as_it_is() -> None:
    module = to_relax(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()).eval(), torch.zeros(1, 3, 6, 5)).module
    assert canonicalized(module)["main"].script(show_meta=False) == module["main"].script(show_meta=False)


def between_convs(names: list[str]) -> Any:
    """An ONNX model: of each name that op of a dropout, the input and weights, between two convs."""
    pytest.importorskip("onnxruntime")
    from onnx import helper

    from tests.support.onnx_models import model_of, normal

    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Dropout", ["c"], ["d"])]
    nodes += [helper.make_node(name, ["d", "x", "k"], [name]) for name in names]
    nodes += [helper.make_node("Conv", [name, "w"], [f"{name}s"]) for name in names]
    outputs = [f"{name}s" for name in names]
    return model_of(nodes, {"x": (2, 3, 7, 6)}, outputs, {"w": normal(3, 3, 3, 3), "k": normal(3, 1, 1)}, opset=13)


def check(model: Any) -> Any:
    from tests.support.onnx_models import normal, run

    x, executable = normal(2, 3, 7, 6, seed=1), compile(model)
    for found, expected in zip(executable.run(x), run(model, {"x": x}), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)
    return executable


def test_a_dropout_and_what_onnx_does_to_several_between_convs() -> None:
    check(between_convs(["Sum", "Mean", "Max", "Min"]))


def stacked_between_convs() -> Any:
    """A Relax module: the sum of a stack of a conv's result with itself, and a conv of that."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((1, 3, 7, 6), "float32"))
    first, last = (relax.const(np.ones(size, "float32")) for size in ((4, 3, 3, 3), (5, 4, 3, 3)))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, first))
            total = builder.emit(relax.op.sum(builder.emit(relax.op.stack([y, y], 1)), [1]))
            result = builder.emit_output(relax.op.nn.conv2d(total, last))
        builder.emit_func_output(result)
    return builder.get()


def test_op_at_which_the_layout_pass_fails_keeps_its_layout_and_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(RULES, "relax.stack")
    script = channels_last(stacked_between_convs())["main"].script()
    assert "TVM's ConvertLayout fails at stack, which stays NCHW: Check failed" in caplog.text
    assert script.count('data_layout="NHWC"') == 2
    assert "R.call_tir(stack" in script
