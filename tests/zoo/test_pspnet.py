"""PSPNet's shapes and dilations are those of Table 8, and it goes through fuse, export, ONNX and TVM."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import reparam_compiler
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.zoo import Architecture, RepVGG, pspnet, randomise_batch_norm
from reparam_compiler.zoo.pspnet import BACKBONES, PSPNet
from tests.support.onnx_models import exported, run_on

NARROW = Architecture((1, 1, 2, 3, 1), (8, 8, 16, 16, 24))
EVEN, ODD = (1, 3, 41, 89), (2, 3, 45, 59)
"""Feature maps of 6 x 12, which the cells of the pyramid divide, and of 6 x 8, which they do not."""


def narrow(dilated: str = "last_two_stages") -> PSPNet:
    """A PSPNet on a RepVGG backbone of few channels, in training form, with random statistics."""
    torch.manual_seed(0)
    backbone = RepVGG(NARROW, dilated=dilated).stages
    return randomise_batch_norm(PSPNet(backbone, 24, num_classes=5).eval(), 0)


def convs_3x3(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize("backbone", ["RepVGG-A0", "RepVGG-B1g2", "RepVGG-B1g2 fast", "ResNet-18", "ResNet-50"])
def test_every_pixel_gets_its_classes(backbone: str) -> None:
    with torch.device("meta"):
        model, x = pspnet(backbone).eval(), torch.empty(1, 3, 89, 137)
    assert model.backbone(x).shape[2:] == (12, 18)  # output stride 8
    assert model(x).shape == (1, 19, 89, 137)
    assert pspnet.__defaults__ == (19,)


@pytest.mark.parametrize(("dilated", "spread"), [("", 17), (" fast", 5)])
def test_the_last_two_stages_are_dilated_and_the_fast_ones_in_five_layers_alone(dilated: str, spread: int) -> None:
    with torch.device("meta"):
        convs = convs_3x3(pspnet("RepVGG-B1g2" + dilated).backbone)
    dilations = [conv.dilation[0] for conv in convs]
    assert dilations[-spread:] == [2] * (spread - 1) + [4]
    assert set(dilations[:-spread]) == {1}
    assert [conv.stride[0] for conv in convs].count(2) == 3


def test_a_resnet_backbone_keeps_its_parameters_and_dilates_its_3x3_convs() -> None:
    with torch.device("meta"):
        convs = convs_3x3(pspnet("ResNet-50").backbone)
    assert [conv.dilation[0] for conv in convs] == [1] * 7 + [2] * 6 + [4] * 3
    assert all(conv.padding == conv.dilation for conv in convs)


@pytest.mark.parametrize("backbone", ["RepVGG-C7", "ResNet-50 fast", "resnet50", ""])
def test_an_unknown_backbone_is_refused_with_those_that_there_are(backbone: str) -> None:
    with pytest.raises(ValueError, match="choose one of RepVGG-A0, RepVGG-A0 fast") as refusal:
        pspnet(backbone)
    assert all(name in str(refusal.value) for name in BACKBONES)


@pytest.mark.parametrize("dilated", ["last_two_stages", "last_five"])
def test_every_repvgg_block_is_fused_to_one_conv_of_its_dilation(dilated: str) -> None:
    model = narrow(dilated).double()
    x = torch.randn(ODD, dtype=torch.float64)
    fused, report = reparam_compiler.fuse(model, (x,), return_report=True)
    assert [refusal.op for refusal in report.refusals] == ["concat"]  # of the pyramid, whose levels end in a ReLU
    assert [conv.dilation for conv in convs_3x3(fused)] == [conv.dilation for conv in convs_3x3(model)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        assert difference(model(x), fused(x)).relative < 1e-13


@pytest.mark.parametrize("shape", [EVEN, ODD])
def test_it_can_be_exported_before_and_after_fusing(shape: tuple[int, ...]) -> None:
    model, x = narrow(), torch.randn(shape)
    program = torch.export.export(model, (x,))
    fused = reparam_compiler.fuse(program, (x,)).module()
    with torch.no_grad():
        assert difference(model(x), fused(x)).relative < 1e-5  # float32


def test_the_fused_net_runs_in_onnx(tmp_path: Path) -> None:
    model, x = narrow(), torch.randn(EVEN)
    (found,) = run_on(exported(reparam_compiler.fuse(model, (x,)), x, tmp_path, dynamo=False, dynamic=False), x)
    with torch.no_grad():
        assert difference(model(x), torch.from_numpy(found)).relative < 1e-5  # float32


@pytest.mark.tvm
@pytest.mark.parametrize("shape", [EVEN, ODD])
def test_compiled_it_computes_what_torch_computes(shape: tuple[int, ...]) -> None:
    pytest.importorskip("tvm")
    model, x = narrow(), torch.randn(shape)
    with torch.no_grad():
        expected = deep_copy(model).double()(x.double())
    (found,) = reparam_compiler.compile(reparam_compiler.fuse(model, (x,)), (x,)).run(x)
    assert np.shape(found) == (shape[0], 5, *shape[2:])
    assert difference(expected, torch.from_numpy(found)).relative < 1e-5  # float32
