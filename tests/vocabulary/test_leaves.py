"""Every layer of torch.nn that is affine in evaluation is read, or stays for a reason that is stated here."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.vocabulary.resolve import resolve_module
from tests.support.small_models import EXACT, fuse_in_float64, normal, randomised, relative_error

LINE, IMAGE, VOLUME = normal(2, 4, 6), normal(2, 4, 6, 6), normal(2, 4, 6, 6, 6)
BY_RANK = {1: LINE, 2: IMAGE, 3: VOLUME}
PADS = ("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad")
AFFINE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{f"BatchNorm{n}d": (functools.partial(getattr(nn, f"BatchNorm{n}d"), 4), x) for n, x in BY_RANK.items()},
    **{
        f"InstanceNorm{n}d": (functools.partial(getattr(nn, f"InstanceNorm{n}d"), 4, affine=True, track_running_stats=True), x)
        for n, x in BY_RANK.items()
    },
    **{f"{pad}{n}d": (functools.partial(getattr(nn, f"{pad}{n}d"), 1), x) for pad in PADS for n, x in BY_RANK.items()},
    **{f"ConstantPad{n}d": (functools.partial(getattr(nn, f"ConstantPad{n}d"), 1, 0.5), x) for n, x in BY_RANK.items()},
    **{f"Conv{n}d": (functools.partial(getattr(nn, f"Conv{n}d"), 4, 4, 3), x) for n, x in BY_RANK.items()},
    **{f"ConvTranspose{n}d": (functools.partial(getattr(nn, f"ConvTranspose{n}d"), 4, 4, 3), x) for n, x in BY_RANK.items()},
    **{f"AvgPool{n}d": (functools.partial(getattr(nn, f"AvgPool{n}d"), 2), x) for n, x in BY_RANK.items()},
    **{f"AdaptiveAvgPool{n}d": (functools.partial(getattr(nn, f"AdaptiveAvgPool{n}d"), 2), x) for n, x in BY_RANK.items()},
    **{name: (getattr(nn, name), IMAGE) for name in ("Dropout", "Dropout2d", "Identity", "Flatten")},
    "Dropout1d": (nn.Dropout1d, LINE),
    "Dropout3d": (nn.Dropout3d, VOLUME),
    "AlphaDropout": (nn.AlphaDropout, IMAGE),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, IMAGE),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "Fold": (lambda: nn.Fold((4, 4), 2), normal(2, 4, 9)),
    "Linear": (lambda: nn.Linear(6, 3), LINE),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), IMAGE),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), IMAGE),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 2)), IMAGE),
    "Unfold": (lambda: nn.Unfold(2), IMAGE),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGE),
}
"""A layer of each class, and what it takes."""
OTHERS: dict[str, str] = {
    "functions of elements, of maxima or of the input's own statistics": (
        "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d CELU CrossMapLRN2d ELU FractionalMaxPool2d "
        "FractionalMaxPool3d GELU GLU GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh LPPool1d LPPool2d "
        "LPPool3d LayerNorm LeakyReLU LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d Mish "
        "PReLU RMSNorm RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign "
        "Tanh Tanhshrink Threshold "
    ),
    "take indices, several tensors or a state": (
        "AdaptiveLogSoftmaxWithLoss Bilinear CosineSimilarity Embedding EmbeddingBag GRU GRUCell LSTM LSTMCell "
        "MaxUnpool1d MaxUnpool2d MaxUnpool3d MultiheadAttention PairwiseDistance RNN RNNBase RNNCell RNNCellBase "
        "Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer "
    ),
    "hold other modules": ("Container DataParallel Module ModuleDict ModuleList ParameterDict ParameterList Sequential "),
}
"""The other classes, by what they are."""
KINDS = {name: kind for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}


def test_each_layer_is_one_of_these() -> None:
    others = {name for names in OTHERS.values() for name in names.split()}
    made = {name for name in KINDS if name.startswith("Lazy") or "Loss" in name}  # what a lazy layer becomes is another class
    assert set(KINDS) - made == set(AFFINE) | (others - made)


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_layer_is_read(name: str) -> None:
    make, x = AFFINE[name]
    layer = randomised(make().double())
    other, zero = x.flip(0) * 3, torch.zeros_like(x)
    assert type(layer) is KINDS[name]
    assert relative_error(layer(2 * x + other) + 2 * layer(zero), 2 * layer(x) + layer(other)) < EXACT
    assert resolve_module(type(layer)).row is not None


NORMS: dict[str, Callable[[], nn.Module]] = {
    "sync": lambda: nn.SyncBatchNorm(4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "instance, without weights": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "lazy": nn.LazyBatchNorm2d,
    "frozen": lambda: Frozen(4),
}


class Frozen(nn.Module):
    """torchvision's form of a batch norm whose statistics are fixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", torch.rand(channels)), ("bias", torch.rand(channels)), ("mean", torch.rand(channels))):
            self.register_buffer(name, value)
        self.register_buffer("var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.reshape(shape) * (self.var.reshape(shape) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(shape) - self.mean.reshape(shape) * scale)


@pytest.mark.parametrize("kind", ["module", "fx", "export"])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_with_statistics_goes_into_the_conv_before_it(name: str, kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), NORMS[name](), nn.ReLU())
    model(IMAGE.float())
    for tensor in model[1].buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    fused = fuse_in_float64(model, IMAGE, kind=kind)  # type: ignore[arg-type]
    assert len(fused.report.fusions) == 1
    assert fused.error < EXACT


def test_an_instance_norm_without_statistics_or_without_batch_axis_stays() -> None:
    own = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4)).eval()
    assert not reparam_compiler.inspect(own, (IMAGE.float(),)).fusions
    image = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)).eval()
    fused = reparam_compiler.fuse(image, (IMAGE[0].float(),))
    torch.testing.assert_close(fused(IMAGE[0].float()), image(IMAGE[0].float()))


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
@pytest.mark.parametrize("kind", [lambda m: m, torch.fx.symbolic_trace, lambda m: torch.export.export(m, (IMAGE.float(),))])
def test_an_instance_norm_with_statistics_is_pruned(kind: Callable[[nn.Module], object]) -> None:
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    pruned: Any = reparam_compiler.prune(kind(model), (IMAGE.float(),), ratio=0.5, round_to=1)
    state = pruned.state_dict() if isinstance(pruned, nn.Module) else pruned.state_dict
    assert {tuple(state[f"1.{name}"].shape) for name in ("weight", "bias", "running_mean", "running_var")} == {(4,)}
