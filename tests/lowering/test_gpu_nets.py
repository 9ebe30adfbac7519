"""Whole models lowered for a GPU compute what torch computes, with thread loops made serial (see `serial_gpu`)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering.gpu import kernels as gpu_kernels
from reparam_compiler.lowering.gpu import plans as gpu_plans
from reparam_compiler.lowering.gpu.conv import declare_conv
from reparam_compiler.lowering.gpu.tensor_cores import scheduled_tensor_conv
from reparam_compiler.lowering.gpu.winograd import winograd_form
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.target import resolve
from tests.support.compiled_nets import CONVS, NETS, Residual, Results, rectified, results_of, seeded
from tests.support.lowered import lower
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


def lower_and_run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    return run_net_serially(lowered(model, *inputs), *(x.numpy() for x in inputs))


@pytest.fixture(scope="module")
def convs() -> Results:
    return results_of(rectified(CONVS), lower_and_run)


@pytest.mark.parametrize("name", CONVS)
def test_conv_matches_torch(name: str, convs: Results) -> None:
    ((found, expected),) = convs[name]
    np.testing.assert_allclose(found, expected, **FLOAT32)


WITHOUT_RECIPE = {
    "global average": (nn.AdaptiveAvgPool2d(1), (2, 12, 13, 11)),
    "average of what is inside": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 5, 9, 7)),
    "dense of one row": (nn.Linear(300, 70), (1, 300)),
    "dense of 40 rows": (nn.Linear(300, 70), (40, 300)),
    "softmax": (nn.Softmax(1), (3, 500)),
    "layer norm": (nn.LayerNorm(33), (4, 7, 33)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 5, 4)),
    "pixel shuffle": (nn.PixelShuffle(2), (1, 12, 3, 5)),
}


@pytest.fixture(scope="module")
def nets() -> Results:
    return results_of({**NETS, **WITHOUT_RECIPE}, lower_and_run)


@pytest.mark.parametrize("name", NETS)
def test_net_matches_torch(name: str, nets: Results) -> None:
    for found, expected in nets[name]:
        np.testing.assert_allclose(found, expected, **FLOAT32)


@pytest.mark.parametrize("name", WITHOUT_RECIPE)
def test_op_without_a_recipe_matches_torch(name: str, nets: Results) -> None:
    ((found, expected),) = nets[name]
    np.testing.assert_allclose(found, expected, **FLOAT32)


def test_bias_relu_and_residual_are_in_the_conv_kernel() -> None:
    module = lowered(seeded(Residual(16)), torch.zeros(1, 16, 9, 8))
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
    monkeypatch.setattr(gpu_plans, "choose_gpu_winograd", lambda shape, chip: [winograd_form(4)])
    module = check(Dilated(), (2, 8, 11, 9))
    funcs = {str(variable.name_hint): func for variable, func in module.functions_items()}
    marked = {name: func for name, func in funcs.items() if func.attrs and "reparam.algorithm" in func.attrs}
    assert [str(func.attrs["reparam.algorithm"]) for func in marked.values()] == ["winograd 4x4"] * 2
    assert all(0 < float(func.attrs["reparam.error"]) < 1e-4 for func in marked.values())
    assert sum(int(func.attrs["reparam.flops"]) for func in marked.values()) == 2 * 2 * 99 * (9 * 8 * 32 + 9 * 16 * 32)
    assert sum(name.endswith("_placed") for name in funcs) == 1  # the dilated one


def test_winograd_beyond_the_bound_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_plans, "choose_gpu_winograd", lambda shape, chip: [winograd_form(4)])
    target, model, x = resolve("cuda"), Dilated().eval(), torch.zeros(1, 8, 11, 9)
    with target:
        module = lower(to_relax(model, x).module, target, max_error=0.0)
    assert not [name for name, _ in module.functions_items() if "_input" in str(name.name_hint)]
