"""Weights for nets that nobody trained: random enough to show a wrong fusion, tame enough to stay finite at any depth.

    conv:       W ~ N(0, 2 / fan-in)                    doubles the second moment of its input; a ReLU halves it again
    batch norm: bn(x) = (x - mu) gamma / sigma + beta   Eq. 2, here with every one of the four away from its default

The defaults of a batch norm (0, 1, 1, 0) hide every mistake in folding it.

Source: He et al., "Delving Deep into Rectifiers", 2015, for the convs; RepVGG (CVPR 2021), Eq. 2.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from reparam_compiler.zoo.blocks import BranchBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def initialise_convs(model: nn.Module) -> None:
    """Draw the weights of all convs anew, in place, from torch's global generator; parametrized ones are left alone.

    Args:
        model: any module.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not parametrize.is_parametrized(module):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


@torch.no_grad()
def randomise_batch_norm(model: ModuleT, seed: int = 0, *, gain: float = 0.6) -> ModuleT:
    """Give every batch norm of `model` random statistics and, where it has them, a random scale and shift.

    mu ~ 0.1 N(0, 1), var ~ U(0.5, 1.5), |gamma| ~ gain U(0.8, 1.2), one in eight of them negative, beta ~ 0.1 N(0, 1).

    In a `BranchBlock`, gain is one over the square root of the number of branches, so that their sum keeps its size.

    Args:
        model: changed in place.
        seed: of a generator of its own: torch's global one is not touched.
        gain: of all other batch norms; below 1, so that a residual sum does not double in every block.

    Returns:
        `model`, so that calls can be chained.
    """
    random = torch.Generator().manual_seed(seed)
    gains = {
        inner: len(block.branches) ** -0.5
        for block in model.modules()
        if isinstance(block, BranchBlock)
        for inner in block.modules()
    }
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            continue
        count = module.num_features
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(0.1 * torch.randn(count, generator=random))
            module.running_var.copy_(0.5 + torch.rand(count, generator=random))
        if module.affine:
            module.weight.copy_(_signed(gains.get(module, gain) * (0.8 + 0.4 * torch.rand(count, generator=random)), random))
            module.bias.copy_(0.1 * torch.randn(count, generator=random))
    return model


def _signed(magnitude: Tensor, random: torch.Generator) -> Tensor:
    negative = torch.rand(magnitude.shape, generator=random) < 1 / 8
    return torch.where(negative, -magnitude, magnitude)
