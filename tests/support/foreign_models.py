"""Models of timm and transformers with random weights: nothing is downloaded, and no weight is at a default that hides a bug.

    parameter, constant as initialised   c = 0: 0.1 N(0, 1);  |c| < 0.1 (a layer scale): U(0.3, 0.7);  else c U(0.8, 1.2)
    batch norm                           `randomise_batch_norm`
    conv of transformers                 He et al.: those of the detectors are so small that nothing of the picture arrives

A zero-initialised scale makes its whole branch vanish, and with it every mistake in fusing the branch.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reparam_compiler.zoo.random_weights import randomise_batch_norm

SIZES = (96, 128, 160, 192, 224, 256, 384, 512)
"""Heights and widths that are tried for a model that does not take small ones."""
_held: list[torch.library.Library] = []


def timm() -> ModuleType:
    """The package, imported where torchvision's compiled ops do not load; it never asks the network for anything."""
    return _offline("timm")


def transformers() -> ModuleType:
    """The package; as above."""
    return _offline("transformers")


def _offline(name: str) -> ModuleType:
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not _held and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _held.append(library)
    return importlib.import_module(name)


def timm_model(name: str, size: int | None = None, *, without: Sequence[str] = (), **options: Any) -> tuple[nn.Module, Tensor]:
    """A model of timm in evaluation mode, and an image that it takes.

    Args:
        name, options: as for `timm.create_model`.
        size: height and width of the image; the smallest in `SIZES` that the model takes where it is None.
        without: blocks that are left out, which give what they take.

    Raises:
        RuntimeError: it takes none of them.
    """
    create = timm().create_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create(name, pretrained=False, **options)
        for path in without:
            model.set_submodule(path, nn.Identity())
        randomised(model)
    channels, *given = model.default_cfg.get("input_size", (3, 224, 224))
    for tried in (size,) if size is not None else (*SIZES, given[0]):
        x = normal(1, channels, tried, tried)
        try:
            with torch.no_grad():
                model(x)
        except (RuntimeError, AssertionError, ValueError):
            continue
        return model, x
    raise RuntimeError(f"{name} runs on no image of {size or SIZES}")


def own_size(name: str) -> int:
    """The height and width that a model of timm was made for."""
    return int(timm().models.get_pretrained_cfg(name).input_size[-1])


def transformers_model(name: str, *, small: bool = True) -> tuple[nn.Module, Tensor]:
    """A model of transformers in evaluation mode, and an input for it.

    Args:
        name: one of `CONFIGURED`.
        small: of a few narrow layers; else as its configuration's defaults have it.
    """
    library = transformers()
    make, *shapes = CONFIGURED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomised(make(library, small))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return model, normal(*shapes[not small])


def _textnet(library: Any, small: bool) -> nn.Module:
    widths = {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 24, 32]} if small else {}
    return library.TextNetModel(library.TextNetConfig(**widths))


def _efficientloftr(library: Any, small: bool) -> nn.Module:
    if not small:
        return library.EfficientLoFTRModel(
            library.EfficientLoFTRConfig(rope_parameters={**ROTARY, "partial_rotary_factor": 4.0})
        )
    return library.EfficientLoFTRModel(
        library.EfficientLoFTRConfig(
            stage_num_blocks=[1, 2, 2, 2],
            out_features=[16, 16, 24, 32],
            hidden_size=32,
            num_attention_layers=1,
            num_attention_heads=4,
            rope_parameters={**ROTARY, "partial_rotary_factor": 2.0},
        )
    )


ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
DETECTOR = {
    "encoder_in_channels": [32, 40],
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32],
    "feat_strides": [16, 32],
    "encode_proj_layers": [1],
    "num_feature_levels": 2,
    "d_model": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_queries": 12,
    "num_denoising": 0,
    "anchor_image_size": [96, 96],
    "freeze_backbone_batch_norms": False,
}
STAGES = {"hidden_sizes": [16, 24, 32, 40], "out_features": ["stage3", "stage4"]}


def _rt_detr(library: Any, small: bool) -> nn.Module:
    if not small:
        return library.RTDetrForObjectDetection(library.RTDetrConfig())
    backbone = library.RTDetrResNetConfig(
        embedding_size=16, depths=[1, 1, 1], layer_type="basic", hidden_sizes=[16, 24, 32], out_features=["stage2", "stage3"]
    )
    sizes = {"encoder_in_channels": [24, 32], "feat_strides": [8, 16], "anchor_image_size": [64, 64], "decoder_layers": 1}
    return library.RTDetrForObjectDetection(library.RTDetrConfig(backbone_config=backbone, **DETECTOR | sizes))


def _d_fine(library: Any, small: bool) -> nn.Module:
    if not small:
        return library.DFineForObjectDetection(library.DFineConfig())
    backbone = library.HGNetV2Config(
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 16, 24, 32],
        stage_mid_channels=[8, 8, 12, 16],
        stage_out_channels=[16, 24, 32, 40],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        **STAGES,
    )
    return library.DFineForObjectDetection(library.DFineConfig(backbone_config=backbone, depth_mult=1 / 3, **DETECTOR))


CONFIGURED: dict[str, tuple[Callable[[Any, bool], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "textnet": (_textnet, (1, 3, 64, 96), (1, 3, 320, 320)),
    "efficientloftr": (_efficientloftr, (1, 2, 1, 64, 96), (1, 2, 1, 224, 224)),
    "rt_detr": (_rt_detr, (1, 3, 64, 64), (1, 3, 320, 320)),
    "d_fine": (_d_fine, (1, 3, 96, 96), (1, 3, 320, 320)),
}
"""How to make each model of transformers, and the shapes of the inputs of the small one and of the other."""


def normal(*shape: int) -> Tensor:
    """Random values, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with no parameter at a constant, as the module's docstring says."""
    random = torch.Generator().manual_seed(2)
    norms = {id(p) for module in model.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) in norms or not parameter.is_floating_point() or not parameter.numel():
            continue
        constant = float(parameter.flatten()[0])
        if not bool((parameter == constant).all()):
            continue
        spread = torch.rand(parameter.shape, generator=random)
        if constant == 0:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
        else:
            parameter.copy_(0.3 + 0.4 * spread if abs(constant) < 0.1 else constant * (0.8 + 0.4 * spread))
    return randomise_batch_norm(model, 0).eval()
