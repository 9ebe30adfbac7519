"""Each Relax pass before and after, whole, against goldens; `UPDATE_GOLDENS=1 pytest` writes them anew."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import tvm

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.cpu.kernels import convs_to_kernels
from reparam_compiler.lowering.cpu.machine import DOTS, VectorUnit
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.relax.quantized import as_arithmetic
from reparam_compiler.lowering.relax.single import in_single
from tests.support.quantized_models import Quantized

pytestmark = pytest.mark.tvm
GOLDENS = Path(__file__).parents[1] / "goldens" / "lowering"
AVX2 = VectorUnit(32, 16, 2)
PASSES: dict[str, Callable[[Any], Any]] = {
    "simplify": simplify,
    "channels_last": channels_last,
    "convs_to_kernels": lambda module: convs_to_kernels(module, AVX2),
}


class Residual(nn.Module):
    """A conv with batch norm, a depthwise one with bias, a sum with the input, a leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(torch.relu(self.norm(self.wide(x))))
        return self.head(functional.leaky_relu(y + x, 0.125).mean((2, 3)))


class Dilated(nn.Module):
    """A dilated conv, concatenated with what was pooled of it, and a strided one."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(24, 40, 3, padding=2, dilation=2)
        self.strided = nn.Conv2d(80, 16, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dilated(x).clamp(0, 6)
        return self.strided(torch.cat([y, functional.max_pool2d(y, 3, 1, 1)], 1))


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 32, 19, 18)),
    "dilated": (Dilated, (1, 24, 25, 16)),
}


def text(module: Any) -> str:
    """`main` and the algorithm of each kernel."""
    script = module["main"].script(show_meta=False).replace('metadata["ir.GenericConst"]', "constant")
    lines = [line for line in script.splitlines() if line and not line.startswith("#")]
    for variable, func in sorted(module.functions_items(), key=lambda item: str(item[0].name_hint)):
        if func.attrs and "reparam.algorithm" in func.attrs:
            lines.append(f"# {variable.name_hint}: {func.attrs['reparam.algorithm']}")
    return re.sub(r"(?<=\[\]), *", ", ", "\n".join(lines)) + "\n"


def check(name: str, module: Any, passes: Mapping[str, Callable[[Any], Any]]) -> None:
    """The module as each pass in turn leaves it, beside its golden."""
    pages = [f"== imported ==\n{text(module)}"]
    for title, run in passes.items():
        module = run(module)
        pages.append(f"== {title} ==\n{text(module)}")
    found, golden = "\n".join(pages), GOLDENS / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(found)
    assert golden.read_text() == found


@pytest.mark.parametrize("name", MODELS)
def test_passes_rewrite_as_the_goldens_say(name: str) -> None:
    model, shape = MODELS[name]
    torch.manual_seed(0)
    check(name, to_relax(model().eval(), torch.zeros(shape)).module, PASSES)


def test_a_model_of_float16_is_rewritten_as_the_golden_says() -> None:
    torch.manual_seed(0)
    module = to_relax(Residual().half().eval(), torch.zeros(1, 32, 19, 18).half()).module
    check("half", module, {"in_single": in_single, **PASSES})


BYTES = VectorUnit(64, 32, 2, dots=DOTS["avx512vnni"])


def quantized() -> Quantized:
    """A conv by channel with a ReLU, a pool of its bytes, a depthwise conv added to it, and a dense layer."""
    net = Quantized((1, 3, 9, 8))
    bias = net.constant(np.linspace(-1, 1, 8), np.float32)
    image, scales = net.again("x", 0.02, 120, np.uint8), np.linspace(0.01, 0.02, 8)
    first = net.add("Relu", net.add("Conv", image, net.weights(8, 3, 3, 3, scale=scales, zero=[0] * 8), bias, pads=[1] * 4))
    pooled = net.again(net.add("MaxPool", net.again(first, 0.03, 0, np.uint8), kernel_shape=[2, 2]), 0.03, 0, np.uint8)
    behind = net.again(net.add("Conv", pooled, net.weights(8, 1, 3, 3), pads=[1] * 4, group=8), 0.04, 128, np.uint8)
    flat = net.add("Flatten", net.again(net.add("Add", behind, pooled), 0.05, 128, np.uint8))
    net.output(net.add("Gemm", net.again(flat, 0.05, 128, np.uint8), net.weights(5, 448), transB=1))
    return net


def test_layers_of_bytes_are_rewritten_as_the_golden_says() -> None:
    passes: dict[str, Callable[[Any], Any]] = {
        "as_arithmetic": lambda module: as_arithmetic(module, integers=True),
        "channels_last": lambda module: channels_last(simplify(module)),
        "convs_to_kernels": lambda module: convs_to_kernels(module, BYTES),
    }
    check("quantized", to_relax(quantized().model()).module, passes)


class Folded(nn.Module):
    """A batch norm behind a conv and one alone, and a token that is spread over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.behind, self.alone = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.BatchNorm2d(3)
        self.token = nn.Parameter(torch.randn(1, 1, 7))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.behind(self.conv(x)), self.alone(x).relu(), torch.cat([self.token.expand(2, -1, -1), x[:, 0]], 1)


def test_constants_are_folded_without_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM would write a function for every op, and compile one for each constant that is left to it."""
    module = to_relax(Folded().eval(), torch.zeros(2, 3, 9, 7)).module
    monkeypatch.setattr(sys.modules[tvm.tirx.build.__module__], "split_host_device_mods", lambda _: pytest.fail("compiled"))
    folded = text(simplify(module))
    assert "sqrt" not in folded
    assert "broadcast_to" not in folded


BETWEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ReLU6": functional.relu6,
    "hardswish": functional.hardswish,
    "leaky ReLU and a pool": lambda y: functional.max_pool2d(functional.leaky_relu(y, 0.1), 3, 1, 1),
    "a number on the left": lambda y: 1 - y / 3,
    "concat of what was pooled": lambda y: torch.cat([y.clamp(min=0)[:, :8], functional.avg_pool2d(y, 3, 1, 1)[:, 8:]], 1),
    "bilinear upsampling": lambda y: functional.interpolate(y, scale_factor=2.0, mode="bilinear"),
    "squeeze and excite": lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)),
}


class Between(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.second, self.name = nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(BETWEEN[self.name](self.first(x)))


class AllBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(map(Between, BETWEEN))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(x) for part in self.parts)


@pytest.mark.parametrize("name", BETWEEN)
def test_transposes_stay_at_the_borders(name: str) -> None:
    module = channels_last(simplify(to_relax(Between(name).eval(), torch.zeros(1, 8, 12, 13)).module))
    assert text(module).count("permute_dims") == 2


def test_what_lies_between_convs_is_computed_as_torch_does() -> None:
    torch.manual_seed(0)
    model, x = AllBetween().eval(), torch.randn(1, 8, 12, 13)
    with torch.no_grad():
        for found, expected, name in zip(compile(model, x).run(x), model(x), BETWEEN, strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_passes_leave_the_module_they_are_given_alone() -> None:
    model, shape = MODELS["residual"]
    module = to_relax(model().eval(), torch.zeros(shape)).module
    before = text(module)
    for run in PASSES.values():
        prepared = channels_last(simplify(module)) if run is PASSES["convs_to_kernels"] else module
        unchanged = text(prepared)
        run(prepared)
        assert text(prepared) == unchanged
    assert text(module) == before
