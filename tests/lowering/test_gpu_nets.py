"""Whole models lowered for a GPU compute what torch computes, with thread loops made serial (see `serial_gpu`)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering.build import lower
from reparam_compiler.lowering.gpu import kernels as gpu_kernels
from reparam_compiler.lowering.gpu.conv import declare_conv
from reparam_compiler.lowering.gpu.tensor_cores import scheduled_tensor_conv
from reparam_compiler.lowering.gpu.winograd import winograd_form
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.target import resolve
from tests.support.compiled_nets import CONVS, NETS, Residual, seeded
from tests.support.serial_gpu import run_net_serially

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def lowered(model: nn.Module, *inputs: torch.Tensor) -> Any:
    target = resolve("cuda -arch=sm_80")
    with target:
        return lower(to_relax(model, inputs).module, target)


def check(model: nn.Module, *shapes: tuple[int, ...]) -> Any:
    torch.manual_seed(1)
    model, inputs = seeded(model), tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        expected = model(*inputs)
    module = lowered(model, *inputs)
    found = run_net_serially(module, *(x.numpy() for x in inputs))
    expected = expected if isinstance(expected, tuple | list) else (expected,)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), **FLOAT32)
    return module


@pytest.mark.parametrize("name", CONVS)
def test_conv_matches_torch(name: str) -> None:
    conv, shape = CONVS[name]
    check(nn.Sequential(conv, nn.ReLU()), shape)


@pytest.mark.parametrize("name", NETS)
def test_net_matches_torch(name: str) -> None:
    net, shape = NETS[name]
    check(net, shape)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.AdaptiveAvgPool2d(1), (2, 12, 13, 11)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 5, 9, 7)),
        (nn.Linear(300, 70), (1, 300)),
        (nn.Linear(300, 70), (40, 300)),
        (nn.Softmax(1), (3, 500)),
        (nn.LayerNorm(33), (4, 7, 33)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 5, 4)),
        (nn.PixelShuffle(2), (1, 12, 3, 5)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_op_without_a_recipe_matches_torch(module: nn.Module, shape: tuple[int, ...]) -> None:
    check(module, shape)


def test_bias_relu_and_residual_are_in_the_conv_kernel() -> None:
    module = check(Residual(16), (1, 16, 9, 8))
    names = [str(variable.name_hint) for variable, _ in module.functions_items()]
    assert sum(name.startswith("conv") and not name.endswith("_sum") for name in names) == 2
    assert not [name for name in names if "add" in name or "relu" in name]


def test_float16_net_matches_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(*arguments: Any) -> Any:
        shape, tile, *epilogue = arguments
        func = declare_conv(shape, tile, epilogue[0] if epilogue else None)
        return scheduled_tensor_conv(func, shape, tile, intrinsics=False).mod["main"].with_attr("tirx.is_scheduled", True)

    monkeypatch.setattr(gpu_kernels, "tensor_conv", plain)
    monkeypatch.setattr(gpu_kernels, "tensor_partial_conv", plain)
    torch.manual_seed(1)
    model = seeded(nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), Residual(24), nn.AdaptiveAvgPool2d(1)))
    x = torch.randn(2, 3, 17, 12)
    with torch.no_grad():
        expected = model(x).numpy()
    (found,) = run_net_serially(lowered(model.half(), x.half()), x.half().numpy())
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


class Dilated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return torch.relu(self.second(x) + x)


def test_winograd_net_matches_torch_and_reports_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "choose_gpu_winograd", lambda shape, chip: [winograd_form(4)])
    module = check(Dilated(), (2, 8, 11, 9))
    funcs = {str(variable.name_hint): func for variable, func in module.functions_items()}
    marked = {name: func for name, func in funcs.items() if func.attrs and "reparam.algorithm" in func.attrs}
    assert [str(func.attrs["reparam.algorithm"]) for func in marked.values()] == ["winograd 4x4"] * 2
    assert all(0 < float(func.attrs["reparam.error"]) < 1e-4 for func in marked.values())
    assert sum(int(func.attrs["reparam.flops"]) for func in marked.values()) == 2 * 2 * 99 * (9 * 8 * 32 + 9 * 16 * 32)
    assert sum(name.endswith("_placed") for name in funcs) == 1  # the dilated one


def test_winograd_beyond_the_bound_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "choose_gpu_winograd", lambda shape, chip: [winograd_form(4)])
    target, model, x = resolve("cuda"), Dilated().eval(), torch.zeros(1, 8, 11, 9)
    with target:
        module = lower(to_relax(model, x).module, target, max_error=0.0)
    assert not [name for name, _ in module.functions_items() if "_input" in str(name.name_hint)]
