"""Norms, and layers whose weights are made of others."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.habits.parts import WIDTH, Net, habit


@habit(parts=lambda: {"na": nn.SyncBatchNorm(WIDTH), "nb": nn.SyncBatchNorm(WIDTH)})
def sync_batch_norm(m: Any, x: Tensor) -> Any:
    """SyncBatchNorm, as DDP's conversion leaves it."""
    return m.c(m.features(x))


class _TrackedInstanceNorm(nn.InstanceNorm2d):
    def __init__(self) -> None:
        super().__init__(WIDTH, affine=True, track_running_stats=True)
        self.running_mean.normal_()
        self.running_var.uniform_(0.5, 2)


@habit(parts=lambda: {"na": _TrackedInstanceNorm(), "nb": _TrackedInstanceNorm()})
def instance_norm_with_statistics(m: Any, x: Tensor) -> Any:
    """InstanceNorm2d(track_running_stats=True), affine in evaluation mode."""
    return m.c(m.features(x))


class FrozenNorm(nn.Module):
    """The batch norm of detectors: four buffers, and arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("weight", torch.randn(WIDTH)), ("bias", torch.randn(WIDTH))):
            self.register_buffer(name, values)
        self.register_buffer("running_mean", torch.randn(WIDTH))
        self.register_buffer("running_var", torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        rv, rm = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


@habit(parts=lambda: {"na": FrozenNorm(), "nb": FrozenNorm()})
def frozen_batch_norm(m: Any, x: Tensor) -> Any:
    """torchvision's FrozenBatchNorm2d: buffers reshaped and multiplied in forward."""
    return m.c(m.features(x))


@habit(parts=lambda: {"na": nn.BatchNorm2d(WIDTH, affine=False), "nb": nn.BatchNorm2d(WIDTH, affine=False)})
def batch_norm_without_affine(m: Any, x: Tensor) -> Any:
    """BatchNorm2d(affine=False)."""
    return m.c(m.features(x))


@habit(parts=lambda: {"nb": nn.BatchNorm2d(WIDTH, track_running_stats=False)})
def batch_norm_of_the_batch(m: Any, x: Tensor) -> Any:
    """BatchNorm2d(track_running_stats=False): statistics of the batch in evaluation mode too."""
    return m.c(m.features(x))


@habit(parts=lambda: {"norm": nn.LayerNorm(WIDTH)})
def layer_norm_channels_last(m: Any, x: Tensor) -> Any:
    """ConvNeXt: LayerNorm between two permutes."""
    y = m.norm(m.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return m.c(m.body(y))


@habit(parts=lambda: {"w": nn.Parameter(torch.rand(WIDTH) + 0.5)})
def layer_norm_by_hand(m: Any, x: Tensor) -> Any:
    """LayerNorm2d by hand: mean and variance over channels, a weight with axes of None."""
    y = m.stem(x)
    u = y.mean(1, keepdim=True)
    s = (y - u).pow(2).mean(1, keepdim=True)
    return m.c(m.body(m.w[:, None, None] * ((y - u) / torch.sqrt(s + 1e-6))))


@habit(parts=lambda: {"norm": nn.GroupNorm(4, WIDTH)})
def group_norm(m: Any, x: Tensor) -> Any:
    """GroupNorm between convs."""
    return m.c(m.body(m.norm(m.stem(x))))


@habit(parts=lambda: {"norm": nn.RMSNorm(WIDTH)})
def rms_norm(m: Any, x: Tensor) -> Any:
    """nn.RMSNorm over channels."""
    return m.c(m.body(m.norm(m.stem(x).movedim(1, -1)).movedim(-1, 1)))


@habit(parts=lambda: {"w": nn.Parameter(torch.rand(WIDTH) + 0.5)})
def rms_norm_by_hand(m: Any, x: Tensor) -> Any:
    """RMSNorm by hand, in float32 and back."""
    y = m.stem(x).float()
    y = y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)
    return m.c(m.body(y.type_as(x) * m.w.view(1, -1, 1, 1)))


@habit()
def variance_over_channels(m: Any, x: Tensor) -> Any:
    """var(1) of the channels, in the norm of older ConvNeXts."""
    y = m.stem(x)
    return m.c(m.body((y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()))


@habit(parts=lambda: {"gamma": nn.Parameter(torch.randn(1, WIDTH, 1, 1)), "beta": nn.Parameter(torch.randn(1, WIDTH, 1, 1))})
def response_norm(m: Any, x: Tensor) -> Any:
    """ConvNeXt V2's GRN: an L2 norm over positions over its mean over channels."""
    y = m.stem(x)
    g = torch.norm(y, p=2, dim=(2, 3), keepdim=True)
    return m.c(m.body(m.gamma * (y * (g / (g.mean(dim=1, keepdim=True) + 1e-6))) + m.beta + y))


@habit()
class WeightNorm(Net):
    """torch.nn.utils.parametrizations.weight_norm on a conv."""

    def build(self) -> None:
        nn.utils.parametrizations.weight_norm(self.b)


@habit()
class SpectralNorm(Net):
    """torch.nn.utils.parametrizations.spectral_norm on a conv."""

    def build(self) -> None:
        nn.utils.parametrizations.spectral_norm(self.b)


@habit()
class StandardisedWeight(Net):
    """A conv whose weight is standardised in forward (NFNets, BiT)."""

    def forward(self, x: Tensor) -> Any:
        w = self.b.weight
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        y = F.conv2d(self.stem(x), (w - mean) / torch.sqrt(var + 1e-5), self.b.bias, padding=1)
        return self.c(self.nb(y).relu())


@habit(parts=lambda: {"nf": nn.BatchNorm1d(WIDTH)})
def norm_before_a_linear(m: Any, x: Tensor) -> Any:
    """BatchNorm1d between a pool and the classifier."""
    return m.fc(m.nf(F.adaptive_avg_pool2d(m.features(x), 1).flatten(1)))


@habit()
def pre_activation(m: Any, x: Tensor) -> Any:
    """ResNet v2: norm and relu before the conv, and a shortcut."""
    y = m.a(x)
    return m.c(y + m.b(m.na(y).relu()))


@habit()
class PaddedByReflection(Net):
    """Conv2d(padding_mode="reflect")."""

    def build(self) -> None:
        self.b = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect", bias=False)


@habit(parts=lambda: {"up": nn.ConvTranspose2d(WIDTH, WIDTH, 3), "nu": nn.BatchNorm2d(WIDTH)})
def transposed_conv(m: Any, x: Tensor) -> Any:
    """ConvTranspose2d without padding, and BN (DCGAN)."""
    return m.c(m.nu(m.up(m.features(x))).relu())


@habit()
class FakeQuantised(Net):
    """A weight that a fake-quantizer rounds in forward."""

    def forward(self, x: Tensor) -> Any:
        w = torch.fake_quantize_per_tensor_affine(self.b.weight, 0.01, 0, -128, 127)
        return self.c(self.nb(F.conv2d(self.stem(x), w, self.b.bias, padding=1)).relu())
