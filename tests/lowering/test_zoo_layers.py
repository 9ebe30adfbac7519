"""Every kernel that the rule makes for the convs of the zoo at 224 x 224, against torch in float64.

Layers of one algorithm, tile, kernel, stride and kind of groups are one kernel over other extents: of these the one that is
computed soonest.
"""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import tvm

from reparam_compiler.lowering.conv.accuracy import MAX_ERROR, measured_error
from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.kernels import kernel_of, output_size, packed_weights
from reparam_compiler.lowering.cpu.machine import vector_unit
from reparam_compiler.lowering.target import resolve
from reparam_compiler.zoo import REPVGG, RESNET
from tests.support.exact_convs import exact_conv

pytestmark = [pytest.mark.tvm, pytest.mark.slow]
FLOAT32 = 1e-4
"""Relative to the largest output: the bound that the rule keeps for each layer."""
NETS = {**{f"RepVGG-{name}": REPVGG[name] for name in ("A0", "A1", "A2", "B0", "B1g2", "B1g4")}, **RESNET}


def shapes_of(name: str) -> list[ConvShape]:
    """The convs of a net, each once: the weights have no values, and only the convs run, on the meta device.

    This runs where the tests are collected, so it must cost little: drawing weights and adding on the meta device does not.
    """
    drawn = {
        kind: mock.patch.object(nn.init, kind, lambda weight, *_, **__: weight)
        for kind in ("kaiming_normal_", "kaiming_uniform_")
    }
    with torch.device("meta"), drawn["kaiming_normal_"], drawn["kaiming_uniform_"]:
        model = NETS[name]().eval()
    shapes: list[ConvShape] = []

    def note(conv: nn.Conv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        (_, channels, height, width), (down, across) = inputs[0].shape, conv.padding
        shape = ConvShape(
            1, height, width, channels, conv.out_channels, conv.kernel_size, conv.stride, conv.dilation,
            (int(down), int(across), int(down), int(across)), conv.groups,
        )  # fmt: skip
        assert (shape.out_height, shape.out_width) == tuple(output.shape[2:])
        shapes.append(shape)
        return torch.zeros(()).expand(output.shape)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: inputs[0].to("meta"))
            module.register_forward_hook(note)
        elif isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.Linear):
            module.forward = lambda x: x
    model(torch.zeros(()).expand(1, 3, 224, 224))
    return list(dict.fromkeys(shapes))


def kernel_like(shape: ConvShape) -> tuple[object, ...]:
    """What the rule's kernels for two layers differ by, but for their extents."""
    form = candidates(shape, vector_unit(resolve(None)))[0]
    return str(form), replace(form.tile, unroll=0), bool(form.block), shape.kernel, shape.stride, shape.groups > 1


LAYERS = sorted({shape for name in NETS for shape in shapes_of(name)}, key=lambda shape: (-shape.macs, str(shape)))
SHAPES = list({kernel_like(shape): shape for shape in LAYERS}.values())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kernel[0]}x{s.kernel[1]}-{s.channels_in}-{s.channels_out}")
def test_the_chosen_algorithm_computes_the_layer(shape: ConvShape) -> None:
    target, draw = resolve(None), np.random.default_rng(0)
    unit = vector_unit(target)
    x = np.maximum(draw.standard_normal((1, shape.height, shape.width, shape.channels_in)), 0).astype("float32")
    weight = draw.standard_normal((shape.channels_out, *shape.kernel, shape.group_in)).astype("float32")
    chosen = next(each for each in candidates(shape, unit) if measured_error(weight, shape, each) <= MAX_ERROR)
    kernel = kernel_of(shape, chosen, (), unit)
    library = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target=target)
    out = tvm.runtime.tensor(np.full(output_size(shape, chosen), np.nan, "float32"))
    library["main"](*map(tvm.runtime.tensor, (x, packed_weights(weight, shape, chosen))), out)
    expected = exact_conv(x, weight, shape)
    assert np.abs(out.numpy().reshape(expected.shape) - expected).max() <= FLOAT32 * np.abs(expected).max()
